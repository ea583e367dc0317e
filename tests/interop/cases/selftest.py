# SPDX-License-Identifier: Apache-2.0
"""The harness proves itself: QEMU to QEMU without migrationd, and errors put in on purpose that must be noticed."""

from __future__ import annotations

import os
from pathlib import Path

from ..lib import cases, links
from ..lib.guest import SerialError, check_serial
from ..lib.qemu import Qemu
from .story import QuietPair, arrive, depart

VERSIONS = ("7.2", "10.0")


def _direct(folder: Path, source_version: str, destination_version: str, link_name: str, return_path: bool,
            running: bool) -> None:
    link = links.ALL[link_name](folder, "hop")
    with Qemu(folder, "source", source_version) as source, \
         Qemu(folder, "target", destination_version, incoming=True) as destination:
        pair = QuietPair(source, destination)
        depart(pair, running)
        links.transfer(source, destination, link, return_path)
        arrive(pair, running)


for _source in VERSIONS:
    for _destination in VERSIONS:
        for _link, _return_path, _running in (("tcp4", True, True), ("unix", False, False), ("fd-socket", True, True),
                                              ("exec-file", False, True)):
            cases.add(f"selftest/{_source}-to-{_destination}/{_link}/{'return-path' if _return_path else 'one-way'}/"
                      f"{'running' if _running else 'stopped'}",
                      lambda folder, args=(_source, _destination, _link, _return_path, _running):
                      _direct(folder, *args),
                      quick=_link == "tcp4" and _source != _destination, daemon=False)
for _link in links.ALL:
    cases.add(f"selftest/10.0-to-10.0-every-link/{_link}",
              lambda folder, name=_link: _direct(folder, "10.0", "10.0", name, False, True), daemon=False)


def _expect(error: type[BaseException], call) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"the error put in was not noticed: {call}")


@cases.case("selftest/serial-checker-notices-gaps-repeats-and-errors", quick=True, daemon=False)
def serial_checker(_folder: Path) -> None:
    good = [b"00000001\n0000", b"0002\n00000003\n00"]
    assert check_serial(good) == 3
    assert check_serial([b"00000002\n00000004\n"], every=2) == 4
    for bad in ([b"00000001\n", b"00000003\n"],             # lost
                [b"00000001\n00000002\n", b"00000002\n"],   # ran twice
                [b"00000001\nE00100000 00000000\n"],        # the guest says so itself
                [b"00000001\n0000", b"000003\n"]):          # a character lost
        _expect(SerialError, lambda bad=bad: check_serial(bad))


def _change_page(host: Qemu, address: int) -> None:
    """Writes into the guest's memory through the memfd QEMU holds."""
    for name in os.listdir(f"/proc/{host.pid}/fd"):
        path = f"/proc/{host.pid}/fd/{name}"
        if os.readlink(path).startswith("/memfd:"):
            with open(path, "r+b", buffering=0) as file:
                file.seek(address)
                file.write(b"\xff\xff\xff\xff")
            return
    raise AssertionError("the guest's memory is not a memfd")


@cases.case("selftest/guest-and-harness-notice-a-changed-page", quick=True, daemon=False)
def changed_page(folder: Path) -> None:
    with Qemu(folder, "host", "7.2", memfd=True) as host:
        host.wait_sweeps(3)
        host.qmp.execute("stop")
        host.check_memory()
        assert check_serial([host.serial()]) >= 3
        _change_page(host, 0x100000 + 700 * 4096 + 4092)
        _expect(AssertionError, host.check_memory)
        host.qmp.execute("cont")
        host.wait(lambda: b"E" in host.serial().rpartition(b"\n")[0].rpartition(b"\n")[2], what="the guest's complaint")
        assert host.serial().splitlines()[-1].startswith(b"E003BC000 "), host.serial()[-40:]
        _expect(SerialError, lambda: check_serial([host.serial()]))
