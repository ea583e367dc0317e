# SPDX-License-Identifier: Apache-2.0
"""Packets, hellos and marks of a real multifd source, altered on their way: the destination says what is wrong within
seconds, nothing is declared complete, the source's guest runs on, and the next try moves it.

What a source made by hand can say wrong stands in multifd.py; here all but the fault is real.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Callable

from ..lib import cases
from ..lib.daemon import Migrationd
from ..lib.guest import check_serial, last_number
from ..lib.host import Host
from ..lib.programs import Skip
from ..lib.qemu import Qemu
from ..lib.qmp import QmpTimeout
from ..lib.tamper import HEADER, SYNC, Fault, Packet, Proxy
from .multifd import FLUSH, NEWEST, configure
from .synthetic import MB, machine

WITHIN = 5.0        # seconds from the fault to the destination's verdict
PATIENCE = 13.0     # for a channel that may still come
SILENCE = 36.0      # for a barrier at which nothing happens
NAME = 64           # places in the header
FIRST_OFFSET = 320

# A source that loses a channel closes the others at once: which end is seen first is chance.
GOES = ("the source went away while its multifd channels were awaited", "the source ended it before",
        "stream ends too early")


class Hello(Fault):
    """Channel 1's hello, changed; nothing: it never comes."""

    def __init__(self, change: Callable[[bytearray], None] | None):
        self.change = change

    def hello(self, channel: int, data: bytearray) -> bytes | None:
        if channel == 1:
            if self.change is None:
                return b""
            self.change(data)
        return bytes(data)

    def packet(self, packet: Packet) -> bytes | None:
        return b"" if packet.channel == 1 and self.change is None else super().packet(packet)


class Once(Fault):
    """The first packet of any channel that `wanted` picks, changed; what `change` returns goes on in its place."""

    def __init__(self, wanted: Callable[[Packet], bool], change: Callable[[Packet], bytes | None]):
        self.wanted = wanted
        self.change = change
        self.done = False

    def packet(self, packet: Packet) -> bytes | None:
        if self.done or not self.wanted(packet):
            return super().packet(packet)
        self.done = True
        return self.change(packet)


class WithoutFlush(Fault):
    """The main stream without the `which`th FLUSH record (0: in START), or without any (None)."""

    def __init__(self, which: int | None):
        self.which = which
        self.seen = 0

    def main(self, data: bytes) -> bytes | None:
        parts = data.split(FLUSH)
        out = parts[0]
        for part in parts[1:]:
            out += (b"" if self.which in (None, self.seen) else FLUSH) + part
            self.seen += 1
        return out


def pages(packet: Packet) -> bool:
    return 1 < packet.normal < 128


def some_pages(packet: Packet) -> bool:
    return packet.normal > 1


def second_sync(packet: Packet) -> bool:
    return packet.flags & SYNC != 0 and packet.number > 0


def setting(at: int, value: int, form: str = ">I") -> Callable[[Packet], bytes]:
    def change(packet: Packet) -> bytes:
        packet.put(at, value, form)
        return bytes(packet.header + packet.payload)
    return change


def put_id(value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[24] = value
    return change


def put_uuid(data: bytearray) -> None:
    data[8:24] = bytes(range(1, 17))


def put_name(packet: Packet) -> bytes:
    packet.header[NAME:NAME + 6] = b"nobody"
    return bytes(packet.header + packet.payload)


class Cutting(Fault):
    """So many bytes of the first packet with pages (None: the header and half of its pages), and then the connection
    is gone."""

    def __init__(self, place: int | None):
        self.place = place
        self.channel: int | None = None

    def packet(self, packet: Packet) -> bytes | None:
        if self.channel is None and some_pages(packet):
            self.channel = packet.channel
            data = bytes(packet.header + packet.payload)
            return data[:self.place if self.place is not None else HEADER + len(packet.payload) // 2]
        return None if self.channel == packet.channel else super().packet(packet)


def twice(packet: Packet) -> bytes:
    return bytes(packet.header + packet.payload) * 2


def nothing(_packet: Packet) -> bytes:
    return b""


def garbled(packet: Packet) -> bytes:
    # Neither method knows such a block. (What stands inside of a zstd block no decoder can tell from data: it has no sum.)
    packet.payload[:8] = b"\xff" * 8
    return bytes(packet.header + packet.payload)


def cut_payload(packet: Packet) -> bytes:
    """The compressed bytes without their last quarter, honestly sized."""
    del packet.payload[len(packet.payload) * 3 // 4:]
    packet.put(20, len(packet.payload))
    return bytes(packet.header + packet.payload)


def one_page_more(packet: Packet) -> bytes:
    last, = struct.unpack_from(">Q", packet.header, FIRST_OFFSET)
    packet.put(FIRST_OFFSET + 8 * packet.normal, last, ">Q")
    packet.put(32, 0)
    packet.put(16, packet.normal + 1)
    return bytes(packet.header + packet.payload)


def one_page_less(packet: Packet) -> bytes:
    packet.put(32, 0)
    packet.put(16, packet.normal - 1)
    return bytes(packet.header + packet.payload)


# name -> (fault, what the destination says: any of these, seconds)
FAULTS: dict[str, tuple[Callable[[], Fault], tuple[str, ...], float]] = {
    "channel/never-comes": (lambda: Hello(None), ("multifd channels are missing: 1 of 2 have come",), PATIENCE),
    "channel/twice": (lambda: Hello(put_id(0)), ("received id '0' already setup",), WITHIN),
    "channel/number-is-the-count": (lambda: Hello(put_id(2)), ("received channel id 2 is greater",), WITHIN),
    "channel/number-255": (lambda: Hello(put_id(255)), ("received channel id 255 is greater",), WITHIN),
    "channel/wrong-uuid": (lambda: Hello(put_uuid), ("multifd: received uuid '",), WITHIN),
    "channel/dies-in-a-header": (lambda: Cutting(700), ("Unexpected end-of-file", *GOES), WITHIN),
    "channel/dies-behind-a-header": (lambda: Cutting(HEADER), ("Unexpected end-of-file", *GOES), WITHIN),
    "channel/dies-in-a-page": (lambda: Cutting(None), ("Unexpected end-of-file", *GOES), WITHIN),
    "channel/dies-between-packets": (lambda: Cutting(0), GOES, WITHIN),
    "barrier/sync-lost": (lambda: Once(second_sync, nothing),
                          ("no synchronisation point within",), SILENCE),
    "barrier/sync-twice": (lambda: Once(second_sync, twice), ("received packet number",), WITHIN),
    "barrier/no-flush-at-all": (lambda: WithoutFlush(None),
                                ("no synchronisation point within", "behind the last one"), SILENCE),
    "barrier/no-flush-in-the-start": (lambda: WithoutFlush(0), ("synchronises at the end of each section",), WITHIN),
    "packet/twice": (lambda: Once(some_pages, twice), ("received packet number",), WITHIN),
    "packet/room-over-the-most": (lambda: Once(pages, setting(12, 129)), ("received packet with 129 pages",), WITHIN),
    "packet/normal-over-the-most": (lambda: Once(pages, setting(16, 129)), ("129 non-zero pages",), WITHIN),
    "packet/normal-huge": (lambda: Once(pages, setting(16, 0xffffffff)), ("4294967295 non-zero pages",), WITHIN),
    "packet/zero-over-the-most": (lambda: Once(pages, setting(32, 128)), ("128 zero pages, expected maximum",), WITHIN),
    "packet/offset-unaligned": (lambda: Once(pages, setting(FIRST_OFFSET, 8, ">Q")), ("is not at a page's start",),
                                WITHIN),
    "packet/offset-past-the-end": (lambda: Once(pages, setting(FIRST_OFFSET, 1 << 40, ">Q")), ("block '",), WITHIN),
    "packet/offset-wraps": (lambda: Once(pages, setting(FIRST_OFFSET, 0xfffffffffffff000, ">Q")), ("block '",), WITHIN),
    "packet/unknown-block": (lambda: Once(pages, put_name), ("unknown ram block nobody",), WITHIN),
    "packet/magic": (lambda: Once(pages, setting(0, 0x11223345)), ("received packet magic",), WITHIN),
    "packet/version": (lambda: Once(pages, setting(4, 7)), ("received packet version 7",), WITHIN),
    "packet/method": (lambda: Once(pages, setting(8, 4)), ("flags received 4 flags expected 0",), WITHIN),
    "packet/device-state": (lambda: Once(pages, setting(8, 0x40)), ("state of a device",), WITHIN),
    # One page more or less than there are: the header behind them is no header.
    "packet/one-page-too-many": (lambda: Once(pages, one_page_more), ("received packet magic",), WITHIN),
    "packet/one-page-too-few": (lambda: Once(pages, one_page_less), ("received packet magic",), WITHIN),
}
COMPRESSED: dict[str, tuple[Callable[[], Fault], tuple[str, ...], float]] = {
    "garbled": (lambda: Once(some_pages, garbled), ("multifd channel",), WITHIN),
    "cut": (lambda: Once(some_pages, cut_payload), ("size received", "returned", "multifd channel"), WITHIN),
    "more-pages-than-counted": (lambda: Once(some_pages, one_page_less), ("packet size received", "left over"), WITHIN),
    "fewer-pages-than-counted": (lambda: Once(pages, one_page_more), ("packet size received", "inflate returned -5"),
                                 WITHIN),
    "size-over-the-most": (lambda: Once(some_pages, setting(20, 0x100001)), ("exceeds allocated 1048576",), WITHIN),
}


def source_of(kind: str, folder: Path) -> Host:
    if kind == "qemu":
        return Qemu(folder, "source", "10.0", machine=NEWEST)
    return Migrationd(folder, "source", machine=machine(20, ram="48M", working_set="16M"))


def runs_on(source: Host) -> None:
    """A second of it, and what it did so far is right."""
    assert source.run_state() == "running", (source.run_state(), source.query_migrate())
    if isinstance(source, Qemu):
        source.wait_sweeps(last_number(source.serial()) + 5)
        check_serial([source.serial()])
    else:
        assert source.owner() == "here", source.owner()
        source.verify_machine()


def notices(source: Host) -> None:
    try:
        source.wait(lambda: source.status() == "failed", what="the source to notice")
    except QmpTimeout:
        # Seen in one run of ten under load: a QEMU source whose channel breaks while it synchronises. The verdict of the
        # destination, which is what this is about, was right before.
        states = {(task / "wchan").read_text() for task in Path(f"/proc/{source.pid}/task").iterdir()}
        if isinstance(source, Qemu) and states <= {"futex_do_wait", "futex_wait_queue", "poll_schedule_timeout.constprop.0"}:
            raise Skip("QEMU 10.0's source hangs by itself: its threads wait for each other, no connection is left") \
                from None
        raise


def fault(folder: Path, kind: str, make: Callable[[], Fault], texts: tuple[str, ...], within: float,
          method: str = "none") -> None:
    resident = {} if kind == "qemu" else {"machine": machine(20, ram="48M", working_set="16M"), "incoming": ["defer"]}
    with source_of(kind, folder) as source, Migrationd(folder, "target", **resident) as destination:
        for host in (source, destination):
            configure(host, 2, method)
            host.capabilities("return-path")
        if kind == "qemu":
            source.wait_sweeps(3)
        # The fault is in the first pages; the rest need not be through before it shows.
        source.parameters(max_bandwidth=200 * MB, multifd_zlib_level=1)
        destination.incoming("tcp:127.0.0.1:0")
        with Proxy(destination.listening_port(), make(), method != "none") as proxy:
            source.migrate(proxy.address)
            destination.wait(lambda: destination.status() in ("failed", "completed"), within, "the verdict")
            answer = destination.query_migrate()
            text = answer.get("error-desc", "")
            assert answer["status"] == "failed" and any(part in text for part in texts), (texts, answer)
            assert destination.owner() == "none", destination.owner()
            notices(source)
        runs_on(source)
        destination.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        source.wait_status("completed")
        destination.wait_status("completed")
        if kind != "qemu":
            assert destination.verify_machine() > 0


QUICK = ("channel/dies-in-a-page", "packet/offset-unaligned")
for _kind in ("qemu", "migrationd"):
    for _name, _fault in FAULTS.items():
        cases.add(f"multifd-fault/{_kind}/{_name}",
                  lambda folder, args=(_kind, *_fault): fault(folder, *args), timeout=90,
                  quick=_kind == "qemu" and _name in QUICK)
    for _method in ("zlib", "zstd"):
        for _name, _fault in COMPRESSED.items():
            cases.add(f"multifd-fault/{_kind}/{_method}/{_name}",
                      lambda folder, args=(_kind, *_fault, _method): fault(folder, *args), timeout=90,
                      quick=_kind == "migrationd" and _method == "zlib" and _name == "cut")
