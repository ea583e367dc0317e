# SPDX-License-Identifier: Apache-2.0
"""What the lint scripts share: the tree's files, its includes, and how a result is told."""

import json
import os
import re
import shlex
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


def closure(name: str) -> set[str]:
    """The file and every file of the tree that it includes."""
    seen, open_ = set(), [name]
    while open_:
        name = open_.pop()
        if name not in seen and (ROOT / name).is_file():
            seen.add(name)
            open_ += [target for _line, kind, target in includes(name) if kind == '"']
    return seen


def sources_of(row: dict) -> list[str]:
    """The tree's sources in one run of the compiler: itself, or what the file that meson wrote for a unity build names."""
    path = (Path(row["directory"]) / row["file"]).resolve()
    if path.parent.suffix != ".p":
        return [str(path.relative_to(ROOT))] if path.is_relative_to(ROOT) else []
    named = [Path(target).resolve() for target in re.findall(r"#include\s*<([^>]+)>", path.read_text())]
    return [str(path.relative_to(ROOT)) for path in named if path.is_relative_to(ROOT)]


def flags(row: dict) -> list[str]:
    """The compiler's command without its output, its dependency file and its source."""
    words, kept, skip = shlex.split(row["command"]), [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("-o", "-MF", "-MQ", "-c"):
            skip = True
        elif word not in ("-MD", "ccache"):
            kept.append(word)
    return kept


def commands(build: Path) -> dict[str, dict]:
    """Per source of the tree how it is compiled alone: {"directory", "command", "file"}."""
    found = {}
    for row in json.loads((build / "compile_commands.json").read_text()):
        for name in sources_of(row):
            words = [*flags(row), "-c", str(ROOT / name)]
            found[name] = {"directory": row["directory"], "command": shlex.join(words), "file": str(ROOT / name)}
    return found


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
