# SPDX-License-Identifier: Apache-2.0
"""Save images: of a real libvirt opened by migrationd, and of migrationd's opened by a real libvirt."""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
from pathlib import Path

from ..lib import cases, links, programs
from ..lib.daemon import Migrationd
from ..lib.guest import Guest, check_serial, last_number
from ..lib.libvirt import Libvirt
from ..lib.qemu import Qemu
from ..lib.qmp import QmpError

GUEST = Guest()
STORED = programs.TREE / "tests" / "fixtures" / "streams" / "libvirt-9.0-raw.img.xz"


def ctl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    program = programs.build_folder() / "tools" / "migrationctl" / "migrationctl"
    done = subprocess.run([str(program), *words], capture_output=True, text=True, timeout=120, check=False)
    if check:
        assert done.returncode == 0, f"migrationctl {' '.join(words)}: {done.returncode} {done.stdout} {done.stderr}"
    return done


def libvirts_image(folder: Path, image_format: str, running: bool, way: str) -> None:
    """A domain of libvirt's is saved by virsh, opened here, and runs on in a QEMU."""
    with Libvirt(folder, image_format) as libvirt, Migrationd(folder, "park") as park, \
         Qemu(folder, "target", "7.2", incoming=True) as destination:
        libvirt.create("tiny", GUEST)
        libvirt.wait_sweeps("tiny", 5)
        if not running:
            libvirt.virsh("suspend", "tiny")
        image = libvirt.root / "tiny.img"
        libvirt.virsh("save", "tiny", str(image))
        left = libvirt.serial("tiny")
        if way == "load":
            ctl("--socket", park.qmp_path, "load", str(image))
        else:
            park.incoming(f"file:{image}")
            park.wait_status("completed")
        assert park.run_state() == ("running" if running else "paused"), park.run_state()
        links.transfer(park, destination, links.Tcp4(folder, "out"), True)
        if not running:
            assert destination.run_state() == "paused", destination.run_state()
            destination.qmp.execute("cont")
        destination.wait_sweeps(last_number(left) + 3)
        destination.qmp.execute("stop")
        destination.check_memory()
        check_serial([left, destination.serial()])


for _format in ("raw", "gzip", "bzip2", "xz"):
    for _running in (True, False):
        cases.add(f"images/libvirt-to-qemu/{_format}/{'running' if _running else 'paused'}",
                  lambda folder, args=(_format, _running, "load" if _running else "uri"): libvirts_image(folder, *args),
                  timeout=120, quick=_format == "raw" and _running)


def ours_to_libvirt(folder: Path, running: bool) -> None:
    """A QEMU's machine, saved by migrationctl as an image, is shown and restored by virsh."""
    with Libvirt(folder) as libvirt, Qemu(folder, "source", "7.2") as source, Migrationd(folder, "park") as park:
        source.wait_sweeps(5)
        if not running:
            source.qmp.execute("stop")
        links.transfer(source, park, links.Tcp4(folder, "in"), True)
        xml = folder / "domain.xml"
        xml.write_text(libvirt.domain_xml("ours", GUEST))
        image = libvirt.root / "ours.img"
        ctl("--socket", park.qmp_path, "save", "--libvirt", str(xml), str(image))
        libvirt.give(image)
        shown = libvirt.virsh("save-image-dumpxml", str(image))
        assert "<name>ours</name>" in shown, shown
        libvirt.virsh("restore", str(image))
        assert libvirt.virsh("domstate", "ours").strip() == ("running" if running else "paused")
        if not running:
            libvirt.virsh("resume", "ours")
        libvirt.wait_sweeps("ours", last_number(source.serial()) + 3)
        libvirt.virsh("destroy", "ours")
        check_serial([source.serial(), libvirt.serial("ours")])


cases.add("images/ours-to-libvirt/running", lambda folder: ours_to_libvirt(folder, True), timeout=120, quick=True)
cases.add("images/ours-to-libvirt/paused", lambda folder: ours_to_libvirt(folder, False), timeout=120)


@cases.case("images/stored-image-of-libvirt-9.0", quick=True)
def stored(folder: Path) -> None:
    """Where no libvirt runs: an image that one made, and the guest in it runs on."""
    image = folder / "tiny.img"
    image.write_bytes(lzma.decompress(STORED.read_bytes()))
    guest = Guest(pages=64)
    with Migrationd(folder, "park") as park, Qemu(folder, "target", "7.2", incoming=True, guest=guest) as destination:
        park.incoming(f"file:{image}")
        park.wait_status("completed")
        assert park.run_state() == "running", park.run_state()
        links.transfer(park, destination, links.Tcp4(folder, "out"), True)
        destination.wait(lambda: last_number(destination.serial()) > 0, 30, "the guest to run on")
        destination.wait_sweeps(last_number(destination.serial()) + 3)
        destination.qmp.execute("stop")
        destination.check_memory()


# --- what is no whole image ------------------------------------------------------------------------------------------

def refused(folder: Path, name: str, data: bytes, *wanted: str, at_once: bool = True) -> None:
    """Opening it fails with these words; the daemon lives and takes the next."""
    image = folder / name
    image.write_bytes(data)
    with Migrationd(folder, f"park-{name}") as park:
        park.capabilities(mapped_ram=False)
        try:
            park.incoming(f"file:{image}")
            assert not at_once, f"{name} was taken"
            text = park.wait_status("failed")["error-desc"]
        except QmpError as error:
            text = error.desc
        for words in wanted:
            assert words in text, f"{name}: {text}"
        image.write_bytes(lzma.decompress(STORED.read_bytes()))
        park.incoming(f"file:{image}")
        park.wait_status("completed")


@cases.case("images/damaged-images-are-refused-and-the-next-is-taken")
def damaged(folder: Path) -> None:
    whole = lzma.decompress(STORED.read_bytes())
    start = 92 + struct.unpack_from("<I", whole, 20)[0]

    def with_word(offset: int, value: int, data: bytes = whole) -> bytes:
        return data[:offset] + struct.pack("<I", value) + data[offset + 4:]

    packed = with_word(28, 1)[:start] + gzip.compress(whole[start:])
    refused(folder, "part", b"LibvirtQemudPart" + whole[16:], "the file is incomplete", "libvirt's header")
    refused(folder, "zeros", whole[:start] + bytes(8) + whole[start + 8:], "the file is incomplete")
    refused(folder, "version", with_word(16, 3), "version")
    refused(folder, "format", with_word(28, 9), "format 9 is not known")
    refused(folder, "sparse", with_word(28, 6), "header says sparse")
    refused(folder, "no-xml", with_word(20, 0), "no room for the domain's XML")
    refused(folder, "far", with_word(20, len(whole)), "incomplete")
    refused(folder, "cut", whole[:-1000], "", at_once=False)
    refused(folder, "cut-gzip", packed[:-20], "gzip could not read it to the end", at_once=False)
    refused(folder, "no-gzip", with_word(28, 1), "gzip could not read it to the end", at_once=False)
