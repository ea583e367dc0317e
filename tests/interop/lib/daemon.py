# SPDX-License-Identifier: Apache-2.0
"""A migrationd process as a test uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from . import programs
from .host import Host


class Migrationd(Host):
    """One daemon, parked unless a machine is given: machine='synthetic,ram=64M,dirty-rate=50M'."""

    kind = "migrationd"
    version = "migrationd"

    def __init__(self, folder: Path, name: str, machine: str | None = None, incoming: list[str] | None = None,
                 paused: bool = False, namespace: str | None = None, options: list[str] | None = None,
                 pass_fds: tuple[int, ...] = (), limits: dict[int, int] | None = None,
                 restrict: Callable[[], None] | None = None, program: Path | None = None):
        argv = [str(program or programs.migrationd()), "--qmp", f"unix:{folder / name}.qmp", "--name", name]
        for address in incoming or []:
            argv += ["--incoming", address]
        if machine:
            argv += ["--machine", machine]
        if paused:
            argv += ["--paused"]
        argv += options or []
        super().__init__(argv, folder, name, namespace=namespace, pass_fds=pass_fds, limits=limits,
                         restrict=restrict)

    def verify_machine(self) -> int:
        """The daemon proves a synthetic guest's memory itself, stopping the guest; fails with the page that is wrong.
        Returns how many pages were checked."""
        checked = self.qmp.execute("__org.migrationd_verify-machine", timeout=60)["checked-pages"]
        assert checked > 0, "no page was checked"
        return checked

    def machine(self) -> dict:
        return self.qmp.execute("__org.migrationd_query-machine")

    def owner(self) -> str:
        """Whose the machine is: here, moved, unknown, none."""
        return self.machine()["owner"]
