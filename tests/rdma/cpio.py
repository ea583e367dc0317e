# SPDX-License-Identifier: Apache-2.0
"""An initramfs as the kernel takes it: one or several cpio archives ("newc"), one behind the other, not compressed.

Not compressed because unpacking is emulated work: reading 100 MiB more costs the host nothing that could be seen.
Nothing here needs root: owner, mode and devices are written as numbers.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path, PurePosixPath

ALIGNED = 4


class Tree:
    """What goes into an archive: path in the guest -> what lies there."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[int, Path | bytes]] = {}

    def file(self, path: str, source: Path | bytes, mode: int = 0o755) -> None:
        self._put(path, stat.S_IFREG | mode, source)

    def link(self, path: str, target: str) -> None:
        self._put(path, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, path: str) -> None:
        path = path.strip("/")
        if path and path not in self.entries:
            self._parents(path)
            self.entries[path] = (stat.S_IFDIR | 0o755, b"")

    def _put(self, path: str, mode: int, content: Path | bytes) -> None:
        path = path.strip("/")
        self._parents(path)
        self.entries[path] = (mode, content)

    def _parents(self, path: str) -> None:
        # A parent comes before its children, as the kernel needs it.
        for parent in reversed(PurePosixPath(path).parents):
            if str(parent) != "." and str(parent) not in self.entries:
                self.entries[str(parent)] = (stat.S_IFDIR | 0o755, b"")

    def write(self, to: Path) -> None:
        with open(to, "wb") as out:
            for number, (path, (mode, content)) in enumerate(self.entries.items(), 1):
                size = content.stat().st_size if isinstance(content, Path) else len(content)
                _header(out, path, number, mode, size)
                if isinstance(content, Path):
                    with open(content, "rb") as source:
                        shutil.copyfileobj(source, out, 1 << 20)
                else:
                    out.write(content)
                _pad(out)
            _header(out, "TRAILER!!!", 0, 0, 0)
            _pad(out)


def _header(out, path: str, number: int, mode: int, size: int) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = [number, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name), 0]
    out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
    _pad(out)


def _pad(out) -> None:
    out.write(b"\0" * (-out.tell() % ALIGNED))
