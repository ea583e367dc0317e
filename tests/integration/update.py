# SPDX-License-Identifier: Apache-2.0
"""A daemon replaced by a new process while it holds a machine (__org.migrationd_update, migrationctl update)."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest
from typing import Any

import guest_lib as g
from attached_lib import Host, HostTest
from qmp_lib import Client, Daemon
from update_lib import Line, STEPS, WAIT, alive, failing_program, successors

PROGRAM = os.environ.get("MIGRATIONCTL", "build/tools/migrationctl/migrationctl")
UPDATE = "__org.migrationd_update"
MACHINE = "__org.migrationd_query-machine"
VERIFY = "__org.migrationd_verify-machine"


class UpdateTest(unittest.TestCase):
    def setUp(self) -> None:
        self.lines: list[Line] = []
        self.folder = tempfile.mkdtemp(prefix="migrationd-update-")

    def tearDown(self) -> None:
        for line in self.lines:
            line.end()
            line.first.end()
        os.environ.pop("UPDATE_STEP", None)
        os.environ.pop("UPDATE_HANG", None)
        subprocess.run(["rm", "-rf", self.folder], check=False)

    def daemon(self, *options: str) -> Line:
        self.lines.append(Line(Daemon(*options).wait_for_socket()))
        return self.lines[-1]

    def ask(self, line: Line, command: str, arguments: dict | None = None) -> Any:
        client = line.first.ready()
        answer = client.ask(command, arguments)
        client.close()
        self.assertIn("return", answer, line.first.output())
        return answer["return"]

    def until(self, what: str, condition: Any) -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"waited in vain for {what}")
            time.sleep(0.005)

    def replaced(self, line: Line, **arguments: Any) -> dict:
        before = line.pid
        answer = line.update(**arguments)
        self.assertIn("return", answer, line.first.output())
        self.assertNotEqual(line.pid, before)
        return answer["return"]


class Holding(UpdateTest):
    def test_a_running_synthetic_machine_goes_on_and_its_memory_is_what_it_wrote(self) -> None:
        line = self.daemon("--machine", "synthetic,ram=32M,dirty-rate=64M,threads=2", "--name", "box",
                           "--uuid", "12345678-9abc-def0-1234-56789abcdef0")
        first = self.ask(line, VERIFY)
        for _ in range(3):
            self.assertEqual(self.replaced(line)["machine"], "synthetic")
            self.assertEqual(self.ask(line, "query-status")["status"], "running")
        found = self.ask(line, VERIFY)
        self.assertEqual(found["handovers"], 3)
        self.assertGreater(found["writes"], first["writes"])
        self.assertEqual(self.ask(line, "query-name"), {"name": "box"})
        self.assertEqual(self.ask(line, "query-uuid")["UUID"], "12345678-9abc-def0-1234-56789abcdef0")

    def test_a_machine_that_rests_goes_on_resting(self) -> None:
        line = self.daemon("--machine", "synthetic,ram=16M")
        self.ask(line, "stop")
        self.replaced(line)
        self.assertEqual(self.ask(line, "query-status")["status"], "paused")
        self.ask(line, VERIFY)
        self.ask(line, "cont")
        self.assertEqual(self.ask(line, "query-status")["status"], "running")

    def test_what_was_set_and_the_sockets_path_survive(self) -> None:
        line = self.daemon("--machine", "synthetic,ram=16M")
        switched = [{"capability": name, "state": True} for name in ("events", "postcopy-ram", "xbzrle")]
        self.ask(line, "migrate-set-capabilities", {"capabilities": switched})
        self.ask(line, "migrate-set-parameters", {"downtime-limit": 77, "max-bandwidth": 12345678,
                                                  "mode": "normal", "tls-hostname": "räksmörgås"})
        before = [self.ask(line, "query-migrate-capabilities"), self.ask(line, "query-migrate-parameters")]
        self.replaced(line)
        self.assertEqual([self.ask(line, "query-migrate-capabilities"), self.ask(line, "query-migrate-parameters")], before)
        line.end()
        self.assertFalse(os.path.exists(line.first.path), "nobody removed the control socket's path")

    def test_a_daemon_without_a_machine_is_replaced_too(self) -> None:
        line = self.daemon("--incoming", "defer")
        self.assertEqual(self.replaced(line)["machine"], "none")
        self.assertEqual(self.replaced(line)["machine"], "none")
        self.assertEqual(self.ask(line, "query-status")["status"], "inmigrate")
        self.ask(line, "migrate-incoming", {"uri": f"unix:{self.folder}/s"})

    def test_a_parked_machine_stays_byte_for_byte(self) -> None:
        source = self.daemon("--machine", "synthetic,ram=16M,touched=16M")
        saved, again = os.path.join(self.folder, "saved"), os.path.join(self.folder, "again")
        self.save(source, saved)
        line = self.daemon("--incoming", f"file:{saved}")
        self.until("the machine", lambda: self.ask(line, "query-migrate").get("status") == "completed")
        before = self.ask(line, MACHINE)
        for _ in range(2):
            self.assertEqual(self.replaced(line)["machine"], "parked")
        self.assertEqual(self.ask(line, MACHINE), before)
        self.save(line, again)
        proof = self.daemon("--machine", "synthetic,ram=16M", "--incoming", f"file:{again}")
        self.until("the machine", lambda: self.ask(proof, "query-migrate").get("status") == "completed")
        self.ask(proof, VERIFY)

    def save(self, line: Line, path: str) -> None:
        self.ask(line, "migrate", {"uri": f"file:{path}"})
        self.until("the file", lambda: self.ask(line, "query-migrate").get("status") == "completed")

    def test_no_client_is_turned_away_and_no_descriptor_is_left(self) -> None:
        line = self.daemon("--machine", "synthetic,ram=16M,dirty-rate=1M")
        self.replaced(line)
        before = line.descriptors()
        faults: list[str] = []
        end = threading.Event()

        def connect_again_and_again() -> None:
            while not end.is_set():
                try:
                    client = Client(line.first.path)
                except OSError as error:
                    faults.append(f"connect: {error}")
                    return
                try:
                    client.negotiate()
                    client.ask("query-status")
                except (AssertionError, OSError):
                    pass  # it was with the old daemon, which is gone: connected again
                client.close()

        threads = [threading.Thread(target=connect_again_and_again) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            self.replaced(line)
        end.set()
        for thread in threads:
            thread.join(WAIT)
        self.assertEqual(faults, [])
        self.until("the clients' ends", lambda: line.descriptors() <= before)

    def test_what_is_said_during_an_update_is_heard_or_the_connection_ends(self) -> None:
        line = self.daemon("--machine", "synthetic,ram=16M")
        other, asks = line.first.ready(), line.first.ready()
        asks.send({"execute": UPDATE})
        other.send({"execute": "query-status"})
        answer = asks.reply()
        self.assertIn("return", answer)
        said = other.line()
        while b'"event"' in said:  # STOP, of a machine that stands still for it
            said = other.line()
        self.assertTrue(said == b"" or b'"return"' in said, said)
        line.wait_for_end(line.pid)
        line.pid = answer["return"]["pid"]

    def test_a_command_waits_for_the_end_of_an_update_that_fails(self) -> None:
        os.environ.update(UPDATE_STEP="started", UPDATE_HANG="1")
        line = self.daemon("--machine", "synthetic,ram=16M")
        one, two = line.first.ready(), line.first.ready()
        one.send({"execute": UPDATE, "arguments": {"binary": failing_program(self.folder), "timeout": 300}})
        two.send({"execute": "query-status"})
        self.assertIn("did not take over within 300 ms", one.reply()["error"]["desc"])
        self.assertIn("return", two.reply())


class Attached(HostTest):
    def setUp(self) -> None:
        super().setUp()
        self.lines: list[Line] = []

    def tearDown(self) -> None:
        for line in self.lines:
            line.end()
        super().tearDown()

    def line(self, host: Host) -> Line:
        self.lines.append(Line(host.daemon))
        return self.lines[-1]

    def replaced(self, host: Host, line: Line, **arguments: Any) -> dict:
        answer = line.update(**arguments)
        self.assertIn("return", answer, host.daemon.output())
        host.client = host.daemon.ready()
        return answer["return"]

    def test_the_guest_notices_nothing_and_obeys_the_new_daemon(self) -> None:
        host = self.host()
        guest = self.machine(host, g.RUNNING, tracking=g.BOTH)
        line = self.line(host)
        guest.ask(g.ADD_BLOCKER, g.text("not now"))
        host.ask("stop")
        host.ask("cont")
        guest.wait_asked(g.START)
        asked = list(guest.asked)
        before = self.shape(host)
        for _ in range(3):
            self.assertEqual(self.replaced(host, line)["machine"], "attached")
        self.assertEqual((guest.asked, guest.outcomes, guest.over), (asked, [], False))
        self.assertEqual(self.shape(host), before)
        self.assertEqual(host.status(), "running")
        self.assertEqual(host.ask("query-migrate")["blocked-reasons"], ["not now"])
        self.assertEqual(struct.unpack(">I", guest.ask(g.ADD_BLOCKER, g.text("nor then"))[0])[0], 2)
        for number in (1, 2):
            guest.ask(g.DELETE_BLOCKER, struct.pack(">I", number))
        host.ask("stop")
        guest.wait_asked(g.STOP, 2)
        self.assertEqual((host.status(), guest.rests.is_set()), ("paused", True))

    def shape(self, host: Host) -> dict:
        """The machine, but for the pages that its guest touches meanwhile."""
        info = host.ask(MACHINE)
        for block in info["blocks"]:
            del block["allocated"]
        return info

    def test_a_guest_is_migrated_by_the_new_daemon(self) -> None:
        one, source, two, target = self.pair()
        self.replaced(one, self.line(one))
        one.ask("migrate", {"uri": two.listen()})
        one.migration("completed")
        two.migration("completed")
        target.wait_outcome(g.ARRIVED)
        self.assertEqual(two.status(), "running")
        target.stop(b"", [])
        self.assertGreater(target.prove(), 600)
        self.assertEqual(source.wait_outcome(g.LEFT), "migrated")

    def test_what_the_guest_says_during_an_update_is_answered(self) -> None:
        host = self.host()
        guest = self.machine(host, g.RUNNING)
        line = self.line(host)
        end, answered = threading.Event(), []

        def talk() -> None:
            while not end.is_set():
                try:
                    (number,) = struct.unpack(">I", guest.ask(g.ADD_BLOCKER, g.text("a moment"))[0])
                    guest.ask(g.DELETE_BLOCKER, struct.pack(">I", number))
                    answered.append(number)
                except g.Refused as why:
                    if "in progress" not in str(why):
                        raise

        thread = threading.Thread(target=talk)
        thread.start()
        for _ in range(5):
            self.replaced(host, line)
            count = len(answered)
            host.wait_for(lambda at=count: len(answered) > at or not thread.is_alive())
        end.set()
        thread.join(WAIT)
        self.assertFalse(guest.over)
        self.assertEqual(sorted(set(answered)), answered, "numbers of blockers came twice")
        self.assertNotIn("blocked-reasons", host.ask("query-migrate"))

    def test_a_guest_that_hangs_stays_where_it_is(self) -> None:
        host = self.host(deadline=200)
        guest = self.machine(host, g.RUNNING)
        line = self.line(host)
        guest.hooks[g.STOP] = lambda _b, _f: g.HANG
        self.assertIn("hangs", host.client.ask("stop")["error"]["desc"])
        answer = line.update()
        self.assertIn("the guest hangs", answer["error"]["desc"])
        self.assertTrue(alive(line.pid))
        self.assertFalse(guest.over)

    def test_a_guest_that_comes_during_an_update_is_let_in_by_the_new_daemon(self) -> None:
        host = self.host()
        line = self.line(host)
        self.assertEqual(self.replaced(host, line)["machine"], "none")
        guest = self.machine(host, g.RUNNING)
        self.assertEqual(host.status(), "running")
        self.replaced(host, line)
        guest.ask(g.DETACH)
        guest.wait_over()
        host.no_guest()
        self.machine(host, g.PAUSED)
        self.assertEqual(host.status(), "paused")

    def test_by_hand_a_guest_is_handed_to_nobody(self) -> None:
        """A cpr-transfer that is no update: whoever listens would get the guest's connection, and serve nobody."""
        host = self.host()
        guest = self.machine(host, g.RUNNING)
        host.ask("migrate-set-parameters", {"mode": "cpr-transfer"})
        channels = [{"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": "/nonexistent/x"}}
                    for kind in ("main", "cpr")]
        answer = host.client.ask("migrate", {"channels": channels})
        self.assertIn("'migrationctl update' gives it another daemon", answer["error"]["desc"])
        self.assertEqual((host.status(), guest.outcomes, guest.over), ("running", [], False))
        self.assertEqual(self.replaced(host, self.line(host))["machine"], "attached")
        self.assertEqual((guest.outcomes, guest.over), ([], False))

    def test_an_empty_guest_is_refused(self) -> None:
        host = self.host()
        self.machine(host, g.EMPTY)
        answer = self.line(host).update()
        self.assertIn("The guest is empty and waits", answer["error"]["desc"])

    def test_twenty_updates_leave_no_descriptor(self) -> None:
        host = self.host()
        guest = self.machine(host, g.RUNNING, tracking=g.BOTH)
        line = self.line(host)
        self.replaced(host, line)
        before = line.descriptors()
        for _ in range(20):
            self.replaced(host, line)
        host.wait_for(lambda: line.descriptors() <= before)
        self.assertFalse(guest.over)


class Failing(HostTest):
    """Whatever becomes of the new daemon before the switch: the old one goes on, and the guest notices nothing."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = tempfile.mkdtemp(prefix="migrationd-update-")

    def tearDown(self) -> None:
        os.environ.pop("UPDATE_STEP", None)
        os.environ.pop("UPDATE_HANG", None)
        super().tearDown()
        subprocess.run(["rm", "-rf", self.folder], check=False)

    def check_old_daemon(self, host: Host, guest: g.Machine, line: Line) -> None:
        self.assertTrue(alive(line.pid), host.daemon.output())
        self.assertEqual(host.status(), "running")
        self.assertEqual((guest.outcomes, guest.over), ([], False))
        self.assertEqual(successors(line), [])
        stops = guest.asked.count(g.STOP)
        host.ask("stop")
        guest.wait_asked(g.STOP, stops + 1)
        host.ask("cont")

    def test_a_new_daemon_that_ends_at_any_step(self) -> None:
        program = failing_program(self.folder)
        for step in STEPS:
            with self.subTest(step):
                os.environ["UPDATE_STEP"] = step
                host = self.host()
                guest = self.machine(host, g.RUNNING)
                line = Line(host.daemon)
                before = line.descriptors()
                error = line.update(binary=program)["error"]["desc"]
                self.assertTrue(error.startswith("update: "), error)
                self.check_old_daemon(host, guest, line)
                host.wait_for(lambda: line.descriptors() <= before)
                # And once more, to the real one.
                del os.environ["UPDATE_STEP"]
                self.assertIn("return", line.update(), host.daemon.output())
                line.end()
                guest.wait_over()

    def test_a_new_daemon_that_hangs_at_any_step_is_ended_in_time(self) -> None:
        program = failing_program(self.folder)
        for step in STEPS[:6]:
            with self.subTest(step):
                os.environ.update(UPDATE_STEP=step, UPDATE_HANG="1")
                host = self.host()
                guest = self.machine(host, g.RUNNING)
                line = Line(host.daemon)
                error = line.update(binary=program, timeout=700)["error"]["desc"]
                self.assertIn("did not take over within 700 ms", error)
                self.check_old_daemon(host, guest, line)

    def test_a_program_that_cannot_be_started(self) -> None:
        host = self.host()
        guest = self.machine(host, g.RUNNING)
        line = Line(host.daemon)
        no_program = os.path.join(self.folder, "text")
        with open(no_program, "w", encoding="utf-8") as file:
            file.write("no program")
        os.chmod(no_program, 0o755)
        for binary, why in (("/nonexistent/migrationd", "start '/nonexistent/migrationd'"), ("relative", "no absolute path"),
                            (no_program, "start '"), ("/bin/false", "it ended by itself")):
            with self.subTest(binary):
                self.assertIn(why, line.update(binary=binary)["error"]["desc"])
                self.check_old_daemon(host, guest, line)

    def test_the_real_new_daemon_killed_at_any_moment(self) -> None:
        host = self.host()
        guest = self.machine(host, g.RUNNING)
        line = Line(host.daemon)
        for attempt in range(8):
            client = host.daemon.ready()
            client.send({"execute": UPDATE})
            host.wait_for(lambda: successors(line) or not alive(line.pid))
            time.sleep(attempt * 0.004)
            killed = successors(line)
            for child in killed:
                os.kill(child, signal.SIGKILL)
            said = client.line()
            while b'"event"' in said:
                said = client.line()
            client.close()
            if b'"return"' in said:
                # It was too late: the new one had taken over. If it was killed then, the guest is alone.
                line.pid = json.loads(said)["return"]["pid"]
                if line.pid in killed:
                    guest.wait_over()
                    return
                host.client = host.daemon.ready()
                continue
            self.assertIn(b"update: ", said)
            self.check_old_daemon(host, guest, line)
        line.end()

    def test_only_the_own_program_replaces_a_daemon_that_runs_no_commands(self) -> None:
        host = self.host("--allow-exec=off")
        line = Line(host.daemon)
        self.assertIn("only the program", line.update(binary="/bin/true")["error"]["desc"])
        self.assertIn("return", line.update())
        line.end()


class Tool(UpdateTest):
    def run_tool(self, line: Line, *words: str) -> tuple[int, str, str]:
        done = subprocess.run([PROGRAM, "--socket", line.first.path, *words], capture_output=True, text=True, timeout=WAIT,
                              check=False)
        return done.returncode, done.stdout, done.stderr

    def test_an_update_is_told_and_a_failed_one_has_a_status_of_its_own(self) -> None:
        line = self.daemon("--machine", "synthetic,ram=16M")
        status, out, err = self.run_tool(line, "--json", "update")
        self.assertEqual((status, err), (0, ""), line.first.output())
        told = json.loads(out)
        line.wait_for_end(line.pid)
        line.pid = told["pid"]
        self.assertEqual((told["machine"], told["status"], told["from"]), ("synthetic", "running", told["to"]))
        status, out, err = self.run_tool(line, "update", "--binary", "/bin/false")
        self.assertEqual((status, out), (4, ""))
        self.assertIn("the daemon from before goes on", err)
        status, out, err = self.run_tool(line, "update", "--timeout", "20")
        self.assertEqual((status, err), (0, ""), line.first.output())
        self.assertIn("machine    synthetic, running\n", out)
        with socket.socket(socket.AF_UNIX) as probe:
            self.assertEqual(probe.connect_ex(line.first.path), 0)
        # Its number is in the text too; the next process is asked for it.
        line.pid = int(out.split("process ")[1].split()[0])


if __name__ == "__main__":
    unittest.main()
