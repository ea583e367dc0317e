# SPDX-License-Identifier: Apache-2.0
"""Debian packages, unpacked into a cache folder outside the tree and never installed.

They come through the host's own apt: its sources, its keys, its proxies. A package that was unpacked once is used again,
so a run without a network works after the first. May be run twice at once (the second waits) and killed at any moment (a
folder gets its name when it is complete).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

KERNEL = "linux-image-amd64"  # names the kernel of the day by its dependency
LIMIT = 300.0  # seconds for one apt command


class Missing(Exception):
    """A package cannot be had here; the text says why."""


def cache() -> Path:
    """The same place as that of tools/peers."""
    base = os.environ.get("MIGRATIOND_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME", "/var/cache"), "migrationd")
    return Path(base)


def folder() -> Path:
    path = cache() / "rdma"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Missing(f"no cache at {path}: {error.strerror}") from None
    return path


@contextlib.contextmanager
def locked() -> Iterator[None]:
    with open(folder() / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list[str], where: Path | None = None, limit: float = LIMIT) -> str:
    try:
        done = subprocess.run(command, cwd=where, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit,
                              env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        raise Missing(f"no program {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"{command[0]} did not end within {limit:g} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise Missing(f"{' '.join(command[-2:])}: {lines[0] if lines else f'exit status {done.returncode}'}")
    return done.stdout


class Apt:
    """apt with lists of its own in the cache, so that neither root nor a recent `apt-get update` is needed."""

    def __init__(self, name: str, options: list[str] = ()):
        self.state = folder() / f"apt-{name}"
        self.options = [f"Dir::State::lists={self.state}/lists", f"Dir::Cache={self.state}/cache",
                        "APT::Sandbox::User=", *options]
        self.fresh = False

    def command(self, program: str, *words: str) -> list[str]:
        return [program, *(word for option in self.options for word in ("-o", option)), *words]

    def refresh(self) -> None:
        if self.fresh:
            return
        for part in ("lists/partial", "cache/archives/partial"):
            (self.state / part).mkdir(parents=True, exist_ok=True)
        say(f"reading package lists into {self.state}")
        for attempt in range(3):
            try:
                run(self.command("apt-get", "-q", "update"))
                break
            except Missing:
                if attempt == 2:
                    raise
                time.sleep(5 * (attempt + 1))
        self.fresh = True

    def dependency(self, package: str, prefix: str) -> str:
        self.refresh()
        for line in run(self.command("apt-cache", "depends", package)).splitlines():
            word = line.split()[-1] if line.split() else ""
            if word.startswith(prefix) and word != package:
                return word
        raise Missing(f"{package} names no {prefix}")

    def unpack(self, package: str, target: Path) -> None:
        self.refresh()
        say(f"fetching {package}")
        with tempfile.TemporaryDirectory(dir=folder(), prefix=".new-") as name:
            new = Path(name)
            run(self.command("apt-get", "-q", "download", package), where=new)
            archive = next(new.glob("*.deb"), None)
            if archive is None:
                raise Missing(f"{package} was not downloaded")
            run(["dpkg-deb", "--extract", str(archive), str(new / "root")])
            shutil.rmtree(target, ignore_errors=True)
            (new / "root").rename(target)


def say(text: str) -> None:
    print(f"tests/rdma: {text}", file=sys.stderr, flush=True)


def unpacked(apt: Apt, package: str, suite: str) -> Path:
    """The package's files, below a folder of the cache."""
    target = folder() / f"{suite}-{package}"
    if not target.is_dir():
        apt.unpack(package, target)
    return target


def host_packages(*names: str) -> dict[str, Path]:
    """Packages of the host's own release, by name."""
    apt = Apt("host")
    with locked():
        return {name: unpacked(apt, name, "host") for name in names}


def kernel() -> Path:
    """The files of the kernel's package; the one that is there is good enough."""
    with locked():
        there = sorted(path for path in folder().glob("host-linux-image-*") if next(path.glob("boot/vmlinuz-*"), None))
        if there:
            return there[-1]
        apt = Apt("host")
        return unpacked(apt, apt.dependency(KERNEL, "linux-image-"), "host")


def trixie_packages(root: Path, *names: str) -> dict[str, Path]:
    """Packages of the release that tools/peers has set up at `root`, from that release's own sources."""
    apt = Apt("trixie", [f"Dir::Etc::sourcelist={root}/etc/apt/sources.list", "Dir::Etc::sourceparts=/dev/null",
                         f"Dir::Etc::trustedparts={root}/etc/apt/trusted.gpg.d", "Dir::Etc::trusted=/dev/null",
                         "Dir::State::status=/dev/null"])
    with locked():
        return {name: unpacked(apt, name, "trixie") for name in names}
