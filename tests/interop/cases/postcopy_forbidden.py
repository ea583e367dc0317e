# SPDX-License-Identifier: Apache-2.0
"""Where userfaultfd is missing or forbidden: who needs it is told at once, with all that could be done about it; who
does not need it works. The device is covered and the system call refused, as in a container.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from ..lib import cases, programs
from ..lib.confine import NOBODY, as_nobody, without_userfaultfd
from ..lib.daemon import Migrationd
from ..lib.postcopy_source import Source
from ..lib.qemu import Qemu
from ..lib.qmp import QmpError
from .postcopy_destination import Into, machine, pull, saved
from .postcopy_source import LARGE, begin_resume, into_postcopy, went_on
from .resume import Printed, checkpoint, open_lazily

WAYS_OUT = ("/dev/userfaultfd", "vm.unprivileged_userfaultfd", "DeviceAllow=/dev/userfaultfd", "tmpfiles.d",
            "CAP_SYS_PTRACE", "SystemCallFilter")
WHAT = machine(20, ram="16M", working_set="8M")


@cases.case("postcopy-forbidden/guest-that-runs-here", quick=True)
def guest_here(folder: Path) -> None:
    """A guest that runs here needs it: the daemon ends at once, and its one line tells every way out."""
    with Migrationd(folder, "target", machine=WHAT, incoming=["defer"], restrict=without_userfaultfd()) as daemon:
        assert daemon.wait_exit() != 0
        text = daemon.output()
        for words in WAYS_OUT:
            assert words in text, text
        assert text.count("open a userfaultfd") == 1, text


@cases.case("postcopy-forbidden/resume-needs-none-here", quick=True)
def resume(folder: Path) -> None:
    """Instant resume is the sending side: a daemon without userfaultfd does it. The destination is the one that needs
    it, and a QEMU that has none says so before anything is sent, or refuses what it is sent: the machine stays here."""
    restrict = without_userfaultfd()
    path, left_at = checkpoint(folder, "mapped-ram", LARGE)
    with Migrationd(folder, "park", restrict=restrict) as daemon:
        open_lazily(daemon, path)
        with Qemu(folder, "poor", "10.0", memory_mib=32, guest=LARGE, incoming=True, restrict=restrict) as poor:
            try:
                begin_resume(daemon, poor, f"unix:{folder / 'poor.out'}")
                raise AssertionError("QEMU took the capability")
            except QmpError as error:
                assert "ostcopy" in error.desc, error.desc
            poor.incoming(f"unix:{folder / 'poor.out'}")
            daemon.capabilities("postcopy-ram")
            daemon.migrate(f"unix:{folder / 'poor.out'}")
            daemon.wait(lambda: daemon.status() == "failed", 20, "the refusal")
            assert daemon.owner() == "here" and poor.serial() == b"", daemon.machine()
        with Qemu(folder, "target", "10.0", memory_mib=32, guest=LARGE, incoming=True) as target:
            into_postcopy(daemon, target, f"unix:{folder / 'out'}")
            went_on([Printed(folder / "source.printed"), target], left_at, LARGE)


@cases.case("postcopy-forbidden/pull-needs-none", timeout=120)
def pulled(folder: Path) -> None:
    """Nobody runs in a parked machine, so a postcopy into one needs no userfaultfd either."""
    pull(folder, ("10.0", "10.0"), Into(), restrict=without_userfaultfd())


@cases.case("postcopy-forbidden/doctor", quick=True)
def doctor(folder: Path) -> None:
    program = programs.build_folder() / "tools" / "migrationctl" / "migrationctl"
    run = subprocess.run([program, "doctor"], capture_output=True, text=True, timeout=30,
                         preexec_fn=without_userfaultfd())
    line = next((line for line in run.stdout.splitlines() if "userfaultfd" in line), "")
    assert line.startswith("missing") and ("may not open /dev/userfaultfd" in line or "no permission" in line), run.stdout
    assert "setfacl" in run.stdout or "sysctl vm.unprivileged_userfaultfd=1" in run.stdout, run.stdout


@cases.case("postcopy-forbidden/user-without-rights", timeout=90, quick=True)
def nobody(folder: Path) -> None:
    """No device, no capability, vm.unprivileged_userfaultfd=0: the kernel still lets a process catch its own faults in
    user mode, and that is all a guest in the same process makes."""
    restrict = as_nobody()
    image = saved(folder, WHAT)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        open_to_all = Path(name)
        os.chmod(open_to_all, 0o755)
        os.chown(open_to_all, NOBODY, NOBODY)
        # The tree may lie where nobody may look.
        program = open_to_all / "migrationd"
        program.write_bytes(programs.migrationd().read_bytes())
        os.chmod(program, 0o755)
        with Migrationd(open_to_all, "target", machine=WHAT, incoming=["defer"],
                        restrict=restrict, program=program) as daemon:
            daemon.capabilities("postcopy-ram")
            daemon.incoming(f"unix:{open_to_all}/in.sock")
            source = Source(image, rate=5000)
            source.start(f"unix:{open_to_all}/in.sock")
            daemon.wait_status("postcopy-active")
            source.serve()
            source.finish()
            daemon.wait_status("completed")
            assert source.requests > 0 and daemon.verify_machine() > 0
