# SPDX-License-Identifier: Apache-2.0
"""Builds the boot-sector guest (guest/guest.S), and judges what it printed and what it left in memory."""

from __future__ import annotations

import array
import functools
import os
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "guest"
PAGE = 4096
FIRST = 0x100000
_SWEEP_WORDS = 0x600
FLOPPY = 1440 * 1024


@dataclass(frozen=True)
class Guest:
    """What the guest does; the words patched into its boot sector."""
    pages: int = 1024       # swept pages, from 1 MiB on
    fill: int = 0           # pages filled with pseudo-random bytes first
    ticks: int = 1          # hundredths of a second to sleep between sweeps, 0: none
    every: int = 1          # sweeps per printed line

    def image(self, folder: Path) -> Path:
        """A floppy image in that folder."""
        path = folder / f"guest-{self.pages}-{self.fill}-{self.ticks}-{self.every}.img"
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(self.boot_sector())
            os.truncate(part, FLOPPY)
            part.rename(path)
        return path

    def firmware(self, folder: Path) -> Path:
        """A firmware image of ours with the guest in it, for QEMU's -bios: no other firmware has a part in it."""
        path = folder / f"guest-{self.pages}-{self.fill}-{self.ticks}-{self.every}.bios"
        image = self.boot_sector().ljust(0x10000 - 256, b"\0") + assembled("bios", "0")
        assert len(image) == 0x10000, len(image)
        path.write_bytes(image)
        return path

    def boot_sector(self) -> bytes:
        sector = bytearray(assembled("guest", "0x7c00"))
        assert len(sector) == 512 and sector[510:] == b"\x55\xaa", len(sector)
        struct.pack_into("<5I", sector, 4, FIRST, self.pages, self.fill, self.ticks, self.every)
        return bytes(sector)


@functools.cache
def assembled(name: str, address: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        objfile, binary = f"{folder}/object", f"{folder}/binary"
        subprocess.run(["as", "--32", "-I", SOURCES, "-o", objfile, SOURCES / f"{name}.S"], check=True, timeout=30)
        subprocess.run(["ld", "-m", "elf_i386", "-Ttext", address, "--oformat", "binary", "-o", binary, objfile],
                       check=True, timeout=30)
        return Path(binary).read_bytes()


# The serial output ---------------------------------------------------------------------------------------------------

class SerialError(AssertionError):
    """The guest's output proves a lost, stale or doubled machine."""


def check_serial(parts: list[bytes], every: int = 1) -> int:
    """Outputs of the hosts in the order in which they ran the guest: one exact sequence? Returns the last number.

    A number missing means that the guest went back in time or lost its place, one too many that it ran twice.
    """
    text = b"".join(parts).decode("ascii", "replace")
    lines = text.split("\n")
    complaints = [line for line in lines if line.startswith("E")]
    if complaints:
        raise SerialError("the guest found a wrong page: " + complaints[0])
    incomplete = lines.pop()
    expected = every
    for line in lines:
        if line != f"{expected:08X}":
            joints = [len(part) for part in parts]
            raise SerialError(f"expected {expected:08X}, the guest printed {line!r}; bytes per host: {joints}")
        expected += every
    if incomplete != f"{expected:08X}"[:len(incomplete)]:
        raise SerialError(f"expected {expected:08X}, the guest began {incomplete!r}")
    return expected - every


def last_number(part: bytes) -> int:
    """The last complete number of an output, 0 if there is none yet."""
    lines = part.split(b"\n")[:-1]
    return int(lines[-1], 16) if lines and len(lines[-1]) == 8 else 0


# Its memory ----------------------------------------------------------------------------------------------------------

def check_memory(low: bytes, swept: bytes, guest: Guest) -> int:
    """Proves the swept range (`swept`, from FIRST) against the sweep number in low memory (`low`, from 0).

    The machine must be stopped. It may be anywhere inside a sweep: pages before the one being worked on have the
    sweep's number, those behind it the number before. Returns the sweep number.
    """
    sweep, page, fault = struct.unpack_from("<3I", low, _SWEEP_WORDS)
    assert fault == 0, f"the guest itself found page {page:#x} wrong"
    words = array.array("I", swept)
    assert len(words) >= guest.pages * 1024, "memory dump too short"
    step = 1024
    numbers = words[0:guest.pages * step:step]
    closing = words[step - 1:guest.pages * step:step]
    current = (page - FIRST) // PAGE if guest.pages else 0
    for index in range(guest.pages):
        allowed = (sweep,) if index < current else (sweep - 1,) if index > current else (sweep, sweep - 1)
        address = FIRST + index * PAGE
        number, close = numbers[index], closing[index] ^ address
        if number not in allowed or close not in allowed or (number != close and index != current):
            raise AssertionError(f"page {address:#x}: counters {number:#x}/{close:#x}, expected one of "
                                 f"{[hex(value) for value in allowed]} (sweep {sweep:#x}, working on {page:#x})")
    return sweep
