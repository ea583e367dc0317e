#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every script parses: Python by its compiler, shell by `bash -n`; and what has a #! line is executable."""

import ast
import os
import subprocess
import sys

import tree


def faults_of(name: str) -> list[str]:
    text = tree.text_of(name)
    first = text.split("\n", 1)[0]
    faults = []
    if first.startswith("#!") and not os.access(tree.ROOT / name, os.X_OK):
        faults.append(f"{name}: has a #! line but is not executable")
    if name.endswith(".py") or "python" in first:
        try:
            ast.parse(text, name)
        except SyntaxError as error:
            faults.append(f"{name}:{error.lineno}: {error.msg}")
    elif name.endswith(".sh") or first.endswith("sh"):
        done = subprocess.run(["bash", "-n", name], cwd=tree.ROOT, capture_output=True, text=True)
        if done.returncode:
            faults.append(done.stderr.strip())
    return faults


def main() -> int:
    names = [name for name in tree.files() if not name.startswith(tree.DATA)
             and (name.endswith((".py", ".sh")) or tree.text_of(name).startswith("#!"))]
    return tree.report(len(names), [fault for name in names for fault in faults_of(name)])


if __name__ == "__main__":
    sys.exit(main())
