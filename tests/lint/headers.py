#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every header compiles alone.

A header that is the first include of a source file is proved by the build itself, for nothing stands before it, and
so is the first include of such a header; each foo.cpp must include its own foo.hpp first. Only headers that nothing
proves are compiled here, and only when they or what they include changed: BUILD_DIR/header-cache remembers.

usage: headers.py BUILD_DIR
"""

import hashlib
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tree


def commands(build: Path) -> dict[str, dict]:
    """The compiler's command per source file of the tree."""
    rows = json.loads((build / "compile_commands.json").read_text())
    by_name = {}
    for row in rows:
        path = (Path(row["directory"]) / row["file"]).resolve()
        if path.is_relative_to(tree.ROOT):
            by_name[str(path.relative_to(tree.ROOT))] = row
    return by_name


def first_include(name: str) -> str | None:
    found = tree.includes(name)
    return found[0][2] if found else None


def flags(row: dict) -> list[str]:
    """The compile command without its output, its dependency file and its source."""
    words, kept, skip = shlex.split(row["command"]), [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("-o", "-MF", "-MQ", "-c"):
            skip = True
        elif word not in ("-MD", "ccache"):
            kept.append(word)
    return kept


def closure(header: str) -> set[str]:
    """The header and every file of the tree it includes."""
    seen, open_ = set(), [header]
    while open_:
        name = open_.pop()
        if name not in seen and (tree.ROOT / name).is_file():
            seen.add(name)
            open_ += [target for _line, kind, target in tree.includes(name) if kind == '"']
    return seen


def key_of(header: str, row: dict) -> str:
    state = hashlib.sha256(" ".join(flags(row)[1:]).encode())
    for name in sorted(closure(header)):
        state.update(name.encode() + b"\0" + (tree.ROOT / name).read_bytes())
    return state.hexdigest()


def compile_alone(header: str, row: dict) -> str | None:
    command = [*flags(row), f"-I{tree.ROOT}", "-fsyntax-only", "-O0", "-x", "c++", "-"]
    done = subprocess.run(command, cwd=row["directory"], input=f'#include "{header}"\n', text=True,
                          capture_output=True, timeout=120)
    return None if done.returncode == 0 else f"{header}: does not compile alone:\n{done.stderr}"


def main() -> int:
    rows = commands(Path(sys.argv[1]))
    headers = [name for name in tree.code_files() if name.endswith(".hpp")]
    faults, proved = [], set()
    for name in rows:
        own = name.removesuffix(".cpp") + ".hpp"
        first = first_include(name)
        if own in headers and first != own:
            faults.append(f'{name}: its first include must be its own header, "{own}"')
        while first and first not in proved:
            proved.add(first)
            first = first_include(first) if (tree.ROOT / first).is_file() else None

    def row_for(header: str) -> dict:
        """Flags of the source nearest in the tree: same folder, else same top folder, else any."""
        folder = header.rsplit("/", 1)[0]
        near = [name for name in rows if name.startswith(folder + "/")]
        near += [name for name in rows if name.startswith(header.split("/")[0] + "/")]
        return rows[(near or [name for name in rows if name.startswith("daemon/")] or list(rows))[0]]

    cache = Path(sys.argv[1]) / "header-cache"
    cache.mkdir(exist_ok=True)
    keys = {header: key_of(header, row_for(header)) for header in headers if header not in proved}
    alone = [header for header, key in keys.items() if not (cache / key).exists()]
    print(f"{len(proved & set(headers))} headers proved by sources, {len(keys) - len(alone)} unchanged, {len(alone)} compiled",
          flush=True)
    with ThreadPoolExecutor(tree.jobs()) as pool:
        for header, fault in zip(alone, pool.map(lambda header: compile_alone(header, row_for(header)), alone)):
            if fault:
                faults.append(fault)
            else:
                (cache / keys[header]).touch()
    return tree.report(len(headers), faults)


if __name__ == "__main__":
    sys.exit(main())
