# SPDX-License-Identifier: Apache-2.0
"""Passing descriptors: qmp.md section 7 and file-and-channels.md section 4 of the specification."""

import os
import tempfile
import unittest

from qmp_lib import DaemonTest, generic

NONE = generic("No file descriptor supplied via SCM_RIGHTS")
OK = {"return": {}}


class Descriptors(DaemonTest):
    def setUp(self) -> None:
        self.file = tempfile.TemporaryFile()
        self.addCleanup(self.file.close)
        self.fd = self.file.fileno()

    def open_in_daemon(self) -> int:
        """How many descriptors of the daemon are our file."""
        wanted = os.fstat(self.fd)
        base = f"/proc/{self.daemon.process.pid}/fd"
        count = 0
        for name in os.listdir(base):
            try:
                status = os.stat(os.path.join(base, name))
            except FileNotFoundError:
                continue
            count += (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino)
        return count

    def test_getfd_takes_the_first_and_closes_the_rest(self) -> None:
        client = self.client()
        getfd = {"fdname": "one"}
        self.assertEqual(client.ask("getfd", getfd), NONE)
        self.assertEqual(client.ask("getfd", getfd, fds=[self.fd, self.fd]), OK)
        self.assertEqual(self.open_in_daemon(), 1)
        self.assertEqual(client.ask("getfd", getfd), NONE)
        self.assertEqual(client.ask("closefd", getfd), OK)
        self.assertEqual(self.open_in_daemon(), 0)
        self.assertEqual(client.ask("closefd", getfd), generic("File descriptor named 'one' not found"))

    def test_two_pipelined_getfd_with_two_descriptors_in_one_message(self) -> None:
        client = self.client()
        client.send("{'execute':'getfd','arguments':{'fdname':'a'}}{'execute':'getfd','arguments':{'fdname':'b'}}",
                    fds=[self.fd, self.fd])
        self.assertEqual(client.reply(), OK)
        self.assertEqual(client.reply(), NONE)
        client.ask("closefd", {"fdname": "a"})

    def test_descriptors_of_pipelined_messages_find_their_commands(self) -> None:
        client = self.client()
        for name in "abc":
            client.send(f"{{'execute':'getfd','arguments':{{'fdname':'{name}'}}}}",
                        fds=[self.fd] if name != "a" else None)
        self.assertEqual([client.reply() for _ in range(3)], [NONE, OK, OK])
        self.assertEqual(self.open_in_daemon(), 2)
        for name in "bc":
            self.assertEqual(client.ask("closefd", {"fdname": name}), OK)

    def test_pending_descriptors_wait_are_replaced_and_end_with_the_client(self) -> None:
        client = self.client()
        client.send(" ", fds=[self.fd, self.fd])
        client.ask("no-such-command", fds=[self.fd])
        self.assertEqual(self.open_in_daemon(), 1)
        self.assertEqual(client.ask("getfd", {"fdname": 1}),
                         generic("Invalid parameter type for 'fdname', expected: string"))
        self.assertEqual(client.ask("getfd", {"fdname": "2"}),
                         generic("Parameter 'fdname' expects a name not starting with a digit"))
        self.assertEqual(self.open_in_daemon(), 0)
        client.ask("query-name", fds=[self.fd])
        self.assertEqual(self.open_in_daemon(), 1)
        client.send("{'execute':'query-name'")  # half a document is dropped with the client
        client.close()
        other = self.client()
        other.ask("query-name")
        self.wait_until_closed()

    def wait_until_closed(self) -> None:
        client = self.client()
        for _ in range(1000):
            if self.open_in_daemon() == 0:
                return
            client.ask("query-name")
        self.fail("a descriptor stayed open")

    def test_twenty_descriptors_in_a_message_are_no_harm(self) -> None:
        client = self.client()
        self.assertEqual(client.ask("getfd", {"fdname": "many"}, fds=[self.fd] * 20), OK)
        self.assertEqual(self.open_in_daemon(), 1)
        self.assertEqual(client.ask("closefd", {"fdname": "many"}), OK)

    def test_names_are_kept_for_the_next_connection(self) -> None:
        first = self.client()
        self.assertEqual(first.ask("getfd", {"fdname": "kept"}, fds=[self.fd]), OK)
        first.close()
        self.assertEqual(self.client().ask("closefd", {"fdname": "kept"}), OK)

    def test_passed_descriptor_is_blocking_and_close_on_exec(self) -> None:
        client = self.client()
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        added = client.ask("add-fd", {"fdset-id": 3}, fds=[reading])["return"]
        with open(f"/proc/{self.daemon.process.pid}/fdinfo/{added['fd']}", encoding="ascii") as info:
            flags = int(info.read().split("flags:")[1].split()[0], 8)
        self.assertFalse(flags & os.O_NONBLOCK)
        self.assertTrue(flags & os.O_CLOEXEC)
        self.assertEqual(client.ask("remove-fd", {"fdset-id": 3}), OK)
        os.close(reading)
        os.close(writing)

    def test_sets_are_numbered_listed_and_emptied(self) -> None:
        client = self.client()
        self.assertEqual(client.ask("query-fdsets"), {"return": []})
        first = client.ask("add-fd", {"opaque": "first"}, fds=[self.fd])["return"]
        second = client.ask("add-fd", fds=[self.fd])["return"]
        third = client.ask("add-fd", {"fdset-id": 0}, fds=[self.fd])["return"]
        self.assertEqual([first["fdset-id"], second["fdset-id"], third["fdset-id"]], [0, 1, 0])
        self.assertEqual(client.ask("query-fdsets")["return"], [
            {"fdset-id": 1, "fds": [{"fd": second["fd"]}]},
            {"fdset-id": 0, "fds": [{"fd": first["fd"], "opaque": "first"}, {"fd": third["fd"]}]}])
        self.assertEqual(client.ask("remove-fd", {"fdset-id": 0, "fd": 9999}),
                         generic("File descriptor named 'fdset-id:0, fd:9999' not found"))
        self.assertEqual(client.ask("remove-fd", {"fdset-id": 5}),
                         generic("File descriptor named 'fdset-id:5' not found"))
        self.assertEqual(client.ask("add-fd", {"fdset-id": -1}, fds=[self.fd]),
                         generic("Parameter 'fdset-id' expects a non-negative value"))
        self.assertEqual(client.ask("remove-fd", {"fdset-id": 0, "fd": first["fd"]}), OK)
        self.assertEqual(self.client().ask("remove-fd", {"fdset-id": 0}), OK)
        self.assertEqual(client.ask("remove-fd", {"fdset-id": 1}), OK)
        self.assertEqual(client.ask("query-fdsets"), {"return": []})
        self.assertEqual(self.open_in_daemon(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
