#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""clang-tidy over the programs' sources, each only when it, something it includes, or .clang-tidy changed.

usage: tidy.py BUILD_DIR [FILE...]

Tests are not looked at: Catch2's macros are most of what would be found there. A clean result is remembered in
BUILD_DIR/tidy-cache under the hash of everything that went into it. Also refuses a disabled check without a reason.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tree

TOOL = "clang-tidy-14"
SKIPPED = 77
CONFIG = tree.ROOT / ".clang-tidy"
# GCC's warning names that clang does not know.
EXTRA = ["--extra-arg=-Wno-unknown-warning-option"]


def unreasoned() -> list[str]:
    text = CONFIG.read_text()
    checks = text[text.index("\nChecks:"):text.index("\nWarningsAsErrors:")]
    off = [check for check in re.findall(r"^\s+-([a-z][\w.-]*?),?$", checks, re.MULTILINE)]
    return [f".clang-tidy: '-{check}' has no reason" for check in off if f"# -{check}: " not in text]


def sources(rows: dict[str, dict]) -> list[str]:
    return sorted(name for name in rows if not name.startswith("tests/"))


def key_of(name: str) -> str:
    state = hashlib.sha256(CONFIG.read_bytes())
    for part in sorted(tree.closure(name)):
        state.update(part.encode() + b"\0" + (tree.ROOT / part).read_bytes())
    return state.hexdigest()


def check(database: Path, name: str) -> list[str]:
    done = subprocess.run([TOOL, "-p", str(database), "--quiet", *EXTRA, name], cwd=tree.ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return []
    found = [line.replace(f"{tree.ROOT}/", "") for line in done.stdout.splitlines() if re.search(r": (error|warning): ", line)]
    return found or [f"{name}: {TOOL} failed: {done.stderr.strip()[-400:]}"]


def main() -> int:
    if not shutil.which(TOOL):
        print(f"{TOOL} is not installed (tools/setup check)")
        return SKIPPED
    build = Path(sys.argv[1]).resolve()
    rows = tree.commands(build)
    names = sys.argv[2:] or sources(rows)
    cache = build / "tidy-cache"
    cache.mkdir(exist_ok=True)
    # Each source by itself, whatever the build gives to one run of the compiler.
    (cache / "compile_commands.json").write_text(json.dumps(list(rows.values())))
    keys = {name: key_of(name) for name in names}
    changed = [name for name in names if not (cache / keys[name]).exists()]
    print(f"{len(names)} sources, {len(names) - len(changed)} unchanged since their last clean run", flush=True)

    faults = unreasoned()
    with ThreadPoolExecutor(tree.jobs()) as pool:
        for name, found in zip(changed, pool.map(lambda name: check(cache, name), changed)):
            faults += found
            if not found:
                (cache / keys[name]).touch()
    # The same line of a header is told once, not once per source.
    return tree.report(len(names), list(dict.fromkeys(faults)))


if __name__ == "__main__":
    sys.exit(main())
