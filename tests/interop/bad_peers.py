# SPDX-License-Identifier: Apache-2.0
"""Peers that lie, break off, stall and shout: as scripts, to be run against a daemon by cases/hostile.py.

`bad_streams()` are sources, by name. `BAD_DESTINATIONS` are destinations: functions that get the accepted connection.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import replace
from typing import Callable, Iterator

from .lib import streams
from .lib.streams import (END, EOS, FULL, FULL_PAGE, GLOBAL_JSON, PAGE, PART, PROBE_JSON, RAM_ID, XBZRLE, ZERO, Stream,
                          command, configuration, description_of, device, footer, full_page, global_state, header,
                          ram_part, ram_start, record, section_header, str8, u16, u32, u64, u8, zero_page)

GOOD = Stream()
BLOCKS = [("pc.ram", 4 * PAGE), ("pc.bios", PAGE)]
DATA = b"\xa5" * PAGE


def _json(text: str | bytes, length: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u8(6) + u32(len(data) if length is None else length) + data


def _device_json(**changes) -> bytes:
    return description_of([{**PROBE_JSON, **changes}, GLOBAL_JSON])


def _fields(*fields: dict) -> bytes:
    return _device_json(fields=list(fields))


def headers() -> Iterator[tuple[str, bytes]]:
    """What a port scan sends, or a program that took the wrong port: not migrations, so the port stays open."""
    yield "nothing-at-all", b""
    yield "one-byte", b"Q"
    yield "wrong-magic", header(b"QEVN") + GOOD.bytes()[8:]
    yield "http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield "tls-hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    yield "ssh", b"SSH-2.0-probe\r\n"
    yield "zeros", bytes(4096)
    yield "version-2", header(version=2) + GOOD.bytes()[8:]
    yield "version-4", header(version=4) + GOOD.bytes()[8:]
    yield "version-beyond", header(version=0xffffffff) + GOOD.bytes()[8:]


def bad_streams() -> Iterator[tuple[str, bytes]]:
    yield from _bad_configurations()
    yield from _bad_orders()
    yield from _bad_blocks()
    yield from _bad_records()
    yield from _bad_commands()
    yield from _bad_devices()
    yield from _bad_descriptions()


def _bad_configurations() -> Iterator[tuple[str, bytes]]:
    tail = GOOD.bytes()[len(GOOD.head) + len(GOOD.config):]
    yield "configuration/missing", header() + tail
    yield "configuration/twice", header() + GOOD.config + GOOD.config + tail
    yield "configuration/name-of-4-gib", header() + u8(7) + u32(0xffffffff) + b"pc" * 100 + tail
    yield "configuration/name-longer-than-the-stream", header() + u8(7) + u32(200) + b"pc"
    yield "configuration/name-empty", header() + configuration(b"") + tail
    yield "configuration/name-of-control-characters", header() + configuration(b"\x1b[2J\0\n\xff") + tail
    capabilities = str8("configuration/capabilities") + u32(1)
    yield "configuration/unknown-subsection", replace(
        GOOD, config=configuration(extra=u8(5) + str8("configuration/nonsense") + u32(1))).bytes()
    yield "configuration/four-billion-capabilities", replace(
        GOOD, config=configuration(extra=u8(5) + capabilities + u32(0xffffffff))).bytes()
    yield "configuration/capability-we-do-not-have", replace(
        GOOD, config=configuration(extra=u8(5) + capabilities + u32(1) + str8("mapped-ram"))).bytes()
    yield "configuration/page-bits-of-another-world", replace(
        GOOD, config=configuration(extra=u8(5) + str8("configuration/target-page-bits") + u32(1) + u32(63))).bytes()


def _bad_orders() -> Iterator[tuple[str, bytes]]:
    yield "order/part-before-start", replace(GOOD, start=GOOD.parts, parts=GOOD.start).bytes()
    yield "order/end-before-start", replace(GOOD, start=b"", parts=b"").bytes()
    yield "order/start-twice", replace(GOOD, start=GOOD.start * 2).bytes()
    yield "order/end-twice", replace(GOOD, end=GOOD.end * 2).bytes()
    yield "order/part-after-end", replace(GOOD, end=GOOD.end + GOOD.parts).bytes()
    yield "order/no-end", replace(GOOD, end=b"").bytes()
    yield "order/end-of-stream-at-once", header() + GOOD.config + b"\0"
    yield "order/end-of-stream-after-start", header() + GOOD.config + GOOD.start + b"\0" + GOOD.description
    yield "order/unknown-type-byte", replace(GOOD, parts=u8(9) + GOOD.parts).bytes()
    yield "order/footer-alone", replace(GOOD, parts=footer() + GOOD.parts).bytes()
    yield "order/footer-missing", replace(GOOD, parts=GOOD.parts[:-5]).bytes()
    yield "order/footer-of-another-section", replace(GOOD, parts=GOOD.parts[:-4] + u32(99)).bytes()
    yield "order/description-before-the-end", replace(GOOD, devices=GOOD.description + GOOD.devices).bytes()
    unknown = section_header(1, 5, "block", 0, 1) + u64(0) + footer(5)
    yield "order/unknown-live-section", replace(GOOD, start=GOOD.start + unknown).bytes()
    yield "order/unknown-section-id", replace(GOOD, parts=ram_part(zero_page(0, "pc.ram"), section=77)).bytes()
    yield "order/ram-of-another-instance", replace(
        GOOD, start=GOOD.start.replace(b"\3ram" + u32(0), b"\3ram" + u32(1), 1)).bytes()
    for version in (0, 3, 5, 0xffffffff):
        yield f"order/ram-version-{version}", replace(GOOD, start=ram_start(BLOCKS, version=version)).bytes()


def _bad_blocks() -> Iterator[tuple[str, bytes]]:
    def with_start(start: bytes) -> bytes:
        return replace(GOOD, start=start).bytes()

    raw = section_header(1, RAM_ID, "ram", 0, 4)
    yield "blocks/none", with_start(ram_start([]))
    yield "blocks/named-twice", with_start(ram_start([BLOCKS[0], BLOCKS[0], BLOCKS[1]]))
    yield "blocks/fewer-than-the-pages-name", with_start(ram_start([BLOCKS[0]]))
    yield "blocks/length-zero", with_start(raw + streams.blocks_list([("a", 0)] + BLOCKS) + u64(EOS) + footer())
    yield "blocks/length-not-of-pages", with_start(ram_start([("pc.ram", 4 * PAGE + 1), BLOCKS[1]],
                                                             total=5 * PAGE))
    yield "blocks/sum-overshoots", with_start(ram_start(BLOCKS, total=4 * PAGE + 0))
    yield "blocks/sum-never-reached", with_start(ram_start(BLOCKS, total=1 << 40))
    yield "blocks/length-overflows-the-sum", with_start(
        raw + u64(5 * PAGE | 4) + str8("pc.ram") + u64(-PAGE) + str8("pc.bios") + u64(6 * PAGE) + u64(EOS) + footer())
    yield "blocks/sixteen-exbibytes", with_start(ram_start([("pc.ram", (1 << 64) - PAGE)]))
    yield "blocks/one-exbibyte", with_start(ram_start([("pc.ram", 1 << 60), BLOCKS[1]]))
    yield "blocks/name-empty", with_start(ram_start([("", 4 * PAGE), BLOCKS[1]]))
    yield "blocks/name-runs-over-the-end", header() + GOOD.config + raw + u64(PAGE | 4) + u8(255) + b"pc.ram"
    yield "blocks/name-without-end", header() + GOOD.config + raw + u64(PAGE | 4) + u8(255) + b"A" * 255
    yield "blocks/a-hundred-thousand", with_start(ram_start([(f"b{n}", PAGE) for n in range(100000)]))


def _bad_records() -> Iterator[tuple[str, bytes]]:
    def with_part(*records: bytes) -> bytes:
        return replace(GOOD, parts=ram_part(b"".join(records))).bytes()

    yield "records/offset-at-the-end", with_part(zero_page(4 * PAGE, "pc.ram"))
    yield "records/offset-past-the-end", with_part(full_page(5 * PAGE, DATA, "pc.ram"))
    yield "records/offset-of-sixteen-exbibytes", with_part(full_page((1 << 64) - PAGE, DATA, "pc.ram"))
    yield "records/offset-in-the-smaller-block", with_part(full_page(PAGE, DATA, "pc.bios"))
    yield "records/unknown-block", with_part(full_page(0, DATA, "nobody"))
    yield "records/empty-block-name", with_part(full_page(0, DATA, ""))
    yield "records/block-name-of-rubbish", with_part(record(0, ZERO, b"\xff\0\x1b]0;x\x07" * 20) + u8(0))
    yield "records/continue-before-any-name", with_part(zero_page(0))
    yield "records/name-runs-over-the-end", header() + GOOD.config + GOOD.start + u8(PART) + u32(RAM_ID) + u64(8) + \
        u8(255) + b"pc.ram"
    yield "records/zero-page-of-ones", with_part(zero_page(0, "pc.ram", fill=0xff))
    for flags in (0x01, 0x80, 0x0a, 0x18, 0x42, 0x30, 0x00, 0xfff):
        yield f"records/flags-{flags:#x}", with_part(record(0, flags, "pc.ram") + DATA)
    yield "records/block-list-again", with_part(streams.blocks_list(BLOCKS))
    delta = record(0, XBZRLE, "pc.ram") + u8(1)
    yield "records/delta-longer-than-a-page", with_part(delta + u16(4097) + b"\1" * 4097)
    yield "records/delta-of-65535", with_part(delta + u16(65535))
    yield "records/delta-without-its-flag", with_part(record(0, XBZRLE, "pc.ram") + u8(0) + u16(2) + b"\0\0")
    yield "records/delta-that-runs-out-of-the-page", with_part(delta + u16(4) + b"\xff\x1f\x7fA")
    yield "records/delta-that-never-ends-its-number", with_part(delta + u16(4) + b"\xff\xff\xff\xff")
    compressed = record(0, streams.COMPRESSED, "pc.ram")
    yield "records/compressed-of-4-gib", with_part(compressed + u32(0xffffffff))
    yield "records/compressed-rubbish", with_part(compressed + u32(100) + b"\xa5" * 100)
    import zlib
    bomb = zlib.compress(bytes(1 << 20))
    yield "records/compressed-bomb", with_part(compressed + u32(len(bomb)) + bomb)
    yield "records/compressed-too-short", with_part(compressed + u32(20) + zlib.compress(b"x" * 10)[:20].ljust(20))


def _bad_commands() -> Iterator[tuple[str, bytes]]:
    def with_command(data: bytes) -> bytes:
        return replace(GOOD, commands=data).bytes()

    yield "commands/number-0", with_command(command(0))
    yield "commands/number-12", with_command(command(12))
    yield "commands/number-65535", with_command(command(65535, b"x" * 100))
    yield "commands/ping-without-return-path", with_command(streams.PING)
    yield "commands/ping-too-long", with_command(streams.OPEN_RETURN_PATH + command(2, bytes(8)))
    yield "commands/ping-too-short", with_command(streams.OPEN_RETURN_PATH + command(2, b"\1"))
    yield "commands/length-over-the-end", header() + GOOD.config + command(6, b"abc", length=65535)
    yield "commands/package-of-4-gib", with_command(command(7, u32(0xffffffff)))
    yield "commands/postcopy-run-out-of-nowhere", with_command(command(5))
    yield "commands/postcopy-listen-out-of-nowhere", with_command(command(4))
    yield "commands/discard-out-of-nowhere", with_command(command(6, b"\0" + str8("pc.ram") + b"\0" + u64(0) +
                                                                  u64(PAGE)))
    yield "commands/resume-out-of-nowhere", with_command(command(9))
    yield "commands/received-bitmap-out-of-nowhere", with_command(command(10, str8("pc.ram")))


def _bad_devices() -> Iterator[tuple[str, bytes]]:
    def with_devices(devices: bytes, description: bytes = GOOD.description) -> bytes:
        return replace(GOOD, devices=devices, description=description).bytes()

    state = device(9, "globalstate", 1, global_state("paused"))
    yield "devices/one-the-description-does-not-know", with_devices(GOOD.devices + device(11, "stowaway", 1, b"1234"))
    yield "devices/fewer-than-described", with_devices(state)
    yield "devices/in-another-order", with_devices(state + device(7, "probe", 1, b"\1\2\3\4"))
    yield "devices/shorter-than-described", with_devices(device(7, "probe", 1, b"\1\2\3") + state)
    yield "devices/longer-than-described", with_devices(device(7, "probe", 1, b"\1\2\3\4\5") + state)
    yield "devices/footer-of-another", with_devices(
        section_header(FULL, 7, "probe", 0, 1) + b"\1\2\3\4" + footer(8) + state)
    yield "devices/id-of-ram", with_devices(device(RAM_ID, "probe", 1, b"\1\2\3\4") + state)
    yield "devices/run-state-nobody-knows", with_devices(
        device(7, "probe", 1, b"\1\2\3\4") + device(9, "globalstate", 1, global_state("levitating")))
    yield "devices/run-state-without-end", with_devices(
        device(7, "probe", 1, b"\1\2\3\4") + device(9, "globalstate", 1, u32(0xffffffff) + b"A" * 100))
    yield "devices/name-runs-over-the-end", header() + GOOD.config + GOOD.start + GOOD.end + u8(FULL) + u32(7) + u8(255)


def _bad_descriptions() -> Iterator[tuple[str, bytes]]:
    def with_description(data: bytes) -> bytes:
        return replace(GOOD, description=data).bytes()

    value = {"name": "value", "type": "uint32", "size": 4}
    yield "description/length-of-4-gib", with_description(_json("{", length=0xffffffff))
    yield "description/longer-than-allowed", with_description(_json("{", length=(64 << 20) + 1))
    yield "description/not-json", with_description(_json("{\"devices\": [" + "x" * 100 + "]}"))
    yield "description/half-a-json", with_description(_json("{\"page_size\": 4096, \"devices\": ["))
    yield "description/no-utf-8", with_description(_json(b"{\"devices\": [\"\xff\xfe\"]}"))
    yield "description/an-array", with_description(_json("[1, 2, 3]"))
    yield "description/devices-is-a-number", with_description(_json("{\"page_size\": 4096, \"devices\": 7}"))
    yield "description/deep", with_description(_json("{\"devices\": " + "[" * 200000 + "]" * 200000 + "}"))
    yield "description/size-negative", with_description(_fields({**value, "size": -4}))
    yield "description/size-enormous", with_description(_fields({**value, "size": 1 << 63}))
    yield "description/size-overflows", with_description(_fields({**value, "size": (1 << 64) - 1},
                                                                 {**value, "size": 5}))
    yield "description/size-is-text", with_description(_fields({**value, "size": "4"}))
    yield "description/size-is-a-fraction", with_description(_fields({**value, "size": 4.5}))
    yield "description/array-without-end", with_description(_fields({**value, "array_len": 1 << 62}))
    yield "description/array-of-nothing-for-ever", with_description(
        _fields({**value, "size": 0, "array_len": (1 << 63) - 1}))
    nested: dict = value
    for _ in range(300):
        nested = {"name": "n", "type": "struct", "size": 4, "array_len": 1000,
                  "struct": {"vmsd_name": "n", "version": 1, "fields": [nested]}}
    yield "description/arrays-in-arrays-in-arrays", with_description(_fields(nested))
    yield "description/subsection-not-there", with_description(
        _device_json(subsections=[{"vmsd_name": "probe/more", "version": 1, "fields": [value]}]))
    yield "description/a-thousand-devices-too-many", with_description(
        description_of([PROBE_JSON, GLOBAL_JSON] + [PROBE_JSON] * 1000))


def huge_descriptions() -> Iterator[tuple[str, bytes]]:
    """64 MiB of JSON: of nothing, of numbers, of objects."""
    size = (64 << 20) - 200
    good = json.dumps({"page_size": PAGE, "devices": [PROBE_JSON, GLOBAL_JSON]})
    for name, filler in (("spaces", " "), ("numbers", "1,"), ("arrays", "[],"), ("objects", '{"a":1},')):
        body = filler * (size // len(filler))
        if name == "spaces":
            text = "{" + body + good[1:]
        else:
            text = good[:-1] + ', "more": [' + body.rstrip(",") + "]}"
        yield name, replace(GOOD, description=_json(text)).bytes()


# Destinations --------------------------------------------------------------------------------------------------------

def _read_some(connection: socket.socket, size: int = 1 << 16) -> None:
    got = 0
    while got < size:
        data = connection.recv(1 << 16)
        if not data:
            return
        got += len(data)


def _read_all(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass


def _message(kind: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return u16(kind) + u16(len(payload) if length is None else length) + payload


def closes_at_once(connection: socket.socket) -> None:
    connection.close()


def resets_in_the_middle(connection: socket.socket) -> None:
    _read_some(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def closes_in_the_middle(connection: socket.socket) -> None:
    _read_some(connection)
    connection.close()


def _says(text: bytes) -> Callable[[socket.socket], None]:
    def speak(connection: socket.socket) -> None:
        _read_some(connection)
        connection.sendall(text)
        _read_all(connection)
    return speak


def stalls(connection: socket.socket) -> None:
    _read_some(connection)
    time.sleep(30)


# Name: (what it does, must the source fail by itself). The one that stalls is ended by migrate_cancel.
BAD_DESTINATIONS: dict[str, Callable[[socket.socket], None]] = {
    "closes-at-once": closes_at_once,
    "closes-in-the-middle": closes_in_the_middle,
    "resets-in-the-middle": resets_in_the_middle,
    "says-it-failed": _says(_message(1, u32(1))),
    "says-done-before-the-end": _says(_message(1, u32(0))),
    "message-number-0": _says(_message(0)),
    "message-number-99": _says(_message(99, b"abcd")),
    "message-too-long": _says(_message(2, b"x" * 600)),
    "message-of-wrong-length": _says(_message(1, b"xx")),
    "asks-for-pages-without-postcopy": _says(_message(4, u64(0) + u32(PAGE))),
    "asks-for-a-block-nobody-has": _says(_message(3, u64(0) + u32(PAGE) + str8("nobody"))),
    "sends-rubbish": _says(bytes(range(256)) * 64),
}

# Streams that are odd, but of which a daemon that holds opaque machines may take a view of its own: whatever it says,
# it must live. Everything else in bad_streams() must be refused.
TOLERATED = {
    "blocks/length-zero", "configuration/name-empty", "configuration/name-of-control-characters",
    "configuration/page-bits-of-another-world", "devices/run-state-nobody-knows", "devices/run-state-without-end",
    "records/zero-page-of-ones",
    # QEMU never looks at the description: one that is no description at all counts as none.
    "description/not-json", "description/half-a-json", "description/no-utf-8", "description/an-array",
    "description/devices-is-a-number", "description/deep",
    # Nor does it look at the sizes, and describes some arrays wrongly itself: when headers and footers make one chain
    # from the memory to the end, that says what the sections are, and DEVICE_SIZES what must have come out of it.
    "description/size-negative", "description/size-enormous", "description/size-overflows", "description/size-is-text",
    "description/size-is-a-fraction", "description/array-without-end", "description/array-of-nothing-for-ever",
    "description/arrays-in-arrays-in-arrays", "description/subsection-not-there",
    "devices/shorter-than-described", "devices/longer-than-described",
}

# Bytes of the section `probe` in the stream, whatever its description says.
DEVICE_SIZES = {"devices/shorter-than-described": 3, "devices/longer-than-described": 5}
USUAL_DEVICE_SIZE = 4
