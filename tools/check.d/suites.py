# SPDX-License-Identifier: Apache-2.0
"""The suites of tools/check, in the order in which they run: cheap and telling first.

A suite is a function that runs commands through its Context and returns Counts. To add one, write the function and a
row in SUITES. Every Python runner gets the directory of the binaries to test in the environment variable BUILD_DIR.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import counts
import hugepages
import processes
from counts import Counts


@dataclass
class Context:
    root: Path
    build: Path  # the ordinary build
    logs: Path  # one file per command
    suite: str = ""
    deadline: float = 0.0  # seconds this suite may still take

    def run(self, name: str, command: list[str], limit: float, env: dict[str, str] | None = None) -> processes.Done:
        """One command within the suite's time; what it left running is ended and shown in its log."""
        done = processes.run(command, self.logs / f"{self.suite}-{name}.log", max(1.0, min(limit, self.deadline)),
                             self.root, env)
        self.deadline -= done.seconds
        return done

    def build_tree(self, directory: Path, *options: str, cxx: str = "", targets: tuple[str, ...] = ()) -> Counts:
        command = ["tools/build", "--dir", str(directory), *options]
        if targets:
            command += ["--", *targets]
        done = self.run("build", command, 3600, {"CXX": cxx} if cxx else None)
        return Counts() if done.ok else counts.failure(f"build of {directory.name}: {done.why()}, see {done.log}")

    def meson(self, directory: Path, *arguments: str, env: dict[str, str] | None = None,
              under: tuple[str, ...] = ()) -> Counts:
        """`meson test`, counted from its log of results, never from its exit status alone."""
        results = directory / "meson-logs" / f"testlog-{self.suite}.json"
        results.unlink(missing_ok=True)
        command = [*under, "meson", "test", "-C", str(directory), "--no-rebuild", "--print-errorlogs", "--logbase",
                   f"testlog-{self.suite}", *arguments]
        done = self.run("meson", command, 3600, env)
        found = counts.from_meson(results)
        if not done.ok and not found.failed:
            found += counts.failure(f"meson test: {done.why()}, see {done.log}")
        found += leftovers(done)
        return found

    def runner(self, name: str, command: list[str], env: dict[str, str] | None = None) -> Counts:
        """A script of ours that ends with `N passed, N failed[, N skipped]`."""
        done = self.run(name, command, self.deadline, {**binaries(self.build), **(env or {})})
        found = counts.from_output(name, done.text(), done.status, done.why())
        if found.failed:
            found.faults.append(f"{name}: see {done.log}")
        found += leftovers(done)
        return found


def binaries(build: Path) -> dict[str, str]:
    """How a runner finds what it tests."""
    return {"BUILD_DIR": str(build), "MIGRATIOND": str(build / "daemon" / "migrationd"),
            "MIGRATIONCTL": str(build / "tools" / "migrationctl" / "migrationctl")}


def leftovers(done: processes.Done) -> Counts:
    """A test that leaves processes behind has failed, whatever it says."""
    return Counts(failed=len(done.leftovers), faults=[f"{done.log.stem}: left running: {row}" for row in done.leftovers])


# --- the suites ------------------------------------------------------------------------------------------------

# Meson suites that have a row of their own; everything else in tests/meson.build is "unit".
OWN_ROW = ("lint", "platform", "integration", "guest")
HUGE_PAGES = 64  # of 2 MiB; the largest test takes 8, and some run at the same time
NOT_UNIT = [word for suite in OWN_ROW for word in ("--no-suite", suite)]


def lint(at: Context) -> Counts:
    return at.meson(at.build, "--suite", "lint")


def unit(at: Context) -> Counts:
    with hugepages.reserved(HUGE_PAGES):
        return at.meson(at.build, *NOT_UNIT)


def platform(at: Context) -> Counts:
    """What the code assumes of the kernel, each fact a program."""
    with hugepages.reserved(HUGE_PAGES):
        return at.meson(at.build, "--suite", "platform")


def integration(at: Context) -> Counts:
    """Programs against the built daemon: its control socket, its packaged units."""
    return at.meson(at.build, "--suite", "integration")


def guest(at: Context) -> Counts:
    """The example guests under migration, each way once."""
    found = at.runner("guest", ["tests/guest/run"])
    found += at.runner("kvm", ["tests/guest/kvm.py"])
    return found


def interop(at: Context) -> Counts:
    """Real QEMU of both versions beside the daemon, and peers that mean harm: every kind of case once."""
    return at.runner("interop", ["tests/interop/run", "--quick"])


def rdma(at: Context) -> Counts:
    """A Debian kernel with soft-RoCE under QEMU's emulator: two daemons, real QEMUs and hostile peers in there."""
    return at.runner("rdma", ["tests/rdma/run", "--quick"])


def tidy(at: Context) -> Counts:
    return at.runner("tidy", ["python3", "tests/lint/tidy.py", str(at.build)])


# ThreadSanitizer of GCC 12 cannot live with the wide address-space randomisation of newer kernels; setarch is part of
# every Debian (util-linux).
FIXED_LAYOUT = ("setarch", "-R")

SANITIZER_ENV = {
    # Of memmem the sanitizers look at all of the rest for each hit: a search for every hit takes minutes.
    "ASAN_OPTIONS": "intercept_memmem=0:detect_stack_use_after_return=1:strict_string_checks=1:abort_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "intercept_memmem=0:halt_on_error=1:second_deadlock_stack=1",
}


# The ordinary build is the judge of warnings: instrumented code draws false ones from GCC 12 (maybe-uninitialized).
INSTRUMENTED = ("-Doptimization=1", "-Dwerror=false")


def address(at: Context) -> Counts:
    """AddressSanitizer and UndefinedBehaviorSanitizer."""
    directory = at.root / "build-asan"
    built = at.build_tree(directory, "-Db_sanitize=address,undefined", *INSTRUMENTED)
    if built.failed:
        return built
    with hugepages.reserved(HUGE_PAGES):
        return at.meson(directory, "--no-suite", "lint", "--timeout-multiplier", "4", env=SANITIZER_ENV)


def threads(at: Context) -> Counts:
    """ThreadSanitizer."""
    directory = at.root / "build-tsan"
    built = at.build_tree(directory, "-Db_sanitize=thread", *INSTRUMENTED)
    if built.failed:
        return built
    with hugepages.reserved(HUGE_PAGES):
        return at.meson(directory, "--no-suite", "lint", "--timeout-multiplier", "6",
                        env=SANITIZER_ENV, under=FIXED_LAYOUT)


def fuzz(at: Context, executions: int = 0, seconds: int = 4) -> Counts:
    """Every fuzz target over its seeds and then for a little while, or for a number of executions."""
    directory = at.root / "build-fuzz"
    built = at.build_tree(directory, "-Dfuzz=true", cxx="clang++-14", targets=("fuzz-targets",))
    if built.failed:
        return built
    command = ["python3", "tests/fuzz/run.py", str(directory)]
    if executions:
        command += ["--executions", str(executions), "--resume", str(directory / "executions.jsonl")]
    else:
        command += ["--seconds", str(seconds)]
    return at.runner("fuzz", command)


# Where bytes of strangers meet memory, and where threads meet: small enough for every run of CI. The codecs are under
# the same sanitizers in their fuzz targets.
CORE_TESTS = {"unit-base": "base", "unit-transports": "transports", "unit-ram": "ram", "unit-guest": "guest"}
# clang's UBSan takes every object for broken in a process that has no descriptors left, as one of these tests wants it;
# GCC's does not (`address`).
THREADED_TESTS = {**CORE_TESTS, "unit-postcopy": "postcopy"}


def core(at: Context, directory: Path, tests: dict[str, str], options: tuple[str, ...], cxx: str = "",
         under: tuple[str, ...] = ()) -> Counts:
    programs = tuple(f"tests/unit/{folder}/{name}" for name, folder in tests.items())
    built = at.build_tree(directory, *options, cxx=cxx, targets=programs)
    if built.failed:
        return built
    with hugepages.reserved(HUGE_PAGES):
        return at.meson(directory, *tests, "--timeout-multiplier", "10", env=SANITIZER_ENV, under=under)


def address_core(at: Context) -> Counts:
    """In the build of the fuzz targets, which has both sanitizers."""
    return core(at, at.root / "build-fuzz", CORE_TESTS, ("-Dfuzz=true",), cxx="clang++-14")


def threads_core(at: Context) -> Counts:
    return core(at, at.root / "build-tsan", THREADED_TESTS, ("-Db_sanitize=thread", *INSTRUMENTED), under=FIXED_LAYOUT)


@dataclass(frozen=True)
class Suite:
    name: str
    what: str
    minutes: float  # killed and counted as failed after so long
    run: Callable[[Context], Counts] = field(repr=False)


SUITES = [
    Suite("lint", "layers, headers alone, style, format, documents", 12, lint),
    Suite("unit", "unit tests", 6, unit),
    Suite("platform", "what is assumed of the kernel", 5, platform),
    Suite("integration", "the control socket and the packaged units", 8, integration),
    Suite("guest", "example guests attached to two daemons: the cache moves under load", 5, guest),
    Suite("interop", "real QEMU 7.2 and 10.0, libvirt's own traffic, hostile peers, kills: every kind once", 15, interop),
    Suite("rdma", "migration over soft-RoCE in an emulated guest: daemons, QEMU, hostile peers", 10, rdma),
    Suite("fuzz", "every fuzz target for a few seconds", 30, fuzz),
    Suite("address-core", "tests of transports and memory under AddressSanitizer and UBSan", 20, address_core),
    Suite("threads-core", "the same under ThreadSanitizer", 30, threads_core),
]

# Each builds the whole tree once more, a quarter of an hour on 2 cores: lines of --full, and `--only NAME` for one by
# hand.
LONG_SUITES = [
    Suite("address", "unit tests under AddressSanitizer and UBSan", 60, address),
    Suite("threads", "unit tests under ThreadSanitizer", 60, threads),
    Suite("tidy", "clang-tidy", 60, tidy),
]
