# SPDX-License-Identifier: Apache-2.0
"""migrationd as the source of a postcopy, real QEMUs as destinations: from a parked machine straight into postcopy
(instant resume), memory proved by the guest itself, which goes on checking a counter in every page.
"""

from __future__ import annotations

import time
from pathlib import Path

from ..lib import cases, links
from ..lib.daemon import Migrationd
from ..lib.guest import Guest, check_serial, last_number
from ..lib.qemu import Qemu
from .story import QuietPair, depart

RESUME = "__org.migrationd_instant-resume"
LARGE = Guest(pages=2500, ticks=0, every=1)     # 10 MiB that are swept all the time


def park(folder: Path, source: Qemu, daemon: Migrationd, running: bool = True) -> int:
    """The guest of `source` goes into the daemon. Returns the last number it printed."""
    depart(QuietPair(source, source), running)
    links.transfer(source, daemon, links.Unix(folder, "park"), True)
    return last_number(source.serial())


def into_postcopy(daemon: Migrationd, destination: Qemu, uri: str, preempt: bool = False) -> None:
    """Sends the daemon's machine and returns when both sides have completed."""
    begin_resume(daemon, destination, uri, preempt)
    daemon.wait_status("completed")
    destination.wait_status("completed")


def begin_resume(daemon: Migrationd, destination: Qemu, uri: str, preempt: bool = False) -> None:
    destination.capabilities("postcopy-ram", postcopy_preempt=preempt)
    daemon.capabilities("postcopy-ram", RESUME, postcopy_preempt=preempt)
    destination.incoming(uri)
    daemon.migrate(uri)


def went_on(parts: list[Qemu], left_at: int, guest: Guest) -> None:
    """The last of the hosts runs the guest, which goes on where the one before ended; all its pages are right."""
    last = parts[-1]
    last.wait_sweeps(left_at + 3 * guest.every, 60)
    last.qmp.execute("stop")
    last.check_memory()
    check_serial([part.serial() for part in parts], guest.every)


def _instant(folder: Path, version: str, preempt: bool, memfd: bool) -> None:
    with Qemu(folder, "source", "7.2", memory_mib=32, guest=LARGE, memfd=memfd) as source, Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", version, memory_mib=32, guest=LARGE, incoming=True, memfd=memfd) as destination:
        left_at = park(folder, source, daemon)
        into_postcopy(daemon, destination, f"unix:{folder / 'out'}", preempt)
        went_on([source, destination], left_at, LARGE)
        answer = daemon.wait_totals()
        assert answer["ram"]["postcopy-bytes"] > 0, answer
        assert daemon.owner() == "moved" and daemon.run_state() == "postmigrate", daemon.machine()
        daemon.qmp.poll_events()
        assert daemon.qmp.event_names()[-8:] == ["setup", "P(1)", "active", "STOP", "device", "P(2)", "postcopy-active",
                                                 "completed"], \
            daemon.qmp.event_names()


for _version in ("7.2", "10.0"):
    for _preempt in (False, True):
        for _memfd in (False, True):
            cases.add(f"postcopy/parked-to-{_version}/{'preempt' if _preempt else 'one-channel'}/"
                      f"{'memfd' if _memfd else 'anonymous'}",
                      lambda folder, args=(_version, _preempt, _memfd): _instant(folder, *args),
                      quick=_version == "10.0" and not _memfd)


@cases.case("postcopy/started-in-the-middle-of-precopy", quick=True)
def started_late(folder: Path) -> None:
    """A slow precopy is turned into a postcopy; asked for again at the end, it does no harm."""
    guest = Guest(pages=64, fill=6000, ticks=2, every=1)
    with Qemu(folder, "source", "7.2", memory_mib=32, guest=guest) as source, Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", "10.0", memory_mib=32, guest=guest, incoming=True) as destination:
        left_at = park(folder, source, daemon)
        for host in (daemon, destination):
            host.capabilities("postcopy-ram")
        daemon.parameters(max_bandwidth=4 << 20)
        uri = f"unix:{folder / 'out'}"
        destination.incoming(uri)
        daemon.migrate(uri)
        daemon.wait(lambda: daemon.query_migrate().get("ram", {}).get("transferred", 0) > 2 << 20, what="some precopy")
        assert daemon.status() == "active"
        daemon.qmp.execute("migrate-start-postcopy")
        answer = daemon.wait_status("completed")
        destination.wait_status("completed")
        assert answer["ram"]["precopy-bytes"] > 1 << 20 and answer["ram"]["postcopy-bytes"] > 1 << 20, answer
        daemon.qmp.execute("migrate-start-postcopy")
        went_on([source, destination], left_at, guest)


def _recover(folder: Path, version: str, preempt: bool, breaks: int) -> None:
    """Broken again and again while the guest runs; each time taken up over another address."""
    guest = Guest(pages=2000, fill=4000, ticks=0, every=1)
    with Qemu(folder, "source", "7.2", memory_mib=32, guest=guest) as source, Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", version, memory_mib=32, guest=guest, incoming=True) as destination:
        left_at = park(folder, source, daemon)
        daemon.parameters(max_postcopy_bandwidth=1 << 20)
        begin_resume(daemon, destination, f"unix:{folder / 'out'}", preempt)
        for number in range(breaks):
            daemon.wait_status("postcopy-active")
            destination.wait_status("postcopy-active")
            time.sleep(0.2 + 0.1 * number)
            breaker = (daemon, destination)[number % 2]
            breaker.qmp.execute("migrate-pause")
            paused = daemon.wait_status("postcopy-paused")
            assert paused["error-desc"], paused
            destination.wait_status("postcopy-paused")
            if number == 0:
                daemon.migrate(f"unix:{folder / 'nobody'}", resume=True)     # a dead address does no harm
                daemon.wait(lambda: "nobody" in daemon.query_migrate().get("error-desc", ""), what="the dead address")
                daemon.wait_status("postcopy-paused")
            uri = f"unix:{folder / 'again'}{number}"
            destination.qmp.execute("migrate-recover", {"uri": uri})
            daemon.migrate(uri, resume=True)
        daemon.wait_status("postcopy-active")
        daemon.parameters(max_postcopy_bandwidth=0)
        daemon.wait_status("completed")
        destination.wait_status("completed")
        went_on([source, destination], left_at, guest)


for _version in ("7.2", "10.0"):
    for _preempt in (False, True):
        cases.add(f"postcopy/broken-and-recovered/{_version}/{'preempt' if _preempt else 'one-channel'}",
                  lambda folder, args=(_version, _preempt, 4): _recover(folder, *args), timeout=90,
                  quick=_version == "10.0" and not _preempt)


@cases.case("postcopy/a-destination-that-cannot-take-it-leaves-it-here", quick=True)
def refused_there(folder: Path) -> None:
    """Other memory, and other devices: found out before the machine has left, or before it can have run."""
    with Qemu(folder, "source", "10.0") as source, Migrationd(folder, "park") as daemon:
        park(folder, source, daemon)
        for name, options in (("memory", {"memory_mib": 32}), ("devices", {"own_firmware": False, "memfd": True})):
            with Qemu(folder, name, "10.0", incoming=True, **options) as destination:
                begin_resume(daemon, destination, f"unix:{folder / name}.out")
                daemon.wait(lambda: daemon.status() == "failed", what="the refusal to arrive")
                assert daemon.owner() == "here", daemon.machine()
                assert destination.serial() == b"", "it ran there"
        assert daemon.run_state() == "running", daemon.run_state()
