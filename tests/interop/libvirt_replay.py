# SPDX-License-Identifier: Apache-2.0
"""Plays libvirt: sends the requests of a recorded transcript to a daemon in order, and judges every answer.

Judged are: one reply to each request, with its id, as one line ended by CR LF; the fields libvirt reads, present and of
the recorded type; events in the recorded order (how many passes a migration needs may differ); the events that belong
before a reply (setup before migrate's, STOP before stop's) come before it.

Of a recording only the surroundings are replaced: addresses, descriptors, and what SIGTERM stands for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

from .lib.host import Host
from .lib.qmp import Qmp

TRANSCRIPTS = Path(__file__).resolve().parents[1] / "fixtures" / "libvirt"

# Events a command causes itself: QEMU sends them before that command's reply.
_BEFORE_REPLY = {"migrate": "setup", "migrate-incoming": "setup", "migrate_cancel": "cancelling", "stop": "STOP",
                 "cont": "RESUME"}
# Devices differ from machine to machine: the shape is compared, not the list.
_LISTS_OF_OBJECTS = {
    "query-chardev": {"label", "filename", "frontend-open"},
    "query-hotpluggable-cpus": {"type", "vcpus-count", "props"},
    "query-cpus-fast": {"cpu-index", "thread-id"},
    "qom-list": {"name", "type"},
}
_ACTIVE = {"active", "pre-switchover", "device", "cancelling", "completed"}


class Mismatch(AssertionError):
    pass


def load(name: str) -> list[dict]:
    lines = (TRANSCRIPTS / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line]


def event_name(message: dict) -> str:
    return message["data"]["status"] if message["event"] == "MIGRATION" else message["event"]


class Replay:
    """One transcript against one daemon.

    `uri`: replaces the address of migrate-incoming, and of a migrate that names an address and no descriptor.
    `descriptor`: called when a request passes a descriptor; returns the one to pass. `before`: called before a command is
    sent. `on_reply`: told of every command answered.
    """

    def __init__(self, host: Host, name: str, uri: str | None = None,
                 descriptor: Callable[[], int] | None = None,
                 on_reply: Callable[[str], None] = lambda command: None,
                 before: Callable[[str], None] = lambda command: None):
        self.host = host
        self.name = name
        self.lines = load(name)
        self.uri = uri
        self.descriptor = descriptor
        self.on_reply = on_reply
        self.before = before
        self.events: list[str] = []         # received, passes left out
        self.passes: list[int] = []
        self.taken = 0                      # of events
        self.replies: list[dict] = []       # received before the recording has them
        self.pending: dict | None = None    # the request not yet answered
        self.started_migration = False
        self.parameters: dict | None = None

    def run(self) -> None:
        fresh = any("QMP" in line.get("msg", {}) for line in self.lines)
        self.qmp = Qmp(self.host.qmp_path, alive=self.host.alive, negotiate=False)
        try:
            if not fresh:   # the recording begins in the middle of a connection that was prepared like this
                for request in ({"execute": "qmp_capabilities", "id": "a"},
                                {"execute": "migrate-set-capabilities", "id": "b", "arguments":
                                 {"capabilities": [{"capability": "events", "state": True}]}}):
                    self.qmp.send(request)
                    assert self.qmp.reply().get("return") == {}, request
            for number, line in enumerate(self.lines, 1):
                try:
                    if line["dir"] == ">":
                        self._send(line)
                    elif line["dir"] == "<":
                        self._expect(line["msg"])
                except Exception as error:
                    raise Mismatch(f"{self.name} line {number}: {error} (events so far: {self.events})") from error
            self._check_lines()
        finally:
            self.qmp.close()

    # Sending ---------------------------------------------------------------------------------------------------------

    def _send(self, line: dict) -> None:
        request = json.loads(json.dumps(line["msg"]))
        command = request["execute"]
        arguments = request.get("arguments", {})
        self.before(command)
        if self.uri and (command == "migrate-incoming" or (command == "migrate" and arguments["uri"].startswith("tcp:"))):
            arguments["uri"] = self.uri
        if command == "migrate":
            self.started_migration = True
        fds = [self.descriptor()] if line.get("fds") and self.descriptor else None
        self.pending = request
        self.qmp.send(request, fds)

    # Receiving -------------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Takes in one message."""
        message = self.qmp.message()
        if "event" not in message:
            if not self.pending or message.get("id") != self.pending["id"]:
                raise Mismatch(f"a reply without a request: {message}")
            if self.replies:
                raise Mismatch(f"two replies to one request: {message}")
            needed = _BEFORE_REPLY.get(self.pending["execute"])
            recorded = [event_name(line["msg"]) for line in self.lines if "event" in line.get("msg", {})]
            if needed and "error" not in message and needed in recorded and needed not in self.events:
                raise Mismatch(f"the reply to {self.pending['execute']} came before its event {needed}")
            self.replies.append(message)
        elif message["event"] == "MIGRATION_PASS":
            self.passes.append(message["data"]["pass"])
            if self.passes != list(range(1, len(self.passes) + 1)):
                raise Mismatch(f"passes are not counted from 1 on: {self.passes}")
            if self.passes == [1] and "active" in self.events:
                raise Mismatch("the first pass was announced after active")
        else:
            self.events.append(event_name(message))

    def _expect(self, recorded: dict) -> None:
        if "QMP" in recorded:
            _same_shape(recorded, self.qmp.greeting, "greeting")
        elif "event" not in recorded:
            while not self.replies:
                self._receive()
            self._judge(recorded, self.replies.pop())
        elif recorded["event"] != "MIGRATION_PASS":
            name = event_name(recorded)
            if name == "SHUTDOWN":
                self.host.child.terminate()
            while self.taken == len(self.events):
                self._receive()
            if self.events[self.taken] != name:
                raise Mismatch(f"event {self.events[self.taken]} where libvirt saw {name}")
            self.taken += 1

    def _judge(self, recorded: dict, reply: dict) -> None:
        request = self.pending
        assert request is not None
        command = request["execute"]
        self.pending = None
        self.on_reply(command)
        if "error" in recorded:
            if "error" not in reply:
                raise Mismatch(f"{command} succeeded where QEMU refuses")
            if reply["error"]["class"] != recorded["error"]["class"]:
                raise Mismatch(f"{command}: {reply['error']}")
            return
        if "error" in reply:
            # A machine without that object says so as QEMU does; the text is compared with a real QEMU elsewhere.
            if command in ("qom-get", "qom-list") and reply["error"]["class"] == "DeviceNotFound":
                return
            raise Mismatch(f"{command} was refused: {reply['error']}")
        self._judge_return(command, recorded["return"], reply["return"])

    def _judge_return(self, command: str, recorded: Any, answer: Any) -> None:
        if command == "query-migrate":
            self._judge_query_migrate(recorded, answer)
        elif command == "query-migrate-capabilities":
            theirs, ours = ({item["capability"] for item in items} for items in (recorded, answer))
            if theirs - ours or any(not name.startswith("__org.") for name in ours - theirs):
                raise Mismatch(f"{command}: other capabilities than QEMU's: {theirs ^ ours}")
        elif command == "query-migrate-parameters":
            _same_shape(recorded, answer, command)
            self.parameters = answer
        elif command in _LISTS_OF_OBJECTS:
            if not isinstance(answer, list):
                raise Mismatch(f"{command}: not a list: {answer}")
            for item in answer:
                if not _LISTS_OF_OBJECTS[command] <= set(item):
                    raise Mismatch(f"{command}: {item} lacks one of {_LISTS_OF_OBJECTS[command]}")
        elif recorded in ({}, []):
            if answer != recorded:
                raise Mismatch(f"{command}: {answer} instead of {recorded}")
        else:
            _same_shape(recorded, answer, command)

    def _judge_query_migrate(self, recorded: dict, answer: dict) -> None:
        for reason in answer.get("blocked-reasons", []):
            if not isinstance(reason, str):
                raise Mismatch(f"blocked-reasons: {answer}")
        migrating = self.started_migration or recorded.get("status") in ("failed",)
        if not migrating:
            return      # libvirt reads nothing but blocked-reasons then
        if answer.get("status") != recorded["status"]:
            raise Mismatch(f"query-migrate: status {answer.get('status')}, recorded {recorded['status']}: {answer}")
        _same_shape(recorded, answer, "query-migrate")
        if answer["status"] in _ACTIVE:
            ram = answer["ram"]
            if not ram["total"] >= ram["remaining"] >= 0 or (answer["status"] == "completed" and ram["remaining"]):
                raise Mismatch(f"query-migrate: numbers that contradict each other: {ram}")

    def _check_lines(self) -> None:
        for line in self.qmp.raw_lines:
            if not line.endswith(b"\r"):
                raise Mismatch(f"a line not ended by CR LF: {line[:80]!r}")


def _same_shape(recorded: Any, answer: Any, where: str) -> None:
    """Every recorded member is there with the recorded JSON type. More members are no harm."""
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    if kinds.get(type(recorded)) != kinds.get(type(answer)):
        raise Mismatch(f"{where}: {answer!r} is no {kinds.get(type(recorded))}")
    if isinstance(recorded, dict):
        for key, value in recorded.items():
            if key not in answer:
                raise Mismatch(f"{where}: {key} is missing in {answer}")
            _same_shape(value, answer[key], f"{where}.{key}")
