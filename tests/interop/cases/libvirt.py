# SPDX-License-Identifier: Apache-2.0
"""What libvirt said to QEMU, said to migrationd. The same stories with QEMU 10.0 on both sides prove the player."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
from pathlib import Path
from typing import Callable

from ..lib import cases, guest, links
from ..lib.daemon import Migrationd
from ..lib.host import Host
from ..lib.qemu import Qemu
from ..lib.qmp import QmpError
from ..libvirt_replay import Replay, load

SYNTHETIC = "synthetic,ram=64M,dirty-rate=50M,working-set=32M"
BUSY = guest.Guest(pages=8192, fill=8192)     # 32 MiB rewritten a hundred times a second


def _source(kind: str, folder: Path, name: str = "source") -> Host:
    if kind == "migrationd":
        return Migrationd(folder, name, machine=SYNTHETIC)
    host = Qemu(folder, name, "10.0", memory_mib=64, guest=BUSY, own_firmware=True)
    host.wait_sweeps(2)
    return host


def _destination(kind: str, folder: Path, name: str = "target", fds: tuple[int, ...] = (),
                 options: list[str] | None = None) -> Host:
    if kind == "migrationd":
        return Migrationd(folder, name, machine=SYNTHETIC, incoming=["defer"], paused=True, pass_fds=fds)
    return Qemu(folder, name, "10.0", memory_mib=64, guest=BUSY, incoming=True, paused=True, pass_fds=fds,
                own_firmware=True, options=options)


class Listening:
    """The address of a live migration, for both sides."""

    def __init__(self, folder: Path, transport: str):
        self.ready = threading.Event()
        self.path = folder / "migration"
        self.port = links.free_port("::")
        self.uri = f"tcp:[::]:{self.port}" if transport == "tcp" else f"unix:{self.path}"
        self.target = f"tcp:[::1]:{self.port}"      # for a source that connects itself
        self.transport = transport
        self.sockets: list[socket.socket] = []

    def connected(self) -> int:
        """A socket as libvirt passes it to the source: connected to the destination."""
        assert self.ready.wait(30), "the destination never answered migrate-incoming"
        if self.transport == "tcp":
            connection = socket.create_connection(("::1", self.port), 10)
        else:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(str(self.path))
        connection.setblocking(True)
        self.sockets.append(connection)
        return connection.fileno()

    def wait(self, command: str) -> None:
        if command == "migrate":
            assert self.ready.wait(30), "the destination never answered migrate-incoming"

    def close(self) -> None:
        for connection in self.sockets:
            connection.close()

    def replied(self, command: str) -> None:
        if command == "migrate-incoming":
            self.ready.set()
        if command == "getfd":
            self.close()


def _both(folder: Path, transcript: str, transport: str, source_kind: str, destination_kind: str) -> None:
    """Source and destination played at the same time, as two libvirt daemons would."""
    listening = Listening(folder, transport)
    failure: list[BaseException] = []
    with _source(source_kind, folder) as source, _destination(destination_kind, folder) as destination:
        near = Replay(source, f"{transcript}-source", uri=listening.target, descriptor=listening.connected,
                      on_reply=listening.replied, before=listening.wait)
        far = Replay(destination, f"{transcript}-destination", uri=listening.uri, on_reply=listening.replied)

        def play_far() -> None:
            try:
                far.run()
            except BaseException as error:  # handed to the main thread
                failure.append(error)
                listening.ready.set()

        thread = threading.Thread(target=play_far)
        thread.start()
        try:
            near.run()
        finally:
            thread.join(60)
            listening.close()
        if failure:
            raise failure[0]
        _afterwards(transcript, source, destination)


def _afterwards(transcript: str, source: Host, destination: Host) -> None:
    """The machine is whole, on the right side, and runs there."""
    owner = source if "abort" in transcript else destination
    assert owner.run_state() == "running", owner.run_state()
    if isinstance(owner, Migrationd):
        owner.verify_machine()


def _save(folder: Path, host: Host, transcript: str, gzip: bool) -> Path:
    """Plays virsh save; returns the file with the stream."""
    path = folder / "saved"
    opened: list[int] = []
    compressor = None

    def descriptor() -> int:
        nonlocal compressor
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        if gzip:
            compressor = subprocess.Popen(["gzip", "-c"], stdin=subprocess.PIPE, stdout=target)
            os.close(target)
            target = compressor.stdin.fileno()
        else:
            opened.append(target)
        return target

    def replied(command: str) -> None:
        if command == "getfd":
            while opened:
                os.close(opened.pop())
            if compressor:
                compressor.stdin.close()

    Replay(host, transcript, descriptor=descriptor, on_reply=replied).run()
    if compressor:
        assert compressor.wait(20) == 0
        subprocess.run(["gzip", "-d"], stdin=open(path, "rb"), stdout=open(folder / "unpacked", "wb"), check=True,
                       timeout=20)
        return folder / "unpacked"
    return path


def _restore(folder: Path, kind: str, transcript: str, saved: Path, running: bool) -> None:
    fd = os.open(saved, os.O_RDONLY)
    try:
        with _destination(kind, folder, fds=(fd,)) as host:
            Replay(host, transcript, uri=f"fd:{fd}").run()
            assert host.run_state() == ("running" if running else "paused"), host.run_state()
            if isinstance(host, Migrationd):
                host.verify_machine()
    finally:
        os.close(fd)


def _save_and_restore(folder: Path, kind: str, gzip: bool) -> None:
    with _source(kind, folder) as host:
        saved = _save(folder, host, "save-gzip-paused" if gzip else "save-raw", gzip)
    _restore(folder, kind, "restore-gzip-paused" if gzip else "restore-raw", saved, running=not gzip)


# --- sparse images ---------------------------------------------------------------------------------------------------

STREAM = 0x1069f        # where the recorded offset lies


def _header(magic: bytes) -> bytes:
    xml = b"<domain type='qemu'><name>any</name></domain>\0"
    return (magic + struct.pack("<5I", 2, STREAM - 92, 1, 6, 0)).ljust(92, b"\0") + xml.ljust(STREAM - 92, b"\0")


def _save_sparse(folder: Path, host: Host, transcript: str) -> Path:
    """Plays virsh save --image-format sparse: libvirt writes its header, QEMU everything behind it."""
    path = folder / "saved"
    path.write_bytes(_header(b"LibvirtQemudPart"))
    flags = iter((os.O_WRONLY, os.O_WRONLY | os.O_DIRECT))
    opened: list[int] = []

    def descriptor() -> int:
        opened.append(os.open(path, next(flags)))
        os.lseek(opened[-1], STREAM, os.SEEK_SET)
        return opened[-1]

    def replied(command: str) -> None:
        if command == "add-fd":
            os.close(opened.pop())

    Replay(host, transcript, descriptor=descriptor, on_reply=replied).run()
    with open(path, "r+b") as file:
        file.write(b"LibvirtQemudSave")
    return path


def _sparse(folder: Path, kind: str, story: str) -> None:
    with _source(kind, folder) as host:
        saved = _save_sparse(folder, host, f"save-{story}")
    modes = [os.O_RDONLY, os.O_RDONLY | os.O_DIRECT] if "bypass-cache" in story else [os.O_RDONLY]
    fds = tuple(os.open(saved, mode) for mode in modes)
    # Libvirt gives the set on QEMU's command line; to a migrationd another client passes it.
    options = [word for fd in fds for word in ("-add-fd", f"fd={fd},set=0,opaque=libvirt")]
    with _destination(kind, folder, fds=fds, options=options) as host:
        for fd in fds:
            if kind == "migrationd":
                host.qmp.execute("add-fd", {"fdset-id": 0, "opaque": "libvirt"}, fds=[fd])
            os.close(fd)
        Replay(host, f"restore-{story}").run()
        assert host.run_state() == "running", host.run_state()
        if isinstance(host, Migrationd):
            host.verify_machine()
    if kind == "migrationd":    # the same image by its name: its header says all that is needed
        with _destination(kind, folder, "by-name") as host:
            host.incoming(f"file:{saved}")
            host.wait_status("completed")
            host.verify_machine()


def _suspend_resume(folder: Path, kind: str) -> None:
    with _source(kind, folder) as host:
        Replay(host, "suspend-resume").run()
        assert host.run_state() == "running"


def _domain_start(folder: Path, kind: str) -> None:
    host: Host = (Migrationd(folder, "host", machine=SYNTHETIC, paused=True) if kind == "migrationd"
                  else Qemu(folder, "host", "10.0", paused=True, own_firmware=True))
    with host:
        Replay(host, "domain-start").run()
        assert host.run_state() == "running"


def _parameters_accepted_back(folder: Path, kind: str) -> None:
    """libvirt writes back all it has read that it knows by name."""
    known = {"cpu-throttle-initial", "cpu-throttle-increment", "tls-creds", "tls-hostname", "max-bandwidth",
             "downtime-limit", "xbzrle-cache-size", "max-postcopy-bandwidth", "multifd-channels", "multifd-compression",
             "multifd-zlib-level", "multifd-zstd-level", "avail-switchover-bandwidth", "direct-io"}
    with _source(kind, folder) as host:
        before = host.qmp.execute("query-migrate-parameters")
        assert known <= set(before), known - set(before)
        host.qmp.execute("migrate-set-parameters", {name: before[name] for name in known})
        assert host.qmp.execute("query-migrate-parameters") == before
        host.qmp.execute("migrate-set-parameters", {"max-bandwidth": 9223372036853727232})


def _errors_as_qemu(folder: Path, _kind: str) -> None:
    """A path, a property or a device that is not there: migrationd's answer is QEMU's, word for word, but for the name
    of the machine's type."""
    questions = [("qom-get", {"path": "/machine/nothing-here", "property": "type"}),
                 ("qom-get", {"path": "nothing-here", "property": "type"}),
                 ("qom-get", {"path": "/machine", "property": "nothing-here"}),
                 ("qom-list", {"path": "/machine/nothing-here"}),
                 ("qom-list", {}),
                 ("qom-get", {"path": "/machine/unattached/device[999]", "property": "realized"})]
    answers = []
    with Qemu(folder, "real", "10.0", paused=True) as real, Migrationd(folder, "ours", machine=SYNTHETIC) as ours:
        for host in (real, ours):
            own_type = host.qmp.execute("qom-get", {"path": "/machine", "property": "type"})
            assert own_type.endswith("-machine"), own_type
            for command, arguments in questions:
                try:
                    answers.append(("return", type(host.qmp.execute(command, arguments)).__name__))
                except QmpError as error:
                    answers.append((error.error_class, error.desc.replace(own_type, "TYPE")))
    for question, theirs, mine in zip(questions, answers, answers[len(questions):]):
        assert theirs == mine, f"{question}: QEMU says {theirs}, migrationd {mine}"


STORIES: list[tuple[str, Callable[..., None], tuple]] = [
    ("migrate-live-tcp", _both, ("migrate-live-tcp", "tcp")),
    ("migrate-live-unix", _both, ("migrate-live-unix", "unix")),
    ("migrate-abort", _both, ("migrate-abort", "tcp")),
    ("migrate-parallel", _both, ("migrate-parallel", "tcp")),
]
for _name, _story, _arguments in STORIES:
    cases.add(f"libvirt/{_name}", lambda folder, story=_story, arguments=_arguments:
              story(folder, *arguments, "migrationd", "migrationd"), quick=_name == "migrate-live-tcp")
    cases.add(f"selftest/libvirt/{_name}", lambda folder, story=_story, arguments=_arguments:
              story(folder, *arguments, "qemu", "qemu"), daemon=False)
for _name, _story, _extra in (("save-and-restore-raw", _save_and_restore, (False,)),
                              ("save-gzip-paused-and-restore", _save_and_restore, (True,)),
                              ("save-and-restore-sparse", _sparse, ("sparse",)),
                              ("save-and-restore-sparse-parallel", _sparse, ("sparse-parallel",)),
                              ("save-and-restore-sparse-parallel-bypass-cache", _sparse,
                               ("sparse-parallel-bypass-cache",)),
                              ("suspend-resume", _suspend_resume, ()), ("domain-start", _domain_start, ()),
                              ("parameters-are-accepted-back", _parameters_accepted_back, ())):
    cases.add(f"libvirt/{_name}", lambda folder, story=_story, extra=_extra: story(folder, "migrationd", *extra),
              quick=_name == "save-and-restore-raw")
    cases.add(f"selftest/libvirt/{_name}", lambda folder, story=_story, extra=_extra: story(folder, "qemu", *extra),
              daemon=False)
cases.add("libvirt/errors-are-qemus", lambda folder: _errors_as_qemu(folder, ""))
assert load("migrate-live-tcp-source")
