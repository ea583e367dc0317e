# SPDX-License-Identifier: Apache-2.0
"""Daemons that take guests, for the tests of attached machines (attached*.py)."""

from __future__ import annotations

import os
import tempfile
import time
import unittest
from typing import Any

import guest_lib as g
from guest_lib import Guest, Machine, Remote
from qmp_lib import Daemon, WAIT


class Host:
    """A daemon that takes guests, and a client of it that hears events."""

    def __init__(self, *options: str, deadline: int = 20000, more: str = "") -> None:
        directory = tempfile.mkdtemp(prefix="migrationd-attached-")
        self.path = os.path.join(directory, "guest.sock")
        self.daemon = Daemon("--machine", f"attached,socket={self.path},deadline={deadline}{more}", *options,
                             directory=directory)
        self.daemon.owns_directory = True
        self.daemon.wait_for_socket()
        self.client = self.daemon.ready()
        self.switch("events")
        self.wait_for(lambda: os.path.exists(self.path))

    def wait_for(self, condition: Any) -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline, self.daemon.output()
            time.sleep(0.01)

    def switch(self, *names: str) -> None:
        capabilities = [{"capability": name, "state": True} for name in names]
        assert self.client.ask("migrate-set-capabilities", {"capabilities": capabilities}) == {"return": {}}

    def ask(self, command: str, arguments: dict | None = None) -> Any:
        answer = self.client.ask(command, arguments)
        assert "return" in answer, answer
        return answer["return"]

    def status(self) -> str:
        return self.ask("query-status")["status"]

    def migration(self, *until: str) -> dict:
        """query-migrate once the status is one of these."""
        deadline = time.monotonic() + WAIT
        while True:
            info = self.ask("query-migrate")
            if info.get("status") in until:
                return info
            assert time.monotonic() < deadline, (info, self.daemon.output())
            time.sleep(0.01)

    def no_guest(self) -> None:
        self.wait_for(lambda: self.ask("__org.migrationd_query-machine")["kind"] == "none")

    @property
    def uri(self) -> str:
        return f"unix:{self.daemon.directory}/migration.sock"

    def listen(self) -> str:
        self.ask("migrate-incoming", {"uri": self.uri})
        return self.uri

    def end(self) -> None:
        self.daemon.end()


class HostTest(unittest.TestCase):
    def setUp(self) -> None:
        self.hosts: list[Host] = []
        self.guests: list[Guest] = []

    def tearDown(self) -> None:
        for guest in self.guests:
            guest.close() if type(guest) is Guest else guest.end()
        for host in self.hosts:
            host.end()

    def host(self, *options: str, **more: Any) -> Host:
        self.hosts.append(Host(*options, **more))
        return self.hosts[-1]

    def machine(self, host: Host, state: int, **more: Any) -> Machine:
        self.guests.append(Machine(host.path, state, **more))
        return self.guests[-1]

    def visitor(self, host: Host) -> Guest:
        self.guests.append(Guest(host.path))
        return self.guests[-1]

    def remote(self, host: Host, state: int, **more: Any) -> Remote:
        self.guests.append(Remote(host.path, state, **more))
        return self.guests[-1]

    def pair(self, state: int = g.RUNNING, deadline: int = 20000, **more: Any) -> tuple[Host, Machine, Host, Machine]:
        one, two = self.host(deadline=deadline), self.host(deadline=deadline)
        return one, self.machine(one, state, **more), two, self.machine(two, g.EMPTY, **more)
