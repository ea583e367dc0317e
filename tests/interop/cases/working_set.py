# SPDX-License-Identifier: Apache-2.0
"""The working set that instant resume keeps beside a file: the second resume of a machine hardly asks for pages, and a
record that does not belong there changes nothing."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from ..lib import cases
from ..lib.daemon import Migrationd
from ..lib.guest import Guest
from ..lib.qemu import Qemu
from .postcopy_source import begin_resume, went_on
from .resume import Printed, checkpoint, open_lazily

# Pages that are touched, among pages that are not: sleeps between its sweeps.
SOME = Guest(pages=600, fill=6000, ticks=2, every=1)


def record(path: Path) -> Path:
    return path.with_name(path.name + ".working-set")


def _resume(folder: Path, name: str, path: Path, left_at: int, **parameters) -> tuple[int, str]:
    """Resumes the machine of `path` into a fresh QEMU: on demand only until its guest has swept all its pages, then the
    rest, memory proved. Returns the requests until then, and the daemon's log."""
    place = folder / name
    place.mkdir()
    with Migrationd(place, "park") as daemon, \
         Qemu(place, "target", "10.0", memory_mib=32, guest=SOME, incoming=True) as destination:
        open_lazily(daemon, path)
        daemon.qmp.execute("migrate-set-parameters", {"__org.migrationd_postcopy-background": False, **parameters})
        begin_resume(daemon, destination, f"unix:{place / 'out'}")
        destination.wait_sweeps(left_at + 3)
        requests = daemon.query_migrate()["ram"]["postcopy-requests"]
        daemon.qmp.execute("migrate-set-parameters", {"__org.migrationd_postcopy-background": True})
        daemon.wait_status("completed")
        destination.wait_status("completed")
        went_on([Printed(folder / "source.printed"), destination], left_at, SOME)
        return requests, daemon.output()


@cases.case("resume/working-set/second-resume-hardly-asks", quick=True)
def second(folder: Path) -> None:
    path, left_at = checkpoint(folder, "mapped-ram", SOME)
    before = os.stat(path)
    first, _ = _resume(folder, "first", path, left_at)
    assert first > 600, first
    assert record(path).stat().st_mode & 0o777 == 0o600, oct(record(path).stat().st_mode)
    again, log = _resume(folder, "second", path, left_at)
    print(f"requests: {first}, then {again}")
    assert again * 10 <= first, (first, again, log)
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns
    # What was found in addition is added, and nothing is left lying about.
    third, _ = _resume(folder, "third", path, left_at)
    assert third * 10 <= first, (first, again, third)
    assert sorted(name.name for name in folder.glob("machine*")) == ["machine", "machine.working-set"]


@cases.case("resume/working-set/opted-out", quick=True)
def opted_out(folder: Path) -> None:
    path, left_at = checkpoint(folder, "mapped-ram", SOME)
    off = {"__org.migrationd_working-set": False}
    _resume(folder, "none-kept", path, left_at, **off)
    assert not record(path).exists()
    _resume(folder, "kept", path, left_at)
    kept = record(path).read_bytes()
    requests, _ = _resume(folder, "none-used", path, left_at, **off)
    assert requests > 600 and record(path).read_bytes() == kept, requests


@cases.case("resume/working-set/what-does-not-belong-there-is-ignored-with-a-word")
def ignored(folder: Path) -> None:
    path, left_at = checkpoint(folder, "mapped-ram", SOME)
    _resume(folder, "first", path, left_at)
    good = record(path).read_bytes()
    outside = folder / "outside"
    outside.write_bytes(good)

    def tried(name: str, words: str) -> None:
        requests, log = _resume(folder, name, path, left_at)
        assert requests > 600 and words in log, (name, requests, log)
    record(path).write_bytes(good[:-7])
    tried("cut", "is ignored: the working set is damaged")
    # The one before was mended by what was asked for.
    assert len(record(path).read_bytes()) >= len(good) // 2
    record(path).write_bytes(good[:-16] + struct.pack(">IIQ", 0, 1, 1 << 40))
    tried("far-away", "is ignored: the working set is damaged")
    record(path).write_bytes(os.urandom(4096))
    tried("rubbish", "is ignored: not a working set")
    record(path).unlink()
    record(path).symlink_to(outside)
    tried("link", "is ignored: open: Too many levels of symbolic links")
    # The link was replaced, not followed.
    assert not record(path).is_symlink() and outside.read_bytes() == good
    os.utime(path)
    tried("newer-file", "is ignored: the working set is of another file")
    record(path).unlink()
    os.mkfifo(record(path))
    tried("pipe", "is ignored: not a regular file")
