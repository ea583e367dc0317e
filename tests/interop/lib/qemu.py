# SPDX-License-Identifier: Apache-2.0
"""A QEMU of either version as a test uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from . import guest as guest_module
from . import programs
from .guest import Guest
from .host import Host

MACHINE = "pc-i440fx-7.2"   # both versions know it


class Qemu(Host):
    """One QEMU process with the tests' guest in its floppy drive, or as its firmware."""

    kind = "qemu"

    def __init__(self, folder: Path, name: str, version: str, memory_mib: int = 16, guest: Guest = Guest(),
                 incoming: bool = False, paused: bool = False, machine: str = MACHINE, memfd: bool = False,
                 namespace: str | None = None, pass_fds: tuple[int, ...] = (),
                 limits: dict[int, int] | None = None, own_firmware: bool = False,
                 memory_options: str = "", options: list[str] | None = None, huge_pages: bool = False,
                 restrict: Callable[[], None] | None = None, virtio: bool = False, shared: bool = False):
        self.version = version
        self.guest = guest
        self.serial_path = folder / f"{name}.serial"
        # What one of the same name printed is not this guest's: QEMU empties the file only while it starts.
        self.serial_path.unlink(missing_ok=True)
        argv = [programs.qemu(version), "-name", name, "-accel", "tcg", "-m", str(memory_mib),
                "-nodefaults", "-no-user-config", "-display", "none",
                "-serial", f"file:{self.serial_path}",
                "-qmp", f"unix:{folder / name}.qmp,server=on,wait=off"]
        if virtio:
            # The firmware reads the boot sector through a virtqueue, and sets up what it knows of the others.
            argv += ["-drive", f"file={guest.image(folder)},format=raw,if=none,id=disk,readonly=on",
                     "-device", "virtio-blk-pci,drive=disk,bootindex=0", "-device", "virtio-rng-pci",
                     "-device", "virtio-scsi-pci", "-device", "virtio-serial-pci", "-device", "virtio-balloon-pci",
                     "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile="]
        elif own_firmware:
            argv += ["-bios", str(guest.firmware(folder))]
        else:
            argv += ["-boot", "a", "-drive", f"file={guest.image(folder)},format=raw,if=floppy,readonly=on"]
        if shared:
            # What cpr-transfer needs (10.0 only): every block in a file that another process can map.
            argv += ["-machine", f"{machine},aux-ram-share=on,memory-backend=ram0", "-object",
                     f"memory-backend-memfd,id=ram0,size={memory_mib}M,share=on"]
        elif memory_options:
            argv += ["-machine", f"{machine},memory-backend=mem", "-object",
                     f"memory-backend-ram,id=mem,size={memory_mib}M,{memory_options}"]
        elif huge_pages:
            argv += ["-machine", f"{machine},memory-backend=mem", "-object",
                     f"memory-backend-memfd,id=mem,size={memory_mib}M,hugetlb=on,hugetlbsize=2M,share=on"]
        elif memfd:
            argv += ["-machine", f"{machine},memory-backend=mem", "-object",
                     f"memory-backend-memfd,id=mem,size={memory_mib}M,share=on"]
        else:
            argv += ["-machine", machine]
        if incoming:
            argv += ["-incoming", "defer"]
        if paused:
            argv += ["-S"]
        argv += options or []
        super().__init__(argv, folder, name, namespace=namespace, pass_fds=pass_fds, limits=limits,
                         restrict=restrict)

    def serial(self) -> bytes:
        return self.serial_path.read_bytes() if self.serial_path.exists() else b""

    def wait_sweeps(self, number: int, timeout: float = 30.0) -> int:
        """Waits until the guest has printed that sweep number here."""
        self.wait(lambda: guest_module.last_number(self.serial()) >= number, timeout,
                  f"guest in {self.name} to print sweep {number}")
        return guest_module.last_number(self.serial())

    def check_memory(self) -> int:
        """Proves the guest's pages; the machine must be stopped."""
        low = self.read_memory(0, 4096)
        swept = self.read_memory(guest_module.FIRST, self.guest.pages * guest_module.PAGE)
        return guest_module.check_memory(low, swept, self.guest)

    def read_memory(self, address: int, size: int) -> bytes:
        if size == 0:
            return b""
        path = self.folder / f"{self.name}.memory"
        self.qmp.execute("pmemsave", {"val": address, "size": size, "filename": str(path)})
        data = path.read_bytes()
        path.unlink()
        return data
