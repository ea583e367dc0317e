# SPDX-License-Identifier: Apache-2.0
"""The guest that measures its own waits (tests/interop/guest/toucher.S): its boot sector, and what it counted."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from tests.interop.lib.guest import FIRST, FLOPPY, assembled
from tests.interop.lib.qemu import Qemu

_CLOCK, _READS, _HISTOGRAM, _BUCKETS = 0x610, 0x618, 0x2000, 128
# Shorter ones met a page that was there: a minor fault and the clock's own cost.
SHORTEST_US = 8.0


@dataclass(frozen=True)
class Toucher:
    """Stands where tests.interop.lib.guest.Guest does."""
    pages: int  # a power of two

    def image(self, folder: Path) -> Path:
        path = folder / f"toucher-{self.pages}.img"
        if not path.exists():
            sector = bytearray(assembled("toucher", "0x7c00"))
            assert len(sector) == 512 and sector[510:] == b"\x55\xaa", len(sector)
            struct.pack_into("<2I", sector, 4, FIRST, self.pages)
            path.write_bytes(sector)
            os.truncate(path, FLOPPY)
        return path


@dataclass(frozen=True)
class Seen:
    """What the guest had counted at one moment."""
    reads: int
    histogram: tuple[int, ...]

    @classmethod
    def by(cls, qemu: Qemu) -> Seen:
        reads, = struct.unpack("<I", qemu.read_memory(_READS, 4))
        return cls(reads, struct.unpack(f"<{_BUCKETS}I", qemu.read_memory(_HISTOGRAM, 4 * _BUCKETS)))


def ticks_per_us(qemu: Qemu) -> float:
    """Of the guest's clock, against ours."""
    def look() -> tuple[float, int]:
        return time.monotonic(), struct.unpack("<Q", qemu.read_memory(_CLOCK, 8))[0]
    (begun, first), _ = look(), time.sleep(0.5)
    ended, last = look()
    return (last - first) / (ended - begun) / 1e6


def read_all(qemu: Qemu, since: Seen, pages: int, timeout: float) -> Seen:
    """What it had counted when it had been at every page since then."""
    until = time.monotonic() + timeout
    while True:
        seen = Seen.by(qemu)
        if (seen.reads - since.reads) % (1 << 32) >= pages:
            return seen
        assert b"E" not in qemu.serial(), "the guest read another word than was in its page"
        assert time.monotonic() < until, f"the guest was at {seen.reads - since.reads} of {pages} pages"
        time.sleep(0.02)


def waits(before: Seen, after: Seen, per_us: float, shares: dict[str, float]) -> dict[str, float]:
    """Microseconds at those shares of the waits in between, their number ("waits") and how long they took together
    ("stood", milliseconds). Within a bucket they are taken to lie evenly."""
    counted = []
    for bucket, (old, new) in enumerate(zip(before.histogram, after.histogram)):
        low, step = (4 + bucket % 4 << bucket // 4) / per_us, (1 << bucket // 4) / per_us
        if (count := (new - old) % (1 << 32)) and low >= SHORTEST_US:
            counted.append((low, step, count))
    total = sum(count for _low, _step, count in counted)
    found = {"waits": float(total), "stood": sum((low + step / 2) * count for low, step, count in counted) / 1000}
    for name, share in shares.items():
        left = total * share
        for low, step, count in counted:
            if left <= count:
                found[name] = low + step * left / count
                break
            left -= count
    return found
