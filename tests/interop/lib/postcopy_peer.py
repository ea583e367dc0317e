# SPDX-License-Identifier: Apache-2.0
"""A destination of postcopy, played by the test: it reads a real source's stream, keeps every page it gets, and says on
the return path whatever the case wants it to say.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from pathlib import Path

from .postcopy_source import (ADVISE, DISCARD, END_MARK, LISTEN, PACKAGED, PONG, RECV_BITMAP, REQ_PAGES, REQ_PAGES_ID,
                              RESUME, RESUME_ACK, RUN, SHUT, Image)
from .streams import (COMMAND, CONFIGURATION, CONTINUE, END, EOS, FOOTER, FULL_PAGE, MEM_SIZE, PAGE, PART, START, ZERO,
                      command, configuration, header, str8, u16, u32, u64)

OPEN_RETURN_PATH, PING, ASK_BITMAP, SWITCHOVER_START = 1, 2, 10, 11


def message(kind: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return u16(kind) + u16(len(payload) if length is None else length) + payload


def ask(start: int, length: int = PAGE, block: str | bytes | None = None) -> bytes:
    """A request for pages; without a block, of the one named before."""
    if block is None:
        return message(REQ_PAGES, u64(start) + u32(length))
    return message(REQ_PAGES_ID, u64(start) + u32(length) + str8(block))


class Gone(Exception):
    """The source closed the connection."""


class Destination:
    """Listens on a unix socket. One thread: it reads when the case lets it read."""

    def __init__(self, folder: Path, name: str = "peer"):
        self.folder, self.called, self.number = folder, name, 0
        self.listener: socket.socket | None = None
        self.link: socket.socket | None = None
        self.second: socket.socket | None = None
        self.blocks: list[tuple[str, int]] = []
        self.pages: dict[tuple[str, int], bytes] = {}
        self.copies: dict[tuple[str, int], int] = {}    # how often each came, after the switch
        self.answer_pings = self.answer_package = True
        self.unanswered: list[bytes] = []       # PINGs while they are not
        self.switched = self.ended = False
        self.listen()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for link in (self.listener, self.link, self.second):
            if link:
                link.close()

    # Connections -----------------------------------------------------------------------------------------------------

    def listen(self) -> str:
        """At a new address, which is returned."""
        if self.listener:
            self.listener.close()
        self.number += 1
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{self.folder}/{self.called}{self.number}.sock")
        self.listener.listen()
        self.listener.settimeout(20)
        return self.address

    @property
    def address(self) -> str:
        return f"unix:{self.folder}/{self.called}{self.number}.sock"

    def accept(self) -> None:
        self.link, _ = self.listener.accept()
        self.buffer, self.at, self.block = b"", 0, ""

    def accept_second(self) -> None:
        """The source's preempt channel, which it makes at the switch at the latest."""
        self.second, _ = self.listener.accept()
        self.second.settimeout(20)

    def close(self) -> None:
        self.link.close()

    def say(self, data: bytes) -> None:
        """On the return path; what comes meanwhile is kept for later, so that neither waits for the other."""
        view = memoryview(data)
        deadline = time.monotonic() + 30
        while view:
            assert time.monotonic() < deadline, "the source does not read"
            readable, writable, _ = select.select([self.link], [self.link], [], 1)
            if readable:
                self._fill()
            if writable:
                try:
                    view = view[self.link.send(view[:1 << 16]):]
                except OSError as error:
                    raise Gone(str(error)) from error

    # The stream ------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        try:
            data = self.link.recv(1 << 18)
        except OSError as error:
            raise Gone(str(error)) from error
        if not data:
            raise Gone("end of the stream")
        self.buffer, self.at = self.buffer[self.at:] + data, 0

    def take(self, count: int) -> bytes:
        while len(self.buffer) - self.at < count:
            assert select.select([self.link], [], [], 20)[0], "the source says nothing"
            self._fill()
        self.at += count
        return self.buffer[self.at - count:self.at]

    def number_of(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def name(self) -> str:
        return self.take(self.number_of(1)).decode()

    def _records(self) -> None:
        while True:
            word = self.number_of(8)
            flags, offset = word & (PAGE - 1), word & ~(PAGE - 1)
            if flags & EOS:
                return
            if flags & MEM_SIZE:
                self._block_list(offset)
                continue
            if not flags & CONTINUE:
                self.block = self.name()
            data = self.take(PAGE) if flags & FULL_PAGE else None
            assert flags & (FULL_PAGE | ZERO), hex(word)
            if data is None:
                assert self.take(1) == b"\0"
            if self.switched:
                self.copies[self.block, offset] = self.copies.get((self.block, offset), 0) + 1
            self.pages[self.block, offset] = data or bytes(PAGE)

    def _block_list(self, left: int) -> None:
        while left:
            name, size = self.name(), self.number_of(8)
            self.blocks.append((name, size))
            left -= size

    def element(self) -> tuple[int, int]:
        """Reads one; (kind, number of the command). PINGs are answered, also those in the package."""
        kind = self.take(1)[0]
        number = 0
        if kind == ord("Q"):
            self.take(7)
        elif kind == CONFIGURATION:
            self.machine_name = self.take(self.number_of(4))
        elif kind == COMMAND:
            number, length = self.number_of(2), self.number_of(2)
            self._command(number, self.take(length))
        elif kind in (START, PART, END):
            self.take(4)
            if kind == START:
                assert self.name() == "ram"
                self.take(8)
            self._records()
            assert self.take(5)[0] == FOOTER
        else:
            assert kind == 0, hex(kind)
            self.ended = True
        return kind, number

    def _command(self, number: int, payload: bytes) -> None:
        if number == PING:
            if self.answer_pings:
                self.say(message(PONG, payload))
            else:
                self.unanswered.append(payload)
        if number == DISCARD:
            name_length = payload[1]
            name = payload[2:2 + name_length].decode()
            for start, length in struct.iter_unpack(">QQ", payload[3 + name_length:]):
                for offset in range(start, start + length, PAGE):
                    self.pages.pop((name, offset), None)
        if number == PACKAGED:
            package = self.take(struct.unpack(">I", payload)[0])
            front, back = command(LISTEN), command(PING, u32(3)) + command(RUN)
            assert package.startswith(front) and package.endswith(back)
            self.devices = package[len(front):-len(back)]
            if self.answer_pings and self.answer_package:
                self.say(message(PONG, u32(3)))
            self.switched = True
        assert number in (OPEN_RETURN_PATH, PING, ADVISE, DISCARD, PACKAGED, RESUME, ASK_BITMAP, SWITCHOVER_START)

    # A whole postcopy ------------------------------------------------------------------------------------------------

    def until_switch(self) -> None:
        """Connected, and everything read up to the package: the machine is ours now."""
        self.accept()
        while not self.switched:
            self.element()

    def bitmap(self, name: str, size: int | None = None, end: int = END_MARK) -> bytes:
        """The answer to a question for one, by what has really come."""
        count = dict(self.blocks)[name] // PAGE
        bits = bytearray((count + 63) // 64 * 8)
        for page in range(count):
            if (name, page * PAGE) in self.pages:
                bits[page // 8] |= 1 << page % 8
        return message(RECV_BITMAP, str8(name)) + u64(len(bits) if size is None else size) + bytes(bits) + u64(end)

    def questions(self) -> None:
        """A recovery's connection, up to the last question for a bitmap."""
        self.accept()
        for _ in self.blocks:
            assert self.element() == (COMMAND, ASK_BITMAP)

    def recovered(self) -> None:
        """An honest answer; the source goes on."""
        self.questions()
        self.copies.clear()
        for name, _ in self.blocks:
            self.say(self.bitmap(name))
        assert self.element() == (COMMAND, RESUME)
        self.say(message(RESUME_ACK, u32(1)))

    def read_to_end(self) -> None:
        """Everything that comes, to the last byte. No answer yet."""
        while not self.ended:
            self.element()

    def answer_late(self) -> None:
        """The PINGs that were not answered, and all that come."""
        self.answer_pings = True
        for value in self.unanswered:
            self.say(message(PONG, value))
        self.unanswered.clear()

    def done(self) -> None:
        self.say(message(SHUT, u32(0)))

    def image(self) -> Image:
        """The machine that arrived, to be sent on and proved."""
        full = {page: data for page, data in self.pages.items() if data.strip(b"\0")}
        return Image(header() + configuration(self.machine_name), self.blocks, full, self.devices)

    def missing(self) -> list[tuple[str, int]]:
        return [(name, offset) for name, size in self.blocks for offset in range(0, size, PAGE)
                if (name, offset) not in self.pages]
