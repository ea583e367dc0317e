# SPDX-License-Identifier: Apache-2.0
"""Instant resume from files: the file stays where it is, the guest runs before its memory has arrived.

Memory is proved as everywhere: the guest checks a counter in every page while it runs on.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

from ..lib import cases, programs
from ..lib.daemon import Migrationd
from ..lib.guest import Guest, last_number
from ..lib.qemu import Qemu
from ..lib.qmp import QmpError
from .postcopy_source import LARGE, RESUME, begin_resume, into_postcopy, went_on
from .story import QuietPair, depart

FILLED = Guest(pages=64, fill=6000, ticks=2, every=1)    # 23 MiB that nobody touches again


def checkpoint(folder: Path, kind: str, guest: Guest, running: bool = True, version: str = "10.0") -> tuple[Path, int]:
    """A file with a machine in it, and the last number its guest printed. The source has ended."""
    path = folder / "machine"
    with Qemu(folder, "source", version, memory_mib=32, guest=guest) as source:
        depart(QuietPair(source, source), running)
        if kind == "plain":
            source.migrate(f"exec:cat > {path}")
        elif kind == "mapped-ram":
            source.capabilities("mapped-ram")
            source.migrate(f"file:{path}")
        else:
            raise AssertionError(kind)
        source.wait_status("completed")
        (folder / "source.printed").write_bytes(source.serial())
        return path, last_number(source.serial())


class Printed:
    """What a host that has ended printed."""

    def __init__(self, path: Path):
        self.bytes = path.read_bytes()

    def serial(self) -> bytes:
        return self.bytes


def open_lazily(daemon: Migrationd, path: Path) -> None:
    daemon.capabilities(RESUME)
    daemon.incoming(f"file:{path}")
    daemon.wait_status("completed")


def _from_file(folder: Path, kind: str, version: str, preempt: bool) -> None:
    path, left_at = checkpoint(folder, kind, LARGE)
    printed = Printed(folder / "source.printed")
    with Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", version, memory_mib=32, guest=LARGE, incoming=True) as destination:
        open_lazily(daemon, path)
        assert sum(block["allocated"] for block in daemon.machine()["blocks"]) == 0, daemon.machine()
        into_postcopy(daemon, destination, f"unix:{folder / 'out'}", preempt)
        went_on([printed, destination], left_at, LARGE)


for _kind in ("mapped-ram", "plain"):
    for _version in ("7.2", "10.0"):
        for _preempt in (False, True):
            cases.add(f"resume/{_kind}-to-{_version}/{'preempt' if _preempt else 'one-channel'}",
                      lambda folder, args=(_kind, _version, _preempt): _from_file(folder, *args),
                      quick=_version == "10.0" and not _preempt)


@cases.case("resume/on-demand-only-then-the-rest", quick=True)
def on_demand(folder: Path) -> None:
    """With the background off the destination stays in postcopy and holds what its guest touched; switched on, it gets
    the rest. Meanwhile nothing can be cancelled."""
    path, left_at = checkpoint(folder, "mapped-ram", FILLED)
    with Migrationd(folder, "park") as daemon, \
         Qemu(folder, "target", "10.0", memory_mib=32, guest=FILLED, incoming=True) as destination:
        open_lazily(daemon, path)
        daemon.qmp.execute("migrate-set-parameters", {"__org.migrationd_postcopy-background": False})
        begin_resume(daemon, destination, f"unix:{folder / 'out'}")
        destination.wait_sweeps(left_at + 3)
        time.sleep(0.2)
        answer = daemon.query_migrate()
        assert answer["status"] == "postcopy-active", answer
        assert answer["ram"]["postcopy-requests"] > 60, answer
        assert answer["ram"]["normal"] < 2000, answer
        assert answer["ram"]["remaining"] > 20 << 20, answer
        try:
            daemon.qmp.execute("migrate_cancel")
            raise AssertionError("a postcopy was cancelled")
        except QmpError as error:
            assert error.desc == "Postcopy migration in progress, cannot cancel.", error.desc
        daemon.qmp.execute("migrate-set-parameters", {"__org.migrationd_postcopy-background": True})
        daemon.wait_status("completed")
        destination.wait_status("completed")
        went_on([Printed(folder / "source.printed"), destination], left_at, FILLED)


@cases.case("resume/refusals", quick=True)
def refusals(folder: Path) -> None:
    """A machine saved paused; a lazy machine by any other way; files that are none."""
    path, _ = checkpoint(folder, "mapped-ram", FILLED, running=False)
    with Migrationd(folder, "park") as daemon:
        open_lazily(daemon, path)

        def refused(uri: str, words: str) -> None:
            try:
                daemon.migrate(uri)
            except QmpError as error:
                assert words in error.desc, error.desc
            else:
                raise AssertionError(f"{uri} was taken")
        refused(f"unix:{folder / 'none'}", "switch postcopy-ram on, too")
        refused(f"file:{folder / 'copy'}", "still in the file")
        daemon.capabilities("postcopy-ram")
        refused("exec:cat > /dev/null", "can ask for pages")
        refused(f"unix:{folder / 'none'}", "postcopy destination runs what it gets")
        daemon.capabilities(**{RESUME: False})
        refused(f"unix:{folder / 'none'}", "still in the file")
    with Migrationd(folder, "other") as daemon:
        (folder / "rubbish").write_bytes(b"no machine" * 1000)
        daemon.capabilities(RESUME)
        daemon.incoming(f"file:{folder / 'rubbish'}")
        daemon.wait(lambda: daemon.status() == "failed", what="rubbish to be refused")


def _migrationctl(*words: str, timeout: float = 40) -> subprocess.CompletedProcess:
    program = programs.build_folder() / "tools" / "migrationctl" / "migrationctl"
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, "MIGRATIOND": str(programs.migrationd())})


@cases.case("resume/one-command", quick=True)
def one_command(folder: Path) -> None:
    path, left_at = checkpoint(folder, "mapped-ram", LARGE)
    with Qemu(folder, "target", "10.0", memory_mib=32, guest=LARGE, incoming=True) as destination:
        destination.capabilities("postcopy-ram")
        destination.incoming(f"unix:{folder / 'out'}")
        run = _migrationctl("resume", str(path), "--to", f"unix:{folder / 'out'}")
        assert run.returncode == 0, run
        assert "handed over" in run.stdout and "complete after" in run.stdout and "share MAC" in run.stderr, run
        went_on([Printed(folder / "source.printed"), destination], left_at, LARGE)


@cases.case("resume/one-command-stopped-machines-and-dead-ends", quick=True)
def one_command_refusals(folder: Path) -> None:
    path, _ = checkpoint(folder, "mapped-ram", FILLED, running=False)
    with Qemu(folder, "target", "10.0", memory_mib=32, guest=FILLED, incoming=True) as destination:
        destination.capabilities("postcopy-ram")
        destination.incoming(f"unix:{folder / 'out'}")
        run = _migrationctl("resume", str(path), "--to", f"unix:{folder / 'out'}")
        assert run.returncode == 1 and "runs what it gets" in run.stderr, run
        run = _migrationctl("resume", str(path), "--to", f"unix:{folder / 'nobody'}")
        assert run.returncode == 1, run
        run = _migrationctl("resume", str(path), "--to", f"unix:{folder / 'out'}", "--run")
        assert run.returncode == 0, run
        destination.wait(lambda: destination.run_state() == "running", what="the guest to run")
    run = _migrationctl("resume", str(folder / "none"), "--to", f"unix:{folder / 'out'}")
    assert run.returncode == 1 and "No such file" in run.stderr, run
    run = _migrationctl("resume", str(path), "--to", "unix:/x", "--clones", "2")
    assert run.returncode == 2, run
    run = _migrationctl("resume", str(path), "--to", f"unix:{folder / 'nobody'}{{}}", "--clones", "1")
    assert run.returncode == 1 and "nobody0" in run.stderr, run


@cases.case("resume/clones", quick=True)
def clones(folder: Path) -> None:
    """Four machines from one file, each of which runs on by itself."""
    path, left_at = checkpoint(folder, "mapped-ram", FILLED)
    with contextlib.ExitStack() as stack:
        copies = []
        for number in range(4):
            copy = stack.enter_context(Qemu(folder, f"copy{number}", "10.0", memory_mib=32, guest=FILLED,
                                            incoming=True))
            copy.capabilities("postcopy-ram")
            copy.incoming(f"unix:{folder / 'out'}{number}")
            copies.append(copy)
        run = _migrationctl("resume", str(path), "--to", f"unix:{folder / 'out'}{{}}", "--clones", "4")
        assert run.returncode == 0 and run.stdout.count("complete after") == 4, run
        for copy in copies:
            went_on([Printed(folder / "source.printed"), copy], left_at, FILLED)
