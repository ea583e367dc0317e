#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""clang-tidy over the programs' sources, each only when it, something it includes, or .clang-tidy changed.

usage: tidy.py BUILD_DIR [FILE...]

Every check that matches the syntax walks all of Boost and of the standard library, in each run anew: 12 s, whatever the
source. So those look at what one run of the compiler gets, which is eight sources of a unity build. The analyser looks
only at functions of the file it is called with; it, and the two checks that ask for the main file, run for each source
by itself. FILE... limits both to the runs that concern these.

Tests are not looked at: Catch2's macros are most of what would be found there. A clean result is remembered in
BUILD_DIR/tidy-cache under the hash of everything that went into it. Also refuses a disabled check without a reason.
"""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tree

TOOL = "clang-tidy-14"
SKIPPED = 77
CONFIG = tree.ROOT / ".clang-tidy"
# GCC's warning names that clang does not know.
EXTRA = ["--extra-arg=-Wno-unknown-warning-option"]
ANALYSER = ("core", "cplusplus", "deadcode", "unix")
OF_THE_MAIN_FILE = ("bugprone-suspicious-include", "misc-unused-using-decls")
ALONE = ",".join(["-*", *(f"clang-analyzer-{family}*" for family in ANALYSER), *OF_THE_MAIN_FILE])
ALL_BUT_ALONE = ",".join(["-clang-analyzer-*", *(f"-{name}" for name in OF_THE_MAIN_FILE)])
# To the unity file its sources are headers.
HEADERS_AND_SOURCES = "--header-filter=/(base|protocol|transports|vmstate|ram|postcopy|guest|daemon|tools)/[a-z0-9_/]*\\.[ch]pp$"


def unreasoned() -> list[str]:
    text = CONFIG.read_text()
    checks = text[text.index("\nChecks:"):text.index("\nWarningsAsErrors:")]
    off = [check for check in re.findall(r"^\s+-([a-z][\w.-]*?),?$", checks, re.MULTILINE)]
    return [f".clang-tidy: '-{check}' has no reason" for check in off if f"# -{check}: " not in text]


@dataclass(frozen=True)
class Run:
    """One call of the tool."""
    main: str           # the file that the database names
    sources: tuple[str, ...]  # of the tree, whose findings count
    checks: str         # what is added to .clang-tidy's
    headers: tuple[str, ...] = ()  # options that say in which headers findings count


def wanted(name: str) -> bool:
    return not name.startswith("tests/")


def runs(build: Path) -> tuple[list[Run], list[dict]]:
    """All calls, and the rows of the database for them."""
    rows, calls = [], []
    for row in json.loads((build / "compile_commands.json").read_text()):
        members = tuple(name for name in tree.sources_of(row) if wanted(name))
        if members:
            main = str((Path(row["directory"]) / row["file"]).resolve())
            words = [*tree.flags(row), "-c", main]
            rows.append({"directory": row["directory"], "command": shlex.join(words), "file": main})
            calls.append(Run(main, members, ALL_BUT_ALONE, (HEADERS_AND_SOURCES,)))
    for name, row in tree.commands(build).items():
        if wanted(name):
            rows.append(row)
            calls.append(Run(row["file"], (name,), ALONE))
    # A source that is compiled alone has one row for both.
    return calls, list({row["file"]: row for row in rows}.values())


def key_of(run: Run) -> str:
    state = hashlib.sha256(CONFIG.read_bytes() + run.checks.encode())
    for part in sorted(set().union(*(tree.closure(name) for name in run.sources))):
        state.update(part.encode() + b"\0" + (tree.ROOT / part).read_bytes())
    return state.hexdigest()


def check(database: Path, run: Run) -> list[str]:
    done = subprocess.run([TOOL, "-p", str(database), "--quiet", f"--checks={run.checks}", *run.headers, *EXTRA, run.main],
                          cwd=tree.ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return []
    lines = [line.replace(f"{tree.ROOT}/", "") for line in done.stdout.splitlines()]
    # Out of a unity file they are named from the build's folder.
    found = [re.sub(r"^build[^/]*/\.\./", "", line) for line in lines if re.search(r": (error|warning): ", line)]
    return found or [f"{run.main}: {TOOL} failed: {done.stderr.strip()[-400:]}"]


def main() -> int:
    if not shutil.which(TOOL):
        print(f"{TOOL} is not installed (tools/setup check)")
        return SKIPPED
    build = Path(sys.argv[1]).resolve()
    calls, rows = runs(build)
    if names := set(sys.argv[2:]):
        calls = [run for run in calls if names & set(run.sources)]
    cache = build / "tidy-cache"
    cache.mkdir(exist_ok=True)
    (cache / "compile_commands.json").write_text(json.dumps(rows))
    keys = {run: key_of(run) for run in calls}
    changed = [run for run in calls if not (cache / keys[run]).exists()]
    count = len({name for run in calls for name in run.sources})
    print(f"{count} sources, {len(calls)} runs, {len(calls) - len(changed)} unchanged since they were clean", flush=True)

    faults = unreasoned()
    with ThreadPoolExecutor(tree.jobs()) as pool:
        for run, found in zip(changed, pool.map(lambda run: check(cache, run), changed)):
            faults += found
            if not found:
                (cache / keys[run]).touch()
    # The same line of a header is told once, not once per source.
    return tree.report(count, list(dict.fromkeys(faults)))


if __name__ == "__main__":
    sys.exit(main())
