# SPDX-License-Identifier: Apache-2.0
"""mapped-ram files: of QEMU 10.0 opened by migrationd and the reverse, live and stopped, at offsets, with direct I/O, by
descriptor sets; what a damaged, unfinished or full file leads to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

from ..lib import cases
from ..lib.daemon import Migrationd
from ..lib.host import Host
from ..lib.programs import Skip
from ..lib.qemu import Qemu
from ..lib.qmp import QmpError
from .story import QuietPair, arrive, depart

MIB = 1 << 20


@dataclass
class Way:
    """How one file is written and read. `workers`: multifd, which for a file means several writers, the format unchanged.
    """
    offset: int = 0
    direct: bool = False
    workers: int = 0
    fdset: bool = False


def set_up(host: Host, way: Way) -> None:
    # QEMU looks at direct-io only together with multifd; migrationd does so for descriptor sets.
    many = bool(way.workers or (way.direct and (way.fdset or host.kind == "qemu")))
    host.capabilities(mapped_ram=True, return_path=False, multifd=many)
    if many:
        host.parameters(multifd_channels=max(1, way.workers))
    host.parameters(direct_io=way.direct, max_bandwidth=1 << 60)


def pass_set(host: Host, path: Path, flags: list[int]) -> str:
    """A descriptor set with one new open file for each of the flags; returns its path."""
    number = -1
    for flag in flags:
        fd = os.open(path, flag | os.O_CREAT, 0o600)
        arguments = {"opaque": "test"} if number < 0 else {"opaque": "test", "fdset-id": number}
        number = host.qmp.execute("add-fd", arguments, fds=[fd])["fdset-id"]
        os.close(fd)
    return f"/dev/fdset/{number}"


def uri(host: Host, path: Path, way: Way, mode: int) -> str:
    name = str(path)
    if way.fdset:
        name = pass_set(host, path, [mode, mode | os.O_DIRECT] if way.direct else [mode])
    return f"file:{name},offset={way.offset:#x}" if way.offset or way.fdset else f"file:{name}"


def save(host: Host, path: Path, way: Way = Way(), wait: str | None = "completed") -> None:
    set_up(host, way)
    if way.offset and not path.exists():
        path.write_bytes(b"kept" + bytes(way.offset + 5000))
    host.migrate(uri(host, path, way, os.O_WRONLY))
    if wait:
        host.wait_status(wait)


def load(host: Host, path: Path, way: Way = Way(), wait: str | None = "completed") -> dict:
    set_up(host, way)
    if way.offset:
        with open(path, "rb") as file:
            head = file.read(way.offset + 4)
        assert head == b"kept".ljust(way.offset, b"\0") + b"QEVM", "what lies before the offset was changed"
    host.incoming(uri(host, path, way, os.O_RDONLY))
    return host.wait_status(wait) if wait else {}


# --- QEMU to migrationd to QEMU ---------------------------------------------------------------------------------------

def relay(folder: Path, first: Way, second: Way, running: bool) -> None:
    """A real machine goes through two files: one that QEMU wrote and one that migrationd wrote."""
    with Qemu(folder, "source", "10.0") as source, Migrationd(folder, "park") as park, \
         Qemu(folder, "target", "10.0", incoming=True) as destination:
        pair = QuietPair(source, destination)
        depart(pair, running)
        save(source, folder / "theirs", first)
        load(park, folder / "theirs", first)
        save(park, folder / "ours", second)
        same_blocks(folder / "theirs", first.offset, folder / "ours", second.offset)
        load(destination, folder / "ours", second)
        arrive(pair, running)


WAYS = {
    "plain": (Way(), Way()),
    "offset": (Way(offset=0x1069f), Way(offset=0x2001)),
    "direct-io": (Way(direct=True), Way(direct=True)),
    "workers": (Way(workers=2), Way(workers=4)),
    "workers-direct-io": (Way(workers=3, direct=True), Way(workers=2, direct=True)),
    "fdset": (Way(fdset=True), Way(fdset=True, offset=4096)),
    "fdset-workers": (Way(fdset=True, workers=1, offset=0x1069f), Way(fdset=True, workers=1, offset=0x1069f)),
    "fdset-direct-io-offset": (Way(fdset=True, direct=True, workers=2, offset=0x1069f),
                               Way(fdset=True, direct=True, workers=2, offset=0x1069f)),
}
for _name, (_first, _second) in WAYS.items():
    for _running in (True, False):
        cases.add(f"mapped/qemu-to-qemu/{_name}/{'running' if _running else 'stopped'}",
                  lambda folder, args=(_first, _second, _running): relay(folder, *args),
                  quick=_name in ("plain", "direct-io") and _running)


@dataclass
class Block:
    name: str
    length: int
    header: int     # where the 28 bytes stand
    bitmap: int
    pages: int
    set_bits: int


def blocks_of(path: Path, offset: int = 0) -> list[Block]:
    """Walks START's list by its own knowledge of the format."""
    with open(path, "rb") as file:
        file.seek(offset)
        head = file.read(512)
        at = head.index(b"\x03ram\0\0\0\0\0\0\0\4") + 12
        total = struct.unpack_from(">Q", head, at)[0]
        assert total & 4
        total &= ~0xfff
        position = offset + at + 8
        found = []
        while total > 0:
            file.seek(position)
            entry = file.read(300)
            name = entry[1:1 + entry[0]].decode()
            length, version, page, bitmap, pages = struct.unpack_from(">QIQQQ", entry, 1 + entry[0])
            assert (version, page) == (1, 4096), (version, page)
            header = position + 1 + entry[0] + 8
            assert bitmap == header + 28 and pages % MIB == 0, (header, bitmap, pages)
            file.seek(bitmap)
            words = file.read((length // 4096 + 63) // 64 * 8)
            assert pages == (bitmap + len(words) + MIB - 1) // MIB * MIB, "the place is not QEMU's"
            found.append(Block(name, length, header, bitmap, pages, sum(byte.bit_count() for byte in words)))
            position = pages + length
            total -= length
    return found


def same_blocks(one: Path, one_offset: int, two: Path, two_offset: int) -> None:
    def shape(path: Path, offset: int) -> list[tuple]:
        return [(block.name, block.length, block.set_bits) for block in blocks_of(path, offset)]
    assert shape(one, one_offset) == shape(two, two_offset), "another set of pages"


# --- live synthetic guests --------------------------------------------------------------------------------------------

LIVE = "synthetic,ram=128M,dirty-rate=100M,working-set=32M"


def live(folder: Path, way: Way) -> None:
    """A running guest saved while it writes; the file holds the moment of its stop, and every page is proved."""
    path = folder / "saved"
    with Migrationd(folder, "source", machine=LIVE) as source, \
         Migrationd(folder, "target", machine=LIVE, incoming=["defer"]) as target:
        time.sleep(0.3)
        save(source, path, way)
        answer = source.wait_totals()
        assert answer["ram"]["dirty-sync-count"] >= 2, answer
        assert source.run_state() == "postmigrate" and source.owner() == "here"
        load(target, path, way)
        assert target.run_state() == "running"
        assert target.verify_machine() > 0
        # The size is bounded however often pages were written, and holes cost nothing.
        blocks = blocks_of(path, way.offset)
        about = path.stat()
        assert about.st_size < max(block.pages + block.length for block in blocks) + MIB
        source.qmp.execute("cont")
        assert source.run_state() == "running"
        assert source.verify_machine() > 0


for _name, _way in {"plain": Way(), "direct-io": Way(direct=True), "offset": Way(offset=0x2345)}.items():
    cases.add(f"mapped/live/{_name}", lambda folder, way=_way: live(folder, way), quick=_name == "plain")


@cases.case("mapped/untouched-memory-costs-no-disk", quick=True)
def holes(folder: Path) -> None:
    path = folder / "saved"
    with Migrationd(folder, "source", machine="synthetic,ram=4G,dirty-rate=0,working-set=8M", paused=True) as source:
        save(source, path)
        about = path.stat()
        assert about.st_size > 4 << 30
        assert about.st_blocks * 512 < 64 * MIB, f"{about.st_blocks * 512} bytes on disk"


# --- what is refused --------------------------------------------------------------------------------------------------

def refused(action: Callable[[], object], text: str) -> None:
    try:
        action()
    except QmpError as error:
        assert error.desc == text, f"{error.desc!r}, expected {text!r}"
    else:
        raise AssertionError(f"accepted; expected {text!r}")


@cases.case("mapped/refusals-have-QEMUs-texts", quick=True)
def refusals(folder: Path) -> None:
    seek = "Migration requires seekable transport (e.g. file)"
    for index, version in enumerate(("ours", "10.0")):
        host = Migrationd(folder, "ours", machine=LIVE, paused=True) if index == 0 else Qemu(folder, "theirs", version)
        with host:
            refused(lambda: host.capabilities("mapped-ram", "xbzrle"),
                    "Mapped-ram migration is incompatible with xbzrle")
            refused(lambda: host.capabilities("mapped-ram", "postcopy-ram"),
                    "Mapped-ram migration is incompatible with postcopy")
            host.capabilities("mapped-ram")
            for address in (f"unix:{folder}/x", "tcp:127.0.0.1:1", "exec:cat", "fd:none"):
                refused(lambda: host.migrate(address), seek)
            host.capabilities(mapped_ram=False)
            host.parameters(multifd_compression="zlib")
            host.capabilities("mapped-ram")
            refused(lambda: host.migrate(f"file:{folder}/x"), "Cannot use compression with mapped-ram")
            assert not (folder / "x").exists()


@cases.case("mapped/return-path-is-refused-before-the-file-is-touched")
def return_path(folder: Path) -> None:
    (folder / "old").write_bytes(b"an older save")
    with Migrationd(folder, "source", machine=LIVE, paused=True) as source:
        source.capabilities("mapped-ram", "return-path")
        refused(lambda: source.migrate(f"file:{folder}/old"), "Mapped-ram migration is incompatible with return-path")
    assert (folder / "old").read_bytes() == b"an older save"


W, R, RDWR, D = os.O_WRONLY, os.O_RDONLY, os.O_RDWR, os.O_DIRECT
DUPLICATE = -1      # of the member before
OTHER_FILE = -2     # opened write-only, of another file


def fdset_of(host: Host, path: Path, members: list[int]) -> str:
    number, last = -1, -1
    for flags in members:
        if flags == DUPLICATE:
            fd = os.dup(last)
        elif flags == OTHER_FILE:
            fd = os.open(f"{path}.other", W | os.O_CREAT, 0o600)
        else:
            fd = os.open(path, flags | os.O_CREAT, 0o600)
        number = host.qmp.execute("add-fd", {} if number < 0 else {"fdset-id": number}, fds=[fd])["fdset-id"]
        if last >= 0:
            os.close(last)
        last = fd
    os.close(last)
    return f"/dev/fdset/{number}"


# What QEMU refuses too has its text. The rest it takes, and may write to the wrong file or by one shared position.
SETS_TO_SAVE: list[tuple[list[int], str]] = [
    ([W], ""),
    ([W, W], ""),
    ([RDWR], "Failed to find file descriptor with matching flags=0x41"),
    ([R], "Failed to find file descriptor with matching flags=0x41"),
    ([W | D], "Failed to find file descriptor with matching flags=0x41"),
    ([W, DUPLICATE], "its descriptors are duplicates of each other; open the file twice"),
    ([W, OTHER_FILE], "its two descriptors are of different files"),
    ([W, R], "a descriptor is not write-only"),
    ([W, W | D], "a descriptor was opened with O_DIRECT, but direct-io is off"),
    ([W, W, W], "3 descriptors where one or two are wanted"),
]


SETS_FOR_DIRECT_IO: list[tuple[list[int], str]] = [
    ([W, W | D], ""),
    ([W | D, W], ""),
    ([W], "Failed to find file descriptor with matching flags=0x4001"),
    ([W, DUPLICATE], "Failed to find file descriptor with matching flags=0x4001"),
    ([W | D, DUPLICATE], "Failed to find file descriptor with matching flags=0x41"),
    ([W, W | D, W], "3 descriptors where exactly two are wanted"),
]


@cases.case("mapped/descriptor-sets", quick=True)
def descriptor_sets(folder: Path) -> None:
    with Migrationd(folder, "source", machine="synthetic,ram=16M") as source:
        set_up(source, Way())
        refused(lambda: source.migrate("file:/dev/fdset/77"), "Failed to find fdset /dev/fdset/77")
        refused(lambda: source.migrate("file:/dev/fdset/1x"), "Could not parse fdset /dev/fdset/1x")
        for index, (members, text) in enumerate(SETS_TO_SAVE):
            path = folder / f"saved{index}"
            name = fdset_of(source, path, members)
            if text:
                expected = text if text.startswith("Failed") else f"{name}: {text}"
                refused(lambda: source.migrate(f"file:{name},offset=0x1000"), expected)
                assert path.stat().st_size == 0, "a refused set was written to"
                continue
            source.migrate(f"file:{name},offset=0x1000")
            source.wait_status("completed")
            assert path.read_bytes()[0x1000:0x1004] == b"QEVM"
            source.qmp.execute("cont")
        # Pages by a descriptor of their own.
        source.capabilities(multifd=True)
        source.parameters(direct_io=True)
        for index, (members, text) in enumerate(SETS_FOR_DIRECT_IO):
            name = fdset_of(source, folder / f"direct{index}", members)
            if text:
                expected = text if text.startswith("Failed") else f"{name}: {text}"
                refused(lambda: source.migrate(f"file:{name}"), expected)
                continue
            source.migrate(f"file:{name},offset=0")
            source.wait_status("completed")
            source.qmp.execute("cont")
        good = folder / "saved0"
    with Migrationd(folder, "target") as target:
        set_up(target, Way())
        for members in ([RDWR], [W]):
            refused(lambda: target.incoming(f"file:{fdset_of(target, good, members)},offset=0x1000"),
                    "Failed to find file descriptor with matching flags=0x0")
        target.incoming(f"file:{fdset_of(target, good, [R])},offset=0x1000")
        target.wait_status("completed")


# --- files that are not right -----------------------------------------------------------------------------------------

Damage = Callable[[Path, list[Block]], None]


def put(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def _cut(at: Callable[[list[Block]], int]) -> Damage:
    return lambda path, blocks: os.truncate(path, at(blocks))


def _header(field: int, value: int, size: str = "Q", block: int = 0) -> Damage:
    return lambda path, blocks: put(path, blocks[block].header + field, struct.pack(f">{size}", value))


def _after_blocks(path: Path, blocks: list[Block], word: int) -> None:
    """The EOS record of START begins behind the last block's pages."""
    last = blocks[-1]
    put(path, last.pages + last.length, struct.pack(">Q", word))


def _end_of_last(blocks: list[Block]) -> int:
    return blocks[-1].pages + blocks[-1].length


def _stray_bit(path: Path, blocks: list[Block]) -> None:
    small = next(block for block in blocks if block.length // 4096 % 64 != 0)
    put(path, small.bitmap + 7, b"\x80")


DAMAGES: dict[str, tuple[Damage, str]] = {
    "version-2": (_header(0, 2, "I"), "mapped-ram capability version not supported (expected <= 1, got 2)"),
    "page-size-0": (_header(4, 0), "the file's pages are of 0 bytes"),
    "page-size-16K": (_header(4, 16384), "the file's pages are of 16384 bytes"),
    "pages-not-aligned": (_header(20, 0x100001), "region has bad alignment"),
    "pages-over-the-bitmap": (_header(20, 0), "overlap the bitmap"),
    "pages-past-the-end": (_header(20, 1 << 40), "it is cut off"),
    "pages-wrap-around": (_header(20, (1 << 64) - 4096), "past what a file can hold"),
    "bitmap-before-the-entry": (_header(12, 0), "overlaps what is in front of it"),
    "bitmap-past-the-end": (_header(12, 1 << 62), "overlap the bitmap"),
    "second-block-over-the-first": (_header(20, MIB, block=1), "overlap the bitmap"),
    "bit-behind-the-block": (_stray_bit, "the bitmap has pages behind the block's end"),
    "header-cut": (_cut(lambda blocks: blocks[0].header + 10), "stream ends too early"),
    "pages-cut": (_cut(lambda blocks: blocks[0].pages + MIB), "it is cut off"),
    "end-cut": (_cut(lambda blocks: _end_of_last(blocks) + 13), "ends too early"),
    "devices-cut": (_cut(lambda blocks: _end_of_last(blocks) + 300), "without an end mark"),
    "page-record-in-a-section": (lambda path, blocks: _after_blocks(path, blocks, 8), "Unexpected RAM flags: 8"),
    "flush-in-a-section": (lambda path, blocks: _after_blocks(path, blocks, 0x200), "Unexpected RAM flags: 512"),
    "no-header": (lambda path, _: put(path, 0, bytes(8)), "the file is incomplete"),
    "other-header": (lambda path, _: put(path, 0, b"LibvirtQ"), "magic is wrong"),
    "empty": (_cut(lambda _: 0), "ends too early"),
}


@cases.case("mapped/damaged-files", timeout=120, quick=True)
def damaged(folder: Path) -> None:
    """Each damage has its own clear error, no hang, and never a machine."""
    good, bad = folder / "good", folder / "bad"
    with Qemu(folder, "source", "10.0") as source:
        depart(QuietPair(source, source), running=False)
        save(source, good)
    blocks = blocks_of(good)
    with Migrationd(folder, "park") as park:
        for name, (damage, text) in DAMAGES.items():
            subprocess.run(["cp", "--sparse=always", good, bad], check=True)
            damage(bad, blocks)
            load(park, bad, wait=None)
            answer = park.wait(lambda: (park.status() in ("failed", "completed") and park.query_migrate()), 10, name)
            assert answer["status"] == "failed" and text in answer["error-desc"], f"{name}: {answer}"
        # And the same daemon takes the good one.
        load(park, good)


@cases.case("mapped/file-shrinks-while-it-is-read")
def shrinks(folder: Path) -> None:
    path = folder / "saved"
    what = "synthetic,ram=512M,dirty-rate=0,working-set=512M"
    with Migrationd(folder, "source", machine=what) as source:
        time.sleep(0.5)
        save(source, path)
    block = max(blocks_of(path), key=lambda block: block.length)
    with Migrationd(folder, "target", machine=what, incoming=["defer"]) as target:
        load(target, path, wait=None)
        os.truncate(path, block.pages + 4096)
        answer = target.wait(lambda: (target.status() in ("failed", "completed") and target.query_migrate()), 20, "end")
        # It may have been read before it was cut.
        if answer["status"] == "failed":
            assert "cut off" in answer["error-desc"] or "too early" in answer["error-desc"], answer
            assert target.run_state() == "inmigrate"
        else:
            target.verify_machine()


@cases.case("mapped/capability-on-one-side-only")
def one_side(folder: Path) -> None:
    mapped, plain = folder / "mapped", folder / "plain"
    with Migrationd(folder, "source", machine=LIVE, paused=True) as source:
        save(source, mapped)
        source.qmp.execute("cont")
        source.qmp.execute("stop")
        source.capabilities(mapped_ram=False)
        source.migrate(f"file:{plain}")
        source.wait_status("completed")
    for on, path in ((True, plain), (False, mapped)):
        with Migrationd(folder, f"target-{on}") as target:
            target.capabilities(mapped_ram=on)
            target.incoming(f"file:{path}")
            target.wait(lambda: target.status() == "failed", 20, "the refusal")
            text = f"Capability mapped-ram is {'on' if on else 'off'}, but received capability is {'off' if on else 'on'}"
            assert text in target.query_migrate()["error-desc"], target.query_migrate()


def unfinished(folder: Path, how: str) -> None:
    """A save that was killed or cancelled leaves a file that nobody takes for a machine."""
    path = folder / "saved"
    with Migrationd(folder, "source", machine=LIVE) as source:
        set_up(source, Way())
        source.parameters(max_bandwidth=20 * MIB)
        source.migrate(f"file:{path}")
        source.wait(lambda: source.query_migrate().get("ram", {}).get("transferred", 0) > 8 * MIB, 20, "some pages")
        if how == "cancel":
            source.qmp.execute("migrate_cancel")
            source.wait(lambda: source.status() == "cancelled", 20, "the cancel")
            assert source.run_state() == "running" and source.owner() == "here"
            source.verify_machine()
        else:
            source.child.send_signal(signal.SIGKILL)
            source.child.wait()
    with Migrationd(folder, "target") as target:
        load(target, path, wait=None)
        target.wait(lambda: target.status() == "failed", 20, "the refusal")
        assert "the file is incomplete" in target.query_migrate()["error-desc"], target.query_migrate()
    with Qemu(folder, "qemu", "10.0", incoming=True) as qemu:
        load(qemu, path, wait=None)
        qemu.wait(lambda: qemu.status() == "failed", 20, "QEMU's refusal")


for _how in ("kill", "cancel"):
    cases.add(f"mapped/unfinished/{_how}", lambda folder, how=_how: unfinished(folder, how), quick=_how == "kill")


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    place = folder / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        raise Skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@cases.case("mapped/disk-full", quick=True)
def disk_full(folder: Path) -> None:
    """The disk is full in the middle: the save fails with the reason, the guest runs on, and can be saved elsewhere."""
    with small_disk(folder, 8 * MIB) as disk, Migrationd(folder, "source", machine=LIVE) as source:
        time.sleep(0.3)
        save(source, disk / "saved", wait=None)
        source.wait(lambda: source.status() == "failed", 20, "the failure")
        assert "No space left on device" in source.query_migrate()["error-desc"], source.query_migrate()
        assert source.run_state() == "running" and source.owner() == "here"
        save(source, folder / "elsewhere")
        source.qmp.execute("cont")
        source.verify_machine()
        with Migrationd(folder, "target") as target:
            load(target, disk / "saved", wait=None)
            target.wait(lambda: target.status() == "failed", 20, "the refusal")
        with Migrationd(folder, "other", machine=LIVE, incoming=["defer"]) as other:
            load(other, folder / "elsewhere")
            other.verify_machine()
