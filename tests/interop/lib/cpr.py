# SPDX-License-Identifier: Apache-2.0
"""cpr-transfer: its two channels, the list of descriptors written and read by hand, and whose memory is whose."""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

from .host import Host
from .procfs import listens

MAGIC = b"QCPR\0\0\0\1"
CARRIER = b"\x20"


def unix_channel(kind: str, path: Path | str) -> dict:
    return {"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": str(path)}}


@dataclass(frozen=True)
class Ways:
    """The two sockets of one hand-over."""
    main: Path
    cpr: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> "Ways":
        return cls(folder / f"{name}.main", folder / f"{name}.cpr")

    def channels(self) -> list[dict]:
        return [unix_channel("main", self.main), unix_channel("cpr", self.cpr)]

    def json_cpr(self) -> str:
        import json
        return json.dumps(unix_channel("cpr", self.cpr))

    def incoming(self) -> list[str]:
        return [f"unix:{self.main}", self.json_cpr()]

    def qemu_options(self) -> list[str]:
        return [word for value in self.incoming() for word in ("-incoming", value)]


def begin(old: Host, ways: Ways) -> None:
    """`migrate` by cpr-transfer; returns when the command does. The new process must listen: that is waited for."""
    old.wait(lambda: listens(ways.cpr), 20, f"somebody to listen at {ways.cpr}")
    old.parameters(mode="cpr-transfer")
    old.qmp.execute("migrate", {"channels": ways.channels()})


def hand_over(old: Host, new: Host, ways: Ways) -> None:
    begin(old, ways)
    old.wait_status("completed")
    new.wait_status("completed")


# Memory --------------------------------------------------------------------------------------------------------------

def memory_files(pid: int) -> dict[int, int]:
    """Inode and size of every memfd (and unlinked file of /dev/shm) the process has open."""
    files = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        try:
            name = os.readlink(path)
            if name.startswith("/memfd:") or name.startswith("/dev/shm/"):
                info = os.stat(path)
                files[info.st_ino] = info.st_size
        except OSError:
            continue
    return files


def largest_memory(pid: int) -> int:
    """The inode of the largest: the guest's main memory."""
    files = memory_files(pid)
    assert files, f"process {pid} has no memory file open"
    return max(files, key=lambda inode: files[inode])


def allocated(pid: int) -> dict[int, int]:
    """Bytes that the kernel has given to each memory file."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        try:
            if os.readlink(path).startswith("/memfd:"):
                info = os.stat(path)
                found[info.st_ino] = info.st_blocks * 512
        except OSError:
            continue
    return found


# The list by hand ----------------------------------------------------------------------------------------------------

def entry(name: bytes, identity: int = 0, length: int | None = None) -> bytes:
    """All of an entry but its carrier byte."""
    text = name + b"\0"
    return b"\1" + struct.pack(">I", len(text) if length is None else length) + text + struct.pack(">i", identity)


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))   # with a time limit it would not wait for room in the queue
    connection.settimeout(20)
    return connection


def send_list(connection: socket.socket, entries: list[tuple[bytes, int, int]]) -> None:
    """As QEMU sends it: (name, id, descriptor) each, the half-close included."""
    pending = MAGIC
    for name, identity, descriptor in entries:
        connection.sendall(pending + entry(name, identity))
        socket.send_fds(connection, [CARRIER], [descriptor])
        pending = b""
    connection.sendall(pending + b"\0")
    connection.shutdown(socket.SHUT_WR)


def receive_list(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Everything up to the half-close."""
    data, descriptors = b"", []
    while True:
        piece, control, flags, _ = connection.recvmsg(4096, socket.CMSG_SPACE(16 * 4))
        assert flags & socket.MSG_CTRUNC == 0, "descriptors were cut off"
        for level, kind, content in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[:len(content) - len(content) % numbers.itemsize])
                descriptors += numbers
        if not piece:
            return data, descriptors
        data += piece


def parse_list(data: bytes) -> list[tuple[bytes, int]]:
    assert data.startswith(MAGIC), data[:16]
    position, entries = len(MAGIC), []
    while data[position] == 1:
        length = struct.unpack_from(">I", data, position + 1)[0]
        name = data[position + 5:position + 5 + length]
        assert name.endswith(b"\0"), name
        identity = struct.unpack_from(">i", data, position + 5 + length)[0]
        position += 5 + length + 4
        assert data[position:position + 1] == CARRIER, data[position]
        position += 1
        entries.append((name[:-1], identity))
    assert data[position:] == b"\0", data[position:position + 8]
    return entries


def memfd(size: int) -> int:
    descriptor = os.memfd_create("hand-over", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    return descriptor


# Between the two -----------------------------------------------------------------------------------------------------

@dataclass
class Relay:
    """Passes one connection on, byte for byte both ways, and keeps what the first side said."""
    listen_at: Path
    connect_to: Path
    heard: bytes = b""
    _thread: threading.Thread | None = field(default=None, repr=False)

    def __enter__(self) -> "Relay":
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.listen_at))
        self._listener.listen(1)
        self._ended, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.close()
        assert self._thread is not None
        self._thread.join(20)
        self._listener.close()

    def finished(self) -> bytes:
        """All of it, once both sides have closed."""
        assert self._thread is not None
        self._thread.join(20)
        assert not self._thread.is_alive(), "the connection is still open"
        return self.heard

    def _run(self) -> None:
        ready, _, _ = select.select([self._listener, self._ended], [], [])
        if self._listener not in ready:
            return
        first, _ = self._listener.accept()
        with first, connect(self.connect_to) as second:
            open_sides = {first: second, second: first}
            while open_sides:
                ready, _, _ = select.select([*open_sides, self._ended], [], [])
                if self._ended in ready:
                    return
                for side in ready:
                    data = side.recv(1 << 16)
                    if side is first:
                        self.heard += data
                    try:
                        if data:
                            open_sides.get(side, second if side is first else first).sendall(data)
                        else:
                            (second if side is first else first).shutdown(socket.SHUT_WR)
                            del open_sides[side]
                    except OSError:
                        return
