#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""clang-format has nothing to change. `format.py --fix` changes it."""

import shutil
import subprocess
import sys

import tree

TOOL = "clang-format-14"
SKIPPED = 77  # Meson's exit status for "could not run here"


def main() -> int:
    if not shutil.which(TOOL):
        print(f"{TOOL} is not installed (tools/setup check)")
        return SKIPPED
    names = tree.code_files()
    if "--fix" in sys.argv:
        return subprocess.run([TOOL, "-i", *names], cwd=tree.ROOT).returncode
    faults = []
    for start in range(0, len(names), 50):
        done = subprocess.run([TOOL, "--dry-run", "--ferror-limit=1", *names[start:start + 50]], cwd=tree.ROOT,
                              capture_output=True, text=True)
        faults += [line for line in done.stderr.splitlines() if "warning:" in line or "error:" in line]
    wrong = sorted({fault.split(":")[0] for fault in faults})
    return tree.report(len(names), [f"{name}: run tests/lint/format.py --fix" for name in wrong])


if __name__ == "__main__":
    sys.exit(main())
