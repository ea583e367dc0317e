# SPDX-License-Identifier: Apache-2.0
"""Instant resume from libvirt's save images, raw and sparse, stored, converted, and of a libvirt and a QEMU at work here;
and of machines whose virtio devices have worked.
"""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

from ..lib import cases
from ..lib.daemon import Migrationd
from ..lib.guest import Guest, check_serial, last_number
from ..lib.libvirt import Libvirt
from ..lib.qemu import Qemu
from .images import GUEST, STORED, XML, convert
from .postcopy_source import LARGE, into_postcopy, park, went_on
from .resume import Printed, open_lazily
from .story import QuietPair, depart

SMALL = Guest(pages=64)


def runs_on(folder: Path, image: Path, version: str, guest: Guest, before: bytes | None, preempt: bool = False) -> None:
    """From the image into a QEMU, whose guest goes on; none of the memory was loaded here."""
    with Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", version, guest=guest, incoming=True) as target:
        open_lazily(daemon, image)
        assert daemon.run_state() == "running", daemon.run_state()
        assert sum(block["allocated"] for block in daemon.machine()["blocks"]) == 0, daemon.machine()
        into_postcopy(daemon, target, f"unix:{folder / 'out'}", preempt)
        target.wait(lambda: last_number(target.serial()) > 0, 30, "the guest to run on")
        target.wait_sweeps(last_number(target.serial()) + 3)
        target.qmp.execute("stop")
        target.check_memory()
        if before is not None:
            check_serial([before, target.serial()])


def stored(folder: Path) -> Path:
    image = folder / "stored.img"
    image.write_bytes(lzma.decompress(STORED.read_bytes()))
    return image


@cases.case("resume-images/stored/raw", quick=True)
def stored_raw(folder: Path) -> None:
    runs_on(folder, stored(folder), "7.2", SMALL, None)


for _version in ("7.2", "10.0"):
    cases.add(f"resume-images/stored/sparse-to-{_version}", quick=_version == "10.0", run=lambda folder, version=_version:
              runs_on(folder, convert(stored(folder), folder / "sparse", "libvirt-sparse"), version, SMALL, None,
                      preempt=version == "10.0"))


def of_libvirt(folder: Path, kind: str) -> None:
    """A domain saved by virsh here and now."""
    with Libvirt(folder) as libvirt:
        libvirt.create("tiny", GUEST)
        libvirt.wait_sweeps("tiny", 5)
        image = libvirt.root / "tiny.img"
        libvirt.virsh("save", "tiny", str(image))
        before = libvirt.serial("tiny")
        if kind == "sparse":
            image = convert(image, folder / "sparse", "libvirt-sparse")
        runs_on(folder, image, "7.2", GUEST, before)


for _kind in ("raw", "sparse"):
    cases.add(f"resume-images/libvirt/{_kind}", lambda folder, kind=_kind: of_libvirt(folder, kind), timeout=120,
              quick=_kind == "raw")


@cases.case("resume-images/sparse-of-qemu-10.0", quick=True)
def sparse_of_qemu(folder: Path) -> None:
    """What QEMU writes behind libvirt's header when libvirt has it save a sparse image: page places at an offset."""
    image, start = folder / "image", 0x1069f
    text = XML.encode() + b"\0"
    with Qemu(folder, "source", "10.0") as source:
        depart(QuietPair(source, source), True)
        header = struct.pack("<5I", 2, start - 92, 1, 6, 0)
        image.write_bytes((b"LibvirtQemudSave" + header).ljust(92, b"\0") + text.ljust(start - 92, b"\0"))
        source.capabilities(mapped_ram=True, multifd=True)
        source.migrate(f"file:{image},offset={start:#x}")
        source.wait_status("completed")
        before = source.serial()
    runs_on(folder, image, "10.0", Guest(), before)


# --- virtio ------------------------------------------------------------------------------------------------------------

def with_virtio(folder: Path, kind: str, version: str, preempt: bool) -> None:
    """Booted from a virtio disk, with a network card, a SCSI controller, a balloon and more beside it. It runs on, and
    when it is reset there it boots from its virtio disk again."""
    path = folder / "machine"
    with Qemu(folder, "source", version, memory_mib=32, guest=LARGE, virtio=True) as source, \
         Migrationd(folder, "park") as daemon:
        if kind == "parked":
            left_at = park(folder, source, daemon)
        else:
            depart(QuietPair(source, source), True)
            if kind == "mapped-ram":
                source.capabilities("mapped-ram")
            source.migrate(f"file:{path}" if kind == "mapped-ram" else f"exec:cat > {path}")
            source.wait_status("completed")
            left_at = last_number(source.serial())
            open_lazily(daemon, path)
        virtio = [device["name"] for device in daemon.machine()["devices"] if "virtio" in device["name"]]
        assert len(virtio) >= 6, daemon.machine()["devices"]
        (folder / "printed").write_bytes(source.serial())
        with Qemu(folder, "target", version, memory_mib=32, guest=LARGE, incoming=True, virtio=True) as target:
            into_postcopy(daemon, target, f"unix:{folder / 'out'}", preempt)
            went_on([Printed(folder / "printed"), target], left_at, LARGE)
            printed = len(target.serial())
            target.qmp.execute("system_reset")
            target.qmp.execute("cont")
            target.wait(lambda: b"\n00000003\n" in target.serial()[printed:], 30, "the guest to boot again")
            assert b"\nE" not in target.serial()[printed:]


for _kind, _version, _preempt in (("parked", "10.0", False), ("mapped-ram", "10.0", True), ("plain", "7.2", False),
                                  ("parked", "7.2", True)):
    cases.add(f"resume-images/virtio/{_kind}-to-{_version}", timeout=90, quick=_kind == "mapped-ram",
              run=lambda folder, args=(_kind, _version, _preempt): with_virtio(folder, *args))
