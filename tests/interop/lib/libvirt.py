# SPDX-License-Identifier: Apache-2.0
"""A real libvirt of the test's own: one libvirtd in session mode with private directories, driven by virsh.

It has nothing to do with a libvirt that the host may run: its sockets, its state and its domains are below a folder of
the test. Session mode is for users; where the test is root, libvirtd and its QEMU run as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from . import programs
from .guest import Guest, last_number
from .process import Process, wait_until
from .procfs import listens
from .programs import Skip
from .qemu import MACHINE


class Libvirt:
    """Use it as a context manager. `image_format`: of what `save` writes."""

    def __init__(self, folder: Path, image_format: str = "raw"):
        for program in ("libvirtd", "virsh"):
            if not shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin"):
                raise Skip(f"{program} is not installed (tools/setup check installs it)")
        # Not in the test's own folder: others may not enter it, and a socket's path must be short.
        self.root = Path(tempfile.mkdtemp(prefix="lv-", dir="/tmp"))
        self.log = folder / "libvirtd.log"
        self.user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        self.process: Process | None = None
        names = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache",
                 "XDG_DATA_HOME": "data"}
        self.environment = {"HOME": str(self.root), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
        for variable, name in names.items():
            (self.root / name).mkdir(mode=0o700)
            self.environment[variable] = str(self.root / name)
        settings = self.root / "config" / "libvirt"
        settings.mkdir()
        (settings / "qemu.conf").write_text(
            f'security_driver = "none"\nstdio_handler = "file"\nsave_image_format = "{image_format}"\n')
        for path in [self.root, *self.root.rglob("*")]:
            self.give(path)

    def give(self, path: Path) -> None:
        """Makes the file the daemon's."""
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def _command(self, *words: str) -> list[str]:
        become = [] if not self.user else ["setpriv", f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}",
                                           "--clear-groups"]
        return [*become, "env", "-i", *(f"{name}={value}" for name, value in self.environment.items()), *words]

    def __enter__(self) -> "Libvirt":
        # It ends by itself should nobody be there to end it.
        self.process = Process(self._command("libvirtd", "--timeout", "120"), self.log)
        socket = self.root / "run" / "libvirt" / "libvirt-sock"
        try:
            wait_until(lambda: listens(socket) or not self.process.alive(), 60, "libvirtd to listen")
            if not self.process.alive():
                raise Skip(f"libvirtd does not run here: {self.process.output()[-300:]}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        pids = self._domain_pids()
        for name in self._domains():
            self.virsh("destroy", name, check=False)
        if self.process and self.process.alive():
            self.process.child.terminate()
            try:
                self.process.child.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for pid in pids:    # those that libvirt started and did not end
            for _attempt in range(50):
                if not self._is_qemu(pid):
                    break
                time.sleep(0.1)
            else:
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    def _domains(self) -> list[str]:
        if not self.process or not self.process.alive():
            return []
        return self.virsh("list", "--name", check=False).split()

    def _domain_pids(self) -> list[int]:
        found = []
        for path in (self.root / "run").rglob("*.pid"):
            text = path.read_text().strip()
            if text.isdigit() and self._is_qemu(int(text)):
                found.append(int(text))
        return found

    @staticmethod
    def _is_qemu(pid: int) -> bool:
        try:
            return b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def virsh(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(self._command("virsh", "-q", "-c", "qemu:///session", *words), capture_output=True,
                              text=True, timeout=60, check=False)
        if check:
            assert done.returncode == 0, f"virsh {' '.join(words)}: {done.stderr.strip()} {self.log.read_text()[-500:]}"
        return done.stdout

    # The tests' guest as a domain ------------------------------------------------------------------------------------

    def domain_xml(self, name: str, guest: Guest, memory_mib: int = 16) -> str:
        """The machine that lib/qemu.py starts, in libvirt's words."""
        image = guest.image(self.root)
        self.give(image)
        return f"""<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{MACHINE}'>hvm</type><boot dev='fd'/></os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <devices>
    <emulator>{programs.qemu("7.2")}</emulator>
    <disk type='file' device='floppy'>
      <driver name='qemu' type='raw'/><source file='{image}'/><target dev='fda' bus='fdc'/><readonly/>
    </disk>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{self.serial_path(name)}'/><target port='0'/></serial>
    <memballoon model='none'/>
    <audio id='1' type='none'/>
  </devices>
</domain>
"""

    def serial_path(self, name: str) -> Path:
        return self.root / f"{name}.serial"

    def serial(self, name: str) -> bytes:
        path = self.serial_path(name)
        return path.read_bytes() if path.exists() else b""

    def wait_sweeps(self, name: str, number: int) -> int:
        wait_until(lambda: last_number(self.serial(name)) >= number, 30, f"libvirt's guest to print sweep {number}")
        return last_number(self.serial(name))

    def create(self, name: str, guest: Guest) -> None:
        path = self.root / f"{name}.xml"
        path.write_text(self.domain_xml(name, guest))
        self.give(path)
        self.virsh("create", str(path))
