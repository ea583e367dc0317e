#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What tools/demo shows once everything is built:

1. a synthetic guest that never stops writing moves between two daemons, its memory proved page by page;
2. a real QEMU machine moves into migrationd and out again into another QEMU, while its own guest checks every page of
   its memory and prints a sequence that must have no gap;
3. a running QEMU machine of 2 GiB is put into a file, and runs again at once (instant resume) while its memory is still
   in the file; beside it, QEMU's own loading of the same file;
4. an in-memory key-value server (guest/examples/cache) moves between two daemons while clients write to it, by precopy
   and by postcopy, and no write that it acknowledged is lost.

Then two tables. Exit status 0 only if all proofs hold.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TREE))

from tests.interop.lib import guest as guest_module  # noqa: E402
from tests.interop.lib import programs  # noqa: E402
from tests.interop.lib.daemon import Migrationd  # noqa: E402
from tests.interop.lib.guest import Guest  # noqa: E402
from tests.interop.lib.qemu import Qemu  # noqa: E402

RAM_MIB = 512
DIRTY_RATE = "100M"         # a second, all the while
QEMU_MIB = 256
QEMU_PAGES = 16384          # the guest counts in each of these, and checks each
CHECKPOINT_MIB = 2048       # of the machine that is put into a file, filled but for its last MiB
COLUMNS = ("machine", "from", "to", "total", "downtime", "throughput", "passes", "memory")
RESUME_COLUMNS = ("from the file", "runs after", "prints after", "all memory after", "memory")


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def row(machine: str, source: str, destination: str, answer: dict, memory: str) -> tuple[str, ...]:
    ram = answer["ram"]
    seconds = max(answer["total-time"], 1) / 1000
    return (machine, source, destination, f"{answer['total-time']} ms", f"{answer['downtime']} ms",
            f"{ram['transferred'] / seconds / 1e6:.0f} MB/s", str(ram["dirty-sync-count"]), memory)


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in [columns, *rows]]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def synthetic(folder: Path, migrationctl: Path) -> tuple[str, ...]:
    words = f"synthetic,ram={RAM_MIB}M,working-set={RAM_MIB // 4}M,touched={RAM_MIB // 2}M,dirty-rate={DIRTY_RATE}"
    say(f"a synthetic guest of {RAM_MIB} MiB, writing {DIRTY_RATE}B/s, moves between two daemons")
    with Migrationd(folder, "left", machine=words) as left, \
         Migrationd(folder, "right", machine=words, incoming=["tcp:127.0.0.1:0"]) as right:
        for host in (left, right):
            host.capabilities("return-path")
        left.parameters(max_bandwidth=0)
        time.sleep(0.5)
        uri = f"tcp:127.0.0.1:{right.listening_port()}"
        print(f"$ migrationctl --socket left.qmp migrate {uri}", flush=True)
        subprocess.run([migrationctl, "--socket", left.qmp_path, "migrate", uri], check=True, timeout=120)
        answer = left.wait_totals()
        right.wait_status("completed")
        assert right.run_state() == "running" and left.run_state() == "postmigrate"
        checked = right.verify_machine()
        print(f"verify-machine on the right: {checked} pages checked, none lost, stale, torn or misplaced")
        return row("synthetic, running", "migrationd", "migrationd", answer, f"{checked} pages proved")


def move(source, destination, uri: str) -> dict:
    for host in (source, destination):
        host.capabilities("return-path")
    source.parameters(max_bandwidth=1 << 40)
    destination.incoming(uri)
    source.migrate(uri)
    source.wait_status("completed", timeout=120)
    destination.wait_status("completed", timeout=120)
    return source.wait_totals()


def real_machine(folder: Path) -> list[tuple[str, ...]]:
    guest = Guest(pages=QEMU_PAGES, fill=4096)
    say(f"a QEMU 7.2 machine of {QEMU_MIB} MiB, its guest running, moves into migrationd and out into QEMU 10.0")
    with Qemu(folder, "qemu72", "7.2", memory_mib=QEMU_MIB, guest=guest) as source, \
         Migrationd(folder, "park") as park, \
         Qemu(folder, "qemu10", "10.0", memory_mib=QEMU_MIB, guest=guest, incoming=True) as target:
        print(f"the guest has swept its {QEMU_PAGES} pages {source.wait_sweeps(3)} times and goes on", flush=True)
        into = move(source, park, f"unix:{folder}/in")
        machine = park.machine()
        print(f"parked: {machine['machine-type']}, {len(machine['blocks'])} memory blocks, "
              f"{len(machine['devices'])} device sections, owner {machine['owner']}", flush=True)
        out = move(park, target, f"unix:{folder}/out")
        assert source.run_state() == "postmigrate" and park.run_state() == "postmigrate"
        left_at = guest_module.last_number(source.serial())
        target.wait_sweeps(left_at + 3)
        target.qmp.execute("stop")
        target.check_memory()
        last = guest_module.check_serial([source.serial(), target.serial()])
        print(f"the guest runs on in QEMU 10.0: sweeps 1..{last} without a gap, every counter consistent, "
              f"memory read back and proved")
        proof = f"{QEMU_PAGES} pages proved"
        return [row("QEMU guest, running", "QEMU 7.2", "migrationd", into, "held byte for byte"),
                row("QEMU guest, parked", "migrationd", "QEMU 10.0", out, proof)]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def began(target: Qemu, begun: float) -> tuple[float, float]:
    """Seconds until the guest runs, and until it prints its next letter."""
    target.qmp.wait_event("RESUME", timeout=120)
    runs = time.monotonic() - begun
    while not target.serial():
        assert time.monotonic() - begun < 120 and target.alive(), "the guest prints nothing"
        time.sleep(0.001)
    return runs, time.monotonic() - begun


def prove(source: bytes, target: Qemu) -> str:
    target.wait_sweeps(guest_module.last_number(source) + 3)
    target.qmp.execute("stop")
    target.check_memory()
    guest_module.check_serial([source, target.serial()])
    return f"{target.guest.pages} pages proved"


def checkpoint(folder: Path, guest: Guest) -> tuple[Path, bytes]:
    path = folder / "checkpoint"
    with Qemu(folder, "running", "10.0", memory_mib=CHECKPOINT_MIB, guest=guest) as source:
        source.wait_sweeps(3, timeout=120)
        source.capabilities("mapped-ram")
        source.parameters(max_bandwidth=0)
        source.migrate(f"file:{path}")
        answer = source.wait_status("completed", timeout=120)
        printed = source.serial()
    print(f"put into a file by QEMU in {answer['total-time']} ms: {path.stat().st_blocks * 512 >> 20} MiB on the disk",
          flush=True)
    return path, printed


def own_load(folder: Path, path: Path, guest: Guest, printed: bytes) -> tuple[str, ...]:
    with Qemu(folder, "loads", "10.0", memory_mib=CHECKPOINT_MIB, guest=guest, incoming=True) as target:
        target.capabilities("mapped-ram")
        begun = time.monotonic()
        target.incoming(f"file:{path}")
        runs, prints = began(target, begun)
        print(f"QEMU loads it by itself: its guest runs after {milliseconds(runs)}", flush=True)
        return ("QEMU 10.0 loads it", milliseconds(runs), milliseconds(prints), milliseconds(runs), prove(printed, target))


def resume(folder: Path, path: Path, guest: Guest, printed: bytes, migrationctl: Path) -> tuple[str, ...]:
    uri = f"unix:{folder}/resume"
    with Qemu(folder, "resumed", "10.0", memory_mib=CHECKPOINT_MIB, guest=guest, incoming=True) as target:
        target.capabilities("postcopy-ram")
        target.incoming(uri)
        print(f"$ migrationctl resume checkpoint --to {uri}", flush=True)
        begun = time.monotonic()
        with subprocess.Popen([migrationctl, "resume", path, "--to", uri, "--no-working-set"]) as command:
            runs, prints = began(target, begun)
            assert command.wait(timeout=120) == 0
        everything = time.monotonic() - begun
        return ("migrationctl resume", milliseconds(runs), milliseconds(prints), milliseconds(everything),
                prove(printed, target))


def instant(folder: Path, migrationctl: Path) -> list[tuple[str, ...]]:
    # Everything but the sweeping pages and the last MiB is filled once and then left alone.
    guest = Guest(pages=1024, fill=(CHECKPOINT_MIB - 2) * 256 - 1024)
    say(f"a QEMU machine of {CHECKPOINT_MIB} MiB, its guest running, is put into a file and resumed from it")
    path, printed = checkpoint(folder, guest)
    rows = [own_load(folder, path, guest, printed), resume(folder, path, guest, printed, migrationctl)]
    path.unlink()
    return rows


def cache(build: Path) -> None:
    say("a key-value server moves under load, by precopy and by postcopy")
    done = subprocess.run([sys.executable, TREE / "tests" / "guest" / "run", "--filter", "cache-p"], timeout=300,
                          env={**os.environ, "BUILD_DIR": str(build)})
    assert done.returncode in (0, 77), "a write was lost, or the cache did not move"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--build", type=Path, default=TREE / "build", help="where migrationd was built")
    build = options.parse_args().build.resolve()
    os.environ.setdefault("MIGRATIOND", str(build / "daemon" / "migrationd"))
    programs.set_migrationd(os.environ["MIGRATIOND"])
    with tempfile.TemporaryDirectory(prefix="migrationd-demo-") as name:
        folder = Path(name)
        migrationctl = build / "tools" / "migrationctl" / "migrationctl"
        rows = [synthetic(folder, migrationctl), *real_machine(folder)]
        resumed = instant(folder, migrationctl)
    cache(build)
    say("result")
    print(table(COLUMNS, rows))
    print(f"\na machine of {CHECKPOINT_MIB} MiB, from the command to its guest's running on:")
    print(table(RESUME_COLUMNS, resumed))
    print("\nmemory verified: yes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
