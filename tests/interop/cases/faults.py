# SPDX-License-Identifier: Apache-2.0
"""What the machine underneath can do to a daemon: full disks, bad paths, too few descriptors, signals."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

from ..lib import cases, procfs
from ..lib.daemon import Migrationd
from ..lib.programs import Skip
from ..lib.qmp import QmpError
from .synthetic import MB, machine

WHAT = machine(20, ram="32M", working_set="24M")


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A file system of that size, of our own."""
    mount = folder / "small"
    mount.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount],
                                           capture_output=True, timeout=10).returncode != 0:
        raise Skip("a small file system needs the right to mount")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], timeout=10, check=False)


def _runs_on_and_saves(host: Migrationd, folder: Path) -> None:
    assert host.run_state() == "running" and host.owner() == "here", (host.run_state(), host.owner())
    host.migrate(f"file:{folder / 'good'}")
    host.wait_status("completed")
    assert (folder / "good").stat().st_size > 16 * MB


def _full_disk(folder: Path, uri: str) -> None:
    with small_disk(folder, "8m") as mount, Migrationd(folder, "host", machine=WHAT) as host:
        time.sleep(1.5)     # the guest has filled more than the disk takes
        host.migrate(uri.format(mount / "saved"))
        host.wait(lambda: host.status() == "failed", 15, "the disk to be full")
        text = host.query_migrate()["error-desc"]
        if uri.startswith("file"):
            assert "No space left on device" in text, text
        _runs_on_and_saves(host, folder)
        host.verify_machine()


cases.add("fault/full-disk/file", lambda folder: _full_disk(folder, "file:{}"), quick=True)
cases.add("fault/full-disk/exec", lambda folder: _full_disk(folder, "exec:cat > {}"))


@cases.case("fault/paths-that-cannot-be-written-or-read", quick=True)
def paths(folder: Path) -> None:
    (folder / "a-folder").mkdir()
    with Migrationd(folder, "host", machine=WHAT) as host:
        for path, text in (("/nonexistent/f", "Could not create '/nonexistent/f': No such file or directory"),
                           (str(folder / "a-folder"), "Is a directory"),
                           ("/proc/version/x", "Not a directory")):
            try:
                host.migrate(f"file:{path}")
            except QmpError as error:
                assert text in error.desc, error.desc
            else:
                raise AssertionError(f"{path} was accepted")
            assert host.status() == "failed", host.query_migrate()
        for uri in ("unix:/nonexistent/sock", "tcp:127.0.0.1:1", "exec:exit 3"):
            host.migrate(uri)
            host.wait(lambda: host.status() == "failed", 10, uri)
            assert host.query_migrate()["error-desc"]
        _runs_on_and_saves(host, folder)
    with Migrationd(folder, "target") as target:
        for uri in ("file:/nonexistent/f", "unix:/nonexistent/sock", "tcp:192.0.2.1:0", "fd:nobody"):
            try:
                target.incoming(uri)
            except QmpError as error:
                assert error.desc, uri
            else:
                raise AssertionError(f"{uri} was accepted")
            target.run_state()
        target.incoming(f"file:{folder / 'good'}")      # a retry is allowed, unlike QEMU's
        target.wait_status("completed")


def _few_descriptors(folder: Path, limit: int) -> None:
    """Clients until it refuses them; then they go, and it works as before."""
    with Migrationd(folder, "host", machine=WHAT, limits={resource.RLIMIT_NOFILE: limit}) as host:
        host.run_state()
        before = procfs.open_descriptors(host.pid)
        clients = []
        try:
            for _ in range(limit + 10):
                client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                client.settimeout(0.05)
                clients.append(client)
                client.connect(host.qmp_path)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    client.recv(4096)
            assert host.alive()
            used = procfs.cpu_seconds(host.pid)
            time.sleep(0.5)
            assert procfs.cpu_seconds(host.pid) - used < 0.4, "it spins on a socket it cannot accept"
            host.run_state()
            try:
                host.migrate(f"file:{folder / 'refused'}")
            except QmpError as error:
                assert "Too many open files" in error.desc, error.desc
                assert host.status() in ("none", "failed"), host.query_migrate()
            else:
                host.wait(lambda: host.status() in ("failed", "completed"), what="a migration without descriptors")
        finally:
            for client in clients:
                client.close()
        # Its own connection and what it had before are left.
        host.wait(lambda: procfs.open_descriptors(host.pid) <= before, what="the clients' places to be free")
        if host.run_state() != "running":
            host.qmp.execute("cont")
        _runs_on_and_saves(host, folder)


for _limit in (24, 48):
    cases.add(f"fault/{_limit}-descriptors", lambda folder, limit=_limit: _few_descriptors(folder, limit),
              quick=_limit == 48)


def _terminated(folder: Path, when: str) -> None:
    """SIGTERM: a running migration is cancelled, what becomes of the machine is said, the exit is clean."""
    with Migrationd(folder, "source", machine=WHAT) as source, \
         Migrationd(folder, "target", machine=WHAT, incoming=["defer"]) as destination:
        source.parameters(max_bandwidth=8 * MB)
        destination.incoming("tcp:127.0.0.1:0")
        if when != "idle":
            source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
            source.wait_status("active")
        victim = destination if when == "receiving" else source
        victim.signal(signal.SIGTERM)
        victim.qmp.wait_event("SHUTDOWN", lambda data: data["reason"] == "host-signal")
        assert victim.wait_exit() == 0, victim.output()[-300:]
        if when == "sending":
            destination.wait(lambda: destination.status() == "failed", what="the destination to notice")
        elif when == "receiving":
            source.wait(lambda: source.status() == "failed", what="the source to notice")
            assert source.run_state() == "running"


for _when in ("idle", "sending", "receiving"):
    cases.add(f"fault/sigterm-while-{_when}", lambda folder, when=_when: _terminated(folder, when),
              quick=_when == "sending")


@cases.case("fault/second-start-on-a-live-socket", quick=True)
def second_start(folder: Path) -> None:
    """Refused while the first lives; after its kill -9 the stale socket is replaced."""
    with Migrationd(folder, "host", machine=WHAT) as first:
        first.run_state()
        with Migrationd(folder, "host", machine=WHAT) as second:
            assert second.wait_exit() != 0
        assert first.run_state() == "running"
        first.kill()
    with Migrationd(folder, "host", machine=WHAT) as third:
        assert third.run_state() == "running"
