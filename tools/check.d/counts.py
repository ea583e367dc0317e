# SPDX-License-Identifier: Apache-2.0
"""Real results, read from what the runners themselves say.

Two kinds of runner exist: Catch2 programs, which end with a summary of their test cases, and everything else, whose
last line by our convention is `N passed, N failed[, N skipped]`. A runner that says neither counts as one test; one
that exits badly counts at least one failure, whatever it printed.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

SUMMARY = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?\s*$", re.MULTILINE)
CATCH_OK = re.compile(r"All tests passed \(.* in (\d+) test cases?\)")
CATCH_CASES = re.compile(r"^test cases:\s+(\d+)(.*)$", re.MULTILINE)
# Catch2 of Debian 12 cannot skip: a case that cannot run here warns, once, and ends ("skipped in part" is a pass).
CATCH_SKIP = re.compile(r"warning:\n\s+skipped: (.+)$", re.MULTILINE)
SKIP_LINE = re.compile(r"^ *skip(?:ped)?[: ]\s*(.+)$", re.MULTILINE | re.IGNORECASE)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
MESON_SKIP = 77


@dataclass
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    faults: list[str] = field(default_factory=list)  # one line per failure, for the person who reads
    skips: list[str] = field(default_factory=list)  # what was skipped and why

    def __iadd__(self, other: "Counts") -> "Counts":
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.faults += other.faults
        self.skips += other.skips
        return self

    @property
    def total(self) -> int:
        return self.passed + self.failed + self.skipped

    def line(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def failure(text: str) -> Counts:
    return Counts(failed=1, faults=[text])


def _from_catch(text: str) -> Counts | None:
    if (m := CATCH_OK.search(text)) is not None:
        return Counts(passed=int(m.group(1)))
    if (m := CATCH_CASES.search(text)) is None:
        return None
    parts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped)", m.group(2))}
    return Counts(parts.get("passed", 0), parts.get("failed", 0), parts.get("skipped", 0))


def from_output(name: str, text: str, status: int | None, why: str) -> Counts:
    """Counts of one runner from its output and exit status."""
    text = ANSI.sub("", text)
    if status == MESON_SKIP:
        reason = text.strip().splitlines()[-1] if text.strip() else "gave no reason"
        return Counts(skipped=1, skips=[f"{name}: {reason}"])
    counts = _from_catch(text)
    if counts is not None and (warned := CATCH_SKIP.findall(text)):
        counts.passed -= len(warned)
        counts.skipped += len(warned)
        counts.skips = [f"{name}: {reason}" for reason in warned]
    if counts is None and (found := SUMMARY.findall(text)):
        passed, failed, skipped = found[-1]
        counts = Counts(int(passed), int(failed), int(skipped or 0))
    if counts is None:
        counts = Counts(passed=1) if status == 0 else Counts(failed=1)
    if counts.skipped and not counts.skips:
        counts.skips = [f"{name}: {reason}" for reason in SKIP_LINE.findall(text)] or [f"{name}: gave no reason"]
    if status != 0:
        counts.failed = max(1, counts.failed)
    if counts.failed:
        counts.faults.append(f"{name}: {why}, {counts.failed} failed")
    if counts.total == 0:
        return failure(f"{name}: ran nothing")
    return counts


def from_meson(log: Path) -> Counts:
    """Counts of one `meson test` run from its testlog.json, one JSON object a line."""
    counts = Counts()
    if not log.is_file():
        return failure(f"{log} was not written")
    for line in log.read_text(errors="replace").splitlines():
        row = json.loads(line)
        status = {"OK": 0, "SKIP": MESON_SKIP, "EXPECTEDFAIL": 0}.get(row["result"], row.get("returncode") or 1)
        text = row.get("stdout", "") + row.get("stderr", "")
        # "migrationd:lint / layers" is told as "layers"
        counts += from_output(row["name"].split(" / ")[-1], text, status, row["result"].lower())
    return counts
