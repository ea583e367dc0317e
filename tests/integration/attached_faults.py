# SPDX-License-Identifier: Apache-2.0
"""Guests that lie, hang, flood and die (guest_lib.py), against daemons with --machine attached."""

from __future__ import annotations

import fcntl
import os
import struct
import time
import unittest
from typing import Any

import guest_lib as g
from attached_lib import Host, HostTest
from guest_lib import Guest
from qmp_lib import WAIT

# Milliseconds for a guest that hangs. All else it is asked must be answered within them, by a Python beside other tests.
SHORT = 2000


class Liars(HostTest):
    """Guests that register what cannot be, and what becomes of them: the daemon goes on."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.shared = Host()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.shared.end()

    def tearDown(self) -> None:
        super().tearDown()
        self.shared.no_guest()
        guest = self.greeted()  # and the next one is let in
        guest.close()

    def connected(self) -> Guest:
        # The place of the one before is free a moment after it closed.
        deadline = time.monotonic() + WAIT
        while True:
            guest = self.visitor(self.shared)
            try:
                guest.put(g.HELLO, 1, g.hello())
                kind, _, body, _ = guest.take()
            except g.Gone:
                kind, body = g.REFUSAL, b"  another guest is attached"
            if kind == g.REPLY | g.HELLO:
                guest.serial = 1
                return guest
            self.assertTrue(self.taken(body.decode(errors="replace")), body)
            guest.close()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    greeted = connected

    @staticmethod
    def taken(why: str) -> bool:
        """The place is not free yet: the guest before is there, or the daemon is about to hear that it is not."""
        return "another guest is attached" in why or "the guest before" in why

    def refused_block(self, name: str, fds: list[int], length: int, address: int = 1 << 32, page: int = g.PAGE,
                      tracking: int = g.PROTECT) -> str:
        guest = self.connected()
        body = g.text(name) + struct.pack(">QQIB", address, length, page, tracking)
        try:
            return guest.refusal(g.ADD_BLOCK, body, fds)
        finally:
            guest.close()

    def test_memory_that_cannot_be_taken(self) -> None:
        cases = [
            ("not sealed against shrinking", [g.memfd(g.PAGE, 0)], g.PAGE, {}),
            ("has 4096 bytes, not 8192", [g.memfd(g.PAGE)], 2 * g.PAGE, {}),
            ("has 8192 bytes, not 4096", [g.memfd(2 * g.PAGE)], g.PAGE, {}),
            ("pages of 4096 bytes, not of 2097152", [g.memfd(1 << 21)], 1 << 21, {"page": 1 << 21}),
            ("Operation not permitted", [g.memfd(g.PAGE, g.SHRINK | g.WRITE)], g.PAGE, {}),
            ("no memfd", [os.open("/dev/zero", os.O_RDWR)], g.PAGE, {}),
            ("no memfd", [os.open("/", os.O_RDONLY)], g.PAGE, {}),
            ("no memfd", [os.pipe()[0]], g.PAGE, {}),
            ("is above", [g.memfd(g.PAGE)], 1 << 60, {}),
            ("length", [g.memfd(g.PAGE)], 0, {}),
            ("length", [g.memfd(g.PAGE)], 100, {}),
            ("page size", [g.memfd(g.PAGE)], g.PAGE, {"page": 8192}),
            ("aligned", [g.memfd(g.PAGE)], g.PAGE, {"address": 4097}),
            ("wrap around", [g.memfd(2 * g.PAGE)], 2 * g.PAGE, {"address": (1 << 64) - g.PAGE}),
            ("name", [g.memfd(g.PAGE)], g.PAGE, {"name": "a\nb"}),
            ("name", [g.memfd(g.PAGE)], g.PAGE, {"name": ""}),
            ("descriptors", [g.memfd(g.PAGE)], g.PAGE, {"tracking": g.BITMAP}),
            ("descriptors", [g.memfd(g.PAGE), g.memfd(g.PAGE)], g.PAGE, {}),
            ("bitmap: the memfd has 1 bytes, 2 are needed", [g.memfd(9 * g.PAGE), g.memfd(1)], 9 * g.PAGE,
             {"tracking": g.BITMAP}),
            ("bitmap: the memfd is not sealed", [g.memfd(g.PAGE), g.memfd(g.PAGE, 0)], g.PAGE, {"tracking": g.BOTH}),
            ("0x9 is none of", [g.memfd(g.PAGE)], g.PAGE, {"tracking": 9}),
        ]
        for why, fds, length, more in cases:
            with self.subTest(why):
                more = dict(more)
                name = more.pop("name", "ram")
                said = self.refused_block(name, fds, length, **more)
                if why != "0x9 is none of" and why != "is above":
                    self.assertIn(why, said)
            for fd in fds:
                os.close(fd)

    def test_blocks_that_lie_one_over_the_other(self) -> None:
        guest = self.connected()
        one, two = g.Block("one", 4 * g.PAGE, g.PROTECT), g.Block("two", 4 * g.PAGE, g.PROTECT)
        guest.ask(g.ADD_BLOCK, one.message(), one.fds)
        two.address = one.address + g.PAGE
        self.assertIn("overlap with those of block 'one'", guest.refusal(g.ADD_BLOCK, two.message(), two.fds))
        two.address = one.address + (1 << 30)
        self.assertIn("that of another block", guest.refusal(g.ADD_BLOCK, two.message(), one.fds))
        two.name = "one"
        self.assertIn("two of that name", guest.refusal(g.ADD_BLOCK, two.message(), two.fds))
        two.name = "two"
        guest.ask(g.ADD_BLOCK, two.message(), two.fds)

    def test_a_thousand_blocks(self) -> None:
        guest = self.connected()
        for number in range(256):
            fd = g.memfd(g.PAGE)
            body = g.text(f"b{number}") + struct.pack(">QQIB", (1 << 32) + number * g.PAGE, g.PAGE, g.PAGE, g.PROTECT)
            guest.ask(g.ADD_BLOCK, body, [fd])
            os.close(fd)
        fd = g.memfd(g.PAGE)
        body = g.text("more") + struct.pack(">QQIB", 1 << 40, g.PAGE, g.PAGE, g.PROTECT)
        self.assertIn("more than 256 blocks", guest.refusal(g.ADD_BLOCK, body, [fd]))
        os.close(fd)

    def test_a_terabyte_costs_nothing_until_it_is_moved(self) -> None:
        if self.shared.daemon.is_sanitized():
            self.skipTest("a sanitizer's memory hides what the daemon takes")
        guest = self.connected()
        fd = g.memfd(1 << 40)
        before = self.resident()
        guest.ask(g.ADD_BLOCK, g.text("vast") + struct.pack(">QQIB", 1 << 44, 1 << 40, g.PAGE, g.PROTECT), [fd])
        guest.ask(g.READY, bytes([g.PAUSED]) + bytes(16))
        self.assertLess(self.resident(), before + (8 << 20))  # one bit per page would be 32 MiB
        os.close(fd)

    def resident(self) -> int:
        with open(f"/proc/{self.shared.daemon.process.pid}/status", encoding="utf-8") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))

    def test_blocks_made_here(self) -> None:
        guest = self.connected()
        _, fds = guest.ask(g.NEW_BLOCK, g.text("ram") + struct.pack(">QI", 8 * g.PAGE, g.PAGE))
        self.assertEqual(os.fstat(fds[0]).st_size, 8 * g.PAGE)
        self.assertRaises(OSError, os.ftruncate, fds[0], g.PAGE)
        self.assertTrue(fcntl.fcntl(fds[0], 1034) & g.SHRINK)
        guest.ask(g.ADD_BLOCK, g.text("ram") + struct.pack(">QQIB", 1 << 32, 8 * g.PAGE, g.PAGE, g.PROTECT), fds)
        os.close(fds[0])

    def test_devices_that_cannot_be(self) -> None:
        guest = self.connected()
        device = struct.pack(">IIIB", 0, 1, 1, 0)
        guest.ask(g.ADD_DEVICE, g.text("disk") + device)
        self.assertIn("there already", guest.refusal(g.ADD_DEVICE, g.text("disk") + device))
        self.assertIn("taken by the stream", guest.refusal(g.ADD_DEVICE, g.text("globalstate") + device))
        self.assertIn("without memory", guest.refusal(g.READY, bytes(17)))

    def test_other_versions(self) -> None:
        guest = self.connected()
        guest.close()
        deadline = time.monotonic() + WAIT
        while True:
            other = self.visitor(self.shared)
            try:
                why = other.refusal(g.HELLO, g.hello(lowest=2, highest=7))
            except g.Gone:
                why = "another guest is attached"
            other.close()
            if not self.taken(why):
                break
            assert time.monotonic() < deadline
        self.assertIn("speaks version 1 of the guest protocol, the guest 2 to 7", why)

    def test_what_breaks_the_protocol_ends_the_connection(self) -> None:
        block = g.Block("ram", g.PAGE, g.PROTECT)
        cases = [
            ("HELLO twice", g.HELLO, 9, g.hello(), []),
            ("a reply nobody waits for", g.REPLY | g.STOP, 5, b"", []),
            ("type 0x77 is unknown", 0x77, 5, b"", []),
            ("bytes too many", g.ADD_DEVICE, 5, g.text("d") + struct.pack(">IIIB", 0, 1, 1, 0) + b"x", []),
            ("ADD_DEVICE", g.ADD_DEVICE, 5, b"\xff\xff", []),
            ("serial", g.ADD_DEVICE, 0, b"", []),
            ("GIVEN_BACK before READY", g.GIVEN_BACK, 0, struct.pack(">IQQ", 0, 0, g.PAGE), []),
            ("descriptors", g.ADD_DEVICE, 5, b"", [block.fd]),
            ("descriptors", g.ADD_BLOCK, 5, block.message(), [block.fd] * 5),
            ("DETACH before READY", g.DETACH, 5, b"", []),
            ("STOP before READY", g.STOP, 5, b"", []),
            ("more than 65536", g.ADD_DEVICE, 5, bytes(70000), []),
        ]
        for why, kind, serial, body, fds in cases:
            with self.subTest(why):
                guest = self.connected()
                guest.put(kind, serial, body, fds)
                said = guest.told_why()
                if why == "a reply nobody waits for":
                    why = "that nobody waits for"
                # A packet that could not even be read has no sender to answer.
                if said:
                    self.assertIn(why, said)
                guest.close()


class Faults(HostTest):
    """Guests that hang, die, lie and flood while a machine of theirs is moved: it stays where it is."""

    def hang(self, kind: int, where: str, say: str, *switches: str) -> None:
        short, long = {"deadline": SHORT}, {"deadline": 20000}
        one = self.host(**short if where == "source" else long)
        two = self.host(**long if where == "source" else short)
        source, target = self.machine(one, g.RUNNING), self.machine(two, g.EMPTY)
        guest, host = (source, one) if where == "source" else (target, two)
        guest.hooks[kind] = lambda _body, _fds: g.HANG
        for each in (one, two):
            each.switch("return-path", *switches)  # so that the source hears of it
        one.ask("migrate", {"uri": two.listen()})
        info = host.migration("failed")
        self.assertIn(say, info.get("error-desc", ""))
        one.migration("failed")
        self.assertEqual(one.status(), "running")
        self.assertTrue(source.runs.is_set())
        source.wait_outcome(g.STAYS)

    def test_a_hang_in_stop(self) -> None:
        self.hang(g.STOP, "source", "no answer to STOP")

    def test_a_hang_in_save(self) -> None:
        one, two = self.host(deadline=SHORT), self.host()
        source = self.machine(one, g.RUNNING)
        self.machine(two, g.EMPTY)
        source.hooks[g.SAVE] = lambda _body, _fds: g.HANG
        one.ask("migrate", {"uri": two.listen()})
        self.assertIn("no answer to SAVE", one.migration("failed")["error-desc"])
        # A guest that hangs cannot be started either; once it answers, all is well again.
        self.assertEqual(one.status(), "paused")
        self.assertIn("has not answered SAVE yet", one.client.ask("cont")["error"]["desc"])
        answer = source.save(b"", [])
        serial = source.last_unanswered(g.SAVE)
        source.put(g.REPLY | g.SAVE, serial, *answer)
        one.wait_for(lambda: "return" in one.client.ask("cont"))
        self.assertEqual(one.status(), "running")

    def test_a_hang_in_watch(self) -> None:
        self.hang(g.WATCH, "source", "no answer to WATCH")

    def test_a_hang_in_load(self) -> None:
        self.hang(g.LOAD, "target", "no answer to LOAD")

    def test_a_hang_in_what_postcopy_asks_for(self) -> None:
        self.hang(g.NO_HUGE_PAGES, "target", "no answer to NO_HUGE_PAGES", "postcopy-ram")
        self.hang(g.UNWATCH, "target", "has not answered UNWATCH yet", "postcopy-ram")

    def test_a_hang_in_start_leaves_the_machine_where_it_arrived(self) -> None:
        one, two = self.host(), self.host(deadline=SHORT)
        source, target = self.machine(one, g.RUNNING), self.machine(two, g.EMPTY)
        target.hooks[g.START] = lambda _body, _fds: g.HANG
        for each in (one, two):
            each.switch("return-path")
        one.ask("migrate", {"uri": two.listen()})
        one.migration("completed")
        two.migration("completed")
        source.wait_outcome(g.LEFT)
        target.wait_outcome(g.ARRIVED)
        self.assertEqual(two.status(), "paused")
        self.assertIn("no answer to START", two.daemon.output())
        target.hooks[g.START] = target.start
        target.put(g.REPLY | g.START, target.last_unanswered(g.START))
        target.wait_asked(g.STOP)  # what came too late is undone
        two.wait_for(lambda: "return" in two.client.ask("cont"))
        self.assertEqual(two.status(), "running")

    def test_no_detaching_while_a_migration_runs(self) -> None:
        one, source, two, _ = self.pair()
        one.switch("pause-before-switchover")
        one.ask("migrate", {"uri": two.listen()})
        one.migration("pre-switchover")
        self.assertIn("migration process in progress", source.refusal(g.DETACH))
        one.ask("migrate_cancel")
        one.migration("cancelled")
        source.wait_asked(g.START)
        source.ask(g.DETACH)
        source.wait_over()
        one.no_guest()

    def test_a_hang_in_the_bitmaps_calls(self) -> None:
        for kind, name in ((g.DIRTY_LOG, "DIRTY_LOG"), (g.DIRTY_SYNC, "DIRTY_SYNC")):
            with self.subTest(name):
                one = self.host(deadline=SHORT)
                source = self.machine(one, g.RUNNING, tracking=g.BITMAP)
                source.hooks[kind] = lambda _body, _fds: g.HANG
                two = self.host()
                self.machine(two, g.EMPTY)
                one.ask("migrate", {"uri": two.listen()})
                self.assertIn(f"no answer to {name}", one.migration("failed")["error-desc"])
                self.assertEqual(one.status(), "running")

    def test_a_stop_that_comes_late_is_undone(self) -> None:
        one = self.host(deadline=SHORT)
        source = self.machine(one, g.RUNNING)
        source.hooks[g.STOP] = lambda body, fds: (source.stop(body, fds), g.HANG)[1]
        self.assertIn("no answer to STOP", one.client.ask("stop")["error"]["desc"])
        self.assertEqual(one.status(), "running")
        self.assertFalse(source.runs.is_set())
        source.hooks[g.STOP] = source.stop
        source.put(g.REPLY | g.STOP, source.last_unanswered(g.STOP))
        source.wait_asked(g.START)
        self.assertTrue(source.runs.is_set())
        one.wait_for(lambda: "return" in one.client.ask("stop"))
        self.assertEqual((one.status(), source.runs.is_set()), ("paused", False))

    def test_a_refusal_is_told(self) -> None:
        one, source, two, _ = self.pair()

        def refuse(_body: bytes, _fds: list[int]) -> Any:
            raise g.Refuse("the disk is\nbusy".replace("\n", " "))

        source.hooks[g.SAVE] = refuse
        one.ask("migrate", {"uri": two.listen()})
        self.assertIn("the guest refuses SAVE: the disk is busy", one.migration("failed")["error-desc"])
        self.assertEqual(one.status(), "running")

    def test_states_that_lie(self) -> None:
        ledger = ("ledger", 0, 3, b"12345678", "")
        described = '"vmsd_name": "x", "version": 3, "fields": [{"name": "a", "type": "buffer", "size": %d}]'
        good = g.state_of([ledger])
        cases: list[tuple[str, Any]] = [
            ("sealed", lambda: (struct.pack(">Q", len(good)), [g.sealed_state(good, 0)])),
            ("sealed", lambda: (struct.pack(">Q", len(good)), [os.open("/dev/zero", os.O_RDONLY)])),
            ("bytes, not", lambda: (struct.pack(">Q", 1 << 20), [g.sealed_state(good)])),
            ("length", lambda: (struct.pack(">Q", 1 << 50), [g.sealed_state(good)])),
            ("bytes too many", lambda: (struct.pack(">Q", len(good) + 1), [g.sealed_state(good + b"x")])),
            ("magic", lambda: (struct.pack(">Q", 20), [g.sealed_state(bytes(20))])),
            ("never registered", lambda: self.state([("other", 0, 3, b"", "")])),
            ("stands there twice", lambda: self.state([ledger, ledger])),
            ("saved as version 4", lambda: self.state([("ledger", 0, 4, b"", "")])),
            ("accounts for 7 of 8", lambda: self.state([(*ledger[:4], described % 7)])),
            ("description", lambda: self.state([(*ledger[:4], described % 9)])),
            ("no JSON", lambda: self.state([(*ledger[:4], "nonsense")])),
            ("no JSON", lambda: self.state([(*ledger[:4], described % 8 + '}, {"name": "evil"')])),
            ("descriptors", lambda: (struct.pack(">Q", len(good)), [])),
        ]
        one = self.host()
        for why, answer in cases:
            with self.subTest(why):
                source = self.machine(one, g.PAUSED)
                source.hooks[g.SAVE] = lambda _b, _f, made=answer: made()
                path = f"{one.daemon.directory}/saved"
                one.ask("migrate", {"uri": f"file:{path}"})
                info = one.migration("failed", "completed")
                self.assertEqual(info["status"], "failed")
                if why != "descriptors":  # that ends the connection
                    self.assertIn(why, info["error-desc"])
                    self.assertEqual(one.status(), "paused")
                source.end()
                one.no_guest()

    def state(self, sections: list) -> tuple[bytes, list[int]]:
        data = g.state_of(sections)
        return struct.pack(">Q", len(data)), [g.sealed_state(data)]

    def test_watch_that_hands_over_something_else(self) -> None:
        one, source, two, _ = self.pair()
        source.hooks[g.WATCH] = lambda _b, _f: (b"", [g.memfd(g.PAGE), os.open("/proc/self/maps", os.O_RDONLY)])
        one.ask("migrate", {"uri": two.listen()})
        self.assertIn("was given for a userfaultfd", one.migration("failed")["error-desc"])
        self.assertEqual(one.status(), "running")

    def test_death_at_every_step(self) -> None:
        for kind in (g.WATCH, g.STOP, g.SAVE, g.LOAD, g.START):
            with self.subTest(kind):
                one, source, two, target = self.pair()
                guest, host = (target, two) if kind in (g.LOAD, g.START) else (source, one)

                def die(_body: bytes, _fds: list[int], dying: Guest = guest) -> Any:
                    dying.socket.shutdown(2)
                    return g.HANG

                guest.hooks[kind] = die
                for each in (one, two):
                    each.switch("return-path")
                one.ask("migrate", {"uri": two.listen()})
                if kind == g.START:
                    two.migration("completed")  # it had arrived
                else:
                    self.assertIn("the guest is gone", host.migration("failed")["error-desc"])
                    one.migration("failed")
                host.no_guest()
                if guest is target and kind == g.LOAD:
                    self.assertEqual(one.status(), "running")
                again = self.machine(host, g.EMPTY)
                again.end()

    def test_a_guest_that_dies_after_its_state_was_saved_takes_nothing_along(self) -> None:
        one, source, two, target = self.pair()

        def save_and_die(body: bytes, fds: list[int]) -> Any:
            source.put(g.REPLY | g.SAVE, source.serving, *source.save(body, fds))
            source.socket.shutdown(2)
            return g.HANG

        source.hooks[g.SAVE] = save_and_die
        one.ask("migrate", {"uri": two.listen()})
        one.migration("completed")
        target.wait_asked(g.START)
        two.ask("stop")
        target.prove()

    def postcopy(self) -> tuple[Host, Any, Host, Any]:
        """In the middle of one: the guest runs at the target, most of its memory is still at the source."""
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
        return one, source, two, target

    def test_a_guest_that_dies_in_its_postcopy_is_lost_and_said_to_be(self) -> None:
        one, source, two, target = self.postcopy()
        target.end()
        self.assertIn("the guest is gone", two.migration("failed")["error-desc"])
        two.no_guest()
        self.machine(two, g.PAUSED)  # the daemon takes another
        one.migration("postcopy-paused")
        self.assertFalse(source.runs.is_set())  # handed over is handed over

    def test_the_guest_that_left_may_die_while_its_memory_is_still_served(self) -> None:
        one, source, _, target = self.postcopy()
        source.end()
        one.wait_for(lambda: "the connection is over" in one.daemon.output())
        one.ask("migrate-set-parameters", {"max-postcopy-bandwidth": 0})
        one.migration("completed")
        one.no_guest()
        self.hosts[1].migration("completed")
        self.hosts[1].ask("stop")
        target.call("prove")

    def test_floods(self) -> None:
        host = self.host()
        guest = self.machine(host, g.RUNNING)
        for _ in range(20000):
            guest.put(g.GIVEN_BACK, 0, struct.pack(">IQQ", 0, 0, 2048 * g.PAGE))
        guest.ask(g.ADD_BLOCKER, g.text("read to its end"))
        for _ in range(63):
            guest.ask(g.ADD_BLOCKER, g.text("one more"))
        self.assertIn("more than 64 blockers", guest.refusal(g.ADD_BLOCKER, g.text("too many")))
        guest.put(g.GIVEN_BACK, 0, struct.pack(">IQQ", 1, 0, g.PAGE))
        guest.wait_over()
        host.no_guest()
        self.assertIn("block 1 does not exist", host.daemon.output())

    def test_one_request_at_a_time(self) -> None:
        host = self.host()
        guest = self.machine(host, g.RUNNING)
        try:
            for serial in range(100, 3000):
                guest.put(g.ADD_BLOCKER, serial, g.text("hurry"))
        except (g.Gone, OSError):
            pass
        guest.wait_over()
        host.no_guest()

    def test_the_guest_goes_on_when_its_daemon_ends(self) -> None:
        host = self.host()
        guest = self.machine(host, g.RUNNING)
        host.daemon.process.kill()
        guest.wait_over()
        before = guest.count
        deadline = time.monotonic() + WAIT
        while guest.count == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


if __name__ == "__main__":
    unittest.main()
