# SPDX-License-Identifier: Apache-2.0
"""tools/check --full: the acceptance lines at full counts, and docs/measured.md from their results.

A line is a command of the tree that ends like every runner (`N passed, N failed[, N skipped]`); what it prints after
`measured: ` is carried into the document. Results are appended to build/full-state.jsonl under the hash of all files
that can change a result, so a run that was stopped goes on with the first line that has not passed on this very tree;
a failed line runs again. In the document, rows that this tree has not measured keep what they said before, with the
tree they said it of.
"""

import hashlib
import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import counts
from counts import Counts
from suites import Context

DOCUMENT = "docs/measured.md"
MEASURED = re.compile(r"^measured: ?(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Line:
    name: str
    what: str
    command: str
    minutes: float


def bench(*parts: str) -> str:
    return " ".join(["tests/bench/bench.py --check", *(f"--only {part}" for part in parts)])


LINES = [
    Line("check", "what CI runs, every kind once", "tools/check", 90),
    Line("demo", "the demonstration, both proofs", "tools/check.d/demo_line", 15),
    Line("interop", "every pair of versions over every transport, libvirt's traffic, live precopy, hostile peers, kills",
         "tests/interop/run --resume build/interop-full.jsonl", 120),
    Line("rdma", "over soft-RoCE in an emulated guest: each promise of the link, daemons of 16 to 256 MiB, both QEMUs, hostile peers, counts",
         "tests/rdma/run", 60),
    Line("guests", "the example guests under migration, a hundred times each way", "tests/guest/run --rounds 100", 30),
    Line("update", "the daemon replaced twenty times under a cache that serves",
         "tests/guest/run --filter cache-update --updates 20", 15),
    Line("kvm", "a guest on /dev/kvm between two hosts, a hundred times by precopy and by postcopy",
         "tests/guest/kvm.py --rounds 100", 30),
    Line("bench", "precopy beside QEMU 10 to 10 with the same memory in the same run",
         bench("limits", "throughput", "sparse", "idle", "latency", "scan"), 60),
    Line("bench-files", "mapped-ram files beside QEMU 10 and fio", bench("limits", "files"), 60),
    Line("bench-resume", "instant resume beside QEMU's own load of the same file",
         bench("resume", "resume-4g", "resume-8g", "resume-64g"), 60),
    Line("bench-clones", "1, 4 and 16 machines resumed from one file at once", bench("clones"), 30),
    Line("bench-faults", "waits of a guest for its pages in postcopy, beside QEMU 10 to 10", bench("faults"), 30),
    Line("bench-cpr", "a machine that changes process on its host, beside QEMU 10 to 10 and a precopy", bench("cpr"), 30),
    Line("address", "unit and integration tests under AddressSanitizer and UBSan", "tools/check --only address", 60),
    Line("threads", "unit and integration tests under ThreadSanitizer", "tools/check --only threads", 60),
    Line("tidy", "clang-tidy over every source file", "tools/check --only tidy", 60),
    Line("fuzz", "every decoder's fuzz target, one million executions without a finding", "tools/check --fuzz", 600),
]


def tree_hash(root: Path) -> str:
    """Of every file but the documents: docs/measured.md itself must not make its own results stale."""
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-co", "--exclude-standard"], capture_output=True,
                            text=True, check=True)
    state = hashlib.sha256()
    for name in sorted(set(listed.stdout.splitlines())):
        path = root / name
        if path.is_file() and not name.endswith(".md"):
            state.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()[:12]


def run(at: Context, only: list[str] | None = None) -> Counts:
    state = at.build / "full-state.jsonl"
    tree = tree_hash(at.root)
    total = Counts()
    for line in LINES:
        if only and line.name not in only:
            continue
        if (row := passed_before(state, tree, line.name)) is not None:
            print(f"== {line.name}: passed on this tree on {row['date']}, not run again", flush=True)
        else:
            print(f"== {line.name}: {line.what}", flush=True)
            row = run_line(at, line, tree)
            with open(state, "a") as out:
                out.write(json.dumps(row) + "\n")
        total += told(row)
        write_document(at.root / DOCUMENT, rows_of(state), tree)
    return total


def passed_before(state: Path, tree: str, name: str) -> dict | None:
    return next((row for row in rows_of(state) if row["tree"] == tree and row["name"] == name and not row["failed"]), None)


def rows_of(state: Path) -> list[dict]:
    """Newest first."""
    if not state.is_file():
        return []
    return [json.loads(line) for line in reversed(state.read_text().splitlines()) if line.strip()]


def run_line(at: Context, line: Line, tree: str) -> dict:
    at.suite, at.deadline = f"full-{line.name}", line.minutes * 60
    start = time.monotonic()
    done = at.run("run", ["bash", "-c", line.command], line.minutes * 60, {"BUILD_DIR": str(at.build)})
    found = counts.from_output(line.name, done.text(), done.status, done.why())
    print(f"   {found.line()}; log: {done.log}", flush=True)
    return {"name": line.name, "tree": tree, "date": time.strftime("%Y-%m-%d"), "command": line.command,
            "seconds": round(time.monotonic() - start), "passed": found.passed, "failed": found.failed,
            "skipped": found.skipped, "skips": found.skips, "faults": found.faults,
            "measured": MEASURED.findall(counts.ANSI.sub("", done.text()))}


def told(row: dict) -> Counts:
    return Counts(row["passed"], row["failed"], row["skipped"], list(row["faults"]), list(row["skips"]))


# --- the document ----------------------------------------------------------------------------------------------

HEAD = """# Measured

Written by `tools/check --full`; not edited by hand. An acceptance line is met when it stands here as passed. The tree
is the hash of all files but the documents: rows of another hash were measured on an earlier tree.

"""


def section(line: Line, row: dict) -> str:
    verdict = "passed" if not row["failed"] else "**failed**"
    skipped = f", {row['skipped']} skipped" if row["skipped"] else ""
    text = [f"## {line.name}", "", f"{line.what[0].upper()}{line.what[1:]}.", "",
            f"- Command: `{row['command']}`",
            f"- Result: {verdict}: {row['passed']} passed, {row['failed']} failed{skipped}, in {row['seconds']} s",
            f"- Date: {row['date']}, tree {row['tree']}"]
    text += [f"- Skipped: {skip}" for skip in row["skips"]]
    text += [f"- Fault: {fault}" for fault in row["faults"][:20]]
    if row["measured"]:
        text += ["", "```", *row["measured"], "```"]
    return "\n".join(text) + "\n"


def old_sections(document: Path) -> dict[str, str]:
    if not document.is_file():
        return {}
    # Tables that a line measured have headings of their own.
    names = "|".join(line.name for line in LINES)
    parts = re.split(rf"^(?=## (?:{names})$)", document.read_text(), flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].removeprefix("## "): part.rstrip() + "\n" for part in parts}


def write_document(document: Path, rows: list[dict], tree: str) -> None:
    old = old_sections(document)
    parts = []
    for line in LINES:
        own = [row for row in rows if row["name"] == line.name]
        newest = next((row for row in own if row["tree"] == tree), own[0] if own else None)
        if newest:
            parts.append(section(line, newest))
        else:
            parts.append(old.get(line.name, f"## {line.name}\n\n{line.what[0].upper()}{line.what[1:]}. Not measured yet.\n"))
    document.write_text(HEAD + "\n".join(parts))
