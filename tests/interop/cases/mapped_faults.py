# SPDX-License-Identifier: Apache-2.0
"""Disks that fail under a mapped-ram save or load: full at every place, broken when data is written or only when it is
synced, without direct I/O, with a limit on the size of files. Each has its reason, the guest runs on, and what was left
behind is never taken for a machine.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from pathlib import Path
from typing import Iterator

from ..lib import cases
from ..lib.daemon import Migrationd
from ..lib.programs import Skip
from .mapped import Way, load, save, set_up

MIB = 1 << 20
KIB = 1 << 10
GUEST = "synthetic,ram=16M,touched=6M,working-set=4M,dirty-rate=20M"


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Skip(f"{command[0]} cannot be used here: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def mounted(folder: Path, name: str, *options: str | Path) -> Iterator[Path]:
    place = folder / name
    place.mkdir()
    run("mount", *options, place)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)


@contextlib.contextmanager
def broken_disk(folder: Path, size: int, real: int) -> Iterator[Path]:
    """An ext4 of `size` bytes on a disk that has room for `real`: writing to the rest is an I/O error."""
    with mounted(folder, "backing", "-t", "tmpfs", "-o", f"size={real}", "tmpfs") as backing:
        image = backing / "image"
        with open(image, "wb") as file:
            file.truncate(size)
        # No journal: its own failure would make the file system read-only, and that is another error.
        run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", image)
        device = run("losetup", "--find", "--show", image)
        try:
            with mounted(folder, "broken", device) as place:
                yield place
        finally:
            subprocess.run(["losetup", "-d", device], check=True, timeout=60)


def fails_and_runs_on(source: Migrationd, path: Path, way: Way, *texts: str) -> None:
    save(source, path, way, wait=None)
    answer = source.wait(lambda: (source.status() in ("failed", "completed")) and source.query_migrate(), 30, "the end")
    assert answer["status"] == "failed" and any(text in answer["error-desc"] for text in texts), answer
    assert source.run_state() == "running" and source.owner() == "here"


def is_incomplete(folder: Path, path: Path) -> None:
    with Migrationd(folder, f"target-{path.name}") as target:
        load(target, path, wait=None)
        target.wait(lambda: target.status() == "failed", 20, "the refusal")
        text = target.query_migrate()["error-desc"]
        assert "the file is incomplete" in text or "ends too early" in text, text


def full_everywhere(folder: Path, way: Way) -> None:
    """The disk is full a little later each time, from the first header on, until the save fits."""
    sizes = [*range(4 * KIB, 64 * KIB, 20 * KIB), *range(256 * KIB, 24 * MIB, 640 * KIB)]
    with Migrationd(folder, "source", machine=GUEST) as source:
        time.sleep(0.2)
        for number, size in enumerate(sizes):
            with mounted(folder, f"disk{number}", "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as disk:
                save(source, disk / "saved", way, wait=None)
                answer = source.wait(lambda: (source.status() in ("failed", "completed")) and source.query_migrate(),
                                     30, f"the end on {size} bytes")
                if answer["status"] == "completed":
                    break
                assert "No space left on device" in answer["error-desc"], (size, answer)
                assert source.run_state() == "running" and source.owner() == "here"
                if (disk / "saved").exists():
                    assert (disk / "saved").read_bytes()[:4] != b"QEVM", f"{size} bytes: it has a header"
        assert number > 10 and answer["status"] == "completed", (number, answer)
        source.qmp.execute("cont")
        source.verify_machine()


for _name, _way in {"plain": Way(), "workers": Way(workers=3)}.items():
    cases.add(f"mapped/full-at-every-place/{_name}", lambda folder, way=_way: full_everywhere(folder, way),
              timeout=120, quick=_name == "workers")


def breaks(folder: Path, way: Way) -> None:
    """An I/O error: with direct I/O of the write, else only of the sync behind it, when everything seemed written."""
    with broken_disk(folder, 256 * MIB, 12 * MIB) as disk, \
         Migrationd(folder, "source", machine="synthetic,ram=128M,touched=96M,working-set=4M,dirty-rate=20M") as source:
        time.sleep(0.3)
        fails_and_runs_on(source, disk / "saved", way, "Input/output error", "No space left on device")
        is_incomplete(folder, disk / "saved")
        save(source, folder / "elsewhere", way)
        source.qmp.execute("cont")
        source.verify_machine()


for _name, _way in {"direct-io": Way(direct=True), "direct-io-workers": Way(direct=True, workers=2),
                    "when-it-is-synced": Way()}.items():
    cases.add(f"mapped/disk-breaks/{_name}", lambda folder, way=_way: breaks(folder, way), timeout=60,
              quick=_name == "when-it-is-synced")


@cases.case("mapped/limit-on-the-size-of-files", quick=True)
def size_limit(folder: Path) -> None:
    """RLIMIT_FSIZE: an error with its reason, and not the signal that ends a process together with its guest."""
    limit = 16 * MIB + 512 * KIB    # the memory's own file may be that large, the save is larger
    with Migrationd(folder, "source", machine=GUEST, limits={resource.RLIMIT_FSIZE: limit}) as source:
        time.sleep(0.2)
        for way in (Way(), Way(workers=2), Way(direct=True)):
            fails_and_runs_on(source, folder / "saved", way, "File too large")
            assert (folder / "saved").read_bytes()[:4] != b"QEVM"
        source.verify_machine()


@cases.case("mapped/no-direct-io-there", quick=True)
def no_direct_io(folder: Path) -> None:
    """A file system without direct I/O: refused by the command itself, before anything is touched, both ways."""
    with mounted(folder, "ramfs", "-t", "ramfs", "ramfs") as place, \
         Migrationd(folder, "source", machine=GUEST) as source, Migrationd(folder, "target") as target:
        path = place / "saved"
        try:
            os.close(os.open(place / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
            raise Skip("even ramfs has direct I/O here")
        except OSError:
            pass
        for host, action in ((source, lambda: save(source, path, Way(direct=True), wait=None)),
                             (target, lambda: load(target, path, Way(direct=True), wait=None))):
            if host is target:
                save(source, path)
            try:
                action()
            except Exception as error:
                expected = f"Could not open '{path}': filesystem does not support O_DIRECT"
                assert expected in str(error), error
            else:
                raise AssertionError("accepted")
        assert target.status() in ("none", "failed") and source.run_state() == "postmigrate"
        # The same file, by the page cache.
        load(target, path)


@cases.case("mapped/cut-while-it-is-loaded")
def cut_while_loading(folder: Path) -> None:
    """The file is cut at some moment of a load, again and again: an error that says so, or it had been read."""
    path = folder / "saved"
    what = "synthetic,ram=192M,touched=160M,working-set=4M,dirty-rate=0"
    failures = 0
    with Migrationd(folder, "source", machine=what) as source:
        time.sleep(0.5)
        source.qmp.execute("stop")
        for number, pause in enumerate((0.0, 0.01, 0.03, 0.06, 0.1)):
            save(source, path)
            way = Way(direct=number % 2 == 0, workers=2 * (number % 2))
            with Migrationd(folder, f"target{number}", machine=what, incoming=["defer"]) as target:
                set_up(target, way)
                target.incoming(f"file:{path}")
                time.sleep(pause)
                os.truncate(path, 3 * MIB + 100)
                answer = target.wait(lambda: (target.status() in ("failed", "completed")) and target.query_migrate(), 20,
                                     "the end")
                if answer["status"] == "completed":
                    target.verify_machine()
                    continue
                failures += 1
                assert "cut off" in answer["error-desc"] or "too early" in answer["error-desc"], answer
            source.qmp.execute("cont")
            source.qmp.execute("stop")
    assert failures > 0, "the file was always read before it was cut"
