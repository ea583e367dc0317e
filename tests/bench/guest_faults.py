# SPDX-License-Identifier: Apache-2.0
"""How long a guest under QEMU waits for a page it reads in postcopy, by the guest's own clock: moved from QEMU to QEMU,
and handed over by migrationd, both with the preempt channel. Every page is read once, in an order without neighbours.

Idle: next to nothing is sent but what is asked for. Under the stream: the rest is sent as fast as it goes.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.bench.faults import SHARES
from tests.bench.report import Report, median
from tests.bench.toucher import Seen, Toucher, read_all, ticks_per_us, waits
from tests.interop.lib.daemon import Migrationd
from tests.interop.lib.qemu import Qemu

MIB = 1 << 20
VERSION = "10.0"
RESUME = "__org.migrationd_instant-resume"
QEMU, OURS = "QEMU to QEMU", "migrationd to QEMU"
# So little that the guest asks for nearly all.
TRICKLE = 1 * MIB


def _qemu(folder: Path, name: str, guest: Toucher, incoming: bool) -> Qemu:
    return Qemu(folder, name, VERSION, memory_mib=guest.pages // 256 + 16, guest=guest, incoming=incoming)


def _filled(folder: Path, guest: Toucher) -> Qemu:
    source = _qemu(folder, "source", guest, False)
    source.wait(lambda: b"R" in source.serial(), 120, "the guest to fill its memory")
    return source


def _measured(source: Qemu, target: Qemu, guest: Toucher) -> dict[str, float]:
    """`source` holds the machine as it was when it stopped there."""
    before = Seen.by(source)
    after = read_all(target, before, guest.pages, 120)
    return waits(before, after, ticks_per_us(target), SHARES)


def from_qemu(folder: Path, guest: Toucher, load: bool) -> dict[str, float]:
    with _filled(folder, guest) as source, _qemu(folder, "target", guest, True) as target:
        for host in (source, target):
            host.capabilities("postcopy-ram", "postcopy-preempt")
        # The pass before the switch brings next to nothing.
        source.parameters(max_bandwidth=TRICKLE, max_postcopy_bandwidth=0 if load else TRICKLE)
        target.incoming(f"unix:{folder / 'move'}")
        source.migrate(f"unix:{folder / 'move'}")
        source.wait_status("active")
        source.qmp.execute("migrate-start-postcopy")
        source.wait_status("postcopy-active", "completed")
        found = _measured(source, target, guest)
        source.parameters(max_postcopy_bandwidth=0)
        source.wait_status("completed", timeout=120)
        return found


def from_ours(folder: Path, guest: Toucher, load: bool) -> dict[str, float]:
    with _filled(folder, guest) as source, Migrationd(folder, "park") as daemon, \
         _qemu(folder, "target", guest, True) as target:
        daemon.incoming(f"unix:{folder / 'in'}")
        source.parameters(max_bandwidth=0)
        source.migrate(f"unix:{folder / 'in'}")
        source.wait_status("completed", timeout=120)
        daemon.wait_status("completed")
        daemon.capabilities(RESUME, "postcopy-ram", "postcopy-preempt")
        target.capabilities("postcopy-ram", "postcopy-preempt")
        daemon.parameters(max_bandwidth=0, max_postcopy_bandwidth=0 if load else TRICKLE)
        target.incoming(f"unix:{folder / 'move'}")
        daemon.migrate(f"unix:{folder / 'move'}")
        daemon.wait_status("postcopy-active", "completed")
        found = _measured(source, target, guest)
        daemon.parameters(max_postcopy_bandwidth=0)
        daemon.wait_status("completed", timeout=120)
        return found


def guest_faults(folder: Path, rounds: int, quick: bool) -> Report:
    report = Report(f"Waits of a guest for its pages in postcopy, into QEMU {VERSION}", [
        "By the guest's own clock around each first read of a page, preempt channel, unix socket; waits under 8 us met a "
        "page that was there. Idle: 1 MiB/s besides what is asked for. Under the stream: all as fast as it goes."])
    for load, what in ((False, "idle"), (True, "under the stream")):
        guest = Toucher(pages=(32 if quick else 256 if load else 64) * MIB // 4096)
        runs: dict[str, list[dict[str, float]]] = {QEMU: [], OURS: []}
        steps = ((QEMU, from_qemu), (OURS, from_ours))
        for number in range(rounds + 1):
            for name, run in steps if number % 2 == 0 else reversed(steps):
                own = folder / f"guest-faults-{time.monotonic_ns()}"
                own.mkdir()
                found = run(own, guest, load)
                if number > 0:
                    runs[name].append(found)
        for key in (*SHARES, "stood"):
            theirs = median([found[key] for found in runs[QEMU]])
            for name in runs:
                values = [found[key] for found in runs[name]]
                ratio, told = (median(values) / theirs, "<= 1 x QEMU's") if name == OURS else (None, "")
                row = f"{what}, {key if key in SHARES else 'stood still in all'}"
                report.add(row, name, values, "us" if key in SHARES else "ms", ratio, told,
                           ratio <= 1 if ratio is not None else None)
        for name in runs:
            report.add(f"{what}, waits at {guest.pages} pages", name, [found["waits"] for found in runs[name]], "")
    return report
