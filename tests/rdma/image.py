# SPDX-License-Identifier: Apache-2.0
"""The initramfs of the guest: Debian's kernel modules, soft-RoCE's provider, the programs and what they link to.

All of it is put together anew for each run, which takes about a second; what costs (the packages) is cached by
packages.py.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.rdma import packages
from tests.rdma.cpio import Tree
from tests.rdma.packages import Missing

HERE = Path(__file__).resolve().parent
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "ld-linux-x86-64.so.2"
# In the order of their dependencies: there is no modprobe. `dummy` makes the interface that soft-RoCE sits on.
MODULES = ["crc32_generic", "crc32c_generic", "dummy", "ib_core", "ib_uverbs", "ib_cm", "iw_cm", "configfs", "rdma_cm",
           "rdma_ucm", "udp_tunnel", "ip6_udp_tunnel", "rdma_rxe"]
# Loaded by pthread_exit when it is needed first: no program names it.
LATE = ["libgcc_s.so.1"]
FIRMWARE_7_2 = {"/usr/share/seabios": ["bios-256k.bin"], "/usr/share/qemu": ["kvmvapic.bin", "linuxboot_dma.bin"]}
QEMU_MODULES = ["accel-tcg-x86_64.so", "accel-qtest-x86_64.so"]
TRIXIE = "q10"  # where QEMU 10.0's own world is mounted in the guest


class Closure:
    """Copies programs with every library they are linked to, as one dynamic loader resolves them."""

    def __init__(self, tree: Tree, loader: Path, search: list[Path], below: str = ""):
        self.tree, self.loader, self.search, self.below = tree, loader, search, below
        tree.file(f"{below}lib64/{LOADER}", loader.resolve())
        tree.link(f"{below}lib/x86_64-linux-gnu", "../usr/lib/x86_64-linux-gnu")

    def libraries(self, program: Path) -> dict[str, Path]:
        path = ["--library-path", ":".join(map(str, self.search))] if self.search else []
        cache = ["--inhibit-cache"] if self.search else []
        told = packages.run([str(self.loader), *cache, *path, "--list", str(program)])
        if "not found" in told:
            raise Missing(next(line.strip() for line in told.splitlines() if "not found" in line))
        rows = [line.split(" => ") for line in told.splitlines() if " => " in line]
        return {name.strip(): Path(path.split(" (")[0]) for name, path in rows}

    def add(self, source: Path, path: str) -> None:
        self.tree.file(self.below + path, source.resolve())
        for name, library in self.libraries(source).items():
            self.tree.file(f"{self.below}{LIBRARIES}/{name}", library.resolve())

    def library(self, source: Path, path: str) -> None:
        """Something that is loaded by name, with what it needs."""
        self.add(source, path)


def find(*places: Path) -> Path:
    for place in places:
        if place.is_file():
            return place
    raise Missing(f"no {places[0]}")


def program(name: str) -> Path:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if not found:
        raise Missing(f"no program {name} (tools/setup check)")
    return Path(found)


def kernel() -> tuple[Path, dict[str, Path]]:
    """The kernel's image, and its modules by name."""
    root = packages.kernel()
    modules = {path.stem: path for path in root.glob("lib/modules/*/kernel/**/*.ko")}
    absent = [name for name in MODULES if name not in modules]
    if absent:
        raise Missing(f"{root.name} has no module {absent[0]}")
    return next(root.glob("boot/vmlinuz-*")), modules


def base(tree: Tree, modules: dict[str, Path]) -> Closure:
    """What boots and makes an RDMA device."""
    host = packages.host_packages("busybox-static", "rdmacm-utils", "ibverbs-providers")
    closure = Closure(tree, Path("/lib64") / LOADER, [])
    tree.file("bin/busybox", find(host["busybox-static"] / "bin/busybox", host["busybox-static"] / "usr/bin/busybox"))
    tree.file("init", HERE / "guest" / "init")
    for name in MODULES:
        tree.file(f"mod/{name}.ko", modules[name], 0o644)
    tree.file("mod/order", "\n".join(MODULES).encode() + b"\n", 0o644)
    tree.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)
    tree.file("etc/group", b"root:x:0:\n", 0o644)
    tree.file("etc/hosts", b"127.0.0.1 localhost\n192.168.77.1 rxe\n", 0o644)
    for name in ("ip", "rdma"):
        closure.add(program(name), f"usr/sbin/{name}")
    closure.add(host["rdmacm-utils"] / "usr/bin/rping", "usr/bin/rping")
    provider(closure, host["ibverbs-providers"])
    for name in LATE:
        closure.library(Path("/") / LIBRARIES / name, f"{LIBRARIES}/{name}")
    for folder in ("proc", "sys", "dev", "tmp", "run"):
        tree.folder(folder)
    return closure


def provider(closure: Closure, package: Path) -> None:
    found = next(package.glob(f"{LIBRARIES}/libibverbs/librxe-*.so"), None)
    if found is None:
        raise Missing(f"{package.name} has no soft-RoCE")
    closure.library(found, f"{LIBRARIES}/libibverbs/{found.name}")
    closure.tree.file(f"{closure.below}etc/libibverbs.d/rxe.driver", b"driver rxe\n", 0o644)


def qemu_7_2(tree: Tree, closure: Closure, binary: Path) -> None:
    closure.add(binary, "usr/bin/qemu-7.2")
    for name in QEMU_MODULES:
        module = Path("/") / LIBRARIES / "qemu" / name
        if module.is_file():
            closure.library(module, f"{LIBRARIES}/qemu/{name}")
    for folder, names in FIRMWARE_7_2.items():
        for name in names:
            tree.file(f"usr/share/qemu/{name}", find(Path(folder) / name), 0o644)


def qemu_10_0(tree: Tree, root: Path) -> None:
    """A world of its own: it has newer libraries than the rest."""
    below = f"{TRIXIE}/"
    extra = packages.trixie_packages(root, "ibverbs-providers")
    libraries = root / LIBRARIES
    closure = Closure(tree, root / "usr/lib64" / LOADER, [libraries, libraries / "pulseaudio"], below)
    closure.add(root / "usr/bin/qemu-system-x86_64", "usr/bin/qemu-10.0")
    provider(closure, extra["ibverbs-providers"])
    for name in QEMU_MODULES:
        if (libraries / "qemu" / name).is_file():
            closure.library(libraries / "qemu" / name, f"{LIBRARIES}/qemu/{name}")
    for name in LATE:
        closure.library(libraries / name, f"{LIBRARIES}/{name}")
    for folder, names in FIRMWARE_7_2.items():
        for name in names:
            tree.file(f"{below}usr/share/qemu/{name}", find(root / folder.lstrip("/") / name), 0o644)
    for folder in ("proc", "sys", "dev", "tmp"):
        tree.folder(below + folder)


if __name__ == "__main__":
    sys.exit("not a program: see tests/rdma/run")
