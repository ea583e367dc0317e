#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Walks a plain migration stream to its end by the description that stands behind it.

    analyze_stream.py FILE             one line per section; exit 1 and the offset at the first mismatch
    analyze_stream.py --json FILE      the same as JSON, with every described field's value
    analyze_stream.py --compare A B    equal but for order and repetition of memory records? says what differs

The rules are the strictest a known reader has (docs/formats/vmstate.md): the text is found from the end of the
file, every device section has an entry in the order of the stream, and the entries account for every byte. Memory
is sent as plain and zero pages only, and no command but SWITCHOVER_START stands in the stream. --lenient admits all
commands, XBZRLE and zlib pages, and a configuration that the description leaves out, as live streams have them;
--compare is lenient. Files that end in .xz are unpacked.
"""
from __future__ import annotations

import argparse
import json
import lzma
import struct
import sys
import zlib
from dataclasses import dataclass, field
from typing import Any, NoReturn

PAGE = 4096
ZERO_PAGE = bytes(PAGE)
START, PART, END, FULL, SUBSECTION, DESCRIPTION, CONFIGURATION, COMMAND, FOOTER = 1, 2, 3, 4, 5, 6, 7, 8, 0x7E
F_ZERO, F_MEM_SIZE, F_PAGE, F_EOS, F_CONTINUE, F_XBZRLE, F_COMPRESS, F_FLUSH = 2, 4, 8, 0x10, 0x20, 0x40, 0x100, 0x200
SWITCHOVER_START = 11
SEARCHED_TAIL = 10 << 20  # how far from the end a reader looks for the text
MOST_DIFFERENCES = 20


class Mismatch(Exception):
    def __init__(self, offset: int, text: str) -> None:
        super().__init__(f"offset {offset:#x}: {text}")
        self.offset = offset
        self.text = text


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def fail(self, text: str, at: int | None = None) -> NoReturn:
        raise Mismatch(self.at if at is None else at, text)

    def take(self, count: int, what: str) -> bytes:
        if self.at + count > len(self.data):
            self.fail(f"{what}: {count} bytes wanted, {len(self.data) - self.at} left")
        piece = self.data[self.at:self.at + count]
        self.at += count
        return piece

    def number(self, count: int, what: str) -> int:
        return int.from_bytes(self.take(count, what), "big")

    def name(self, what: str) -> str:
        start = self.at
        raw = self.take(self.number(1, what), what)
        if len(raw) > 127:
            self.fail(f"{what}: a name of {len(raw)} bytes; readers take 127", start)
        try:
            return raw.decode("ascii")
        except UnicodeDecodeError:
            self.fail(f"{what}: name {raw!r} is not text", start)

    def peek(self) -> int:
        return self.data[self.at] if self.at < len(self.data) else -1


@dataclass
class Section:
    kind: str
    section_id: int
    name: str
    instance_id: int
    version_id: int
    offset: int
    size: int = 0  # of the body
    body: bytes = b""  # FULL only
    fields: Any = None

    def head(self) -> tuple[str, int, int, int]:
        return (self.name, self.instance_id, self.version_id, self.section_id)


@dataclass
class Stream:
    configuration: bytes = b""
    configuration_fields: Any = None
    capabilities: list[str] = field(default_factory=list)
    commands: list[tuple[int, bytes]] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    blocks: dict[str, int] = field(default_factory=dict)
    pages: dict[tuple[str, int], bytes | int | None] = field(default_factory=dict)  # offset in data, bytes, or zero
    records: dict[str, int] = field(default_factory=dict)
    description: str = ""
    data: bytes = b""

    def page(self, key: tuple[str, int]) -> bytes:
        where = self.pages.get(key)
        if where is None:
            return ZERO_PAGE
        return where if isinstance(where, bytes) else self.data[where:where + PAGE]


def find_description(data: bytes) -> dict[str, Any]:
    """The JSON text as a reader finds it that has only the end of the file."""
    floor = max(0, len(data) - SEARCHED_TAIL)
    zero = data.rfind(b"\0", floor)
    if zero < 0:
        raise Mismatch(floor, "no zero byte in the last 10 MiB: the description cannot be found")
    brace = data.find(b"{", zero)
    if brace < 0:
        raise Mismatch(zero, "no description behind the last zero byte")
    if brace < 5 or data[brace - 5] != DESCRIPTION:
        raise Mismatch(brace, "the first '{' behind the last zero byte is not the start of the description")
    length = struct.unpack(">I", data[brace - 4:brace])[0]
    if brace + length != len(data):
        raise Mismatch(brace - 4, f"the description has {length} bytes, {len(data) - brace} are left in the file")
    try:
        parsed = json.loads(data[brace:])
    except (ValueError, RecursionError) as fault:
        raise Mismatch(brace, f"the description is no JSON: {fault}") from fault
    if not isinstance(parsed, dict) or "page_size" not in parsed or not isinstance(parsed.get("devices"), list):
        raise Mismatch(brace, "the description has no page_size or no devices")
    return parsed


class DescriptionWalk:
    """Consumes the bytes that one description object accounts for."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def walk(self, entry: dict[str, Any], path: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for one in entry["fields"]:
            self.field(one, path, out)
        for part in entry.get("subsections", []):
            out[part["vmsd_name"]] = self.subsection(part)
        return out

    def field(self, one: dict[str, Any], path: str, out: dict[str, Any]) -> None:
        name = one["name"]
        values = []
        for _ in range(one.get("array_len", 1)):
            start = self.reader.at
            values.append(self.value(one, f"{path}:{name}"))
            used = self.reader.at - start
            if "array_len" not in one and used != one["size"]:
                self.reader.fail(f"{path}:{name}: described as {one['size']} bytes, has {used}", start)
        if "index" in one:
            out.setdefault(name, []).append(values[0])
        elif isinstance(out.get(name), list) and "array_len" not in one:
            out[name].append(values[0])  # the last element of an array may come without its index
        elif name in out:
            self.reader.fail(f"{path}:{name} is described twice")
        else:
            out[name] = values if "array_len" in one else values[0]

    def value(self, one: dict[str, Any], path: str) -> Any:
        kind, size = one["type"], one["size"]
        if kind == "struct":
            return self.walk(one["struct"], path)
        if kind == "capability":
            return self.reader.name(path)
        start = self.reader.at
        raw = self.reader.take(size, path)
        if kind == "nullptr" and raw != b"0":
            self.reader.fail(f"{path}: null marker is {raw.hex()}, not 30", start)
        if kind == "bool":
            if raw not in (b"\0", b"\1"):
                self.reader.fail(f"{path}: bool is {raw.hex()}", start)
            return raw == b"\1"
        if kind.startswith("uint"):
            return hex(int.from_bytes(raw, "big"))
        if kind.startswith("int"):
            return hex(int.from_bytes(raw, "big", signed=True))
        if kind == "unused_buffer":
            return f"{size} bytes"
        return raw.hex()

    def subsection(self, part: dict[str, Any]) -> dict[str, Any]:
        name = part["vmsd_name"]
        reader = self.reader
        if reader.number(1, f"subsection {name}") != SUBSECTION:
            reader.fail(f"subsection {name} is described, but none is here", reader.at - 1)
        start = reader.at
        if (found := reader.name(f"subsection {name}")) != name:
            reader.fail(f"subsection {name} is described, {found} is here", start)
        if (version := reader.number(4, f"subsection {name}")) != part["version"]:
            reader.fail(f"subsection {name}: version {part['version']} described, {version} is here", reader.at - 4)
        return self.walk(part, name)


def apply_xbzrle(old: bytes, delta: bytes, reader: Reader, start: int) -> bytes:
    page, at, target = bytearray(old), 0, 0
    skip = True
    while at < len(delta):
        run = delta[at]
        at += 1
        if run & 0x80:
            if at >= len(delta):
                reader.fail("XBZRLE: a length is cut off", start)
            run = (run & 0x7F) | delta[at] << 7
            at += 1
        if target + run > PAGE or (not skip and at + run > len(delta)) or (run == 0 and not (skip and target == 0)):
            reader.fail("XBZRLE: a run leaves the page or the record", start)
        if not skip:
            page[target:target + run] = delta[at:at + run]
            at += run
        target += run
        skip = not skip
    return bytes(page)


class StreamWalk:
    def __init__(self, data: bytes, lenient: bool) -> None:
        self.reader = Reader(data)
        self.lenient = lenient
        self.out = Stream(data=data)
        self.ram: Section | None = None
        self.block: str | None = None  # what CONTINUE refers to: outlives sections
        self.described: dict[str, Any] = {}
        self.next_device = 0

    def run(self) -> Stream:
        reader = self.reader
        self.described = find_description(reader.data)
        if reader.take(4, "magic") != b"QEVM":
            reader.fail("not a migration stream", 0)
        if (version := reader.number(4, "version")) != 3:
            reader.fail(f"version {version}, not 3", 4)
        if reader.peek() == CONFIGURATION:
            self.configuration()
        while (kind := reader.number(1, "element")) != 0:
            self.element(kind)
        self.end()
        return self.out

    def configuration(self) -> None:
        reader = self.reader
        start = reader.at
        reader.at += 1
        entry = self.described.get("configuration")
        if entry is not None:
            fields = DescriptionWalk(reader).walk(entry, "configuration")
        else:
            name = reader.take(reader.number(4, "configuration"), "machine name")
            fields = {"name": name.hex()}
            if reader.peek() == SUBSECTION and not self.lenient:
                reader.fail("the configuration has subsections and no description")
            while reader.peek() == SUBSECTION:
                self.known_subsection()
        capabilities = fields.get("configuration/capabilities", {}).get("capabilities", [])
        self.out.capabilities += capabilities if isinstance(capabilities, list) else [capabilities]
        self.out.configuration = reader.data[start:reader.at]
        self.out.configuration_fields = fields
        if "mapped-ram" in self.out.capabilities:
            reader.fail("a mapped-ram file: its pages do not stand in the stream", start)

    def known_subsection(self) -> None:
        reader = self.reader
        start = reader.at
        reader.at += 1
        name = reader.name("subsection")
        reader.number(4, name)
        if name == "configuration/capabilities":
            self.out.capabilities += [reader.name(name) for _ in range(reader.number(4, name))]
        elif name == "configuration/uuid":
            reader.take(16, name)
        elif name == "configuration/target-page-bits":
            reader.take(4, name)
        else:
            reader.fail(f"unknown subsection {name}", start)

    def element(self, kind: int) -> None:
        reader = self.reader
        start = reader.at - 1
        if kind == COMMAND:
            self.command(start)
        elif kind in (START, FULL):
            section = Section("START" if kind == START else "FULL", reader.number(4, "section id"),
                              reader.name("section"), reader.number(4, "instance id"),
                              reader.number(4, "version id"), start)
            self.out.sections.append(section)
            self.begin(section)
        elif kind in (PART, END):
            section_id = reader.number(4, "section id")
            if self.ram is None or section_id != self.ram.section_id:
                reader.fail(f"section id {section_id} was not started", start)
            section = Section("PART" if kind == PART else "END", section_id, "ram", 0, self.ram.version_id, start)
            self.out.sections.append(section)
            self.ram_body(section)
        else:
            reader.fail(f"element type {kind:#x}", start)

    def command(self, start: int) -> None:
        number, length = self.reader.number(2, "command"), self.reader.number(2, "command length")
        payload = self.reader.take(length, "command")
        if not self.lenient and (number, length) != (SWITCHOVER_START, 0):
            self.reader.fail(f"command {number} of {length} bytes: a file may have SWITCHOVER_START only", start)
        self.out.commands.append((number, payload))

    def begin(self, section: Section) -> None:
        reader = self.reader
        if section.name == "ram" and section.kind == "START":
            if section.instance_id != 0 or section.version_id != 4 or self.ram is not None:
                reader.fail("ram: instance 0 and version 4 wanted, once", section.offset)
            self.ram = section
            self.ram_body(section)
            return
        if section.kind == "START":
            reader.fail(f"iterative section '{section.name}' cannot be read", section.offset)
        devices = self.described["devices"]
        if self.next_device >= len(devices):
            reader.fail(f"section '{section.name}' {section.instance_id} is not described", section.offset)
        entry = devices[self.next_device]
        self.next_device += 1
        if (entry.get("name"), entry.get("instance_id")) != (section.name, section.instance_id):
            reader.fail(f"section '{section.name}' {section.instance_id} is here, described is "
                        f"'{entry.get('name')}' {entry.get('instance_id')}", section.offset)
        if "version" in entry and entry["version"] != section.version_id:
            reader.fail(f"section '{section.name}': version {section.version_id}, described as {entry['version']}",
                        section.offset)
        body = reader.at
        section.fields = DescriptionWalk(reader).walk(entry, section.name)
        section.size = reader.at - body
        section.body = reader.data[body:reader.at]
        if "size" in entry and entry["size"] != section.size:
            reader.fail(f"section '{section.name}': {section.size} bytes, described as {entry['size']}", body)
        self.footer(section)

    def footer(self, section: Section) -> None:
        reader = self.reader
        start = reader.at
        if reader.number(1, "footer") != FOOTER or reader.number(4, "footer") != section.section_id:
            reader.fail(f"no footer of section '{section.name}' (id {section.section_id})", start)

    # --- memory ------------------------------------------------------------------------------------------
    def ram_body(self, section: Section) -> None:
        start = self.reader.at
        while self.ram_record(section):
            pass
        section.size = self.reader.at - start
        self.footer(section)

    def count(self, kind: str) -> None:
        self.out.records[kind] = self.out.records.get(kind, 0) + 1

    def ram_record(self, section: Section) -> bool:
        reader = self.reader
        start = reader.at
        word = reader.number(8, "memory record")
        flags, offset = word & (PAGE - 1), word & ~(PAGE - 1)
        kind = flags & ~F_CONTINUE
        if flags == F_EOS and offset == 0:
            return False
        if flags == F_MEM_SIZE and section.kind == "START" and not self.out.blocks:
            self.block_list(offset, start)
            return True
        if flags == F_FLUSH and offset == 0 and self.lenient:
            return True
        allowed = (F_ZERO, F_PAGE, F_XBZRLE, F_COMPRESS) if self.lenient else (F_ZERO, F_PAGE)
        if kind not in allowed:
            reader.fail(f"memory record with flags {flags:#x}", start)
        if not flags & F_CONTINUE:
            self.block = reader.name("block")
        if self.block is None:
            reader.fail("memory record continues no block", start)
        if self.block not in self.out.blocks or offset >= self.out.blocks[self.block]:
            reader.fail(f"block '{self.block}' has no offset {offset:#x}", start)
        self.page((self.block, offset), kind)
        return True

    def page(self, key: tuple[str, int], kind: int) -> None:
        reader, out = self.reader, self.out
        start = reader.at
        if kind == F_ZERO:
            self.count("zero")
            if reader.number(1, "zero page") != 0:
                reader.fail("fill byte is not zero", start)
            out.pages[key] = None
        elif kind == F_PAGE:
            self.count("page")
            reader.take(PAGE, "page")
            out.pages[key] = start
        elif kind == F_XBZRLE:
            self.count("xbzrle")
            if reader.number(1, "XBZRLE") != 1:
                reader.fail("XBZRLE: unknown encoding", start)
            delta = reader.take(reader.number(2, "XBZRLE"), "XBZRLE")
            out.pages[key] = apply_xbzrle(out.page(key), delta, reader, start)
        else:
            self.count("compressed")
            packed = reader.take(reader.number(4, "compressed page"), "compressed page")
            try:
                unpacked = zlib.decompressobj().decompress(packed, PAGE + 1)
            except zlib.error as fault:
                reader.fail(f"compressed page: {fault}", start)
            if len(unpacked) != PAGE:
                reader.fail(f"compressed page of {len(unpacked)} bytes", start)
            out.pages[key] = unpacked

    def block_list(self, total: int, start: int) -> None:
        reader = self.reader
        while total > 0:
            name = reader.name("block")
            length = reader.number(8, f"block '{name}'")
            if name in self.out.blocks or length == 0 or length % PAGE != 0 or length > total:
                reader.fail(f"block '{name}' of {length:#x} bytes does not fit the list", start)
            self.out.blocks[name] = length
            total -= length
            if "x-ignore-shared" in self.out.capabilities:
                reader.number(8, "address")

    def end(self) -> None:
        reader = self.reader
        devices = self.described["devices"]
        if self.next_device != len(devices):
            reader.fail(f"device '{devices[self.next_device].get('name')}' is described, but not in the stream")
        if reader.number(1, "description") != DESCRIPTION:
            reader.fail("no description behind the end", reader.at - 1)
        text = reader.take(reader.number(4, "description"), "description")
        if reader.at != len(reader.data):
            reader.fail("bytes behind the description")
        self.out.description = text.decode("utf-8")


def analyze(data: bytes, lenient: bool = False) -> Stream:
    """The whole stream, or Mismatch."""
    walk = StreamWalk(data, lenient)
    try:
        return walk.run()
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as fault:
        # The description is JSON of another shape than the rules say.
        raise Mismatch(walk.reader.at, f"the description is malformed: {type(fault).__name__} {fault}") from fault


def load(path: str) -> bytes:
    if path.endswith(".xz"):
        with lzma.open(path) as packed:
            return packed.read()
    with open(path, "rb") as plain:
        return plain.read()


# --- comparing -------------------------------------------------------------------------------------------------
def differences(a: Stream, b: Stream) -> list[str]:
    out: list[str] = []
    if a.configuration != b.configuration:
        out.append("the configuration sections differ")
    if a.commands != b.commands:
        out.append(f"commands: {[number for number, _ in a.commands]} and {[number for number, _ in b.commands]}")
    if list(a.blocks.items()) != list(b.blocks.items()):
        out.append(f"memory blocks: {a.blocks} and {b.blocks}")
    first_ram, second_ram = ([s.head() for s in stream.sections if s.kind == "START"] for stream in (a, b))
    if first_ram != second_ram:
        out.append(f"ram sections: {first_ram} and {second_ram}")
    out += device_differences(a, b)
    if a.description != b.description:
        out.append("the descriptions differ")
    pages = sorted(set(a.pages) | set(b.pages))
    wrong = [key for key in pages if a.page(key) != b.page(key)]
    for block, offset in wrong[:MOST_DIFFERENCES]:
        out.append(f"memory: block '{block}' offset {offset:#x} differs")
    if len(wrong) > MOST_DIFFERENCES:
        out.append(f"memory: {len(wrong)} pages differ in all")
    return out


def device_differences(a: Stream, b: Stream) -> list[str]:
    first, second = ([s for s in stream.sections if s.kind == "FULL"] for stream in (a, b))
    if [s.head() for s in first] != [s.head() for s in second]:
        return [f"device sections: {[s.head() for s in first]} and {[s.head() for s in second]}"]
    out = []
    for one, other in zip(first, second):
        if one.body != other.body:
            at = next(i for i, (x, y) in enumerate(zip(one.body + b"\0", other.body + b"\1")) if x != y)
            out.append(f"device '{one.name}' {one.instance_id}: bodies of {len(one.body)} and {len(other.body)} bytes "
                       f"differ from byte {at} on")
    return out


# --- printing --------------------------------------------------------------------------------------------------
def summary(stream: Stream) -> dict[str, Any]:
    return {
        "configuration": stream.configuration_fields,
        "blocks": stream.blocks,
        "records": stream.records,
        "pages": len(stream.pages),
        "commands": [number for number, _ in stream.commands],
        "sections": [{"offset": s.offset, "kind": s.kind, "id": s.section_id, "name": s.name,
                      "instance": s.instance_id, "version": s.version_id, "size": s.size} for s in stream.sections],
        "devices": {f"{s.name} ({s.section_id})": s.fields for s in stream.sections if s.kind == "FULL"},
    }


def show(stream: Stream) -> None:
    for section in stream.sections:
        print(f"{section.offset:#012x} {section.kind:5} {section.section_id:4} {section.name} {section.instance_id} "
              f"v{section.version_id}: {section.size} bytes")
    blocks = ", ".join(f"{name} {length:#x}" for name, length in stream.blocks.items())
    print(f"memory: {blocks}; {len(stream.pages)} pages in records {stream.records}")
    print(f"accounted for every byte of {len(stream.data)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--lenient", action="store_true", help="admit what only live streams have")
    parser.add_argument("--compare", action="store_true", help="compare two streams")
    options = parser.parse_args()
    if len(options.files) != (2 if options.compare else 1):
        parser.error("--compare wants two files" if options.compare else "one file wanted")
    streams = []
    for path in options.files:
        try:
            streams.append(analyze(load(path), options.lenient or options.compare))
        except Mismatch as fault:
            if options.json:
                print(json.dumps({"file": path, "offset": fault.offset, "error": fault.text}))
            print(f"{path}: {fault}", file=sys.stderr)
            return 1
        except (OSError, lzma.LZMAError, EOFError) as fault:
            print(f"{path}: {fault}", file=sys.stderr)
            return 2
    if options.compare:
        found = differences(*streams)
        print(json.dumps({"equal": not found, "differences": found}) if options.json else
              "\n".join(found) or f"equal: {len(streams[0].pages)} pages of memory and all devices")
        return 1 if found else 0
    if options.json:
        print(json.dumps(summary(streams[0]), indent=1))
    else:
        show(streams[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
