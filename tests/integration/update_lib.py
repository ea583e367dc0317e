# SPDX-License-Identifier: Apache-2.0
"""Daemons that are replaced while they run (update*.py), and successors that fail at a chosen step.

Run as a program this file is such a successor: started by a daemon with --take-over=FD, it goes as far as the step that
the environment variable UPDATE_STEP names, and there ends, or hangs with UPDATE_HANG set.
"""

from __future__ import annotations

import array
import os
import socket
import stat
import struct
import sys
import time
from typing import Any

WAIT = 30.0
MAIN_CHANNEL = 257
# In the order in which a successor comes to them.
STEPS = ("started", "half-the-list", "list-read", "ready", "half-the-stream", "stream-read", "refused", "rubbish")


# --- a successor that fails -----------------------------------------------------------------------------------------
def stay_or_end(step: str) -> None:
    if os.environ["UPDATE_STEP"] != step:
        return
    if "UPDATE_HANG" in os.environ:
        time.sleep(WAIT * 10)
    os._exit(7)


def read_list(cpr: socket.socket) -> dict[tuple[str, int], int]:
    """Descriptors by name and id; docs/formats/cpr.md."""
    data, fds = b"", array.array("i")
    while True:
        part, rights, _, _ = cpr.recvmsg(64 if not data else 4096, socket.CMSG_SPACE(4 * 16))
        for _, _, packed in rights:
            fds.frombytes(packed)
        if not part:
            break
        data += part
        stay_or_end("half-the-list")
    at, entries = 8, []
    while data[at] == 1:
        (length,) = struct.unpack_from(">I", data, at + 1)
        name = data[at + 5:at + 4 + length].decode()
        (number,) = struct.unpack_from(">i", data, at + 5 + length)
        entries.append((name, number))
        at += 5 + length + 4 + 1
    return dict(zip(entries, fds))


def fail_as_told(number: int) -> None:
    stay_or_end("started")
    cpr = socket.socket(fileno=number)
    entries = read_list(cpr)
    main = socket.socket(fileno=entries["org.migrationd", MAIN_CHANNEL])
    stay_or_end("list-read")
    cpr.close()
    stay_or_end("ready")
    stream = main.recv(16)
    stay_or_end("half-the-stream")
    while b"vmdesc" not in stream and b'"devices"' not in stream:
        part = main.recv(1 << 16)
        if not part:
            break
        stream += part
    stay_or_end("stream-read")
    # The return path: SHUT with 1, which is "no"; or something that is no message.
    main.sendall(struct.pack(">HHI", 1, 4, 1) if os.environ["UPDATE_STEP"] == "refused" else b"\xff" * 64)
    time.sleep(0.2)
    os._exit(7)


def failing_program(folder: str) -> str:
    """A program to be given as the new binary."""
    path = os.path.join(folder, "successor")
    with open(path, "w", encoding="utf-8") as script:
        script.write(f'#!/bin/sh\nexec {sys.executable} -B {os.path.abspath(__file__)} "$@"\n')
    os.chmod(path, stat.S_IRWXU)
    return path


# --- the daemon, whichever process it is now ------------------------------------------------------------------------
class Line:
    """A daemon and those that replace it, by the control socket that all of them have. `first`: qmp_lib.Daemon."""

    def __init__(self, first: Any) -> None:
        self.first = first
        self.pid = first.process.pid

    def update(self, **arguments: Any) -> dict:
        """The reply; after a success this speaks of the new process."""
        client = self.first.ready()
        answer = client.ask("__org.migrationd_update", arguments or None)
        if "return" in answer:
            assert client.at_end(), "the old daemon keeps its clients"
            self.wait_for_end(self.pid)
            self.pid = answer["return"]["pid"]
        client.close()
        return answer

    def wait_for_end(self, pid: int) -> None:
        deadline = time.monotonic() + WAIT
        while True:
            if pid == self.first.process.pid:
                if self.first.process.poll() is not None:
                    assert self.first.process.returncode == 0, self.first.output()
                    return
            elif not alive(pid):
                return
            assert time.monotonic() < deadline, f"process {pid} does not end\n{self.first.output()}"
            time.sleep(0.005)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def end(self) -> None:
        if self.pid != self.first.process.pid and alive(self.pid):
            client = self.first.ready()
            client.ask("quit")
            client.at_end()
            client.close()
            self.wait_for_end(self.pid)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def successors(line: Line) -> list[int]:
    """Those that are to replace it and live. They are children of who started the first one: of this process."""
    found = []
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children", encoding="utf-8") as file:
            found += [int(word) for word in file.read().split()]
    return [pid for pid in found if pid != line.pid and alive(pid) and b"--take-over=" in command_of(pid)]


def command_of(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


if __name__ == "__main__":
    fail_as_told(int(next(word for word in sys.argv if word.startswith("--take-over=")).split("=")[1]))
