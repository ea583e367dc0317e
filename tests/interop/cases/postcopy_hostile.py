# SPDX-License-Identifier: Apache-2.0
"""Destinations that lie, shout or say nothing to our source after it has handed its machine over.

The machine is the destination's by then: it never runs here again, every lie pauses the postcopy with an error that says
what was wrong, and an honest destination gets every page afterwards, right and once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

from ..lib import cases, procfs
from ..lib.daemon import Migrationd
from ..lib.postcopy_peer import Destination, Gone, ask, message
from ..lib.postcopy_source import ASK_BITMAP, PONG, RECV_BITMAP, REQ_PAGES, REQ_PAGES_ID, RESUME_ACK, SHUT, Source
from ..lib.streams import (END, EOS, PAGE, ZERO, Stream, command, configuration, device, global_state, record,
                           str8, u8, u32, u64, zero_page)
from .postcopy_destination import RAM, Arrival, machine, ram_part, saved

WHAT = machine(20, ram="16M", working_set="8M", threads=2)
RAM_BYTES = 16 << 20
ANSWER_WITHIN = 4.0     # seconds for a query while a destination misbehaves; the machine may be busy with builds
MEMORY_MORE = 24 << 20  # what a flood may cost, far below what it brings


class Victim:
    """A daemon that has handed its running guest over to a destination of ours."""

    def __init__(self, folder: Path, background: int = 0, preempt: bool = False):
        self.peer = Destination(folder)
        self.preempt = preempt
        self.daemon = Migrationd(folder, "source", machine=WHAT)
        self.background = background
        self.folder = folder

    def __enter__(self):
        self.daemon.__enter__()
        self.daemon.capabilities("postcopy-ram", postcopy_preempt=self.preempt)
        self.daemon.parameters(max_bandwidth=1 << 20, max_postcopy_bandwidth=self.background)
        return self

    def __exit__(self, *args):
        self.daemon.__exit__(*args)
        self.peer.__exit__(*args)

    def switch(self) -> None:
        self.daemon.migrate(self.peer.address)
        self.daemon.qmp.execute("migrate-start-postcopy")
        self.peer.until_switch()
        if self.preempt:
            self.peer.accept_second()
        self.daemon.wait_status("postcopy-active")

    def paused(self) -> str:
        """It has noticed, keeps what it has, and runs nothing. The reason it gives."""
        answer = self.daemon.wait_status("postcopy-paused")
        assert self.daemon.run_state() == "finish-migrate", self.daemon.run_state()
        assert self.daemon.owner() == "moved", self.daemon.owner()
        return answer["error-desc"]

    def recover(self) -> None:
        self.daemon.migrate(self.peer.listen(), resume=True)
        self.peer.recovered()
        self.daemon.wait_status("postcopy-active")

    def complete(self) -> None:
        """An honest end: every page is here, none came twice on this connection."""
        self.daemon.parameters(max_postcopy_bandwidth=0)
        self.peer.read_to_end()
        self.peer.done()
        self.daemon.wait_status("completed")
        assert not self.peer.missing() and max(self.peer.copies.values()) == 1
        assert self.daemon.run_state() == "postmigrate"
        self.proved()

    def proved(self) -> None:
        """What has come is a whole machine: sent on, it is taken by a daemon that checks every page."""
        image = self.peer.image()
        source = Source(image, sent_before=1.0)
        with Arrival(self.folder, WHAT) as arrival:
            source.main = source.connect(arrival.address)
            pages = b"".join(source.records(page, "main") for page in source.all_pages())
            source.write(source.head() + ram_part(pages, END) + image.devices + u8(0))
            arrival.daemon.wait_status("completed")
            assert arrival.daemon.verify_machine() > 0
            source.close()

    def quick(self) -> None:
        started = time.monotonic()
        self.daemon.query_migrate()
        assert time.monotonic() - started < ANSWER_WITHIN


# What a destination may not say while pages are sent, and the words of the error.
LIES: dict[str, tuple[bytes, str]] = {
    "unknown-block": (ask(0, block="nobody"), "block 'nobody', which this machine has not"),
    "block-with-control-characters": (ask(0, block=b"x\x1b[2J\n"), "\\x1b[2J"),
    "no-block-named": (ask(0), "block named before, and none was"),
    "empty-name": (ask(0, block=b""), "block name is empty"),
    "unaligned": (ask(5, block=RAM), "not of whole pages"),
    "unaligned-length": (ask(0, 5, RAM), "not of whole pages"),
    "of-nothing": (ask(0, 0, RAM), "not of whole pages"),
    "past-the-end": (ask(RAM_BYTES, block=RAM), "past the end"),
    "half-past-the-end": (ask(RAM_BYTES - PAGE, 2 * PAGE, RAM), "past the end"),
    "far-past-the-end": (ask((1 << 64) - PAGE, block=RAM), "past the end"),
    "4-gib-at-once": (ask(PAGE, 0xFFFFF000, RAM), "past the end"),
    "unknown-message": (message(99, b"1234"), "type 0x63 is unknown"),
    "message-of-type-0": (bytes(64), "type 0x0 is unknown"),
    "shorter-request": (message(REQ_PAGES, u64(0)), "REQ_PAGES: length 8 is wrong"),
    "longer-request": (message(REQ_PAGES_ID, u64(0) + u32(PAGE) + str8(RAM) + b"more"), "REQ_PAGES_ID: length"),
    "name-longer-than-the-message": (message(REQ_PAGES_ID, u64(0) + u32(PAGE) + u8(200) + b"x"), "REQ_PAGES_ID: length"),
    "pong-of-64-kib": (message(PONG, length=0xFFFF), "PONG: length 65535 is wrong"),
    "bitmap-nobody-asked-for": (message(RECV_BITMAP, str8(RAM)) + u64(1 << 60), "was not asked for now"),
    "acknowledges-what-was-not": (message(RESUME_ACK, u32(1)), "RESUME_ACK that was not asked for"),
    "success-before-the-end": (message(SHUT, u32(0)), "success before the end"),
    "text": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is unknown"),
    "ones": (b"\xff" * 4096, "is unknown"),
}


@cases.case("postcopy-hostile/destination/lies", timeout=150, quick=True)
def lies(folder: Path) -> None:
    with Victim(folder, background=1 << 20) as victim:
        victim.switch()
        for number, (name, (text, words)) in enumerate(LIES.items()):
            if number:
                victim.recover()
            victim.peer.say(text)
            why = victim.paused()
            assert words in why and why.startswith("postcopy: return path: "), f"{name}: {why}"
            victim.peer.close()
        for half in range(1, 16, 5):
            victim.recover()
            victim.peer.say(ask(0, block=RAM)[:half])
            victim.peer.close()
            why = victim.paused()
            assert why.startswith("postcopy: return path: "), why
        victim.recover()
        victim.complete()


HANDSHAKES: dict[str, tuple[object, str]] = {
    "says-nothing-and-goes": (lambda peer: b"", "closed the connection"),
    "wrong-block": (lambda peer: message(RECV_BITMAP, str8("nobody")), "block 'nobody' that was not asked for now"),
    "larger-bitmap": (lambda peer: peer.bitmap(RAM, size=1 << 40), "bitmap of 1099511627776 bytes"),
    "smaller-bitmap": (lambda peer: peer.bitmap(RAM, size=8), "bitmap of 8 bytes"),
    "wrong-end-mark": (lambda peer: peer.bitmap(RAM, end=1), "end mark 0x1 is wrong"),
    "bitmap-twice": (lambda peer: peer.bitmap(RAM) * 2 if len(peer.blocks) > 1 else
                     peer.bitmap(RAM) + peer.bitmap(RAM), "was not asked for now"),
    "acknowledges-too-soon": (lambda peer: message(RESUME_ACK, u32(1)), "RESUME_ACK that was not asked for"),
    "acknowledges-otherwise": (lambda peer: message(RESUME_ACK, u32(2)), "value 2 is not 1"),
    "asks-too-soon": (lambda peer: ask(0, block=RAM), "REQ_PAGES"),
    "gives-up": (lambda peer: message(SHUT, u32(1)), "Sibling indicated error"),
    "success": (lambda peer: message(SHUT, u32(0)), "success before the end"),
    "rubbish": (lambda peer: b"\xff" * 512, "is unknown"),
}


@cases.case("postcopy-hostile/destination/lies-in-a-recovery", timeout=120, quick=True)
def handshakes(folder: Path) -> None:
    with Victim(folder, background=1 << 20) as victim:
        victim.switch()
        victim.peer.close()
        victim.paused()
        for name, (lie, words) in HANDSHAKES.items():
            victim.daemon.migrate(victim.peer.listen(), resume=True)
            victim.peer.questions()
            try:
                victim.peer.say(lie(victim.peer))
                victim.peer.close() if name == "says-nothing-and-goes" else None
            except Gone:
                pass
            victim.daemon.wait(lambda: words in victim.daemon.query_migrate().get("error-desc", ""),
                               what=f"{name}: {words}")
            why = victim.paused()
            assert why.startswith("postcopy: recover: "), f"{name}: {why}"
            victim.peer.close()
        victim.recover()
        victim.complete()


@cases.case("postcopy-hostile/destination/floods", timeout=120, quick=True)
def floods(folder: Path) -> None:
    """A million requests for the same pages, before and after they were sent: bounded memory, the rest of the memory
    comes all the same, and queries are answered."""
    with Victim(folder, background=4 << 20) as victim:
        victim.switch()
        before = procfs.status_bytes(victim.daemon.pid, "VmHWM")
        peer = victim.peer
        flood = ask(0, block=RAM) + b"".join(ask(page * PAGE) for page in range(64)) * 160   # 10240
        for number in range(100):
            peer.say(flood)
            if number % 10 == 0:
                victim.quick()
        # All at once, and again when it has come.
        for _ in range(2):
            peer.say(ask(0, RAM_BYTES, RAM) * 50)
        grown = procfs.status_bytes(victim.daemon.pid, "VmHWM") - before
        assert grown < MEMORY_MORE, f"{grown >> 20} MiB more"
        victim.complete()
        assert victim.daemon.query_migrate()["ram"]["postcopy-requests"] > 1_000_000


@cases.case("postcopy-hostile/destination/floods-and-does-not-read", timeout=60, quick=True)
def floods_unread(folder: Path) -> None:
    """Nothing it is sent is taken: the daemon waits, holds no more memory, answers, and can be told to break it off."""
    with Victim(folder) as victim:
        victim.switch()
        before = procfs.status_bytes(victim.daemon.pid, "VmHWM")
        link = victim.peer.link
        link.settimeout(0.3)
        flood = b"".join(ask(page * PAGE, block=RAM) for page in range(4096))
        taken = 0
        try:
            while taken < 64 << 20:
                taken += link.send(flood)
        except TimeoutError:
            pass
        victim.quick()
        assert taken < 64 << 20, "it reads on and on, and sends nothing"
        assert procfs.status_bytes(victim.daemon.pid, "VmHWM") - before < MEMORY_MORE
        assert victim.daemon.status() == "postcopy-active"
        victim.daemon.qmp.execute("migrate-pause")
        assert "paused by the user" in victim.paused()
        victim.peer.close()
        victim.recover()
        victim.complete()


@cases.case("postcopy-hostile/destination/asks-behind-the-end", timeout=60, quick=True)
def late(folder: Path) -> None:
    """Requests that crossed with the end of the stream, and with its own success, are no mistake."""
    with Victim(folder) as victim:
        victim.switch()
        victim.peer.read_to_end()
        for page in range(0, 400, 7):
            victim.peer.say(ask(page * PAGE, block=RAM))
        victim.peer.say(message(SHUT, u32(0)) + ask(0, block=RAM) * 100 + b"\xff" * 100)
        victim.daemon.wait_status("completed")
        assert not victim.peer.missing() and max(victim.peer.copies.values()) == 1
        victim.proved()


@cases.case("postcopy-hostile/destination/silence", timeout=90, quick=True)
def silence(folder: Path) -> None:
    """Silent before the switch: cancelled, and the guest runs on here. Silent behind it, at its end and in a recovery:
    the daemon waits as long as it takes, answers meanwhile, and is told to break it off."""
    with Victim(folder) as victim:
        peer, daemon = victim.peer, victim.daemon
        peer.answer_pings = False
        daemon.migrate(peer.address)
        daemon.qmp.execute("migrate-start-postcopy")
        peer.accept()
        daemon.wait_status("active")
        time.sleep(0.5)
        victim.quick()
        assert daemon.status() == "active" and not peer.switched, daemon.query_migrate()
        daemon.qmp.execute("migrate_cancel")
        daemon.wait(lambda: daemon.status() == "cancelled", what="the cancel")
        assert daemon.run_state() == "running" and daemon.owner() == "here"
        peer.close()
        peer.blocks.clear()
        peer.pages.clear()
        peer.answer_pings = True
        peer.listen()
        victim.switch()
        peer.read_to_end()      # and no SHUT
        time.sleep(0.5)
        victim.quick()
        assert daemon.status() == "postcopy-active", daemon.query_migrate()
        daemon.qmp.execute("migrate-pause")
        victim.paused()
        peer.close()
        # Whoever answers nothing in a recovery is broken off, too.
        daemon.migrate(peer.listen(), resume=True)
        peer.questions()
        daemon.wait(lambda: daemon.status() == "postcopy-recover", what="the handshake")
        time.sleep(0.3)
        victim.quick()
        daemon.qmp.execute("migrate-pause")
        victim.paused()
        peer.close()
        peer.ended = False
        for page in list(peer.pages)[::3]:
            del peer.pages[page]        # these were lost on the way
        victim.recover()
        victim.complete()


@cases.case("postcopy-hostile/destination/loads-its-devices-slowly", quick=True)
def slow_devices(folder: Path) -> None:
    """All pages have come before its devices are loaded, which may still want one: the end is not said before they are."""
    with Victim(folder) as victim:
        peer = victim.peer
        peer.answer_package = False
        victim.switch()
        while peer.missing():
            peer.element()
        for page in range(0, 400, 7):
            peer.say(ask(page * PAGE, block=RAM))
        peer.link.settimeout(0.5)
        try:
            more = peer.link.recv(1 << 16)
        except TimeoutError:
            more = b""
        assert not peer.ended and not more, (peer.ended, more[:64])
        peer.link.settimeout(None)
        peer.say(message(PONG, u32(3)))
        victim.complete()


# Behind the end of the stream and the last request; an end mark of a preempt channel is written by then.
END_MARK_BY = 0.6   # seconds


@cases.case("postcopy-hostile/destination/closes-its-preempt-channel-and-takes-its-time", quick=True)
def closes_preempt_first(folder: Path) -> None:
    """As every destination does that needs no end mark: the channel is closed, then the memory is given to the guest, and
    only then comes the word of success. On a busy machine the source's end mark finds the channel closed."""
    with Victim(folder, preempt=True) as victim:
        victim.switch()
        peer = victim.peer
        peer.read_to_end()
        peer.second.close()
        time.sleep(END_MARK_BY)
        assert victim.daemon.status() == "postcopy-active", victim.daemon.query_migrate()
        peer.done()
        victim.daemon.wait_status("completed")
        assert not peer.missing() and max(peer.copies.values()) == 1
        victim.proved()


@cases.case("postcopy-hostile/destination/goes-away-at-its-end", quick=True)
def gone_at_the_end(folder: Path) -> None:
    """Its preempt channel first, and then the main one, without a word: that is a break, and taken up again."""
    with Victim(folder, preempt=True) as victim:
        victim.switch()
        peer = victim.peer
        peer.read_to_end()
        peer.second.close()
        time.sleep(END_MARK_BY)
        peer.close()
        assert "closed the connection" in victim.paused()
        peer.ended = False
        victim.daemon.migrate(peer.listen(), resume=True)
        peer.recovered()
        peer.accept_second()
        peer.read_to_end()
        peer.done()
        victim.daemon.wait_status("completed")


class Parked:
    """A daemon that resumes a machine of that type, all but one of whose pages are zero, in a destination of ours."""

    def __init__(self, folder: Path, machine_type: bytes):
        running = replace(Stream(), config=configuration(machine_type),
                          devices=device(7, "probe", 1, b"\1\2\3\4") + device(9, "globalstate", 1, global_state("running")))
        (folder / "saved").write_bytes(running.bytes())
        self.folder = folder
        self.peer = Destination(folder)
        self.daemon = Migrationd(folder, "park")

    def __enter__(self):
        self.daemon.__enter__()
        self.daemon.incoming(f"file:{self.folder / 'saved'}")
        self.daemon.wait_status("completed")
        self.daemon.capabilities("postcopy-ram", "postcopy-preempt", "__org.migrationd_instant-resume")
        return self

    def __exit__(self, *args):
        self.daemon.__exit__(*args)
        self.peer.__exit__(*args)

    def switch(self) -> None:
        self.daemon.migrate(self.peer.address)
        self.peer.until_switch()
        self.peer.accept_second()

    def says_nothing_on_second(self, while_waiting: float) -> bool:
        return not select.select([self.peer.second], [], [], while_waiting)[0]

    def says_on_second(self, expected: bytes) -> bool:
        """Exactly that next, in one piece or in several."""
        said = b""
        while len(said) < len(expected):
            said += self.peer.second.recv(len(expected) - len(said)) or b"end of the channel"
        return said == expected


@cases.case("postcopy-hostile/destination/reads-late-and-asks-later", quick=True)
def reads_late(folder: Path) -> None:
    """It has not taken all the pages yet, and its guest may touch one that was left out as zero: no end mark before it has
    taken them, for what is asked behind the mark is not answered."""
    with Parked(folder, b"pc-i440fx-7.2") as parked:
        parked.switch()
        peer = parked.peer
        peer.answer_pings = False
        peer.read_to_end()
        assert peer.unanswered, "no piece was sent"
        assert parked.says_nothing_on_second(END_MARK_BY), "an end mark before everything was read"
        peer.say(ask(PAGE, block="pc.ram"))
        assert parked.says_on_second(record(PAGE, ZERO, "pc.ram") + u8(0))
        peer.answer_late()
        assert parked.says_on_second(u64(EOS))
        peer.done()
        parked.daemon.wait_status("completed")


@cases.case("postcopy-hostile/destination/is-too-new-for-an-end-mark", quick=True)
def no_mark(folder: Path) -> None:
    """A machine that does not run in QEMU 7.2: nobody waits for a mark, and all requests are answered until the end."""
    with Parked(folder, b"pc-i440fx-10.0") as parked:
        parked.switch()
        peer = parked.peer
        peer.read_to_end()
        assert parked.says_nothing_on_second(END_MARK_BY), "an end mark nobody waits for"
        peer.say(ask(PAGE, block="pc.ram"))
        assert parked.says_on_second(record(PAGE, ZERO, "pc.ram") + u8(0))
        # Its last moment: it has closed the channel, and a thread of its guest touches one more page.
        peer.second.close()
        peer.say(ask(2 * PAGE))
        time.sleep(0.1)
        peer.done()
        parked.daemon.wait_status("completed")


# --- sources that lie to our destination in a recovery -----------------------------------------------------------------

# What a source may not send before its RESUME, and the words of the error. Its guest runs here already.
RECOVERIES: dict[str, tuple[bytes, str]] = {
    "bitmap-of-an-unknown-block": (command(ASK_BITMAP, str8("nobody")), "nobody"),
    "bitmap-without-a-name": (command(ASK_BITMAP, str8("")), "RECV_BITMAP"),
    "bitmap-of-a-name-that-lies": (command(ASK_BITMAP, u8(200) + b"x"), "RECV_BITMAP"),
    "pages-before-resume": (command(ASK_BITMAP, str8(RAM)) + ram_part(zero_page(0, RAM)), "pages before RESUME"),
    "listen": (command(ASK_BITMAP, str8(RAM)) + command(4), "POSTCOPY_LISTEN in its place"),
    "run": (command(ASK_BITMAP, str8(RAM)) + command(5), "POSTCOPY_RUN in its place"),
    "discard": (command(ASK_BITMAP, str8(RAM)) + command(6, u8(0) + str8(RAM) + u8(0) + u64(0) + u64(PAGE)),
                "POSTCOPY_RAM_DISCARD in its place"),
    "package": (command(ASK_BITMAP, str8(RAM)) + command(7, u32(0xFFFFFFFF)), "PACKAGED in its place"),
    "advise": (command(ASK_BITMAP, str8(RAM)) + command(3, u64(PAGE) * 2), "POSTCOPY_ADVISE in its place"),
    "end-of-the-stream": (command(ASK_BITMAP, str8(RAM)) + b"\0", "before RESUME"),
    "resume-twice": (command(ASK_BITMAP, str8(RAM)) + command(9) * 2, "POSTCOPY_RESUME among the pages"),
    "rubbish": (command(ASK_BITMAP, str8(RAM)) + b"\xff" * 64, "recovery"),
}


@cases.case("postcopy-hostile/source/lies-in-a-recovery", timeout=120, quick=True)
def recoveries(folder: Path) -> None:
    """Each is an error that says so, and the next source is listened to. A bitmap may be asked for as often as one
    likes: it is answered, and costs nothing that stays."""
    what = machine(50, ram="16M", threads=2)
    source = Source(saved(folder, what, run=0.1), rate=0)
    with Arrival(folder, what) as arrival:
        daemon = arrival.daemon
        source.start(arrival.address)
        daemon.wait_status("postcopy-active")
        source.close()
        daemon.wait_status("postcopy-paused")
        before = procfs.status_bytes(daemon.pid, "VmHWM")
        lies_told = dict(RECOVERIES)
        lies_told["ten-thousand-bitmaps"] = (command(ASK_BITMAP, str8(RAM)) * 10000 + b"\xff" * 64, "recovery")
        for number, (name, (data, words)) in enumerate(lies_told.items()):
            address = f"unix:{folder}/{number}.sock"
            daemon.qmp.execute("migrate-recover", {"uri": address})
            # Who says something else than a source in a recovery is not one.
            with source.connect(address) as stranger:
                stranger.sendall(b"QEVM\0\0\0\3")
            with source.connect(address) as link:
                link.settimeout(20)
                reader = threading.Thread(target=_read_all, args=(link,))
                reader.start()
                link.sendall(data)
                daemon.wait(lambda: daemon.output().count("the connection is lost") > number + 1
                            and daemon.status() == "postcopy-paused", 20, f"{name} to be refused")
                reader.join(20)
            why = daemon.query_migrate()["error-desc"]
            assert words in why and why.startswith("postcopy: "), f"{name}: {why}"
            assert daemon.run_state() == "running", name
        assert procfs.status_bytes(daemon.pid, "VmHWM") - before < MEMORY_MORE
        daemon.qmp.execute("migrate-recover", {"uri": f"unix:{folder}/honest.sock"})
        source.recover(f"unix:{folder}/honest.sock")
        source.send_the_rest()
        arrival.completed()


def _read_all(link: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while link.recv(1 << 16):
            pass
