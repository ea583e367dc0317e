# SPDX-License-Identifier: Apache-2.0
"""A proxy between a multifd source and its destination that changes what passes: hellos, packets, the main stream.

The faults are made in the bytes of a real source, so that everything around them is as real as it gets.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field

HELLO = 64
HEADER = 1344
MAGIC = b"\x11\x22\x33\x44"
SYNC = 1


@dataclass
class Packet:
    """One packet of a channel on its way; what is left in it is sent on."""
    channel: int            # as the source numbered it
    number: int             # of this channel, 0 is the first
    header: bytearray
    payload: bytearray

    def field(self, at: int) -> int:
        return struct.unpack_from(">I", self.header, at)[0]

    def put(self, at: int, value: int, form: str = ">I") -> None:
        struct.pack_into(form, self.header, at, value)

    @property
    def flags(self) -> int:
        return self.field(8)

    @property
    def normal(self) -> int:
        return self.field(16)

    @property
    def zero(self) -> int:
        return self.field(32)


class Fault:
    """Does nothing; a fault of a kind changes one of these. What they return is sent on, `None` ends the connection
    there, both ways."""

    def hello(self, channel: int, data: bytearray) -> bytes | None:
        return bytes(data)

    def packet(self, packet: Packet) -> bytes | None:
        return bytes(packet.header + packet.payload)

    def main(self, data: bytes) -> bytes | None:
        return data


@dataclass
class Proxy:
    """Listens on 127.0.0.1; every connection gets one to `port`."""
    port: int
    fault: Fault
    compressed: bool = False
    listener: socket.socket = field(init=False)
    open: list[socket.socket] = field(default_factory=list)

    def __post_init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"tcp:127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end(self.listener, *self.open)

    @staticmethod
    def _end(*sockets: socket.socket) -> None:
        for link in sockets:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        self.open.append(near)
        try:
            far = socket.create_connection(("127.0.0.1", self.port))
            self.open.append(far)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._back, args=(far, near), daemon=True).start()
            first = _exactly(near, 4)
            (self._channel if first == MAGIC else self._main)(first, near, far)
        except OSError:
            pass
        finally:
            # The end of the source's stream is passed on; the way back stays open for its answer.
            with contextlib.suppress(OSError, UnboundLocalError):
                far.shutdown(socket.SHUT_WR)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)
        self._end(near)     # the source sees what its destination's end would show it

    def _main(self, first: bytes, near: socket.socket, far: socket.socket) -> None:
        data = first
        while data:
            changed = self.fault.main(data)
            if changed is None:
                return self._end(near, far)
            far.sendall(changed)
            data = near.recv(1 << 20)

    def _channel(self, first: bytes, near: socket.socket, far: socket.socket) -> None:
        hello = bytearray(first + _exactly(near, HELLO - 4))
        channel = hello[24]
        changed = self.fault.hello(channel, hello)
        number = 0
        while changed is not None:
            far.sendall(changed)
            header = bytearray(_exactly(near, HEADER))
            packet = Packet(channel, number, header, bytearray())
            size = packet.field(20) if self.compressed else packet.normal * 4096
            if packet.normal:
                packet.payload += _exactly(near, size)
            number += 1
            changed = self.fault.packet(packet)
        self._end(near, far)


def _exactly(link: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        piece = link.recv(count - len(parts))
        if not piece:
            raise OSError("ended")
        parts += piece
    return bytes(parts)
