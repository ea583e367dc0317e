# SPDX-License-Identifier: Apache-2.0
"""A guest that speaks the guest protocol (docs/formats/guest-protocol.md) by a script, and a little machine on top of it.

Guest answers what the daemon asks by its `hooks`: a function per message type, which returns (body, descriptors), raises
Refuse, or returns HANG. Machine is a guest whose thread writes pages of its memory while it runs, and keeps a ledger of
what each must hold, which travels in its device's state: so the guest at the other end can prove every page.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import Any, Callable

PAGE = 4096
WAIT = 30.0
MAGIC, STATE_MAGIC = 0x4D444731, 0x4D445354
(HELLO, ADD_BLOCK, NEW_BLOCK, ADD_DEVICE, READY, ADD_BLOCKER, DELETE_BLOCKER, GIVEN_BACK, DETACH) = range(1, 10)
(STOP, START, THROTTLE, SAVE, LOAD, WATCH, UNWATCH, DIRTY_LOG, DIRTY_SYNC, NO_HUGE_PAGES, OUTCOME) = range(32, 43)
REPLY, REFUSAL = 0x8000, 0xFFFF
NONE, PROTECT, BITMAP, BOTH = range(4)
EMPTY, PAUSED, RUNNING = range(3)
LEFT, STAYS, ARRIVED = 1, 2, 3
F_ADD_SEALS, SHRINK, GROW, WRITE = 1033, 2, 4, 8
UFFDIO_API, UFFD_API = 0xC018AA3F, 0xAA
HANG = object()

libc = ctypes.CDLL(None, use_errno=True)


class Refuse(Exception):
    """What the guest says no with."""


class Refused(Exception):
    """What the daemon said no with."""


class Gone(Exception):
    """The daemon hung up."""


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(data)) + data


def memfd(length: int, seals: int = SHRINK, flags: int = 0) -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, length)
    fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


def sealed_state(data: bytes, seals: int = SHRINK | GROW | WRITE) -> int:
    fd = os.memfd_create("state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


def hello(name: str = "test-machine", lowest: int = 1, highest: int = 1, vcpus: int = 1, device: int = 0,
          library: str = "guest_lib.py") -> bytes:
    return struct.pack(">IHH", MAGIC, lowest, highest) + text(library) + text(name) + struct.pack(">IB", vcpus, device)


def state_of(sections: list[tuple[str, int, int, bytes, str]]) -> bytes:
    out = struct.pack(">II", STATE_MAGIC, len(sections))
    for name, instance, version, body, description in sections:
        out += text(name) + struct.pack(">IIB", instance, version, 0)
        out += struct.pack(">I", len(body)) + body + struct.pack(">I", len(description)) + description.encode()
    return out


def sections_of(state: bytes) -> list[tuple[str, int, int, bytes]]:
    magic, count = struct.unpack_from(">II", state)
    assert magic == STATE_MAGIC
    at, sections = 8, []
    for _ in range(count):
        (length,) = struct.unpack_from(">H", state, at)
        name = state[at + 2:at + 2 + length].decode()
        at += 2 + length
        instance, version, _, size = struct.unpack_from(">IIBI", state, at)
        body = state[at + 13:at + 13 + size]
        at += 13 + size
        (described,) = struct.unpack_from(">I", state, at)
        at += 4 + described
        sections.append((name, instance, version, body))
    assert at == len(state)
    return sections


def userfaultfd(features: int, user_mode_only: bool) -> int:
    """A fresh one of this process, after its handshake."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    fd = libc.syscall(323, flags)
    if fd < 0 and user_mode_only:
        fd = libc.syscall(323, flags | 1)
    if fd < 0:
        raise Refuse("no userfaultfd here: " + os.strerror(ctypes.get_errno()))
    fcntl.ioctl(fd, UFFDIO_API, struct.pack("QQQ", UFFD_API, features, 0))
    return fd


class Block:
    def __init__(self, name: str, length: int, tracking: int, page: int = PAGE) -> None:
        self.name, self.length, self.tracking, self.page = name, length, tracking, page
        self.fd = memfd(length)
        self.memory = mmap.mmap(self.fd, length)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.fds = [self.fd]
        self.bitmap: mmap.mmap | None = None
        if tracking in (BITMAP, BOTH):
            bits = memfd((length // PAGE + 7) // 8)
            self.fds.append(bits)
            self.bitmap = mmap.mmap(bits, (length // PAGE + 7) // 8)

    def message(self) -> bytes:
        return text(self.name) + struct.pack(">QQIB", self.address, self.length, self.page, self.tracking)


class Guest:
    """A connection. Before serve() the test reads by itself: say() and expect()."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(WAIT)
        self.socket.connect(path)
        self.serial = 0
        self.hooks: dict[int, Callable[[bytes, list[int]], Any]] = {}
        self.asked: list[int] = []
        self.outcomes: list[tuple[int, str]] = []
        self.kept: dict[int, list[int]] = {}
        self.changed = threading.Condition()
        self.replies: dict[int, tuple[int, bytes, list[int]]] = {}
        self.over = False
        self.serving = 0
        self.unanswered: dict[int, int] = {}
        self.thread: threading.Thread | None = None

    # --- the socket -----------------------------------------------------------------------------------------------
    def put(self, kind: int, serial: int, body: bytes = b"", fds: list[int] | tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([struct.pack(">HHI", kind, 0, serial) + body], rights)
        except (BrokenPipeError, ConnectionResetError) as gone:
            raise Gone() from gone

    def take(self) -> tuple[int, int, bytes, list[int]]:
        try:
            data, rights, _, _ = self.socket.recvmsg(1 << 17, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError as gone:
            raise Gone() from gone
        fds = array.array("i")
        for _, _, packed in rights:
            fds.frombytes(packed)
        if not data:
            raise Gone()
        kind, zero, serial = struct.unpack_from(">HHI", data)
        assert zero == 0
        return kind, serial, data[8:], list(fds)

    def close(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if self.thread and self.thread is not threading.current_thread():
            self.thread.join(WAIT)
        self.socket.close()

    # --- requests of ours -------------------------------------------------------------------------------------------
    def ask(self, kind: int, body: bytes = b"", fds: list[int] | tuple[int, ...] = ()) -> tuple[bytes, list[int]]:
        self.serial += 1
        self.put(kind, self.serial, body, fds)
        if self.thread:
            with self.changed:
                assert self.changed.wait_for(lambda: self.serial in self.replies or self.over, WAIT)
                if self.serial not in self.replies:
                    raise Gone()
                got, answer, got_fds = self.replies.pop(self.serial)
        else:
            while True:
                got, serial, answer, got_fds = self.take()
                if got & REPLY:
                    break
            assert serial == self.serial, (hex(got), serial)
        if got == REFUSAL:
            raise Refused(answer[2:].decode())
        assert got == REPLY | kind
        return answer, got_fds

    def refusal(self, kind: int, body: bytes = b"", fds: list[int] | tuple[int, ...] = ()) -> str:
        try:
            self.ask(kind, body, fds)
        except Refused as why:
            return str(why)
        raise AssertionError("it was taken")

    def told_why(self) -> str:
        """The last word of a daemon that hangs up."""
        why = ""
        try:
            while True:
                kind, _, body, _ = self.take()
                if kind == REFUSAL:
                    why = body[2:].decode()
        except Gone:
            return why

    # --- requests of the daemon's -------------------------------------------------------------------------------------
    def serve(self) -> None:
        self.socket.settimeout(None)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            while True:
                self.dispatch(*self.take())
        except (Gone, OSError):
            pass
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def dispatch(self, kind: int, serial: int, body: bytes, fds: list[int]) -> None:
        if kind & REPLY:
            with self.changed:
                self.replies[serial] = (kind, body, fds)
                self.changed.notify_all()
            return
        if kind == OUTCOME:
            with self.changed:
                self.outcomes.append((body[0], body[3:].decode()))
                self.changed.notify_all()
            return
        self.serving = serial
        try:
            answer = self.hooks.get(kind, lambda _body, _fds: (b"", []))(body, fds)
            if answer is HANG:
                self.unanswered[kind] = serial
            elif kind != THROTTLE:
                self.put(REPLY | kind, serial, answer[0], answer[1])
        except Refuse as why:
            self.put(REFUSAL, serial, text(str(why)))
        finally:
            for fd in fds:
                os.close(fd)
        with self.changed:
            self.asked.append(kind)
            self.changed.notify_all()

    def last_unanswered(self, kind: int) -> int:
        self.wait_asked(kind)
        return self.unanswered[kind]

    def wait_asked(self, kind: int, times: int = 1) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.asked.count(kind) >= times, WAIT), (kind, self.asked)

    def wait_outcome(self, what: int) -> str:
        with self.changed:
            assert self.changed.wait_for(lambda: any(o[0] == what for o in self.outcomes), WAIT), self.outcomes
            return next(o[1] for o in self.outcomes if o[0] == what)

    def wait_over(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.over, WAIT)

    # --- the means to watch --------------------------------------------------------------------------------------------
    def watch(self, body: bytes, _fds: list[int]) -> tuple[bytes, list[int]]:
        purpose, features = struct.unpack(">BQ", body)
        fd = userfaultfd(features, purpose != 2)
        self.kept[purpose] = [fd]
        if purpose != 1:
            return b"", [fd]
        self.kept[purpose].append(os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC))
        return b"", self.kept[purpose]

    def unwatch(self, body: bytes, _fds: list[int]) -> tuple[bytes, list[int]]:
        for fd in self.kept.pop(body[0], []):
            os.close(fd)
        return b"", []

    def no_huge_pages(self, block: "Block") -> None:
        libc.madvise(ctypes.c_void_p(block.address), ctypes.c_size_t(block.length), 15)


class Machine(Guest):
    """One block ("ram") of `pages`, one device ("ledger"), and a thread that writes while it runs."""

    def __init__(self, path: str, state: int, pages: int = 2048, tracking: int = PROTECT, pause: float = 0.0005,
                 name: str = "test-machine", unmigratable: bool = False, uuid: bytes = bytes(16)) -> None:
        super().__init__(path)
        self.block = Block("ram", pages * PAGE, tracking)
        self.pages, self.pause = pages, pause
        self.ledger: dict[int, int] = {}
        self.count = 0
        self.runs = threading.Event()
        self.rests = threading.Event()
        self.rests.set()
        self.ended = False
        self.hooks = {STOP: self.stop, START: self.start, SAVE: self.save, LOAD: self.load, WATCH: self.watch,
                      UNWATCH: self.unwatch, NO_HUGE_PAGES: lambda _b, _f: self.forbid()}
        if state != EMPTY:
            for page in range(0, pages, 3):
                self.write(page)
        self.ask(HELLO, hello(name))
        self.ask(ADD_BLOCK, self.block.message(), self.block.fds)
        self.ask(ADD_DEVICE, text("ledger") + struct.pack(">IIIB", 0, 3, 2, 1 if unmigratable else 0))
        if state == RUNNING:
            self.start(b"", [])
        self.ask(READY, bytes([state]) + uuid)
        self.worker = threading.Thread(target=self.work, daemon=True)
        self.worker.start()
        self.serve()

    def forbid(self) -> tuple[bytes, list[int]]:
        self.no_huge_pages(self.block)
        return b"", []

    def write(self, page: int) -> None:
        self.count += 1
        self.block.memory[page * PAGE:page * PAGE + 8] = struct.pack("<Q", self.count)
        if self.block.bitmap is not None:
            self.block.bitmap[page // 8] |= 1 << (page % 8)  # one writer: the daemon alone clears besides
        self.ledger[page] = self.count

    def work(self) -> None:
        page = 0
        while not self.ended:
            if not self.runs.wait(0.05):
                continue
            self.rests.clear()
            while self.runs.is_set() and not self.ended:
                page = (page * 7 + 13) % self.pages
                self.write(page)
                threading.Event().wait(self.pause)
            self.rests.set()

    def stop(self, _body: bytes, _fds: list[int]) -> tuple[bytes, list[int]]:
        self.runs.clear()
        if not self.rests.wait(WAIT):
            raise Refuse("the writer does not rest")
        return b"", []

    def start(self, _body: bytes, _fds: list[int]) -> tuple[bytes, list[int]]:
        self.runs.set()
        return b"", []

    def save(self, _body: bytes, _fds: list[int]) -> tuple[bytes, list[int]]:
        state = state_of([("ledger", 0, 3, json.dumps({"count": self.count, "pages": self.ledger}).encode(), "")])
        return struct.pack(">Q", len(state)), [sealed_state(state)]

    def load(self, body: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
        (length,) = struct.unpack(">Q", body)
        ((name, instance, version, data),) = sections_of(os.pread(fds[0], length, 0))
        assert (name, instance, version) == ("ledger", 0, 3)
        ledger = json.loads(data)
        self.count = ledger["count"]
        self.ledger = {int(page): value for page, value in ledger["pages"].items()}
        return b"", []

    def prove(self) -> int:
        """Every page holds what the ledger says, or nothing; only while the writer rests."""
        for page in range(self.pages):
            (found,) = struct.unpack_from("<Q", self.block.memory, page * PAGE)
            wanted = self.ledger.get(page, 0)
            assert found == wanted, f"page {page}: {found} instead of {wanted}"
        return len(self.ledger)

    def watches(self) -> int:
        return len(self.kept)

    def end(self) -> None:
        self.ended = True
        self.runs.set()
        self.close()
        self.worker.join(WAIT)


class Remote:
    """A Machine in a process of its own: one that waits for a page waits with all of its interpreter."""

    def __init__(self, path: str, state: int, pages: int = 2048) -> None:
        self.process = subprocess.Popen([sys.executable, "-B", __file__, path, str(state), str(pages)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.reply() == "attached"

    def reply(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the guest's process ended"
        return json.loads(line)

    def call(self, name: str, *arguments: Any) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        return self.reply()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def main() -> None:
    path, state, pages = sys.argv[1:]
    machine = Machine(path, int(state), int(pages))
    print(json.dumps("attached"), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(machine, name)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
