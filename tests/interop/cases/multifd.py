# SPDX-License-Identifier: Apache-2.0
"""Pages over connections of their own: a real machine in and out again with every pair of versions, number of channels,
method and zero-page mode; a synthetic guest that writes meanwhile; and sources that lie, leave or do not come.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from ..lib import cases, links, procfs, streams
from ..lib.daemon import Migrationd
from ..lib.host import Host
from ..lib.qemu import MACHINE, Qemu
from ..lib.qmp import QmpError
from ..lib.streams import Stream, blocks_list, configuration, footer, header, ram_part, section_header, u64
from .matrix import VERSIONS
from .story import QuietPair, arrive, depart
from .synthetic import machine

NEWEST = "pc-i440fx-10.0"   # FLUSH records and zero pages in packets; the other machine type has neither
CHANNELS = (1, 2, 4, 16)
METHODS = ("none", "zlib", "zstd")
ZEROS = ("none", "legacy", "multifd")


def configure(host: Host, channels: int = 2, method: str = "none", zeros: str = "multifd") -> None:
    host.parameters(multifd_channels=channels, multifd_compression=method)
    if method == "zlib":
        # 25 to 45 MB/s on a quiet machine, QEMU's too, and 0.1 where many builds share its cores: a guest that writes
        # 4 MiB all the time is never done then (the source's passes go up, its expected-downtime stays at 10 to 45 s).
        host.parameters(downtime_limit=200_000)
    if host.version != "7.2":
        host.parameters(zero_page_detection=zeros)
    host.capabilities("multifd")


def relay(folder: Path, versions: tuple[str, str], machine_type: str, channels: int, method: str, zeros: str,
          link_name: str = "tcp4", running: bool = True, return_path: bool = True, zero_copy: bool = False) -> None:
    first, second = (links.ALL[link_name](folder, tag) for tag in ("in", "out"))
    with Qemu(folder, "source", versions[0], machine=machine_type) as source, \
         Migrationd(folder, "park") as park, \
         Qemu(folder, "target", versions[1], machine=machine_type, incoming=True) as destination:
        for host in (source, park, destination):
            configure(host, channels, method, zeros)
            host.capabilities(zero_copy_send=zero_copy)
        pair = QuietPair(source, destination)
        depart(pair, running)
        links.transfer(source, park, first, return_path)
        links.transfer(park, destination, second, return_path)
        ram = park.query_migrate()["ram"]
        # The pages really took the channels.
        assert ram["multifd-bytes"] > 64 * channels, ram
        assert ram["transferred"] > ram["multifd-bytes"], ram
        check_missed(ram, zero_copy, channels)
        arrive(pair, running)


def check_missed(ram: dict, zero_copy: bool, channels: int) -> None:
    """Over loopback the kernel copies, and says so: at most once a channel and barrier, at least once."""
    missed = ram["dirty-sync-missed-zero-copy"]
    assert missed <= ram["dirty-sync-count"] * channels, ram
    assert (missed > 0) == zero_copy, ram


def _register_relays() -> None:
    pairs = [((a, b), MACHINE) for a in VERSIONS for b in VERSIONS] + [(("10.0", "10.0"), NEWEST)]
    quick = {("7.2", "10.0", 2, "none", "legacy"), ("10.0", "7.2", 4, "zlib", "legacy"),
             ("10.0", "10.0", 2, "zstd", "multifd")}
    for (versions, machine_type), channels, method, zeros in itertools.product(pairs, CHANNELS, METHODS, ZEROS):
        wanted = (*versions, channels, method, zeros) in quick and \
            (machine_type == NEWEST) == (zeros == "multifd")
        cases.add(f"multifd/relay/{versions[0]}-to-{versions[1]}/{machine_type}/{channels}/{method}/zeros-{zeros}",
                  lambda folder, args=(versions, machine_type, channels, method, zeros): relay(folder, *args),
                  quick=wanted)
    for name, options in {"unix": {"link_name": "unix"}, "vsock": {"link_name": "vsock"},
                          "stopped": {"running": False}, "one-way": {"return_path": False},
                         "zero-copy": {"zero_copy": True}}.items():
        for versions, machine_type in pairs:
            cases.add(f"multifd/relay/{versions[0]}-to-{versions[1]}/{machine_type}/{name}",
                      lambda folder, args=(versions, machine_type, 2, "none", "multifd"), options=options:
                      relay(folder, *args, **options),
                      quick=(name, *versions) in (("unix", "7.2", "7.2"), ("zero-copy", "7.2", "10.0")))


_register_relays()


# --- a guest that writes ----------------------------------------------------------------------------------------------

def live(folder: Path, channels: int, method: str, zeros: str, rate: int = 100, link_name: str = "tcp4",
         max_bandwidth: int = 0) -> None:
    what = machine(rate, ram="128M", working_set="24M")
    with Migrationd(folder, "source", machine=what) as source, \
         Migrationd(folder, "target", machine=what, incoming=["defer"]) as destination:
        for host in (source, destination):
            configure(host, channels, method, zeros)
            host.capabilities("return-path")
        source.parameters(max_bandwidth=max_bandwidth or 1 << 40, downtime_limit=5000 if method == "none" else 200_000)
        link = links.ALL[link_name](folder, "move")
        link.listen(destination)
        started = time.monotonic()
        link.connect(source)
        source.wait_status("completed", timeout=80)
        seconds = time.monotonic() - started
        destination.wait_status("completed")
        ram = source.wait_totals()["ram"]
        if max_bandwidth:
            paced = ram["transferred"] - ram["downtime-bytes"]
            assert paced <= max_bandwidth * seconds * 1.15 + (8 << 20), f"{paced} bytes in {seconds:.1f} s"
        assert ram["multifd-bytes"] > 20 << 20 or method != "none", ram
        assert destination.verify_machine() > 0


for _channels, _method, _zeros in itertools.product(CHANNELS, METHODS, ZEROS):
    cases.add(f"multifd/live/{_channels}/{_method}/zeros-{_zeros}",
              lambda folder, args=(_channels, _method, _zeros): live(folder, *args), timeout=100,
              quick=(_channels, _method, _zeros) in ((4, "none", "multifd"), (2, "zstd", "legacy")))
cases.add("multifd/live/limited", lambda folder: live(folder, 2, "none", "multifd", 10, max_bandwidth=50_000_000),
          timeout=60, quick=True)
cases.add("multifd/live/255-channels", lambda folder: live(folder, 255, "none", "multifd", 50, "unix"), timeout=60)


@cases.case("multifd/live/zero-copy", timeout=60)
def live_zero_copy(folder: Path) -> None:
    """A guest that writes while the kernel still refers to its pages."""
    what = machine(200, ram="128M", working_set="24M")
    with Migrationd(folder, "source", machine=what) as source, \
         Migrationd(folder, "target", machine=what, incoming=["defer"]) as destination:
        for host in (source, destination):
            configure(host, 4)
            host.capabilities("return-path", "zero-copy-send")
        source.parameters(max_bandwidth=1 << 40, downtime_limit=100)
        destination.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        source.wait_status("completed")
        destination.wait_status("completed")
        check_missed(source.wait_totals()["ram"], True, 4)
        assert destination.verify_machine() > 0


@cases.case("multifd/zero-copy-refused", quick=True)
def zero_copy_refused(folder: Path) -> None:
    """Where it cannot be done the migration fails in QEMU's words, which is asked too, and the guest runs on."""
    limit = {resource.RLIMIT_MEMLOCK: 64 * 1024}
    with Migrationd(folder, "ours", machine=machine(0, ram="16M", working_set="4M"), limits=limit) as ours, \
         Qemu(folder, "qemu", "10.0", limits=limit) as qemu, socket.socket(socket.AF_UNIX) as local, \
         socket.create_server(("127.0.0.1", 0), backlog=16) as tcp:
        # Nobody there takes a byte; that is enough to be refused.
        local.bind(f"{folder}/link")
        local.listen(16)
        qemu.wait_sweeps(2)
        for host in (ours, qemu):
            configure(host, 2)
            host.capabilities("zero-copy-send")
            for uri, text in ((f"unix:{folder}/link", "Zero copy send feature not detected in host kernel"),
                              (f"tcp:127.0.0.1:{tcp.getsockname()[1]}",
                               "Process can't lock enough memory for using MSG_ZEROCOPY: No buffer space available")):
                host.migrate(uri)
                host.wait(lambda host=host: host.status() == "failed", what="the refusal")
                assert host.query_migrate()["error-desc"] == text, host.query_migrate()
                assert host.run_state() == "running"


@cases.case("multifd/threads-and-cpus", quick=True)
def threads(folder: Path) -> None:
    """Names as QEMU 10.0's, ids that are threads, and each on the CPU it was given."""
    cpus = sorted(os.sched_getaffinity(0))
    with Migrationd(folder, "ours", machine=machine(0, ram="64M", working_set="48M"),
                    options=["--worker-cpus", ",".join(map(str, cpus))]) as ours, \
         Migrationd(folder, "target", machine=machine(0, ram="64M", working_set="48M"), incoming=["defer"],
                    options=["--worker-cpus", str(cpus[-1])]) as destination:
        for host in (ours, destination):
            configure(host, 3)
            assert host.qmp.execute("query-migrationthreads") == []
        ours.parameters(max_bandwidth=8 << 20)
        destination.incoming("tcp:127.0.0.1:0")
        ours.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        ours.wait_status("active")
        ours.wait(lambda: len(ours.qmp.execute("query-migrationthreads")) == 4, what="all threads")
        told = {row["name"]: row["thread-id"] for row in ours.qmp.execute("query-migrationthreads")}
        assert set(told) == {"mig/src/main", "mig/src/send_0", "mig/src/send_1", "mig/src/send_2"}, told
        for name, thread in told.items():
            assert Path(f"/proc/{ours.pid}/task/{thread}/comm").read_text().strip() == name
        for number in range(3):
            assert os.sched_getaffinity(told[f"mig/src/send_{number}"]) == {cpus[number % len(cpus)]}
        assert destination.qmp.execute("query-migrationthreads") == []      # as QEMU: the source's
        # They begin when the block list has come, which the source does not hear of.
        receivers = {f"mig/dst/recv_{number}" for number in range(3)}
        destination.wait(lambda: receivers <= set(procfs.thread_names(destination.pid)), what="its threads")
        theirs = procfs.thread_names(destination.pid)
        for number in range(3):
            assert os.sched_getaffinity(theirs[f"mig/dst/recv_{number}"]) == {cpus[-1]}, theirs
        ours.qmp.execute("migrate_cancel")
        ours.wait(lambda: ours.status() == "cancelled", what="the cancel to be done")
        assert ours.qmp.execute("query-migrationthreads") == []


@contextlib.contextmanager
def under_way(folder: Path) -> Iterator[tuple[Migrationd, Migrationd]]:
    """A slow migration over four channels that has sent some pages."""
    what = machine(50, ram="128M")
    with Migrationd(folder, "source", machine=what) as source, \
         Migrationd(folder, "target", machine=what, incoming=["defer"]) as destination:
        for host in (source, destination):
            configure(host, 4)
        source.parameters(max_bandwidth=20_000_000)
        destination.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        source.wait(lambda: source.query_migrate().get("ram", {}).get("transferred", 0) > 8 << 20, 20, "some pages")
        yield source, destination


@cases.case("multifd/live/cancelled-and-again", timeout=60, quick=True)
def cancelled(folder: Path) -> None:
    with under_way(folder) as (source, destination):
        source.qmp.execute("migrate_cancel")
        source.wait(lambda: source.status() == "cancelled", what="the cancel to be done")
        destination.wait(lambda: destination.status() == "failed", what="the destination to notice")
        source.parameters(max_bandwidth=1 << 40)
        destination.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        source.wait_status("completed")
        destination.wait_status("completed")
        assert destination.verify_machine() > 0


@cases.case("multifd/live/destination-killed", timeout=60, quick=True)
def destination_killed(folder: Path) -> None:
    """The guest runs on at the source, within moments."""
    with under_way(folder) as (source, destination):
        destination.child.kill()
        source.wait(lambda: source.status() == "failed", what="the source to notice")
        assert source.run_state() == "running" and source.owner() == "here"
        assert source.verify_machine() > 0


# --- refusals ---------------------------------------------------------------------------------------------------------

def refused(host: Host, command: str, arguments: dict, text: str) -> None:
    try:
        host.qmp.execute(command, arguments)
    except QmpError as error:
        assert error.desc == text, error.desc
    else:
        raise AssertionError(f"{command} {arguments} was accepted")


@cases.case("multifd/refused-settings", quick=True)
def refusals(folder: Path) -> None:
    """In the words of QEMU 10.0, which is asked too."""
    def on(*names: str) -> dict:
        return {"capabilities": [{"capability": name, "state": True} for name in names]}
    with Migrationd(folder, "park") as park, Qemu(folder, "qemu", "10.0", incoming=True) as qemu:
        for host in (park, qemu):
            refused(host, "migrate-set-capabilities", on("multifd", "xbzrle"), "Multifd is not compatible with xbzrle")
            refused(host, "migrate-set-capabilities", on("multifd", "postcopy-ram"),
                    "Postcopy is not yet compatible with multifd")
            refused(host, "migrate-set-parameters", {"multifd-channels": 0},
                    "Parameter 'multifd_channels' expects a value between 1 and 255")
            refused(host, "migrate-set-parameters", {"multifd-compression": "qpl"},
                    "Parameter 'multifd-compression' does not accept value 'qpl'")
            host.capabilities("multifd")
            for uri in (f"file:{folder}/f", "exec:cat", "fd:x"):
                refused(host, "migrate-incoming", {"uri": uri}, "Migration requires multi-channel URIs (e.g. tcp)")
            host.capabilities(multifd=False)
            host.incoming("tcp:127.0.0.1:0")
            refused(host, "migrate-set-capabilities", on("multifd"), "Multifd must be set before incoming starts")


# --- sources that lie -------------------------------------------------------------------------------------------------

FLUSH = u64(0x200)
RAM_BYTES = 1 << 20
NAME = b"pc.ram"


def hello(channel: int, magic: int = 0x11223344, version: int = 1, uuid: bytes = bytes(16)) -> bytes:
    return struct.pack(">II", magic, version) + uuid + bytes([channel]) + bytes(39)


def packet(flags: int = 0, room: int = 128, normal: int = 0, size: int | None = None, zero: int = 0,
           name: bytes = NAME, offsets: tuple[int, ...] = (), payload: bytes | None = None,
           magic: int = 0x11223344, version: int = 1) -> bytes:
    head = struct.pack(">IIIIIIQI", magic, version, flags, room, normal,
                       normal * 4096 if size is None else size, 0, zero) + bytes(28)
    head += name.ljust(256, b"\0") + b"".join(struct.pack(">Q", at) for at in offsets).ljust(1024, b"\0")
    return head + (bytes([7]) * 4096 * normal if payload is None else payload)


SYNC = packet(flags=1)     # with room, as 7.2's: such a source's numbers are not looked at


def page(offset: int = 0) -> bytes:
    return packet(normal=1, offsets=(offset,))


def start(records: bytes = FLUSH) -> bytes:
    """Header, configuration, and the START of `ram`, whose records are those."""
    blocks = blocks_list([("pc.ram", RAM_BYTES)])
    return header() + configuration() + section_header(streams.START, streams.RAM_ID, "ram", 0, 4) + blocks + records \
        + u64(streams.EOS) + footer()


def end(records: bytes = FLUSH) -> bytes:
    honest = Stream()
    return ram_part(records, streams.END) + honest.devices + honest.eof + honest.description


class Liar:
    """The connections of a source, made by hand."""

    def __init__(self, daemon: Migrationd, channels: int = 2, method: str = "none"):
        configure(daemon, channels, method)
        daemon.incoming("tcp:127.0.0.1:0")
        self.daemon = daemon
        self.port = daemon.listening_port()
        self.sockets: list[socket.socket] = []

    def connect(self, data: bytes) -> socket.socket:
        link = socket.socket()
        link.settimeout(20)
        self.sockets.append(link)
        with contextlib.suppress(ConnectionError):      # it may have been found out already
            link.connect(("127.0.0.1", self.port))
            link.sendall(data)
        return link

    def fails(self, text: str, within: float = 20.0) -> None:
        daemon = self.daemon
        daemon.wait(lambda: daemon.status() in ("failed", "completed"), within, f"the refusal '{text}'")
        answer = daemon.query_migrate()
        assert answer["status"] == "failed" and text in answer.get("error-desc", ""), (text, answer)
        assert daemon.owner() == "none", daemon.owner()
        for link in self.sockets:
            link.close()
        # And it takes an honest one after that.
        daemon.incoming("tcp:127.0.0.1:0")


def lie(folder: Path, expected: str, main: bytes | None, channels: list[bytes], closes: tuple[int, ...] = (),
        within: float = 20.0, **settings) -> None:
    with Migrationd(folder, "park") as park:
        liar = Liar(park, **settings)
        opened = [liar.connect(data) for data in channels]
        if main is not None:
            liar.connect(main)
        for number in closes:
            with contextlib.suppress(OSError):
                opened[number].shutdown(socket.SHUT_WR)
        liar.fails(expected, within)


START = start()
TWO = [hello(0) + SYNC, hello(1) + SYNC]
ALL_WELL = START + ram_part(FLUSH) + end()


def one_bad(bad: bytes) -> list[bytes]:
    return [TWO[0] + SYNC * 2, TWO[1] + bad + SYNC * 2]


LIES: dict[str, tuple] = {
    # hellos
    "hello/version": ("received packet version 2, expected 1", START, [hello(0, version=2)]),
    "hello/number-is-the-count": ("received channel id 2 is greater than number of channels 2", START, [hello(2)]),
    "hello/number-255": ("received channel id 255 is greater than", START, [hello(255)]),
    "hello/twice": ("received id '1' already setup", None, [hello(1), hello(1)]),
    "hello/uuids-differ": ("received uuid '01010101-0101-0101-0101-010101010101' and expected uuid "
                           "'00000000-0000-0000-0000-000000000000' for channel 1", None,
                           [hello(0), hello(1, uuid=b"\1" * 16)]),
    # packets
    "packet/magic": ("multifd channel 1: received packet magic", ALL_WELL, one_bad(packet(magic=0x11223345))),
    "packet/version": ("multifd channel 1: received packet version 0", ALL_WELL, one_bad(packet(version=0))),
    "packet/room": ("received packet with 129 pages, expected 128", ALL_WELL, one_bad(packet(room=129))),
    "packet/normal": ("received packet with 129 non-zero pages", ALL_WELL, one_bad(packet(normal=129, payload=b""))),
    "packet/zero": ("received packet with 128 zero pages, expected maximum 127", ALL_WELL,
                    one_bad(packet(normal=1, zero=128))),
    "packet/zero-huge": ("received packet with 4294967295 zero pages", ALL_WELL, one_bad(packet(zero=0xffffffff))),
    "packet/block": ("unknown ram block nosuch", ALL_WELL, one_bad(packet(normal=1, name=b"nosuch"))),
    "packet/block-without-end": ("name is empty or has no end", ALL_WELL, one_bad(packet(normal=1, name=b"a" * 256))),
    "packet/block-unnamed": ("name is empty or has no end", ALL_WELL, one_bad(packet(normal=1, name=b""))),
    "packet/past-the-end": ("block 'pc.ram'", ALL_WELL, one_bad(page(RAM_BYTES))),
    "packet/far-past-the-end": ("block 'pc.ram'", ALL_WELL, one_bad(page(0xfffffffffffff000))),
    "packet/unaligned": ("is not at a page's start", ALL_WELL, one_bad(page(8))),
    "packet/zero-page-past-the-end": ("block 'pc.ram'", ALL_WELL, one_bad(packet(zero=1, offsets=(RAM_BYTES,)))),
    "packet/method": ("flags received 2 flags expected 0", ALL_WELL, one_bad(packet(flags=2, normal=1))),
    "packet/device-state": ("state of a device", ALL_WELL, one_bad(packet(flags=0x40))),
    # barriers
    "barrier/no-flush-at-the-end": ("without a multifd synchronisation point", START + ram_part(FLUSH) + end(b""),
                                    [channel + SYNC for channel in TWO]),
    "barrier/flush-in-a-stream-per-section": ("synchronises at the end of each section",
                                              start(b"") + ram_part(FLUSH), TWO),
    "barrier/one-sync-too-many": ("behind the last one", ALL_WELL, [channel + SYNC * 3 for channel in TWO]),
    "barrier/pages-behind-the-last": ("behind the last one", ALL_WELL, [channel + SYNC * 2 + page() for channel in TWO]),
}
LEAVING: dict[str, tuple] = {
    # (text, main, channels, which end)
    "between-packets": ("multifd channel 1: the source ended it before", START, TWO, (1,)),
    "before-its-sync": ("multifd channel 1", ALL_WELL, [TWO[0], hello(1)], (1,)),
    "within-a-header": ("multifd channel 1: Unexpected end-of-file", START, [TWO[0], hello(1) + SYNC + SYNC[:12]], (1,)),
    "within-a-page": ("multifd channel 1: Unexpected end-of-file", START, [TWO[0], hello(1) + SYNC + page()[:-1]], (1,)),
}
ZLIB_LIES: dict[str, tuple] = {
    "garbage": ("inflate returned", ALL_WELL, one_bad(packet(flags=2, normal=1, size=64, payload=b"\x55" * 64))),
    "empty": ("inflate returned", ALL_WELL, one_bad(packet(flags=2, normal=1, size=0, payload=b""))),
    "too-large": ("next_packet_size 1048577 exceeds allocated 1048576", ALL_WELL,
                  one_bad(packet(flags=2, normal=1, size=1048577, payload=b""))),
    "zeros-with-payload": ("expected empty packet", ALL_WELL, one_bad(packet(flags=2, zero=1, size=5, payload=b""))),
    "not-compressed": ("flags received 0 flags expected 2", ALL_WELL, one_bad(page())),
}
QUICK_LIES = ("hello/number-is-the-count", "packet/past-the-end", "barrier/one-sync-too-many")
for _name, _lie in LIES.items():
    cases.add(f"multifd/hostile/{_name}", lambda folder, args=_lie: lie(folder, *args), quick=_name in QUICK_LIES)
for _name, _lie in LEAVING.items():
    cases.add(f"multifd/hostile/leaves/{_name}", lambda folder, args=_lie: lie(folder, *args),
              quick=_name == "within-a-page")
for _name, _lie in ZLIB_LIES.items():
    cases.add(f"multifd/hostile/zlib/{_name}", lambda folder, args=_lie: lie(folder, *args, method="zlib"))
    if _name == "garbage":
        cases.add(f"multifd/hostile/zstd/{_name}", lambda folder: lie(
            folder, "decompressStream returned", ALL_WELL,
            one_bad(packet(flags=4, normal=1, size=64, payload=b"\x55" * 64)), method="zstd"))


@cases.case("multifd/hostile/a-channel-never-comes", timeout=40, quick=True)
def never_comes(folder: Path) -> None:
    lie(folder, "multifd channels are missing: 1 of 2 have come", START, [hello(0) + SYNC], within=30)


@cases.case("multifd/hostile/wrong-magic-is-no-channel", timeout=40)
def wrong_magic(folder: Path) -> None:
    """Anybody may knock; only what says it is a channel is one."""
    lie(folder, "neither a migration stream nor a multifd channel", START,
        [hello(0) + SYNC, hello(1, magic=0xdeadbeef)], within=30)


@cases.case("multifd/hostile/the-main-stream-goes-while-channels-are-awaited")
def main_goes(folder: Path) -> None:
    with Migrationd(folder, "park") as park:
        liar = Liar(park)
        main = liar.connect(START)
        time.sleep(0.2)
        main.close()
        liar.fails("went away while its multifd channels were awaited")


@cases.case("multifd/hostile/all-is-sent-and-closed-before-its-channels-are-seen", quick=True)
def gone_when_looked_at(folder: Path) -> None:
    """A busy machine: the daemon has taken the main stream, and when it looks again its source has connected the
    channels, sent everything and closed."""
    with Migrationd(folder, "park") as park:
        liar = Liar(park)
        main = liar.connect(START)
        time.sleep(0.3)
        park.signal(signal.SIGSTOP)
        try:
            for channel in TWO:
                liar.connect(channel + SYNC * 2).close()
            main.sendall(ram_part(FLUSH) + end())
            main.close()
        finally:
            park.signal(signal.SIGCONT)
        park.wait_status("completed")


@cases.case("multifd/a-destination-that-refuses-is-heard", quick=True)
def refusal_is_heard(folder: Path) -> None:
    """It closes a channel first and says that it failed a moment later: the reason is its word, not the broken channel."""
    with Migrationd(folder, "source", machine=machine(0, ram="64M", working_set="48M")) as source, \
         socket.create_server(("127.0.0.1", 0), backlog=4) as listener:
        listener.settimeout(20)
        configure(source, 2)
        source.capabilities("return-path")
        source.migrate(f"tcp:127.0.0.1:{listener.getsockname()[1]}")
        main, *channels = (listener.accept()[0] for _ in range(3))
        with main:
            main.settimeout(20)
            main.recv(1)
            for channel in channels:
                channel.close()
            time.sleep(0.5)
            main.sendall(struct.pack(">HHI", 1, 4, 1))
            source.wait(lambda: source.status() == "failed", what="the failure")
        assert source.query_migrate()["error-desc"] == "Sibling indicated error 1", source.query_migrate()
        assert source.run_state() == "running" and source.owner() == "here"


@cases.case("multifd/hostile/order-does-not-matter", timeout=40, quick=True)
def order(folder: Path) -> None:
    """Channels first, the main stream in the middle, each in pieces, and a silent one and a probe beside them."""
    with Migrationd(folder, "park") as park:
        liar = Liar(park, channels=3)
        liar.connect(b"")                           # says nothing
        liar.connect(b"GET / HTTP/1.1\r\n\r\n")
        slow = liar.connect(hello(2)[:30])
        liar.connect(hello(1) + SYNC + page(4096) + SYNC * 2)
        main = liar.connect(START[:3])
        time.sleep(0.1)
        main.sendall(START[3:])
        slow.sendall(hello(2)[30:] + SYNC)
        time.sleep(0.1)
        assert park.status() == "setup", park.status()
        liar.connect(hello(0) + SYNC * 3)
        park.wait_status("active", timeout=20)
        slow.sendall(SYNC * 2)
        main.sendall(ram_part(FLUSH) + end())
        main.shutdown(socket.SHUT_WR)
        park.wait_status("completed", timeout=20)
