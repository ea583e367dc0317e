# SPDX-License-Identifier: Apache-2.0
"""Several clients, out-of-band execution, limits, and clients that misbehave."""

import os
import resource
import socket
import time
import unittest

from qmp_lib import Daemon, DaemonTest, WAIT, generic

CLIENTS = 64  # limits::qmp_clients


class Clients(DaemonTest):
    def test_clients_have_their_own_negotiation_and_ids(self) -> None:
        first = self.client()
        second = self.daemon.connect()
        second.message()
        self.assertEqual(second.ask("query-name", id=1)["error"]["class"], "CommandNotFound")
        self.assertEqual(first.ask("query-name", id=1)["id"], 1)
        third = self.client(enable=["oob"])
        third.send({"exec-oob": "query-yank", "id": 3})
        self.assertEqual(third.reply(), {"return": [], "id": 3})

    def test_out_of_band_command_overtakes(self) -> None:
        client = self.client(enable=["oob"])
        client.send("".join(f"{{'execute':'query-qmp-schema','id':{i}}}" for i in range(4))
                    + "{'exec-oob':'query-yank','id':'oob'}")
        order = [client.reply()["id"] for _ in range(5)]
        self.assertEqual(order, ["oob", 0, 1, 2, 3])
        client.send({"exec-oob": "query-name"})
        self.assertEqual(client.reply(), generic("The command query-name does not support OOB"))

    def test_more_pipelined_commands_than_the_queue_holds(self) -> None:
        client = self.client(enable=["oob"])
        client.send("".join(f"{{'execute':'query-name','id':{i}}}" for i in range(100)))
        self.assertEqual([client.reply()["id"] for _ in range(100)], list(range(100)))

    def test_settings_of_one_client_are_seen_by_the_others(self) -> None:
        first, second = self.client(), self.client()
        first.ask("migrate-set-parameters", {"downtime-limit": 123})
        self.assertEqual(second.ask("query-migrate-parameters")["return"]["downtime-limit"], 123)

    def test_deep_nesting_is_refused_at_1025(self) -> None:
        client = self.client()
        client.send("[" * 1024 + "]" * 1024)
        self.assertEqual(client.reply(), generic("QMP input must be a JSON object"))
        client.send("[" * 1025 + "]" * 1025)
        self.assertEqual(client.reply(), generic("JSON nesting depth limit exceeded"))
        for _ in range(1025):
            self.assertEqual(client.reply(), generic("JSON parse error, expecting value"))
        self.assertIn("return", client.ask("query-name"))

    def test_huge_document_is_refused_and_takes_no_memory(self) -> None:
        client = self.client()
        other = self.client()
        before = self.resident()
        chunk = b"x" * (1 << 20)
        client.send(b'{"execute":"')
        for _ in range(64):
            client.send(chunk)
        client.send(b'"}\n')
        self.assertEqual(client.reply(), generic("JSON token size limit exceeded"))
        self.assertIn("return", other.ask("query-name"))
        if not self.daemon.is_sanitized():
            self.assertLess(self.resident() - before, 16 << 20)

    def resident(self) -> int:
        with open(f"/proc/{self.daemon.process.pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()

    def test_client_that_does_not_read_is_dropped(self) -> None:
        lazy = self.client()
        other = self.client()
        lazy.socket.settimeout(5)
        try:
            for _ in range(100000):
                lazy.send('{"execute":"query-qmp-schema"}')
        except OSError as error:
            self.assertIsInstance(error, (BrokenPipeError, ConnectionResetError, TimeoutError))
        self.assertIn("return", other.ask("query-name"))
        if not self.daemon.is_sanitized():
            self.assertLess(self.resident(), 256 << 20)

    def test_vanishing_clients_leave_nothing_behind(self) -> None:
        descriptors = f"/proc/{self.daemon.process.pid}/fd"
        self.client().ask("query-name")
        before = len(os.listdir(descriptors))
        for i in range(200):
            client = self.daemon.connect()
            if i % 2:
                client.send('{"execute":"qmp_capabilities"}{"execute":"query-qmp-schema"}{"exec')
            client.close()
        # Connections are accepted in their order: who is answered behind them knows that all were.
        last = self.client()
        last.ask("query-name")
        last.close()
        deadline = time.monotonic() + WAIT
        while (left := len(os.listdir(descriptors))) > before and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertLessEqual(left, before)

    def test_rubbish_does_not_end_the_daemon(self) -> None:
        for seed in range(20):
            client = self.daemon.connect()
            try:
                client.send(bytes((i * 167 + seed * 31) % 256 for i in range(20000)))
                client.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            client.at_end()
            client.close()
        self.assertIn("return", self.client().ask("query-name"))


class ManyConnections(unittest.TestCase):
    """A thousand connections at once: places are limited, nobody who negotiates is lost."""

    def test_thousand_connections(self) -> None:
        daemon = Daemon().wait_for_socket()
        self.addCleanup(daemon.end)
        first = daemon.ready()
        idle: list[socket.socket] = []
        for _ in range(1000):
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            if one.connect_ex(daemon.path) != 0:  # the kernel's queue is full
                one.close()
                continue
            idle.append(one)
        self.assertGreaterEqual(len(idle), CLIENTS)
        self.assertIn("return", first.ask("query-name"))
        self.assertLess(len(os.listdir(f"/proc/{daemon.process.pid}/fd")), CLIENTS + 40)
        for one in idle:
            one.close()
        late = daemon.ready()
        self.assertIn("return", late.ask("query-name"))
        self.assertIn("return", first.ask("query-name"))


    def test_idle_connections_give_way_to_a_client_that_negotiates(self) -> None:
        daemon = Daemon().wait_for_socket()
        self.addCleanup(daemon.end)
        for _ in range(CLIENTS):
            daemon.connect().message()
        started = time.monotonic()
        late = daemon.ready()  # after limits::qmp_negotiation_wait
        self.assertLess(time.monotonic() - started, WAIT)
        self.assertIn("return", late.ask("query-name"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
