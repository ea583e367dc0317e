# SPDX-License-Identifier: Apache-2.0
"""cpr-transfer with real QEMUs: a machine changes hands on one host without a page being copied.

That no page was copied is proved by the files: the memory of every holder is the same inode, and what the daemon adds to
it is nothing. That nothing is lost is proved as everywhere: the guest checks a counter in each page while it runs on.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from ..lib import cases, cpr, links, programs, streams
from ..lib.cpr import Relay, Ways, begin, hand_over, largest_memory, memory_files
from ..lib.daemon import Migrationd
from ..lib.guest import Guest, last_number
from ..lib.procfs import open_descriptors, open_names
from ..lib.qemu import Qemu
from ..lib.qmp import QmpError
from .postcopy_source import LARGE, RESUME, into_postcopy, went_on
from .story import QuietPair, arrive, depart

OLD_EVENTS = ["setup", "STOP", "P(1)", "active", "device", "P(2)", "completed"]


def old_qemu(folder: Path, name: str = "source", **options) -> Qemu:
    return Qemu(folder, name, "10.0", shared=True, **options)


def new_qemu(folder: Path, name: str, ways: Ways, **options) -> Qemu:
    """A QEMU that waits for the descriptors; it has no monitor until they have come."""
    return Qemu(folder, name, "10.0", shared=True, options=ways.qemu_options(), **options)


def same_memory(*hosts) -> None:
    """Every block's file of the first is open in all of them."""
    files = [set(memory_files(host.pid)) for host in hosts]
    for host, own in zip(hosts[1:], files[1:]):
        assert files[0] <= own, f"{host.name} holds other memory: {memory_files(host.pid)}"


def events_of(host, count: int) -> list[str]:
    """The last ones, of which an end is the very last: a QEMU tells of it a little after it is so."""
    def ended() -> bool:
        host.qmp.poll_events()
        return host.qmp.event_names()[-1:] in (["completed"], ["RESUME"])
    host.wait(ended, what="the event of the end")
    return host.qmp.event_names()[-count:]


@cases.case("cpr/selftest/qemu-to-qemu", daemon=False)
def selftest(folder: Path) -> None:
    ways = Ways.of(folder, "way")
    with old_qemu(folder) as source, new_qemu(folder, "target", ways) as destination:
        depart(QuietPair(source, destination), running=True)
        hand_over(source, destination, ways)
        same_memory(source, destination)
        arrive(QuietPair(source, destination), running=True)
        assert events_of(source, 7) == OLD_EVENTS, source.qmp.event_names()


def _through(folder: Path, running: bool) -> None:
    """QEMU to migrationd to QEMU. Both main streams are kept: ours is QEMU's, byte for byte."""
    one, two = Ways.of(folder, "one"), Ways.of(folder, "two")
    first, second = Ways(folder / "relay.one", one.cpr), Ways(folder / "relay.two", two.cpr)
    with old_qemu(folder) as source, Migrationd(folder, "park", incoming=one.incoming()) as park, \
         new_qemu(folder, "target", two) as destination:
        pair = QuietPair(source, destination)
        depart(pair, running)
        before = cpr.allocated(source.pid)
        with Relay(first.main, one.main) as relay:
            hand_over(source, park, first)
            came = relay.finished()
        same_memory(source, park)
        assert park.machine()["origin"] == f"unix:{one.main}", park.machine()
        assert park.run_state() == ("running" if running else "paused"), park.run_state()
        # Nothing was copied, and nothing was touched into existence.
        after = cpr.allocated(park.pid)
        grown = {inode: after[inode] - size for inode, size in before.items() if after[inode] != size}
        assert all(size < 2 << 20 for size in grown.values()), (before, after)
        with Relay(second.main, two.main) as relay:
            hand_over(park, destination, second)
            went = relay.finished()
        assert came == went, f"{len(came)} and {len(went)} bytes"
        same_memory(source, park, destination)
        if running:
            assert events_of(park, 7) == OLD_EVENTS, park.qmp.event_names()
        answer = park.wait_totals()
        assert all(answer["ram"][name] == 0 for name in ("total", "remaining", "normal", "duplicate")), answer
        assert answer["ram"]["transferred"] == len(went), (answer, len(went))
        arrive(pair, running)


cases.add("cpr/qemu-to-parked-to-qemu/running", lambda folder: _through(folder, True), quick=True)
cases.add("cpr/qemu-to-parked-to-qemu/stopped", lambda folder: _through(folder, False))


@cases.case("cpr/the-list-is-handed-on-as-it-came")
def list_unchanged(folder: Path) -> None:
    """Read by the test in the place of the next process: names, ids and order are QEMU's, the files the same."""
    one, two = Ways.of(folder, "one"), Ways.of(folder, "two")
    with old_qemu(folder, options=["-vga", "std"]) as source, \
         Migrationd(folder, "park", incoming=one.incoming()) as park:
        source.wait_sweeps(3)
        hand_over(source, park, one)
        lists = []
        for host in (source, park):
            listener = cpr.socket.socket(cpr.socket.AF_UNIX, cpr.socket.SOCK_STREAM)
            path = folder / f"{host.name}.list"
            listener.bind(str(path))
            listener.listen(1)
            ways = Ways(two.main, path)
            if host is source:
                host.qmp.execute("cont")
            begin(host, ways)
            connection, _ = listener.accept()
            data, descriptors = cpr.receive_list(connection)
            lists.append((data, [cpr.os.fstat(fd).st_ino for fd in descriptors]))
            for fd in descriptors:
                cpr.os.close(fd)
            connection.close()
            listener.close()
            host.wait(lambda: host.status() == "failed", 20, "the missing main channel to be noticed")
            host.parameters(mode="normal")
        names = [name for name, _ in cpr.parse_list(lists[0][0])]
        assert b"ram0" in names and b"0000:00:02.0/vga.vram" in names, names
        assert lists[0] == lists[1], lists


def _forms(folder: Path, order: str) -> None:
    ways = Ways.of(folder, "way")
    uri = f"unix:{ways.main}"
    json_main = cpr.unix_channel("main", ways.main)
    listed = f"cpr,addr.transport=socket,addr.type=unix,addr.path={ways.cpr}"
    import json
    incoming = {"uri-json": [uri, ways.json_cpr()], "json-uri": [ways.json_cpr(), uri],
                "list-uri": [listed, uri], "named-list": ["channel-type=" + listed, uri],
                "both-json": [ways.json_cpr(), json.dumps(json_main)],
                "replaced": ["unix:/nonexistent/x", listed.replace(str(ways.cpr), "/nonexistent/c"), listed, uri],
                "defer-late": ["defer", ways.json_cpr()], "defer-early": [listed, "defer"]}[order]
    with old_qemu(folder, paused=True) as source, Migrationd(folder, "park", incoming=incoming) as park:
        assert park.run_state() == "inmigrate" and park.status() == "none", park.query_migrate()
        # The main channel is not listened to before the descriptors have come.
        assert not ways.main.exists()
        if order == "defer-early":
            park.incoming(uri)
            with contextlib.suppress(QmpError):
                park.incoming(uri)
                raise AssertionError("a second migrate-incoming was taken")
        begin(source, ways)
        if order == "defer-late":
            assert source.status() == "setup", source.query_migrate()
            park.wait(lambda: "descriptors came over the cpr channel" in park.output(), 20, "the descriptors")
            assert source.status() == "setup" and source.run_state() == "prelaunch", source.query_migrate()
            park.qmp.execute("migrate-incoming", {"channels": [json_main]})
        source.wait_status("completed")
        park.wait_status("completed")
        same_memory(source, park)
        assert not ways.cpr.exists() and not ways.main.exists(), list(folder.iterdir())


for _order in ("uri-json", "json-uri", "list-uri", "named-list", "both-json", "replaced", "defer-late", "defer-early"):
    cases.add(f"cpr/incoming/{_order}", lambda folder, args=_order: _forms(folder, args),
              quick=_order == "defer-late")


@cases.case("cpr/parked-to-parked-to-qemu", quick=True)
def daemons(folder: Path) -> None:
    """A daemon hands its machine to another daemon; with a return path it hears that it has arrived."""
    ways = [Ways.of(folder, f"way{number}") for number in range(3)]
    with old_qemu(folder) as source, Migrationd(folder, "one", incoming=ways[0].incoming()) as one, \
         Migrationd(folder, "two", incoming=ways[1].incoming()) as two, \
         new_qemu(folder, "target", ways[2]) as destination:
        pair = QuietPair(source, destination)
        depart(pair, running=True)
        hand_over(source, one, ways[0])
        one.capabilities(return_path=True)
        hand_over(one, two, ways[1])
        assert one.owner() == "moved" and two.owner() == "here", (one.machine(), two.machine())
        one.kill()
        hand_over(two, destination, ways[2])
        same_memory(source, destination)
        arrive(pair, running=True)


def _came_by_stream(folder: Path, version: str) -> None:
    """What came by an ordinary stream lies in files of ours: they are handed over just so, and may grow there."""
    ways = Ways.of(folder, "way")
    options = ["-machine", "memory-backend=ram0", "-object", "memory-backend-ram,id=ram0,size=16M"]
    with Qemu(folder, "source", version, options=options) as source, Migrationd(folder, "park") as park, \
         new_qemu(folder, "target", ways) as destination:
        pair = QuietPair(source, destination)
        depart(pair, running=True)
        links.transfer(source, park, links.Tcp4(folder, "in"), False)
        hand_over(park, destination, ways)
        same_memory(park, destination)
        arrive(pair, running=True)


for _version in ("7.2", "10.0"):
    cases.add(f"cpr/parked-by-a-stream-to-qemu/{_version}",
              lambda folder, args=_version: _came_by_stream(folder, args), quick=_version == "7.2")


@cases.case("cpr/taken-over-then-by-a-stream-to-7.2")
def on_by_precopy(folder: Path) -> None:
    ways = Ways.of(folder, "way")
    options = ["-machine", "memory-backend=ram0", "-object", "memory-backend-ram,id=ram0,size=16M"]
    with old_qemu(folder) as source, Migrationd(folder, "park", incoming=ways.incoming()) as park, \
         Qemu(folder, "target", "7.2", incoming=True, options=options) as destination:
        pair = QuietPair(source, destination)
        depart(pair, running=True)
        hand_over(source, park, ways)
        links.transfer(park, destination, links.Tcp4(folder, "out"), True)
        arrive(pair, running=True)


def _main_over(folder: Path, transport: str) -> None:
    """The main channel is any stream: tcp, and a command."""
    ways = Ways.of(folder, "way")
    with old_qemu(folder) as source, Migrationd(folder, "park", incoming=["defer", ways.json_cpr()]) as park:
        depart(QuietPair(source, source), running=True)
        if transport == "tcp":
            port = str(links.free_port())
            address = {"transport": "socket", "type": "inet", "host": "127.0.0.1", "port": port}
            park.incoming(f"tcp:127.0.0.1:{port}")
        else:
            pipe = folder / "pipe"
            cpr.os.mkfifo(pipe)
            address = {"transport": "exec", "args": ["/bin/sh", "-c", f"cat > {pipe}"]}
            park.incoming(f"exec:cat {pipe}")
        source.parameters(mode="cpr-transfer")
        source.qmp.execute("migrate", {"channels": [cpr.unix_channel("cpr", ways.cpr),
                                                    {"channel-type": "main", "addr": address}]})
        source.wait_status("completed")
        park.wait_status("completed")
        same_memory(source, park)


for _transport in ("tcp", "exec"):
    cases.add(f"cpr/main-channel-over/{_transport}", lambda folder, args=_transport: _main_over(folder, args))


@cases.case("cpr/multifd-and-return-path-carry-no-page")
def multifd(folder: Path) -> None:
    one, two = Ways.of(folder, "one"), Ways.of(folder, "two")
    with old_qemu(folder) as source, Migrationd(folder, "park", incoming=["defer", one.json_cpr()]) as park, \
         Migrationd(folder, "next", incoming=["defer", two.json_cpr()]) as further:
        depart(QuietPair(source, source), running=True)
        for old, new, ways in ((source, park, one), (park, further, two)):
            for host in (old, new):
                host.capabilities(multifd=True, return_path=True)
            new.incoming(f"unix:{ways.main}")
            hand_over(old, new, ways)
        same_memory(source, park, further)
        assert park.query_migrate()["ram"]["normal"] == 0, park.query_migrate()


# What is done with it ------------------------------------------------------------------------------------------------

@cases.case("cpr/saved-to-a-file-and-resumed-at-once", quick=True)
def saved_and_resumed(folder: Path) -> None:
    """The memory that is still QEMU's is saved to a mapped-ram file; the file runs again by one command."""
    ways = Ways.of(folder, "way")
    path = folder / "saved"
    with old_qemu(folder, memory_mib=32, guest=LARGE) as source, \
         Migrationd(folder, "park", incoming=ways.incoming()) as park:
        depart(QuietPair(source, source), running=True)
        hand_over(source, park, ways)
        left_at = last_number(source.serial())
        printed = source.serial()
        park.capabilities(mapped_ram=True)
        park.migrate(f"file:{path}")
        park.wait_status("completed")
    options = ["-machine", "memory-backend=ram0", "-object", "memory-backend-ram,id=ram0,size=32M"]
    with Qemu(folder, "target", "10.0", memory_mib=32, guest=LARGE, incoming=True, options=options) as destination:
        destination.capabilities("postcopy-ram")
        destination.incoming(f"unix:{folder / 'out'}")
        program = programs.build_folder() / "tools" / "migrationctl" / "migrationctl"
        run = subprocess.run([program, "resume", path, "--to", f"unix:{folder / 'out'}"], capture_output=True, text=True,
                             timeout=40)
        assert run.returncode == 0, run.stdout + run.stderr
        destination.wait_status("completed")

        class Printed:
            def serial(self) -> bytes:
                return printed
        went_on([Printed(), destination], left_at, LARGE)


@cases.case("cpr/handed-to-a-remote-qemu-by-postcopy", quick=True)
def by_postcopy(folder: Path) -> None:
    ways = Ways.of(folder, "way")
    options = ["-machine", "memory-backend=ram0", "-object", "memory-backend-ram,id=ram0,size=32M"]
    with old_qemu(folder, memory_mib=32, guest=LARGE) as source, \
         Migrationd(folder, "park", incoming=ways.incoming()) as park, \
         Qemu(folder, "target", "7.2", memory_mib=32, guest=LARGE, incoming=True, options=options) as destination:
        depart(QuietPair(source, source), running=True)
        hand_over(source, park, ways)
        left_at = last_number(source.serial())
        into_postcopy(park, destination, f"unix:{folder / 'out'}")
        went_on([source, destination], left_at, LARGE)


@cases.case("cpr/migrationctl-hands-it-over")
def by_hand(folder: Path) -> None:
    """One command, and `mode` is as it was; one that fails says why and leaves the machine here."""
    one, two = Ways.of(folder, "one"), Ways.of(folder, "two")
    program = programs.build_folder() / "tools" / "migrationctl" / "migrationctl"
    with old_qemu(folder) as source, Migrationd(folder, "park", incoming=one.incoming()) as park:
        pair = QuietPair(source, source)
        depart(pair, running=True)
        hand_over(source, park, one)
        words = [program, "--socket", park.qmp_path, "migrate", f"unix:{two.main}", "--cpr", two.cpr]
        run = subprocess.run(words, capture_output=True, text=True, timeout=40)
        assert run.returncode == 1 and f"Failed to connect to '{two.cpr}'" in run.stderr, (run.stdout, run.stderr)
        assert park.run_state() == "running" and park.owner() == "here"
        with new_qemu(folder, "target", two) as destination:
            destination.wait(lambda: cpr.listens(two.cpr), 20, "the QEMU to listen")
            run = subprocess.run(words, capture_output=True, text=True, timeout=40)
            assert run.returncode == 0, run.stdout + run.stderr
            assert park.qmp.execute("query-migrate-parameters")["mode"] == "normal"
            pair.destination = destination
            arrive(pair, running=True)


# Roll-back -----------------------------------------------------------------------------------------------------------

def _refusal(host, arguments: dict) -> tuple[str, str]:
    """The error and the status afterwards."""
    try:
        host.qmp.execute("migrate", arguments)
        text = ""
    except QmpError as error:
        text = error.desc
    return text, host.status()


@cases.case("cpr/refusals-are-qemus-words", quick=True)
def refusals(folder: Path) -> None:
    """Chapter 8, asked of a QEMU and of a daemon that holds its machine; neither is changed by it."""
    ways = Ways.of(folder, "way")
    nobody = cpr.unix_channel("cpr", folder / "nobody")
    main = cpr.unix_channel("main", folder / "main")
    tcp = {"channel-type": "cpr", "addr": {"transport": "socket", "type": "inet", "host": "127.0.0.1", "port": "1"}}
    to_file = {"channel-type": "main", "addr": {"transport": "file", "filename": str(folder / "file"), "offset": 0}}
    asked = (({}, {"uri": f"unix:{folder / 'main'}"}), ({}, {"channels": [main]}), ({}, {"channels": [main, main]}),
             ({}, {"channels": [nobody, main, nobody]}), ({}, {"channels": [main, tcp]}),
             ({}, {"channels": [main, nobody]}), ({}, {"channels": [to_file, nobody]}),
             ({"postcopy_ram": True}, {"channels": [main, nobody]}),
             ({"mapped_ram": True}, {"channels": [main, nobody]}), ({}, {}))
    with old_qemu(folder) as source, old_qemu(folder, "qemu") as qemu, \
         Migrationd(folder, "park", incoming=ways.incoming()) as park:
        source.wait_sweeps(3)
        hand_over(source, park, ways)
        # A status from before the first question, where there is none yet in QEMU's.
        for host in (qemu, park):
            host.parameters(mode="cpr-transfer")
        seen = []
        for capabilities, arguments in asked:
            for host in (qemu, park):
                host.capabilities(**capabilities)
            theirs, ours = (_refusal(host, arguments) for host in (qemu, park))
            for host in (qemu, park):
                host.capabilities(**{name: False for name in capabilities})
            assert theirs[0] == ours[0], (arguments, theirs, ours)
            if seen and seen[-1] == "failed" or theirs[1] == "failed":
                assert theirs[1] == ours[1], (arguments, theirs, ours)
            seen.append(theirs[1])
        assert qemu.run_state() == "running" and park.run_state() == "running"
        assert park.owner() == "here"
        # QEMU 10.0.13 crashes on this one.
        assert _refusal(park, {"channels": [nobody]})[0] == "Channel list has no main entry"


@cases.case("cpr/old-side-parked/every-failure-leaves-it-as-it-was", quick=True)
def rolled_back(folder: Path) -> None:
    """New processes that die before the hang-up, after it, and in the stream; a cancel. Then it goes after all."""
    one = Ways.of(folder, "one")
    with old_qemu(folder) as source, Migrationd(folder, "park", incoming=one.incoming()) as park:
        depart(QuietPair(source, source), running=True)
        hand_over(source, park, one)
        left = source.serial()
        before = open_descriptors(park.pid), sorted(memory_files(park.pid))

        def as_it_was(step: str, status: str, text: str) -> None:
            answer = park.wait(lambda: park.status() == status and park.query_migrate(), 20, f"{step}: {status}")
            assert text in answer.get("error-desc", ""), (step, answer)
            assert park.run_state() == "running" and park.owner() == "here", (step, park.machine())
            park.wait(lambda: (open_descriptors(park.pid), sorted(memory_files(park.pid))) == before, 10,
                      f"{step}: descriptors as before: {open_names(park.pid)}")

        def listen(path: Path):
            path.unlink(missing_ok=True)
            listener = cpr.socket.socket(cpr.socket.AF_UNIX, cpr.socket.SOCK_STREAM)
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(20)
            return listener

        two = Ways.of(folder, "two")
        with listen(two.cpr) as listener:
            begin(park, two)
            connection, _ = listener.accept()
            connection.close()      # dies before it has read the list
            as_it_was("before the list", "failed", "ended before it had read the list")
        with listen(two.cpr) as listener:
            begin(park, two)
            connection, _ = listener.accept()
            cpr.receive_list(connection)
            assert park.status() == "setup" and park.run_state() == "running"
            park.qmp.execute("migrate_cancel")
            as_it_was("cancelled", "cancelled", "")
            # The old side's end: nothing more can come.
            assert connection.recv(1) == b""
            connection.close()
        with listen(two.cpr) as listener:
            begin(park, two)
            connection, _ = listener.accept()
            _, descriptors = cpr.receive_list(connection)
            for fd in descriptors:
                cpr.os.close(fd)
            connection.close()      # and nobody listens on the main channel
            as_it_was("no main channel", "failed", f"Failed to connect to '{two.main}': No such file or directory")
        with listen(two.cpr) as listener, listen(two.main) as main:
            park.capabilities(return_path=True)
            begin(park, two)
            connection, _ = listener.accept()
            cpr.receive_list(connection)
            connection.close()
            stream, _ = main.accept()
            assert stream.recv(8) == streams.header()
            stream.sendall(b"\0\1\0\4\0\0\0\1")    # SHUT: it failed
            stream.close()
            as_it_was("in the stream", "failed", "")
            assert events_of(park, 4)[-2:] == ["failed", "RESUME"], park.qmp.event_names()
            park.capabilities(return_path=False)
        two.cpr.unlink()
        two.main.unlink()
        with new_qemu(folder, "target", two) as destination:
            hand_over(park, destination, two)
            destination.wait_sweeps(last_number(left) + 3)
            arrive_after(left, destination)


def arrive_after(printed: bytes, destination: Qemu) -> None:
    from ..lib.guest import check_serial
    destination.qmp.execute("stop")
    destination.check_memory()
    check_serial([printed, destination.serial()])


@cases.case("cpr/a-qemu-that-cannot-take-it-leaves-it-here")
def other_machine(folder: Path) -> None:
    """The new QEMU is started with another device: it fails in the stream, and the next one takes it."""
    one, two, three = (Ways.of(folder, name) for name in ("one", "two", "three"))
    with old_qemu(folder) as source, Migrationd(folder, "park", incoming=one.incoming()) as park:
        depart(QuietPair(source, source), running=True)
        hand_over(source, park, one)
        left = source.serial()
        park.capabilities(return_path=True)
        with Qemu(folder, "wrong", "10.0", shared=True, memory_mib=32, options=two.qemu_options()) as wrong:
            begin(park, two)
            park.wait(lambda: park.status() == "failed", 20, "the refusal")
            assert wrong.wait_exit() == 1, wrong.output()
        assert park.run_state() == "running" and park.owner() == "here", park.machine()
        with new_qemu(folder, "target", three) as destination:
            hand_over(park, destination, three)
            destination.wait_sweeps(last_number(left) + 3)
            arrive_after(left, destination)


@cases.case("cpr/attempts-leave-no-descriptor-behind")
def repeated(folder: Path) -> None:
    """Forty failed attempts on either side; then the machine comes."""
    ways = Ways.of(folder, "way")
    with old_qemu(folder, guest=Guest(pages=64)) as source, Migrationd(folder, "park", incoming=ways.incoming()) as park:
        source.wait_sweeps(3)
        park.status()
        before = open_descriptors(park.pid)
        for _ in range(20):
            begin(source, Ways(folder / "nowhere", ways.cpr))
            source.wait(lambda: source.status() == "failed", 20, "the attempt to fail")
            # We wait for the main channel, half a minute; the user need not.
            park.wait_status("setup")
            park.qmp.execute("migrate_cancel")
            park.wait(lambda: park.status() == "cancelled", 20, "the cancel")
        park.wait(lambda: open_descriptors(park.pid) <= before + 1, 10,
                  f"descriptors: {before} before, {open_names(park.pid)}")
        hand_over(source, park, ways)
        same_memory(source, park)


# cpr-reboot ----------------------------------------------------------------------------------------------------------

def _in_file(memory: Path, size: int = 16) -> list[str]:
    return ["-machine", "memory-backend=ram0", "-object",
            f"memory-backend-file,id=ram0,size={size}M,mem-path={memory},share=on"]


@cases.case("cpr/reboot/memory-stays-in-its-file", quick=True)
def reboot(folder: Path) -> None:
    """QEMU to a file, the file to a daemon, its machine to a file again, that to a QEMU: the memory lies in a file all the
    time, and is in neither save."""
    memory, one, two = folder / "memory", folder / "one", folder / "two"
    with Qemu(folder, "source", "10.0", options=_in_file(memory)) as source:
        source.wait_sweeps(5)
        source.capabilities("x-ignore-shared")
        source.parameters(mode="cpr-reboot")
        source.migrate(f"file:{one}")
        source.wait_status("completed")
        printed = source.serial()
        theirs = events_of(source, 8)
    inode = memory.stat().st_ino
    with Migrationd(folder, "park", machine=f"parked,memory=ram0:{memory}") as park:
        park.capabilities("x-ignore-shared")
        park.parameters(mode="cpr-reboot")
        park.incoming(f"file:{one}")
        park.wait_status("completed")
        park.migrate(f"file:{two}")
        park.wait_status("completed")
        # QEMU leaves the second pass out when what is left is little.
        ours = events_of(park, 8)
        assert ours == ["setup", "STOP", "P(1)", "active", "P(2)", "device", "P(3)", "completed"], ours
        assert theirs[-7:] in (ours[1:], OLD_EVENTS), theirs
    assert max(one.stat().st_size, two.stat().st_size) < 1 << 20, (one.stat(), two.stat())
    with Qemu(folder, "target", "10.0", incoming=True, options=_in_file(memory)) as target:
        target.capabilities("x-ignore-shared")
        target.parameters(mode="cpr-reboot")
        target.incoming(f"file:{two}")
        target.wait_status("completed")
        assert memory.stat().st_ino == inode
        target.wait_sweeps(last_number(printed) + 3)
        arrive_after(printed, target)


@cases.case("cpr/reboot/without-ignore-shared-everything-is-in-the-file")
def reboot_whole(folder: Path) -> None:
    """Also of a machine whose memory is ours, and into memory in a file of the user's."""
    memory, one, two = folder / "memory", folder / "one", folder / "two"
    memory.touch()
    cpr.os.truncate(memory, 16 << 20)
    with Qemu(folder, "source", "10.0", options=_in_file(folder / "other")) as source:
        source.wait_sweeps(5)
        source.parameters(mode="cpr-reboot")
        source.migrate(f"file:{one}")
        source.wait_status("completed")
        printed = source.serial()
    with Migrationd(folder, "park", machine=f"parked,memory=ram0:{memory}") as park:
        park.incoming(f"file:{one}")
        park.wait_status("completed")
        assert memory.stat().st_blocks > 0
        # Left out it could be, but nobody knows where the guest sees it.
        park.capabilities("x-ignore-shared")
        park.migrate(f"file:{two}")
        answer = park.wait(lambda: park.status() == "failed" and park.query_migrate(), 20, "the refusal")
        assert "nobody knows where its guest sees it" in answer["error-desc"], answer
        park.capabilities(x_ignore_shared=False)
        park.parameters(mode="cpr-reboot")
        park.migrate(f"file:{two}")
        park.wait_status("completed")
    with Qemu(folder, "target", "10.0", incoming=True, options=_in_file(folder / "third")) as target:
        target.parameters(mode="cpr-reboot")
        target.incoming(f"file:{two}")
        target.wait_status("completed")
        target.wait_sweeps(last_number(printed) + 3)
        arrive_after(printed, target)
