# SPDX-License-Identifier: Apache-2.0
"""The ways a machine can travel between two hosts, each of them QEMU of some version or migrationd.

A Link knows what to say to the destination and to the source. `live` links need both at once; the others store the
stream and the source is done before the destination begins. `two_way` links can carry a return path.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from pathlib import Path

from .host import Host
from .programs import Skip

_VSOCK_PORT_BASE = 20000


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody has. None of those which the kernel gives to who asks for any port or connects without one:
    such a one could be taken again before it is used."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        lowest_given = int(file.read().split()[0])
    candidates = range(10000, lowest_given) if lowest_given > 11000 else (0,)
    while True:
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.bind((host, random.choice(candidates)))
                return probe.getsockname()[1]
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise Skip(f"{host}: {error.strerror} (no IPv6 here?)") from error
            if error.errno != errno.EADDRINUSE:
                raise



class Link:
    name = ""
    live = True
    two_way = False

    def __init__(self, folder: Path, tag: str):
        self.path = folder / f"{tag}.{self.name}"
        self.open_fds: list[int] = []

    def listen(self, destination: Host) -> None:
        raise NotImplementedError

    def connect(self, source: Host) -> None:
        raise NotImplementedError

    def hand_fd(self, host: Host, fd: int) -> None:
        """Gives the host that descriptor under the name `link` and closes ours."""
        host.qmp.execute("getfd", {"fdname": "link"}, fds=[fd])
        os.close(fd)
        self.open_fds.remove(fd)

    def close(self) -> None:
        for fd in self.open_fds:
            os.close(fd)
        self.open_fds.clear()


class Tcp4(Link):
    name = "tcp4"
    two_way = True
    host = "127.0.0.1"

    def listen(self, destination: Host) -> None:
        destination.incoming(f"tcp:{self.host}:0")
        self.port = destination.listening_port()

    def connect(self, source: Host) -> None:
        source.migrate(f"tcp:{self.host}:{self.port}")


class Tcp6(Tcp4):
    name = "tcp6"
    host = "[::1]"

    def __init__(self, folder: Path, tag: str):
        super().__init__(folder, tag)
        free_port("::1")    # skips where there is no such address


class Unix(Link):
    name = "unix"
    two_way = True

    def listen(self, destination: Host) -> None:
        destination.incoming(f"unix:{self.path}")

    def connect(self, source: Host) -> None:
        source.migrate(f"unix:{self.path}")


class Vsock(Link):
    name = "vsock"
    two_way = True
    _next_port = _VSOCK_PORT_BASE + os.getpid() % 10000

    def __init__(self, folder: Path, tag: str):
        super().__init__(folder, tag)
        self.require_loopback()
        Vsock._next_port += 1
        self.port = Vsock._next_port

    @staticmethod
    def require_loopback() -> None:
        try:
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
                listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
                listener.listen()
                with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
                    client.settimeout(2)
                    client.connect((1, listener.getsockname()[1]))
        except OSError as error:
            raise Skip(f"this kernel has no loopback vsock ({error.strerror or error})") from error

    def listen(self, destination: Host) -> None:
        destination.incoming(f"vsock:1:{self.port}")

    def connect(self, source: Host) -> None:
        source.migrate(f"vsock:1:{self.port}")


class FdSocket(Link):
    name = "fd-socket"
    two_way = True

    def _pair(self) -> tuple[int, int]:
        ours, theirs = socket.socketpair()
        return ours.detach(), theirs.detach()

    def listen(self, destination: Host) -> None:
        self.far, self.near = self._pair()
        self.open_fds = [self.far, self.near]
        self.hand_fd(destination, self.far)
        destination.incoming("fd:link")

    def connect(self, source: Host) -> None:
        self.hand_fd(source, self.near)
        source.migrate("fd:link")


class FdPipe(FdSocket):
    name = "fd-pipe"
    two_way = False

    def _pair(self) -> tuple[int, int]:
        return os.pipe()


class FdFile(Link):
    name = "fd-file"
    live = False

    def connect(self, source: Host) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self.open_fds.append(fd)
        self.hand_fd(source, fd)
        source.migrate("fd:link")

    def listen(self, destination: Host) -> None:
        fd = os.open(self.path, os.O_RDONLY)
        self.open_fds.append(fd)
        self.hand_fd(destination, fd)
        destination.incoming("fd:link")


class ExecLive(Link):
    """Two programs joined by a FIFO."""
    name = "exec"

    def listen(self, destination: Host) -> None:
        os.mkfifo(self.path)
        destination.incoming(f"exec:cat {self.path}")

    def connect(self, source: Host) -> None:
        source.migrate(f"exec:cat > {self.path}")


class ExecFile(Link):
    name = "exec-file"
    live = False

    def connect(self, source: Host) -> None:
        source.migrate(f"exec:cat > {self.path}")

    def listen(self, destination: Host) -> None:
        destination.incoming(f"exec:cat {self.path}")


class File(Link):
    """`file:`; on the side of a 7.2, which has no such scheme, exec with the same bytes."""
    name = "file"
    live = False

    def connect(self, source: Host) -> None:
        source.migrate(f"exec:cat > {self.path}" if source.version == "7.2" else f"file:{self.path}")

    def listen(self, destination: Host) -> None:
        destination.incoming(f"exec:cat {self.path}" if destination.version == "7.2" else f"file:{self.path}")


class FileOffset(Link):
    """`file:` at an offset; what lies before it must survive."""
    name = "file-offset"
    live = False
    offset = 12345
    preface = b"kept"

    def connect(self, source: Host) -> None:
        if source.version == "7.2":
            raise Skip("QEMU 7.2 has no file: addresses")
        self.path.write_bytes(self.preface)
        source.migrate(f"file:{self.path},offset={self.offset}")

    def listen(self, destination: Host) -> None:
        if destination.version == "7.2":
            raise Skip("QEMU 7.2 has no file: addresses")
        head = self.path.read_bytes()[:self.offset + 4]
        assert head == self.preface.ljust(self.offset, b"\0") + b"QEVM", "what lies before the offset was changed"
        destination.incoming(f"file:{self.path},offset={self.offset:#x}")


ALL = {link.name: link for link in
       (Tcp4, Tcp6, Unix, Vsock, FdSocket, FdPipe, FdFile, ExecLive, ExecFile, File, FileOffset)}


def transfer(source: Host, destination: Host, link: Link, return_path: bool = False) -> None:
    """Moves the machine and returns when both sides say `completed`."""
    for host in (source, destination):
        host.capabilities(return_path=return_path and link.two_way)
    try:
        if link.live:
            link.listen(destination)
        link.connect(source)
        source.wait_status("completed")
        if not link.live:
            link.listen(destination)
        destination.wait_status("completed")
    finally:
        link.close()
