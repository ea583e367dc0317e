# SPDX-License-Identifier: Apache-2.0
"""cpr-transfer: how long a guest stands still when it changes process on one host, beside QEMU's own and a precopy.

One QEMU holds the machine through all rounds of a size, its memory full. Each contender takes it over and is ended; the
machine is made this QEMU's again by `cont`. (Its guest is idle: that the other one ran it on the same memory for a moment
is of no consequence here, and of consequence everywhere else.)
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Callable

from ..interop.lib import links
from ..interop.lib.cpr import Ways, begin, listens
from ..interop.lib.daemon import Migrationd
from ..interop.lib.guest import Guest
from ..interop.lib.host import Host
from ..interop.lib.qemu import Qemu
from .pairs import UNLIMITED
from .report import Report, median
from .resume import enough_memory

GIB = 1 << 30
MIB = 1 << 20
# Beside QEMU to QEMU by cpr-transfer, in milliseconds; and from the smallest size to the largest.
PAUSE_MORE = 2.0

QEMU = "QEMU to QEMU"
TO_OURS = "QEMU to migrationd"
FROM_OURS = "migrationd to QEMU"
PRECOPY = "QEMU to QEMU, plain precopy"
_numbers = itertools.count()


def _source(folder: Path, size: int) -> Qemu:
    source = Qemu(folder, f"source{next(_numbers)}", "10.0", memory_mib=size // MIB, guest=Guest(pages=0),
                  own_firmware=True, shared=True)
    source.wait_sweeps(2, 60)
    fill(source, size)
    source.parameters(max_bandwidth=UNLIMITED)
    return source


def fill(source: Qemu, size: int) -> None:
    """Random bytes in all of its memory but the first 4 MiB, which are the guest's own."""
    for number in os.listdir(f"/proc/{source.pid}/fd"):
        path = f"/proc/{source.pid}/fd/{number}"
        if os.readlink(path).startswith("/memfd:") and os.stat(path).st_size == size:
            chunk = os.urandom(MIB)
            with open(path, "r+b", buffering=0) as memory:
                memory.seek(4 * MIB)
                for _ in range(size // MIB - 4):
                    memory.write(chunk)
            return
    raise AssertionError("the source's memory was not found")


def _moment(host: Host, name: str) -> float:
    event = host.qmp.wait_event(name, timeout=60)
    return event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6


def _forget_events(host: Host) -> None:
    host.qmp.poll_events(0.02)
    host.qmp.events.clear()
    host.qmp._seen = 0


def _measured(old: Host, new: Host, start: Callable[[], None]) -> dict[str, float]:
    """Milliseconds: the guest's standstill, and from `migrate` to its end and to where it runs."""
    _forget_events(old)
    begun = time.time()
    start()
    stopped = _moment(old, "STOP")
    resumed = _moment(new, "RESUME")
    old.wait_status("completed", timeout=120)
    new.wait_status("completed", timeout=120)
    totals = old.wait_totals()
    return {"pause": (resumed - stopped) * 1000, "running": (resumed - begun) * 1000, "total": totals["total-time"]}


def _by_cpr(old: Host, new: Host, ways: Ways) -> dict[str, float]:
    """The new process's main channel is deferred: a QEMU has no monitor before the descriptors have come, and its RESUME
    would be missed."""
    old.wait(lambda: listens(ways.cpr), 20, "the new process to listen")

    def start() -> None:
        begin(old, ways)
        new.qmp.execute("migrate-incoming", {"uri": f"unix:{ways.main}"})
    return _measured(old, new, start)


def _again(source: Qemu) -> None:
    source.qmp.execute("cont")
    source.parameters(mode="normal")


def _new_qemu(folder: Path, size: int, options: list[str]) -> Qemu:
    return Qemu(folder, f"target{next(_numbers)}", "10.0", memory_mib=size // MIB, guest=Guest(pages=0),
                own_firmware=True, shared=True, options=options)


def _deferred(ways: Ways) -> list[str]:
    return ["-incoming", "defer", "-incoming", ways.json_cpr()]


def _ways(folder: Path) -> Ways:
    return Ways.of(folder, f"way{next(_numbers)}")


def qemu_to_qemu(folder: Path, source: Qemu, size: int) -> dict[str, dict[str, float]]:
    ways = _ways(folder)
    with _new_qemu(folder, size, _deferred(ways)) as target:
        sample = _by_cpr(source, target, ways)
    _again(source)
    return {QEMU: sample}


def through_ours(folder: Path, source: Qemu, size: int) -> dict[str, dict[str, float]]:
    """Into a daemon, and out of it into another QEMU."""
    one, two = _ways(folder), _ways(folder)
    with Migrationd(folder, f"park{next(_numbers)}", incoming=["defer", one.json_cpr()]) as park, \
         _new_qemu(folder, size, _deferred(two)) as target:
        park.status()
        came = _by_cpr(source, park, one)
        went = _by_cpr(park, target, two)
    _again(source)
    return {TO_OURS: came, FROM_OURS: went}


def precopy(folder: Path, source: Qemu, size: int) -> dict[str, dict[str, float]]:
    link = links.Unix(folder, f"plain{next(_numbers)}")
    with _new_qemu(folder, size, ["-incoming", "defer"]) as target:
        link.listen(target)
        sample = _measured(source, target, lambda: link.connect(source))
    _again(source)
    return {PRECOPY: sample}


def _of_size(folder: Path, size: int, rounds: int, report: Report) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {}
    steps = [qemu_to_qemu, through_ours]
    if enough_memory(2 * size + GIB):
        steps.append(precopy)
    else:
        report.about.append(f"No plain precopy at {size / GIB:g} GiB: it needs {(2 * size + GIB) / GIB:.0f} GiB free.")
    with _source(folder, size) as source:
        for number in range(rounds + 1):
            for step in steps if number % 2 == 0 else reversed(steps):
                for name, sample in step(folder, source, size).items():
                    if number > 0:
                        runs.setdefault(name, []).append(sample)
    return runs


def cpr(folder: Path, rounds: int, quick: bool) -> list[Report]:
    sizes = [GIB // 4, GIB // 2] if quick else [GIB, 2 * GIB, 4 * GIB]
    sizes = [size for size in sizes if enough_memory(size + GIB)]
    report = Report("cpr-transfer, QEMU 10.0", [
        "Pause: from STOP of the old process to RESUME of the new one. To running (ours: parked): from the command "
        "`migrate`; by cpr with the new process's `migrate-incoming` between, which its RESUME needs to be seen."])
    pauses: dict[str, list[float]] = {}
    for size in sizes:
        runs = _of_size(folder, size, rounds, report)
        theirs = median([run["pause"] for run in runs[QEMU]])
        for name in (QEMU, TO_OURS, FROM_OURS, PRECOPY):
            if name not in runs:
                continue
            values = [run["pause"] for run in runs[name]]
            pauses.setdefault(name, []).append(median(values))
            ours = name in (TO_OURS, FROM_OURS)
            report.add(f"pause, {size / GIB:g} GiB", name, values, "ms", median(values) / theirs,
                       f"<= QEMU's + {PAUSE_MORE:g} ms" if ours else "",
                       median(values) <= theirs + PAUSE_MORE if ours else None)
        for name, samples in runs.items():
            report.add(f"to running, {size / GIB:g} GiB", name, [run["running"] for run in samples], "ms")
    growth = {name: values[-1] - values[0] for name, values in pauses.items()}
    for name in (QEMU, TO_OURS, FROM_OURS):
        ours = name != QEMU
        most = max(growth[QEMU], 0) + PAUSE_MORE
        report.add(f"pause, {sizes[-1] / GIB:g} more than {sizes[0] / GIB:g} GiB", name, [growth[name]], "ms", None,
                   f"<= QEMU's + {PAUSE_MORE:g} ms" if ours else "", growth[name] <= most if ours else None)
    return [report]
