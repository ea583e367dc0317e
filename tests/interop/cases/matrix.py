# SPDX-License-Identifier: Apache-2.0
"""A real machine goes into migrationd and out again: every pair of versions, every transport, with and without return
path, running and stopped. At the far end it runs on, its counters consistent, its output continuing where it stopped.
"""

from __future__ import annotations

from pathlib import Path

from ..lib import cases, links
from ..lib.daemon import Migrationd
from ..lib.host import Host
from ..lib.qemu import Qemu
from ..lib.qmp import QmpError
from .story import QuietPair, arrive, depart

VERSIONS = ("7.2", "10.0")


def must_refuse_second_hand_over(park: Host) -> None:
    """Two running copies of a machine destroy its disks: once handed over, it needs an explicit word."""
    assert park.run_state() == "postmigrate", park.run_state()
    try:
        park.migrate("exec:cat > /dev/null")
    except QmpError as error:
        assert error.desc == "Can't migrate the vm that was paused due to previous migration", error.desc
    else:
        raise AssertionError("the machine was handed over a second time")


def relay(folder: Path, source_version: str, destination_version: str, link_name: str, return_path: bool,
          running: bool) -> None:
    first, second = (links.ALL[link_name](folder, tag) for tag in ("in", "out"))
    with Qemu(folder, "source", source_version) as source, \
         Migrationd(folder, "park") as park, \
         Qemu(folder, "target", destination_version, incoming=True) as destination:
        pair = QuietPair(source, destination)
        depart(pair, running)
        links.transfer(source, park, first, return_path)
        links.transfer(park, destination, second, return_path)
        if second.live:
            must_refuse_second_hand_over(park)
        arrive(pair, running)


def _register() -> None:
    for link_name, link in links.ALL.items():
        for source in VERSIONS:
            for destination in VERSIONS:
                for return_path in (True, False) if link.two_way else (False,):
                    for running in (True, False):
                        small = (source, destination, running) == ("7.2", "10.0", True) and return_path == link.two_way
                        if link_name == "tcp4":
                            small = return_path and running
                        cases.add(f"matrix/{source}-to-{destination}/{link_name}/"
                                  f"{'return-path' if return_path else 'one-way'}/"
                                  f"{'running' if running else 'stopped'}",
                                  lambda folder, args=(source, destination, link_name, return_path, running):
                                  relay(folder, *args), quick=small)


_register()


def _through(folder: Path, source_version: str, destination_version: str, link_names: list[str], running: bool,
             return_path: bool = True) -> None:
    """QEMU, then one daemon fewer than there are links, then QEMU."""
    hops = [links.ALL[name](folder, f"hop{number}") for number, name in enumerate(link_names)]
    with Qemu(folder, "source", source_version) as source, \
         Qemu(folder, "target", destination_version, incoming=True) as destination:
        pair = QuietPair(source, destination)
        depart(pair, running)
        holder: Host = source
        daemons: list[Migrationd] = []
        try:
            for number, hop in enumerate(hops[:-1]):
                daemons.append(Migrationd(folder, f"park{number}"))
                links.transfer(holder, daemons[-1], hop, return_path)
                holder = daemons[-1]
            links.transfer(holder, destination, hops[-1], return_path)
        finally:
            for daemon in daemons:
                daemon.__exit__()
        arrive(pair, running)


CHAINS = {
    "two-daemons-over-tcp": ["tcp4", "tcp4", "tcp4"],
    "two-daemons-over-unix": ["unix", "unix", "unix"],
    "three-daemons-mixed": ["tcp4", "unix", "fd-socket", "tcp6"],
    "through-a-file": ["tcp4", "file", "tcp4"],
    "through-a-file-at-an-offset": ["unix", "file-offset", "unix"],
    "through-two-files": ["exec-file", "file", "exec-file"],
}
for _name, _links in CHAINS.items():
    for _source, _destination, _running in (("7.2", "10.0", True), ("10.0", "7.2", False)):
        cases.add(f"chain/{_name}/{_source}-to-{_destination}/{'running' if _running else 'stopped'}",
                  lambda folder, args=(_source, _destination, _links, _running): _through(folder, *args),
                  quick=_name in ("two-daemons-over-tcp", "through-a-file") and _running)
