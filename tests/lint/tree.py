# SPDX-License-Identifier: Apache-2.0
"""What the lint scripts share: the tree's files, its includes, and how a result is told."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = (".cpp", ".hpp", ".c", ".h")
# Recorded bytes and seeds are not ours to shape.
DATA = ("tests/fixtures/", "tests/fuzz/corpus/")

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">]', re.MULTILINE)


def files() -> list[str]:
    """Every file of the tree, relative to its root: what git knows or would add; without git, what lies there."""
    git = subprocess.run(["git", "-C", str(ROOT), "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard"],
                         capture_output=True, text=True)
    if git.returncode == 0:
        names = git.stdout.splitlines()
    else:
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
        names = [name for name in names if not name.startswith(("build", ".git/")) and "__pycache__" not in name]
    return sorted(name for name in set(names) if (ROOT / name).is_file())


def code_files() -> list[str]:
    return [name for name in files() if name.endswith(CODE) and not name.startswith(DATA)]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8", errors="replace")


def includes(name: str) -> list[tuple[int, str, str]]:
    """(line, '"' or '<', path) of each include."""
    text = text_of(name)
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1), m.group(2)) for m in INCLUDE.finditer(text)]


def report(checked: int, faults: list[str]) -> int:
    """Prints the faults and the last line that tools/check counts; returns the exit status."""
    for fault in faults:
        print(fault)
    bad = min(len(faults), checked)
    print(f"{checked - bad} passed, {len(faults)} failed")
    if checked == 0:
        print("nothing was checked", file=sys.stderr)
        return 1
    return 1 if faults else 0


def jobs() -> int:
    return max(1, min(4, os.cpu_count() or 1))
