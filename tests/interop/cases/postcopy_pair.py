# SPDX-License-Identifier: Apache-2.0
"""A synthetic guest from daemon to daemon by postcopy: every page it reads before its memory is there, and after, is the
right one, and never two copies of it run.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from ..lib import cases
from ..lib.daemon import Migrationd
from ..lib.onecopy import check_one_copy
from .synthetic import MB


class Pair:
    """The daemon the guest leaves and the one it arrives in."""

    def __init__(self, folder: Path, threads: int = 3, rate: int = 100, huge: bool = False, preempt: bool = False,
                 sizes: str = "working-set=24M"):
        self.folder = folder
        self.log = folder / "guest.log"
        what = f"synthetic,ram=64M,{sizes},dirty-rate={rate * MB},threads={threads},log={self.log}"
        if huge:
            what += ",page-size=2M"
        self.source = Migrationd(folder, "source", machine=what)
        self.target = Migrationd(folder, "target", machine=what, incoming=["defer"])
        self.preempt = preempt

    def __enter__(self):
        for host in (self.source, self.target):
            host.__enter__()
            host.capabilities("postcopy-ram", postcopy_preempt=self.preempt)
        self.source.wait(lambda: self.log.exists() and self.log.stat().st_size > 0, 20, "the guest's first tick")
        return self

    def __exit__(self, *args):
        for host in (self.source, self.target):
            host.__exit__(*args)

    def leave(self, after: int = 0, precopy: int = 20 << 20) -> None:
        """Starts, and switches to postcopy at once or after so many bytes."""
        self.source.parameters(max_bandwidth=precopy)
        uri = f"unix:{self.folder}/move.sock"
        self.target.incoming(uri)
        self.source.migrate(uri)
        if after:
            self.source.wait(lambda: self.source.query_migrate().get("ram", {}).get("transferred", 0) > after, 30,
                             "some precopy")
        self.source.qmp.execute("migrate-start-postcopy")

    def both(self, status: str) -> None:
        for host in (self.source, self.target):
            host.wait_status(status)

    def arrived(self) -> None:
        self.both("completed")
        assert self.target.run_state() == "running" and self.source.run_state() == "postmigrate"
        assert self.target.verify_machine() > 0
        assert check_one_copy(self.log) == 2


def move(folder: Path, after: int = 0, limit: int = 0, **options) -> None:
    with Pair(folder, **options) as pair:
        if limit:
            pair.source.parameters(max_postcopy_bandwidth=limit)
        pair.leave(after)
        pair.arrived()


for _threads in (1, 2, 4, 8):
    cases.add(f"postcopy-pair/at-once/{_threads}", lambda folder, threads=_threads: move(folder, threads=threads),
              timeout=90, quick=_threads == 4)
for _name, _options in {"after-a-part": {"after": 20 << 20}, "64-mib-per-s": {"limit": 64 << 20},
                        "preempt": {"preempt": True}, "preempt-limited": {"preempt": True, "limit": 16 << 20},
                        "huge-pages": {"huge": True}, "huge-pages-preempt": {"huge": True, "preempt": True}}.items():
    cases.add(f"postcopy-pair/{_name}", lambda folder, options=_options: move(folder, **options), timeout=90,
              quick=_name == "preempt")


def grows(folder: Path, preempt: bool) -> None:
    """An instant resume of a guest that goes on touching memory it never had: such pages are left out of the stream and
    asked for to the last moment, also when the destination has closed the preempt channel and not yet said its word."""
    with Pair(folder, threads=4, rate=400, preempt=preempt, sizes="working-set=60M,touched=4M") as pair:
        pair.source.capabilities("__org.migrationd_instant-resume")
        pair.leave()
        pair.arrived()


for _preempt in (False, True):
    cases.add(f"postcopy-pair/touches-new-memory-to-the-end/{'preempt' if _preempt else 'one-channel'}",
              lambda folder, preempt=_preempt: grows(folder, preempt), quick=_preempt)


def asked_for_late(folder: Path, preempt: bool) -> None:
    """migrate-start-postcopy once the machine stands still already: it goes by postcopy all the same, at once."""
    with Pair(folder, rate=2, preempt=preempt) as pair:
        pair.source.capabilities(pause_before_switchover=True)
        uri = f"unix:{folder}/move.sock"
        pair.target.incoming(uri)
        pair.source.migrate(uri)
        pair.source.wait_status("pre-switchover")
        pair.source.qmp.execute("migrate-start-postcopy")
        pair.source.qmp.execute("migrate-continue", {"state": "pre-switchover"})
        pair.arrived()
        pair.target.qmp.poll_events()
        assert "postcopy-active" in pair.target.qmp.event_names(), pair.target.qmp.event_names()


for _preempt in (False, True):
    cases.add(f"postcopy-pair/asked-for-when-it-stands-still/{'preempt' if _preempt else 'one-channel'}",
              lambda folder, preempt=_preempt: asked_for_late(folder, preempt), quick=_preempt)


def broken(folder: Path, breaks: int, seed: int = 3, **options) -> None:
    """Broken again and again by either side at a random moment, and taken up over another address."""
    chance = random.Random(seed)
    # Slow in every way, or it is over before it was broken often enough: requests are not limited by the rate.
    with Pair(folder, rate=2, **options) as pair:
        pair.source.parameters(max_postcopy_bandwidth=1 << 20)
        pair.leave()
        for number in range(breaks):
            pair.both("postcopy-active")
            time.sleep(chance.uniform(0, 0.3))
            chance.choice((pair.source, pair.target)).qmp.execute("migrate-pause")
            pair.both("postcopy-paused")
            uri = f"unix:{folder}/again-{number}.sock"
            pair.target.qmp.execute("migrate-recover", {"uri": uri})
            pair.source.migrate(uri, resume=True)
        pair.both("postcopy-active")
        pair.source.parameters(max_postcopy_bandwidth=0)
        pair.arrived()


cases.add("postcopy-pair/recover/one-channel", lambda folder: broken(folder, 8), timeout=120, quick=True)
cases.add("postcopy-pair/recover/preempt", lambda folder: broken(folder, 6, preempt=True), timeout=120)
cases.add("postcopy-pair/recover/huge-pages", lambda folder: broken(folder, 4, huge=True), timeout=120)


def killed(folder: Path, victim: str) -> None:
    """`kill -9` of either side while the guest waits for pages: nothing runs twice, and nothing runs on zeros."""
    for number in range(4):
        place = folder / str(number)
        place.mkdir()
        with Pair(place, rate=2) as pair:
            pair.source.parameters(max_postcopy_bandwidth=1 << 20)
            pair.leave()
            pair.both("postcopy-active")
            time.sleep(0.05 * number)
            dead, left = (pair.source, pair.target) if victim == "source" else (pair.target, pair.source)
            dead.child.kill()
            left.wait_status("postcopy-paused")
            time.sleep(0.3)
            if victim == "target":
                assert pair.source.run_state() == "finish-migrate", pair.source.run_state()
            assert check_one_copy(pair.log) <= 2


for _victim in ("source", "target"):
    cases.add(f"postcopy-pair/killed/{_victim}", lambda folder, victim=_victim: killed(folder, victim), timeout=120,
              quick=_victim == "source")
