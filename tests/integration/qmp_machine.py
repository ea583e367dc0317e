# SPDX-License-Identifier: Apache-2.0
"""The commands that reach a machine: the order of events and replies, slow commands, and both shapes of failure."""

import os
import tempfile
import time
import unittest

from qmp_lib import Client, DaemonTest, WAIT, generic


class Machine(DaemonTest):
    options = ("--machine", "synthetic,ram=16M", "--name", "box")

    def client_with_events(self) -> Client:
        client = self.client()
        events = {"capability": "events", "state": True}
        self.assertEqual(client.ask("migrate-set-capabilities", {"capabilities": [events]}), {"return": {}})
        return client

    def collect(self, client: Client, until: str) -> list[str]:
        """Short forms of what comes, up to and including `until`."""
        heard: list[str] = []
        while not heard or heard[-1] != until:
            message = client.message()
            data = message.get("data", {})
            if "event" in message:
                heard.append(" ".join([message["event"], *(str(value) for value in data.values())]))
            else:
                heard.append("error: " + message["error"]["desc"] if "error" in message else "reply")
        return heard

    def status(self, client: Client) -> str:
        return client.ask("query-status")["return"]["status"]

    def test_stop_and_cont_say_what_changed(self) -> None:
        client = self.client()
        watcher = self.client()
        for command, event, status in (("stop", "STOP", "paused"), ("cont", "RESUME", "running")):
            client.send({"execute": command})
            first = client.message()
            self.assertEqual(first["event"], event)
            self.assertNotIn("data", first)
            self.assertEqual(set(first["timestamp"]), {"seconds", "microseconds"})
            self.assertLess(abs(first["timestamp"]["seconds"] - time.time()), WAIT)
            self.assertEqual(client.message(), {"return": {}})
            self.assertEqual(watcher.message()["event"], event)
            self.assertEqual(self.status(client), status)
            client.send({"execute": command})
            self.assertEqual(client.message(), {"return": {}})  # nothing changed, no event

    def test_file_that_cannot_be_made_fails_the_command_and_the_migration(self) -> None:
        client = self.client_with_events()
        client.send({"execute": "migrate", "arguments": {"uri": "file:/nonexistent/f"}})
        text = "Could not create '/nonexistent/f': No such file or directory"
        self.assertEqual(self.collect(client, "error: " + text),
                         ["MIGRATION setup", "MIGRATION failed", "error: " + text])
        self.assertEqual(client.ask("query-migrate")["return"], {"status": "failed", "error-desc": text})
        self.assertEqual(self.status(client), "running")

    def test_refused_connection_fails_the_migration_only(self) -> None:
        client = self.client_with_events()
        client.send({"execute": "migrate", "arguments": {"uri": "unix:/nonexistent/s"}})
        self.assertEqual(self.collect(client, "MIGRATION failed"), ["MIGRATION setup", "reply", "MIGRATION failed"])
        self.assertEqual(client.ask("query-migrate")["return"], {
            "status": "failed",
            "error-desc": "Failed to connect to '/nonexistent/s': No such file or directory"})

    def test_transport_is_checked_before_any_state_changes(self) -> None:
        client = self.client_with_events()
        before = client.ask("query-migrate")["return"]
        self.assertEqual(client.ask("migrate", {"uri": "fd:nosuch", "resume": True}),
                         generic("Cannot resume if there is no paused migration"))
        self.assertEqual(client.ask("query-migrate")["return"], before)

    def test_named_descriptor_is_used_up_by_a_migration(self) -> None:
        client = self.client_with_events()
        with tempfile.TemporaryFile() as file:
            file.write(b"header")
            file.flush()
            self.assertEqual(client.ask("getfd", {"fdname": "save"}, fds=[file.fileno()]), {"return": {}})
            client.send({"execute": "migrate", "arguments": {"uri": "fd:save"}})
            heard = self.collect(client, "MIGRATION completed")
            self.assertEqual(heard[:2], ["MIGRATION setup", "reply"])
            self.assertLess(heard.index("STOP"), heard.index("MIGRATION device"))
            file.seek(0)
            self.assertEqual(file.read(10), b"headerQEVM")
        self.assertEqual(client.ask("closefd", {"fdname": "save"}),
                         generic("File descriptor named 'save' not found"))
        self.assertEqual(client.ask("cont"), {"return": {}})

    def test_descriptor_set_is_used_and_kept(self) -> None:
        client = self.client_with_events()
        with tempfile.NamedTemporaryFile() as file:
            both = os.open(file.name, os.O_RDWR)
            self.assertEqual(client.ask("add-fd", {"fdset-id": 7}, fds=[both])["return"]["fdset-id"], 7)
            self.assertEqual(client.ask("migrate", {"uri": "file:/dev/fdset/7,offset=0x1000"}),
                             generic("Failed to find file descriptor with matching flags=0x41"))
            self.assertEqual(client.ask("migrate", {"uri": "file:/dev/fdset/8"}),
                             generic("Failed to find fdset /dev/fdset/8"))
            os.close(both)
            writing = os.open(file.name, os.O_WRONLY)
            client.ask("add-fd", {"fdset-id": 7}, fds=[writing])
            os.close(writing)
            client.send({"execute": "migrate", "arguments": {"uri": "file:/dev/fdset/7,offset=0x1000"}})
            self.collect(client, "MIGRATION completed")
            file.seek(0x1000)
            self.assertEqual(file.read(4), b"QEVM")
        self.assertEqual(len(client.ask("query-fdsets")["return"][0]["fds"]), 2)
        self.assertEqual(client.ask("remove-fd", {"fdset-id": 7}), {"return": {}})
        self.assertEqual(client.ask("query-fdsets"), {"return": []})
        self.assertEqual(client.ask("cont"), {"return": {}})

    def test_verification_holds_only_the_client_that_asked(self) -> None:
        client, other = self.client(), self.client()
        client.send("{'execute':'__org.migrationd_verify-machine','id':1}{'execute':'query-name','id':2}")
        self.assertEqual(other.ask("query-name"), {"return": {"name": "box"}})
        first = client.reply()
        self.assertEqual(first["id"], 1)
        self.assertIn("return", first)
        self.assertEqual(client.reply(), {"return": {"name": "box"}, "id": 2})
        self.assertEqual(self.status(client), "running")

    def test_machine_is_described(self) -> None:
        machine = self.client().ask("__org.migrationd_query-machine")["return"]
        self.assertEqual((machine["kind"], machine["owner"]), ("synthetic", "here"))
        self.assertEqual(machine["ram-total"], sum(block["size"] for block in machine["blocks"]))
        self.assertGreaterEqual(machine["ram-total"], 16 << 20)

    def test_dirty_rate_is_measured(self) -> None:
        client = self.client()
        self.assertEqual(client.ask("calc-dirty-rate", {"calc-time": 100, "calc-time-unit": "millisecond"}),
                         {"return": {}})
        deadline = time.monotonic() + WAIT
        rate: dict = {"status": "measuring"}
        while rate["status"] == "measuring" and time.monotonic() < deadline:
            rate = client.ask("query-dirty-rate", {"calc-time-unit": "millisecond"})["return"]
        self.assertEqual((rate["status"], rate["calc-time"]), ("measured", 100))
        self.assertIn("dirty-rate", rate)


class Blocked(DaemonTest):
    options = ("--machine", "synthetic,ram=16M,blocked=the disk is lent")

    def test_reason_is_shown_and_is_the_error_of_migrate(self) -> None:
        client = self.client()
        shown = {"return": {"blocked-reasons": ["the disk is lent"]}}
        self.assertEqual(client.ask("query-migrate"), shown)
        self.assertEqual(client.ask("migrate", {"uri": "tcp:127.0.0.1:1"}), generic("the disk is lent"))
        self.assertEqual(client.ask("query-migrate"), shown)
        self.assertEqual(client.ask("query-status")["return"]["status"], "running")


if __name__ == "__main__":
    unittest.main(verbosity=2)
