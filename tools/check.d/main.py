# SPDX-License-Identifier: Apache-2.0
"""tools/check: reads like the list of what it does. See tools/check for its use."""

import argparse
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

import counts  # noqa: E402
import full  # noqa: E402
import processes  # noqa: E402
from counts import Counts  # noqa: E402
from suites import LONG_SUITES, SUITES, Context, Suite, fuzz  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MILLION = Suite("fuzz", "every fuzz target, 1,000,000 executions", 600, lambda at: fuzz(at, executions=1_000_000))


def main() -> int:
    options = arguments()
    if options.list:
        return list_suites()
    processes.become_reaper()
    at = Context(ROOT, ROOT / "build", ROOT / "build" / "check")
    total = build(at)
    if not total.failed:
        if options.full:
            total += full.run(at, options.only)
        else:
            for suite in chosen(options):
                total += run(at, suite)
    return tell(total)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/check", description="Installs, builds, and runs the tests.")
    parser.add_argument("--list", action="store_true", help="list the suites and the acceptance lines")
    parser.add_argument("--only", action="append", metavar="SUITE", choices=[suite.name for suite in SUITES + LONG_SUITES] + [line.name for line in full.LINES],
                        help="run this suite, with --full this acceptance line; may be given several times")
    parser.add_argument("--fuzz", action="store_true", help="every fuzz target, 1,000,000 executions each")
    parser.add_argument("--full", action="store_true", help="all acceptance lines at full counts, resumable")
    return parser.parse_args()


def list_suites() -> int:
    for suite in SUITES:
        print(f"{suite.name:12} at most {suite.minutes:g} min  {suite.what}")
    for line in full.LINES:
        print(f"--full: {line.name:24} {line.what}")
    return 0


def chosen(options: argparse.Namespace) -> list[Suite]:
    if options.fuzz:
        return [MILLION]
    if options.only:
        return [suite for suite in SUITES + LONG_SUITES if suite.name in options.only]
    return SUITES


def build(at: Context) -> Counts:
    """The ordinary build, which every suite but the sanitizers' uses."""
    at.suite, at.deadline = "main", 30 * 60.0
    start = time.monotonic()
    found = at.build_tree(at.build)
    if found.failed:
        show_logs(at)
    show("build", found, time.monotonic() - start)
    return found


def run(at: Context, suite: Suite) -> Counts:
    at.suite, at.deadline = suite.name, suite.minutes * 60
    start = time.monotonic()
    print(f"== {suite.name}: {suite.what}", flush=True)
    found = suite.run(at)
    if not found.passed and not found.failed:
        found += counts.failure(f"{suite.name}: nothing ran, {found.skipped} skipped")
    if found.failed:
        show_logs(at)
    show(suite.name, found, time.monotonic() - start)
    return found


def show_logs(at: Context) -> None:
    """The end of each of the suite's logs: on CI nobody can open the files."""
    for log in sorted(at.logs.glob(f"{at.suite}-*.log")):
        print(f"--- the end of {log.relative_to(at.root)}")
        print("\n".join(log.read_text(errors="replace").splitlines()[-80:]))
    print("---")


def show(name: str, found: Counts, seconds: float) -> None:
    for skip in found.skips:
        print(f"   skipped {skip}")
    for fault in found.faults:
        print(f"   FAILED  {fault}")
    print(f"   {name}: {found.line()} in {seconds:.0f} s", flush=True)


def tell(total: Counts) -> int:
    if total.faults:
        print("== failures")
        for fault in total.faults:
            print(f"   {fault}")
    print(total.line())
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
