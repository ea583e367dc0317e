# SPDX-License-Identifier: Apache-2.0
"""What may be left over when something ended oddly: no descriptor, no memory, no child process, no socket path. And
inputs that are no streams.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from pathlib import Path

from ..lib import cases, procfs
from ..lib.daemon import Migrationd
from ..lib.process import wait_until
from ..lib.qmp import QmpError
from ..lib.streams import Stream
from .synthetic import machine
from .trouble import _ended, _cancel_twice, _proves_itself, _pages, WHAT, WITHIN


def _incoming_again(folder: Path, what: str | None) -> None:
    """Attempts that fail, are cancelled or are yanked in each phase leave no descriptor, memory or socket path."""
    data = _pages(2048).bytes()[:-3000]
    dice = random.Random(5)
    with Migrationd(folder, "host", machine=what, incoming=["defer"] if what else None) as host:
        host.run_state()
        before, memory = procfs.open_names(host.pid), procfs.memfd_bytes(host.pid)
        for number in range(30):
            path = folder / f"in{number}"
            host.incoming(f"unix:{path}")
            word = ("close", "migrate_cancel", "yank", "reset")[number % 4]
            sent = dice.choice((0, 3, 8, 60, len(data) // 2, len(data)))
            with socket.socket(socket.AF_UNIX) as source:
                source.settimeout(20)
                source.connect(str(path))
                with contextlib.suppress(OSError):
                    source.sendall(data[:sent])
                if word == "migrate_cancel":
                    _cancel_twice(host)
                elif word == "yank":
                    with contextlib.suppress(QmpError):
                        host.qmp.execute("yank", {"instances": [{"type": "migration"}]})
            if word in ("close", "reset") and sent < 8:
                assert host.status() == "setup", host.query_migrate()   # a probe: it waits on
                host.qmp.execute("migrate_cancel")
            _ended(host)
            assert not path.exists(), "the socket's path stays"
        assert len(procfs.open_names(host.pid)) == len(before), (before, procfs.open_names(host.pid))
        if not what:
            assert procfs.memfd_bytes(host.pid) == memory == 0, procfs.memfd_bytes(host.pid)
        assert host.run_state() == "inmigrate" and host.owner() == "none"


cases.add("trouble/left-over/by-incoming-attempts/parked", lambda folder: _incoming_again(folder, None), quick=True)
cases.add("trouble/left-over/by-incoming-attempts/synthetic", lambda folder: _incoming_again(folder, WHAT))


@cases.case("trouble/left-over/by-commands", quick=True, timeout=90)
def commands(folder: Path) -> None:
    """exec: children that fail, hang, ignore SIGTERM, flood or fork are ended and waited for, out and in."""
    with Migrationd(folder, "host", machine=WHAT) as host, Migrationd(folder, "target") as target:
        for side in (host, target):
            side.run_state()
        before = [len(procfs.open_names(side.pid)) for side in (host, target)]
        for command, cancelled in (("exit 3", False), ("exec sleep 1000", True), ("trap '' TERM; sleep 1000", True),
                                   ("sleep 1000 & sleep 1000", True), ("exec yes", True),
                                   ("exec head -c 100000 > /dev/null", False), ("kill -9 $$", False),
                                   ("exec /nonexistent", False)):
            for side, start in ((host, host.migrate), (target, target.incoming)):
                if side is target and command.startswith(("exec yes", "exec head")):
                    continue
                start(f"exec:{command}")
                time.sleep(0.2)
                if cancelled:
                    side.qmp.execute("migrate_cancel")
                assert _ended(side) in ("failed", "cancelled"), (command, side.query_migrate())
                wait_until(lambda: not procfs.children(side.pid), what=f"{command}: no child left")
        with contextlib.suppress(QmpError):
            host.qmp.execute("migrate", {"channels": [{"channel-type": "main", "addr": {
                "transport": "exec", "args": ["/nonexistent/program"]}}]})
        assert _ended(host) == "failed"
        host.migrate("exec:cat > /dev/null")
        assert _ended(host) == "completed"
        assert not procfs.children(host.pid)
        after = [len(procfs.open_names(side.pid)) for side in (host, target)]
        assert after == before, [procfs.open_names(side.pid) for side in (host, target)]


@cases.case("trouble/left-over/by-named-descriptors", quick=True)
def named_descriptors(folder: Path) -> None:
    """What getfd passed is closed when its migration fails, also one that could not begin."""
    def hand(host: Migrationd, fd: int) -> None:
        host.qmp.execute("getfd", {"fdname": "it"}, fds=[fd])
        os.close(fd)

    def closed_pair() -> int:
        ours, theirs = socket.socketpair()
        ours.close()
        return theirs.detach()

    def listening() -> int:
        one = socket.socket()
        one.listen()
        return one.detach()

    def closed_pipe() -> int:
        reader, writer = os.pipe()
        os.close(reader)
        return writer

    with Migrationd(folder, "host", machine=WHAT) as host, Migrationd(folder, "target") as target:
        for side in (host, target):
            side.run_state()
        before = [len(procfs.open_names(side.pid)) for side in (host, target)]
        for make in (closed_pair, listening, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach(),
                     lambda: os.open(folder, os.O_RDONLY), lambda: os.eventfd(0),
                     lambda: os.open("/dev/full", os.O_RDWR), lambda: os.open("/dev/null", os.O_RDONLY), closed_pipe,
                     lambda: os.open(folder, os.O_PATH)):
            for side, start in ((host, host.migrate), (target, target.incoming)):
                hand(side, make())
                with contextlib.suppress(QmpError):
                    start("fd:it")
                assert _ended(side) in ("failed", "none"), side.query_migrate()
                side.run_state()
        after = [len(procfs.open_names(side.pid)) for side in (host, target)]
        assert after == before, [procfs.open_names(side.pid) for side in (host, target)]
        _proves_itself(host, folder)


@cases.case("trouble/incoming-from-files-that-are-none", quick=True)
def odd_files(folder: Path) -> None:
    """Cut, empty, too short for the offset, a folder, a FIFO, devices: refused at once, and the next attempt works."""
    data = Stream().bytes()
    (folder / "good").write_bytes(data)
    (folder / "cut").write_bytes(data[:-400 - len(Stream().description)])
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("not a machine\n" * 100)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to(folder / "loop")
    with Migrationd(folder, "host") as host:
        host.run_state()
        before = procfs.open_descriptors(host.pid)
        for name in ("cut", "empty", "text", "folder", "fifo", "loop", "missing", "good,offset=1",
                     f"good,offset={1 << 40}", f"good,offset={(1 << 63) - 1}"):
            started = time.monotonic()
            try:
                host.incoming(f"file:{folder / name}")
                assert _ended(host) == "failed", f"{name}: {host.query_migrate()}"
                assert host.query_migrate()["error-desc"], name
            except QmpError as error:
                assert error.desc, name
            assert time.monotonic() - started < WITHIN, name
            assert host.run_state() == "inmigrate" and host.owner() == "none", name
        for path in ("/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/"):
            with contextlib.suppress(QmpError):
                host.incoming(f"file:{path}")
            assert _ended(host) in ("failed", "none"), path
        assert procfs.open_descriptors(host.pid) == before, procfs.open_names(host.pid)
        host.incoming(f"file:{folder / 'good'}")
        host.wait_status("completed")
        assert host.owner() == "here"
