# SPDX-License-Identifier: Apache-2.0
"""Runs one command so that it cannot hang, hide or leave anything behind.

Each command gets a session of its own, a log file and a time limit. This process is the reaper of every orphan below
it (PR_SET_CHILD_SUBREAPER), so daemons that a test forgot are found by their parent, never by name, and ended.
"""

import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Done:
    status: int | None  # exit status; negative for a signal; None when the time limit ended it
    seconds: float
    log: Path
    leftovers: list[str]  # commands that outlived it and were ended

    @property
    def ok(self) -> bool:
        return self.status == 0

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def why(self) -> str:
        if self.status is None:
            return f"killed after {self.seconds:.0f} s, its time limit"
        return f"exit status {self.status}"


def become_reaper() -> None:
    """Also: whoever ends this process ends what it runs."""
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, _leave)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _leave(sign: int, _frame: object) -> None:
    raise SystemExit(128 + sign)


def _children() -> list[int]:
    """Live direct children of this process."""
    path = Path(f"/proc/{os.getpid()}/task")
    ids = " ".join((task / "children").read_text() for task in path.iterdir())
    return [int(word) for word in ids.split()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:120]
    except OSError:
        return ""


def end_leftovers() -> list[str]:
    """Ends what the last command left running: each round kills what has become our child by then. What is just
    about to end by itself gets a second for it."""
    ended: dict[int, str] = {}
    start = time.monotonic()
    while time.monotonic() - start < 10:
        alive = _children()
        if not alive:
            break
        for pid in alive:
            done, _status = os.waitpid(pid, os.WNOHANG)
            if done == 0 and time.monotonic() - start > 1:
                ended.setdefault(pid, f"{pid} {_command_line(pid)}")
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return list(ended.values())


def run(command: list[str], log: Path, limit: float, cwd: Path, env: dict[str, str] | None = None,
        append: bool = False) -> Done:
    """Runs `command` with both outputs in `log`, for at most `limit` seconds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(log, "ab" if append else "wb") as out:
        child = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                 env={**os.environ, **(env or {})}, start_new_session=True)
        try:
            status = _wait(child, limit)
        except BaseException:
            _kill_group(child)
            end_leftovers()
            raise
        if status is None:
            _kill_group(child)
    return Done(status, time.monotonic() - start, log, end_leftovers())


def _wait(child: subprocess.Popen, limit: float) -> int | None:
    """Orphans that end meanwhile are reaped at once: who ended one may wait until it is gone (libvirt does)."""
    end = time.monotonic() + limit
    while True:
        try:
            return child.wait(timeout=max(0.0, min(0.2, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end:
                return None
        for pid in _children():
            if pid != child.pid:
                os.waitpid(pid, os.WNOHANG)


def _kill_group(child: subprocess.Popen) -> None:
    """Two seconds to clean up after SIGTERM, then SIGKILL for the whole session."""
    for sign, wait in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(child.pid, sign)
            child.wait(timeout=wait)
        except ProcessLookupError:
            child.wait()
            return
        except subprocess.TimeoutExpired:
            continue
        if sign == signal.SIGKILL:
            return
