# SPDX-License-Identifier: Apache-2.0
"""Things done at the wrong moment: cancels in every phase and by two clients at once, quits, commands of one migration
during another, and a machine that has no more of something to give. What may be left over afterwards is in leftover.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator

from ..lib import cases, procfs, streams
from ..lib.daemon import Migrationd
from ..lib.process import wait_until
from ..lib.qmp import Qmp, QmpError, QmpGone, QmpTimeout
from ..lib.streams import PAGE, Stream
from .faults import small_disk
from .kill import drained, read_to_last_byte
from .synthetic import MB, machine

WHAT = machine(20, ram="16M", working_set="8M")
WITHIN = 4.0    # seconds in which a cancel is done, whatever the other side does; what the daemon waits for is longer
ENDS = ("failed", "cancelled", "completed", "none")


def _ended(host: Migrationd, timeout: float = 10.0) -> str:
    return host.wait(lambda: (status := host.status()) in ENDS and status, timeout, "an end")


def _proves_itself(host: Migrationd, folder: Path, name: str = "proof") -> None:
    """The guest runs here, is whole, and can go."""
    assert host.run_state() == "running" and host.owner() == "here", (host.run_state(), host.machine())
    host.capabilities(return_path=False)
    host.parameters(max_bandwidth=1 << 40)
    with Migrationd(folder, name, machine=WHAT, incoming=["defer"]) as there:
        there.incoming(f"unix:{folder}/{name}.mig")
        host.migrate(f"unix:{folder}/{name}.mig")
        host.wait_status("completed")
        there.wait_status("completed")
        there.verify_machine()


def _cancel_twice(host: Migrationd) -> None:
    """Two clients at the same moment; both get their answer, and the cancel is done in time."""
    with contextlib.closing(Qmp(host.qmp_path)) as other:
        other.send({"execute": "migrate_cancel", "id": 1})
        host.qmp.execute("migrate_cancel")
        assert other.reply().get("return") == {}
    started = time.monotonic()
    _ended(host)
    assert time.monotonic() - started < WITHIN, f"the cancel took {time.monotonic() - started:.1f} s"


# Cancels ---------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def _black_hole(folder: Path, family: str) -> Iterator[str]:
    """An address whose connects are neither taken nor refused: its queue is full."""
    with contextlib.ExitStack() as stack:
        if family == "tcp":
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            uri = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        else:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{folder}/hole")
            uri = f"unix:{folder}/hole"
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket(listener.family))
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        time.sleep(0.1)
        yield uri


def _cancel_connect(folder: Path, family: str) -> None:
    with _black_hole(folder, family) as uri, Migrationd(folder, "host", machine=WHAT) as host:
        host.run_state()
        before = procfs.open_descriptors(host.pid)
        for _ in range(3):
            host.migrate(uri)
            time.sleep(0.2)
            assert host.status() == "setup", host.query_migrate()
            _cancel_twice(host)
            assert host.status() == "cancelled", host.query_migrate()
        assert procfs.open_descriptors(host.pid) == before, procfs.open_names(host.pid)
        _proves_itself(host, folder)


for _family in ("tcp", "unix"):
    cases.add(f"trouble/cancel/in-a-connect-nobody-answers/{_family}",
              lambda folder, family=_family: _cancel_connect(folder, family), quick=_family == "tcp")


def _with_peer(folder: Path, host: Migrationd, behave: Callable[[socket.socket], None],
               then: Callable[[], None]) -> None:
    """Migrates to a peer of ours that behaves so; `then` runs when it has, the connection still open."""
    path = f"{folder}/peer{random.getrandbits(32):x}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(10)
        host.migrate(f"unix:{path}")
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            behave(connection)
            then()


def _answer(host: Migrationd, command: str, arguments: dict | None) -> str:
    """The refusal, or that there was none."""
    try:
        host.qmp.execute(command, arguments)
    except QmpError as error:
        return error.desc
    return f"{command} was accepted"


@cases.case("trouble/cancel/no-other-migration-meanwhile", quick=True)
def migrate_during_cancel(folder: Path) -> None:
    """A cancel that takes its time, because a command ignores SIGTERM: until it is done nothing else begins."""
    asked = (("migrate", {"uri": "tcp:127.0.0.1:1"}), ("__org.migrationd_verify-machine", None),
             ("migrate-set-capabilities", {"capabilities": [{"capability": "return-path", "state": True}]}))
    with Migrationd(folder, "host", machine=WHAT) as host:
        for attempt in range(10):
            ready = folder / f"ready{attempt}"
            host.migrate(f"exec:trap '' TERM; touch {ready}; sleep 1000")
            host.wait(lambda ready=ready: ready.exists() and host.status() == "active", what="the command to ignore it")
            host.qmp.execute("migrate_cancel")
            answers = [_answer(host, command, arguments) for command, arguments in asked]
            # The cancel takes a second; a busy machine may need more than that to ask all this.
            if host.status() == "cancelling":
                break
            _ended(host)
            host.capabilities(return_path=False)
        else:
            raise AssertionError("the cancel never took long enough to ask anything")
        assert answers == ["There's a migration process in progress"] * len(asked), answers
        host.qmp.execute("migrate_cancel")
        assert _ended(host) == "cancelled", host.query_migrate()
        assert not procfs.children(host.pid)
        _proves_itself(host, folder)


@cases.case("trouble/cancel/after-the-last-byte", quick=True)
def cancel_after_last_byte(folder: Path) -> None:
    """The peer has it all and says nothing: a cancel cannot take it back, so the machine is nobody's until `cont`."""
    with Migrationd(folder, "host", machine=WHAT) as host:
        host.capabilities("return-path")

        def then() -> None:
            assert host.status() == "device", host.query_migrate()
            _cancel_twice(host)
        _with_peer(folder, host, read_to_last_byte, then)
        answer = host.query_migrate()
        assert answer["status"] == "failed" and "outcome unknown" in answer["error-desc"], answer
        assert host.owner() == "unknown" and host.run_state() == "paused"
        for uri in (f"file:{folder}/no", "tcp:127.0.0.1:1"):
            try:
                host.migrate(uri)
            except QmpError as error:
                assert "unknown" in error.desc, error.desc
            else:
                raise AssertionError("it was handed on although the peer may run it")
        assert not os.path.exists(f"{folder}/no")
        host.qmp.execute("cont")
        host.verify_machine()
        host.capabilities(return_path=False)
        _proves_itself(host, folder)


@cases.case("trouble/last-byte/in-a-description-larger-than-any-buffer", quick=True)
def eof_then_gone(folder: Path) -> None:
    """The end mark was taken, the description behind it was not: the peer may run the machine, so nobody else does."""
    long_name = "n" * 250
    fields = [{"name": long_name, "type": "uint8", "size": 0} for _ in range(30000)]
    described = streams.description_of([{**streams.PROBE_JSON, "fields": streams.PROBE_JSON["fields"] + fields},
                                        streams.GLOBAL_JSON])
    devices = streams.device(7, "probe", 1, b"\1\2\3\4") + streams.device(9, "globalstate", 1,
                                                                          streams.global_state("running"))
    data = replace(Stream(), devices=devices, description=described).bytes()
    assert len(described) > 8 << 20
    with Migrationd(folder, "host") as host:
        host.incoming(f"unix:{folder}/in")
        with socket.socket(socket.AF_UNIX) as source:
            source.connect(f"{folder}/in")
            source.sendall(data)
        host.wait_status("completed")
        assert host.run_state() == "running"
        host.capabilities("return-path")

        def behave(connection: socket.socket) -> None:
            seen = b""
            mark = devices[-5:] + b"\0\6"
            while mark not in seen:
                seen = seen[-200:] + connection.recv(1 << 16)
        _with_peer(folder, host, behave, lambda: None)
        wait_until(lambda: host.status() == "failed", WITHIN, "the failure")
        assert host.owner() == "unknown" and host.run_state() != "running", (host.machine(), host.run_state())
        assert "outcome unknown" in host.query_migrate()["error-desc"], host.query_migrate()


@cases.case("trouble/pre-switchover/a-destination-that-goes-is-noticed", quick=True)
def gone_in_pre_switchover(folder: Path) -> None:
    """Nothing is written while the word is awaited; the end of the return path tells, and the guest runs again."""
    with Migrationd(folder, "host", machine=WHAT) as host:
        host.capabilities("return-path", "pause-before-switchover")

        def behave(connection: socket.socket) -> None:
            while True:     # reads until the word is awaited
                with contextlib.suppress(TimeoutError):
                    connection.settimeout(0.05)
                    connection.recv(1 << 20)
                    continue
                if host.status() == "pre-switchover":
                    return
        _with_peer(folder, host, behave, lambda: None)
        wait_until(lambda: host.status() == "failed", WITHIN, "the loss to be noticed")
        host.qmp.wait_event("RESUME")
        host.capabilities(pause_before_switchover=False)
        _proves_itself(host, folder)


@cases.case("trouble/pre-switchover/stop-is-kept-through-a-cancel", quick=True)
def stop_in_pre_switchover(folder: Path) -> None:
    """The user stopped the guest while it stood still for the switchover: a cancel does not make it run."""
    with Migrationd(folder, "host", machine=WHAT) as host:
        host.capabilities("return-path", "pause-before-switchover")

        def behave(connection: socket.socket) -> None:
            with drained(connection):
                host.wait_status("pre-switchover")

        def then() -> None:
            host.qmp.execute("stop")
            _cancel_twice(host)
        _with_peer(folder, host, behave, then)
        assert host.status() == "cancelled" and host.run_state() == "paused" and host.owner() == "here"
        host.qmp.execute("cont")
        host.capabilities(pause_before_switchover=False)
        _proves_itself(host, folder)


@cases.case("trouble/a-peer-that-refuses-and-reads-no-more", quick=True)
def refuses_and_stalls(folder: Path) -> None:
    """It says that it failed, keeps the connection and reads nothing: the source ends by itself."""
    with Migrationd(folder, "host", machine=machine(0, ram="64M", working_set="64M")) as host:
        host.capabilities("return-path")
        time.sleep(0.2)

        def behave(connection: socket.socket) -> None:
            connection.recv(1 << 16)
            time.sleep(0.3)     # the socket is full by then
            connection.sendall(struct.pack(">HHI", 1, 4, 1))
        _with_peer(folder, host, behave,
                   lambda: wait_until(lambda: host.status() == "failed", WITHIN, "the refusal to be heard"))
        assert host.query_migrate()["error-desc"] == "Sibling indicated error 1", host.query_migrate()
        assert host.run_state() == "running" and host.owner() == "here"


@cases.case("trouble/a-peer-that-reads-no-more-and-says-why-later", quick=True)
def says_why_later(folder: Path) -> None:
    """The write fails first, and its reason comes a moment later: as when another thread is to read it, and is late."""
    with Migrationd(folder, "host", machine=machine(0, ram="64M", working_set="64M")) as host:
        host.capabilities("return-path")

        def behave(connection: socket.socket) -> None:
            connection.recv(1 << 16)
            connection.shutdown(socket.SHUT_RD)     # writes to it fail from now on
            time.sleep(0.6)
            connection.sendall(struct.pack(">HHI", 1, 4, 1))
        _with_peer(folder, host, behave,
                   lambda: wait_until(lambda: host.status() == "failed", what="the refusal to be heard"))
        assert host.query_migrate()["error-desc"] == "Sibling indicated error 1", host.query_migrate()
        assert host.run_state() == "running" and host.owner() == "here"


@cases.case("trouble/a-peer-that-takes-it-too-early-and-reads-no-more", quick=True)
def accepts_too_early(folder: Path) -> None:
    """Success before the end cannot be true: the source keeps its machine, and is not held by a write nobody reads."""
    with Migrationd(folder, "host", machine=machine(0, ram="64M", working_set="64M")) as host:
        host.capabilities("return-path")
        time.sleep(0.2)

        def behave(connection: socket.socket) -> None:
            connection.recv(1 << 16)
            time.sleep(0.3)
            connection.sendall(struct.pack(">HHI", 1, 4, 0))
        _with_peer(folder, host, behave,
                   lambda: wait_until(lambda: host.status() == "failed", WITHIN, "the answer to be heard"))
        assert "before the end of the stream" in host.query_migrate()["error-desc"], host.query_migrate()
        assert host.run_state() == "running" and host.owner() == "here"


@cases.case("trouble/a-header-and-then-silence", quick=True)
def only_a_header(folder: Path) -> None:
    """It passes for a source and sends nothing more: it does not keep the one place there is."""
    with Migrationd(folder, "host") as host:
        host.incoming(f"unix:{folder}/in")
        with socket.socket(socket.AF_UNIX) as source:
            source.connect(f"{folder}/in")
            source.sendall(streams.header())
            host.wait(lambda: host.status() == "failed", 20, "the silence to be noticed")
        assert "nothing behind it" in host.query_migrate()["error-desc"], host.query_migrate()
        host.incoming(f"unix:{folder}/in2")


@cases.case("trouble/a-source-that-has-sent-all-and-is-gone", quick=True)
def sent_all_and_gone(folder: Path) -> None:
    """Its PING cannot be answered any more when a busy destination comes to it. The machine is whole, and nowhere else."""
    with Migrationd(folder, "host") as host:
        host.incoming(f"unix:{folder}/in")
        with socket.socket(socket.AF_UNIX) as source:
            source.connect(f"{folder}/in")
            host.signal(signal.SIGSTOP)
            source.sendall(replace(Stream(), commands=streams.OPEN_RETURN_PATH + streams.PING).bytes())
        host.signal(signal.SIGCONT)
        host.wait_status("completed")
        assert host.owner() == "here", host.machine()


def _pages(count: int) -> Stream:
    records = [streams.full_page(n * PAGE, os.urandom(PAGE), "pc.ram" if n == 0 else None) for n in range(count)]
    return replace(Stream(), start=streams.ram_start([("pc.ram", 1 << 30), ("pc.bios", PAGE)]),
                   parts=streams.ram_part(b"".join(records)))


@cases.case("trouble/a-source-is-told-of-a-cancel", quick=True)
def cancel_is_told(folder: Path) -> None:
    """Cancelled at the destination, whatever was sent by then: the source is told that nobody has its machine."""
    whole = replace(_pages(16), commands=streams.OPEN_RETURN_PATH).bytes()
    for sent in (whole[:-1], whole[:len(whole) // 2]):
        with Migrationd(folder, "host") as host:
            host.incoming(f"unix:{folder}/in")
            with socket.socket(socket.AF_UNIX) as source:
                source.settimeout(20)
                source.connect(f"{folder}/in")
                source.sendall(sent)
                host.wait_status("active")
                time.sleep(0.2)
                host.qmp.execute("migrate_cancel")
                assert source.recv(100) == struct.pack(">HHI", 1, 4, 1)


# The machine underneath ------------------------------------------------------------------------------------------------

@cases.case("trouble/port-scan-that-takes-all-descriptors", quick=True)
def scan_takes_descriptors(folder: Path) -> None:
    """More connections than it may have descriptors, none of which says a word: it waits on without spinning."""
    with Migrationd(folder, "host", limits={resource.RLIMIT_NOFILE: 22}) as host:
        host.incoming("tcp:127.0.0.1:0")
        port = host.listening_port()
        probes = [socket.socket() for _ in range(60)]
        for probe in probes:
            probe.setblocking(False)
            probe.connect_ex(("127.0.0.1", port))
        used = procfs.cpu_seconds(host.pid)
        time.sleep(1)
        assert procfs.cpu_seconds(host.pid) - used < 0.4, "it spins"
        assert host.status() == "setup", host.query_migrate()
        for probe in probes:
            probe.close()
        with socket.create_connection(("127.0.0.1", port), 20) as source:
            source.sendall(Stream().bytes())
            source.shutdown(socket.SHUT_WR)
            host.wait_status("completed", timeout=10)


@cases.case("trouble/no-thread-to-be-had", quick=True)
def no_threads(folder: Path) -> None:
    """No address space for another thread's stack: the command is refused, the daemon lives and takes the next."""
    with Migrationd(folder, "target") as target:   # has had no thread yet, so none of their stacks to use again
        target.run_state()
        before = procfs.open_descriptors(target.pid)
        limit = procfs.status_bytes(target.pid, "VmSize") + (2 << 20)
        old = resource.prlimit(target.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        try:
            target.incoming(f"unix:{folder}/in")
        except QmpError as error:
            assert "start the mover: Resource temporarily unavailable" in error.desc, error.desc
        else:
            raise AssertionError("a thread was started where none could be: the case shows nothing")
        assert target.status() == "failed" and target.run_state() == "inmigrate", target.query_migrate()
        assert procfs.open_descriptors(target.pid) == before, procfs.open_names(target.pid)
        resource.prlimit(target.pid, resource.RLIMIT_AS, old)
        target.incoming(f"unix:{folder}/in")
        with socket.socket(socket.AF_UNIX) as source:
            source.connect(f"{folder}/in")
            source.sendall(Stream().bytes())
        target.wait_status("completed")


@cases.case("trouble/disk-full-in-the-last-pass", quick=True)
def disk_full_at_the_end(folder: Path) -> None:
    """The disk is full when the stopped guest's last pass comes: it runs on here, though it stood still already."""
    what = machine(400, ram="32M", working_set="32M")
    with small_disk(folder, "96m") as mount, Migrationd(folder, "host", machine=what) as host:
        host.capabilities("pause-before-switchover")
        host.parameters(downtime_limit=20000)
        time.sleep(0.3)
        host.migrate(f"file:{mount}/saved")
        host.wait_status("pre-switchover")
        with contextlib.suppress(OSError), open(mount / "ballast", "wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(1 << 16))
        host.qmp.execute("migrate-continue", {"state": "pre-switchover"})
        assert _ended(host, 20) == "failed", host.query_migrate()
        assert "No space left on device" in host.query_migrate()["error-desc"], host.query_migrate()
        assert host.run_state() == "running" and host.owner() == "here"
        assert host.qmp.event_names().index("RESUME") > host.qmp.event_names().index("STOP"), host.qmp.event_names()
        (mount / "ballast").unlink()
        host.capabilities(pause_before_switchover=False)
        host.migrate(f"file:{folder}/saved")
        host.wait_status("completed")


def _quit(folder: Path, when: str) -> None:
    """`quit` is answered, announced and obeyed at once, and the other side keeps the machine or is told."""
    with Migrationd(folder, "source", machine=WHAT) as source, \
         Migrationd(folder, "target", machine=WHAT, incoming=["defer"]) as target:
        source.parameters(max_bandwidth=4 * MB)
        for host in (source, target):
            host.capabilities("return-path")
        target.incoming("tcp:127.0.0.1:0")
        if when != "listening":
            source.migrate(f"tcp:127.0.0.1:{target.listening_port()}")
            target.wait_status("active")
        victim = source if when == "sending" else target
        assert victim.qmp.execute("quit") == {}
        event = victim.qmp.wait_event("SHUTDOWN")
        assert event["data"]["reason"] == "host-qmp-quit", event
        assert victim.wait_exit() == 0, victim.output()[-300:]
        if when == "sending":
            target.wait(lambda: target.status() == "failed", WITHIN, "the destination to notice")
            assert target.owner() == "none" and target.run_state() == "inmigrate"
        elif when == "receiving":
            source.wait(lambda: source.status() == "failed", WITHIN, "the source to notice")
            _proves_itself(source, folder)


for _when in ("sending", "receiving", "listening"):
    cases.add(f"trouble/quit-while-{_when}", lambda folder, when=_when: _quit(folder, when), quick=_when == "sending")


# Anything at any time --------------------------------------------------------------------------------------------------

def _words(dice: random.Random, folder: Path, number: int) -> tuple[str, dict | None]:
    """A command that a confused client might send now."""
    target = dice.choice((f"file:{folder}/monkey{number % 3}", "exec:cat > /dev/null", "exec:sleep 0.05", "exec:exit 1",
                          f"unix:{folder}/nobody", f"unix:{folder}/monkeys", "tcp:127.0.0.1:1", "fd:nobody"))
    return dice.choice((
        ("migrate", {"uri": target}), ("migrate", {"uri": target}), ("migrate_cancel", None), ("migrate_cancel", None),
        ("cont", None), ("stop", None), ("query-migrate", None), ("query-status", None),
        ("migrate-continue", {"state": "pre-switchover"}), ("migrate-continue", {"state": "device"}),
        ("migrate-incoming", {"uri": f"unix:{folder}/in{number}"}), ("migrate-pause", None),
        ("migrate-start-postcopy", None), ("migrate-recover", {"uri": "tcp:127.0.0.1:1"}),
        ("yank", {"instances": [{"type": "migration"}]}), ("query-yank", None),
        ("__org.migrationd_query-machine", None), ("__org.migrationd_verify-machine", None),
        ("calc-dirty-rate", {"calc-time": 1}), ("query-dirty-rate", None),
        ("migrate-set-capabilities", {"capabilities": [{"capability": dice.choice(
            ("return-path", "pause-before-switchover", "auto-converge", "events")), "state": dice.random() < 0.5}]}),
        ("migrate-set-parameters", {"max-bandwidth": dice.choice((1 << 40, 50 * MB)),
                                    "downtime-limit": dice.choice((1, 300, 5000))})))


def _monkey(folder: Path, host: Migrationd, seed: int, until: float, failures: list[str]) -> None:
    dice = random.Random(seed)
    number = 0
    client = Qmp(host.qmp_path)
    with contextlib.closing(client):
        while time.monotonic() < until and not failures:
            number += 1
            command, arguments = _words(dice, folder, number)
            try:
                client.execute(command, arguments)
            except QmpError:
                pass    # refused, which is an answer
            except (QmpGone, QmpTimeout) as error:
                failures.append(f"seed {seed}, command {number} {command} {arguments}: {error}")
            time.sleep(dice.choice((0, 0, 0.005, 0.05)))


def _monkeys(folder: Path, seed: int, seconds: float) -> None:
    """Three clients send anything at any time. The daemon answers each, and the guest is whole afterwards."""
    failures: list[str] = []
    with Migrationd(folder, "host", machine=WHAT) as host, socket.socket(socket.AF_UNIX) as sink:
        host.run_state()
        before = procfs.open_descriptors(host.pid)
        sink.bind(f"{folder}/monkeys")
        sink.listen()
        sink.settimeout(0.1)
        until = time.monotonic() + seconds
        clients = [threading.Thread(target=_monkey, args=(folder, host, seed * 10 + n, until, failures))
                   for n in range(3)]
        for client in clients:
            client.start()
        dice = random.Random(seed)
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                connection, _ = sink.accept()
                with connection:
                    connection.settimeout(dice.choice((0.01, 0.2)))
                    while connection.recv(1 << 20):
                        pass
        for client in clients:
            client.join()
        assert not failures, failures
        assert host.alive(), host.output()[-500:]
        host.qmp.execute("migrate_cancel")
        host.wait(lambda: host.status() in ENDS, what="the last migration to end")
        host.wait(lambda: procfs.open_descriptors(host.pid) == before, what="all descriptors to be given back")
        assert not procfs.children(host.pid)
        host.wait(lambda: _said_cont(host), what="the guest to run")
        host.capabilities(return_path=False, pause_before_switchover=False, auto_converge=False)
        host.parameters(downtime_limit=300)
        _proves_itself(host, folder)


def _said_cont(host: Migrationd) -> bool:
    with contextlib.suppress(QmpError):
        host.qmp.execute("cont")
    return host.run_state() == "running"


for _seed in range(6):
    cases.add(f"trouble/three-confused-clients/{_seed}", lambda folder, seed=_seed: _monkeys(folder, seed, 8),
              timeout=60, quick=_seed == 0)
