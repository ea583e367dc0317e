# SPDX-License-Identifier: Apache-2.0
"""Huge pages for as long as the tests that want them run.

Root may reserve them; for everybody else those tests say that they were skipped, and why. What was reserved before is
put back afterwards.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


@contextlib.contextmanager
def reserved(pages: int) -> Iterator[None]:
    """At least so many pages of 2 MiB are free, if this user may say so and the memory is there."""
    try:
        before = int(POOL.read_text())
        free = int(POOL.with_name("free_hugepages").read_text())
        POOL.write_text(str(before + max(0, pages - free)))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        POOL.write_text(str(before))
