#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs every fuzz target of tests/fuzz/meson.build, as many at once as there are cores.

usage: run.py BUILD_DIR [--executions N [--resume FILE] | --seconds N] [--only NAME]

New inputs are collected in BUILD_DIR/corpus/NAME, so that the tree's seeds stay as they are and the next run starts
from what this one learned. A finding is kept as BUILD_DIR/findings/NAME-*: put it into tests/fuzz/corpus/NAME with
the commit that mends it.

A million executions of every target take an hour or more. With --resume they are done in slices, and each slice without
a finding is noted in FILE under the hash of the program that ran: a run that was stopped goes on with the next slice.
"""

import argparse
import hashlib
import json
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
# Two frames of each allocation instead of thirty: decoders of JSON allocate much, and take a tenth less. A finding is
# looked at by running its file alone. Who calls has the last word.
ENVIRONMENT = {"ASAN_OPTIONS": "malloc_context_size=2", **os.environ}
# With --executions: for the slowest target on a busy machine.
EXECUTIONS_SECONDS = 4 * 3600.0
# With --resume: what is lost at most when the run is stopped.
SLICE = 50_000


def targets() -> list[str]:
    """The names in the table of meson.build: a target that was not built is a failure, not an absence."""
    table = re.search(r"fuzz_targets = \{(.*?)\n\}", (HERE / "meson.build").read_text(), re.DOTALL)
    return re.findall(r"^\s*'(\w+)'\s*:", table.group(1), re.MULTILINE) if table else []


def command(build: Path, name: str) -> list[str]:
    learned, findings = build / "corpus" / name, build / "findings"
    learned.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    return [str(program(build, name)), str(learned), str(HERE / "corpus" / name),
            f"-artifact_prefix={findings}/{name}-", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MB}",
            # The names of new functions: each run would begin with seconds of reading debug information.
            "-print_funcs=0", "-print_final_stats=0", "-verbosity=1", "-reload=0"]


def program(build: Path, name: str) -> Path:
    return build / "tests/fuzz" / f"{name}_fuzz"


def missing(build: Path, name: str) -> str:
    """Why the target cannot run, or nothing."""
    if not program(build, name).exists():
        return f"{name}: {program(build, name)} was not built"
    seeds = HERE / "corpus" / name
    return "" if seeds.is_dir() and any(seeds.iterdir()) else f"{name}: no seeds in tests/fuzz/corpus/{name}"


def run(build: Path, name: str, stop: str, limit: float) -> tuple[int, str]:
    """Executions, and the fault or nothing. `stop` is libFuzzer's word for when to end."""
    try:
        done = subprocess.run([*command(build, name), stop], capture_output=True, text=True, errors="replace",
                              timeout=limit, cwd=build, env=ENVIRONMENT)
    except subprocess.TimeoutExpired:
        return 0, f"{name}: did not end within {limit:.0f} s"
    ran = DONE.search(done.stderr)
    if done.returncode or not ran:
        return 0, f"{name}: exit status {done.returncode}\n" + "\n".join(done.stderr.splitlines()[-40:])
    return int(ran.group(1)), ""


class Ledger:
    """What has been executed without a finding: a line of JSON per slice, under the hash of the program."""

    def __init__(self, file: Path):
        self.file = file
        self.rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def done(self, key: str) -> int:
        return sum(row["executions"] for row in self.rows if row["program"] == key)

    def note(self, name: str, key: str, executions: int) -> None:
        row = {"target": name, "program": key, "executions": executions}
        self.rows.append(row)
        with open(self.file, "a") as out:  # one write: lines of two targets do not mix
            out.write(json.dumps(row) + "\n")


def fuzz(build: Path, name: str, options: argparse.Namespace) -> str:
    """The fault, or nothing."""
    if why := missing(build, name):
        return why
    if not options.executions:
        executions, fault = run(build, name, f"-max_total_time={options.seconds}", 60.0 + options.seconds)
    else:
        wanted = int(options.executions * SHARES.get(name, 1))
        executions, fault = in_slices(build, name, wanted, options.resume) if options.resume else run(
            build, name, f"-runs={wanted}", EXECUTIONS_SECONDS)
    if not fault:
        print(f"{name}: {executions} runs, nothing found", flush=True)
    return fault


def in_slices(build: Path, name: str, wanted: int, file: Path) -> tuple[int, str]:
    ledger = Ledger(file)
    key = hashlib.sha256(program(build, name).read_bytes()).hexdigest()[:16]
    while (done := ledger.done(key)) < wanted:
        executions, fault = run(build, name, f"-runs={min(SLICE, wanted - done)}", EXECUTIONS_SECONDS)
        if fault:
            return done, fault
        ledger.note(name, key, executions)
    return done, ""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=Path)
    parser.add_argument("--executions", type=int, default=0)
    parser.add_argument("--resume", type=Path, metavar="FILE", help="with --executions: go on with what FILE says")
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    names = [name for name in targets() if options.only in ("", name)]
    build = options.build.resolve()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        faults = [fault for fault in pool.map(lambda name: fuzz(build, name, options), names) if fault]
    print("\n".join(faults))
    print(f"{len(names) - len(faults)} passed, {len(faults)} failed")
    return 1 if faults or not names else 0


if __name__ == "__main__":
    sys.exit(main())
