# SPDX-License-Identifier: Apache-2.0
"""kill -9 of either side at any moment of a postcopy: nothing ever runs twice, nobody reads a page of zeros that was not
zero. The guest looks at each page before it writes it, and says so in the log when one is wrong; so does QEMU's.

Who is left is in one of a few states, by what it can know:

  killed        left           is then
  source        destination    failed or waiting for the next, nothing here (nothing had arrived that can run);
                               or postcopy-paused, its guest asleep on what never came; or completed
  destination   source         failed, the guest runs on here (it never left); failed, `unknown`, stopped (nobody said
                               whether it ran there); postcopy-paused, nothing runs here; or completed
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from ..lib import cases
from ..lib.daemon import Migrationd
from ..lib.guest import Guest
from ..lib.onecopy import check_one_copy
from ..lib.qemu import Qemu
from .postcopy_pair import Pair
from .postcopy_source import RESUME, park
from .story import never_ran_twice

SOURCE_LEFT = {("failed", "running", "here"), ("failed", "paused", "unknown"), ("postcopy-paused", "finish-migrate", "moved"),
               ("completed", "postmigrate", "moved")}
TARGET_LEFT = {("failed", "inmigrate", "none"), ("setup", "inmigrate", "none"), ("postcopy-paused", "running", "here"),
               ("completed", "running", "here")}


def _seen(host: Migrationd) -> tuple[str, str, str]:
    return host.status(), host.run_state(), host.owner()


def settled(host: Migrationd, states: set[tuple[str, str, str]]) -> tuple[str, str, str]:
    """One of those states, once it stays so. A daemon that still listens may not have looked yet at what stands at its
    door."""
    while True:
        try:
            host.wait(lambda: _seen(host) in states, what="a state that is one")
        except AssertionError as error:
            raise AssertionError(f"{error}: not {_seen(host)} but one of {states}") from error
        state = _seen(host)
        time.sleep(1.0 if state[0] == "setup" else 0.3)
        if _seen(host) == state:
            return state
        assert state[0] == "setup", f"from {state} to {_seen(host)}"


def killed(folder: Path, victim: str, moments: int, seed: int, preempt: bool = False) -> None:
    chance = random.Random(seed)
    found: dict[str, int] = {}
    for number in range(moments):
        place = folder / str(number)
        place.mkdir()
        with Pair(place, preempt=preempt) as pair:
            pair.source.qmp, pair.target.qmp        # connected, so that nothing waits behind the start
            pair.source.parameters(max_postcopy_bandwidth=24 << 20)
            pair.leave(precopy=200 << 20)
            time.sleep(chance.uniform(0, 0.5) if number % 2 else chance.uniform(0, 0.05))
            dead, left = (pair.source, pair.target) if victim == "source" else (pair.target, pair.source)
            dead.kill()
            state = settled(left, TARGET_LEFT if victim == "source" else SOURCE_LEFT)
            found[state[0]] = found.get(state[0], 0) + 1
            assert check_one_copy(pair.log) <= 2
            if state[1] == "running" and state[0] != "postcopy-paused":
                assert left.verify_machine() > 0
    assert moments < 5 or "postcopy-paused" in found, f"no kill met the postcopy itself: {found}"


for _victim in ("source", "target"):
    cases.add(f"postcopy-kills/ours-to-ours/{_victim}", timeout=150,
              run=lambda folder, victim=_victim: killed(folder, victim, 10, 11))
    cases.add(f"postcopy-kills/ours-to-ours/{_victim}/preempt", timeout=150,
              run=lambda folder, victim=_victim: killed(folder, victim, 10, 12, preempt=True))
    cases.add(f"postcopy-kills/once/{_victim}", timeout=60, quick=True,
              run=lambda folder, victim=_victim: killed(folder, victim, 1, 13))


def killed_beside_qemu(folder: Path, victim: str, moments: int, seed: int) -> None:
    """A parked machine on its way into a QEMU: what that guest printed is one sequence without a wrong page, and the
    machine never is here again by itself once it may run there."""
    chance = random.Random(seed)
    guest = Guest(pages=2000, fill=2000, ticks=0, every=1)
    for number in range(moments):
        place = folder / str(number)
        place.mkdir()
        with Qemu(place, "source", "7.2", memory_mib=32, guest=guest) as source, Migrationd(place, "park") as daemon, \
             Qemu(place, "target", "10.0", memory_mib=32, guest=guest, incoming=True) as target:
            park(place, source, daemon)
            daemon.parameters(max_postcopy_bandwidth=16 << 20)
            target.capabilities("postcopy-ram")
            daemon.capabilities("postcopy-ram", RESUME)
            target.incoming(f"unix:{place}/out")
            daemon.migrate(f"unix:{place}/out")
            time.sleep(chance.uniform(0, 0.4) if number % 2 else chance.uniform(0, 0.03))
            (daemon if victim == "source" else target).kill()
            if victim == "target":
                settled(daemon, SOURCE_LEFT)
            else:
                time.sleep(0.5)
                assert target.alive() and target.status() in ("failed", "postcopy-paused", "completed", "setup", "active")
            never_ran_twice([source, target])


for _victim in ("source", "target"):
    cases.add(f"postcopy-kills/ours-to-qemu/{_victim}", timeout=150,
              run=lambda folder, victim=_victim: killed_beside_qemu(folder, victim, 10, 14))
