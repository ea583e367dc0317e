#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The documents tell the truth where a script can see it.

- Every relative link in a Markdown file leads to a file.
- Every error text in docs/common-errors.md (a heading in backticks) is one the sources can say: its fixed parts, that
  is what stands between the places written <like this>, occur in string literals of one source file or more.
- Every document that a comment in the code names ("stream.md 5.2", "docs/formats/stream.md") is in the tree.
- Every path in backticks that begins with a folder of the tree exists (from the root or from the document's own
  folder), unless its line says "planned".
"""

import re
import sys

import tree

LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
ERROR = re.compile(r"^#+ `(.+)`\s*$", re.MULTILINE)
LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
TOPS = ("base", "protocol", "transports", "vmstate", "ram", "postcopy", "daemon", "guest", "tools", "tests",
        "systemd", "docs", ".ci")
NAMED = re.compile(r"(?<![\w/])((?:docs/)?(?:[\w-]+/)*[\w-]+\.md)\b")
PATH = re.compile(r"`((?:" + "|".join(map(re.escape, TOPS)) + r")/[A-Za-z0-9_./*@-]*)`")


def literals() -> str:
    """All string literals of the programs, adjacent ones joined as the compiler joins them."""
    texts = []
    for name in tree.code_files():
        if not name.startswith("tests/"):
            joined = re.sub(r'"\s*\n\s*"', "", tree.text_of(name))
            texts += [m.group(1).replace('\\"', '"') for m in LITERAL.finditer(joined)]
    return "\n".join(texts)


def link_faults(name: str) -> list[str]:
    here = (tree.ROOT / name).parent
    return [f"{name}: link to '{m.group(1)}' leads nowhere" for m in LINK.finditer(tree.text_of(name))
            if "://" not in m.group(1) and not (here / m.group(1)).exists()]


def path_faults(name: str) -> list[str]:
    faults = []
    for number, line in enumerate(tree.text_of(name).splitlines(), 1):
        if "planned" in line:
            continue
        for m in PATH.finditer(line):
            wanted = m.group(1).rstrip("/")
            if not any(tree.ROOT.glob(wanted)) and not any((tree.ROOT / name).parent.glob(wanted)):
                faults.append(f"{name}:{number}: there is no '{m.group(1)}'")
    return faults


def named_faults() -> list[str]:
    """One per missing document, with how often and where first."""
    there = [name for name in tree.files() if name.endswith(".md")]
    missing: dict[str, list[str]] = {}
    for name in tree.code_files():
        for named in NAMED.findall(tree.text_of(name)):
            if not any(document == named or document.endswith("/" + named) for document in there):
                missing.setdefault(named, []).append(name)
    return [f"there is no '{named}', which {names[0]} and others name {len(names)} times"
            for named, names in sorted(missing.items())]


def error_faults(name: str, said: str) -> tuple[int, list[str]]:
    texts = ERROR.findall(tree.text_of(name)) if (tree.ROOT / name).is_file() else []
    faults = []
    for text in texts:
        parts = [part.strip(" :'") for part in re.split(r"<[^<>]*>", text)]
        faults += [f"{name}: no source says '{part}' (of '{text}')" for part in parts if part and part not in said]
    return len(texts), faults


def main() -> int:
    documents = [name for name in tree.files() if name.endswith(".md") and not name.startswith(tree.DATA)]
    faults = [fault for name in documents for fault in link_faults(name) + path_faults(name)]
    faults += named_faults()
    count, wrong = error_faults("docs/common-errors.md", literals())
    return tree.report(len(documents) + count, faults + wrong)


if __name__ == "__main__":
    sys.exit(main())
