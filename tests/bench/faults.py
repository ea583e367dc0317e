# SPDX-License-Identifier: Apache-2.0
"""How long a guest waits for a page it touched: a synthetic guest that moves by postcopy from daemon to daemon, its own
histogram of waits, beside what the machine can do with nothing around it (fault_limit.cpp). Idle: nothing is sent but what
is asked for. What a guest under QEMU waits is in guest_faults.py.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.bench.report import Report, median
from tests.interop.lib import programs
from tests.interop.lib.daemon import Migrationd

MIB = 1 << 20
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
DISTRIBUTION = "__org.migrationd_postcopy-latency-dist"


def of_values(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {name: ordered[min(int(len(ordered) * share), len(ordered) - 1)] for name, share in SHARES.items()}


def of_buckets(counts: list[int]) -> dict[str, float]:
    """Bucket i holds [2^i, 2^(i+1)) microseconds; within one the values are taken to lie evenly."""
    total = sum(counts)
    found = {}
    for name, share in SHARES.items():
        left = total * share
        for bucket, count in enumerate(counts):
            if count and left <= count:
                found[name] = 2.0 ** bucket * (1 + left / count)
                break
            left -= count
    return found


def limit(load: bool, faults: int) -> dict[str, float]:
    binary = programs.build_folder() / "tests" / "bench" / "fault-limit-bench"
    if not binary.exists():
        raise programs.Skip(f"{binary} is not built: ninja -C build tests/bench/fault-limit-bench")
    run = subprocess.run([binary, str(faults), str(int(load))], capture_output=True, text=True, timeout=120)
    if run.returncode != 0:
        raise programs.Skip(run.stderr.strip())
    return of_values([float(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("us ")])


def ours(folder: Path, background: bool, ram: int) -> tuple[dict[str, float], int]:
    """The waits of one migration, and how many there were. Idle, all is touched before the rest is sent; under the
    stream the guest writes as fast as it gets."""
    seconds = 2.0
    touched = ram if background else 64 * MIB
    what = f"synthetic,ram={ram},working-set={touched},touched={ram},dirty-rate={(1 << 30) if background else 32 * MIB}"
    folder = folder / f"faults-{time.monotonic_ns()}"
    folder.mkdir()
    with Migrationd(folder, "source", machine=what) as source, \
         Migrationd(folder, "target", machine=what, incoming=["defer"]) as target:
        for host in (source, target):
            host.capabilities("postcopy-ram", "postcopy-preempt")
        target.capabilities("postcopy-blocktime")
        source.parameters(max_bandwidth=4 * MIB)
        source.qmp.execute("migrate-set-parameters", {"__org.migrationd_postcopy-background": background})
        uri = f"unix:{folder}/move.sock"
        target.incoming(uri)
        source.migrate(uri)
        source.qmp.execute("migrate-start-postcopy")
        if not background:
            source.wait_status("postcopy-active")
            time.sleep(seconds + touched / (32 * MIB))
            source.qmp.execute("migrate-set-parameters", {"__org.migrationd_postcopy-background": True})
        source.wait_status("completed")
        counts = target.wait_status("completed")[DISTRIBUTION]
        return of_buckets(counts), sum(counts)


def faults(folder: Path, rounds: int, quick: bool) -> list[Report]:
    report = Report("Waits of a guest for its pages in postcopy, migrationd to migrationd", [
        "Synthetic guest, one thread, preempt channel, unix socket. From the fault's being read to the page's being there, "
        "from a histogram in powers of two; the limit is the toucher's own time around its touch. Load: the background "
        "streams at full speed."])
    ram = (256 if quick else 1024) * MIB
    for load, what in ((False, "idle"), (True, "under load")):
        limits, waits, numbers = [], [], []
        for number in range(rounds + 1):
            pair = limit(load, 2001 if quick else 20001), ours(folder, load, ram)
            if number > 0:
                limits.append(pair[0])
                waits.append(pair[1][0])
                numbers.append(float(pair[1][1]))
        for share in SHARES:
            floor = [values[share] for values in limits]
            values = [found[share] for found in waits]
            bound = {"p50": 1.5 if not load else None, "p99": 3 if load else None}.get(share)
            report.add(f"{what}, {share}", "a bare request and UFFDIO_COPY", floor, "us")
            met = median(values) <= bound * median(floor) if bound else None
            report.add(f"{what}, {share}", "migrationd", values, "us", None, f"<= {bound} x the limit" if bound else "",
                       met)
        report.add(f"{what}, waits", "migrationd", numbers, "")
    return [report]
