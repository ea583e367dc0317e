#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every header compiles alone.

A header that is the first include of a source file is proved by the build itself, for nothing stands before it; so
each foo.cpp must include its own foo.hpp first. Only headers that no source begins with are compiled here.

usage: headers.py BUILD_DIR
"""

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
        if first:
            proved.add(first)

    def row_for(header: str) -> dict:
        """Flags of the source nearest in the tree: same folder, else same top folder, else any."""
        folder = header.rsplit("/", 1)[0]
        near = [name for name in rows if name.startswith(folder + "/")]
        near += [name for name in rows if name.startswith(header.split("/")[0] + "/")]
        return rows[(near or [name for name in rows if name.startswith("daemon/")] or list(rows))[0]]

    alone = [header for header in headers if header not in proved]
    with ThreadPoolExecutor(tree.jobs()) as pool:
        faults += [fault for fault in pool.map(lambda header: compile_alone(header, row_for(header)), alone) if fault]
    return tree.report(len(headers), faults)


if __name__ == "__main__":
    sys.exit(main())
