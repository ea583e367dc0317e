# SPDX-License-Identifier: Apache-2.0
"""cpr-transfer with peers that lie, die and stay silent; each: an error that says what, no descriptor kept, and the socket
is there for the next attempt, which brings the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Callable

from ..lib import cases, cpr, streams
from ..lib.cpr import CARRIER, MAGIC, Ways, begin, hand_over
from ..lib.daemon import Migrationd
from ..lib.procfs import open_descriptors, open_names
from ..lib.qemu import Qemu
from .cpr import new_qemu, old_qemu, same_memory

RAM = 1 << 20
BLOCKS = [("pc.ram", RAM), ("pc.bios", streams.PAGE)]
NO_PAGES = streams.Stream(start=streams.ram_start(BLOCKS), parts=b"", end=streams.ram_part(b"", streams.END))


def good_list(size: int = RAM) -> list[tuple[bytes, int, int]]:
    return [(b"pc.bios", 0, cpr.memfd(streams.PAGE)), (b"pc.ram", 0, cpr.memfd(size))]


def close_all(entries: list[tuple[bytes, int, int]]) -> None:
    for _, _, descriptor in entries:
        os.close(descriptor)


def hung_up(connection: socket.socket) -> bool:
    """The new process has closed its end; a reset says that it left bytes of ours unread."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


class NewProcess:
    """A daemon that waits for a machine, and what must be so after each attempt."""

    def __init__(self, folder: Path, **options):
        self.ways = Ways.of(folder, "way")
        self.daemon = Migrationd(folder, "park", incoming=self.ways.incoming(), **options)

    def __enter__(self) -> "NewProcess":
        self.daemon.__enter__()
        self.daemon.status()
        self.before = open_descriptors(self.daemon.pid)
        return self

    def __exit__(self, *args) -> None:
        self.daemon.__exit__(*args)

    def refused(self, text: str) -> None:
        answer = self.daemon.wait(lambda: self.daemon.status() == "failed" and self.daemon.query_migrate(), 20,
                                  f"the refusal: {text}")
        assert text in answer["error-desc"], (text, answer)
        self.daemon.wait(lambda: open_descriptors(self.daemon.pid) <= self.before, 10,
                         f"no descriptor kept: {self.before} before, {open_names(self.daemon.pid)}")
        assert self.daemon.run_state() == "inmigrate"

    def takes_a_good_one(self) -> None:
        entries = good_list()
        with cpr.connect(self.ways.cpr) as connection:
            cpr.send_list(connection, entries)
            assert hung_up(connection)
        with cpr.connect(self.ways.main) as stream:
            stream.sendall(NO_PAGES.bytes())
        self.daemon.wait_status("completed")
        inodes = {os.fstat(descriptor).st_ino for _, _, descriptor in entries}
        assert inodes <= set(cpr.memory_files(self.daemon.pid))
        close_all(entries)


def _raw(data: bytes, descriptors: int = 0, end: bool = True) -> Callable[[socket.socket], None]:
    """The bytes in one message, with that many descriptors."""
    def send(connection: socket.socket) -> None:
        numbers = [cpr.memfd(streams.PAGE) for _ in range(descriptors)]
        socket.send_fds(connection, [data], numbers) if numbers else connection.sendall(data)
        for number in numbers:
            os.close(number)
        if end:
            connection.shutdown(socket.SHUT_WR)
    return send


def _one(name: bytes = b"pc.ram", **options) -> bytes:
    return cpr.entry(name, **options) + CARRIER


BAD_LISTS = {
    "bad-magic": (_raw(b"QEVM\0\0\0\3"), "Not a migration stream (bad magic 5145564d)"),
    "other-version": (_raw(b"QCPR\0\0\0\2"), "Unsupported migration stream version 2"),
    "descriptor-missing": (_raw(MAGIC + _one() + b"\0"), "'pc.ram' (id 0) came without its descriptor"),
    "second-descriptor-missing": (_raw(MAGIC + _one() + _one(b"pc.bios") + b"\0", 1),
                                  "'pc.bios' (id 0) came without its descriptor"),
    "descriptors-surplus": (_raw(MAGIC + _one() + b"\0", 4), "3 more descriptors than entries"),
    "duplicate-names": (_raw(MAGIC + _one() + _one() + b"\0", 2), "'pc.ram' (id 0) is listed twice"),
    "name-too-long": (_raw(MAGIC + _one(b"x" * 256) + b"\0", 1), "a name of 257 bytes with its NUL"),
    "name-huge": (_raw(MAGIC + _one(length=1 << 31) + b"\0", 1), "a name of 2147483648 bytes with its NUL"),
    "name-empty": (_raw(MAGIC + b"\1\0\0\0\0\0\0\0\0 \0", 1), "a name of 0 bytes with its NUL"),
    "no-nul": (_raw(MAGIC + _one(length=3) + b"\0", 1), "does not end with its first NUL"),
    "truncated": (_raw(MAGIC + _one()[:9], 1), "where a name is due"),
    "truncated-header": (_raw(MAGIC[:5]), "where the version is due"),
    "no-end-of-list": (_raw(MAGIC + _one(), 1), "where the mark of the next entry is due"),
    "bytes-behind-the-end": (_raw(MAGIC + _one() + b"\0\5", 1), "bytes behind the end of the list"),
    "not-an-entry": (_raw(MAGIC + b"\2" + _one() + b"\0", 1), "byte 0x02 where an entry"),
}


@cases.case("cpr-hostile/bad-lists", quick=True)
def bad_lists(folder: Path) -> None:
    with NewProcess(folder) as new:
        for name, (send, text) in BAD_LISTS.items():
            with cpr.connect(new.ways.cpr) as connection:
                send(connection)
                assert hung_up(connection), name
            new.refused(text)
            # Nobody listens there: the old process that looks finds out.
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                cpr.connect(new.ways.main).close()
                raise AssertionError(f"{name}: the main channel is open")
        new.takes_a_good_one()


@cases.case("cpr-hostile/a-list-cut-at-every-byte")
def cut_anywhere(folder: Path) -> None:
    whole = MAGIC + _one() + _one(b"pc.bios")
    with NewProcess(folder) as new:
        for length in range(1, len(whole)):
            with cpr.connect(new.ways.cpr) as connection:
                _raw(whole[:length], 2)(connection)
                assert hung_up(connection)
            new.refused("it ends after" if length != len(whole) else "")
        new.takes_a_good_one()


@cases.case("cpr-hostile/any-split-of-a-good-list")
def any_split(folder: Path) -> None:
    """All in one message; byte by byte; carriers merged with their entries; sixteen descriptors at once."""
    for way in ("one", "bytes", "merged", "sixteen"):
        sub = folder / way
        sub.mkdir()
        with NewProcess(sub) as new:
            entries = good_list()
            if way == "sixteen":
                entries += [(b"device%d" % number, number, cpr.memfd(streams.PAGE)) for number in range(14)]
            whole = [cpr.entry(name, identity) + CARRIER for name, identity, _ in entries]
            with cpr.connect(new.ways.cpr) as connection:
                if way in ("one", "sixteen"):
                    socket.send_fds(connection, [MAGIC + b"".join(whole) + b"\0"], [fd for _, _, fd in entries])
                else:
                    connection.sendall(MAGIC)
                    for piece, (_, _, descriptor) in zip(whole, entries):
                        if way == "bytes":
                            for byte in piece[:-1]:
                                connection.sendall(bytes([byte]))
                            piece = piece[-1:]
                        socket.send_fds(connection, [piece], [descriptor])
                    connection.sendall(b"\0")
                connection.shutdown(socket.SHUT_WR)
                assert hung_up(connection)
            with cpr.connect(new.ways.main) as stream:
                stream.sendall(NO_PAGES.bytes())
            new.daemon.wait_status("completed")
            assert {os.fstat(fd).st_ino for _, _, fd in entries} <= set(cpr.memory_files(new.daemon.pid))
            close_all(entries)


def _other_file(path: Path, size: int, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    descriptor = os.open(path, flags, 0o600)
    os.truncate(path, size)
    return descriptor


@cases.case("cpr-hostile/descriptors-of-the-wrong-kind-or-size", quick=True)
def wrong_descriptors(folder: Path) -> None:
    """Found out when the stream says which blocks there are: the old side's stream breaks, its guest runs on."""
    read_only = cpr.memfd(RAM)
    again = cpr.memfd(RAM)
    tries = {
        "small": ([(b"pc.bios", 0, cpr.memfd(streams.PAGE)), (b"pc.ram", 0, cpr.memfd(RAM - 1))],
                  f"the descriptor's file has {RAM - 1} bytes, the block {RAM}"),
        "disk": ([(b"pc.bios", 0, cpr.memfd(streams.PAGE)), (b"pc.ram", 0, os.open("/dev/null", os.O_RDWR))],
                 "the descriptor is no shared memory"),
        "pipe": ([(b"pc.bios", 0, cpr.memfd(streams.PAGE)), (b"pc.ram", 0, os.pipe()[0])],
                 "the descriptor is no shared memory"),
        "read-only": ([(b"pc.bios", 0, cpr.memfd(streams.PAGE)),
                       (b"pc.ram", 0, os.open(f"/proc/self/fd/{read_only}", os.O_RDONLY))],
                      "the descriptor is not open for reading and writing"),
        "missing": ([(b"pc.bios", 0, cpr.memfd(streams.PAGE))], "no descriptor of that name came"),
        "one-file-twice": ([(b"pc.bios", 0, os.dup(again)), (b"pc.ram", 0, os.dup(again))], "the same file as another block"),
        "a-device's-id": ([(b"pc.bios", 0, cpr.memfd(streams.PAGE)), (b"pc.ram", 3, cpr.memfd(RAM))],
                          "no descriptor of that name came"),
    }
    with NewProcess(folder) as new:
        for name, (entries, text) in tries.items():
            with cpr.connect(new.ways.cpr) as connection:
                cpr.send_list(connection, entries)
                assert hung_up(connection), name
            close_all(entries)
            with cpr.connect(new.ways.main) as stream:
                with contextlib.suppress(OSError):
                    stream.sendall(NO_PAGES.bytes())
                new.refused(text)
        new.takes_a_good_one()


@cases.case("cpr-hostile/pages-in-the-stream")
def pages(folder: Path) -> None:
    """A page would be written into memory that the old process still answers for."""
    page = streams.full_page(0, b"\xaa" * streams.PAGE, "pc.ram")
    bodies = {"page": streams.ram_part(page), "zero": streams.ram_part(streams.zero_page(0, "pc.ram")),
              "advise": streams.OPEN_RETURN_PATH + streams.command(3, streams.u64(4096) * 2)}
    with NewProcess(folder) as new:
        for name, body in bodies.items():
            entries = good_list()
            os.pwrite(entries[1][2], b"kept", 0)
            with cpr.connect(new.ways.cpr) as connection:
                cpr.send_list(connection, entries)
                assert hung_up(connection)
            stream = streams.Stream(start=NO_PAGES.start, parts=body, end=NO_PAGES.end)
            if name == "advise":
                stream.commands, stream.parts = body, b""
                data = (stream.head + stream.config + stream.commands + stream.start)
            else:
                data = stream.bytes()
            with cpr.connect(new.ways.main) as connection:
                with contextlib.suppress(OSError):
                    connection.sendall(data)
                new.refused("whose memory came by descriptor" if name == "advise" else "memory that stays where it is")
            assert os.pread(entries[1][2], 8, 0) == b"kept\0\0\0\0", name
            close_all(entries)
        new.takes_a_good_one()


@cases.case("cpr-hostile/memory-cut-off-by-the-old-process")
def cut_memory(folder: Path) -> None:
    """QEMU's memory is not sealed: cut off under a parked machine it is told when the machine shall leave, and the daemon
    lives."""
    with NewProcess(folder) as new:
        entries = good_list()
        with cpr.connect(new.ways.cpr) as connection:
            cpr.send_list(connection, entries)
            assert hung_up(connection)
        with cpr.connect(new.ways.main) as stream:
            stream.sendall(NO_PAGES.bytes())
        new.daemon.wait_status("completed")
        os.pwrite(entries[1][2], b"x" * RAM, 0)
        new.daemon.capabilities(mapped_ram=True)
        os.ftruncate(entries[1][2], streams.PAGE)
        new.daemon.capabilities(mapped_ram=False)
        new.daemon.migrate(f"exec:cat > {folder / 'saved'}")
        answer = new.daemon.wait(lambda: new.daemon.status() in ("failed", "completed") and new.daemon.query_migrate(),
                                 20, "the save to end")
        # What was cut off is a hole for who asks the file, and cannot be had for who touches it: either way no page is
        # made up, and the daemon is there.
        assert answer["status"] == "completed" or "could not be had" in answer["error-desc"], answer
        assert new.daemon.alive()
        close_all(entries)


@cases.case("cpr-hostile/an-old-process-that-gives-up-or-dies", quick=True)
def gives_up(folder: Path) -> None:
    """Between the list and the main channel, with defer: its descriptors are let go of, the next attempt is taken."""
    ways = Ways.of(folder, "way")
    with Migrationd(folder, "park", incoming=["defer", ways.json_cpr()]) as park:
        park.status()
        before = open_descriptors(park.pid)
        for _ in range(3):
            entries = good_list()
            with cpr.connect(ways.cpr) as connection:
                cpr.send_list(connection, entries)
                park.wait(lambda: open_descriptors(park.pid) > before + 1, 20, "the descriptors to come")
            close_all(entries)
            park.wait(lambda: open_descriptors(park.pid) == before, 20, "the descriptors to be let go of")
            assert park.status() == "none", park.query_migrate()
        with old_qemu(folder) as source:
            begin(source, ways)
            source.kill()
        park.wait(lambda: open_descriptors(park.pid) == before, 20, "the dead QEMU's to be let go of")
        with old_qemu(folder, "second") as source:
            source.wait_sweeps(3)
            begin(source, ways)
            park.incoming(f"unix:{ways.main}")
            source.wait_status("completed")
            park.wait_status("completed")
            same_memory(source, park)


def _old_process_that_forked(ways: Ways, entries: list[tuple[bytes, int, int]], told: int, end: int,
                             child_end: int) -> None:
    """Sends its list and tells its child's number. Each ends when the test closes its pipe."""
    connection = cpr.connect(ways.cpr)
    child = os.fork()
    if child == 0:
        os.read(child_end, 1)
        return
    cpr.send_list(connection, entries)
    os.write(told, str(child).encode())
    os.read(end, 1)


@cases.case("cpr-hostile/a-child-of-a-dead-old-process-holds-the-connection", quick=True)
def child_holds(folder: Path) -> None:
    """The descriptors of an old process that has ended are let go of, though its end of the socket is still open."""
    ways = Ways.of(folder, "way")
    with Migrationd(folder, "park", incoming=["defer", ways.json_cpr()]) as park, contextlib.ExitStack() as last:
        park.status()
        before = open_descriptors(park.pid)
        entries = good_list()
        hear, tell = os.pipe()
        parent_goes, child_goes = os.pipe(), os.pipe()
        old = os.fork()
        if old == 0:
            with contextlib.suppress(BaseException):
                os.close(parent_goes[1])
                os.close(child_goes[1])
                _old_process_that_forked(ways, entries, tell, parent_goes[0], child_goes[0])
            os._exit(0)
        for end in (tell, parent_goes[0], child_goes[0]):
            os.close(end)
        last.callback(os.close, hear)
        last.callback(os.close, child_goes[1])
        child = int(os.read(hear, 20))
        park.wait(lambda: "descriptors came" in park.output(), 10, "the list")
        held = open_descriptors(park.pid)
        assert held > before, (before, held)
        os.close(parent_goes[1])
        os.waitpid(old, 0)
        park.wait(lambda: open_descriptors(park.pid) == before, 10, "the descriptors to be let go of")
        held_sockets = [os.readlink(link) for link in Path(f"/proc/{child}/fd").iterdir()]
        assert any(name.startswith("socket:") for name in held_sockets), held_sockets
        close_all(entries)


@cases.case("cpr-hostile/an-old-process-that-never-half-closes", timeout=90)
def never_half_closes(folder: Path) -> None:
    """Ten seconds; who comes meanwhile waits in the queue and is served."""
    with NewProcess(folder) as new, cpr.connect(new.ways.cpr) as silent:
        _raw(MAGIC + _one() + b"\0", 1, end=False)(silent)
        assert hung_up(silent)
        new.refused("did not end its side behind the list")
        new.takes_a_good_one()


@cases.case("cpr-hostile/probes-are-passed-over")
def probes(folder: Path) -> None:
    with NewProcess(folder) as new:
        for _ in range(20):
            cpr.connect(new.ways.cpr).close()
        assert new.daemon.status() == "none", new.daemon.query_migrate()
        new.takes_a_good_one()


@cases.case("cpr-hostile/descriptors-that-cannot-be-opened-here")
def out_of_descriptors(folder: Path) -> None:
    """Ancillary data cut short, because the new process may open no more."""
    import resource
    with NewProcess(folder, limits={resource.RLIMIT_NOFILE: 40}) as new:
        entries = [(b"n%d" % number, 0, cpr.memfd(streams.PAGE)) for number in range(60)]
        with cpr.connect(new.ways.cpr) as connection:
            with contextlib.suppress(OSError):
                cpr.send_list(connection, entries)
            assert hung_up(connection)
        close_all(entries)
        new.refused("descriptors were lost on the way")
        new.takes_a_good_one()


@cases.case("cpr-hostile/no-descriptor-of-a-dead-new-process-is-missed", quick=True)
def new_dies(folder: Path) -> None:
    """A daemon killed before and after it took the list: QEMU's guest runs on, and goes to the next daemon."""
    with old_qemu(folder) as source:
        source.wait_sweeps(3)
        for number, moment in enumerate(("before", "after")):
            ways = Ways.of(folder, f"way{number}")
            with Migrationd(folder, f"dies{number}", incoming=["defer", ways.json_cpr()]) as park:
                park.status()
                if moment == "before":
                    park.signal(signal.SIGSTOP)     # it accepts nothing: the kernel holds the list
                    begin(source, ways)
                    park.kill()
                else:
                    begin(source, ways)
                    park.wait(lambda: "descriptors came" in park.output(), 20, "the list")
                    assert source.status() == "setup"
                    park.kill()
            source.wait(lambda: source.status() == "failed", 20, "the old side to notice")
            assert source.run_state() == "running"
            source.wait_sweeps(cpr_last(source) + 2)
        ways = Ways.of(folder, "good")
        with Migrationd(folder, "park", incoming=ways.incoming()) as park:
            hand_over(source, park, ways)
            same_memory(source, park)


def cpr_last(host: Qemu) -> int:
    from ..lib.guest import last_number
    return last_number(host.serial())


@cases.case("cpr-hostile/a-new-process-that-never-hangs-up", quick=True)
def never_hangs_up(folder: Path) -> None:
    """Ours as the old side waits, answers queries at once, and a cancel ends it; then it goes to a QEMU."""
    one, two, three = (Ways.of(folder, name) for name in ("one", "two", "three"))
    with old_qemu(folder) as source, Migrationd(folder, "park", incoming=one.incoming()) as park:
        source.wait_sweeps(3)
        hand_over(source, park, one)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(two.cpr))
            listener.listen(1)
            begin(park, two)
            connection, _ = listener.accept()
            _, descriptors = cpr.receive_list(connection)
            # A word of its own is nothing: only the end counts.
            connection.sendall(b"hello")
            for _ in range(5):
                assert park.status() == "setup" and park.run_state() == "running"
            park.qmp.execute("migrate_cancel")
            park.wait(lambda: park.status() == "cancelled", 20, "the cancel")
            for fd in descriptors:
                os.close(fd)
            connection.close()
        with new_qemu(folder, "target", three) as destination:
            hand_over(park, destination, three)
            same_memory(park, destination)
