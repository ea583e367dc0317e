# SPDX-License-Identifier: Apache-2.0
"""A child process that is ended by its own id, whatever happens to the test."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_CAP_IPC_LOCK = 14
_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """Starts `argv` with its output in `log`; use it as a context manager. `restrict` runs in the child, last."""

    def __init__(self, argv: list[str], log: Path, pass_fds: tuple[int, ...] = (), namespace: str | None = None,
                 limits: dict[int, int] | None = None, restrict: Callable[[], None] | None = None):
        if namespace:
            argv = ["ip", "netns", "exec", namespace, *argv]
        self.argv = argv
        self.log = log

        def prepare() -> None:
            _die_with_parent()
            if limits:
                import resource
                for kind, value in limits.items():
                    resource.setrlimit(kind, (value, value))
                if resource.RLIMIT_MEMLOCK in limits:   # means nothing to who may pass it
                    _libc.prctl(_PR_CAPBSET_DROP, _CAP_IPC_LOCK)
            if restrict:
                restrict()
                _die_with_parent()      # forgotten by a change of user

        with open(log, "ab") as output:
            self.child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                          pass_fds=pass_fds, preexec_fn=prepare)
        self.pid = self.child.pid

    def alive(self) -> bool:
        return self.child.poll() is None

    def kill(self) -> None:
        """kill -9, and gone when it returns."""
        if self.alive():
            self.child.kill()
        self.child.wait(10)

    def terminate(self, timeout: float = 20.0) -> int:
        """SIGTERM; the exit status. A process that does not go is killed and the test told."""
        if self.alive():
            self.child.terminate()
        try:
            return self.child.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.argv[0]} did not end within {timeout} s of SIGTERM") from None

    def wait_exit(self, timeout: float = 20.0) -> int:
        """The exit status of a process that ends by itself."""
        return self.child.wait(timeout)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def wait_until(condition, timeout: float = 20.0, what: str = "condition", step: float = 0.02):
    """The condition's first true value; fails when it has none in time."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(step)
