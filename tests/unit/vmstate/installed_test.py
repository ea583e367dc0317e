#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A program outside the tree compiles against what `meson install` installs, and runs.

    installed_test.py BUILD_DIR SOURCE SANITIZERS COMPILER...
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BUILD, SOURCE, SANITIZERS, *COMPILER = sys.argv[1:]
WAIT = 240


def run(words: list[str], **options: object) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT, check=False, **options)  # type: ignore
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> int:
    for tool in ("meson", "pkg-config"):
        if shutil.which(tool) is None:
            print(f"SKIP: {tool} is not installed")
            return 77
    with tempfile.TemporaryDirectory() as folder:
        run(["meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--tags", "devel", "--destdir", folder])
        description = next(Path(folder).rglob("migrationd-vmstate.pc"))
        # pkg-config puts the folder in front of the paths, which are those of the real prefix.
        env = os.environ | {"PKG_CONFIG_PATH": str(description.parent), "PKG_CONFIG_SYSROOT_DIR": folder,
                            "PKG_CONFIG_ALLOW_SYSTEM_LIBS": "1", "PKG_CONFIG_ALLOW_SYSTEM_CFLAGS": "1"}
        flags = run(["pkg-config", "--cflags", "--libs", "migrationd-vmstate"], env=env).split()
        sanitizers = [] if SANITIZERS == "none" else [f"-fsanitize={SANITIZERS}"]
        program = str(Path(folder) / "outside")
        # Headers that are found by anything but the installed folder would prove nothing.
        run([*COMPILER, "-std=c++20", "-Wall", "-Wextra", "-Werror", *sanitizers, SOURCE, "-o", program, *flags],
            cwd=folder)
        stream, _, tables = run([program]).partition("\n")
    assert [one["vmsd_name"] for one in json.loads(stream)["devices"]] == ["clock"], stream
    assert json.loads(tables)["devices"][0]["fields"][2]["bound"] == 100, tables
    return 0


sys.exit(main())
