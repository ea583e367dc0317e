# SPDX-License-Identifier: Apache-2.0
"""An attached machine whose huge pages are not there. Run alone: for a moment it has all of this machine's."""

from __future__ import annotations

import mmap
import os
import struct
import unittest

import guest_lib as g
from attached_lib import HostTest


class Huge(HostTest):
    def test_huge_pages_that_are_not_there_cost_the_migration_only(self) -> None:
        """The target's memory is 2 MiB pages that others have been promised: what is stored there would be SIGBUS."""
        huge, flags = 1 << 21, 0x0004 | (21 << 26)
        folder = "/sys/kernel/mm/hugepages/hugepages-2048kB/"

        def count(what: str) -> int:
            try:
                with open(folder + what, encoding="ascii") as file:
                    return int(file.read())
            except OSError:
                return 0

        if count("nr_hugepages") == 0:
            self.skipTest("no huge pages (sysctl vm.nr_hugepages)")
        one, two = self.host(), self.host()
        self.machine(one, g.PAUSED, pages=2 * huge // g.PAGE)
        for _ in range(10):
            block = g.memfd(2 * huge, flags=flags)
            guest = self.visitor(two)
            guest.ask(g.HELLO, g.hello())
            guest.ask(g.ADD_BLOCK, g.text("ram") + struct.pack(">QQIB", 1 << 40, 2 * huge, huge, g.NONE), [block])
            guest.ask(g.ADD_DEVICE, g.text("ledger") + struct.pack(">IIIB", 0, 3, 2, 0))
            guest.ask(g.READY, bytes(17))
            guest.serve()
            promised = []
            free = count("free_hugepages") - count("resv_hugepages")
            while free > 0:
                taken = os.memfd_create("taken", os.MFD_CLOEXEC | flags)
                os.ftruncate(taken, free * huge)
                try:
                    promised.append(mmap.mmap(taken, free * huge))  # not touched: promised
                except OSError:
                    free //= 2
                    continue
                finally:
                    os.close(taken)
                free = count("free_hugepages") - count("resv_hugepages")
            one.ask("migrate", {"uri": two.listen()})
            info = two.migration("failed", "completed")
            for mapping in promised:
                mapping.close()
            os.close(block)
            guest.close()
            two.no_guest()
            if info["status"] == "failed":
                self.assertRegex(info["error-desc"], "block 'ram': the memory at 0x[0-9a-f]+ could not be had|Bad address")
                self.machine(two, g.PAUSED)  # and the daemon takes another
                return
            one.migration("completed")
            one.ask("cont")
            one.ask("stop")
        self.skipTest("others give huge pages back all the time")


if __name__ == "__main__":
    unittest.main()
