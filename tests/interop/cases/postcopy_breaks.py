# SPDX-License-Identifier: Apache-2.0
"""Fifty breaks of a postcopy's link, and more: at any byte of either direction, at any moment, in the middle of a
handshake, cleanly and by a reset; each time it goes on over another transport, and in the end every page is proved.

A break inside the switch itself is its own group: whatever byte was the last to arrive, one of the two has the machine.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

from ..lib import cases
from ..lib.breaker import PACKAGED, Addresses, Breaker
from ..lib.daemon import Migrationd
from ..lib.guest import Guest
from ..lib.host import Host
from ..lib.onecopy import check_one_copy
from ..lib.qemu import Qemu
from .postcopy_kills import settled
from .postcopy_pair import Pair
from .postcopy_source import RESUME, park, went_on
from .story import QuietPair, arrive

MIB = 1 << 20


@dataclass
class Wire:
    """The two ends of a migration that is broken again and again, and what is between them."""
    folder: Path
    source: Host
    target: Host
    breaker: Breaker
    chance: random.Random
    most: int                   # bytes of the stream until a break at most
    handshakes: bool = True     # break some of the handshakes, too
    breaks: int = 0

    def __post_init__(self):
        self.addresses = Addresses(self.folder)

    def both(self, status: str) -> None:
        for host in (self.source, self.target):
            host.wait_status(status)

    def start(self, **options) -> None:
        inner = self.addresses.next()
        self.target.incoming(inner)
        self.source.migrate(self.breaker.route(inner, self.addresses.next()), **options)

    def break_somewhere(self) -> None:
        """The link is broken and both have noticed."""
        way = self.chance.choice(("forward", "back", "moment"))
        clean = self.chance.random() < 0.5
        if way == "forward":
            self.breaker.break_after(self.chance.randrange(1, self.most), clean=clean)
        elif way == "back":
            self.breaker.break_after(self.chance.randrange(1, 2000), forward=False, clean=clean)
        else:
            time.sleep(self.chance.uniform(0, 0.2))
        # What does not come so far is broken where it is.
        if way == "moment" or not self.breaker.broken.wait(0.5):
            self.breaker.break_now(clean)
        self.both("postcopy-paused")
        self.breaks += 1

    def recover(self) -> None:
        inner = self.addresses.next()
        self.target.qmp.execute("migrate-recover", {"uri": inner})
        address = self.breaker.route(inner, self.addresses.next())
        if self.handshakes and self.chance.random() < 0.3:
            self.breaker.break_after(self.chance.randrange(1, 100), clean=self.chance.random() < 0.5)
            self.source.migrate(address, resume=True)
            assert self.breaker.broken.wait(20), "the handshake was shorter than a hundred bytes"
            self.breaks += 1
            time.sleep(0.5)     # the target may still think that nobody has come; it shall have seen who did
            self.both("postcopy-paused")
            return self.recover()
        self.source.migrate(address, resume=True)
        self.both("postcopy-active")
        return None

    def survive(self, breaks: int) -> None:
        """At least so many breaks; it is active again afterwards."""
        self.both("postcopy-active")
        while self.breaks < breaks:
            self.break_somewhere()
            self.recover()


def ours_to_ours(folder: Path, breaks: int, seed: int, preempt: bool, huge: bool = False) -> None:
    # The guest is slow, or it has asked for everything before it was broken often enough: requests are not limited.
    with Pair(folder, rate=2, preempt=preempt, huge=huge) as pair, Breaker() as breaker:
        wire = Wire(folder, pair.source, pair.target, breaker, random.Random(seed), MIB)
        pair.source.parameters(max_bandwidth=20 * MIB, max_postcopy_bandwidth=4 * MIB)
        wire.start()
        pair.source.qmp.execute("migrate-start-postcopy")
        wire.survive(breaks)
        pair.source.parameters(max_postcopy_bandwidth=0)
        pair.arrived()


def ours_to_qemu(folder: Path, breaks: int, seed: int, version: str, preempt: bool) -> None:
    guest = Guest(pages=2000, fill=4500, ticks=0, every=1)
    with Qemu(folder, "source", "7.2", memory_mib=32, guest=guest) as source, Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", version, memory_mib=32, guest=guest, incoming=True) as target, Breaker() as breaker:
        left_at = park(folder, source, daemon)
        daemon.parameters(max_postcopy_bandwidth=2 * MIB)
        target.capabilities("postcopy-ram", postcopy_preempt=preempt)
        daemon.capabilities("postcopy-ram", RESUME, postcopy_preempt=preempt)
        # A 7.2 ends when a handshake is broken.
        wire = Wire(folder, daemon, target, breaker, random.Random(seed), MIB, handshakes=version != "7.2")
        wire.start()
        wire.survive(breaks)
        daemon.parameters(max_postcopy_bandwidth=0)
        wire.both("completed")
        went_on([source, target], left_at, guest)


def qemu_to_ours(folder: Path, breaks: int, seed: int, version: str, preempt: bool) -> None:
    """A pull into a parked daemon, which hands the machine on to another QEMU: all of it has arrived."""
    guest = Guest(pages=3000, fill=20000)
    with Qemu(folder, "source", version, memory_mib=128, guest=guest) as source, Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", version, memory_mib=128, guest=guest, incoming=True) as target, Breaker() as breaker:
        for host in (source, daemon):
            host.capabilities("postcopy-ram", postcopy_preempt=preempt)
        pair = QuietPair(source, target)
        source.wait_sweeps(3)
        source.parameters(max_bandwidth=20 * MIB, max_postcopy_bandwidth=4 * MIB)
        # It asks for everything itself, as fast as it comes; and 7.2 may wait for ever when a handshake is broken.
        wire = Wire(folder, source, daemon, breaker, random.Random(seed), 6 * MIB, handshakes=version != "7.2")
        wire.start()
        source.qmp.execute("migrate-start-postcopy")
        wire.survive(breaks)
        source.parameters(max_postcopy_bandwidth=0)
        wire.both("completed")
        for host in (daemon, target):
            host.capabilities(postcopy_ram=False, **({"postcopy_preempt": False} if preempt else {}))
        target.incoming("tcp:127.0.0.1:0")
        daemon.migrate(f"tcp:127.0.0.1:{target.listening_port()}")
        daemon.wait_status("completed")
        target.wait_status("completed")
        arrive(pair, True)


ROWS = {"ours-to-ours/one-channel": (ours_to_ours, 8, {"preempt": False}),
        "ours-to-ours/preempt": (ours_to_ours, 8, {"preempt": True}),
        "ours-to-ours/huge-pages": (ours_to_ours, 4, {"preempt": False, "huge": True})}
for _version in ("7.2", "10.0"):
    for _preempt in (False, True):
        _channels = "preempt" if _preempt else "one-channel"
        _options = {"version": _version, "preempt": _preempt}
        ROWS[f"ours-to-{_version}/{_channels}"] = (ours_to_qemu, 6, _options)
        ROWS[f"{_version}-to-ours/{_channels}"] = (qemu_to_ours, 4, _options)
assert sum(breaks for _, breaks, _ in ROWS.values()) >= 50

for _number, (_name, (_run, _breaks, _options)) in enumerate(ROWS.items()):
    cases.add(f"postcopy-breaks/{_name}", timeout=150, run=lambda folder, run=_run, breaks=_breaks, seed=_number,
              options=_options: run(folder, breaks, seed, **options))
    if _name.startswith("ours-to") and "huge" not in _name and "7.2" not in _name:
        cases.add(f"postcopy-breaks/few/{_name}", timeout=60, quick=True,
                  run=lambda folder, run=_run, seed=_number, options=_options: run(folder, 2, 100 + seed, **options))


# --- inside the switch ---------------------------------------------------------------------------------------------------

SOURCE_IN = {("failed", "running", "here"), ("failed", "paused", "unknown"), ("postcopy-paused", "finish-migrate", "moved")}
TARGET_IN = {("failed", "inmigrate", "none"), ("setup", "inmigrate", "none"), ("postcopy-paused", "running", "here")}


def _settled(pair: Pair) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    return settled(pair.source, SOURCE_IN), settled(pair.target, TARGET_IN)


def in_the_switch(folder: Path, attempts: int, seed: int) -> None:
    """Broken at any byte from the package on. If both have got so far, it goes on; else one of the two has the machine,
    or nobody runs it: never both."""
    chance = random.Random(seed)
    for number in range(attempts):
        place = folder / str(number)
        place.mkdir()
        with Pair(place, rate=2) as pair, Breaker() as breaker:
            wire = Wire(place, pair.source, pair.target, breaker, chance, MIB)
            pair.source.parameters(max_bandwidth=50 * MIB, max_postcopy_bandwidth=4 * MIB)
            breaker.break_after(chance.randrange(0, 8000), behind=PACKAGED, clean=number % 2 == 0)
            wire.start()
            pair.source.qmp.execute("migrate-start-postcopy")
            assert breaker.broken.wait(20), "it never came to the switch"
            source, target = _settled(pair)
            if target[1] == "running":
                assert source[1] != "running", (source, target)
                if source[0] == "postcopy-paused":
                    wire.recover()
                    pair.source.parameters(max_postcopy_bandwidth=0)
                    pair.arrived()
                    continue
            assert _settled(pair) == (source, target)
            assert check_one_copy(pair.log) <= 2


cases.add("postcopy-breaks/in-the-switch", lambda folder: in_the_switch(folder, 20, 31), timeout=200)
cases.add("postcopy-breaks/few/in-the-switch", lambda folder: in_the_switch(folder, 3, 32), timeout=60, quick=True)


@cases.case("postcopy-breaks/answer-swallowed-by-a-tunnel", quick=True)
def swallowed(folder: Path) -> None:
    """A tunnel loses the word that the guest runs there, and then ends in order, as if the destination had given up: the
    source must not believe it. It stays stopped, says that it does not know, and `cont` is the explicit word."""
    with Pair(folder, rate=2) as pair, Breaker() as breaker:
        wire = Wire(folder, pair.source, pair.target, breaker, random.Random(1), MIB)
        pair.source.parameters(max_bandwidth=50 * MIB)
        breaker.mute_behind = PACKAGED
        wire.start()
        pair.source.qmp.execute("migrate-start-postcopy")
        pair.target.wait(lambda: pair.target.run_state() == "running", 20, "the guest to run there")
        time.sleep(0.1)
        breaker.break_now(clean=True)
        source, target = _settled(pair)
        assert source == ("failed", "paused", "unknown") and target == ("postcopy-paused", "running", "here"), (source, target)
        assert "outcome unknown" in pair.source.query_migrate()["error-desc"], pair.source.query_migrate()
        time.sleep(0.2)
        assert check_one_copy(pair.log) == 2
        pair.target.kill()
        pair.source.qmp.execute("cont")
        pair.source.wait(lambda: pair.source.run_state() == "running", what="the explicit word")
