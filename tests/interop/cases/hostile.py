# SPDX-License-Identifier: Apache-2.0
"""Peers from bad_peers.py. After each of them the daemon answers QMP, names the error, and takes the next migration."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import replace
from pathlib import Path

from .. import bad_peers
from ..lib import cases, procfs, streams
from ..lib.daemon import Migrationd
from ..lib.host import Host
from ..lib.programs import Skip
from ..lib.streams import PAGE, Parsed, Stream
from .synthetic import machine

SMALL = replace(Stream(), end=streams.ram_part(streams.zero_page(3 * PAGE, "pc.ram"), streams.END))
ANSWER_WITHIN = 4.0         # seconds a QMP answer may take whatever the peer does; the machine may be busy with builds
NOTICE_WITHIN = 20.0
MEMORY_LIMIT = 1 << 30      # no stream here describes more than a few pages


class Target:
    """A daemon waiting for machines, tried again and again."""

    def __init__(self, host: Host, tcp: bool = False):
        self.host = host
        self.tcp = tcp
        self.count = 0
        self.address: str | int = ""

    def ready(self) -> None:
        """Listening: still, after a probe that was dropped, or again, after an attempt that failed."""
        if self.host.status() == "setup":
            return
        self.count += 1
        if self.tcp:
            self.host.incoming("tcp:127.0.0.1:0")
            self.address = self.host.listening_port()
        else:
            self.address = f"{self.host.folder}/in{self.count}"
            self.host.incoming(f"unix:{self.address}")

    def connect(self) -> socket.socket:
        if self.tcp:
            return socket.create_connection(("127.0.0.1", int(self.address)), 5)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(20)
        connection.connect(str(self.address))
        return connection

    def send(self, data: bytes) -> str:
        """Sends a whole stream and closes; returns the state it led to."""
        self.ready()
        with self.connect() as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
            except OSError:
                pass    # refused while we were still talking
        return self.settled()

    def settled(self) -> str:
        state = self.host.wait(lambda: self._end_state(), NOTICE_WITHIN, "the daemon to notice")
        self.alive()
        return state

    def _end_state(self) -> str | None:
        status = self.host.status()
        return status if status in ("failed", "completed", "setup") else None

    def alive(self) -> None:
        started = time.monotonic()
        answer = self.host.query_migrate()
        self.host.run_state()
        assert time.monotonic() - started < ANSWER_WITHIN, "QMP was slow to answer"
        if answer.get("status") == "failed":
            text = answer.get("error-desc", "")
            assert text, "a failure without a text"
            assert len(text) < 2000 and text.isprintable(), f"text not fit to be shown: {text[:300]!r}"

    def refuses(self, name: str, data: bytes) -> None:
        state = self.send(data)
        assert state in ("failed", "setup"), f"{name}: {state}"
        assert self.host.owner() == "none", f"{name}: a machine is here"

    def accepts_a_good_one(self, data: bytes | None = None) -> None:
        assert self.send(data or SMALL.bytes()) == "completed", self.host.query_migrate()


def _memory_is_bounded(host: Host) -> None:
    peak = procfs.status_bytes(host.pid, "VmHWM")
    assert peak < MEMORY_LIMIT, f"{peak >> 20} MiB were used"


@cases.case("hostile/headers-and-port-scans", quick=True)
def scans(folder: Path) -> None:
    """Port scans do not end the waiting, as they do with QEMU: the same port takes the real stream afterwards."""
    with Migrationd(folder, "target") as host:
        target = Target(host, tcp=True)
        target.ready()
        port = target.address
        for _ in range(50):
            target.connect().close()
        for name, data in bad_peers.headers():
            with target.connect() as connection:
                try:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)
                except OSError:
                    pass
            target.alive()
            assert host.status() == "setup", f"{name}: {host.query_migrate()}"
            reset = target.connect()
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reset.close()
        assert target.address == port and host.listening_port() == port
        target.accepts_a_good_one()
        assert procfs.open_descriptors(host.pid) < 64


def _kinds() -> list[str]:
    return sorted({name.split("/")[0] for name, _ in bad_peers.bad_streams()})


def _sections_are_as_sent(host: Migrationd, name: str) -> None:
    got = [(device["name"], device["size"]) for device in host.machine()["devices"]]
    size = bad_peers.DEVICE_SIZES.get(name, bad_peers.USUAL_DEVICE_SIZE)
    assert got == [("probe", size), ("globalstate", 104)], f"{name}: {got}"


def _one_kind(folder: Path, kind: str) -> None:
    host = Migrationd(folder, "target0")
    try:
        target = Target(host)
        assert host.status() == "none"  # up, and our connection made
        before = procfs.open_descriptors(host.pid)
        wrong: list[str] = []
        for number, (name, data) in enumerate(bad_peers.bad_streams()):
            if not name.startswith(kind + "/"):
                continue
            state = target.send(data)
            if state == "completed":
                if name not in bad_peers.TOLERATED:
                    wrong.append(name)
                _sections_are_as_sent(host, name)
                host.kill()     # it holds a machine now; a fresh one for the rest
                host = Migrationd(folder, f"target{number + 1}")
                target = Target(host)
        assert procfs.open_descriptors(host.pid) <= before, f"left open: {procfs.open_names(host.pid)}"
        target.accepts_a_good_one()
        _memory_is_bounded(host)
        assert not wrong, f"accepted: {', '.join(wrong)}"
    finally:
        host.__exit__()


for _kind in _kinds():
    cases.add(f"hostile/streams/{_kind}", lambda folder, kind=_kind: _one_kind(folder, kind), timeout=120, quick=True)


@cases.case("hostile/description-of-64-mib", timeout=180)
def huge(folder: Path) -> None:
    """Either taken or refused, but within bounds of memory and time, and QMP answers meanwhile."""
    for name, data in bad_peers.huge_descriptions():
        with Migrationd(folder, name) as host:
            target = Target(host)
            target.ready()
            with target.connect() as connection:
                try:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                deadline = time.monotonic() + 30
                while host.status() not in ("failed", "completed"):
                    target.alive()
                    assert time.monotonic() < deadline, f"{name}: not done in 30 s"
                    time.sleep(0.02)
            _memory_is_bounded(host)


@cases.case("hostile/qmp-document-of-64-mib")
def huge_qmp(folder: Path) -> None:
    """One client sends 64 MiB in one document; another is served meanwhile and afterwards."""
    with Migrationd(folder, "target") as host:
        assert host.status() == "none"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as rude:
            rude.settimeout(10)
            rude.connect(host.qmp_path)
            rude.recv(65536)
            try:
                rude.sendall(b'{"execute": "qmp_capabilities"}\n{"execute": "query-status", "arguments": {"x": "')
                for _ in range(64):
                    rude.sendall(b"a" * (1 << 20))
                    started = time.monotonic()
                    host.run_state()
                    assert time.monotonic() - started < ANSWER_WITHIN
                rude.sendall(b'"}}\n')
            except OSError:
                pass    # it may hang up on such a client
        host.run_state()
        _memory_is_bounded(host)


def _cut(folder: Path, stream: Stream, step: int) -> None:
    """The stream broken off before every byte. Only without its description it may count as whole, as with QEMU."""
    data = stream.bytes()
    whole = len(data) - len(stream.description)
    host = Migrationd(folder, "target0")
    try:
        target = Target(host)
        for length in range(0, len(data), step):
            state = target.send(data[:length])
            assert state in ("failed", "setup") or (state == "completed" and length == whole), \
                f"cut at {length} of {len(data)}: {state}"
            if state == "completed":
                host.kill()
                host = Migrationd(folder, f"target{length}")
                target = Target(host)
        target.accepts_a_good_one(data if not stream.commands else None)
    finally:
        host.__exit__()


cases.add("hostile/cut-at-every-byte", lambda folder: _cut(folder, SMALL, 1), timeout=300)
cases.add("hostile/cut-at-every-byte-with-return-path", lambda folder: _cut(
    folder, replace(SMALL, commands=streams.OPEN_RETURN_PATH + streams.PING), 1), timeout=300)
cases.add("hostile/cut-at-every-byte-of-a-page-stream", lambda folder: _cut(folder, Stream(), 7), timeout=300)
cases.add("hostile/cut-at-every-11th-byte", lambda folder: _cut(folder, SMALL, 11), timeout=120, quick=True)


@cases.case("hostile/a-failure-is-answered-on-the-return-path", quick=True)
def answers(folder: Path) -> None:
    """PONG to the ping, then SHUT with an error for a broken stream and SHUT 0 for a good one."""
    opening = streams.OPEN_RETURN_PATH + streams.PING
    pong = struct.pack(">HHI", 2, 4, 1)
    with Migrationd(folder, "target") as host:
        target = Target(host)
        for stream, outcome in ((replace(SMALL, commands=opening, parts=streams.ram_part(
                streams.zero_page(1 << 40, "pc.ram"))), 1), (replace(SMALL, commands=opening), 0)):
            target.ready()
            with target.connect() as connection:
                connection.sendall(stream.bytes())
                received = b""
                while len(received) < 16:       # the connection stays open on our side
                    data = connection.recv(64)
                    if not data:
                        break
                    received += data
            assert received == pong + struct.pack(">HHI", 1, 4, outcome), received
            target.settled()
        assert host.status() == "completed"


@cases.case("hostile/silent-peer", timeout=60)
def silent(folder: Path) -> None:
    """Somebody connects and says nothing: the daemon answers, and a real source gets in before long."""
    with Migrationd(folder, "target") as host:
        target = Target(host, tcp=True)
        target.ready()
        silent_ones = [target.connect() for _ in range(3)]
        started = time.monotonic()
        with target.connect() as real:
            real.sendall(SMALL.bytes())
            real.shutdown(socket.SHUT_WR)
            host.wait(lambda: target.alive() or host.status() == "completed", 45, "the real source to get in")
        assert time.monotonic() - started < 40
        for connection in silent_ones:
            connection.close()


@cases.case("hostile/peer-that-stalls-midway", quick=True)
def stalled_source(folder: Path) -> None:
    """QMP answers while a source stalls; when it goes, or on migrate_cancel, the daemon waits for the next."""
    with Migrationd(folder, "target") as host:
        target = Target(host)
        data = SMALL.bytes()
        for end_by in ("closing", "cancel"):
            target.ready()
            with target.connect() as connection:
                connection.sendall(data[:len(data) // 3])
                host.wait_status("active")
                for _ in range(10):
                    target.alive()
                    time.sleep(0.05)
                assert host.status() == "active"
                if end_by == "cancel":
                    host.qmp.execute("migrate_cancel")
                    host.wait(lambda: host.status() in ("failed", "cancelled"), NOTICE_WITHIN, "the cancel")
            host.wait(lambda: host.status() in ("failed", "cancelled"), NOTICE_WITHIN, end_by)
        target.accepts_a_good_one()


# A machine with devices of its own takes only its like --------------------------------------------------------------

def _recorded(folder: Path) -> bytes:
    """The stream of a small synthetic machine."""
    path = folder / "recorded"
    with Migrationd(folder, "recorder", machine=machine(0, ram="1M", working_set="1M"), paused=True) as host:
        host.migrate(f"file:{path}")
        host.wait_status("completed")
    return path.read_bytes()


@cases.case("hostile/other-machines-than-expected", quick=True)
def strangers(folder: Path) -> None:
    data = _recorded(folder)
    good = Parsed.read(data)
    assert good.bytes() == data
    name, size = good.blocks[0]
    others = good.blocks[1:]
    wrong = {
        "machine-name": replace(good, machine=b"pc-i440fx-7.2"),
        "machine-name-longer": replace(good, machine=good.machine + b"x"),
        "machine-name-empty": replace(good, machine=b""),
        "block-missing": replace(good, blocks=others + [("somebody-else", size)]),
        "block-twice": replace(good, blocks=[(name, size), (name, size)] + others),
        "block-larger": replace(good, blocks=[(name, size + PAGE)] + others),
        "block-smaller": replace(good, blocks=[(name, size - PAGE)] + others),
        "block-enormous": replace(good, blocks=[(name, 1 << 50)] + others),
        "block-not-ours-added": replace(good, blocks=good.blocks + [("stowaway", PAGE)]),
        "unknown-device": replace(good, rest=good.rest.replace(b"globalstate", b"globalstatX")),
        "qemus-stream": Stream(),
    }
    with Migrationd(folder, "target", machine=machine(0, ram="1M", working_set="1M"), incoming=["defer"]) as host:
        target = Target(host)
        for what, stream in wrong.items():
            assert target.send(stream.bytes()) == "failed", f"{what}: {host.query_migrate()}"
        target.accepts_a_good_one(data)
        host.verify_machine()


# Destinations that misbehave ------------------------------------------------------------------------------------------

def _bad_destination(folder: Path, behaviour: str) -> None:
    """The source fails, its guest runs on whole, and the next migration succeeds."""
    import threading
    what = machine(50, ram="32M", working_set="16M")
    act = bad_peers.BAD_DESTINATIONS[behaviour]
    path = folder / "bad"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, \
         Migrationd(folder, "source", machine=what) as source:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                try:
                    act(connection)
                except OSError:
                    pass
        server = threading.Thread(target=serve)
        server.start()
        source.capabilities("return-path")
        source.parameters(max_bandwidth=40_000_000)
        source.migrate(f"unix:{path}")
        source.wait(lambda: source.status() == "failed", NOTICE_WITHIN, "the source to fail")
        server.join(15)
        Target(source).alive()
        _still_whole(folder, source, what)


def _still_whole(folder: Path, source: Migrationd, what: str) -> None:
    assert source.run_state() == "running" and source.owner() == "here", (source.run_state(), source.owner())
    with Migrationd(folder, "good", machine=what, incoming=["defer"]) as destination:
        source.parameters(max_bandwidth=1 << 40)
        destination.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        source.wait_status("completed")
        destination.wait_status("completed")
        destination.verify_machine()


for _name in bad_peers.BAD_DESTINATIONS:
    cases.add(f"hostile/destination/{_name}", lambda folder, name=_name: _bad_destination(folder, name),
              quick=_name in ("closes-in-the-middle", "says-done-before-the-end", "sends-rubbish"))


@cases.case("hostile/destination/stalls", quick=True)
def stalled_destination(folder: Path) -> None:
    """Nobody reads: QMP answers, and migrate_cancel ends it at once."""
    what = machine(50, ram="32M", working_set="16M")
    path = folder / "bad"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, \
         Migrationd(folder, "source", machine=what) as source:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)
        source.migrate(f"unix:{path}")
        connection, _ = listener.accept()
        with connection:
            source.wait_status("active")
            time.sleep(0.3)
            for _ in range(10):
                Target(source).alive()
                time.sleep(0.02)
            source.qmp.execute("migrate_cancel")
            source.wait(lambda: source.status() == "cancelled", NOTICE_WITHIN, "the cancel")
        _still_whole(folder, source, what)


@cases.case("hostile/vsock-or-not")
def vsock_without_kernel(folder: Path) -> None:
    """Where the kernel has no loopback vsock, a migration there ends with an error, and the next address works."""
    from ..lib.links import Vsock
    try:
        Vsock.require_loopback()
    except Skip:
        with Migrationd(folder, "source", machine=machine(0, ram="1M", working_set="1M")) as source:
            source.migrate("vsock:1:9")
            source.qmp.execute("migrate_cancel")
            source.wait(lambda: source.status() in ("failed", "cancelled"), 20, "the vsock attempt to end")
            source.migrate(f"file:{folder / 'saved'}")
            source.wait_status("completed")
        return
    raise Skip("this kernel has loopback vsock; the matrix uses it")
