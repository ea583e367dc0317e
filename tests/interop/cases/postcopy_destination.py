# SPDX-License-Identifier: Apache-2.0
"""Machines that arrive before their memory: a synthetic guest that runs while its pages come, fed by a source that the
test plays; and real QEMUs' postcopy into a parked daemon, which is completed as a pull and handed on.
"""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path
from typing import Callable

from ..lib import cases, procfs, streams
from ..lib.daemon import Migrationd
from ..lib.guest import Guest
from ..lib.postcopy_source import DISCARD, LISTEN, PACKAGED, RAM_ID, RUN, Broken, Image, Source, footer
from ..lib.qemu import MACHINE, Qemu
from ..lib.qmp import QmpError
from ..lib.streams import EOS, PAGE, PART, command, full_page, str8, u8, u32, u64, zero_page
from .matrix import VERSIONS
from .story import QuietPair, arrive
from .synthetic import MB

RAM = "synthetic.ram"
HUGE = 2 << 20


def machine(rate: int, ram: str = "64M", working_set: str = "8M", **more) -> str:
    return ",".join([f"synthetic,ram={ram},dirty-rate={rate * MB},working-set={working_set}"]
                    + [f"{name.replace('_', '-')}={value}" for name, value in more.items()])


def ram_part(records: bytes, kind: int = PART) -> bytes:
    return streams.ram_part(records, kind, RAM_ID)


# --- a synthetic guest ---------------------------------------------------------------------------------------------------

def saved(folder: Path, what: str, run: float = 0.3) -> Image:
    """A synthetic machine that has run for a while, as a test can send it again."""
    path = folder / "saved.stream"
    with Migrationd(folder, "origin", machine=what) as origin:
        origin.qmp.execute("cont")
        time.sleep(run)
        origin.migrate(f"file:{path}")
        origin.wait_status("completed")
    return Image.read(path.read_bytes())


class Arrival:
    """A daemon that waits for a synthetic guest."""

    def __init__(self, folder: Path, what: str, *capabilities: str):
        self.folder = folder
        self.daemon = Migrationd(folder, "target", machine=what, incoming=["defer"])
        self.capabilities = ("postcopy-ram", *capabilities)

    def __enter__(self):
        self.daemon.__enter__()
        self.daemon.capabilities(*self.capabilities)
        self.address = f"unix:{self.folder}/in.sock"
        self.daemon.incoming(self.address)
        return self

    def __exit__(self, *args):
        self.daemon.__exit__(*args)

    def completed(self) -> None:
        """All is here, nothing is wrong, and the guest still runs."""
        self.daemon.wait_status("completed")
        assert self.daemon.run_state() == "running", self.daemon.run_state()
        assert self.daemon.verify_machine() > 0
        self.daemon.qmp.execute("cont")


def live(folder: Path, threads: int, sent_before: float = 0.0, rate: float = 20000.0, huge: bool = False,
         preempt: bool = False, skip_zero: bool = False, preempt_end: bool = True) -> None:
    what = machine(200, ram="64M", threads=threads, working_set="24M",
                   **({"page_size": "2M"} if huge else {}))
    image = saved(folder, what)
    source = Source(image, sent_before=sent_before, rate=rate, skip_zero=skip_zero, preempt=preempt,
                    host_page={RAM: HUGE} if huge else {}, preempt_end=preempt_end)
    capabilities = ["postcopy-blocktime"] + (["postcopy-preempt"] if preempt else [])
    with Arrival(folder, what, *capabilities) as arrival:
        source.start(arrival.address)
        arrival.daemon.wait_status("postcopy-active")
        source.serve()
        source.finish()
        assert source.shut == 0
        assert source.requests > 0 or sent_before > 0.9, "the guest asked for nothing"
        arrival.completed()
        answer = arrival.daemon.query_migrate()
        assert sum(answer["__org.migrationd_postcopy-latency-dist"]) > 0 or sent_before > 0.9, answer
        assert len(answer["postcopy-vcpu-blocktime"]) == threads, answer


for _threads in (1, 2, 4, 8):
    cases.add(f"postcopy-destination/synthetic/at-once/{_threads}",
              lambda folder, threads=_threads: live(folder, threads), timeout=90, quick=_threads == 4)
for _name, _options in {"after-a-part": {"sent_before": 0.6}, "slow-background": {"rate": 1000.0, "sent_before": 0.7},
                        "huge-pages": {"huge": True, "rate": 200.0}, "preempt": {"preempt": True},
                        "preempt-without-end-mark": {"preempt": True, "preempt_end": False},
                        "huge-pages-preempt": {"huge": True, "rate": 200.0, "preempt": True},
                        "zeros-left-out": {"skip_zero": True}}.items():
    cases.add(f"postcopy-destination/synthetic/{_name}",
              lambda folder, options=_options: live(folder, 3, **options), timeout=90,
              quick=_name in ("huge-pages", "preempt"))


@cases.case("postcopy-destination/synthetic/ended-as-precopy", timeout=60)
def as_precopy(folder: Path) -> None:
    """Advised, never switched: an ordinary migration."""
    what = machine(50, ram="64M")
    image = saved(folder, what)
    source = Source(image, sent_before=1.0)
    with Arrival(folder, what) as arrival:
        source.main = source.connect(arrival.address)
        pages = b"".join(source.records(page, "main") for page in source.all_pages())
        source.write(source.head() + ram_part(pages, 3) + image.devices + u8(0))
        source.read(5)
        arrival.daemon.wait_status("completed")
        assert arrival.daemon.verify_machine() > 0


# --- breaks ------------------------------------------------------------------------------------------------------------------

def broken(folder: Path, breaks: int, preempt: bool = False, huge: bool = False, how: str = "close",
           seed: int = 7) -> None:
    what = machine(100, ram="64M", threads=3, working_set="24M", **({"page_size": "2M"} if huge else {}))
    image = saved(folder, what)
    source = Source(image, rate=100.0 if huge else 15000.0, preempt=preempt, seed=seed,
                    host_page={RAM: HUGE} if huge else {})
    chance = random.Random(seed)
    capabilities = ["postcopy-preempt"] if preempt else []
    with Arrival(folder, what, *capabilities) as arrival:
        daemon = arrival.daemon
        source.start(arrival.address)
        daemon.wait_status("postcopy-active")
        for number in range(breaks):
            try:
                source.serve(pages=chance.randrange(1, (3 if huge else 1500)))
                if how == "pause":
                    daemon.qmp.execute("migrate-pause")
                    source.serve(seconds=5)
                elif how == "middle":
                    page = next(iter(source.unsent))
                    half = u8(2) + u32(RAM_ID) + source.records(page, "main")
                    source.write(half[:chance.randrange(1, len(half))])
            except Broken:
                pass
            source.close()
            daemon.wait_status("postcopy-paused")
            if not source.unsent:
                break
            address = f"unix:{folder}/again-{number}.sock" if number % 2 else "tcp:127.0.0.1:0"
            daemon.qmp.execute("migrate-recover", {"uri": address})
            if number % 2 == 0:
                address = f"tcp:127.0.0.1:{daemon.listening_port()}"
            source.recover(address)
            daemon.wait_status("postcopy-active")
        source.send_the_rest()
        arrival.completed()


for _how in ("close", "pause", "middle"):
    cases.add(f"postcopy-destination/recover/{_how}", lambda folder, how=_how: broken(folder, 8, how=how), timeout=120,
              quick=_how == "middle")
cases.add("postcopy-destination/recover/preempt", lambda folder: broken(folder, 6, preempt=True), timeout=120)
cases.add("postcopy-destination/recover/huge-pages", lambda folder: broken(folder, 5, huge=True, how="middle"), timeout=120)


@cases.case("postcopy-destination/recover/no-page-is-guessed", timeout=90, quick=True)
def asleep(folder: Path) -> None:
    """The source is gone: who waits for a page sleeps, `stop` says why it cannot, the daemon stays answerable, and the
    right bytes come with the recovery."""
    what = machine(100, ram="64M", threads=4, working_set="24M")
    image = saved(folder, what)
    source = Source(image, rate=0)
    with Arrival(folder, what) as arrival:
        daemon = arrival.daemon
        source.start(arrival.address)
        daemon.wait_status("postcopy-active")
        source.await_request()
        source.close()
        answer = daemon.wait_status("postcopy-paused")
        assert answer["error-desc"], answer
        try:
            daemon.qmp.execute("stop")
            assert False, "a guest that waits for memory was stopped"
        except QmpError as error:
            assert "memory that has not arrived" in str(error), error
        for refused in ("migrate_cancel", "__org.migrationd_verify-machine"):
            try:
                daemon.qmp.execute(refused)
                assert False, f"{refused} was taken"
            except QmpError:
                pass
        daemon.qmp.execute("migrate-recover", {"uri": f"unix:{folder}/nobody.sock"})
        time.sleep(0.2)
        # Nobody came there; another address takes its place.
        daemon.qmp.execute("migrate-recover", {"uri": f"unix:{folder}/second.sock"})
        source.recover(f"unix:{folder}/second.sock")
        source.send_the_rest()
        arrival.completed()


@cases.case("postcopy-destination/ended/daemon-told-to-end", timeout=60, quick=True)
def told_to_end(folder: Path) -> None:
    """A guest's threads sleep on pages that will never come: the daemon ends at once, and says what is lost."""
    what = machine(100, ram="64M", threads=4, working_set="24M")
    image = saved(folder, what)
    for paused in (False, True):
        source = Source(image, rate=0)
        log = folder / f"guest-{paused}.log"
        with Arrival(folder, what + f",log={log}") as arrival:
            source.start(arrival.address)
            arrival.daemon.wait_status("postcopy-active")
            source.await_request()
            if paused:
                source.close()
                arrival.daemon.wait_status("postcopy-paused")
            arrival.daemon.child.terminate()
            arrival.daemon.child.wait(10)
            assert "the machine is lost" in arrival.daemon.output(), arrival.daemon.output()[-400:]
        source.close()
        (folder / "in.sock").unlink(missing_ok=True)


# --- lies --------------------------------------------------------------------------------------------------------------------

def _bad_switches(source: Source) -> dict[str, bytes]:
    """What a source may send after its block list and must not; the guest has not run then, so the migration fails."""
    package, devices = source.package(), source.image.devices
    discards = source.discards()

    def packed(data: bytes) -> bytes:
        return discards + command(PACKAGED, u32(len(data))) + data

    return {
        "listen-without-package": discards + command(LISTEN),
        "run-without-listen": discards + command(RUN),
        "run-before-listen": packed(command(RUN) + command(LISTEN)),
        "package-without-listen": packed(devices + command(RUN)),
        "package-without-run": packed(command(LISTEN) + devices),
        "package-listens-twice": packed(command(LISTEN) * 2 + devices + command(RUN)),
        "package-of-nothing": discards + command(PACKAGED, u32(0)),
        "package-of-4-gib": discards + command(PACKAGED, u32(0xFFFFFFFF)) + package,
        "package-shorter-than-said": discards + command(PACKAGED, u32(len(package) + 1000)) + package,
        "package-longer-than-said": discards + command(PACKAGED, u32(len(package) - 7)) + package,
        "package-with-rubbish": packed(command(LISTEN) + bytes(range(256)) * 20 + command(RUN)),
        "package-in-a-package": packed(command(LISTEN) + command(PACKAGED, u32(5)) + command(RUN)),
        "devices-missing": packed(command(LISTEN) + command(RUN)),
        "discard-unknown-block": command(DISCARD, u8(0) + str8("nobody") + u8(0) + u64(0) + u64(PAGE)),
        "discard-past-the-end": command(DISCARD, u8(0) + str8(RAM) + u8(0) + u64(1 << 40) + u64(PAGE)),
        "discard-of-everything-and-more": command(DISCARD, u8(0) + str8(RAM) + u8(0) + u64(PAGE) + u64((1 << 64) - PAGE)),
        "discard-unaligned": command(DISCARD, u8(0) + str8(RAM) + u8(0) + u64(5) + u64(PAGE)),
        "discard-of-nothing": command(DISCARD, u8(0) + str8(RAM) + u8(0) + u64(0) + u64(0)),
        "advised-twice": command(3, u64(PAGE) + u64(PAGE)),
        "ended-after-discards": discards + ram_part(b"", 3) + devices + u8(0),
        "recovery-before-anything": command(9),
    }


# What the refusal of each says.
SWITCH_WORDS = {
    "listen-without-package": "POSTCOPY_LISTEN in its place", "run-without-listen": "POSTCOPY_RUN in its place",
    "run-before-listen": "package of 10 bytes: command POSTCOPY_RUN in its place",
    "package-without-listen": "does not begin with POSTCOPY_LISTEN",
    "package-without-run": "does not end with POSTCOPY_RUN",
    "package-listens-twice": "POSTCOPY_LISTEN in its place", "package-of-nothing": "PACKAGED with a length of 0 bytes",
    "package-of-4-gib": "PACKAGED with a length of 4294967295 bytes", "package-shorter-than-said": "stream ends too early",
    "package-longer-than-said": "does not end with POSTCOPY_RUN", "package-with-rubbish": "section headers and footers",
    "package-in-a-package": "command PACKAGED in its place",
    "devices-missing": "load the devices: the stream has no state for device",
    "discard-unknown-block": "POSTCOPY_RAM_DISCARD: block 'nobody'", "discard-past-the-end": "are not pages of it",
    "discard-of-everything-and-more": "are not pages of it", "discard-unaligned": "are not pages of it",
    "discard-of-nothing": "are not pages of it", "advised-twice": "POSTCOPY_ADVISE in wrong postcopy state (advise)",
    "ended-after-discards": "ends as precopy, but pages were discarded", "recovery-before-anything": "POSTCOPY_RESUME in its place",
}
PAGE_WORDS = {
    "unknown-block": "section 'ram': a page of block 'nobody', which was not listed",
    "past-the-end": "offset 0x10000000000 is past the end", "no-block-yet": "continues a block, but none was named",
    "a-delta": "section 'ram': RAM record 0x40", "another-section": "unknown section 77",
    "a-device": "a section of a device among the pages", "listen-again": "command POSTCOPY_LISTEN among the pages",
    "run-again": "command POSTCOPY_RUN among the pages", "another-package": "command PACKAGED among the pages",
    "discard-while-it-runs": "command POSTCOPY_RAM_DISCARD among the pages",
    "wrong-footer": "section 'ram': Mismatched section id in footer", "nonsense": "element of type 0xff: unknown",
}
MEMORY_MORE = 24 << 20      # what none of the lies may cost


@cases.case("postcopy-destination/hostile/switch", timeout=180, quick=True)
def bad_switches(folder: Path) -> None:
    what = machine(0, ram="16M")
    image = saved(folder, what, run=0.05)
    source = Source(image, sent_before=0.5)
    source.unsent = dict.fromkeys(source.all_pages())
    with Arrival(folder, what) as arrival:
        daemon = arrival.daemon
        before = procfs.status_bytes(daemon.pid, "VmHWM")
        for name, data in _bad_switches(source).items():
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(arrival.address[5:])
                link.sendall(source.head() + data)
                link.shutdown(socket.SHUT_WR)
                daemon.wait(lambda: daemon.status() == "failed", 20, f"{name} to be refused")
                assert daemon.run_state() == "inmigrate", name
                why = daemon.query_migrate()["error-desc"]
                assert SWITCH_WORDS[name] in why, f"{name}: {why}"
            (folder / "in.sock").unlink(missing_ok=True)
            daemon.incoming(arrival.address)
        assert procfs.status_bytes(daemon.pid, "VmHWM") - before < MEMORY_MORE
        # And then an honest one.
        honest = Source(image)
        honest.start(arrival.address)
        honest.serve()
        honest.finish()
        arrival.completed()


def _bad_pages(source: Source) -> dict[str, bytes]:
    page = bytes(range(256)) * 16
    return {
        "unknown-block": ram_part(full_page(0, page, "nobody")),
        "past-the-end": ram_part(full_page(1 << 40, page, RAM)),
        "no-block-yet": ram_part(full_page(0, page)),
        "a-delta": ram_part(u64(0x40 | 0) + str8(RAM) + b"\0" * 20),
        "another-section": u8(PART) + u32(77) + u64(EOS) + streams.footer(77),
        "a-device": source.image.devices,
        "listen-again": command(LISTEN),
        "run-again": command(RUN),
        "another-package": command(PACKAGED, u32(10)) + command(LISTEN) + command(RUN),
        "discard-while-it-runs": command(DISCARD, u8(0) + str8(RAM) + u8(0) + u64(0) + u64(PAGE)),
        "wrong-footer": u8(PART) + u32(RAM_ID) + u64(EOS) + streams.footer(99),
        "nonsense": b"\xff" * 100,
    }


@cases.case("postcopy-destination/hostile/pages", timeout=180, quick=True)
def bad_pages(folder: Path) -> None:
    """The guest runs already, so nothing is given up: each lie pauses, and an honest source goes on from there."""
    what = machine(50, ram="32M", threads=2)
    image = saved(folder, what, run=0.1)
    source = Source(image, rate=0)
    with Arrival(folder, what) as arrival:
        daemon = arrival.daemon
        source.start(arrival.address)
        daemon.wait_status("postcopy-active")
        for number, (name, data) in enumerate(_bad_pages(source).items()):
            source.last_block.clear()
            try:
                source.write(data)
                source.serve(seconds=20)
            except Broken:
                pass
            source.close()
            answer = daemon.wait_status("postcopy-paused")
            why = answer["error-desc"]
            assert why.startswith("postcopy: ") and PAGE_WORDS[name] in why, f"{name}: {why}"
            daemon.qmp.execute("migrate-recover", {"uri": f"unix:{folder}/{number}.sock"})
            source.recover(f"unix:{folder}/{number}.sock")
            daemon.wait_status("postcopy-active")
        # Pages nobody asked for, and each of them twice with other bytes the second time: the first are the guest's.
        source.rate = 1e9
        again = list(source.unsent)[:200]
        for page in again:
            source.send_page(page, False)
        source.write(ram_part(b"".join(full_page(offset, b"\xee" * PAGE, block) + zero_page(offset, block)
                                       for block, offset in again)))
        source.last_block.clear()
        source.serve()
        source.finish()
        arrival.completed()


@cases.case("postcopy-destination/hostile/after-the-end", timeout=60)
def after_the_end(folder: Path) -> None:
    what = machine(50, ram="32M")
    image = saved(folder, what, run=0.1)
    source = Source(image)
    with Arrival(folder, what) as arrival:
        source.start(arrival.address)
        source.serve()
        try:
            source.write(u8(3) + u32(RAM_ID) + u64(EOS) + footer() + u8(0)
                         + ram_part(full_page(0, b"\xee" * PAGE, RAM) * 50))
        except Broken:
            pass    # nobody listens any more
        arrival.completed()


@cases.case("postcopy-destination/refused/by-name", timeout=60, quick=True)
def refused(folder: Path) -> None:
    """Off here; other page sizes; a transport that cannot answer."""
    what = machine(0, ram="16M")
    image = saved(folder, what, run=0.05)
    with Migrationd(folder, "target", machine=what, incoming=["defer"]) as daemon:
        def fails(source: Source, *capabilities: str) -> str:
            for name in ("postcopy-ram",):
                daemon.capabilities(**{name.replace("-", "_"): name in capabilities})
            daemon.incoming(f"unix:{folder}/in.sock")
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(f"{folder}/in.sock")
                link.sendall(source.head())
                daemon.wait(lambda: daemon.status() == "failed", 20, "the refusal")
            return daemon.query_migrate()["error-desc"]
        assert "postcopy-ram is off" in fails(Source(image)), daemon.query_migrate()
        text = fails(Source(image, host_page={RAM: HUGE}), "postcopy-ram")
        assert "matching memory page sizes" in text and "0x201000" in text, text


# --- real QEMUs into a parked daemon -----------------------------------------------------------------------------------------

class Into:
    """How a QEMU is made to leave by postcopy."""

    def __init__(self, when: str = "at-once", preempt: bool = False, huge: bool = False, limit: int = 0):
        self.when, self.preempt, self.huge, self.limit = when, preempt, huge, limit


def pull(folder: Path, versions: tuple[str, str], how: Into, machine_type: str = MACHINE,
         restrict: Callable[[], None] | None = None) -> None:
    """A QEMU's postcopy into a parked daemon, and from there on by precopy into another QEMU."""
    guest = Guest(pages=3000, fill=8000)
    with Qemu(folder, "source", versions[0], memory_mib=64, guest=guest, machine=machine_type,
              huge_pages=how.huge) as source, \
         Migrationd(folder, "park", restrict=restrict) as park, \
         Qemu(folder, "target", versions[1], memory_mib=64, guest=guest, machine=machine_type, memfd=how.huge,
              incoming=True) as destination:
        wanted = ["postcopy-ram"] + (["postcopy-preempt"] if how.preempt else [])
        for host in (source, park):
            host.capabilities(*wanted)
        pair = QuietPair(source, destination)
        source.wait_sweeps(3)
        if how.limit:
            source.parameters(max_postcopy_bandwidth=how.limit)
        # Slow, so that it is not done before it is told to switch; behind the switch another limit counts.
        source.parameters(max_bandwidth=20 << 20)
        park.incoming("tcp:127.0.0.1:0")
        source.migrate(f"tcp:127.0.0.1:{park.listening_port()}")
        if how.when == "after-a-pass":
            source.wait(lambda: source.query_migrate().get("ram", {}).get("dirty-sync-count", 0) > 1
                        or source.query_migrate().get("ram", {}).get("transferred", 0) > 30 << 20, 30, "half of a pass")
        source.qmp.execute("migrate-start-postcopy")
        source.wait_status("completed")
        park.wait_status("completed")
        # The machine was ours before its memory was: no quiet fall back to precopy.
        seen = [event["data"]["status"] for event in park.qmp.events if event["event"] == "MIGRATION"]
        assert "postcopy-active" in seen, seen
        for host in (park, destination):
            host.capabilities(postcopy_ram=False, **({"postcopy_preempt": False} if how.preempt else {}))
        destination.incoming("tcp:127.0.0.1:0")
        park.migrate(f"tcp:127.0.0.1:{destination.listening_port()}")
        park.wait_status("completed")
        destination.wait_status("completed")
        arrive(pair, True)


NEWEST = "pc-i440fx-10.0"
for _from in VERSIONS:
    for _to in VERSIONS:
        cases.add(f"postcopy-destination/pull/{_from}-to-{_to}/at-once",
                  lambda folder, pair=(_from, _to): pull(folder, pair, Into()), timeout=120, quick=_from == _to)
    for _name, _how in {"after-a-pass": Into("after-a-pass"), "64-mib-per-s": Into(limit=64 << 20),
                        "2-mib-pages": Into(huge=True), "2-mib-pages-preempt": Into(preempt=True, huge=True),
                        "preempt": Into(preempt=True), "preempt-limited": Into(preempt=True, limit=32 << 20)}.items():
        cases.add(f"postcopy-destination/pull/{_from}-to-{_from}/{_name}",
                  lambda folder, version=_from, how=_how: pull(folder, (version, version), how), timeout=120,
                  quick=_name in ("preempt", "2-mib-pages"))
for _name, _how in {"at-once": Into(), "preempt": Into(preempt=True)}.items():
    cases.add(f"postcopy-destination/pull/10.0-to-10.0/{NEWEST}/{_name}",
              lambda folder, how=_how: pull(folder, ("10.0", "10.0"), how, NEWEST), timeout=120)
