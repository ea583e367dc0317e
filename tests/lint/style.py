#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Small rules about every file: licence tag, length, marks of unfinished work, words that have no place here."""

import re
import sys

import tree

TAG = "SPDX-License-Identifier: Apache-2.0"
# Files without a place for a comment, and the licence itself. Of documents only the manual pages carry a tag.
UNTAGGED = re.compile(r"(^|/)(LICENSE|README\.md|\.gitignore|\.gitattributes|packages)$|\.(md|json|jsonl|txt)$")
LONGEST = 600

# Split, so that this file does not find itself.
MARKS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"]) + r")\b")
# Package mirrors are the machine's business (tools/setup uses what it has configured); the tree stands alone.
FOREIGN = re.compile("|".join([r"deb\.deb" + r"ian\.org", r"snapshot\.deb" + r"ian", r"registry\.npm" + r"js",
                               r"security\.deb" + r"ian", r"\.\./sha" + r"red\b", r"/work/sha" + r"red\b"]))
DETACHED = re.compile(r"\basio::detached\b|\.detach\(\)")


def faults_of(name: str) -> list[str]:
    text = tree.text_of(name)
    lines = text.splitlines()
    faults = []
    head = "\n".join(lines[:3])
    if lines and not UNTAGGED.search(name) and TAG not in head:
        faults.append(f"{name}: no '{TAG}' in its first lines")
    code = name.endswith((*tree.CODE, ".py"))
    if code and len(lines) > LONGEST:
        faults.append(f"{name}: {len(lines)} lines, more than {LONGEST}: split it")
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        if MARKS.search(line):
            faults.append(f"{where}: a mark of unfinished work")
        if FOREIGN.search(line):
            faults.append(f"{where}: names a package mirror or a place outside the tree")
        if "\r" in line:
            faults.append(f"{where}: carriage return")
        if code and line != line.rstrip():
            faults.append(f"{where}: blanks at the end of the line")
        if name.endswith(tree.CODE) and DETACHED.search(line) and not name.startswith("tests/"):
            faults.append(f"{where}: detached work ends after its owner; use base/task or a joined thread")
    return faults


def main() -> int:
    names = [name for name in tree.files() if not name.startswith(tree.DATA)]
    return tree.report(len(names), [fault for name in names for fault in faults_of(name)])


if __name__ == "__main__":
    sys.exit(main())
