#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every header compiles alone.

The build does not prove it, for it gives several sources to a compiler run. Each header is compiled here, unless it is
the first include of another one, and only when it or what it includes changed: BUILD_DIR/header-cache remembers. Also, each foo.cpp must include its own foo.hpp
first.

usage: headers.py BUILD_DIR
"""

import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tree


def first_include(name: str) -> str | None:
    found = tree.includes(name)
    return found[0][2] if found else None


def key_of(header: str, row: dict) -> str:
    state = hashlib.sha256(" ".join(tree.flags(row)[1:]).encode())
    for name in sorted(tree.closure(header)):
        state.update(name.encode() + b"\0" + (tree.ROOT / name).read_bytes())
    return state.hexdigest()


def compile_alone(header: str, row: dict, cache: Path) -> str | None:
    """Into an object, and through ccache where there is one: a clean clone asks for what another has compiled."""
    source = cache / (header.replace("/", "_") + ".cpp")
    source.write_text(f'#include "{header}"\n')
    command = [*tree.flags(row), f"-I{tree.ROOT}", "-O0", "-g0", "-c", str(source), "-o", str(source.with_suffix(".o"))]
    if shutil.which("ccache"):
        command.insert(0, "ccache")
    environment = {**os.environ, "CCACHE_BASEDIR": str(tree.ROOT), "CCACHE_NOHASHDIR": "1"}
    done = subprocess.run(command, cwd=row["directory"], env=environment, text=True, capture_output=True, timeout=120)
    return None if done.returncode == 0 else f"{header}: does not compile alone:\n{done.stderr}"


def main() -> int:
    rows = tree.commands(Path(sys.argv[1]))
    headers = [name for name in tree.code_files() if name.endswith(".hpp")]
    faults = []
    for name in rows:
        own = name.removesuffix(".cpp") + ".hpp"
        if own in headers and first_include(name) != own:
            faults.append(f'{name}: its first include must be its own header, "{own}"')

    # The first include of a header that compiles alone does too: nothing stands before it.
    led = {first_include(header) for header in headers}

    def row_for(header: str) -> dict:
        """Flags of the source nearest in the tree: same folder, else same top folder, else any."""
        folder = header.rsplit("/", 1)[0]
        near = [name for name in rows if name.startswith(folder + "/")]
        near += [name for name in rows if name.startswith(header.split("/")[0] + "/")]
        return rows[(near or [name for name in rows if name.startswith("daemon/")] or list(rows))[0]]

    cache = Path(sys.argv[1]).resolve() / "header-cache"
    cache.mkdir(exist_ok=True)
    keys = {header: key_of(header, row_for(header)) for header in headers if header not in led}
    alone = [header for header, key in keys.items() if not (cache / key).exists()]
    print(f"{len(headers) - len(keys)} headers proved by others, {len(keys) - len(alone)} unchanged, {len(alone)} compiled",
          flush=True)
    with ThreadPoolExecutor(tree.jobs()) as pool:
        for header, fault in zip(alone, pool.map(lambda header: compile_alone(header, row_for(header), cache), alone)):
            if fault:
                faults.append(fault)
            else:
                (cache / keys[header]).touch()
    return tree.report(len(headers), faults)


if __name__ == "__main__":
    sys.exit(main())
