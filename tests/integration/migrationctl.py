# SPDX-License-Identifier: Apache-2.0
"""migrationctl as a person and a script use it: what it prints, and its exit status. MIGRATIONCTL names the program."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from qmp_lib import Daemon, WAIT

PROGRAM = os.environ.get("MIGRATIONCTL", "build/tools/migrationctl/migrationctl")
DONE, REFUSED, USAGE, FAILED, CANCELLED = 0, 1, 2, 4, 5


def start(daemon: Daemon, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([PROGRAM, "--socket", daemon.path, *words], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=WAIT)
    finally:
        process.kill()
    return process.returncode, out, err


def run(daemon: Daemon, *words: str) -> tuple[int, str, str]:
    return finish(start(daemon, *words))


class Usage(unittest.TestCase):
    """No daemon is needed to be wrong."""

    def ask(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=WAIT, check=False)
        return done.returncode, done.stdout, done.stderr

    def test_unknown_command_is_named_and_the_known_ones_are_listed(self) -> None:
        for words in (("bogus",), ("--json", "bogus", "more"), ("--socket", "/nonexistent", "bogus")):
            status, out, err = self.ask(*words)
            self.assertEqual((status, out), (USAGE, ""))
            self.assertTrue(err.startswith("migrationctl: unknown command 'bogus' (status, migrate, "), err)
            self.assertIn("--help", err)

    def test_other_wrong_words_are_not_called_commands(self) -> None:
        for words in ((), ("--bad",), ("--bad", "status"), ("status", "extra"), ("migrate",)):
            status, _, err = self.ask(*words)
            self.assertEqual(status, USAGE)
            self.assertNotIn("unknown command", err)

    def test_version_is_told_with_the_name(self) -> None:
        status, out, _ = self.ask("--version")
        self.assertEqual(status, DONE)
        self.assertRegex(out, r"^migrationctl \d+\.\d+\.\d+\n$")


class Files(unittest.TestCase):
    """inspect, verify and convert need no daemon and say what is wrong with a file."""

    def ask(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=WAIT, check=False)
        return done.returncode, done.stdout, done.stderr

    def test_a_missing_file_is_named(self) -> None:
        for words in (("inspect", "/nonexistent/x"), ("verify", "/nonexistent/x"),
                      ("convert", "/nonexistent/x", "/tmp/never-made", "--to", "plain")):
            status, out, err = self.ask(*words)
            self.assertEqual((status, out), (REFUSED, ""))
            self.assertIn("Could not open '/nonexistent/x'", err)
        self.assertFalse(os.path.exists("/tmp/never-made"))

    def test_unfinished_and_foreign_files_are_told_apart(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "file")
            for content, kind in ((b"", "incomplete"), (bytes(4096), "incomplete"), (b"hello, world", "unknown"),
                                  (b"LibvirtQemudPart" + bytes(76), "unknown"),
                                  (b"LibvirtQemudPart" + bytes([2, 0, 0, 0, 9, 0, 0, 0]) + bytes(80), "incomplete")):
                with open(path, "wb") as file:
                    file.write(content)
                for command in ("inspect", "verify"):
                    status, out, _ = self.ask("--json", command, path)
                    answer = json.loads(out)
                    self.assertEqual((status, answer["kind"], answer["complete"]), (REFUSED, kind, False))
                status, _, err = self.ask("convert", path, path + ".new", "--to", "plain")
                self.assertEqual(status, REFUSED, err)
                self.assertFalse(os.path.exists(path + ".new"))

    def test_wrong_words(self) -> None:
        for words in (("inspect",), ("verify",), ("convert", "a", "b"), ("convert", "a", "b", "--to", "tape"),
                      ("save", "--image-format", "sparse", "x")):
            self.assertEqual(self.ask(*words)[0], USAGE, words)


class CompareDevices(unittest.TestCase):
    """Two dumps of device tables; no daemon is asked."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def dump(self, name: str, version: int, *fields: dict[str, object]) -> str:
        path = os.path.join(self.folder, name)
        device = {"name": "clock", "instance_id": 0, "vmsd_name": "clock", "version": version, "minimum_version": 1,
                  "fields": [{"name": "ticks", "type": "uint64", "size": 8}, *fields]}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"device-tables": 1, "machine": name, "devices": [device]}, file)
        return path

    def ask(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=WAIT, check=False)
        return done.returncode, done.stdout, done.stderr

    def test_each_direction_has_its_answer_and_reason(self) -> None:
        old = self.dump("old", 1)
        new = self.dump("new", 2, {"name": "zone", "type": "int16", "size": 2, "since": 2})
        status, out, err = self.ask("compare-devices", old, new)
        self.assertEqual((status, err), (REFUSED, ""))
        self.assertEqual(out, "streams of the old in the new: yes\n"
                              "streams of the new in the old: no\n"
                              "  never      clock (0): version 2 is written, 1 is the newest that is read\n")
        status, out, _ = self.ask("compare-devices", "--only", "old-in-new", old, new)
        self.assertEqual((status, out), (DONE, "streams of the old in the new: yes\n"))

    def test_json_has_the_same(self) -> None:
        old = self.dump("old", 1, {"name": "zone", "type": "int16", "size": 2, "conditional": True})
        status, out, _ = self.ask("compare-devices", "--json", old, self.dump("new", 1))
        self.assertEqual(status, DONE)
        said = json.loads(out)
        self.assertEqual(said["old-in-new"]["loads"], "sometimes")
        self.assertEqual(said["old-in-new"]["findings"],
                         [{"severity": "sometimes", "device": "clock (0)",
                           "text": "'zone' (int16) is written on a condition, and not read"}])
        self.assertEqual(said["new-in-old"]["loads"], "sometimes")

    def test_streams_of_released_devices_still_load(self) -> None:
        released = str(Path(__file__).parents[1] / "fixtures" / "device-tables" / "synthetic-0.1.0.json")
        now = os.path.join(self.folder, "now")
        program = os.environ.get("MIGRATIOND", "build/daemon/migrationd")
        dumped = subprocess.run([program, "--dump-devices"], capture_output=True, text=True, timeout=WAIT, check=True)
        Path(now).write_text(dumped.stdout, encoding="utf-8")
        status, out, _ = self.ask("compare-devices", "--only", "old-in-new", released, now)
        self.assertEqual(status, DONE, out)

    def test_files_that_are_no_dumps_are_named(self) -> None:
        good = self.dump("good", 1)
        status, out, err = self.ask("compare-devices", good, "/nonexistent")
        self.assertEqual((status, out), (REFUSED, ""))
        self.assertIn("open /nonexistent: No such file", err)
        status, _, err = self.ask("compare-devices", PROGRAM, good)
        self.assertEqual(status, REFUSED)
        self.assertIn("this is no JSON", err)
        self.assertEqual(self.ask("compare-devices", good)[0], USAGE)
        self.assertEqual(self.ask("compare-devices", "--only", "both", good, good)[0], USAGE)


class DaemonUsage(unittest.TestCase):
    def test_bad_machine_words_are_wrong_usage_before_any_socket(self) -> None:
        faults = {"synthetic,ram=x": "ram=x", "synthetic,bogus=1": "unknown word 'bogus'", "bogus": "none of parked",
                  "parked,ram=1M": "is not an option (memory=BLOCK:PATH)"}
        for words, text in faults.items():
            daemon = Daemon("--machine", words)
            try:
                self.assertEqual(daemon.status(), USAGE)
                self.assertIn("migrationd: --machine: ", daemon.output())
                self.assertIn(text, daemon.output())
                self.assertFalse(os.path.exists(daemon.path))
            finally:
                daemon.end()


class Pair(unittest.TestCase):
    """A source and a destination, new for each test."""

    def setUp(self) -> None:
        self.source = Daemon("--machine", "synthetic,ram=32M,touched=32M")
        self.addCleanup(self.source.end)
        self.destination = Daemon("--machine", "synthetic,ram=32M", "--incoming", "defer")
        self.addCleanup(self.destination.end)
        self.source.wait_for_socket()
        self.destination.wait_for_socket()
        self.uri = f"unix:{self.destination.directory}/m"

    def migration_line(self, daemon: Daemon) -> str:
        return run(daemon, "status")[1].splitlines()[-1]

    def wait_for(self, daemon: Daemon, text: str) -> None:
        deadline = time.monotonic() + WAIT
        while text not in self.migration_line(daemon):
            self.assertLess(time.monotonic(), deadline, f"never {text!r}")
            time.sleep(0.02)

    def test_destination_shows_no_numbers_that_nobody_told_it(self) -> None:
        self.assertEqual(self.migration_line(self.destination), "migration  none")
        watcher = start(self.destination, "incoming", "--wait", self.uri)
        self.addCleanup(watcher.kill)
        assert watcher.stdout and watcher.stderr
        # Nothing goes on before it was seen on the way.
        lines = [watcher.stdout.readline().rstrip("\n") for _ in range(2)]
        self.assertEqual(self.migration_line(self.destination), "migration  setup: waiting for the source")
        self.assertEqual(run(self.source, "parameters", "max-bandwidth=1M")[0], DONE)
        self.assertEqual(run(self.source, "migrate", "--detach", self.uri)[0], DONE)
        lines.append(watcher.stdout.readline().rstrip("\n"))
        self.assertEqual(self.migration_line(self.destination), "migration  active: receiving")
        self.assertEqual(run(self.source, "parameters", "max-bandwidth=1G")[0], DONE)
        lines += [line for line in watcher.stdout.read().splitlines() if line != "device"]
        self.assertEqual((watcher.wait(WAIT), watcher.stderr.read()), (DONE, ""))
        self.assertEqual(lines, [f"listening on {self.uri}", "setup: waiting for the source", "active: receiving",
                                 "migration completed"])
        self.assertEqual(self.migration_line(self.destination), "migration  completed")

    def test_json_of_a_destination_has_what_was_reported(self) -> None:
        watcher = start(self.destination, "--json", "incoming", "--wait", self.uri)
        self.wait_for(self.destination, "setup")
        status, out, _ = run(self.source, "--json", "migrate", self.uri)
        self.assertEqual(status, DONE)
        last = json.loads(out.splitlines()[-1])
        self.assertEqual((last["status"], last["percent"], last["remaining"]), ("completed", 100, 0))
        status, out, _ = finish(watcher)
        self.assertEqual(status, DONE)
        self.assertEqual([set(json.loads(line)) for line in out.splitlines()[1:]],
                         [{"status"}] * (len(out.splitlines()) - 1))

    def test_cancel_says_whether_it_did(self) -> None:
        self.assertEqual(run(self.source, "cancel"), (DONE, "no migration was running\n", ""))
        self.assertEqual(run(self.destination, "incoming", self.uri)[0], DONE)
        self.assertEqual(run(self.source, "parameters", "max-bandwidth=1M")[0], DONE)
        watcher = start(self.source, "migrate", self.uri)
        self.wait_for(self.source, "active")
        self.assertEqual(run(self.source, "cancel"), (DONE, "migration cancelled\n", ""))
        self.assertEqual(finish(watcher)[0], CANCELLED)
        self.assertEqual(run(self.source, "cancel"), (DONE, "no migration was running\n", ""))

    def test_save_and_load_put_the_settings_back(self) -> None:
        path = os.path.join(self.source.directory, "a,offset=1")
        self.assertEqual(run(self.source, "capabilities", "return-path=on", "xbzrle=on")[0], DONE)
        before = [run(daemon, *words) for daemon in (self.source, self.destination)
                  for words in (("capabilities",), ("parameters",))]
        for options in ((), ("--direct",)):
            status, out, err = run(self.source, "save", *options, path)
            self.assertEqual((status, err), (DONE, ""))
            self.assertIn("migration completed", out)
            with open(path, "rb") as file:
                self.assertEqual(file.read(4), b"QEVM")
            self.assertEqual(run(self.source, "cont")[0], DONE)
        status, out, err = run(self.destination, "load", path)
        self.assertEqual((status, err), (DONE, ""))
        self.assertEqual(run(self.destination, "verify-machine")[0], DONE)
        self.assertEqual([run(daemon, *words) for daemon in (self.source, self.destination)
                          for words in (("capabilities",), ("parameters",))], before)

    def test_load_of_what_is_no_save_says_so(self) -> None:
        path = os.path.join(self.source.directory, "none")
        status, _, err = run(self.destination, "load", path)
        self.assertEqual(status, REFUSED)
        self.assertIn("No such file or directory", err)
        with open(path, "wb") as file:
            file.write(bytes(100))
        status, out, _ = run(self.destination, "load", path)
        self.assertEqual(status, FAILED)
        self.assertIn("the file is incomplete", out)

    def test_cancel_of_a_destination_that_waits(self) -> None:
        self.assertEqual(run(self.destination, "incoming", self.uri)[0], DONE)
        self.assertEqual(run(self.destination, "cancel"), (DONE, "migration cancelled\n", ""))


if __name__ == "__main__":
    unittest.main(verbosity=2)
