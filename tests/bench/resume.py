# SPDX-License-Identifier: Apache-2.0
"""Instant resume beside QEMU's own loading of the same file: from the connection to RESUME, and to the guest's next
serial letter; from a file in the page cache, from one that is not, and from parked memory. Beside the time to the last
page stands plain precopy of the same machine.

RESUME is the time that QEMU's event bears, from the moment before the command is sent. (When the client has it, some 1.2 ms
more have passed: QEMU's monitor, Python, and a client that waits a millisecond for what may follow an event.)
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.bench.report import Report, median
from tests.interop.lib.daemon import Migrationd
from tests.interop.lib.guest import Guest
from tests.interop.lib.qemu import Qemu

GIB = 1 << 30
MIB = 1 << 20
RESUME = "__org.migrationd_instant-resume"
VERSION = "10.0"
# A guest of 32 bits fills no more than this by itself; above, its memory is a file that was filled before.
MOST_FILLED = 5 * GIB // 2
# The sparse one: what it touched of its memory.
SPARSE_PAGES = 64 * MIB // 4096
SPARSE = 16 * GIB


def guest_of(size: int) -> Guest:
    if size > SPARSE:
        return Guest(pages=64, fill=SPARSE_PAGES, ticks=1, every=1)
    if size > MOST_FILLED:
        return Guest(pages=64, ticks=1, every=1)
    # Filled with random bytes once, but for the first MiB and 64 pages that are swept for ever.
    return Guest(pages=64, fill=(size - 2 * MIB) // 4096 - 64, ticks=1, every=1)


def qemu_for(folder: Path, name: str, size: int, incoming: bool, options: list[str] | None = None) -> Qemu:
    own_memory = size > MOST_FILLED and options is None
    return Qemu(folder, name, VERSION, memory_mib=size // MIB, guest=guest_of(size), incoming=incoming,
                memory_options="reserve=off" if own_memory else "", options=options)


def _filled_memory(folder: Path, size: int) -> tuple[Path, list[str]]:
    """Memory in a file, filled but for the first 4 MiB, which are the guest's own; and the options that use it."""
    path = folder / "memory"
    chunk = os.urandom(MIB)
    with open(path, "wb") as file:
        file.seek(4 * MIB)
        for _ in range(size // MIB - 4):
            file.write(chunk)
    return path, ["-object", f"memory-backend-file,id=mem,size={size},mem-path={path},share=on",
                  "-machine", "memory-backend=mem"]


def make_checkpoint(folder: Path, size: int) -> Path:
    """A mapped-ram file of a machine that runs, its memory full (the sparse one's nearly empty); warm in the page
    cache."""
    path = folder / "checkpoint"
    memory, options = None, None
    if MOST_FILLED < size <= SPARSE:
        memory, options = _filled_memory(folder, size)
    with qemu_for(folder, "origin", size, False, options) as source:
        source.wait_sweeps(3, 120)
        source.capabilities("mapped-ram")
        source.parameters(max_bandwidth=0)
        source.migrate(f"file:{path}")
        source.wait_status("completed", timeout=300)
    if memory is not None:
        memory.unlink()
    return path


def make_cold(path: Path) -> None:
    """Nothing of the file is in the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_warm(path: Path) -> None:
    """Its data; holes have none."""
    with open(path, "rb", buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:     # nothing but a hole from here on
                return
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += len(os.pread(file.fileno(), min(16 * MIB, end - at), at))


def _first_letter(qemu: Qemu, begun: float, timeout: float = 60.0) -> float:
    while not qemu.serial():
        assert time.monotonic() - begun < timeout, "the guest printed nothing"
        time.sleep(0.0005)
    return (time.monotonic() - begun) * 1000


def _resumed(qemu: Qemu, begun: float) -> float:
    """Milliseconds from `begun` (time.time())."""
    stamp = qemu.qmp.wait_event("RESUME", timeout=120)["timestamp"]
    return (stamp["seconds"] + stamp["microseconds"] / 1e6 - begun) * 1000


def own_load(folder: Path, path: Path, size: int) -> dict[str, float]:
    """QEMU's own -incoming from that file."""
    with qemu_for(folder, "own", size, True) as target:
        target.capabilities("mapped-ram")
        begun, by_the_clock = time.monotonic(), time.time()
        target.incoming(f"file:{path}")
        resumed = _resumed(target, by_the_clock)
        return {"resume": resumed, "letter": _first_letter(target, begun), "all": resumed}


def ours(folder: Path, path: Path, size: int, parked: bool, at_once: bool = True) -> dict[str, float]:
    """Into a QEMU: instantly, or by plain precopy."""
    with Migrationd(folder, "park") as daemon, qemu_for(folder, "target", size, True) as target:
        opened = time.monotonic()
        if not parked:
            daemon.capabilities(RESUME)
        else:
            daemon.capabilities("mapped-ram")
        daemon.incoming(f"file:{path}")
        daemon.wait_status("completed", timeout=300)
        open_ms = (time.monotonic() - opened) * 1000
        daemon.capabilities(mapped_ram=False)
        # Each round is a first one.
        daemon.qmp.execute("migrate-set-parameters", {"__org.migrationd_working-set": False, "max-bandwidth": 0})
        if at_once:
            daemon.capabilities(RESUME, "postcopy-ram")
            target.capabilities("postcopy-ram")
        target.incoming(f"unix:{folder / 'resume'}")
        begun, by_the_clock = time.monotonic(), time.time()
        daemon.migrate(f"unix:{folder / 'resume'}")
        resumed = _resumed(target, by_the_clock)
        letter = _first_letter(target, begun)
        answer = daemon.wait_status("completed", timeout=300)
        all_ms = (time.monotonic() - begun) * 1000
        return {"open": open_ms, "resume": resumed, "letter": letter, "all": all_ms,
                "requests": float(answer["ram"]["postcopy-requests"])}


def enough_memory(wanted: int) -> bool:
    with open("/proc/meminfo", encoding="ascii") as file:
        return any(int(line.split()[1]) * 1024 > wanted for line in file if line.startswith("MemAvailable:"))


QEMU_COLD, QEMU_WARM = "QEMU loads the file, cold", "QEMU loads the file, warm"
OURS_COLD, OURS_WARM, OURS_PARKED = "from the file, cold", "from the file, warm", "from parked memory"
PRECOPY = "plain precopy of parked memory"


def sizes(folder: Path, size: int, rounds: int) -> Report:
    report = Report(f"Instant resume, {size / GIB:g} GiB{', sparse' * (size > SPARSE)}, QEMU {VERSION}", [
        "From the connection (QEMU's own: from migrate-incoming) to RESUME, to the guest's next serial letter and to the "
        "last page. Cold: nothing of the file is in the page cache."])
    path = make_checkpoint(folder, size)

    def file_run(cold: bool, run):
        (make_cold if cold else make_warm)(path)
        return run()
    steps = {QEMU_COLD: lambda: file_run(True, lambda: own_load(folder, path, size)),
             QEMU_WARM: lambda: file_run(False, lambda: own_load(folder, path, size)),
             OURS_COLD: lambda: file_run(True, lambda: ours(folder, path, size, False)),
             OURS_WARM: lambda: file_run(False, lambda: ours(folder, path, size, False))}
    needed = (2 * size if size <= SPARSE else GIB) + 2 * GIB
    if enough_memory(needed):
        steps[OURS_PARKED] = lambda: file_run(False, lambda: ours(folder, path, size, True))
        # Of the sparse one it would be a stream of zeros.
        if size <= SPARSE:
            steps[PRECOPY] = lambda: file_run(False, lambda: ours(folder, path, size, True, False))
    else:
        report.about.append(f"Parked memory was left out: it needs {needed / GIB:.0f} GiB of free memory.")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in steps if number % 2 == 0 else reversed(steps):
            sample = steps[name]()
            if number > 0:
                runs[name].append(sample)
    path.unlink()
    _rows(report, runs, size)
    return report


def _rows(report: Report, runs: dict[str, list[dict[str, float]]], size: int) -> None:
    def values(name: str, key: str) -> list[float]:
        return [run[key] for run in runs[name]]
    for what, key, bound in (("to RESUME", "resume", 5), ("to the next letter", "letter", 50)):
        for name in runs:
            if name == PRECOPY:
                continue
            if name in (QEMU_COLD, QEMU_WARM):
                report.add(what, name, values(name, key), "ms")
                continue
            theirs = median(values(QEMU_COLD if name == OURS_COLD else QEMU_WARM, key))
            middle = median(values(name, key))
            report.add(what, name, values(name, key), "ms", middle / theirs, f"{bound} ms", middle <= bound)
    for name in runs:
        report.add("to the last page", name, values(name, "all"), "ms")
    if PRECOPY in runs and size <= SPARSE:
        precopy = median(values(PRECOPY, "all"))
        for name in (OURS_WARM, OURS_PARKED):
            share = precopy / median(values(name, "all"))
            report.add("rate beside plain precopy", name, [precopy / run for run in values(name, "all")], "x", None,
                       ">= 0.8 x", share >= 0.8)
    for name in (OURS_COLD, OURS_WARM):
        report.add("requests", name, values(name, "requests"), "")
        report.add("opening the file", name, values(name, "open"), "ms")


def resume(folder: Path, rounds: int, quick: bool, size: int | None = None) -> list[Report]:
    if size is not None:
        return [sizes(folder, size, rounds)]
    return [sizes(folder, size, rounds) for size in ([GIB // 4] if quick else [GIB, 2 * GIB])]
