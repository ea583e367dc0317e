# SPDX-License-Identifier: Apache-2.0
"""Saves to mapped-ram files and loads from them, beside QEMU 10.0's and beside fio on the same file system.

A save counts until its data is on the disk: migrationd syncs by itself, for QEMU the bench does so and adds the time.
A load is of the contender's own file. CPU is user and system time of the process, kernel helpers of its rings included.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from ..interop.lib import links, procfs
from ..interop.lib.daemon import Migrationd
from ..interop.lib.guest import Guest
from ..interop.lib.host import Host
from ..interop.lib.programs import Skip
from ..interop.lib.qemu import Qemu
from . import limits
from .pairs import UNLIMITED
from .report import Report, median

GIB = 1 << 30
MIB = 1 << 20
ROOM = 64 * MIB     # of the machine, beside what is measured


@dataclass(frozen=True)
class Contender:
    kind: str       # "qemu", "parked", "synthetic" or "fio"
    workers: int    # multifd channels; 0: multifd off, which here is one thread too

    @property
    def name(self) -> str:
        if self.kind == "fio":
            return "fio, sequential direct I/O"
        who = {"qemu": "QEMU 10.0", "parked": "migrationd, the same machine parked",
               "synthetic": "migrationd, synthetic"}[self.kind]
        count = f"{self.workers} channels" if self.kind == "qemu" else f"{self.workers} worker(s)"
        return f"{who}, {count if self.workers else 'no multifd'}"

    @property
    def ours(self) -> bool:
        return self.kind in ("parked", "synthetic")


@dataclass
class Sample:
    seconds: float
    cpu: float


Samples = dict[Contender, list[Sample]]
FIO = Contender("fio", 0)
SYNTHETIC = [Contender("synthetic", count) for count in (1, 2)]
OURS = [Contender("parked", count) for count in (1, 2)] + SYNTHETIC[1:]
# QEMU does direct I/O with multifd only.
THEIRS_DIRECT = [Contender("qemu", count) for count in (1, 2, 4, 8)]
THEIRS = [Contender("qemu", 0), *THEIRS_DIRECT[:3]]


def fio(folder: Path, size: int, write: bool) -> Sample:
    """1 MiB at once, 16 in flight. Reading takes the file that writing left."""
    if not shutil.which("fio"):
        raise Skip("fio is not installed (tools/setup check)")
    command = ["fio", "--name=limit", f"--filename={folder}/fio", f"--rw={'write' if write else 'read'}", "--bs=1M",
               "--iodepth=16", "--ioengine=io_uring", "--direct=1", f"--size={size}", "--output-format=json"]
    if write:
        (folder / "fio").unlink(missing_ok=True)
        command += ["--end_fsync=1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if run.returncode != 0:
        raise Skip(f"fio: {(run.stderr or run.stdout).strip().splitlines()[-1]}")
    job = json.loads(run.stdout[run.stdout.index("{"):])["jobs"][0]
    result = job["write" if write else "read"]
    seconds = size / result["bw_bytes"]
    return Sample(seconds, (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds)


def forget(path: Path) -> None:
    """The page cache drops it."""
    fd = os.open(path, os.O_RDONLY)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def set_up(host: Host, contender: Contender, direct: bool) -> None:
    host.capabilities(mapped_ram=True, return_path=False, multifd=contender.workers > 0)
    host.parameters(direct_io=direct, max_bandwidth=UNLIMITED, multifd_channels=max(contender.workers, 1))


def timed(host: Host, action) -> Sample:
    """Until it is completed. Polled, for query-migrate tells nothing of a load's time; not so often that it costs."""
    before = procfs.cpu_seconds_ticks(host.pid)
    started = time.monotonic()
    action()
    while (status := host.status()) != "completed":
        assert status not in ("failed", "cancelled"), host.query_migrate()
        time.sleep(0.01)
    seconds = time.monotonic() - started
    return Sample(seconds, procfs.cpu_seconds_ticks(host.pid) - before)


class Field:
    """The sources, of equal size: `size` bytes of their memory are not zero, or all is there and zero."""

    def __init__(self, folder: Path, size: int, zero: bool = False, kinds: tuple[str, ...] = ("qemu", "synthetic")):
        self.folder = folder
        self.size = size
        self.ram = size + ROOM
        self.machine = f"synthetic,ram={self.ram}," + ("touched=0,working-set=0,dirty-rate=0,prealloc=on" if zero else
                                                       f"touched={size},working-set={size},dirty-rate=0")
        self.guest = Guest(pages=0, fill=0 if zero else size // 4096)
        self.hosts: dict[str, Host] = {}
        try:
            if "synthetic" in kinds:
                self.hosts["synthetic"] = ours = Migrationd(folder, "files-ours", machine=self.machine)
                ours.wait(lambda: procfs.memfd_bytes(ours.pid) >= size, 120, "the guest to fill its memory")
                ours.qmp.execute("stop")
            if "qemu" in kinds:
                self.hosts["qemu"] = theirs = self._qemu("files-theirs", incoming=False, prealloc=zero)
                theirs.wait_sweeps(2, timeout=120)
                theirs.qmp.execute("stop")
            if "parked" in kinds:
                self.hosts["parked"] = Migrationd(folder, "files-parked")
                theirs.parameters(max_bandwidth=UNLIMITED)
                links.transfer(theirs, self.hosts["parked"], links.Unix(folder, "park"), False)
                self._again(theirs)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _again(host: Host) -> None:
        """After a migration it takes its machine back, stopped."""
        host.qmp.execute("cont")
        host.qmp.execute("stop")

    def _qemu(self, name: str, incoming: bool, prealloc: bool) -> Qemu:
        return Qemu(self.folder, name, "10.0", memory_mib=self.ram >> 20, guest=self.guest, incoming=incoming,
                    own_firmware=True, memory_options="prealloc=on" if prealloc else "reserve=off")

    def path(self, contender: Contender) -> Path:
        return self.folder / f"saved-{contender.kind}"

    def save(self, contender: Contender, direct: bool) -> Sample:
        if contender == FIO:
            return fio(self.folder, self.size, True)
        host, path = self.hosts[contender.kind], self.path(contender)
        path.unlink(missing_ok=True)
        os.sync()
        set_up(host, contender, direct)
        sample = timed(host, lambda: host.migrate(f"file:{path}"))
        started = time.monotonic()
        fd = os.open(path, os.O_RDONLY)
        os.fdatasync(fd)
        os.close(fd)
        sample.seconds += time.monotonic() - started
        self._again(host)
        return sample

    def load(self, contender: Contender, direct: bool, cached: bool, prealloc: bool) -> Sample:
        if contender == FIO:
            return fio(self.folder, self.size, False)
        path = self.path(contender)
        if cached:
            subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
        else:
            forget(path)
        name = f"files-target-{time.monotonic_ns()}"
        host = self._qemu(name, True, prealloc) if contender.kind == "qemu" else \
            Migrationd(self.folder, name, incoming=["defer"], machine=self.machine + (",prealloc=on" if prealloc else ""))
        with host:
            host.run_state()
            set_up(host, contender, direct)
            return timed(host, lambda: host.incoming(f"file:{path}"))

    def close(self) -> None:
        for host in self.hosts.values():
            host.__exit__()
        self.hosts.clear()


def in_turn(contenders: list[Contender], rounds: int, run) -> Samples:
    """1 + rounds turns, each in the opposite order of the one before; the first is dropped."""
    samples: Samples = {contender: [] for contender in contenders}
    for number in range(rounds + 1):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            sample = run(contender)
            if number > 0:
                samples[contender].append(sample)
    return samples


def compare(report: Report, samples: Samples, size: int, limit: float | None, share: float, factor: float,
            cpu_share: float | None) -> None:
    """Rates and costs. The best of ours is judged by the best of theirs, in whatever number of workers."""
    gib = size / GIB
    rates = {contender: [gib / sample.seconds for sample in list_] for contender, list_ in samples.items()}
    costs = {contender: [sample.cpu / gib for sample in list_] for contender, list_ in samples.items()}
    theirs = max((one for one in samples if one.kind == "qemu"), key=lambda one: median(rates[one]))
    ours = max((one for one in samples if one.ours), key=lambda one: median(rates[one]))
    if FIO in samples:
        disk = median(rates[FIO]) * GIB
        limit = disk if limit is None else min(limit, disk)
    for contender in samples:
        ratio = median(rates[contender]) / median(rates[theirs])
        target, met = "", None
        if contender == ours:
            target = f">= {factor:g} x QEMU's best" + (f", >= {share:g} of the limit" if limit is not None else "")
            met = ratio >= factor and (limit is None or median(rates[contender]) >= share * limit / GIB)
        report.add("rate", contender.name, rates[contender], "GiB/s", ratio, target, met)
    for contender in samples:
        judged = contender == ours and cpu_share is not None
        ratio = median(costs[contender]) / max(median(costs[theirs]), 1e-9)
        report.add("CPU per GiB", contender.name, costs[contender], "s", ratio, f"<= {cpu_share:g} x" if judged else "",
                   ratio <= cpu_share if judged else None)


def saves(field: Field, rounds: int) -> list[Report]:
    reports = []
    for direct in (True, False):
        report = Report(f"Save to a mapped-ram file, {'direct-io' if direct else 'by the page cache'}",
                        [f"{field.size / GIB:g} GiB of non-zero pages into a new file, until they are on the disk. "
                         + ("The limit: fio's sequential direct write. " if direct else "")
                         + "The synthetic guest's dirty log is armed, which neither of the others has."])
        samples = in_turn(([FIO, *THEIRS_DIRECT] if direct else THEIRS) + OURS, rounds,
                          lambda contender, direct=direct: field.save(contender, direct))
        compare(report, samples, field.size, None, 0.95, 1.0, 0.5 if direct else None)
        reports.append(report)
    return reports


def loads(field: Field, rounds: int) -> list[Report]:
    for contender in (THEIRS_DIRECT[1], SYNTHETIC[0]):
        field.save(contender, True)
    fio(field.folder, field.size, True)
    touching = limits.first_touch(min(field.size, GIB))
    reports = []
    for direct, cached, prealloc in ((True, False, False), (True, False, True), (False, False, False),
                                     (False, True, False), (False, True, True)):
        way = "direct-io" if direct else "the file in the page cache" if cached else "by a cold page cache"
        report = Report(f"Load from a mapped-ram file, {way}, {'warm' if prealloc else 'cold'} memory",
                        [f"{field.size / GIB:g} GiB of non-zero pages. "
                         + ("Warm: the memory was allocated before. " if prealloc else "")
                         + ("" if cached else "The limit: fio's sequential direct read"
                            + ("." if prealloc else ", or the first touch of memory."))])
        if not prealloc:
            report.add("first touch of memory", "this machine", [touching / GIB], "GiB/s")
        contenders = ([] if cached else [FIO]) + (THEIRS_DIRECT if direct else THEIRS) + SYNTHETIC
        samples = in_turn(contenders, rounds, lambda contender, way=(direct, cached, prealloc): field.load(contender, *way))
        compare(report, samples, field.size, None if prealloc else touching, 0.9, 1.5, None)
        reports.append(report)
    return reports


def zeros(folder: Path, size: int, rounds: int) -> Report:
    """All-zero memory: nothing to write, everything to look at."""
    scan = max(limits.memory_scan(min(size, GIB)) for _ in range(2))
    report = Report("Save of all-zero memory", [f"{size / GIB:g} GiB that are there and zero; direct-io. The limit: one "
                                                "core's scan of memory."])
    report.add("scan of memory", "this machine", [scan / GIB], "GiB/s")
    field = Field(folder, size, zero=True)
    try:
        samples = in_turn(THEIRS_DIRECT[:2] + SYNTHETIC, rounds, lambda contender: field.save(contender, True))
    finally:
        field.close()
    compare(report, samples, size, scan, 0.9, 1.0, None)
    return report


def growth(folder: Path, sizes: list[int], rounds: int) -> Report:
    """What a GiB costs in machines of growing size."""
    report = Report("Growth of the cost with the size",
                    ["migrationd, synthetic, 1 worker, direct-io, non-zero pages; seconds per GiB."])
    one = SYNTHETIC[0]
    for size in sizes:
        if shutil.disk_usage(folder).free < 3 * size:
            report.about.append(f"{size / GIB:g} GiB: no room on the disk.")
            continue
        field = Field(folder, size, kinds=("synthetic",))
        try:
            saved = [field.save(one, True) for _ in range(rounds + 1)][1:]
            field.close()   # its memory is needed
            loaded = [field.load(one, True, False, False) for _ in range(rounds + 1)][1:]
        finally:
            field.close()
            field.path(one).unlink(missing_ok=True)
        for what, list_ in (("save", saved), ("load", loaded)):
            for unit, values in (("time", [s.seconds for s in list_]), ("CPU", [s.cpu for s in list_])):
                report.add(f"{what}, {size / GIB:g} GiB", unit, [value / size * GIB for value in values], "s/GiB")
    return report


def files(folder: Path, size: int, rounds: int, quick: bool) -> list[Report]:
    field = Field(folder, size, kinds=("qemu", "synthetic", "parked"))
    try:
        reports = saves(field, rounds)
        field.hosts.pop("parked").__exit__()
        reports += loads(field, rounds)
    finally:
        field.close()
    for path in folder.glob("saved-*"):
        path.unlink()
    reports.append(zeros(folder, size, rounds))
    grown = [64 * MIB, 256 * MIB] if quick else [count * GIB for count in (1, 2, 4, 8)]
    return reports + [growth(folder, grown, min(rounds, 2))]
