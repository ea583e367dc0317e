# SPDX-License-Identifier: Apache-2.0
"""A wire between two hosts that a test breaks: at a byte, at a moment, in either direction, cleanly or not.

Every connection the source makes to the breaker's address gets one to the destination, in the order in which they came
(a preempt channel is known by its order only). One thread carries all of them, so that a break is one moment for all.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

from .links import free_port
from .programs import Skip

PACKAGED = bytes.fromhex("0800070004")  # command 7 with a payload of four bytes
_BUFFER = 1 << 18                       # bytes that may wait for a slow reader
_LINGER_NONE = struct.pack("ii", 1, 0)


class Addresses:
    """Addresses of changing transports, none of them twice."""

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0

    def next(self) -> str:
        self.number += 1
        kind = self.number % 3
        if kind == 0:
            with contextlib.suppress(Skip):
                return f"tcp:[::1]:{free_port('::1')}"
        return f"unix:{self.folder}/wire{self.number}" if kind == 1 else f"tcp:127.0.0.1:{free_port()}"


def _endpoint(address: str) -> tuple[int, object]:
    if address.startswith("unix:"):
        return socket.AF_UNIX, address[5:]
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    return (socket.AF_INET6, ("::1", int(port))) if host == "[::1]" else (socket.AF_INET, ("127.0.0.1", int(port)))


@dataclass
class _Side:
    """One end of a connection: what is still to be written to it, and whether it has said its last."""
    link: socket.socket
    waiting: bytearray = field(default_factory=bytearray)
    ended: bool = False


@dataclass
class _Order:
    """Break when so many more bytes have passed."""
    forward: bool
    bytes: int
    behind: bytes = b""     # counted only from behind these bytes on
    seen: bytes = b""


class Breaker:
    """`clean`: an end of the stream, as from a tunnel that ends; otherwise a reset."""

    def __init__(self):
        self._near, self._far = socket.socketpair()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._target = ""
        self._pairs: list[tuple[_Side, _Side]] = []
        self._order: _Order | None = None
        self._cut = self._clean = self._stop = False
        self.mute = False           # nothing gets back to the source any more
        self.mute_behind = b""      # so from the moment these bytes are passed on
        self._tail = b""
        self.broken = threading.Event()
        self.passed = {True: 0, False: 0}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop = True
        self._wake()
        self._thread.join(10)

    def _wake(self) -> None:
        self._near.send(b"x")

    # What a case says ------------------------------------------------------------------------------------------------

    def route(self, target: str, at: str) -> str:
        """From now on connections to `at` go to `target`. Returns `at`."""
        family, endpoint = _endpoint(at)
        listener = socket.socket(family)
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(endpoint)
        listener.listen()
        with self._lock:
            if self._listener:
                self._listener.close()
            self._listener, self._target = listener, target
            self.mute = False
        self._wake()
        return at

    def break_after(self, count: int, forward: bool = True, behind: bytes = b"", clean: bool = False) -> None:
        """Breaks when `count` more bytes have passed from the source on (or back)."""
        with self._lock:
            self.broken.clear()
            self._order, self._clean = _Order(forward, count, behind), clean

    def break_now(self, clean: bool = False) -> None:
        with self._lock:
            self._cut, self._clean, self._order = True, clean, None
        self._wake()
        assert self.broken.wait(10)

    # The wire --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop:
            with self._lock:
                if self._cut:
                    self._sever()
                listener = self._listener
            reads = [self._far] + ([listener] if listener else [])
            writes = []
            for one, other in self._directions():
                if not one.ended and len(other.waiting) < _BUFFER:
                    reads.append(one.link)
                if other.waiting:
                    writes.append(other.link)
            try:
                readable, writable, _ = select.select(reads, writes, [], 1)
            except (OSError, ValueError):   # the listener was replaced meanwhile
                continue
            if self._far in readable:
                self._far.recv(4096)
            with self._lock:
                if listener in readable and listener is self._listener:
                    self._accept(listener)
                for pair in list(self._pairs):
                    self._carry(pair, readable, writable)
        self._sever()
        if self._listener:
            self._listener.close()
        self._near.close()
        self._far.close()

    def _directions(self):
        for near, far in self._pairs:
            yield near, far
            yield far, near

    def _accept(self, listener: socket.socket) -> None:
        near, _ = listener.accept()
        family, endpoint = _endpoint(self._target)
        far = socket.socket(family)
        try:
            far.connect(endpoint)
        except OSError:
            near.close()
            far.close()
            return
        for link in (near, far):
            link.setblocking(False)
            if link.family != socket.AF_UNIX:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append((_Side(near), _Side(far)))

    def _carry(self, pair: tuple[_Side, _Side], readable, writable) -> None:
        near, far = pair
        try:
            for one, other, forward in ((near, far, True), (far, near, False)):
                if one.link in readable:
                    self._take(one, other, forward)
                    if pair not in self._pairs:
                        return
                if other.link in writable and other.waiting:
                    del other.waiting[:other.link.send(other.waiting)]
                if one.ended and not other.waiting:
                    with contextlib.suppress(OSError):
                        other.link.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            self._close(pair)
            return
        if near.ended and far.ended and not near.waiting and not far.waiting:
            self._close(pair)

    def _take(self, one: _Side, other: _Side, forward: bool) -> None:
        data = one.link.recv(1 << 16)
        if not data:
            one.ended = True
            return
        count = self._due(data, forward)
        passing = data if count is None else data[:count]
        self.passed[forward] += len(passing)
        if forward and self.mute_behind:
            self.mute |= self.mute_behind in self._tail + data
            self._tail = (self._tail + data)[-len(self.mute_behind):]
        if forward or not self.mute:
            other.waiting += passing
        if count is not None:
            other.link.settimeout(2)
            with contextlib.suppress(OSError):
                other.link.sendall(other.waiting)
            self._sever()

    def _due(self, data: bytes, forward: bool) -> int | None:
        """How much of this still passes, if it breaks here."""
        order = self._order
        if not order or order.forward != forward:
            return None
        skipped = 0
        if order.behind:
            known = len(order.seen)
            found = (order.seen + data).find(order.behind)
            if found < 0:
                order.seen = (order.seen + data)[-len(order.behind) + 1:]
                return None
            skipped = found + len(order.behind) - known
            order.behind = b""
        if len(data) - skipped < order.bytes:
            order.bytes -= len(data) - skipped
            return None
        return skipped + order.bytes

    def _sever(self) -> None:
        while self._pairs:
            self._close(self._pairs[0])
        self._cut, self._order = False, None
        self.broken.set()

    def _close(self, pair: tuple[_Side, _Side]) -> None:
        self._pairs.remove(pair)
        for side in pair:
            with contextlib.suppress(OSError):
                if self._clean:
                    side.link.shutdown(socket.SHUT_RDWR)
                elif side.link.family != socket.AF_UNIX:
                    side.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            side.link.close()
