# SPDX-License-Identifier: Apache-2.0
"""Writes small migration streams by hand, good ones and deliberately wrong ones, and takes real ones apart.

Layout: header (magic, version 3), configuration (machine name), sections (type byte, body, footer 0x7e and id), an EOF
byte, and a JSON description of the devices. All integers are big-endian. A RAM section is a sequence of records, each
a word of offset and flags, ended by the record 0x10.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

PAGE = 4096
RAM_ID = 2
ZERO, MEM_SIZE, FULL_PAGE, EOS, CONTINUE, XBZRLE, COMPRESSED = 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x100
START, PART, END, FULL, SUBSECTION, DESCRIPTION, CONFIGURATION, COMMAND, FOOTER = 1, 2, 3, 4, 5, 6, 7, 8, 0x7e


def u8(value: int) -> bytes:
    return struct.pack(">B", value)


def u16(value: int) -> bytes:
    return struct.pack(">H", value)


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value & (1 << 64) - 1)


def str8(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u8(len(data)) + data


def header(magic: bytes = b"QEVM", version: int = 3) -> bytes:
    return magic + u32(version)


def configuration(name: bytes = b"pc-i440fx-7.2", extra: bytes = b"") -> bytes:
    return u8(CONFIGURATION) + u32(len(name)) + name + extra


def footer(section: int = RAM_ID) -> bytes:
    return u8(FOOTER) + u32(section)


def section_header(kind: int, section: int, name: str | bytes, instance: int, version: int) -> bytes:
    return u8(kind) + u32(section) + str8(name) + u32(instance) + u32(version)


def blocks_list(blocks: list[tuple[str, int]], total: int | None = None) -> bytes:
    if total is None:
        total = sum(size for _, size in blocks)
    return u64(total | MEM_SIZE) + b"".join(str8(name) + u64(size) for name, size in blocks)


def ram_start(blocks: list[tuple[str, int]], total: int | None = None, version: int = 4, section: int = RAM_ID) -> bytes:
    return (section_header(START, section, "ram", 0, version) + blocks_list(blocks, total) + u64(EOS) + footer(section))


def ram_part(records: bytes, kind: int = PART, section: int = RAM_ID) -> bytes:
    return u8(kind) + u32(section) + records + u64(EOS) + footer(section)


def zero_page(offset: int, block: str | None = None, fill: int = 0) -> bytes:
    return record(offset, ZERO, block) + u8(fill)


def full_page(offset: int, data: bytes, block: str | None = None) -> bytes:
    return record(offset, FULL_PAGE, block) + data


def record(offset: int, flags: int, block: str | bytes | None = None) -> bytes:
    return u64(offset | flags | (CONTINUE if block is None else 0)) + (b"" if block is None else str8(block))


def device(section: int, name: str, version: int, body: bytes, instance: int = 0) -> bytes:
    return section_header(FULL, section, name, instance, version) + body + footer(section)


def global_state(state: str) -> bytes:
    name = state.encode() + b"\0"
    return u32(len(name)) + name.ljust(100, b"\0")


def description_of(devices: list[dict]) -> bytes:
    text = json.dumps({"page_size": PAGE, "devices": devices}).encode()
    return u8(DESCRIPTION) + u32(len(text)) + text


def command(number: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return u8(COMMAND) + u16(number) + u16(len(payload) if length is None else length) + payload


OPEN_RETURN_PATH = command(1)
PING = command(2, u32(1))

PROBE_JSON = {"name": "probe", "instance_id": 0, "vmsd_name": "probe", "version": 1,
              "fields": [{"name": "value", "type": "uint32", "size": 4}]}
GLOBAL_JSON = {"name": "globalstate", "instance_id": 0, "vmsd_name": "globalstate", "version": 1,
               "fields": [{"name": "size", "type": "uint32", "size": 4},
                          {"name": "runstate", "type": "buffer", "size": 100}]}


@dataclass
class Stream:
    """A whole small stream; every part can be replaced before it is put together."""
    head: bytes = header()
    config: bytes = configuration()
    commands: bytes = b""
    start: bytes = ram_start([("pc.ram", 4 * PAGE), ("pc.bios", PAGE)])
    parts: bytes = ram_part(b"".join([zero_page(0, "pc.ram"), zero_page(PAGE), zero_page(2 * PAGE),
                                      zero_page(0, "pc.bios")]))
    end: bytes = ram_part(record(3 * PAGE, FULL_PAGE, "pc.ram") + bytes(range(256)) * 16, END)
    devices: bytes = device(7, "probe", 1, b"\1\2\3\4") + device(9, "globalstate", 1, global_state("paused"))
    eof: bytes = b"\0"
    description: bytes = field(default_factory=lambda: description_of([PROBE_JSON, GLOBAL_JSON]))

    def bytes(self) -> bytes:
        return (self.head + self.config + self.commands + self.start + self.parts + self.end + self.devices
                + self.eof + self.description)


@dataclass
class Parsed:
    """The beginning of a real stream (no return path): what a test wants to change in it."""
    machine: bytes
    config_extra: bytes
    ram_section: int
    blocks: list[tuple[str, int]]
    rest: bytes             # from behind the block list on

    @classmethod
    def read(cls, data: bytes) -> "Parsed":
        assert data[:8] == header() and data[8] == CONFIGURATION, data[:16]
        length = struct.unpack_from(">I", data, 9)[0]
        machine = data[13:13 + length]
        # No subsection of the configuration contains the START of section `ram`.
        begin = data.index(b"\3ram" + u32(0) + u32(4)) - 5
        assert data[begin] == START
        section = struct.unpack_from(">I", data, begin + 1)[0]
        position = begin + 5 + 4 + 8
        left = struct.unpack_from(">Q", data, position)[0]
        assert left & 0xfff == MEM_SIZE
        left &= ~0xfff
        position += 8
        blocks = []
        while left:
            size = data[position]
            name = data[position + 1:position + 1 + size].decode()
            used = struct.unpack_from(">Q", data, position + 1 + size)[0]
            blocks.append((name, used))
            position += 9 + size
            left -= used
        return cls(machine, data[13 + length:begin], section, blocks, data[position:])

    def bytes(self) -> bytes:
        return (header() + configuration(self.machine, self.config_extra)
                + section_header(START, self.ram_section, "ram", 0, 4) + blocks_list(self.blocks) + self.rest)
