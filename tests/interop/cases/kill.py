# SPDX-License-Identifier: Apache-2.0
"""kill -9 of either side at any moment. A second later the other side is in the state that "Whose machine is it"
(docs/architecture.md) names, and never do two copies run.

  what the source had reached                                   the source is then
  before its last byte was written                              failed, machine here, as it was (running)
  last byte written, return path, no answer                     failed, machine unknown, stopped, says "outcome unknown"
  answered, or no return path and all written                   completed, machine moved, postmigrate
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..lib import cases, links, procfs
from ..lib.daemon import Migrationd
from ..lib.guest import Guest, last_number
from ..lib.host import Host
from ..lib.onecopy import check_one_copy
from ..lib.process import wait_until
from ..lib.qemu import Qemu
from .story import never_ran_twice
from .synthetic import MB, machine

WITHIN = 1.0    # seconds from the kill to the state
WHAT = machine(40, ram="48M", working_set="24M")


def _soon(side: Host, condition, what: str):
    """As wait_until, for a second in which the machine has time for `side` and for us: what both spent ready to run
    while others ran is not counted."""
    def starved() -> float:
        return procfs.queue_seconds(side.pid) + procfs.queue_seconds(os.getpid())
    begun, before = time.monotonic(), starved()
    state = wait_until(condition, 30, what)
    took, others = time.monotonic() - begun, starved() - before
    assert took - others < WITHIN, f"{what}: after {took:.2f} s, {others:.2f} s of them other processes'"
    return state


def _source_state(source: Migrationd, return_path: bool) -> str | None:
    """The row of the table the source is in; None while it is in none."""
    answer = source.query_migrate()
    seen = (answer.get("status"), source.run_state(), source.owner())
    if seen == ("failed", "running", "here"):
        return "runs on"
    if return_path and seen[0] == "failed" and seen[1] != "running" and seen[2] == "unknown" \
            and "outcome unknown" in answer.get("error-desc", ""):
        return "unknown"
    if seen == ("completed", "postmigrate", "moved"):
        return "moved"
    return None


def _destination_state(destination: Migrationd) -> str | None:
    seen = (destination.status(), destination.run_state(), destination.owner())
    if seen[0] in ("failed", "setup") and seen[1] == "inmigrate" and seen[2] == "none":
        return "nothing here"
    if seen == ("completed", "running", "here"):
        return "runs here"
    return None


def _describe(host: Migrationd) -> str:
    return f"{host.query_migrate()} {host.run_state()} {host.owner()}"


def _pair(folder: Path, tag: str, return_path: bool, bandwidth: int = 60 * MB,
          channels: int = 0) -> tuple[Migrationd, Migrationd]:
    what = f"{WHAT},log={folder}/ticks{tag}"
    source = Migrationd(folder, f"source{tag}", machine=what)
    destination = Migrationd(folder, f"target{tag}", machine=what, incoming=["defer"])
    for host in (source, destination):
        host.capabilities(return_path=return_path, multifd=channels > 0)
        if channels:
            host.parameters(multifd_channels=channels)
    source.parameters(max_bandwidth=bandwidth)
    destination.incoming("tcp:127.0.0.1:0")
    return source, destination


def _judge_after_kill(source: Migrationd, destination: Migrationd, victim: str, return_path: bool) -> str:
    survivor = destination if victim == "source" else source
    killed_at = time.monotonic()
    (source if victim == "source" else destination).kill()
    try:
        if victim == "source":
            state = _soon(destination, lambda: _destination_state(destination), "the destination's state")
        else:
            state = _soon(source, lambda: _source_state(source, return_path), "the source's state")
    except AssertionError as error:
        raise AssertionError(f"{victim} killed: {time.monotonic() - killed_at:.2f} s later: "
                             f"{_describe(survivor)}") from error
    time.sleep(0.1)     # a second copy would have written by now
    check_one_copy(source.folder / source.name.replace("source", "ticks"))
    if state == "unknown":
        assert source.run_state() != "running", "it started by itself though the peer may run it"
        source.qmp.execute("cont")
        assert source.run_state() == "running" and source.owner() == "here"
    if state in ("runs on", "unknown", "runs here"):
        survivor.verify_machine()
    return state


def _random_kills(folder: Path, count: int, seed: int, channels: int = 0) -> None:
    dice = random.Random(seed)
    outcomes: dict[str, int] = {}
    for number in range(count):
        return_path, victim = dice.random() < 0.7, dice.choice(["source", "destination"])
        delay = dice.uniform(0, 1.4)
        source, destination = _pair(folder, str(number), return_path, channels=channels)
        with source, destination:
            source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
            time.sleep(delay)
            try:
                state = _judge_after_kill(source, destination, victim, return_path)
            except AssertionError as error:
                raise AssertionError(f"kill {number} (seed {seed}, after {delay:.3f} s, "
                                     f"return path {return_path}): {error}") from error
            outcomes[state] = outcomes.get(state, 0) + 1
    assert len(outcomes) >= 2 or count < 10, f"all kills hit the same phase: {outcomes}"


for _part in range(5):
    cases.add(f"kill/at-random/ten-times-{_part + 1}", lambda folder, seed=_part: _random_kills(folder, 10, seed),
              timeout=120)
for _channels in (2, 8):
    cases.add(f"kill/at-random/multifd-{_channels}-channels-ten-times",
              lambda folder, channels=_channels: _random_kills(folder, 10, 100 + channels, channels), timeout=120)
cases.add("kill/at-random/three-times", lambda folder: _random_kills(folder, 3, 77), timeout=60, quick=True)


def _kill_at(folder: Path, phase: str, victim: str, return_path: bool) -> None:
    """Killed when the source announces that phase."""
    source, destination = _pair(folder, "", return_path, bandwidth=1 << 40 if phase == "completed" else 60 * MB)
    with source, destination:
        source.capabilities(pause_before_switchover=phase == "pre-switchover")
        source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        if phase == "second-pass":
            source.qmp.wait_event("MIGRATION_PASS", lambda data: data["pass"] == 2)
        elif phase == "STOP":
            source.qmp.wait_event("STOP")
        else:
            source.qmp.wait_event("MIGRATION", lambda data: data["status"] == phase)
        if phase == "pre-switchover" and victim == "destination":
            # Nothing is sent while it waits for the word: the loss may show only afterwards.
            destination.kill()
            time.sleep(0.2)
            try:
                source.qmp.execute("migrate-continue", {"state": "pre-switchover"})
            except Exception:
                pass
        state = _judge_after_kill(source, destination, victim, return_path)
        if phase in ("setup", "active", "second-pass", "pre-switchover"):
            assert state in ("runs on", "nothing here"), state
        if phase == "completed":
            assert state in ("moved", "runs here"), state


for _phase in ("setup", "active", "second-pass", "pre-switchover", "STOP", "device", "completed"):
    for _victim in ("source", "destination"):
        for _return_path in (True, False):
            cases.add(f"kill/{_victim}/at-{_phase}/{'return-path' if _return_path else 'one-way'}",
                      lambda folder, args=(_phase, _victim, _return_path): _kill_at(folder, *args),
                      quick=_phase in ("active", "device") and _return_path)


# Exact places, with a destination of our own -------------------------------------------------------------------------

def _swallow(folder: Path, source: Migrationd, behave) -> None:
    path = folder / "mig"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)
        source.migrate(f"unix:{path}")
        connection, _ = listener.accept()
        with connection:
            behave(connection)


def read_to_last_byte(connection: socket.socket) -> None:
    """The whole stream, whose last part is the description behind the end mark. However slow the source is: one that is
    only quiet for a while may have bytes left to write."""
    connection.settimeout(20)
    tail = b""
    while True:
        data = connection.recv(1 << 20)
        assert data, "the source ended the stream before its description"
        tail = (tail + data)[-(1 << 20):]
        at = tail.rfind(b"\0\6")
        if 0 <= at <= len(tail) - 6 and at + 6 + int.from_bytes(tail[at + 2:at + 6], "big") == len(tail):
            return


@contextlib.contextmanager
def drained(connection: socket.socket) -> Iterator[None]:
    """Whatever comes meanwhile is read, so that the source is not held by a full socket."""
    done = threading.Event()

    def drain() -> None:
        connection.settimeout(0.2)
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1 << 20):
                    return
    reader = threading.Thread(target=drain)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join()


@cases.case("kill/between-the-last-byte-and-the-answer", quick=True)
def unknown_outcome(folder: Path) -> None:
    """The whole stream was taken, then the destination is gone: nobody but a person may start the machine again."""
    with Migrationd(folder, "source", machine=WHAT) as source:
        source.capabilities("return-path")
        _swallow(folder, source, read_to_last_byte)
        _soon(source, lambda: _source_state(source, True), "the source's state")
        assert _source_state(source, True) == "unknown", _describe(source)
        source.qmp.execute("cont")
        assert source.run_state() == "running" and source.owner() == "here"
        source.verify_machine()


@cases.case("kill/in-the-last-pass", quick=True)
def in_the_last_pass(folder: Path) -> None:
    """Stopped, but the last byte not written: the machine is the source's and runs again."""
    with Migrationd(folder, "source", machine=machine(400, ram="64M", working_set="64M")) as source:
        source.capabilities("return-path", "pause-before-switchover")
        source.parameters(max_bandwidth=100 * MB, downtime_limit=20000)

        def behave(connection: socket.socket) -> None:
            with drained(connection):
                source.wait_status("pre-switchover")
            # Nobody reads any more, and what is left is more than a socket holds.
            source.qmp.execute("migrate-continue", {"state": "pre-switchover"})
            source.wait_status("device")
        _swallow(folder, source, behave)
        _soon(source, lambda: _source_state(source, True), "the source's state")
        assert _source_state(source, True) == "runs on", _describe(source)
        source.qmp.wait_event("RESUME")
        source.verify_machine()


# Real guests: their own output proves that they never ran twice -------------------------------------------------------

def _busy_guest() -> Guest:
    return Guest(pages=2048, ticks=1)


@cases.case("kill/daemon-while-a-qemu-machine-comes-in", quick=True)
def incoming_killed(folder: Path) -> None:
    """The source QEMU runs on, and goes into the next daemon a moment later."""
    with Qemu(folder, "source", "10.0", guest=_busy_guest()) as source, \
         Qemu(folder, "target", "7.2", guest=_busy_guest(), incoming=True) as destination:
        source.wait_sweeps(5)
        for number, delay in enumerate((0.0, 0.05, 0.2)):
            with Migrationd(folder, f"park{number}") as park:
                park.incoming("tcp:127.0.0.1:0")
                source.parameters(max_bandwidth=20 << 20)
                source.migrate(f"tcp:127.0.0.1:{park.listening_port()}")
                time.sleep(delay)
                park.kill()
            source.wait(lambda: source.status() == "failed", 20, "QEMU to notice")
            source.wait_sweeps(last_number(source.serial()) + 3)
        source.parameters(max_bandwidth=1 << 30)
        with Migrationd(folder, "park") as park:
            _pass_on(folder, source, park, destination)
            never_ran_twice([source, destination])


def _pass_on(folder: Path, source: Host, park: Migrationd, destination: Qemu) -> None:
    links.transfer(source, park, links.Tcp4(folder, "in"), True)
    links.transfer(park, destination, links.Tcp4(folder, "out"), True)
    destination.wait_sweeps(1)


@cases.case("kill/qemu-while-a-parked-machine-goes-out", quick=True)
def outgoing_killed(folder: Path) -> None:
    """The destination QEMU dies in the middle: the parked machine is still here and goes to the next one."""
    guest = Guest(pages=4096)   # 16 MiB and more: at the rate below it takes a second
    with Qemu(folder, "source", "7.2", memory_mib=32, guest=guest) as source, Migrationd(folder, "park") as park, \
         Qemu(folder, "target", "10.0", memory_mib=32, guest=guest, incoming=True) as destination:
        source.wait_sweeps(5)
        links.transfer(source, park, links.Tcp4(folder, "in"), True)
        park.parameters(max_bandwidth=16 << 20)
        with Qemu(folder, "victim", "7.2", memory_mib=32, guest=guest, incoming=True) as victim:
            victim.capabilities("return-path")
            victim.incoming("tcp:127.0.0.1:0")
            park.migrate(f"tcp:127.0.0.1:{victim.listening_port()}")
            park.wait_status("active")
            time.sleep(0.2)
            victim.kill()
            _soon(park, lambda: park.status() == "failed", "the daemon to notice")
            assert park.owner() == "here", _describe(park)
            assert victim.serial() == b"", "the victim had run the guest"
        park.parameters(max_bandwidth=1 << 40)
        links.transfer(park, destination, links.Tcp4(folder, "out"), True)
        destination.wait_sweeps(last_number(source.serial()) + 3)
        never_ran_twice([source, destination])
