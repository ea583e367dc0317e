# SPDX-License-Identifier: Apache-2.0
"""Instant resume while the file is cut off, rewritten, punched full of holes, renamed, deleted and put back, to a real
QEMU whose guest runs on what it gets: it waits for a page rather than read one that was not its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable

from ..lib import cases
from ..lib.daemon import Migrationd
from ..lib.guest import Guest
from ..lib.host import Host
from ..lib.qemu import Qemu
from .postcopy_source import begin_resume, went_on
from .resume import Printed, checkpoint, open_lazily

GUEST = Guest(pages=1500, fill=5000, ticks=0, every=1)   # 6 MiB it sweeps, 20 that only the background sends
BACKGROUND = "__org.migrationd_postcopy-background"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_and_stretched(path: Path) -> None:
    """The size is right again, the pages are gone."""
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def rewritten(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(4096))


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def punched(path: Path) -> None:
    size = path.stat().st_size
    subprocess.run(["fallocate", "--punch-hole", "--keep-size", "--offset", "1048576", "--length", str(size - 1048576),
                    path], check=True, timeout=10)


def zeroed_through_a_mapping(path: Path) -> None:
    import mmap
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[len(view) // 2:] = bytes(len(view) - len(view) // 2)


def touched(path: Path) -> None:
    os.utime(path)


HARMS: dict[str, Callable[[Path], None]] = {
    harm.__name__.replace("_", "-"): harm
    for harm in (cut, cut_and_stretched, emptied, rewritten, grown, punched, zeroed_through_a_mapping, touched)}


def fails_closed(daemon: Migrationd, destination: Host) -> str:
    answer = daemon.wait_status("postcopy-paused")
    destination.wait_status("postcopy-paused")
    why = answer["error-desc"]
    assert why.startswith("postcopy: block '") and "page 0x" in why and "after it was opened" in why, why
    assert b"\nE" not in b"\n" + destination.serial(), destination.serial()
    return why


def under_way(folder: Path, kind: str, harm: Callable[[Path], None]) -> None:
    """The guest runs already and asks for more; the rest is called for, too. Nothing can be sent from then on, however
    often it is tried; the file put back as it was, everything comes."""
    path, left_at = checkpoint(folder, kind, GUEST)
    kept = folder / "kept"
    shutil.copyfile(path, kept)
    about = path.stat()
    with Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", "10.0", memory_mib=32, guest=GUEST, incoming=True) as destination:
        open_lazily(daemon, path)
        daemon.qmp.execute("migrate-set-parameters", {BACKGROUND: False})
        begin_resume(daemon, destination, f"unix:{folder / 'out'}")
        # Not sooner: a QEMU whose main loop waits for a page answers no QMP but out of band.
        destination.wait_sweeps(left_at + 2)
        harm(path)
        daemon.qmp.execute("migrate-set-parameters", {BACKGROUND: True})
        fails_closed(daemon, destination)
        for number in range(2):
            if number:
                # The very same file: the inode stays, so do size and time.
                with open(kept, "rb") as good, open(path, "r+b") as file:
                    shutil.copyfileobj(good, file)
                    file.truncate()
                os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
            destination.qmp.execute("migrate-recover", {"uri": f"unix:{folder}/again{number}"})
            daemon.migrate(f"unix:{folder}/again{number}", resume=True)
            if not number:
                # Its log tells the second pause from the first; the destination has answered in between.
                daemon.wait(lambda: daemon.output().count("postcopy is paused: ") == 2
                            and destination.status() == "postcopy-paused", 20, "the second refusal")
                assert "after it was opened" in daemon.query_migrate()["error-desc"], daemon.query_migrate()
        daemon.wait_status("completed")
        destination.wait_status("completed")
        went_on([Printed(folder / "source.printed"), destination], left_at, GUEST)


for _name, _harm in HARMS.items():
    for _kind in ("mapped-ram", "plain"):
        cases.add(f"resume-faults/under-way/{_kind}/{_name}", timeout=60, quick=(_kind, _name) in (
            ("mapped-ram", "punched"), ("plain", "cut")),
            run=lambda folder, kind=_kind, harm=_harm: under_way(folder, kind, harm))


@cases.case("resume-faults/before-it-left", quick=True)
def before(folder: Path) -> None:
    """Changed between opening and sending: the machine does not leave, for it could not live there."""
    path, _ = checkpoint(folder, "mapped-ram", GUEST)
    with Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", "10.0", memory_mib=32, guest=GUEST, incoming=True) as destination:
        open_lazily(daemon, path)
        rewritten(path)
        begin_resume(daemon, destination, f"unix:{folder / 'out'}")
        daemon.wait(lambda: daemon.status() == "failed", 20, "the refusal")
        assert "was written to after it was opened" in daemon.query_migrate()["error-desc"], daemon.query_migrate()
        assert daemon.owner() == "here" and destination.serial() == b""


@cases.case("resume-faults/renamed-deleted-linked", quick=True)
def harmless(folder: Path) -> None:
    """What does its pages no harm does not stop it: another name, another mode, none at all, another file in its place."""
    path, left_at = checkpoint(folder, "mapped-ram", GUEST)
    with Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", "10.0", memory_mib=32, guest=GUEST, incoming=True) as destination:
        open_lazily(daemon, path)
        daemon.qmp.execute("migrate-set-parameters", {BACKGROUND: False})
        begin_resume(daemon, destination, f"unix:{folder / 'out'}")
        destination.qmp.wait_event("RESUME")
        os.chmod(path, 0o400)
        os.link(path, folder / "another")
        os.rename(path, folder / "moved")
        path.write_bytes(b"somebody else's")
        os.unlink(folder / "moved")
        os.unlink(folder / "another")
        daemon.qmp.execute("migrate-set-parameters", {BACKGROUND: True})
        daemon.wait_status("completed")
        destination.wait_status("completed")
        went_on([Printed(folder / "source.printed"), destination], left_at, GUEST)
