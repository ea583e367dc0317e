# SPDX-License-Identifier: Apache-2.0
"""Where the programs under test and their peers are."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from pathlib import Path

TREE = Path(__file__).resolve().parents[3]
_daemon: Path | None = None


class Skip(Exception):
    """This case cannot be run here; the text says why."""


def set_migrationd(path: str | None) -> None:
    global _daemon
    _daemon = Path(path).resolve() if path else None


def migrationd() -> Path:
    """--migrationd, else the environment's MIGRATIOND, else that of BUILD_DIR, else the tree's usual build."""
    built = Path(os.environ.get("BUILD_DIR", TREE / "build")) / "daemon" / "migrationd"
    path = _daemon or Path(os.environ.get("MIGRATIOND", built))
    if not os.access(path, os.X_OK):
        raise Skip(f"no migrationd at {path}")
    return path.resolve()


def build_folder() -> Path:
    """Where the daemon was built, for programs built beside it; the tree's usual one without a daemon."""
    try:
        return migrationd().parents[1]
    except Skip:
        return TREE / "build"


@functools.cache
def _peers() -> dict[str, str]:
    """tools/peers tells; it is quick when all is installed, and installs when it may."""
    run = subprocess.run([TREE / "tools" / "peers"], capture_output=True, text=True, timeout=900)
    if run.returncode != 0:
        raise Skip("tools/peers: " + (run.stderr.strip().splitlines() or ["failed"])[-1])
    return dict(line.split("=", 1) for line in run.stdout.split())


def qemu(version: str) -> str:
    """The program of QEMU '7.2' or '10.0'."""
    name = "QEMU_" + version.replace(".", "_")
    return os.environ.get(name) or _peers()[name]


@functools.cache
def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
