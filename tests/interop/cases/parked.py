# SPDX-License-Identifier: Apache-2.0
"""What a parked machine does besides passing through: run state, files that are no hand-over, structured addresses."""

from __future__ import annotations

from pathlib import Path

from ..lib import cases, links
from ..lib.daemon import Migrationd
from ..lib.programs import TREE
from ..lib.qemu import Qemu
from .story import QuietPair, arrive, depart


@cases.case("parked/a-save-to-a-file-is-no-hand-over", quick=True)
def save_then_migrate(folder: Path) -> None:
    """Saved to a file, then migrated at once; the file holds the same moment and opens elsewhere."""
    with Qemu(folder, "source", "10.0") as source, Migrationd(folder, "park") as park, \
         Qemu(folder, "target", "7.2", incoming=True) as destination:
        pair = QuietPair(source, destination)
        depart(pair, running=False)
        links.transfer(source, park, links.Tcp4(folder, "in"), True)
        park.migrate(f"file:{folder / 'saved'}")
        park.wait_status("completed")
        links.transfer(park, destination, links.Tcp4(folder, "out"), True)
        arrive(pair, running=False)
    with Migrationd(folder, "later") as later, Qemu(folder, "again", "10.0", incoming=True) as again:
        later.incoming(f"file:{folder / 'saved'}")
        later.wait_status("completed")
        links.transfer(later, again, links.Unix(folder, "again"), False)
        assert again.run_state() == "paused"
        assert again.check_memory() == pair.sweep_at_departure


def _next_holder(folder: Path, running: bool, word: str, expected: str) -> None:
    with Qemu(folder, "source", "7.2") as source, Migrationd(folder, "park") as park, \
         Qemu(folder, "target", "10.0", incoming=True) as destination:
        depart(QuietPair(source, destination), running)
        links.transfer(source, park, links.Tcp4(folder, "in"), True)
        assert park.run_state() == ("running" if running else "paused"), park.run_state()
        park.qmp.execute(word)
        park.qmp.wait_event({"stop": "STOP", "cont": "RESUME"}[word])
        links.transfer(park, destination, links.Tcp4(folder, "out"), True)
        destination.wait(lambda: destination.run_state() == expected, what=f"the guest to be {expected}")


cases.add("parked/stop-sets-what-the-next-holder-does",
          lambda folder: _next_holder(folder, True, "stop", "paused"))
cases.add("parked/cont-sets-what-the-next-holder-does",
          lambda folder: _next_holder(folder, False, "cont", "running"))


@cases.case("parked/cont-is-the-explicit-word-after-a-hand-over")
def second_hand_over(folder: Path) -> None:
    with Qemu(folder, "source", "7.2") as source, Migrationd(folder, "park") as park, \
         Qemu(folder, "first", "7.2", incoming=True, paused=True) as first, \
         Qemu(folder, "second", "7.2", incoming=True, paused=True) as second:
        depart(QuietPair(source, first), running=False)
        links.transfer(source, park, links.Tcp4(folder, "in"), True)
        links.transfer(park, first, links.Tcp4(folder, "one"), True)
        assert park.run_state() == "postmigrate"
        first.kill()
        park.qmp.execute("cont")
        links.transfer(park, second, links.Tcp4(folder, "two"), True)
        second.check_memory()


def _channel(**address) -> dict:
    return {"channels": [{"channel-type": "main", "addr": address}]}


@cases.case("parked/structured-addresses")
def structured(folder: Path) -> None:
    """The `channels` form of every transport: into the daemon and out again."""
    path = str(folder / "out")
    with Qemu(folder, "source", "10.0") as source, Migrationd(folder, "park") as park:
        depart(QuietPair(source, source), running=False)
        park.qmp.execute("migrate-incoming",
                         _channel(transport="socket", type="inet", host="127.0.0.1", port="0"))
        source.qmp.execute("migrate", _channel(transport="socket", type="inet", host="127.0.0.1",
                                               port=str(park.listening_port())))
        source.wait_status("completed")
        park.wait_status("completed")
        for address in ({"transport": "file", "filename": path, "offset": 0},
                        {"transport": "exec", "args": ["/bin/sh", "-c", f"cat > {path}"]}):
            park.qmp.execute("migrate", _channel(**address))
            park.wait_status("completed")
            assert Path(path).read_bytes()[:4] == b"QEVM"
            if park.run_state() == "postmigrate":
                park.qmp.execute("cont")
                park.qmp.execute("stop")
    with Migrationd(folder, "unix") as unix, Migrationd(folder, "reader") as reader:
        reader.qmp.execute("migrate-incoming", _channel(transport="exec", args=["/bin/cat", path]))
        reader.wait_status("completed")
        unix.qmp.execute("migrate-incoming", _channel(transport="socket", type="unix", path=str(folder / "mig")))
        reader.qmp.execute("migrate", _channel(transport="socket", type="unix", path=str(folder / "mig")))
        unix.wait_status("completed")


def _compare(folder: Path, version: str, machine: str, way: str) -> None:
    """The stream of a stopped guest, and what migrationd makes of it, differ in the order of RAM records only."""
    import subprocess
    direct, ours = folder / "direct", folder / "ours"
    with Qemu(folder, "source", version, machine=machine) as source:
        depart(QuietPair(source, source), running=False)
        source.migrate(f"exec:cat > {direct}")
        source.wait_status("completed")
    with Migrationd(folder, "park") as park:
        if way == "file":
            park.incoming(f"file:{direct}")
        else:
            park.incoming(f"exec:cat {direct}")
        park.wait_status("completed")
        park.migrate(f"file:{ours}" if way == "file" else f"exec:cat > {ours}")
        park.wait_status("completed")
    run = subprocess.run([TREE / "tests" / "interop" / "analyze_stream.py", "--compare", direct, ours],
                         capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, (run.stdout + run.stderr)[-1500:]


for _version, _machine in (("7.2", "pc-i440fx-7.2"), ("10.0", "pc-i440fx-7.2"), ("10.0", "pc-q35-10.0"),
                           ("7.2", "pc-q35-7.2")):
    for _way in ("file", "exec"):
        cases.add(f"parked/stream-is-unchanged/{_version}/{_machine}/{_way}",
                  lambda folder, args=(_version, _machine, _way): _compare(folder, *args),
                  quick=_way == "file" and _machine == "pc-i440fx-7.2")
