# SPDX-License-Identifier: Apache-2.0
"""A QMP client over a unix socket: one command at a time, events kept in order, a deadline on every wait."""

from __future__ import annotations

import json
import socket
import time
from typing import Any, Callable

REPLY_TIMEOUT = 20.0


class QmpError(Exception):
    """The server answered a command with an error."""

    def __init__(self, command: str, error: dict):
        super().__init__(f"{command}: {error.get('class')}: {error.get('desc')}")
        self.error_class = error.get("class", "")
        self.desc = error.get("desc", "")


class QmpGone(Exception):
    """The server closed the connection, or what it sent is not QMP."""


class QmpTimeout(Exception):
    """Nothing came within the time allowed."""


class Qmp:
    def __init__(self, path: str, timeout: float = REPLY_TIMEOUT, alive: Callable[[], bool] = lambda: True,
                 negotiate: bool = True):
        """Connects, trying again until the socket is there; gives up when `alive` says the server has died."""
        self.timeout = timeout
        self.events: list[dict] = []
        self._seen = 0  # events[:_seen] were handed out by wait_event
        self._buffer = b""
        self.raw_lines: list[bytes] = []
        self._socket = self._connect(path, alive)
        self.greeting = self._next_object(time.monotonic() + timeout)
        if "QMP" not in self.greeting:
            raise QmpGone(f"no greeting but {self.greeting}")
        if negotiate:
            self.execute("qmp_capabilities")

    def _connect(self, path: str, alive: Callable[[], bool]) -> socket.socket:
        deadline = time.monotonic() + self.timeout
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self.timeout)
            try:
                connection.connect(path)
                return connection
            except (FileNotFoundError, ConnectionRefusedError) as error:
                connection.close()
                if not alive():
                    raise QmpGone(f"{path}: the server has ended") from error
                if time.monotonic() > deadline:
                    raise QmpTimeout(f"{path}: {error}") from error
                time.sleep(0.01)

    def close(self) -> None:
        self._socket.close()

    # Reading ---------------------------------------------------------------------------------------------------------

    def _next_line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            # What has come already is taken however late it is: who waited for the processor did not wait for the server.
            self._socket.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                data = self._socket.recv(1 << 16)
            except (TimeoutError, BlockingIOError) as error:
                raise QmpTimeout("no line from the server") from error
            except ConnectionError as error:
                raise QmpGone(str(error)) from error
            if not data:
                raise QmpGone("the server closed the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        self.raw_lines = self.raw_lines[-200:] + [line]
        return line

    def _next_object(self, deadline: float) -> dict:
        line = self._next_line(deadline)
        try:
            return json.loads(line)
        except ValueError as error:
            raise QmpGone(f"not JSON: {line[:200]!r}") from error

    # Commands --------------------------------------------------------------------------------------------------------

    def send(self, request: dict, fds: list[int] | None = None) -> None:
        data = json.dumps(request).encode() + b"\r\n"
        self._socket.settimeout(self.timeout)
        try:
            if fds:
                sent = socket.send_fds(self._socket, [data], fds)
                data = data[sent:]
            self._socket.sendall(data)
        except ConnectionError as error:
            raise QmpGone(str(error)) from error

    def message(self, timeout: float | None = None) -> dict:
        """The next message of any kind; events are not kept."""
        return self._next_object(time.monotonic() + (timeout or self.timeout))

    def reply(self, timeout: float | None = None) -> dict:
        """The next answer; events before it are kept."""
        deadline = time.monotonic() + (timeout or self.timeout)
        while True:
            message = self._next_object(deadline)
            if "event" not in message:
                return message
            self.events.append(message)

    def execute(self, command: str, arguments: dict | None = None, fds: list[int] | None = None,
                timeout: float | None = None) -> Any:
        request: dict = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self.send(request, fds)
        answer = self.reply(timeout)
        if "error" in answer:
            raise QmpError(command, answer["error"])
        return answer["return"]

    def hmp(self, line: str) -> str:
        return self.execute("human-monitor-command", {"command-line": line})

    # Events ----------------------------------------------------------------------------------------------------------

    def poll_events(self, wait: float = 0.0) -> None:
        """Takes in what has arrived, waiting at most that long for the first line."""
        deadline = time.monotonic() + max(wait, 0.0001)
        try:
            while True:
                message = self._next_object(deadline)
                if "event" in message:
                    self.events.append(message)
                    deadline = time.monotonic() + 0.0001
        except QmpTimeout:
            pass

    def wait_event(self, name: str, match: Callable[[dict], bool] = lambda data: True,
                   timeout: float | None = None) -> dict:
        """The next event of that name, after those already handed out, whose data match."""
        deadline = time.monotonic() + (timeout or self.timeout)
        while True:
            while self._seen < len(self.events):
                event = self.events[self._seen]
                self._seen += 1
                if event["event"] == name and match(event.get("data", {})):
                    return event
            left = deadline - time.monotonic()
            if left <= 0:
                raise QmpTimeout(f"no event {name}; came: {self.event_names()[-12:]}")
            before = len(self.events)
            try:
                self.poll_events(min(left, 0.5))
            except QmpGone:
                if len(self.events) == before:  # what came before the end counts
                    raise

    def event_names(self) -> list[str]:
        """Events in order, migration states by their status: ['setup', 'active', 'STOP', 'completed']."""
        names = []
        for event in self.events:
            if event["event"] == "MIGRATION":
                names.append(event["data"]["status"])
            elif event["event"] == "MIGRATION_PASS":
                names.append(f"P({event['data']['pass']})")
            else:
                names.append(event["event"])
        return names
