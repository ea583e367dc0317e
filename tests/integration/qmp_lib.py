# SPDX-License-Identifier: Apache-2.0
"""A daemon to talk to and a client that shows every line, for the tests of the control socket (qmp_*.py).

MIGRATIOND names the daemon's program. Every wait is bounded.
"""

from __future__ import annotations

import array
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest
from typing import Any

WAIT = 30.0  # seconds; generous: the tests run beside others


class Daemon:
    def __init__(self, *options: str, socket_option: str = "", directory: str | None = None) -> None:
        self.directory = directory or tempfile.mkdtemp(prefix="migrationd-qmp-")
        self.owns_directory = directory is None
        self.path = os.path.join(self.directory, "qmp.sock")
        self.log = tempfile.TemporaryFile()
        self.clients: list[Client] = []
        program = os.environ.get("MIGRATIOND", "build/daemon/migrationd")
        self.process = subprocess.Popen(
            [program, "--qmp", f"unix:{self.path}{socket_option}", *options],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def wait_for_socket(self) -> "Daemon":
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}: {self.output()}")
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(self.path) == 0:
                    return self
            time.sleep(0.01)
        raise AssertionError("the daemon does not listen")

    def is_sanitized(self) -> bool:
        """Built with AddressSanitizer or ThreadSanitizer, which keep memory for themselves."""
        with open(f"/proc/{self.process.pid}/maps", encoding="utf-8") as maps:
            return any(name in line for line in maps for name in ("libasan", "libtsan"))

    def status(self) -> int:
        return self.process.wait(WAIT)

    def connect(self) -> "Client":
        self.clients.append(Client(self.path))
        return self.clients[-1]

    def ready(self, **enable: Any) -> "Client":
        return self.connect().negotiate(**enable)

    def end(self) -> None:
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(WAIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        if self.owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)


class Client:
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        # Blocking, with the kernel's own bound: Python's would fail at once while the server's queue is full.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(WAIT), 0))
        self.socket.connect(path)
        self.socket.settimeout(WAIT)
        self.buffer = b""

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes | str | dict, fds: list[int] | None = None) -> None:
        if isinstance(data, dict):
            data = json.dumps(data)
        if isinstance(data, str):
            data = data.encode()
        if fds:
            sent = self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            data = data[sent:]
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line without its CR LF; b"" at the end of the stream, also of one that left words of ours unread."""
        while b"\r\n" not in self.buffer:
            try:
                more = self.socket.recv(1 << 20)
            except ConnectionResetError:
                more = b""
            if not more:
                assert self.buffer == b"", f"unfinished line {self.buffer[:80]!r}"
                return b""
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        assert b"\n" not in line and b"\r" not in line, line
        line.decode("ascii")
        return line

    def message(self) -> dict:
        line = self.line()
        assert line, "the connection ended"
        return json.loads(line)

    def reply(self) -> dict:
        while True:
            message = self.message()
            if "event" not in message:
                return message

    def ask(self, command: str, arguments: dict | None = None, fds: list[int] | None = None, **more: Any) -> dict:
        request: dict = {"execute": command, **more}
        if arguments is not None:
            request["arguments"] = arguments
        self.send(request, fds)
        return self.reply()

    def negotiate(self, **enable: Any) -> "Client":
        assert "QMP" in self.message()
        assert self.ask("qmp_capabilities", enable or None) == {"return": {}}
        return self

    def at_end(self) -> bool:
        """True when the daemon closed the connection; drops what was still to be read."""
        try:
            while self.socket.recv(1 << 20):
                pass
        except ConnectionResetError:
            pass
        return True


def generic(text: str) -> dict:
    return {"error": {"class": "GenericError", "desc": text}}


class DaemonTest(unittest.TestCase):
    """One daemon per class."""

    options: tuple[str, ...] = ()

    @classmethod
    def setUpClass(cls) -> None:
        cls.daemon = Daemon(*cls.options).wait_for_socket()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.daemon.end()

    def client(self, **enable: Any) -> Client:
        return self.daemon.ready(**enable)

    def tearDown(self) -> None:
        while self.daemon.clients:
            self.daemon.clients.pop().close()
