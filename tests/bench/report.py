# SPDX-License-Identifier: Apache-2.0
"""Numbers to tables: the median, the spread beside it, a ratio to QEMU's, and whether a target was met."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field


@dataclass
class Row:
    what: str
    contender: str
    values: list[float]
    unit: str
    ratio: float | None = None      # to QEMU in the same run
    target: str = ""
    met: bool | None = None


@dataclass
class Report:
    title: str
    about: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, contender: str, values: list[float], unit: str, ratio: float | None = None,
            target: str = "", met: bool | None = None) -> None:
        self.rows.append(Row(what, contender, values, unit, ratio, target, met))

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", *self.about, "" if self.about else None,
                 "| What | Who | Median (least to most) | Beside QEMU | Target | Met |",
                 "| --- | --- | --- | --- | --- | --- |"]
        for row in self.rows:
            ratio = f"{row.ratio:.2f} x" if row.ratio is not None else ""
            met = {True: "yes", False: "**no**", None: ""}[row.met]
            lines.append(f"| {row.what} | {row.contender} | {spread(row.values)} {row.unit} | {ratio} | "
                         f"{row.target} | {met} |")
        return "\n".join(line for line in lines if line is not None) + "\n"

    def json(self) -> dict:
        return {"title": self.title, "about": self.about, "rows": [asdict(row) for row in self.rows]}


def median(values: list[float]) -> float:
    return statistics.median(values)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: list[float]) -> str:
    text = _number(median(values))
    if len(values) > 1:
        text += f" ({_number(min(values))} to {_number(max(values))})"
    return text
