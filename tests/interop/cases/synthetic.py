# SPDX-License-Identifier: Apache-2.0
"""Live precopy of a synthetic guest that writes at a known rate, over links of known speed.

Either it converges, with a downtime within twice the limit, or it keeps to the rules: it stays active, the guest runs
on, and nothing is switched over at a price nobody agreed to. Then the limit is raised to what the last estimate asks
for, and it must end. At the destination every page is proved.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from ..lib import cases
from ..lib.daemon import Migrationd
from ..lib.netns import LimitedLink
from ..lib.onecopy import check_one_copy
from ..lib.programs import Skip
from ..lib.qmp import QmpError

MB = 1_000_000
DOWNTIME_LIMIT = 300        # ms, the default of QEMU
PATIENCE = 6.0              # seconds before a migration counts as not converging
RATES = (0, 50, 200, 1000)  # MB/s the guest writes


def machine(rate: int, ram: str = "256M", working_set: str = "96M") -> str:
    return f"synthetic,ram={ram},dirty-rate={rate * MB},working-set={working_set}"


def _event_time(host: Migrationd, name: str) -> float:
    for event in host.qmp.events:
        if event["event"] == name:
            return event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
    raise AssertionError(f"{host.name}: no event {name}: {host.qmp.event_names()}")


def finish(source: Migrationd, limit: int) -> int:
    """Waits for the end; raises the downtime limit when it does not converge. Returns the limit in force at the end."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        answer = source.query_migrate()
        if answer["status"] == "completed":
            return limit
        assert answer["status"] in ("setup", "active", "device"), answer
        if answer.get("ram", {}).get("dirty-sync-count", 0) < 2:    # nothing can be judged within the first pass
            deadline = time.monotonic() + PATIENCE
        time.sleep(0.05)
    # It may be about to go at this very moment: then it ends.
    answer = source.query_migrate()
    running = source.run_state() == "running"
    if source.status() in ("device", "completed"):
        source.wait_status("completed")
        return limit
    # It keeps to the rules: still active, still running, and says itself that the downtime would be too long.
    assert answer["status"] == "active" and running, answer
    assert answer["expected-downtime"] > limit, f"it could have switched over: {answer}"
    assert answer["ram"]["dirty-sync-count"] >= 2, answer
    limit = 2 * answer["expected-downtime"]
    source.parameters(downtime_limit=limit)
    source.wait_status("completed", timeout=30)
    return limit


def check(source: Migrationd, destination: Migrationd, limit: int) -> None:
    destination.wait_status("completed")
    answer = source.wait_totals()
    destination.qmp.poll_events(0.05)
    source.qmp.poll_events(0.05)
    assert answer["downtime"] <= 2 * limit, f"downtime {answer['downtime']} ms, limit {limit} ms"
    seen = (_event_time(destination, "RESUME") - _event_time(source, "STOP")) * 1000
    assert seen <= 2 * limit, f"{seen:.0f} ms between STOP and RESUME, limit {limit} ms"
    names = [name for name in source.qmp.event_names() if not name.startswith("P(")]
    assert names == ["setup", "active", "STOP", "device", "completed"], names
    assert destination.run_state() == "running" and source.run_state() == "postmigrate"
    assert destination.verify_machine() > 0


def live(folder: Path, rate: int, limited_by: str, link_rate: int = 100 * MB) -> None:
    what = machine(rate)
    if limited_by == "tc":
        with LimitedLink(link_rate) as link:
            _live(folder, what, f"tcp:{link.right_address}", (link.left, link.right), None)
    else:
        _live(folder, what, "tcp:127.0.0.1", (None, None), link_rate if limited_by == "max-bandwidth" else None)


def _live(folder: Path, what: str, address: str, namespaces: tuple, max_bandwidth: int | None) -> None:
    what += f",log={folder}/ticks"
    with Migrationd(folder, "source", machine=what, namespace=namespaces[0]) as source, \
         Migrationd(folder, "target", machine=what, incoming=["defer"], namespace=namespaces[1]) as destination:
        for host in (source, destination):
            host.capabilities("return-path")
        source.parameters(max_bandwidth=max_bandwidth or 1 << 60, downtime_limit=DOWNTIME_LIMIT)
        time.sleep(0.3)     # the guest has written by then
        destination.incoming(f"{address}:0")
        started = time.monotonic()
        source.migrate(f"{address}:{destination.listening_port()}")
        limit = finish(source, DOWNTIME_LIMIT)
        seconds = time.monotonic() - started
        if max_bandwidth:
            # The rate is kept on average; the last pass is sent without limit.
            ram = source.query_migrate()["ram"]
            paced = ram["transferred"] - ram["downtime-bytes"]
            assert paced <= max_bandwidth * seconds * 1.15 + (8 << 20), f"{paced} bytes in {seconds:.1f} s"
        check(source, destination, limit)
        assert check_one_copy(folder / "ticks") == 2


for _limit in ("nothing", "max-bandwidth", "tc"):
    for _rate in RATES:
        cases.add(f"live/{_rate}-MBps/limited-by-{_limit}",
                  lambda folder, args=(_rate, _limit): live(folder, *args), timeout=90,
                  quick=(_rate, _limit) in ((200, "nothing"), (50, "max-bandwidth")))


@cases.case("live/auto-converge-slows-the-guest-until-it-ends", timeout=90)
def auto_converge(folder: Path) -> None:
    what = machine(1000)
    with Migrationd(folder, "source", machine=what) as source, \
         Migrationd(folder, "target", machine=what, incoming=["defer"]) as destination:
        source.capabilities("auto-converge")
        source.parameters(max_bandwidth=150 * MB, downtime_limit=DOWNTIME_LIMIT)
        destination.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        throttled = 0

        def ended() -> bool:
            nonlocal throttled
            answer = source.query_migrate()
            throttled = max(throttled, answer.get("cpu-throttle-percentage", 0))
            assert answer["status"] in ("setup", "active", "device", "completed"), answer
            return answer["status"] == "completed"
        source.wait(ended, 75, "auto-converge to end it")
        assert throttled >= 20, throttled
        check(source, destination, DOWNTIME_LIMIT)


@cases.case("live/pause-before-switchover-waits-for-the-word", quick=True)
def pause_before_switchover(folder: Path) -> None:
    what = machine(50)
    with Migrationd(folder, "source", machine=what) as source, \
         Migrationd(folder, "target", machine=what, incoming=["defer"]) as destination:
        for host in (source, destination):
            host.capabilities("pause-before-switchover", "return-path")
        destination.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        source.wait_status("pre-switchover")
        time.sleep(0.5)
        assert source.status() == "pre-switchover" and destination.run_state() == "inmigrate"
        try:
            source.qmp.execute("migrate-continue", {"state": "device"})
        except QmpError as error:
            assert error.desc == "Migration not in expected state: pre-switchover", error.desc
        else:
            raise AssertionError("the wrong state was accepted")
        source.qmp.execute("migrate-continue", {"state": "pre-switchover"})
        source.wait_status("completed")
        destination.wait_status("completed")
        names = [name for name in source.qmp.event_names() if not name.startswith("P(")]
        assert names == ["setup", "active", "STOP", "pre-switchover", "device", "completed"], names
        destination.verify_machine()


def _cancel(folder: Path, at: str) -> None:
    """Cancelled anywhere, the guest runs on, its memory is whole, and it can be migrated at once afterwards."""
    what = machine(50)
    with Migrationd(folder, "source", machine=what) as source, \
         Migrationd(folder, "target", machine=what, incoming=["defer"]) as destination:
        source.capabilities(pause_before_switchover=at == "pre-switchover")
        source.parameters(max_bandwidth=20 * MB if at != "pre-switchover" else 1 << 40)
        destination.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        if at == "later":
            source.wait(lambda: source.query_migrate().get("ram", {}).get("transferred", 0) > 8 * MB, 20, "some pages")
        elif at != "at-once":
            source.wait_status(at)
        source.qmp.execute("migrate_cancel")
        source.wait(lambda: source.status() == "cancelled", what="the cancel to be done")
        assert source.run_state() == "running" and source.owner() == "here"
        destination.wait(lambda: destination.status() in ("failed", "setup"), what="the destination to notice")
        source.capabilities(pause_before_switchover=False)
        source.parameters(max_bandwidth=1 << 40)
        if destination.status() == "failed":
            destination.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        source.wait_status("completed")
        destination.wait_status("completed")
        destination.verify_machine()


for _at in ("at-once", "active", "later", "pre-switchover"):
    cases.add(f"live/cancel/{_at}", lambda folder, at=_at: _cancel(folder, at), quick=_at == "later")


@contextlib.contextmanager
def reserved_huge_pages(count: int):
    """So many free 2 MiB pages; those added are given back afterwards."""
    reserved = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    free = reserved.with_name("free_hugepages")
    added = 0
    try:
        missing = count - int(free.read_text())
        if missing > 0:
            before = int(reserved.read_text())
            reserved.write_text(str(before + missing))
            added = int(reserved.read_text()) - before
        if int(free.read_text()) < count:
            raise Skip(f"{count} huge pages of 2 MiB cannot be had here")
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise Skip(f"huge pages cannot be reserved here: {error}") from error
    finally:
        if added > 0:
            reserved.write_text(str(int(reserved.read_text()) - added))


@cases.case("live/huge-pages")
def huge_pages(folder: Path) -> None:
    what = machine(50, ram="64M", working_set="32M") + ",page-size=2M"
    with reserved_huge_pages(2 * 34):
        _live(folder, what, "tcp:127.0.0.1", (None, None), None)
