#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A synthetic machine's stream is walked to its end by its description, and the walk finds what is wrong.

    synthetic_stream_test.py WRITER ANALYSER
"""
import json
import random
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

WRITER, ANALYSER = sys.argv[1:3]


def analyse(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ANALYSER, *words], capture_output=True, text=True, timeout=60, check=False)


class SyntheticStream(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = str(Path(self.folder.name) / "stream")

    def write(self, *words: str) -> bytes:
        done = subprocess.run([WRITER, self.path, *words], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 77:
            print(done.stdout)
            sys.exit(77)
        self.assertEqual(done.returncode, 0, done.stdout)
        return Path(self.path).read_bytes()

    def put(self, data: bytes) -> str:
        path = str(Path(self.folder.name) / "changed")
        Path(path).write_bytes(data)
        return path

    def refused(self, data: bytes) -> str:
        done = analyse(self.put(data))
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("offset 0x", done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        return done.stderr

    def test_every_byte_is_accounted_for(self) -> None:
        for words in ([], ["uuid"]):
            size = len(self.write(*words))
            done = analyse(self.path)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(f"accounted for every byte of {size}", done.stdout)

    def test_values_are_those_of_the_devices(self) -> None:
        self.write()
        done = analyse("--json", self.path)
        self.assertEqual(done.returncode, 0, done.stderr)
        seen = json.loads(done.stdout)
        self.assertEqual(seen["blocks"], {"synthetic.ram": 4 << 20, "synthetic.rom": 256 << 10})
        devices = {name.split(" ")[0]: fields for name, fields in seen["devices"].items()}
        self.assertEqual(devices["synthetic-guest"]["threads"], "0x2")
        self.assertEqual(len(devices["synthetic-guest"]["writes"]), 2)
        self.assertTrue(devices["globalstate"]["runstate"].startswith(b"running\0".hex()))

    def test_cuts_and_changes_are_found(self) -> None:
        whole = self.write()
        chance = random.Random(1)
        for length in [0, 3, 8, 30, len(whole) - 1] + [chance.randrange(len(whole)) for _ in range(10)]:
            self.refused(whole[:length])
        self.refused(whole + b"x")
        sections = json.loads(analyse("--json", self.path).stdout)["sections"]
        for section in sections:
            if section["kind"] != "FULL":
                continue
            name = section["offset"] + 6
            self.refused(whole[:name] + b"X" + whole[name + 1:])
            footer = name + len(section["name"]) + 8 + section["size"]
            self.assertEqual(whole[footer], 0x7E)
            self.assertIn("footer", self.refused(whole[:footer] + b"\x7f" + whole[footer + 1:]))
        described = whole.replace(b'"size": 8', b'"size": 4', 1)
        self.assertIn("synthetic-guest", self.refused(described))
        self.refused(whole.replace(b'"fields"', b'"feelds"', 1))

    def test_comparison_finds_differences_and_no_others(self) -> None:
        whole = self.write()
        done = analyse("--compare", self.path, self.put(whole))
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        page = whole.index(b"MDMSYNP1")
        done = analyse("--compare", self.path, self.put(whole[:page + 99] + b"?" + whole[page + 100:]))
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout.strip(), "memory: block 'synthetic.ram' offset 0x0 differs")
        state = whole.rindex(b"running\0")
        done = analyse("--compare", self.path, self.put(whole[:state] + b"r" * 7 + whole[state + 7:]))
        self.assertEqual(done.stdout.strip(), "device 'globalstate' 0: bodies of 104 and 104 bytes differ from byte 5 on")

    def test_repeated_and_reordered_records_are_equal(self) -> None:
        whole = self.write()
        # One more record for the first page in front of the others: an older content that the later one replaces.
        first = whole.index(b"\x03\0\0\0\x01") + 5
        extra = (0x08).to_bytes(8, "big") + b"\x0dsynthetic.ram" + b"o" * 4096
        done = analyse("--compare", self.path, self.put(whole[:first] + extra + whole[first:]))
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
