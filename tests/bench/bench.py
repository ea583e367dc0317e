#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The bench: migrationd beside QEMU 10.0 on the same memory image in the same minutes, and the machine's limits.

    tests/bench/bench.py                          everything, five rounds: some ten minutes
    tests/bench/bench.py --quick                  small and short, to see that it runs
    tests/bench/bench.py --only throughput --size 1 --rounds 3
    tests/bench/bench.py --only resume-8g         (also -4g, -64g) instant resume of large machines: on demand only
    tests/bench/bench.py --markdown out.md --json out.json

Contenders take turns, in the opposite order each round; the first round is dropped; medians stand with their spread.
The last line counts targets met and missed, a task that broke as missed. Exit status 1 when one was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench import clones, cpr, faults, files, guest_faults, resume, tasks  # noqa: E402
from tests.bench.report import Report  # noqa: E402
from tests.interop.lib import programs  # noqa: E402

TASKS = ("limits", "throughput", "files", "sparse", "idle", "latency", "resume", "resume-4g", "resume-8g", "resume-64g",
         "clones", "cpr", "faults", "scan")
# Not among everything: they take minutes each, and 8 GiB need 16 GiB of disk and 18 GiB of memory.
LARGE = {"resume-4g": 4, "resume-8g": 8, "resume-64g": 64}


def run_task(name: str, folder: Path, options: argparse.Namespace) -> list[Report]:
    size = int(options.size * tasks.GIB)
    rounds = options.rounds
    if name == "limits":
        return [tasks.machine_limits(min(size, tasks.GIB))]
    if name == "throughput":
        return tasks.throughput(folder, size, rounds)
    if name == "files":
        return files.files(folder, size, rounds, options.quick)
    if name == "sparse":
        return [tasks.sparse(folder, (4 if options.quick else 64) * tasks.GIB, 64 * tasks.MIB, rounds)]
    if name == "idle":
        return [tasks.idle_downtime(folder, rounds)]
    if name == "resume":
        return resume.resume(folder, rounds, options.quick)
    if name in LARGE:
        return resume.resume(folder, rounds, options.quick, LARGE[name] * tasks.GIB)
    if name == "faults":
        return [*faults.faults(folder, rounds, options.quick), guest_faults.guest_faults(folder, rounds, options.quick)]
    if name == "cpr":
        return cpr.cpr(folder, rounds, options.quick)
    if name == "clones":
        return clones.clones(folder, rounds, options.quick)
    if name == "latency":
        return [tasks.query_latency(folder, 1.0 if options.quick else 5.0)]
    return [tasks.dirty_scan(4 * tasks.GIB), tasks.dirty_cost(tasks.GIB)]


def about_machine() -> str:
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} CPUs ({model}), kernel {platform.release()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=TASKS, help="may be repeated")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", type=float, help="GiB of the image, at most 2.9; default 2")
    parser.add_argument("--rounds", type=int, help="that count, one more is dropped; default 5")
    parser.add_argument("--migrationd", metavar="PATH")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="begin the lines of the tables with `measured: `")
    options = parser.parse_args()
    options.size = options.size or (0.25 if options.quick else 2)
    options.rounds = options.rounds or (1 if options.quick else 5)
    programs.set_migrationd(options.migrationd)

    reports: list[Report] = []
    broken: list[str] = []
    skipped: list[str] = []
    for name in options.only or [name for name in TASKS if name not in LARGE]:
        folder = Path(tempfile.mkdtemp(prefix="md-bench-"))
        try:
            for report in run_task(name, folder, options):
                reports.append(report)
                show(report, options.check)
        except programs.Skip as reason:
            skipped.append(f"{name}: {reason}")
        except Exception as error:  # the other tasks still run
            traceback.print_exc()
            broken.append(f"{name}: {type(error).__name__}: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return conclude(options, reports, broken, skipped)


def show(report: Report, check: bool) -> None:
    for line in report.markdown().splitlines():
        print(f"measured: {line}" if check else line)
    print(flush=True)


def conclude(options: argparse.Namespace, reports: list[Report], broken: list[str], skipped: list[str]) -> int:
    head = f"# Bench\n\n{about_machine()}; {options.rounds} rounds, image of {options.size:g} GiB.\n\n"
    tail = "".join(f"Not measured: {text}\n" for text in broken + skipped)
    targets = [(report, row) for report in reports for row in report.rows if row.met is not None]
    missed = [f"{row.what}, {row.contender} ({report.title})" for report, row in targets if not row.met]
    if options.markdown:
        options.markdown.write_text(head + "\n".join(report.markdown() for report in reports) + tail)
    if options.json:
        options.json.write_text(json.dumps({"machine": about_machine(), "reports": [r.json() for r in reports],
                                            "unmeasured": broken + skipped}, indent=1) + "\n")
    for text in skipped:
        print(f"skip {text}")
    for text in broken + missed:
        print(f"not ok {text}")
    print(f"{len(targets) - len(missed)} passed, {len(missed) + len(broken)} failed, {len(skipped)} skipped")
    return 1 if missed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
