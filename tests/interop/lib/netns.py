# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces joined by a link of limited rate: a slow network that belongs to the test alone."""

from __future__ import annotations

import os
import re
import subprocess

from .programs import Skip

_count = 0


def _run(*argv: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(argv, check=check, capture_output=True, text=True, timeout=20)


def _sweep() -> None:
    """Removes what a run that was killed left behind: namespaces of ours whose process is gone."""
    for line in _run("ip", "netns", "list", check=False).stdout.splitlines():
        name = line.split()[0]
        ours = re.fullmatch(r"md(\d+)n\d+[ab]", name)
        if ours and not os.path.exists(f"/proc/{ours.group(1)}"):
            _run("ip", "netns", "del", name, check=False)


class LimitedLink:
    """Context manager. `left` and `right` are namespace names, with addresses 10.213.0.1 and 10.213.0.2."""

    left_address = "10.213.0.1"
    right_address = "10.213.0.2"

    def __init__(self, bytes_per_second: int):
        global _count
        _count += 1
        tag = f"md{os.getpid()}n{_count}"
        self.left, self.right = f"{tag}a", f"{tag}b"
        self.rate = bytes_per_second

    def __enter__(self) -> "LimitedLink":
        if os.geteuid() != 0:
            raise Skip("network namespaces need root")
        try:
            _sweep()
            _run("ip", "netns", "add", self.left)
            _run("ip", "netns", "add", self.right)
            _run("ip", "link", "add", "veth0", "netns", self.left, "type", "veth", "peer", "name", "veth0", "netns",
                 self.right)
            for namespace, address in ((self.left, self.left_address), (self.right, self.right_address)):
                _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "veth0")
                for device in ("lo", "veth0"):
                    _run("ip", "-n", namespace, "link", "set", device, "up")
                _run("tc", "-n", namespace, "qdisc", "add", "dev", "veth0", "root", "tbf", "rate",
                     f"{self.rate * 8}bit", "burst", str(max(64 << 10, self.rate // 100)), "latency", "50ms")
        except (OSError, subprocess.SubprocessError) as error:
            self.__exit__()
            detail = getattr(error, "stderr", "") or str(error)
            raise Skip(f"no network namespaces with tc here: {detail.strip()}") from error
        return self

    def __exit__(self, *_) -> None:
        for namespace in (self.left, self.right):
            try:
                _run("ip", "netns", "del", namespace, check=False)
            except (OSError, subprocess.SubprocessError):
                pass
