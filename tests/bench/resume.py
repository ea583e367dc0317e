# SPDX-License-Identifier: Apache-2.0
"""Instant resume beside QEMU's own loading of the same file: from the connection to RESUME, and to the guest's next
serial letter; from a file in the page cache and from parked memory; one machine and several at once.

RESUME is taken by the client when QEMU's event arrives, so its times hold QEMU's and Python's own share.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.bench.report import Report, median
from tests.interop.lib.daemon import Migrationd
from tests.interop.lib.guest import Guest, last_number
from tests.interop.lib.qemu import Qemu

GIB = 1 << 30
MIB = 1 << 20
RESUME = "__org.migrationd_instant-resume"
VERSION = "10.0"


def guest_of(size: int) -> Guest:
    # Filled with random bytes once, but for the first MiB and 64 pages that are swept for ever.
    return Guest(pages=64, fill=(size - 2 * MIB) // 4096 - 64, ticks=1, every=1)


def qemu_for(folder: Path, name: str, size: int, incoming: bool) -> Qemu:
    return Qemu(folder, name, VERSION, memory_mib=size // MIB, guest=guest_of(size), incoming=incoming)


def make_checkpoint(folder: Path, size: int) -> Path:
    """A mapped-ram file of a machine that runs, its memory full; warm in the page cache."""
    path = folder / "checkpoint"
    with qemu_for(folder, "origin", size, False) as source:
        source.wait_sweeps(3, 120)
        source.capabilities("mapped-ram")
        source.parameters(max_bandwidth=0)
        source.migrate(f"file:{path}")
        source.wait_status("completed", timeout=120)
    return path


def _first_letter(qemu: Qemu, begun: float, timeout: float = 30.0) -> float:
    while not qemu.serial():
        assert time.monotonic() - begun < timeout, "the guest printed nothing"
        time.sleep(0.0005)
    return (time.monotonic() - begun) * 1000


def _resumed(qemu: Qemu, begun: float) -> float:
    qemu.qmp.wait_event("RESUME", timeout=60)
    return (time.monotonic() - begun) * 1000


def own_load(folder: Path, path: Path, size: int) -> tuple[float, float]:
    """QEMU's own -incoming from that file: ms to RESUME, ms to the first letter."""
    with qemu_for(folder, "own", size, True) as target:
        target.capabilities("mapped-ram")
        begun = time.monotonic()
        target.incoming(f"file:{path}")
        resumed = _resumed(target, begun)
        return resumed, _first_letter(target, begun)


def ours(folder: Path, path: Path, size: int, parked: bool) -> dict[str, float]:
    with Migrationd(folder, "park") as daemon, qemu_for(folder, "target", size, True) as target:
        opened = time.monotonic()
        if not parked:
            daemon.capabilities(RESUME)
        else:
            daemon.capabilities("mapped-ram")
        daemon.incoming(f"file:{path}")
        daemon.wait_status("completed", timeout=120)
        open_ms = (time.monotonic() - opened) * 1000
        daemon.capabilities(RESUME, mapped_ram=False)
        # Each round is a first one.
        daemon.qmp.execute("migrate-set-parameters", {"__org.migrationd_working-set": False})
        daemon.capabilities("postcopy-ram")
        target.capabilities("postcopy-ram")
        target.incoming(f"unix:{folder / 'resume'}")
        begun = time.monotonic()
        daemon.migrate(f"unix:{folder / 'resume'}")
        resumed = _resumed(target, begun)
        letter = _first_letter(target, begun)
        answer = daemon.wait_status("completed", timeout=120)
        all_ms = (time.monotonic() - begun) * 1000
        assert last_number(target.serial()) > 0 or target.serial(), "the guest does not run"
        return {"open": open_ms, "resume": resumed, "letter": letter, "all": all_ms,
                "requests": float(answer["ram"]["postcopy-requests"])}


def sizes(folder: Path, size: int, rounds: int) -> Report:
    report = Report(f"Instant resume, {size / GIB:g} GiB, QEMU {VERSION}", [
        "From the connection (QEMU's own: from migrate-incoming) to RESUME and to the guest's next serial letter; the file "
        "is in the page cache."])
    path = make_checkpoint(folder, size)
    own: list[tuple[float, float]] = []
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for number in range(rounds + 1):
        steps = [lambda: own.append(own_load(folder, path, size)),
                 lambda: runs[False].append(ours(folder, path, size, False)),
                 lambda: runs[True].append(ours(folder, path, size, True))]
        for step in steps if number % 2 == 0 else reversed(steps):
            step()
    path.unlink()
    own = own[1:]
    loads = [resumed for resumed, _ in own]
    letters = [letter for _, letter in own]
    report.add("to RESUME", "QEMU loads the file", loads, "ms")
    report.add("to the next letter", "QEMU loads the file", letters, "ms")
    for parked, name in ((False, "from the file"), (True, "from parked memory")):
        some = runs[parked][1:]
        resumes = [run["resume"] for run in some]
        report.add("to RESUME", name, resumes, "ms", median(resumes) / median(loads), "5 ms", median(resumes) <= 5)
        first = [run["letter"] for run in some]
        report.add("to the next letter", name, first, "ms", median(first) / median(letters), "50 ms",
                   median(first) <= 50)
        whole = [run["all"] for run in some]
        report.add("to the last page", name, whole, "ms", median(whole) / median(loads))
        report.add("requests", name, [run["requests"] for run in some], "")
    report.add("opening the file", "ours, lazily", [run["open"] for run in runs[False][1:]], "ms")
    return report


def resume(folder: Path, rounds: int, quick: bool) -> list[Report]:
    return [sizes(folder, size, rounds) for size in ([GIB // 4] if quick else [GIB, 2 * GIB, 5 * GIB // 2])]
