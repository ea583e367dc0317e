# SPDX-License-Identifier: Apache-2.0
"""A source of postcopy, played by the test: a machine that was saved as a plain stream is sent again, its devices first
and its pages on request, with whatever delay, break or lie the case wants.
"""

from __future__ import annotations

import itertools
import random
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field

from . import streams
from .streams import (CONTINUE, EOS, FULL_PAGE, MEM_SIZE, PAGE, START, ZERO, command, record, section_header, str8, u32,
                      u64, u8)

SHUT, PONG, REQ_PAGES_ID, REQ_PAGES, RECV_BITMAP, RESUME_ACK = 1, 2, 3, 4, 5, 6
ADVISE, LISTEN, RUN, DISCARD, PACKAGED, RESUME, ASK_BITMAP = 3, 4, 5, 6, 7, 9, 10
# The id of a synthetic machine's memory; its devices have those behind it.
RAM_ID = 1
END_MARK = 0x0123456789ABCDEF


def footer() -> bytes:
    return streams.footer(RAM_ID)


@dataclass
class Image:
    """A machine out of a plain stream."""
    preamble: bytes                     # header and configuration
    blocks: list[tuple[str, int]]
    pages: dict[tuple[str, int], bytes]  # by block and offset; those of zeros are left out
    devices: bytes                      # FULL sections with their footers

    @classmethod
    def read(cls, data: bytes) -> "Image":
        at = 13 + struct.unpack_from(">I", data, 9)[0]
        while data[at] == 8:
            at += 5 + struct.unpack_from(">H", data, at + 3)[0]
        preamble = data[:13 + struct.unpack_from(">I", data, 9)[0]]
        assert data[at] == START, data[at]
        section = struct.unpack_from(">I", data, at + 1)[0]
        assert section == RAM_ID, section
        at += 5 + 4 + 8
        left = struct.unpack_from(">Q", data, at)[0] & ~(PAGE - 1)
        at += 8
        blocks = []
        while left:
            name = data[at + 1:at + 1 + data[at]].decode()
            at += 1 + data[at]
            size = struct.unpack_from(">Q", data, at)[0]
            at += 8
            blocks.append((name, size))
            left -= size
        pages: dict[tuple[str, int], bytes] = {}
        block = ""
        while True:
            word = struct.unpack_from(">Q", data, at)[0]
            at += 8
            flags, offset = word & (PAGE - 1), word & ~(PAGE - 1)
            if flags == EOS:
                assert data[at:at + 5] == footer(), data[at:at + 5]
                at += 5
                kind = data[at]
                if kind not in (2, 3) or data[at + 1:at + 5] != u32(section):
                    break
                at += 5
                continue
            if not flags & CONTINUE:
                block = data[at + 1:at + 1 + data[at]].decode()
                at += 1 + data[at]
            if flags & ZERO:
                pages.pop((block, offset), None)
                at += 1
            else:
                assert flags & FULL_PAGE, hex(word)
                pages[block, offset] = data[at:at + PAGE]
                at += PAGE
        # EOF, then 06 and the length of the description.
        end = data.index(b'{"', at) - 6
        assert data[end:end + 2] == b"\0\6", data[end:end + 8]
        return cls(preamble, blocks, pages, data[at:end])


class Broken(Exception):
    """The connection was broken, on purpose or not."""


@dataclass
class Source:
    """One postcopy. `sent_before`: part of the pages that goes before the switch. `rate`: background pages per second, 0:
    none at all. `host_page`: bytes per page of each block that is not made of small pages."""
    image: Image
    sent_before: float = 0.0
    rate: float = 1e9
    host_page: dict[str, int] = field(default_factory=dict)
    skip_zero: bool = False
    preempt: bool = False
    seed: int = 1
    requests: int = 0
    preempt_end: bool = True
    latency: float = 0.0

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.unsent: dict[tuple[str, int], None] = {}
        self.main: socket.socket | None = None
        self.second: socket.socket | None = None
        self.incoming = b""
        self.named: str | None = None
        self.asked_block = ""
        self.queue: deque[tuple[str, int]] = deque()
        self.messages: list[tuple[int, bytes]] = []
        self.shut: int | None = None
        self.last_block = {}

    # Page arithmetic -------------------------------------------------------------------------------------------------

    def unit(self, block: str) -> int:
        return self.host_page.get(block, PAGE)

    def all_pages(self):
        for name, size in self.image.blocks:
            for offset in range(0, size, self.unit(name)):
                yield name, offset

    def is_zero(self, page: tuple[str, int]) -> bool:
        block, offset = page
        return all((block, at) not in self.image.pages for at in range(offset, offset + self.unit(block), PAGE))

    def records(self, page: tuple[str, int], channel: str) -> bytes:
        block, offset = page
        out = []
        for at in range(offset, offset + self.unit(block), PAGE):
            name = None if self.last_block.get(channel) == block else block
            self.last_block[channel] = block
            data = self.image.pages.get((block, at))
            out.append(record(at, ZERO, name) + u8(0) if data is None else record(at, FULL_PAGE, name) + data)
        return b"".join(out)

    # Before the switch -------------------------------------------------------------------------------------------------

    def connect(self, address: str) -> socket.socket:
        if address.startswith("unix:"):
            link = socket.socket(socket.AF_UNIX)
            link.connect(address[5:])
        else:
            link = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])))
        return link

    def block_list(self) -> bytes:
        out = u64(sum(size for _, size in self.image.blocks) | MEM_SIZE)
        for name, size in self.image.blocks:
            out += str8(name) + u64(size)
            if name in self.host_page:
                out += u64(self.host_page[name])
        return out

    def page_sizes(self) -> int:
        sizes = 0
        for name, _ in self.image.blocks:
            sizes |= self.unit(name)
        return sizes

    def head(self) -> bytes:
        return (self.image.preamble + command(1) + command(2, u32(1))
                + command(ADVISE, u64(self.page_sizes()) + u64(PAGE))
                + section_header(START, RAM_ID, "ram", 0, 4) + self.block_list() + u64(EOS) + footer())

    def package(self) -> bytes:
        return command(LISTEN) + self.image.devices + command(2, u32(3)) + command(RUN)

    def discards(self) -> bytes:
        out = b""
        for name, pages in itertools.groupby(self.unsent, key=lambda page: page[0]):
            ranges: list[list[int]] = []
            for _, offset in pages:
                if ranges and ranges[-1][0] + ranges[-1][1] == offset:
                    ranges[-1][1] += self.unit(name)
                else:
                    ranges.append([offset, self.unit(name)])
            for at in range(0, len(ranges), 12):
                out += command(DISCARD, u8(0) + str8(name) + u8(0)
                               + b"".join(u64(start) + u64(length) for start, length in ranges[at:at + 12]))
        return out

    def start(self, address: str) -> None:
        """All up to and including the package."""
        self.main = self.connect(address)
        if self.preempt:
            self.second = self.connect(address)
        everything = list(self.all_pages())
        before = {page for page in everything if self.random.random() < self.sent_before}
        body = b"".join(self.records(page, "main") for page in everything if page in before)
        self.unsent = {page: None for page in everything if page not in before} or {everything[0]: None}
        self.last_block.clear()
        package = self.package()
        self.write(self.head() + (u8(2) + u32(RAM_ID) + body + u64(EOS) + footer() if body else b"")
                   + self.discards() + command(2, u32(2)) + command(PACKAGED, u32(len(package))) + package
                   + command(2, u32(4)))

    # After it ------------------------------------------------------------------------------------------------------------

    def write(self, data: bytes, link: socket.socket | None = None) -> None:
        link = link or self.main
        view = memoryview(data)
        try:
            while view:
                readable, writable, _ = select.select([self.main], [link], [], 10)
                if not readable and not writable:
                    raise Broken("nothing moves")
                if readable:
                    self.read()
                if writable:
                    view = view[link.send(view[:1 << 16]):]
        except OSError as error:
            raise Broken(str(error)) from error

    def read(self, timeout: float = 0.0) -> None:
        """Takes what has come on the return path."""
        if not select.select([self.main], [], [], timeout)[0]:
            return
        try:
            data = self.main.recv(1 << 16)
        except OSError as error:
            raise Broken(str(error)) from error
        if not data:
            raise Broken("the destination closed")
        self.incoming += data
        while len(self.incoming) >= 4:
            kind, length = struct.unpack_from(">HH", self.incoming)
            if len(self.incoming) < 4 + length:
                return
            payload = self.incoming[4:4 + length]
            rest = self.incoming[4 + length:]
            if kind == RECV_BITMAP:
                if len(rest) < 8 or len(rest) < 16 + struct.unpack_from(">Q", rest)[0]:
                    return
                size = struct.unpack_from(">Q", rest)[0]
                assert struct.unpack_from(">Q", rest, 8 + size)[0] == END_MARK
                self.take_bitmap(payload[1:].decode(), rest[8:8 + size])
                rest = rest[16 + size:]
            self.incoming = rest
            self.take(kind, payload)

    def take(self, kind: int, payload: bytes) -> None:
        self.messages.append((kind, payload))
        if kind == SHUT:
            self.shut = struct.unpack(">I", payload)[0]
        if kind in (REQ_PAGES, REQ_PAGES_ID):
            self.requests += 1
            start, length = struct.unpack_from(">QI", payload)
            if kind == REQ_PAGES_ID:
                self.asked_block = payload[13:].decode()
            assert self.asked_block, "a request without a block"
            assert length % self.unit(self.asked_block) == 0 and start % self.unit(self.asked_block) == 0
            self.queue.append((self.asked_block, start))

    def send_page(self, page: tuple[str, int], urgent: bool) -> bool:
        if page not in self.unsent:
            return False
        del self.unsent[page]
        if urgent and self.second:
            self.write(self.records(page, "second"), self.second)
        else:
            self.write(u8(2) + u32(RAM_ID) + self.records(page, "main") + u64(EOS) + footer())
        return True

    def serve_asked(self) -> None:
        while self.queue:
            if self.latency:
                time.sleep(self.latency)
            self.send_page(self.queue.popleft(), True)

    def serve(self, pages: int | None = None, seconds: float = 60) -> None:
        """Sends until all is sent (or so many pages were sent)."""
        deadline = time.monotonic() + seconds
        sent, started = 0, time.monotonic()
        background = (page for page in list(self.unsent) if not (self.skip_zero and self.is_zero(page)))
        while pages is None or sent < pages:
            assert time.monotonic() < deadline, f"{len(self.unsent)} pages left"
            self.read()
            self.serve_asked()
            if self.rate and sent < (time.monotonic() - started) * self.rate:
                page = next((page for page in background if page in self.unsent), None)
                if page is None:
                    return
                sent += self.send_page(page, False)
            elif not self.unsent:
                return
            else:
                self.read(0.001)

    def await_request(self) -> None:
        """Until somebody at the destination sleeps on a page."""
        deadline = time.monotonic() + 20
        while not self.queue:
            assert time.monotonic() < deadline, "no page was asked for"
            self.read(0.1)

    def finish(self) -> None:
        """END, EOF, and the answer."""
        self.write(u8(3) + u32(RAM_ID) + u64(EOS) + footer() + u8(0))
        self.serve_asked()
        if self.second and self.preempt_end:
            self.write(u64(EOS), self.second)
        deadline = time.monotonic() + 20
        while self.shut is None:
            assert time.monotonic() < deadline, "no answer from the destination"
            self.read(0.1)
        self.close()

    def send_the_rest(self) -> None:
        """Everything that is still lacking, at once, and the end."""
        self.rate = 1e9
        self.serve()
        self.finish()

    def close(self) -> None:
        for link in (self.main, self.second):
            if link:
                link.close()
        self.main = self.second = None

    # Recovery --------------------------------------------------------------------------------------------------------------

    def take_bitmap(self, block: str, bitmap: bytes) -> None:
        size = dict(self.image.blocks)[block]
        assert len(bitmap) == (size // PAGE + 63) // 64 * 8, (block, len(bitmap))
        self.bitmaps.add(block)
        for offset in range(0, size, self.unit(block)):
            bits = {bitmap[at // PAGE // 8] >> (at // PAGE % 8) & 1
                    for at in range(offset, offset + self.unit(block), PAGE)}
            assert len(bits) == 1, f"a part of the host page at {offset:#x} of {block} is reported"
            if bits == {0}:
                self.unsent[block, offset] = None

    def recover(self, address: str) -> None:
        """Connects anew and continues from what the destination has."""
        self.close()
        self.incoming, self.asked_block, self.named = b"", "", None
        self.queue.clear()
        self.messages.clear()
        self.last_block.clear()
        self.unsent, self.bitmaps = {}, set()
        self.main = self.connect(address)
        if self.preempt:
            self.second = self.connect(address)
        for name, _ in self.image.blocks:
            self.write(command(ASK_BITMAP, str8(name)))
        deadline = time.monotonic() + 20
        while len(self.bitmaps) < len(self.image.blocks):
            assert time.monotonic() < deadline, self.bitmaps
            self.read(0.1)
        self.write(command(RESUME))
        while (RESUME_ACK, u32(1)) not in self.messages:
            assert time.monotonic() < deadline, "no RESUME_ACK"
            self.read(0.1)
