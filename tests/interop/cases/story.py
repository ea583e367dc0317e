# SPDX-License-Identifier: Apache-2.0
"""What every interop story begins and ends with: a guest that really ran, and a guest that really runs on."""

from __future__ import annotations

from dataclasses import dataclass

from ..lib.guest import check_serial, last_number
from ..lib.qemu import Qemu


@dataclass
class QuietPair:
    """The QEMU the guest leaves and the one it arrives in; between them may be anything."""
    source: Qemu
    destination: Qemu
    sweep_at_departure: int = 0


def depart(pair: QuietPair, running: bool) -> None:
    """Lets the guest run for a while; stops it when the case wants it stopped, and proves its memory then."""
    pair.source.wait_sweeps(5)
    if not running:
        pair.source.qmp.execute("stop")
        pair.sweep_at_departure = pair.source.check_memory()


def arrive(pair: QuietPair, running: bool) -> None:
    """The guest is where it should be, in the state it should be in, and one exact sequence was printed."""
    source, destination = pair.source, pair.destination
    assert source.run_state() == "postmigrate", source.run_state()
    if running:
        assert destination.wait(lambda: destination.run_state() == "running", 20, "guest to run on")
    else:
        assert destination.run_state() == "paused", destination.run_state()
        assert destination.check_memory() == pair.sweep_at_departure, "memory is of another moment"
        assert destination.serial() == b"", "a stopped guest printed something"
        destination.qmp.execute("cont")
    left_at = last_number(source.serial())
    destination.wait_sweeps(left_at + 3)
    destination.qmp.execute("stop")
    destination.check_memory()
    assert check_serial([source.serial(), destination.serial()]) >= left_at + 3


def never_ran_twice(parts: list[Qemu]) -> None:
    """For cases in which hosts die: whatever was printed by all of them together is one sequence."""
    check_serial([host.serial() for host in parts])
