# SPDX-License-Identifier: Apache-2.0
"""Capability by capability by transport: what QEMU 10.0 refuses is refused in its words (file-and-channels.md 6, 9).

The matrix is generated and asked of both at once, so it needs no list of answers. Where the two may differ stands in
two tables here: what this build does not have is learnt from the build, and what QEMU takes to its harm is DIFFERENT.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from ..lib import cases
from ..lib.daemon import Migrationd
from ..lib.host import Host
from ..lib.qemu import Qemu
from ..lib.qmp import QmpError

CAPABILITIES = (
    "xbzrle", "rdma-pin-all", "auto-converge", "zero-blocks", "events", "postcopy-ram", "x-colo", "release-ram",
    "return-path", "pause-before-switchover", "multifd", "dirty-bitmaps", "postcopy-blocktime", "late-block-activate",
    "x-ignore-shared", "validate-uuid", "background-snapshot", "zero-copy-send", "postcopy-preempt", "switchover-ack",
    "dirty-limit", "mapped-ram")
# Those that a transport can be wrong for.
OF_TRANSPORTS = ("multifd", "mapped-ram", "postcopy-ram", "postcopy-preempt", "return-path", "switchover-ack", "xbzrle",
                 "zero-copy-send", "x-ignore-shared", "background-snapshot", "auto-converge", "release-ram")
# All of them fail at the latest when they are opened, so that nothing begins.
ADDRESSES = {"source": ("tcp:127.0.0.1:1", "unix:/nonexistent/s", "fd:nosuch", "exec:exit 1", "file:/nonexistent/f"),
             "destination": ("tcp:192.0.2.1:1", "unix:/nonexistent/s", "fd:nosuch", "file:/nonexistent/f")}
PARAMETERS: tuple[dict, ...] = (
    {}, {"direct-io": True}, {"multifd-compression": "zlib"}, {"mode": "cpr-transfer"}, {"mode": "cpr-reboot"})
PLAIN = {"direct-io": False, "multifd-compression": "none", "mode": "normal"}
NOT_BUILT = "is not available in this build"


@dataclass(frozen=True)
class Difference:
    """QEMU takes it and comes to harm; we refuse it."""
    capabilities: frozenset[str]    # all of these are on
    transports: tuple[str, ...]     # begins of addresses
    sides: tuple[str, ...]
    ours: str                       # how our text begins
    why: str                        # what becomes of it in QEMU
    parameters: tuple[tuple[str, object], ...] = ()


def _row(capabilities: str, transports: str, sides: str, ours: str, why: str, **parameters) -> Difference:
    return Difference(frozenset(capabilities.split()), tuple(transports.split()), tuple(sides.split()), ours, why,
                      tuple((name.replace("_", "-"), value) for name, value in parameters.items()))


DIFFERENT = (
    _row("mapped-ram return-path", "file:", "source", "Mapped-ram migration is incompatible with return-path",
         "fails when the guest is stopped already: Unable to read from file: Bad file descriptor"),
    _row("mapped-ram background-snapshot", "file:", "source", "Mapped-ram migration is incompatible with background-snap",
         "says completed; the bitmaps were never written, the file holds no memory"),
    _row("mapped-ram x-ignore-shared", "file:", "source", "Mapped-ram migration is incompatible with x-ignore-shared",
         "writes a file that no QEMU can load"),
    _row("", "", "destination", "cpr-transfer: the machine's descriptors come over a 'cpr' channel",
         "takes it, and waits for pages that will not come", mode="cpr-transfer"),
    _row("mapped-ram", "file:", "destination", "Cannot use compression with mapped-ram",
         "takes it, the file is not compressed", multifd_compression="zlib"),
)


def ask(host: Host, command: str, arguments: dict) -> str:
    """The refusal; empty when it was accepted."""
    try:
        host.qmp.execute(command, arguments)
    except QmpError as error:
        return error.desc
    return ""


def only(names: tuple[str, ...]) -> dict:
    return {"capabilities": [{"capability": name, "state": name in names} for name in CAPABILITIES]}


# An address that passed all checks and could not be opened.
OPENING = ("", "Could not create", "Could not open", "Failed to bind", "File descriptor named")


def known_difference(side: str, names: tuple[str, ...], parameters: dict, address: str, theirs: str,
                     ours: str) -> Difference | None:
    if theirs and not theirs.startswith(OPENING[1:]):
        return None
    for row in DIFFERENT:
        if row.capabilities <= set(names) and side in row.sides and ours.startswith(row.ours) \
                and (not row.transports or address.startswith(row.transports)) \
                and all(parameters.get(name) == value for name, value in row.parameters):
            return row
    return None


def missing_here(daemon: Migrationd) -> set[str]:
    """What this build has not: said of the capability alone, or with what it needs."""
    needs = {"postcopy-preempt": ("postcopy-ram",), "switchover-ack": ("return-path",), "zero-copy-send": ("multifd",)}
    missing = {name for name in CAPABILITIES
               if NOT_BUILT in ask(daemon, "migrate-set-capabilities", only((name, *needs.get(name, ()))))}
    ask(daemon, "migrate-set-capabilities", only(()))
    return missing


def both(folder: Path, side: str):
    if side == "source":
        return Qemu(folder, "qemu", "10.0", paused=True), \
            Migrationd(folder, "ours", machine="synthetic,ram=4M", paused=True)
    return Qemu(folder, "qemu", "10.0", incoming=True), \
        Migrationd(folder, "ours", machine="synthetic,ram=4M", incoming=["defer"])


def sets(folder: Path, side: str, sizes: tuple[int, ...]) -> None:
    wrong = []
    qemu, daemon = both(folder, side)
    with qemu, daemon:
        missing = missing_here(daemon)
        for names in itertools.chain.from_iterable(itertools.combinations(CAPABILITIES, size) for size in sizes):
            theirs, ours = (ask(host, "migrate-set-capabilities", only(names)) for host in (qemu, daemon))
            if theirs == ours or (not theirs and NOT_BUILT in ours and missing & set(names)):
                continue
            wrong.append(f"{names}: QEMU {theirs!r}, we {ours!r}")
    assert not wrong, f"{len(wrong)} of them: " + "; ".join(wrong[:20])


def after(host: Host, side: str) -> None:
    """As before: a migration that began has failed by then."""
    if side == "source":
        host.wait(lambda: host.status() in ("none", "failed", "completed", "cancelled"), 20, "the end of an attempt")


class Asked:
    """The two, with the same settings. A QEMU destination whose address could not be opened takes no other; a new one
    is asked then."""

    def __init__(self, folder: Path, side: str):
        self.folder = folder
        self.side = side
        self.command = "migrate" if side == "source" else "migrate-incoming"
        self.qemu, self.daemon = both(folder, side)
        self.settings: tuple[tuple[str, ...], dict] = ((), {})

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.qemu.__exit__(*args)
        self.daemon.__exit__(*args)

    def _set_up(self, host: Host) -> bool:
        names, parameters = self.settings
        host.qmp.execute("migrate-set-capabilities", only(()))
        host.qmp.execute("migrate-set-parameters", PLAIN)
        return not ask(host, "migrate-set-capabilities", only(names)) and \
            not ask(host, "migrate-set-parameters", parameters)

    def set_up(self, names: tuple[str, ...], parameters: dict) -> bool:
        """False when one of them refuses these settings: that is the other test's."""
        self.settings = names, parameters
        taken = [self._set_up(host) for host in (self.qemu, self.daemon)]
        return all(taken)

    def refusals(self, address: str) -> tuple[str, str]:
        arguments = {"uri": address, **({"exit-on-error": False} if self.side == "destination" else {})}
        theirs = ask(self.qemu, self.command, arguments)
        if theirs.startswith("Illegal migration incoming state"):
            self.qemu.__exit__(None, None, None)
            self.qemu = Qemu(self.folder, "qemu", "10.0", incoming=True)
            self._set_up(self.qemu)
            theirs = ask(self.qemu, self.command, arguments)
        ours = ask(self.daemon, self.command, arguments)
        for host in (self.qemu, self.daemon):
            after(host, self.side)
        return theirs, ours


def transports(folder: Path, side: str, size: int) -> None:
    wrong = []
    used: set[Difference] = set()
    asked = refused = 0
    every = itertools.chain.from_iterable(itertools.combinations(OF_TRANSPORTS, k) for k in range(size + 1))
    with Asked(folder, side) as pair:
        missing = missing_here(pair.daemon)
        for names, parameters in itertools.product(every, PARAMETERS):
            if not pair.set_up(names, parameters):
                continue
            for address in ADDRESSES[side]:
                theirs, ours = pair.refusals(address)
                asked += 1
                refused += bool(theirs)
                if theirs == ours:
                    continue
                row = known_difference(side, names, parameters, address, theirs, ours)
                if row is None:
                    wrong.append(f"{names} {parameters} {address}: QEMU {theirs!r}, we {ours!r}")
                else:
                    used.add(row)
    assert asked > 50 and refused > 20, (asked, refused)
    assert not wrong, f"{len(wrong)} of {asked}: " + "; ".join(wrong[:20])
    if size > 1:
        idle = [row for row in DIFFERENT if side in row.sides and row not in used and not row.capabilities & missing]
        assert not idle, f"rows that describe nothing any more: {idle}"


for _side in ("source", "destination"):
    cases.add(f"refusals/sets/{_side}/one-and-two", lambda folder, side=_side: sets(folder, side, (0, 1, 2)), timeout=90,
              quick=_side == "destination")
    cases.add(f"refusals/sets/{_side}/three", lambda folder, side=_side: sets(folder, side, (3,)), timeout=200)
    cases.add(f"refusals/transports/{_side}/one", lambda folder, side=_side: transports(folder, side, 1), timeout=90,
              quick=_side == "source")
    cases.add(f"refusals/transports/{_side}/three", lambda folder, side=_side: transports(folder, side, 3), timeout=300)
