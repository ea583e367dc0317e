# SPDX-License-Identifier: Apache-2.0
"""What QEMU and migrationd have in common: a process with a QMP socket that sends and receives a machine."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Callable

from .process import Process, wait_until
from .qmp import Qmp, QmpGone

FINAL = ("completed", "failed", "cancelled")


class Host(Process):
    kind = ""
    version = ""

    def __init__(self, argv: list[str], folder: Path, name: str, **options):
        self.folder = folder
        self.name = name
        self.qmp_path = f"{folder / name}.qmp"
        super().__init__(argv, folder / f"{name}.log", **options)

    @functools.cached_property
    def qmp(self) -> Qmp:
        """The control connection, made when first used, with migration events on."""
        try:
            connection = Qmp(self.qmp_path, alive=self.alive)
        except QmpGone as error:
            raise AssertionError(f"{self.name} ended: {self.output()[-400:]}") from error
        connection.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
        return connection

    def __exit__(self, *args):
        if "qmp" in self.__dict__:
            self.qmp.close()
        super().__exit__(*args)

    def wait(self, condition: Callable[[], object], timeout: float = 20.0, what: str = "condition"):
        """As wait_until, and tells at once when the process has died. Times are against hangs: never near what it takes."""
        def checked():
            value = condition()
            if not value and not self.alive():
                raise AssertionError(f"{self.name} ended (status {self.child.returncode}) while waiting for {what}: "
                                     f"{self.output()[-400:]}")
            return value
        return wait_until(checked, timeout, what)

    # Settings --------------------------------------------------------------------------------------------------------

    def capabilities(self, *on: str, **states: bool) -> None:
        """capabilities("events", return_path=True)"""
        listed = [{"capability": name, "state": True} for name in on]
        # A downstream name, __org.migrationd_..., is written as it is.
        listed += [{"capability": name if name.startswith("__") else name.replace("_", "-"), "state": state}
                   for name, state in states.items()]
        self.qmp.execute("migrate-set-capabilities", {"capabilities": listed})

    def parameters(self, **values) -> None:
        self.qmp.execute("migrate-set-parameters", {name.replace("_", "-"): value for name, value in values.items()})

    # Migration -------------------------------------------------------------------------------------------------------

    def incoming(self, uri: str, **options) -> None:
        """migrate-incoming; a failure leaves the process alive where the version can do that."""
        if self.version != "7.2":
            options.setdefault("exit-on-error", False)
        self.qmp.execute("migrate-incoming", {"uri": uri, **options})

    def migrate(self, uri: str, **options) -> None:
        self.qmp.execute("migrate", {"uri": uri, **options})

    def query_migrate(self) -> dict:
        return self.qmp.execute("query-migrate")

    def status(self) -> str:
        return self.query_migrate().get("status", "none")

    def run_state(self) -> str:
        return self.qmp.execute("query-status")["status"]

    def listening_port(self) -> int:
        """The port chosen for port 0."""
        addresses = self.query_migrate().get("socket-address", [])
        assert addresses, f"{self.name} reports no socket-address: {self.query_migrate()}"
        return int(addresses[0]["port"])

    def wait_status(self, *wanted: str, timeout: float = 60.0) -> dict:
        """query-migrate's answer once its status is one of those; an unwanted end is an error at once."""
        def reached():
            answer = self.query_migrate()
            status = answer.get("status")
            if status in wanted:
                return answer
            if status in FINAL:
                raise AssertionError(f"{self.name}: wanted {wanted}, became {status}: {answer.get('error-desc')}"
                                     f" | log: {self.output()[-300:]}")
            return None
        return self.wait(reached, timeout, f"status {wanted} of {self.name}")

    def wait_totals(self, timeout: float = 10.0) -> dict:
        """query-migrate once it has the final numbers, which 7.2 adds a little after `completed`."""
        deadline = time.monotonic() + timeout
        while True:
            answer = self.query_migrate()
            if answer.get("total-time") or time.monotonic() > deadline:
                return answer
            time.sleep(0.02)
