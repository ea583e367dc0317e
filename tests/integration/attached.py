# SPDX-License-Identifier: Apache-2.0
"""Attached machines: guests that are scripted (guest_lib.py), against daemons with --machine attached."""

from __future__ import annotations

import os
import struct
import tempfile
import unittest

import guest_lib as g
from attached_lib import HostTest
from guest_lib import Guest
from qmp_lib import generic


class Attaching(HostTest):
    def test_a_guest_becomes_the_machine_and_is_stopped_and_started(self) -> None:
        host = self.host()
        guest = self.machine(host, g.RUNNING)
        info = host.ask("__org.migrationd_query-machine")
        self.assertEqual((info["kind"], info["machine-type"], info["owner"]), ("attached", "test-machine", "here"))
        self.assertEqual([(b["name"], b["size"]) for b in info["blocks"]], [("ram", 2048 * g.PAGE)])
        self.assertEqual(info["dirty-log"], "userfaultfd-wp-async")
        self.assertEqual(host.status(), "running")
        host.ask("stop")
        self.assertEqual((host.status(), guest.rests.is_set()), ("paused", True))
        host.ask("cont")
        self.assertEqual((host.status(), guest.runs.is_set()), ("running", True))
        answer = host.client.ask("__org.migrationd_verify-machine")
        self.assertIn("only the guest knows", answer["error"]["desc"])

    def test_a_guest_that_ends_gives_its_place_to_another(self) -> None:
        host = self.host()
        self.assertIn("No guest is attached", host.client.ask("migrate", {"uri": host.uri})["error"]["desc"])
        self.assertIn("No guest is attached", host.client.ask("migrate-incoming", {"uri": host.uri})["error"]["desc"])
        first = self.machine(host, g.PAUSED)
        self.assertEqual(host.status(), "paused")
        second = self.visitor(host)
        self.assertIn("another guest is attached", second.told_why())
        first.end()
        host.no_guest()
        third = self.machine(host, g.RUNNING)
        self.assertEqual(host.status(), "running")
        third.ask(g.DETACH)
        third.wait_over()
        host.no_guest()

    def test_who_may_not_attach_is_told_so(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("needs root, to be somebody else")
        host = self.host(more=",mode=0666")
        os.chmod(host.daemon.directory, 0o755)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            visitor = Guest(host.path)
            os.write(writer, visitor.told_why().encode())
            os._exit(0)
        os.close(writer)
        self.assertIn("user 65534 may not attach here", os.read(reader, 1000).decode())
        os.close(reader)
        os.waitpid(child, 0)

    def test_blockers_are_shown_and_refuse(self) -> None:
        host = self.host()
        guest = self.machine(host, g.RUNNING)
        numbers = [struct.unpack(">I", guest.ask(g.ADD_BLOCKER, g.text(f"reason {i}"))[0])[0] for i in range(2)]
        self.assertEqual(host.ask("query-migrate")["blocked-reasons"], ["reason 0", "reason 1"])
        self.assertEqual(host.client.ask("migrate", {"uri": host.uri}), generic("reason 1"))
        guest.ask(g.DELETE_BLOCKER, struct.pack(">I", numbers[1]))
        self.assertEqual(host.client.ask("migrate", {"uri": host.uri}), generic("reason 0"))
        self.assertIn("no blocker", guest.refusal(g.DELETE_BLOCKER, struct.pack(">I", numbers[1])))
        guest.ask(g.DELETE_BLOCKER, struct.pack(">I", numbers[0]))
        self.assertNotIn("blocked-reasons", host.ask("query-migrate"))

    def test_an_unmigratable_device_forbids_both_directions(self) -> None:
        one, _, two, _ = self.pair(unmigratable=True)
        text = "State blocked by non-migratable device 'ledger'"
        self.assertEqual(one.client.ask("migrate", {"uri": one.uri}), generic(text))
        self.assertEqual(one.ask("query-migrate")["blocked-reasons"], ["non-migratable device: ledger"])
        three = self.host()
        self.machine(three, g.RUNNING)
        three.ask("migrate", {"uri": two.listen()})
        three.migration("failed")
        self.assertIn(text, two.migration("failed")["error-desc"])


class Moving(HostTest):
    def move(self, tracking: int, state: int = g.RUNNING) -> None:
        one, source, two, target = self.pair(state, tracking=tracking)
        one.ask("migrate", {"uri": two.listen()})
        one.migration("completed")
        two.migration("completed")
        self.assertEqual(source.wait_outcome(g.LEFT), "migrated")
        target.wait_outcome(g.ARRIVED)
        if state == g.RUNNING:
            target.wait_asked(g.START)
            self.assertEqual(two.status(), "running")
            two.ask("stop")
        self.assertEqual(two.status(), "paused")
        self.assertEqual(one.status(), "postmigrate")
        self.assertFalse(source.runs.is_set())
        self.assertGreaterEqual(target.prove(), 2048 // 3)
        self.assertGreaterEqual(target.count, source.count)

    def test_running_under_write_protection(self) -> None:
        self.move(g.PROTECT)

    def test_running_with_a_shared_bitmap(self) -> None:
        self.move(g.BITMAP)

    def test_running_with_both(self) -> None:
        self.move(g.BOTH)

    def test_paused_without_tracking(self) -> None:
        self.move(g.NONE, g.PAUSED)

    def test_running_without_tracking_is_refused(self) -> None:
        host = self.host()
        self.machine(host, g.RUNNING, tracking=g.NONE)
        answer = host.client.ask("migrate", {"uri": host.uri})
        self.assertIn("nobody sees the writes to block 'ram'", answer["error"]["desc"])

    def test_back_and_forth(self) -> None:
        """The guest that was left attaches again, empty, and takes its machine back."""
        one, source, two, target = self.pair()
        one.ask("migrate", {"uri": two.listen()})
        one.migration("completed")
        target.wait_asked(g.START)
        source.end()
        one.no_guest()
        back = self.machine(one, g.EMPTY)
        two.ask("migrate", {"uri": one.listen()})
        two.migration("completed")
        back.wait_asked(g.START)
        one.ask("stop")
        back.prove()

    def test_incoming_of_the_command_line_begins_with_the_empty_guest(self) -> None:
        folder = tempfile.mkdtemp(prefix="migrationd-attached-")
        two = self.host("--incoming", f"unix:{folder}/in.sock")
        self.assertEqual(two.ask("query-migrate"), {})
        target = self.machine(two, g.EMPTY)
        two.migration("setup", "active")
        one = self.host()
        self.machine(one, g.RUNNING)
        one.ask("migrate", {"uri": f"unix:{folder}/in.sock"})
        one.migration("completed")
        target.wait_asked(g.START)
        two.ask("stop")
        target.prove()
        os.rmdir(folder) if not os.listdir(folder) else None

    def test_memory_given_back_is_zero_there(self) -> None:
        one, source, two, target = self.pair(g.PAUSED, tracking=g.BITMAP)
        one.switch("pause-before-switchover")
        one.ask("migrate", {"uri": two.listen()})
        one.migration("pre-switchover")
        # Sent already; a bitmap does not see it go.
        g.libc.fallocate(source.block.fd, 3, g.ctypes.c_long(0), g.ctypes.c_long(6 * g.PAGE))
        for page in range(6):
            source.ledger.pop(page, None)
        source.put(g.GIVEN_BACK, 0, struct.pack(">IQQ", 0, 0, 6 * g.PAGE))
        self.assertIn("in progress", source.refusal(g.ADD_BLOCKER, g.text("later")))  # and it was read before this
        one.ask("migrate-continue", {"state": "pre-switchover"})
        one.migration("completed")
        target.wait_outcome(g.ARRIVED)
        target.prove()

    def test_a_cancelled_migration_leaves_the_guest_as_it_was(self) -> None:
        one, source, two, _ = self.pair()
        one.switch("pause-before-switchover")
        one.ask("migrate", {"uri": two.listen()})
        one.migration("pre-switchover")
        source.wait_asked(g.STOP)
        one.ask("migrate_cancel")
        one.migration("cancelled")
        source.wait_outcome(g.STAYS)
        source.wait_asked(g.START)
        self.assertEqual(one.status(), "running")
        two.migration("failed")
        self.assertEqual(source.kept, {})

    def test_by_postcopy(self) -> None:
        one, two = self.host(), self.host()
        source, target = self.machine(one, g.RUNNING), self.remote(two, g.EMPTY)
        for host in (one, two):
            host.switch("postcopy-ram")
        one.ask("migrate-set-parameters", {"max-bandwidth": 1 << 20})
        one.ask("migrate", {"uri": two.listen()})
        one.migration("active")
        one.ask("migrate-start-postcopy")
        one.migration("completed")
        two.migration("completed")
        source.wait_outcome(g.LEFT)
        target.call("wait_asked", g.START)
        target.call("wait_asked", g.UNWATCH, 2)  # the look at ADVISE, and the postcopy's own
        two.ask("stop")
        self.assertGreaterEqual(target.call("prove"), 2048 // 3)
        self.assertEqual(target.call("watches"), 0)

    def test_a_postcopy_is_recovered(self) -> None:
        one, two = self.host(), self.host()
        source, target = self.machine(one, g.RUNNING, pages=8192), self.remote(two, g.EMPTY, pages=8192)
        for host in (one, two):
            host.switch("postcopy-ram")
        one.ask("migrate-set-parameters", {"max-bandwidth": 1 << 20, "max-postcopy-bandwidth": 1 << 20})
        one.ask("migrate", {"uri": two.listen()})
        one.migration("active")
        one.ask("migrate-start-postcopy")
        one.migration("postcopy-active")
        two.wait_for(lambda: two.status() == "running")
        one.ask("migrate-pause")
        one.migration("postcopy-paused")
        two.migration("postcopy-paused")
        two.ask("migrate-recover", {"uri": f"unix:{two.daemon.directory}/again.sock"})
        one.ask("migrate-set-parameters", {"max-postcopy-bandwidth": 0})
        one.ask("migrate", {"uri": f"unix:{two.daemon.directory}/again.sock", "resume": True})
        one.migration("completed")
        two.migration("completed")
        two.ask("stop")
        target.call("prove")
        source.wait_outcome(g.LEFT)


if __name__ == "__main__":
    unittest.main()
