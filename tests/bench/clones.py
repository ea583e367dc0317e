# SPDX-License-Identifier: Apache-2.0
"""Several machines resumed at once from one file: how soon each runs and prints, how long it stands, what memory it costs.

Each clone has a daemon of its own, as `migrationctl resume --clones` makes them.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from tests.bench.report import Report
from tests.bench.resume import MIB, RESUME, guest_of, make_checkpoint, qemu_for
from tests.interop.lib import procfs
from tests.interop.lib.daemon import Migrationd
from tests.interop.lib.qemu import Qemu

SWEPT_PAGES = 64
WATCHED_SECONDS = 1.0


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


class Watch:
    """When each guest's serial output grew. The guest prints every 10 ms, a letter at a time, and what it prints in one
    go is one growth; a stall is the longest time between two of them."""

    def __init__(self, targets: list[Qemu], begun: float):
        self.paths = [target.serial_path for target in targets]
        self.begun = begun
        self.sizes = [0] * len(targets)
        self.first: list[float | None] = [None] * len(targets)
        self.last = [0.0] * len(targets)
        self.stall = [0.0] * len(targets)

    def look(self) -> bool:
        """True when every guest has printed, and was watched for a second."""
        now = time.monotonic()
        done = True
        for index, path in enumerate(self.paths):
            first = self.first[index]
            if first is not None and now - first > WATCHED_SECONDS:
                continue
            done = False
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(path).st_size
                if size > self.sizes[index]:
                    self.sizes[index] = size
                    if first is None:
                        self.first[index] = now
                    else:
                        self.stall[index] = max(self.stall[index], now - self.last[index])
                    self.last[index] = now
            if first is not None:
                self.stall[index] = max(self.stall[index], now - self.last[index])
        return done

    def letters_ms(self) -> list[float]:
        return [(first - self.begun) * 1000 for first in self.first if first is not None]


def one_round(folder: Path, path: Path, size: int, count: int, background: bool) -> dict[str, list[float]]:
    with contextlib.ExitStack() as stack:
        daemons, targets, memory = [], [], []
        for number in range(count):
            daemon = stack.enter_context(Migrationd(folder, f"park{number}"))
            target = stack.enter_context(qemu_for(folder, f"clone{number}", size, True))
            daemon.capabilities(RESUME)
            daemon.incoming(f"file:{path}")
            daemon.wait_status("completed")
            daemon.capabilities("postcopy-ram")
            daemon.qmp.execute("migrate-set-parameters", {"__org.migrationd_postcopy-background": background,
                                                          "__org.migrationd_working-set": False})
            target.capabilities("postcopy-ram")
            target.incoming(f"unix:{folder / 'resume'}{number}")
            memory.append(procfs.largest_area(target.pid))
            daemons.append(daemon)
            targets.append(target)
        for daemon in daemons:
            daemon.qmp.poll_events(0.01)
            daemon.qmp.events.clear()
            daemon.qmp._seen = 0
        begun = time.monotonic()
        for number, daemon in enumerate(daemons):
            daemon.qmp.send({"execute": "migrate", "arguments": {"uri": f"unix:{folder / 'resume'}{number}"}})
        watch = Watch(targets, begun)
        while not watch.look():
            assert time.monotonic() - begun < 120, "a guest printed nothing"
            time.sleep(0.002)
        for daemon in daemons:
            daemon.qmp.reply()
        resumed = [(event_time(target, "RESUME") - event_time(daemon, "setup")) * 1000
                   for daemon, target in zip(daemons, targets)]
        ends = []
        for daemon in daemons if background else []:
            daemon.wait_status("completed", timeout=180)
            ends.append((time.monotonic() - begun) * 1000)
        answers = [daemon.query_migrate()["ram"] for daemon in daemons]
        return {"resume": resumed, "letter": watch.letters_ms(), "stall": [stall * 1000 for stall in watch.stall],
                "end": ends, "requests": [float(answer["postcopy-requests"]) for answer in answers],
                "memory": [procfs.area_rss(target.pid, area) / MIB for target, area in zip(targets, memory)],
                "touched": [answer["postcopy-requests"] * 4096 / MIB for answer in answers]}


def event_time(host, name: str) -> float:
    """Seconds of the real-time clock: of an event, or of the migration's first status."""
    host.qmp.poll_events(0.01)
    for event in host.qmp.events:
        if event["event"] == name or event.get("data", {}).get("status") == name:
            stamp = event["timestamp"]
            return stamp["seconds"] + stamp["microseconds"] / 1e6
    raise AssertionError(f"{host.name} sent no {name}: {host.qmp.event_names()}")


def report_of(size: int, count: int, background: bool, rounds: list[dict[str, list[float]]], file_mib: float) -> Report:
    report = Report(
        f"{count} clone{'s' * (count > 1)} of {size / MIB:g} MiB at once, "
        f"{'the rest streamed behind' if background else 'on demand only'}",
        ["Of each clone, all rounds together. RESUME: from its daemon's migrate to QEMU's event; letter: from the first "
         "migrate of all to its guest's next output; stall: the longest silence in the second behind it (the guest "
         "prints every 10 ms)."])
    every = {key: [value for one in rounds for value in one[key]] for key in rounds[0]}
    for what, key, target in (("to RESUME", "resume", 0), ("to the next letter", "letter", 50 if count == 1 else 0),
                              ("longest stall in the first second", "stall", 0)):
        p50, p95 = percentile(every[key], 0.5), percentile(every[key], 0.95)
        report.add(f"{what}, p50", "ours", [p50], "ms", None, f"{target} ms" if target else "",
                   p50 <= target if target else None)
        report.add(f"{what}, p95", "ours", [p95], "ms")
    report.add("requests per clone", "ours", every["requests"], "")
    most = max(every["memory"])
    if background:
        report.add("to the last page of all", "ours", [max(one["end"]) for one in rounds], "ms")
        report.add("rate of all together", "ours", [file_mib * count / 1024 / (max(one["end"]) / 1000)
                                                     for one in rounds], "GiB/s")
        report.add("memory per clone", "ours", every["memory"], "MiB", None, f"<= {file_mib:.0f} MiB, what is not zero",
                   most <= file_mib + 1)
    else:
        ratios = [memory / touched for memory, touched in zip(every["memory"], every["touched"])]
        report.add("pages touched, per clone", "ours", every["touched"], "MiB")
        report.add("memory per clone", "ours", every["memory"], "MiB", None, "<= 1.5 x touched", max(ratios) <= 1.5)
    return report


def clones(folder: Path, rounds: int, quick: bool) -> list[Report]:
    size = 256 * MIB if quick else 512 * MIB
    path = make_checkpoint(folder, size)
    file_mib = guest_of(size).fill / 256 + SWEPT_PAGES / 256 + 2
    reports = []
    for count in (1, 2) if quick else (1, 4, 16):
        for background in (True, False):
            # One more, dropped, as everywhere: it warms what is warm later.
            some = [one_round(folder, path, size, count, background) for _ in range(rounds + 1)][1:]
            reports.append(report_of(size, count, background, some, file_mib))
    path.unlink()
    return reports
