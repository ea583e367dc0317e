# SPDX-License-Identifier: Apache-2.0
"""Save images: of a real libvirt opened by migrationd, and of migrationd's opened by a real libvirt."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import re
import struct
import subprocess
import time
from pathlib import Path

from ..lib import cases, links, programs
from ..lib.daemon import Migrationd
from ..lib.guest import Guest, check_serial, last_number
from ..lib.libvirt import Libvirt
from ..lib.process import wait_until
from ..lib.qemu import Qemu
from ..lib.qmp import QmpError

GUEST = Guest()
MIB = 1 << 20
STORED = programs.TREE / "tests" / "fixtures" / "streams" / "libvirt-9.0-raw.img.xz"


def ctl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    program = programs.build_folder() / "tools" / "migrationctl" / "migrationctl"
    done = subprocess.run([str(program), *words], capture_output=True, text=True, timeout=120, check=False)
    if check:
        assert done.returncode == 0, f"migrationctl {' '.join(words)}: {done.returncode} {done.stdout} {done.stderr}"
    return done


def ready(host: Migrationd) -> None:
    """Its socket is there."""
    host.run_state()


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
            ready(park)
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


for _format in ("raw", "gzip", "bzip2", "xz", "lzop"):
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


# --- inspect, verify, convert ----------------------------------------------------------------------------------------

MAPPED, PLAIN = "mapped-ram", "plain"


def inspected(path: Path, code: int = 0) -> dict:
    done = ctl("--json", "inspect", str(path), check=False)
    assert done.returncode == code, f"inspect {path}: {done.returncode} {done.stdout[-500:]} {done.stderr}"
    return json.loads(done.stdout)


def convert(source: Path, target: Path, kind: str, *words: str) -> Path:
    ctl("convert", str(source), str(target), "--to", kind, *words)
    assert inspected(target)["kind"] == kind
    ctl("verify", str(target))
    return target


def runs_on(folder: Path, name: str, image: Path, version: str, mapped: bool, guest: Guest) -> None:
    """A QEMU opens the file, and the guest in it goes on."""
    with Qemu(folder, name, version, incoming=True, guest=guest) as host:
        host.capabilities(mapped_ram=True) if mapped else None
        host.incoming(f"file:{image}" if version != "7.2" else f"exec:cat {image}")
        host.wait_status("completed")
        host.check_memory()
        host.qmp.execute("cont")
        host.wait(lambda: last_number(host.serial()) > 0, 30, "the guest to run on")
        host.wait_sweeps(last_number(host.serial()) + 2)


@cases.case("images/convert/every-kind-runs-in-a-qemu", timeout=180, quick=True)
def every_kind(folder: Path) -> None:
    """A file of QEMU's own goes through all kinds; QEMU opens the ones it knows, migrationd the others."""
    guest = Guest(pages=512, fill=512)
    xml = folder / "domain.xml"
    xml.write_text("<domain type='qemu'><name>any</name></domain>\n")
    with Qemu(folder, "source", "10.0", guest=guest) as source:
        source.wait_sweeps(3)
        source.qmp.execute("stop")
        source.capabilities(mapped_ram=True)
        source.migrate(f"file:{folder / 'theirs'}")
        source.wait_status("completed")
    plain = convert(folder / "theirs", folder / "plain", PLAIN)
    raw = convert(folder / "theirs", folder / "raw", "libvirt-raw", "--libvirt", str(xml))
    sparse = convert(raw, folder / "sparse", "libvirt-sparse")
    mapped = convert(sparse, folder / "mapped", MAPPED)
    runs_on(folder, "a", plain, "7.2", False, guest)
    runs_on(folder, "b", mapped, "10.0", True, guest)
    assert ctl("inspect", "--xml", str(sparse)).stdout == xml.read_text()
    for image in (raw, sparse):
        with Migrationd(folder, f"park-{image.name}") as park, \
             Qemu(folder, f"target-{image.name}", "10.0", incoming=True, guest=guest) as destination:
            ready(park)
            ctl("--socket", park.qmp_path, "load", str(image))
            links.transfer(park, destination, links.Tcp4(folder, f"out-{image.name}"), True)
            destination.check_memory()
    theirs, ours = inspected(folder / "theirs"), inspected(mapped)
    for key in ("machine", "devices"):
        assert theirs[key] == ours[key], key
    sizes = [(block["name"], block["size"]) for block in theirs["blocks"]]
    assert sizes == [(block["name"], block["size"]) for block in ours["blocks"]]
    assert ours["on-disk"] < ours["size"] // 2, f"holes were filled: {ours['on-disk']} of {ours['size']}"


for _name in ("qemu-7.2-xbzrle", "qemu-10.0-xbzrle", "qemu-7.2-compress", "qemu-10.0-running", "qemu-10.0-stopped"):
    def _encoded(folder: Path, name: str = _name) -> None:
        """Deltas and compressed pages become the pages they stand for."""
        stream = folder / "stream"
        stream.write_bytes(lzma.decompress((STORED.parent / f"{name}.xz").read_bytes()))
        there = convert(stream, folder / "mapped", MAPPED)
        back = convert(there, folder / "plain", PLAIN)
        run = subprocess.run([programs.TREE / "tests" / "interop" / "analyze_stream.py", "--compare", stream, back],
                             capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 0, (run.stdout + run.stderr)[-1000:]

    cases.add(f"images/convert/{_name}", _encoded, daemon=False)


@cases.case("images/convert/a-libvirt-image-runs-in-libvirt-again", timeout=120)
def libvirt_round_trip(folder: Path) -> None:
    """An image of libvirt's becomes mapped-ram, which QEMU 10.0 loads, and an image again, which libvirt restores."""
    with Libvirt(folder) as libvirt:
        libvirt.create("tiny", GUEST)
        libvirt.wait_sweeps("tiny", 5)
        image = libvirt.root / "tiny.img"
        libvirt.virsh("save", "tiny", str(image))
        left = libvirt.serial("tiny")
        mapped = convert(image, folder / "mapped", MAPPED)
        again = convert(mapped, libvirt.root / "again.img", "libvirt-raw", "--libvirt", str(xml_of(image, folder)))
        runs_on(folder, "direct", mapped, "10.0", True, GUEST)
        libvirt.give(again)
        libvirt.virsh("restore", "--running", str(again))
        libvirt.wait_sweeps("tiny", last_number(left) + 3)
        check_serial([left, libvirt.serial("tiny")])


def xml_of(image: Path, folder: Path) -> Path:
    path = folder / "shown.xml"
    path.write_text(ctl("inspect", "--xml", str(image)).stdout)
    return path


def peak_rss(words: list[str]) -> int:
    """Bytes: VmHWM as last seen before the process ended. A run too short to be seen is made again."""
    program = programs.build_folder() / "tools" / "migrationctl" / "migrationctl"
    peak = 0
    for _attempt in range(50):
        with subprocess.Popen([str(program), *words], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text()
                found = re.search(r"VmHWM:\s+(\d+) kB", status)
                if found and "Name:\tmigrationctl" in status:     # before exec it is still this interpreter
                    peak = max(peak, int(found[1]) * 1024)
        assert process.returncode == 0, words
        if peak > 0:
            return peak
    raise AssertionError(f"{words} was never seen")


@cases.case("images/convert/memory-does-not-grow-with-the-machine", timeout=240)
def constant_memory(folder: Path) -> None:
    """VmHWM of each conversion of 32 MiB and 1 GiB, all of it data: a bit per page more, and no page."""
    peaks: dict[tuple[str, str], list[int]] = {}
    for size in ("32M", "1G"):
        with Migrationd(folder, f"of-{size}", machine=f"synthetic,ram={size},touched={size}") as host:
            host.qmp.execute("stop")
            host.migrate(f"file:{folder / 'plain'}")
            host.wait_status("completed", timeout=120)
        ctl("convert", str(folder / "plain"), str(folder / MAPPED), "--to", MAPPED)
        for source in (PLAIN, MAPPED):
            for kind in (PLAIN, MAPPED):
                peak = peak_rss(["convert", str(folder / source), str(folder / "out"), "--to", kind])
                peaks.setdefault((source, kind), []).append(peak)
        for command in ("verify", "inspect"):
            peaks.setdefault((MAPPED, command), []).append(peak_rss([command, str(folder / MAPPED)]))
    for way, (small, large) in peaks.items():
        assert large - small < 2 * MIB, f"{way}: {small} bytes for 32 MiB, {large} for 1 GiB"
        assert large < 64 * MIB, f"{way}: {large} bytes"


# --- damage and death ------------------------------------------------------------------------------------------------

@cases.case("images/checksums-find-what-changed", quick=True)
def checksums(folder: Path) -> None:
    image = folder / "saved"
    with Migrationd(folder, "host", machine="synthetic,ram=32M,touched=8M") as host:
        ready(host)
        ctl("--socket", host.qmp_path, "save", "--checksum", str(image))
    assert "checksums  good" in ctl("verify", str(image)).stdout
    pages = inspected(image)["blocks"][0]["pages-offset"]
    with open(image, "r+b") as file:
        file.seek(pages + 5000)
        byte = file.read(1)
        file.seek(pages + 5000)
        file.write(bytes([byte[0] ^ 1]))
    done = ctl("--json", "verify", str(image), check=False)
    answer = json.loads(done.stdout)
    assert done.returncode == 1 and answer["complete"] and not answer["good"], answer
    assert answer["checksums"]["wrong"] == 1 and answer["checksums"]["first-wrong-offset"] <= pages + 5000, answer


def _is_incomplete(folder: Path, path: Path) -> None:
    """inspect, verify and opening it all say so."""
    assert not inspected(path, code=1)["complete"]
    assert ctl("verify", str(path), check=False).returncode == 1
    with Migrationd(folder, f"opens-{time.monotonic_ns()}", machine="synthetic,ram=128M") as host:
        ready(host)
        done = ctl("--socket", host.qmp_path, "load", str(path), check=False)
        assert done.returncode != 0, f"{path} was loaded"


def killed_save(folder: Path, words: list[str], attempts: int) -> None:
    """kill -9 of the daemon at random moments of a save: what lies there is whole or called incomplete."""
    dice = random.Random(f"{words}")
    incomplete = 0
    for attempt in range(attempts):
        path = folder / f"saved-{attempt}"
        with Migrationd(folder, f"host-{attempt}", machine="synthetic,ram=128M,touched=128M") as host:
            ready(host)
            program = programs.build_folder() / "tools" / "migrationctl" / "migrationctl"
            with subprocess.Popen([str(program), "--socket", host.qmp_path, "save", *words, str(path)],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as save:
                wait_until(lambda: path.exists() or save.poll() is not None, 20, "the file to be made", step=0.001)
                time.sleep(dice.random() * 0.25)
                host.kill()
                code = save.wait(20)
        if code == 0:
            ctl("verify", str(path))
            continue
        done = ctl("verify", str(path), check=False)
        if done.returncode == 0:
            # Everything was on the disk, and the word of it was lost.
            assert not words, "libvirt's header is set last, by migrationctl"
            continue
        incomplete += 1
        _is_incomplete(folder, path)
        path.unlink()
    assert incomplete > 0, "no save was caught unfinished"


XML = "<domain type='qemu'><name>any</name></domain>\n"


def killed_libvirt_save(folder: Path, image_format: str) -> None:
    (folder / "xml").write_text(XML)
    killed_save(folder, ["--libvirt", str(folder / "xml"), "--image-format", image_format], 4)


cases.add("images/killed-save-is-incomplete/mapped-ram", lambda folder: killed_save(folder, [], 8), timeout=180)
for _format in ("raw", "sparse"):
    cases.add(f"images/killed-save-is-incomplete/libvirt-{_format}",
              lambda folder, form=_format: killed_libvirt_save(folder, form), timeout=180)


@cases.case("images/killed-save-is-incomplete/plain", timeout=180)
def killed_plain(folder: Path) -> None:
    """`migrate file:` without mapped-ram has no mark: the missing end tells."""
    dice = random.Random(1)
    for attempt in range(5):
        path = folder / f"saved-{attempt}"
        with Migrationd(folder, f"host-{attempt}", machine="synthetic,ram=128M,touched=128M") as host:
            host.migrate(f"file:{path}")
            time.sleep(dice.random() * 0.03)
            host.kill()
        if ctl("verify", str(path), check=False).returncode != 0:
            _is_incomplete(folder, path)


@cases.case("images/killed-convert-is-incomplete", timeout=120)
def killed_convert(folder: Path) -> None:
    dice = random.Random(2)
    with Migrationd(folder, "host", machine="synthetic,ram=128M,touched=128M") as host:
        ready(host)
        ctl("--socket", host.qmp_path, "save", str(folder / "saved"))
    (folder / "xml").write_text(XML)
    program = programs.build_folder() / "tools" / "migrationctl" / "migrationctl"
    caught = 0
    for kind in (PLAIN, MAPPED, "libvirt-raw", "libvirt-sparse"):
        for attempt in range(3):
            path = folder / f"{kind}-{attempt}"
            with subprocess.Popen([str(program), "convert", str(folder / "saved"), str(path), "--to", kind,
                                   "--libvirt", str(folder / "xml")]) as process:
                wait_until(lambda: path.exists() or process.poll() is not None, 20, "the file", step=0.001)
                time.sleep(dice.random() * 0.05)
                process.kill()
            if process.returncode != 0 and ctl("verify", str(path), check=False).returncode != 0:
                caught += 1
                _is_incomplete(folder, path)
            path.unlink()
    assert caught > 0, "no conversion was caught unfinished"


# --- sparse images with QEMU 10.0 --------------------------------------------------------------------------------------

@cases.case("images/sparse-with-qemu-10.0", quick=True)
def sparse_with_qemu(folder: Path) -> None:
    """What QEMU writes behind libvirt's header, as libvirt has it write, is opened by its name; ours is opened by QEMU at
    the offset that our header says."""
    theirs, ours, xml = folder / "theirs", folder / "ours", folder / "xml"
    xml.write_text(XML)
    start = 0x1069f
    text = XML.encode() + b"\0"
    with Qemu(folder, "source", "10.0") as source, Migrationd(folder, "park") as park, \
         Qemu(folder, "target", "10.0", incoming=True) as destination:
        source.wait_sweeps(5)
        source.qmp.execute("stop")
        sweep = source.check_memory()
        header = struct.pack("<5I", 2, start - 92, 1, 6, 0)
        theirs.write_bytes((b"LibvirtQemudPart" + header).ljust(92, b"\0") + text.ljust(start - 92, b"\0"))
        source.capabilities(mapped_ram=True, multifd=True)
        source.migrate(f"file:{theirs},offset={start:#x}")
        source.wait_status("completed")
        with open(theirs, "r+b") as file:
            file.write(b"LibvirtQemudSave")
        found = inspected(theirs)
        assert found["kind"] == "libvirt-sparse" and found["libvirt"]["was-running"], found
        ready(park)
        ctl("--socket", park.qmp_path, "load", str(theirs))
        assert park.run_state() == "running", "libvirt's header says that it ran"
        ctl("--socket", park.qmp_path, "save", "--libvirt", str(xml), "--image-format", "sparse", str(ours))
        found = inspected(ours)
        assert found["kind"] == "libvirt-sparse", found
        destination.capabilities(mapped_ram=True)
        destination.incoming(f"file:{ours},offset={found['stream-offset']:#x}")
        destination.wait_status("completed")
        destination.wait(lambda: last_number(destination.serial()) > sweep, 30, "the guest to run on")
        destination.qmp.execute("stop")
        destination.check_memory()
        check_serial([source.serial(), destination.serial()])


@cases.case("images/altered-files-neither-crash-nor-hang", timeout=240)
def altered(folder: Path) -> None:
    """Bytes changed, pieces cut out or doubled: inspect, verify and convert end by themselves with a status of theirs."""
    dice = random.Random(5)
    stored = lzma.decompress(STORED.read_bytes())
    (folder / "raw").write_bytes(stored)
    seeds = {"raw": stored}
    for kind in (PLAIN, MAPPED):
        seeds[kind] = convert(folder / "raw", folder / kind, kind).read_bytes()
    file = folder / "altered"
    for round_ in range(120):
        name = dice.choice(sorted(seeds))
        data = bytearray(seeds[name])
        # Where the structure is: the beginning, the end, and around the places of mapped-ram's block list.
        places = [0, len(data) - 60000, 0x1000000] if name == MAPPED else [0, 92 + 67221, len(data) - 60000]
        for _ in range(dice.randint(1, 4)):
            at = min(len(data) - 1, max(0, dice.choice(places) + int(dice.expovariate(1 / 300))))
            match dice.randint(0, 3):
                case 0: data[at] = dice.randrange(256)
                case 1: data[at:at + 8] = dice.choice((b"\xff" * 8, bytes(8), struct.pack(">Q", dice.getrandbits(45))))
                case 2: del data[at:at + dice.randint(1, 40)]
                case 3: data[at:at] = data[at:at + dice.randint(1, 40)]
        file.write_bytes(data)
        for words in (["--json", "inspect", str(file)], ["inspect", "--devices", str(file)], ["verify", str(file)],
                      ["convert", str(file), str(folder / "out"), "--to", MAPPED if name != MAPPED else PLAIN]):
            done = ctl(*words, check=False)
            assert done.returncode in (0, 1, 2), f"round {round_}, {name}: {words}: {done.returncode} {done.stderr}"
            if words[0] == "--json":
                json.loads(done.stdout)
