# SPDX-License-Identifier: Apache-2.0
"""A source that lives through all rounds, and a fresh destination for each: QEMU's, and ours."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from ..interop.lib import links, procfs
from ..interop.lib.daemon import Migrationd
from ..interop.lib.guest import Guest
from ..interop.lib.host import Host
from ..interop.lib.qemu import Qemu

UNLIMITED = 1 << 50
_numbers = itertools.count()


@dataclass
class Sample:
    """One migration."""
    total_ms: float         # query-migrate's total-time
    downtime_ms: float
    switch_ms: float        # between the events STOP and RESUME, -1 if the guest was stopped
    transferred: int
    cpu_source: float       # seconds, user and system
    cpu_destination: float
    pte_source: int         # bytes of page tables afterwards
    pte_destination: int
    memory_source: int      # bytes of guest memory allocated afterwards
    memory_destination: int

    @property
    def cpu(self) -> float:
        return self.cpu_source + self.cpu_destination


def _event_seconds(host: Host, name: str) -> float | None:
    host.qmp.poll_events(0.02)
    for event in reversed(host.qmp.events):
        if event["event"] == name:
            return event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
    return None


class Pair:
    """Base: what is measured is the same for all."""

    name = ""

    def __init__(self, folder: Path):
        self.folder = folder
        self.source: Host

    def destination(self, warm: bool) -> Host:
        raise NotImplementedError

    def ready_again(self) -> None:
        """After a migration the source takes its machine back, to hand it over again."""

    def memory(self, host: Host) -> int:
        return procfs.memfd_bytes(host.pid)

    def run(self, transport: str, warm: bool = False) -> Sample:
        link = links.ALL[{"unix": "unix"}.get(transport, "tcp4")](self.folder,
                                                                                        f"l{next(_numbers)}")
        with self.destination(warm) as destination:
            for host in (self.source, destination):     # two channels, the default
                host.capabilities(multifd=transport.startswith("multifd"))
                host.parameters(multifd_compression="zstd" if transport == "multifd-zstd" else "none")
            self.source.qmp.events.clear()
            self.source.qmp._seen = 0
            link.listen(destination)
            before = [procfs.cpu_seconds_ticks(host.pid) for host in (self.source, destination)]
            link.connect(self.source)
            while self.source.status() not in ("completed", "failed") or \
                    destination.status() not in ("completed", "failed"):
                time.sleep(0.02)
            answer = self.source.wait_totals()
            assert answer["status"] == "completed" and destination.status() == "completed", answer
            after = [procfs.cpu_seconds_ticks(host.pid) for host in (self.source, destination)]
            stopped, resumed = _event_seconds(self.source, "STOP"), _event_seconds(destination, "RESUME")
            sample = Sample(answer["total-time"], answer["downtime"],
                            (resumed - stopped) * 1000 if stopped and resumed else -1,
                            answer["ram"]["transferred"], after[0] - before[0], after[1] - before[1],
                            *(procfs.status_bytes(host.pid, "VmPTE") for host in (self.source, destination)),
                            self.memory(self.source), self.memory(destination))
        self.ready_again()
        return sample

    def close(self) -> None:
        self.source.__exit__()


class QemuPair(Pair):
    """QEMU 10.0 to QEMU 10.0; `fill` pages of pseudo-random bytes, then an idle guest."""

    name = "QEMU 10.0"

    def __init__(self, folder: Path, ram: int, fill: int, running: bool, guest: Guest | None = None):
        super().__init__(folder)
        self.ram = ram
        self.running = running
        self.guest = guest or Guest(pages=0, fill=fill // 4096)
        self.source = self._qemu("qemu-source", False, False)
        self.source.parameters(max_bandwidth=UNLIMITED)
        self.source.wait_sweeps(2, timeout=120)
        if not running:
            self.source.qmp.execute("stop")

    def _qemu(self, name: str, incoming: bool, warm: bool) -> Qemu:
        return Qemu(self.folder, name, "10.0", memory_mib=self.ram >> 20, guest=self.guest, incoming=incoming,
                    own_firmware=True, memory_options="prealloc=on" if warm else "reserve=off")

    def destination(self, warm: bool) -> Qemu:
        host = self._qemu(f"qemu-target{next(_numbers)}", True, warm)
        host.run_state()
        return host

    def memory(self, host: Host) -> int:
        return procfs.status_bytes(host.pid, "RssAnon")

    def ready_again(self) -> None:
        self.source.qmp.execute("cont")
        if not self.running:
            self.source.qmp.execute("stop")


class ParkedPair(Pair):
    """migrationd to migrationd, holding the machine of a QemuPair: the same memory, byte for byte."""

    name = "migrationd, the same machine parked"

    def __init__(self, folder: Path, original: QemuPair):
        super().__init__(folder)
        self.running = original.running
        self.source = Migrationd(folder, "parked-source")
        self.source.parameters(max_bandwidth=UNLIMITED)
        links.transfer(original.source, self.source, links.Unix(folder, "park"), False)
        original.ready_again()

    def destination(self, warm: bool) -> Migrationd:
        host = Migrationd(self.folder, f"parked-target{next(_numbers)}")
        host.run_state()
        return host

    def ready_again(self) -> None:
        self.source.qmp.execute("cont")
        if not self.running:
            self.source.qmp.execute("stop")


class SyntheticPair(Pair):
    """migrationd to migrationd with a synthetic guest of the same size, all pages without zeros, running."""

    name = "migrationd, synthetic"

    def __init__(self, folder: Path, ram: int, touched: int, dirty_rate: int = 0, working_set: int | None = None,
                 skip_holes: bool = False):
        super().__init__(folder)
        self.touched = touched
        self.skip_holes = skip_holes
        self.what = (f"synthetic,ram={ram},touched={touched},working-set={working_set or touched},"
                     f"dirty-rate={dirty_rate}")
        self.source = Migrationd(folder, f"synthetic-source{next(_numbers)}", machine=self.what)
        self._settings(self.source)
        self.source.parameters(max_bandwidth=UNLIMITED)
        self.source.wait(lambda: procfs.memfd_bytes(self.source.pid) >= touched, 60, "the guest to fill its memory")

    def _settings(self, host: Host) -> None:
        host.capabilities(**{"__org.migrationd_skip-holes": True} if self.skip_holes else {})

    def destination(self, warm: bool) -> Migrationd:
        host = Migrationd(self.folder, f"synthetic-target{next(_numbers)}", incoming=["defer"],
                          machine=self.what + (",prealloc=on" if warm else ""))
        self._settings(host)
        return host

    def ready_again(self) -> None:
        self.source.qmp.execute("cont")
