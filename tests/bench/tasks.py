# SPDX-License-Identifier: Apache-2.0
"""What is measured. Each function returns a Report; contenders take turns and the first round is dropped."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

from ..interop.lib import programs
from ..interop.lib.guest import Guest
from . import limits
from .pairs import UNLIMITED, Pair, ParkedPair, QemuPair, Sample, SyntheticPair
from .report import Report, median

GIB = 1 << 30
MIB = 1 << 20


def rounds_of(pairs: list[Pair], rounds: int, transport: str, warm: bool = False) -> dict[str, list[Sample]]:
    """1 + rounds turns, each in the opposite order of the one before; the first is dropped."""
    samples: dict[str, list[Sample]] = {pair.name: [] for pair in pairs}
    for number in range(rounds + 1):
        for pair in pairs if number % 2 == 0 else reversed(pairs):
            sample = pair.run(transport, warm)
            if number > 0:
                samples[pair.name].append(sample)
    return samples


def machine_limits(size: int) -> Report:
    report = Report("The machine's limits", [f"Plain copies of {size // MIB} MiB, the better of two."])
    for name, value in limits.measure(size).items():
        report.add(name, "this machine", [value / GIB], "GiB/s")
    records = [limits.records_over_tcp(size) for _ in range(2)]
    report.add("a stream's records over tcp, memory warm", "this machine", [max(rate for rate, _ in records) / GIB], "GiB/s")
    report.add("the same, CPU per GiB of both sides", "this machine", [min(cpu for _, cpu in records) * GIB / size], "s")
    return report


def throughput(folder: Path, size: int, rounds: int) -> list[Report]:
    """Plain precopy of a machine full of non-zero pages: rate, and CPU per GiB of both sides together."""
    ram = size + 64 * MIB
    qemu = QemuPair(folder, ram, size, running=False)
    parked = ParkedPair(folder, qemu)
    synthetic = SyntheticPair(folder, ram, size)
    reports = []
    try:
        for transport in ("tcp", "unix", "multifd"):
            for warm in (False, True):
                # A parked destination makes its memory when the stream names it, so it is never warm.
                pairs = [qemu, synthetic] if warm else [qemu, parked, synthetic]
                samples = rounds_of(pairs, rounds, transport, warm)
                reports.append(_throughput_report(transport, warm, size, samples))
        # The same bytes at both, so that both compress the same.
        reports.append(_zstd_report(size, rounds_of([qemu, parked], rounds, "multifd-zstd")))
    finally:
        for pair in (synthetic, parked, qemu):
            pair.close()
    return reports


def _zstd_report(size: int, samples: dict[str, list[Sample]]) -> Report:
    """Level 1, the default; at least QEMU's rate, at no more than its cost."""
    sent = median([sample.transferred / size for list_ in samples.values() for sample in list_])
    report = Report("Multifd over tcp with 2 channels and zstd level 1, cold destination",
                    [f"{size / GIB:g} GiB of the guest's pseudo-random bytes (they become {sent:.2f} of their size); "
                     "rate of memory, CPU of both sides."])
    for what, unit, value in (("throughput", "GiB/s", lambda sample: size / GIB / (sample.total_ms / 1000)),
                              ("CPU per GiB", "s", lambda sample: sample.cpu / (size / GIB))):
        values = {name: [value(sample) for sample in list_] for name, list_ in samples.items()}
        theirs = median(values[QemuPair.name])
        for name, list_ in values.items():
            ratio = median(list_) / theirs
            met = ratio >= 1 if unit == "GiB/s" else ratio <= 1
            target = ">= 1 x" if unit == "GiB/s" else "<= 1 x"
            ours = name != QemuPair.name
            report.add(what, name, list_, unit, ratio if ours else None, target if ours else "", met if ours else None)
    return report


def _throughput_report(transport: str, warm: bool, size: int, samples: dict[str, list[Sample]]) -> Report:
    what = "Multifd over tcp with 2 channels" if transport == "multifd" else f"Plain precopy over {transport}"
    report = Report(f"{what}, {'warm' if warm else 'cold'} destination",
                    [f"{size / GIB:g} GiB of non-zero pages, bandwidth not limited; CPU is user and system time of both "
                     "sides. " + ("Warm: the destination's memory was allocated before." if warm else
                                  "Cold: a new process.")])
    rates = {name: [size / GIB / (sample.total_ms / 1000) for sample in list_] for name, list_ in samples.items()}
    costs = {name: [sample.cpu / (size / GIB) for sample in list_] for name, list_ in samples.items()}
    for name in samples:
        ours = name != QemuPair.name
        ratio = median(rates[name]) / median(rates[QemuPair.name])
        report.add("throughput", name, rates[name], "GiB/s", ratio if ours else None,
                   ">= 1.5 x" if ours else "", ratio >= 1.5 if ours else None)
    for name in samples:
        ours = name != QemuPair.name
        ratio = median(costs[name]) / median(costs[QemuPair.name])
        report.add("CPU per GiB", name, costs[name], "s", ratio if ours else None,
                   "<= 0.7 x" if ours else "", ratio <= 0.7 if ours else None)
    return report


def sparse(folder: Path, ram: int, touched: int, rounds: int) -> Report:
    """A huge machine hardly used: with holes left out, and as zero records beside QEMU."""
    report = Report(f"{ram // GIB} GiB of which {touched // MIB} MiB were ever touched",
                    ["Over tcp, cold destination, guest running and idle."])
    skipping = SyntheticPair(folder, ram, touched, skip_holes=True)
    skipping.name = "migrationd, holes left out"
    zeros = SyntheticPair(folder, ram, touched)
    zeros.name = "migrationd, zero records"
    qemu = QemuPair(folder, ram, touched, running=True)
    pairs: list[Pair] = [skipping, zeros, qemu]
    try:
        samples = rounds_of(pairs, rounds, "tcp")
    finally:
        for pair in pairs:
            pair.close()
    times = {name: [sample.total_ms for sample in list_] for name, list_ in samples.items()}
    theirs = median(times[qemu.name])
    report.add("total time", qemu.name, times[qemu.name], "ms")
    report.add("total time", skipping.name, times[skipping.name], "ms", median(times[skipping.name]) / theirs,
               "< 150 ms", median(times[skipping.name]) < 150)
    factor = theirs / max(median(times[zeros.name]), 1)
    report.add("total time", zeros.name, times[zeros.name], "ms", median(times[zeros.name]) / theirs,
               "at least 3 times as fast", factor >= 3)
    for name, list_ in samples.items():
        for side in ("source", "destination"):
            tables = [getattr(sample, f"pte_{side}") / MIB for sample in list_]
            memory = [getattr(sample, f"memory_{side}") / MIB for sample in list_]
            ours = name != qemu.name
            # 64 MiB scattered over 2 MiB pieces need a few hundred KiB of tables; the rest is the program's own.
            report.add(f"page tables (VmPTE), {side}", name, tables, "MiB", None, "< 2 MiB" if ours else "",
                       max(tables) < 2 if ours else None)
            report.add(f"guest memory allocated, {side}", name, memory, "MiB", None,
                       f"< {touched / MIB * 1.1:.0f} MiB" if ours else "",
                       max(memory) < touched / MIB * 1.1 if ours else None)
    return report


def idle_downtime(folder: Path, rounds: int) -> Report:
    """An idle guest of 1 GiB with 256 MiB in use."""
    report = Report("Downtime of an idle guest", ["256 MiB in use, over unix; from STOP at the source to RESUME."])
    pairs: list[Pair] = [SyntheticPair(folder, GIB, 256 * MIB), QemuPair(folder, GIB, 256 * MIB, running=True)]
    try:
        samples = rounds_of(pairs, rounds, "unix")
    finally:
        for pair in pairs:
            pair.close()
    theirs = median([sample.switch_ms for sample in samples[QemuPair.name]])
    for name, list_ in samples.items():
        values = [sample.switch_ms for sample in list_]
        ours = name != QemuPair.name
        report.add("STOP to RESUME", name, values, "ms", median(values) / theirs if ours else None,
                   "< 5 ms" if ours else "", median(values) < 5 if ours else None)
        report.add("downtime as reported", name, [sample.downtime_ms for sample in list_], "ms", None,
                   "< 5 ms" if ours else "", median([s.downtime_ms for s in list_]) < 5 if ours else None)
    return report


def query_latency(folder: Path, seconds: float) -> Report:
    """query-migrate asked without pause while a guest that never converges is sent at full speed."""
    report = Report("query-migrate in the hottest phase",
                    [f"Asked back to back for {seconds:g} s during a migration without bandwidth limit that cannot "
                     "converge (downtime limit 1 ms), with the guest writing all the time. Who asks runs at a high "
                     "priority, for both: its own waiting for a CPU is not theirs."])
    pairs: list[Pair] = [SyntheticPair(folder, GIB, 512 * MIB, dirty_rate=500 * MIB),
                         QemuPair(folder, GIB, 0, running=True, guest=Guest(pages=131072, ticks=0, every=1))]
    for pair in pairs:
        try:
            values = _latencies(pair, seconds)
        finally:
            pair.close()
        ours = pair.name != QemuPair.name
        for label, share in (("50th percentile", 0.5), ("99th percentile", 0.99), ("most", 1.0)):
            value = values[min(int(len(values) * share), len(values) - 1)]
            wanted = ours and share == 0.99
            report.add(f"{label} of {len(values)}", pair.name, [value * 1000], "ms", None,
                       "<= 2 ms" if wanted else "", value <= 0.002 if wanted else None)
    return report


def _latencies(pair: Pair, seconds: float) -> list[float]:
    from ..interop.lib import links
    with pair.destination(False) as destination:
        pair.source.parameters(max_bandwidth=UNLIMITED, downtime_limit=1)
        link = links.Tcp4(pair.folder, "hot")
        link.listen(destination)
        link.connect(pair.source)
        pair.source.wait_status("active")
        values = []
        deadline = time.monotonic() + seconds
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, -15)
        while time.monotonic() < deadline:
            started = time.perf_counter()
            status = pair.source.status()
            values.append(time.perf_counter() - started)
            if status != "active":
                break
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        pair.source.qmp.execute("migrate_cancel")
    return sorted(values)


def _lines_of(program: str, *arguments: str) -> list[tuple[str, str]]:
    """What a program beside this file printed: a name and a value per line."""
    binary = programs.build_folder() / "tests" / "bench" / program
    if not binary.exists():
        raise programs.Skip(f"{binary} is not built: ninja -C build tests/bench/{program}")
    run = subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=120)
    if run.returncode != 0:
        raise programs.Skip(run.stderr.strip())
    return [(line.split()[0], line.split()[1]) for line in run.stdout.splitlines()]


def dirty_scan(size: int) -> Report:
    """The daemon's own dirty log over clean memory."""
    report = Report("Dirty scan of clean memory", [f"{size // GIB} GiB, all present, nothing written."])
    lines = _lines_of("dirty-scan-bench", str(size), "6")
    values = [float(value) for name, value in lines if name == "ms"][1:]
    kind = next(value for name, value in lines if name == "kind")
    report.add(f"one clean sync ({kind})", "migrationd", values, "ms", None, "< 5 ms", median(values) < 5)
    return report


# Name in the program's output, what it is, unit.
_COSTS = (("plain-write", "the guest writes a page that nobody watches", "ns"),
          ("protected-write", "the first write to a write-protected page", "ns"),
          ("bitmap-write", "a write and its bit in a shared bitmap", "ns"),
          ("protected-fetch", "finding a written page, protecting it again", "ns"),
          ("bitmap-fetch", "finding a page's bit in a shared bitmap", "ns"),
          ("protected-clean", "a sync that finds nothing, per GiB, write protection", "ms"),
          ("bitmap-clean", "a sync that finds nothing, per GiB, shared bitmap", "ms"))


def dirty_cost(size: int) -> Report:
    """What each way of tracking costs a guest and its daemon."""
    report = Report("What dirty tracking costs a guest", [
        f"{size // GIB} GiB, all present; the guest writes one word of every page, in order."])
    lines = _lines_of("dirty-cost-bench", str(size), "6")
    for key, what, unit in _COSTS:
        report.add(what, "migrationd", [float(value) for name, value in lines if name == key][1:], unit)
    return report
