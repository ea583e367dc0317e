#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Live migrations of the VM monitor guest/examples/kvm, whose guest really runs, between two daemons in two network
namespaces (on loopback where these are not allowed).

    tests/guest/kvm.py                   two moves of each kind, and what else can happen
    tests/guest/kvm.py --rounds 100      100 moves in a row of each kind
    tests/guest/kvm.py --filter postcopy

Every line of the serial port is numbered by the monitor that prints it and says the guest's round and the time. The
lines of all monitors one behind the other must be one sequence: a gap means that the guest went back or lost its place,
a repetition that it ran twice, an `E` that it found a page or a register that a migration lost. What the guest never
looked at again is proved by the last monitor, which reads all memory before it ends. That this proof bites is shown by
moves in which the monitor keeps KVM's dirty log to itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.interop.lib import programs  # noqa: E402
from tests.interop.lib.daemon import Migrationd  # noqa: E402
from tests.interop.lib.netns import LimitedLink  # noqa: E402
from tests.interop.lib.process import Process, wait_until  # noqa: E402

SKIPPED = 77
GAVE_UP = 3                 # the monitor's exit status when KVM cannot go on
MB = 1_000_000
NETWORK = 100 * MB          # bytes a second
SLOW = 12 << 20             # slower than the guest writes
CRAWL = 64 << 10            # as good as standing still
MEMORY = 8 << 20            # two batches: the daemon tells of pages sent after each 4 MiB


def monitor_program() -> Path:
    path = programs.build_folder() / "guest" / "examples" / "kvm" / "kvm-guest"
    if not os.access(path, os.X_OK):
        raise programs.Skip(f"no kvm-guest at {path}")
    return path


# What the guest printed ------------------------------------------------------------------------------------------------

class ProofError(AssertionError):
    """The output proves that a migration lost or repeated something."""


@dataclass
class Output:
    """The serial file of one monitor, as far as it is complete."""
    lines: list[tuple[int, float, str]] = field(default_factory=list)      # number, seconds, text
    notes: list[tuple[float, str]] = field(default_factory=list)

    @staticmethod
    def of(path: Path) -> "Output":
        output = Output()
        text = path.read_text() if path.exists() else ""
        for line in text[:text.rfind("\n") + 1].splitlines():
            first, moment, rest = line.split(" ", 2)
            if first == "#":
                output.notes.append((float(moment), rest))
            else:
                output.lines.append((int(first), float(moment), rest))
        return output

    def noted(self, beginning: str) -> bool:
        return any(text.startswith(beginning) for _time, text in self.notes)

    def complaint(self) -> str | None:
        return next((text for _number, _time, text in self.lines if text.startswith("E")), None)

    def longest_pause(self) -> float:
        """Between two lines, or the last one and the stop."""
        moments = [moment for _number, moment, _text in self.lines]
        moments += [moment for moment, text in self.notes if text == "stopped"]
        return max((after - before for before, after in zip(moments, moments[1:])), default=0)

    def runs(self) -> list[tuple[float, float]]:
        """From when to when the guest ran here; infinity: it still does, or died running."""
        runs: list[tuple[float, float]] = []
        for moment, text in self.notes:
            if text == "started":
                runs.append((moment, float("inf")))
            elif text == "stopped":
                runs[-1] = (runs[-1][0], moment)
        return runs


def prove_sequence(outputs: list[Output]) -> int:
    """Outputs in the order in which the machine was with their monitors. Returns the last round."""
    expected = 0
    for output in outputs:
        for number, _moment, text in output.lines:
            expected += 1
            if text.startswith("E"):
                raise ProofError(f"the guest found something wrong: {text}")
            if number != expected or text != f"{expected:08X}":
                raise ProofError(f"line {expected} is number {number} and says {text}")
    runs = [run for output in outputs for run in output.runs()]
    for (_start, end), (start, _end) in zip(runs, runs[1:]):
        if start < end:
            raise ProofError(f"the guest ran in two places at {start}")
    moments = [moment for output in outputs for _number, moment, _text in output.lines]
    if moments != sorted(moments):
        raise ProofError("lines of two monitors overlap in time")
    return expected


# Two hosts -------------------------------------------------------------------------------------------------------------

class Network:
    """Two hosts' places: namespaces, or twice loopback."""

    def __init__(self, stack: contextlib.ExitStack):
        try:
            link = stack.enter_context(LimitedLink(NETWORK))
            self.places = [(link.left, link.left_address), (link.right, link.right_address)]
        except programs.Skip as reason:
            print(f"# on loopback: {reason}", flush=True)
            self.places = [(None, "127.0.0.1"), (None, "127.0.0.1")]


class Host:
    """A daemon and the monitor that is attached to it."""

    def __init__(self, folder: Path, number: int, network: Network, empty: bool, options: list[str]):
        self.name = f"host{number}"
        self.folder = folder
        self.namespace, self.address = network.places[number % 2]
        self.socket = folder / f"{self.name}.guest"
        self.serial = folder / f"{self.name}.serial"
        self.empty = empty
        self.options = options
        self.stack = contextlib.ExitStack()

    def start_daemon(self) -> None:
        self.daemon = self.stack.enter_context(
            Migrationd(self.folder, self.name, machine=f"attached,socket={self.socket}", namespace=self.namespace,
                       incoming=["defer"] if self.empty else None))
        self.daemon.run_state()     # answers when all sockets listen

    def __enter__(self) -> "Host":
        with contextlib.ExitStack() as undo:
            undo.push(self.stack)
            self.start_daemon()
            argv = [str(monitor_program()), "--attach", str(self.socket), "--serial", str(self.serial), *self.options]
            self.monitor = self.stack.enter_context(
                Process(argv + (["--empty"] if self.empty else []), self.folder / f"{self.name}.monitor.log",
                        namespace=self.namespace))
            self.wait(lambda: self.output().noted("attached"), "the monitor to attach")
            undo.pop_all()
        return self

    def __exit__(self, *args):
        self.stack.__exit__(*args)

    def output(self) -> Output:
        return Output.of(self.serial)

    def wait(self, condition, what: str, timeout: float = 30):
        def checked():
            value = condition()
            if not value and not self.monitor.alive():
                raise AssertionError(f"{self.name}'s monitor ended while waiting for {what}: {self.monitor.output()[-400:]}")
            return value
        return wait_until(checked, timeout, what)

    def wait_rounds(self, count: int) -> None:
        """That many whole rounds from now on, in each of which the guest checks every page; a complaint ends it, too."""
        # The line that comes first belongs to a round that has begun already.
        wanted = len(self.output().lines) + count + 1
        self.wait(lambda: len((now := self.output()).lines) >= wanted or now.complaint(), f"{count} rounds of the guest")

    def end(self) -> str:
        """SIGTERM: what the monitor proved about its memory."""
        status = self.monitor.terminate(30)
        proofs = [text for _time, text in self.output().notes if text.startswith(("proved", "wrong"))]
        if status != 0 or len(proofs) != 1 or not proofs[0].startswith("proved"):
            raise ProofError(f"{self.name}: exit status {status}, {proofs}: {self.monitor.output()[-300:]}")
        return proofs[0]


class Machine:
    """One guest, and the hosts in which it was."""

    def __init__(self, folder: Path, *options: str, first_pass: int = SLOW):
        self.folder = folder
        self.options = ["--memory", f"{MEMORY >> 20}M", *options]
        self.first_pass = first_pass    # bytes a second
        self.stack = contextlib.ExitStack()
        self.hosts: list[Host] = []
        self.started = 0
        self.requests = 0               # pages asked for by the destination of a postcopy
        self.downtimes: list[int] = []

    def __enter__(self) -> "Machine":
        self.network = Network(self.stack)
        self.add_host(empty=False)
        self.hosts[0].wait_rounds(2)
        return self

    def __exit__(self, *args):
        for host in reversed(self.hosts):
            host.__exit__(*args)
        self.stack.__exit__(*args)

    def add_host(self, empty: bool) -> Host:
        host = Host(self.folder, self.started, self.network, empty, self.options)
        self.started += 1
        host.__enter__()
        self.hosts.append(host)
        return host

    def outputs(self) -> list[Output]:
        return [host.output() for host in self.hosts]

    def leave(self, target: Host, postcopy: bool = False) -> Host:
        """Starts a migration, and returns when the guest has written all pages after some of them were sent."""
        source = self.hosts[-2]
        for host in (source, target):
            host.daemon.capabilities(postcopy_ram=postcopy)
        target.daemon.incoming(f"tcp:{target.address}:0")
        source.daemon.parameters(max_bandwidth=self.first_pass, max_postcopy_bandwidth=SLOW, downtime_limit=1)
        source.daemon.migrate(f"tcp:{target.address}:{target.daemon.listening_port()}")
        source.daemon.wait(lambda: source.daemon.query_migrate().get("ram", {}).get("transferred", 0) >= MEMORY // 2, 30,
                           "the first batch of pages")
        source.daemon.parameters(max_bandwidth=CRAWL)
        source.wait_rounds(1)
        assert source.daemon.status() == "active", source.daemon.query_migrate()
        return source

    def passes(self, count: int) -> None:
        """As many passes over memory; with the log dropped nothing is left for a second one."""
        source = self.hosts[-2].daemon
        source.parameters(max_bandwidth=SLOW)
        source.wait(lambda: source.status() == "completed" or source.query_migrate()["ram"]["dirty-sync-count"] >= count,
                    30, f"{count} passes")

    def move(self, postcopy: bool) -> None:
        """To the other host and a fresh daemon and monitor there."""
        target = self.add_host(empty=True)
        source = self.leave(target, postcopy)
        if postcopy:
            source.daemon.qmp.execute("migrate-start-postcopy")
            source.daemon.parameters(max_bandwidth=SLOW)    # for the batch that is under way
        else:
            self.passes(3)
            source.daemon.parameters(downtime_limit=2000)
        self.arrive(target)

    def arrive(self, target: Host) -> None:
        source = self.hosts[-2]
        source.daemon.wait_status("completed")
        target.daemon.wait_status("completed")
        totals = source.daemon.wait_totals()
        self.requests += totals["ram"].get("postcopy-requests", 0)
        self.downtimes.append(totals.get("downtime", 0))
        assert target.daemon.run_state() == "running", target.daemon.run_state()
        status = source.monitor.wait_exit(30)
        assert status == 0 and source.output().noted("left"), f"status {status}: {source.monitor.output()[-300:]}"
        source.stack.close()
        target.wait_rounds(2)

    def prove(self) -> int:
        """The guest's whole life, and its memory at the end of it."""
        last = prove_sequence(self.outputs())
        self.hosts[-1].end()
        return max(last, prove_sequence(self.outputs()))


# Cases -----------------------------------------------------------------------------------------------------------------

def standalone(folder: Path, _rounds: int) -> None:
    run = subprocess.run([monitor_program(), "--standalone", "2", "--serial", folder / "serial"], timeout=60,
                         capture_output=True, text=True)
    assert run.returncode == 0 and "every page right" in run.stdout, f"{run.returncode}: {run.stderr.strip()}"
    prove_sequence([Output.of(folder / "serial")])


def moves(folder: Path, rounds: int, postcopy: bool) -> None:
    kind = "postcopy" if postcopy else "precopy"
    with Machine(folder) as machine:
        for _ in range(rounds):
            machine.move(postcopy)
        last = machine.prove()
        if postcopy:
            assert machine.requests > 0, "no page was asked for: the guest never met one that was missing"
        print(f"measured: KVM guest, {kind}: {rounds} moves in a row, {last} rounds of the guest, downtime median "
              f"{statistics.median(machine.downtimes):.0f} ms, longest {max(machine.downtimes)} ms", flush=True)


def lost_writes(folder: Path, _rounds: int, postcopy: bool) -> None:
    """The proof must fail when the daemon is not told of the guest's writes."""
    # Nothing seems to be left after the first pass, so that must not end before it was slowed down.
    with Machine(folder, "--drop-dirty-log", first_pass=2 << 20) as machine:
        machine.move(postcopy)
        target = machine.hosts[-1]
        assert target.output().complaint(), "the guest found nothing wrong though its writes were lost"
        for proof in (lambda: prove_sequence(machine.outputs()), target.end):
            try:
                proof()
            except ProofError:
                continue
            raise AssertionError("the proof does not see that writes were lost")


def throttled(folder: Path, _rounds: int) -> None:
    """Auto-converge slows the guest down, until it is at the other host."""
    with Machine(folder) as machine:
        target = machine.add_host(empty=True)
        machine.hosts[0].daemon.capabilities("auto-converge")
        machine.hosts[0].daemon.parameters(cpu_throttle_initial=99, throttle_trigger_threshold=10)
        source = machine.leave(target)
        source.daemon.parameters(max_bandwidth=SLOW)
        # It may well be over in a single long pause, since nothing is written in it.
        source.daemon.wait(lambda: source.daemon.status() == "completed" or source.output().longest_pause() > 0.4, 30,
                           "the throttle")
        source.daemon.parameters(downtime_limit=2000)
        machine.arrive(target)
        longest = source.output().longest_pause()
        assert longest > 0.4, f"the guest never rested for longer than {longest:.3f} s"
        machine.prove()


def cancelled(folder: Path, _rounds: int) -> None:
    """A migration that was cancelled leaves the guest running where it is, and the next one moves it."""
    with Machine(folder) as machine:
        target = machine.add_host(empty=True)
        source = machine.leave(target)
        source.daemon.qmp.execute("migrate_cancel")
        source.daemon.wait_status("cancelled")
        source.wait(lambda: source.output().noted("stays"), "the word that it stays")
        machine.hosts.pop().__exit__(None, None, None)
        source.wait_rounds(2)
        machine.move(postcopy=False)
        machine.prove()


def daemon_killed(folder: Path, _rounds: int) -> None:
    """A guest lives on without its daemon, attaches to the next one, and moves."""
    with Machine(folder) as machine:
        host = machine.hosts[0]
        host.daemon.kill()
        host.wait(lambda: host.output().noted("the daemon is gone"), "the word that the daemon is gone")
        host.wait_rounds(2)
        host.start_daemon()
        host.wait(lambda: sum(text == "attached" for _time, text in host.output().notes) == 2, "it to attach again")
        assert host.daemon.run_state() == "running", host.daemon.run_state()
        machine.move(postcopy=True)
        machine.prove()


CASES = {
    "standalone": standalone,
    "precopy": lambda folder, rounds: moves(folder, rounds, postcopy=False),
    "postcopy": lambda folder, rounds: moves(folder, rounds, postcopy=True),
    "lost-writes/precopy": lambda folder, rounds: lost_writes(folder, rounds, postcopy=False),
    "lost-writes/postcopy": lambda folder, rounds: lost_writes(folder, rounds, postcopy=True),
    "throttled": throttled,
    "cancelled": cancelled,
    "daemon-killed": daemon_killed,
}


def usable() -> None:
    """Skip, where the guest cannot run at all."""
    run = subprocess.run([monitor_program(), "--standalone", "1", "--memory", "1M", "--serial", os.devnull], timeout=60,
                         capture_output=True, text=True)
    if run.returncode in (SKIPPED, GAVE_UP):
        raise programs.Skip(run.stderr.strip())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="moves in a row of each kind")
    parser.add_argument("--filter", action="append", metavar="TEXT", help="only cases whose name has it")
    options = parser.parse_args()
    try:
        programs.migrationd()
        usable()
    except programs.Skip as reason:
        print(f"skip kvm: {reason}")
        return SKIPPED
    scratch = Path(tempfile.mkdtemp(prefix="kvm-guest-"))
    passed = failed = 0
    for number, (name, run) in enumerate(CASES.items()):
        if options.filter and not any(text in name for text in options.filter):
            continue
        folder = scratch / str(number)
        folder.mkdir()
        started = time.monotonic()
        try:
            run(folder, options.rounds)
            passed += 1
            print(f"ok {name} ({time.monotonic() - started:.1f} s)", flush=True)
            shutil.rmtree(folder)
        except Exception as error:  # a case may fail in any way
            failed += 1
            (folder / "traceback").write_text(traceback.format_exc())
            print(f"not ok {name}: {type(error).__name__}: {' '.join(str(error).split())[:600]} [{folder}]", flush=True)
    if not failed:
        shutil.rmtree(scratch)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C")
    sys.exit(main())
