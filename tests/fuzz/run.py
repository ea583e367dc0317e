#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs every fuzz target of tests/fuzz/meson.build, as many at once as there are cores.

usage: run.py BUILD_DIR [--executions N | --seconds N] [--only NAME]

New inputs are collected in BUILD_DIR/corpus/NAME, so that the tree's seeds stay as they are and the next run starts
from what this one learned. A finding is kept as BUILD_DIR/findings/NAME-*: put it into tests/fuzz/corpus/NAME with
the commit that mends it.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)
# One input may take so long; decoders work in microseconds.
INPUT_SECONDS = 20
MEMORY_MB = 2048
# Of the executions asked for. Not a decoder by itself: each of its inputs becomes up to 256 KiB of stream and is read
# twice into guest memory.
SHARES = {"ram_section": 0.02}
# With --executions: for the slowest target on a busy machine.
EXECUTIONS_SECONDS = 4 * 3600.0


def targets() -> list[str]:
    """The names in the table of meson.build: a target that was not built is a failure, not an absence."""
    table = re.search(r"fuzz_targets = \{(.*?)\n\}", (HERE / "meson.build").read_text(), re.DOTALL)
    return re.findall(r"^\s*'(\w+)'\s*:", table.group(1), re.MULTILINE) if table else []


def run(build: Path, name: str, stop: list[str], limit: float) -> str:
    """The fault, or nothing."""
    program = build / "tests/fuzz" / f"{name}_fuzz"
    seeds = HERE / "corpus" / name
    if not program.exists():
        return f"{name}: {program} was not built"
    if not seeds.is_dir() or not any(seeds.iterdir()):
        return f"{name}: no seeds in tests/fuzz/corpus/{name}"
    learned, findings = build / "corpus" / name, build / "findings"
    learned.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    command = [str(program), str(learned), str(seeds), f"-artifact_prefix={findings}/{name}-", f"-timeout={INPUT_SECONDS}",
               f"-rss_limit_mb={MEMORY_MB}", "-print_final_stats=0", "-verbosity=1", *stop]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit, cwd=build)
    except subprocess.TimeoutExpired:
        return f"{name}: did not end within {limit:.0f} s"
    ran = DONE.search(done.stderr)
    if done.returncode or not ran:
        return f"{name}: exit status {done.returncode}\n" + "\n".join(done.stderr.splitlines()[-40:])
    print(f"{name}: {ran.group(1)} runs, nothing found", flush=True)
    return ""


def bound(options: argparse.Namespace, name: str) -> list[str]:
    """libFuzzer's word for when to end."""
    if not options.executions:
        return [f"-max_total_time={options.seconds}"]
    return [f"-runs={int(options.executions * SHARES.get(name, 1))}"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=Path)
    parser.add_argument("--executions", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    names = [name for name in targets() if options.only in ("", name)]
    limit = EXECUTIONS_SECONDS if options.executions else 60.0 + options.seconds
    build = options.build.resolve()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        faults = [fault for fault in pool.map(lambda name: run(build, name, bound(options, name), limit), names) if fault]
    print("\n".join(faults))
    print(f"{len(names) - len(faults)} passed, {len(faults)} failed")
    return 1 if faults or not names else 0


if __name__ == "__main__":
    sys.exit(main())
