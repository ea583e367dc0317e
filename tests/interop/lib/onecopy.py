# SPDX-License-Identifier: Apache-2.0
"""Proof that a synthetic guest never ran twice: the log its copies write together (`log=PATH` of the machine).

While it runs, a guest appends "instance tick time" every 10 ms; ticks go on from host to host. So in time order the
lines of one instance must stand together, and the ticks must only rise. A guest that met a page that is not its own says
so there, too: a copy that was killed, or sleeps, cannot be asked any more.
"""

from __future__ import annotations

from pathlib import Path


def check_one_copy(log: Path) -> int:
    """Returns how many instances ran, one after the other."""
    records = []
    for line in log.read_text().splitlines() if log.exists() else []:
        assert not line.endswith(" wrong"), line
        words = line.split()
        if len(words) == 3:     # a killed writer may have left half a line
            records.append((int(words[2]), words[0], int(words[1])))
    records.sort()
    order: list[str] = []
    last_tick = -1
    for time, instance, tick in records:
        if not order or order[-1] != instance:
            assert instance not in order, f"{instance} ran while {order[-1]} ran too (at {time} ns)"
            order.append(instance)
        assert tick > last_tick, f"{instance} went back from tick {last_tick} to {tick}"
        last_tick = tick
    return len(order)
