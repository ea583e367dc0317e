# SPDX-License-Identifier: Apache-2.0
"""The socket in the file system, and the ends of the daemon: quit and signals."""

import os
import signal
import socket
import stat
import tempfile
import unittest

from qmp_lib import Daemon


class Path(unittest.TestCase):
    def start(self, *options: str, **more: str) -> Daemon:
        daemon = Daemon(*options, **more)
        self.addCleanup(daemon.end)
        return daemon

    def test_socket_is_private_and_goes_with_the_daemon(self) -> None:
        daemon = self.start().wait_for_socket()
        self.assertEqual(stat.S_IMODE(os.stat(daemon.path).st_mode), 0o600)
        daemon.ready().ask("quit")
        self.assertEqual(daemon.status(), 0)
        self.assertFalse(os.path.exists(daemon.path))

    def test_mode_and_group_can_be_set(self) -> None:
        daemon = self.start(socket_option=f",mode=0640,group={os.getgid()}").wait_for_socket()
        status = os.stat(daemon.path)
        self.assertEqual((stat.S_IMODE(status.st_mode), status.st_gid), (0o640, os.getgid()))
        other = self.start(socket_option=f",group={os.getgid()}").wait_for_socket()
        self.assertEqual(stat.S_IMODE(os.stat(other.path).st_mode), 0o660)

    def test_live_path_refuses_a_second_start(self) -> None:
        first = self.start().wait_for_socket()
        second = self.start(directory=first.directory)
        self.assertNotEqual(second.status(), 0)
        self.assertIn("in use", second.output())
        self.assertIn("return", first.ready().ask("query-name"))

    def test_stale_path_is_replaced(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            first = self.start(directory=directory).wait_for_socket()
            first.process.kill()
            first.status()
            self.assertTrue(os.path.exists(first.path))
            second = self.start(directory=directory).wait_for_socket()
            self.assertIn("return", second.ready().ask("query-name"))
            second.end()

    def test_file_that_is_no_socket_is_left_alone(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "qmp.sock")
            with open(path, "w", encoding="ascii") as file:
                file.write("precious")
            self.assertNotEqual(self.start(directory=directory).status(), 0)
            self.assertEqual(os.path.getsize(path), 8)

    def test_path_of_somebody_else_is_not_removed(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            daemon = self.start(directory=directory).wait_for_socket()
            os.unlink(daemon.path)
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(daemon.path)
                daemon.process.send_signal(signal.SIGTERM)
                self.assertEqual(daemon.status(), 0)
                self.assertTrue(os.path.exists(daemon.path))

    def test_quit_and_signals_are_announced_and_end_with_status_0(self) -> None:
        for reason, number in (("host-qmp-quit", None), ("host-signal", signal.SIGTERM), ("host-signal", signal.SIGINT)):
            with self.subTest(reason=reason, number=number):
                daemon = self.start().wait_for_socket()
                client = daemon.ready()
                watcher = daemon.ready()
                if number is None:
                    client.send("{'execute':'quit'}{'execute':'query-name'}")
                else:
                    daemon.process.send_signal(number)
                for one in (client, watcher):
                    event = one.message()
                    self.assertEqual((event["event"], event["data"]),
                                     ("SHUTDOWN", {"guest": False, "reason": reason}))
                if number is None:
                    self.assertEqual(client.message(), {"return": {}})
                self.assertTrue(client.at_end())
                self.assertTrue(watcher.at_end())
                self.assertEqual(daemon.status(), 0)
                client.close()
                watcher.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
