# SPDX-License-Identifier: Apache-2.0
"""mapped-ram files by several workers (multifd), and with zero-page-detection off."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ..lib import cases, procfs, programs
from ..lib.daemon import Migrationd
from ..lib.qemu import Qemu
from .mapped import Way, blocks_of, live, load, same_blocks, save, set_up
from .story import QuietPair, arrive, depart

MIB = 1 << 20

for _name, _way in {"2-workers": Way(workers=2), "4-workers-direct-io": Way(workers=4, direct=True),
                    "16-workers-offset": Way(workers=16, offset=0x1001)}.items():
    cases.add(f"mapped/live/{_name}", lambda folder, way=_way: live(folder, way), quick=_name == "4-workers-direct-io")


def without_detection(folder: Path, way: Way) -> None:
    """zero-page-detection=none: every page is in the file, of QEMU's and of ours, and the machine is the same."""
    with Qemu(folder, "source", "10.0") as source, Migrationd(folder, "park") as park, \
         Qemu(folder, "target", "10.0", incoming=True) as destination:
        pair = QuietPair(source, destination)
        depart(pair, running=True)
        for host in (source, park):
            host.parameters(zero_page_detection="none")
        save(source, folder / "theirs", way)
        load(park, folder / "theirs", way)
        save(park, folder / "ours", way)
        same_blocks(folder / "theirs", way.offset, folder / "ours", way.offset)
        assert all(block.set_bits == block.length // 4096 for block in blocks_of(folder / "ours", way.offset))
        load(destination, folder / "ours", way)
        arrive(pair, running=True)


for _name, _way in {"plain": Way(), "workers-direct-io": Way(workers=2, direct=True)}.items():
    cases.add(f"mapped/zero-page-detection-none/{_name}", lambda folder, way=_way: without_detection(folder, way),
              quick=_name == "plain")


@cases.case("mapped/zero-page-detection-none/untouched-memory-costs-no-disk")
def holes_stay_holes(folder: Path) -> None:
    """Every bit is set, and what nobody ever touched is still a hole of the file: it reads as the zeros it is."""
    path = folder / "saved"
    what = "synthetic,ram=1G,dirty-rate=0,working-set=8M"
    with Migrationd(folder, "source", machine=what, paused=True) as source:
        source.parameters(zero_page_detection="none")
        save(source, path)
        assert path.stat().st_blocks * 512 < 64 * MIB, f"{path.stat().st_blocks * 512} bytes on disk"
        assert all(block.set_bits == block.length // 4096 for block in blocks_of(path))
    with Migrationd(folder, "target", machine=what, incoming=["defer"]) as target:
        load(target, path, Way(workers=2))
        target.verify_machine()


@cases.case("mapped/workers-are-threads-and-files", quick=True)
def threads(folder: Path) -> None:
    """As many writers as multifd-channels says, each with a descriptor of the file; none is left afterwards."""
    with Migrationd(folder, "source", machine="synthetic,ram=64M,dirty-rate=0,working-set=48M") as source:
        set_up(source, Way(workers=5))
        source.parameters(max_bandwidth=20 * MIB)
        source.migrate(f"file:{folder}/saved")
        source.wait(lambda: source.query_migrate().get("ram", {}).get("transferred", 0) > 4 * MIB, 20, "some pages")
        names = procfs.thread_names(source.pid)
        workers = sorted(name for name in names if name.startswith("mig/src/send_"))
        assert workers == [f"mig/src/send_{n}" for n in range(5)], names
        source.parameters(max_bandwidth=1 << 60)
        source.wait_status("completed")
        left = [name for name in procfs.open_names(source.pid) if name.endswith(f" {folder}/saved")]
        assert not left, left


@cases.case("mapped/migrationctl-borrows-the-workers", quick=True)
def by_migrationctl(folder: Path) -> None:
    tool = programs.build_folder() / "tools" / "migrationctl" / "migrationctl"
    if not tool.exists():
        raise programs.Skip(f"{tool} is not built")
    with Migrationd(folder, "source", machine="synthetic,ram=32M,dirty-rate=5M,working-set=8M") as source, \
         Migrationd(folder, "target") as target:
        for host, command in ((source, "save"), (target, "load")):
            host.owner()  # answered: it listens
            host.qmp.execute("migrate-set-parameters", {"multifd-compression": "zlib"})
            subprocess.run([tool, "--socket", host.qmp_path, command, "--direct", "--workers", "3", folder / "saved"],
                           check=True, timeout=30, stdout=subprocess.DEVNULL)
            states = {one["capability"]: one["state"] for one in host.qmp.execute("query-migrate-capabilities")}
            assert not states["multifd"] and not states["mapped-ram"], states
            parameters = host.qmp.execute("query-migrate-parameters")
            assert parameters["multifd-channels"] == 2 and parameters["multifd-compression"] == "zlib", parameters
        assert target.owner() == "here"
