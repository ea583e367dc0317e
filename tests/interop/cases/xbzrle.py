# SPDX-License-Identifier: Apache-2.0
"""Pages as deltas: a real QEMU's read by us, and ours read by us, each while the guest writes all the time."""

from __future__ import annotations

import time
from pathlib import Path

from ..lib import cases, links
from ..lib.daemon import Migrationd
from ..lib.host import Host
from ..lib.qemu import Qemu
from .matrix import VERSIONS
from .story import QuietPair, arrive, depart
from .synthetic import machine

SLOW = 16 << 20         # bytes/s: many passes, and none that could be the last
CACHE = 16 << 20


def _go_slowly(source: Host) -> None:
    source.capabilities("xbzrle")
    source.parameters(max_bandwidth=SLOW, downtime_limit=1, xbzrle_cache_size=CACHE)


def _then_let_it_end(source: Host, destination: Host) -> dict:
    """After deltas were sent; returns the source's statistics of them."""
    source.wait(lambda: source.query_migrate().get("xbzrle-cache", {}).get("pages", 0) > 100, 20, "pages sent as deltas")
    time.sleep(0.3)
    source.parameters(max_bandwidth=1 << 40, downtime_limit=2000)
    source.wait_status("completed")
    destination.wait_status("completed")
    return source.query_migrate()["xbzrle-cache"]


def _from_qemu(folder: Path, version: str) -> None:
    with Qemu(folder, "source", version) as source, Migrationd(folder, "park") as park, \
         Qemu(folder, "target", version, incoming=True) as destination:
        pair = QuietPair(source, destination)
        depart(pair, True)
        _go_slowly(source)
        link = links.Tcp4(folder, "in")
        link.listen(park)
        link.connect(source)
        assert _then_let_it_end(source, park)["pages"] > 100
        links.transfer(park, destination, links.Unix(folder, "out"), True)
        arrive(pair, True)


for _version in VERSIONS:
    cases.add(f"xbzrle/from-qemu-{_version}", lambda folder, version=_version: _from_qemu(folder, version), quick=True)


def _live(folder: Path, cache: int) -> None:
    what = machine(40, ram="64M", working_set="12M")
    with Migrationd(folder, "source", machine=what) as source, \
         Migrationd(folder, "target", machine=what, incoming=["defer"]) as destination:
        _go_slowly(source)
        source.parameters(xbzrle_cache_size=cache)
        link = links.Unix(folder, "move")
        link.listen(destination)
        link.connect(source)
        statistics = _then_let_it_end(source, destination)
        assert statistics["cache-size"] == cache and statistics["cache-miss"] > 0, statistics
        assert statistics["encoding-rate"] > 1, statistics
        assert statistics["bytes"] < statistics["pages"] * 4096, statistics
        assert destination.verify_machine() > 0


for _cache, _name in ((CACHE, "cache-of-everything"), (1 << 20, "cache-of-a-part"), (1 << 40, "cache-larger-than-memory")):
    cases.add(f"xbzrle/live/{_name}", lambda folder, cache=_cache: _live(folder, cache), quick=_cache == CACHE)


@cases.case("xbzrle/live/another-cache-size-meanwhile")
def resized(folder: Path) -> None:
    what = machine(40, ram="64M", working_set="12M")
    with Migrationd(folder, "source", machine=what) as source, \
         Migrationd(folder, "target", machine=what, incoming=["defer"]) as destination:
        _go_slowly(source)
        link = links.Unix(folder, "move")
        link.listen(destination)
        link.connect(source)
        for size in (1 << 20, 1 << 12, 1 << 26, 1 << 24) * 2:
            time.sleep(0.2)
            source.parameters(xbzrle_cache_size=size)
        _then_let_it_end(source, destination)
        assert destination.verify_machine() > 0
