# SPDX-License-Identifier: Apache-2.0
"""Greeting, negotiation, ids, errors, framing: what qmp.md sections 1 to 5 of the specification measured."""

import json
import socket
import unittest

from qmp_lib import DaemonTest, generic


class Protocol(DaemonTest):
    def test_greeting_names_the_version_that_query_version_names(self) -> None:
        client = self.daemon.connect()
        greeting = client.message()
        self.assertEqual(set(greeting["QMP"]), {"version", "capabilities"})
        self.assertEqual(greeting["QMP"]["capabilities"], ["oob"])
        client.send({"execute": "qmp_capabilities"})
        self.assertEqual(client.message(), {"return": {}})
        self.assertEqual(client.ask("query-version")["return"], greeting["QMP"]["version"])

    def test_negotiation_comes_first(self) -> None:
        client = self.daemon.connect()
        client.message()
        expecting = {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}
        self.assertEqual(client.ask("query-status", id=1), {"id": 1, "error": expecting})
        self.assertEqual(client.ask("no-such-command"), {"error": expecting})
        self.assertEqual(client.ask("qmp_capabilities", {"enable": ["foo"]}),
                         generic("Parameter 'null' does not accept value 'foo'"))
        self.assertEqual(client.ask("qmp_capabilities", {"enable": 1}),
                         generic("Invalid parameter type for 'enable', expected: array"))
        self.assertEqual(client.ask("qmp_capabilities", {"x": 1}), generic("Parameter 'x' is unexpected"))
        client.send({"exec-oob": "query-yank"})
        self.assertEqual(client.reply(), generic("QMP input member 'exec-oob' is unexpected"))
        self.assertEqual(client.ask("qmp_capabilities", {"enable": ["oob", "oob"]}), {"return": {}})
        self.assertEqual(client.ask("qmp_capabilities"), {
            "error": {"class": "CommandNotFound",
                      "desc": "Capabilities negotiation is already complete, command ignored"}})

    def test_any_value_is_an_id(self) -> None:
        client = self.client()
        for value in (0, -1, 2**64 - 1, -2**63, "x", None, [1, [2]], {"a": {"b": []}}, True, "\u00e9\U0001f600", "\x7f"):
            self.assertEqual(client.ask("query-name", id=value)["id"], value)
        client.send('{"execute":"query-name","id":"\u00e9"}')
        self.assertIn(rb'"id": "\u00E9"', client.line())

    def test_id_stands_first_in_errors_and_last_in_successes(self) -> None:
        client = self.client()
        client.send('{"execute":"nope","id":5}{"execute":"query-name","id":6}')
        self.assertTrue(client.line().startswith(b'{"id": 5, "error": {"class": "CommandNotFound", "desc": '))
        self.assertTrue(client.line().endswith(b', "id": 6}'))

    def test_malformed_requests_get_their_text(self) -> None:
        client = self.client()
        for text, desc in (
                ("[]", "QMP input must be a JSON object"),
                ('"x"', "QMP input must be a JSON object"),
                ('{"execute":5}', "QMP input member 'execute' must be a string"),
                ('{"execute":"query-name","arguments":[]}', "QMP input member 'arguments' must be an object"),
                ('{"execute":"query-name","foo":1}', "QMP input member 'foo' is unexpected"),
                ('{"arguments":{}}', "QMP input lacks member 'execute'"),
                ('{"a":}', "JSON parse error, expecting value"),
                ('{"a":1,}', "JSON parse error, expecting value"),
                ('{"a":1,"a":2}', "JSON parse error, duplicate key"),
                ('{"a" 1}', "JSON parse error, missing : in object pair"),
                ("]", "JSON parse error, expecting value"),
                ('{"execute":"migrate"}', "need either 'uri' or 'channels' argument"),
                ('{"execute":"migrate","arguments":{"uri":5}}', "Invalid parameter type for 'uri', expected: string"),
                ('{"execute":"migrate","arguments":{"blk":true}}', "Parameter 'blk' is unexpected"),
                ('{"execute":"migrate","arguments":{"uri":"foo:bar"}}', "unknown migration protocol: foo:bar"),
                ('{"execute":"migrate-recover"}', "Parameter 'uri' is missing"),
                ('{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"events"}]}}',
                 "Parameter 'capabilities[0].state' is missing")):
            with self.subTest(text):
                client.send(text)
                self.assertEqual(client.reply(), generic(desc))
        client.send("nul ")
        self.assertEqual(client.reply(), generic("JSON parse error, invalid keyword 'nul'"))
        self.assertEqual(client.ask("NOPE")["error"],
                         {"class": "CommandNotFound", "desc": "The command NOPE has not been found"})
        self.assertEqual(client.ask("query-name", id=1)["id"], 1)

    def test_line_end_resynchronises_after_rubbish(self) -> None:
        client = self.client()
        client.send('# c\n{"execute":"query-name","id":1}')
        self.assertEqual(client.reply(), generic("JSON parse error, stray '#'"))
        self.assertEqual(client.reply()["id"], 1)

    def test_document_may_come_a_byte_at_a_time_and_many_in_one_packet(self) -> None:
        client = self.client()
        for byte in b' \r\n{"execute": "query-name",\t"id": 1}':
            client.send(bytes([byte]))
        self.assertEqual(client.reply()["id"], 1)
        client.send("".join(f"{{'execute':'query-name','id':{i}}}\n\n" for i in range(500)))
        self.assertEqual([client.reply()["id"] for _ in range(500)], list(range(500)))

    def test_half_closed_client_is_still_answered(self) -> None:
        client = self.client()
        client.send('{"execute":"query-name","id":1}{"execute":"query-name","id":2}{"execute":')
        client.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(client.reply()["id"], 1)
        self.assertEqual(client.reply()["id"], 2)
        self.assertEqual(client.line(), b"")

    def test_commands_listed_are_the_commands_of_the_schema(self) -> None:
        client = self.client()
        listed = sorted(entry["name"] for entry in client.ask("query-commands")["return"])
        schema = client.ask("query-qmp-schema")["return"]
        self.assertEqual(listed, sorted(entry["name"] for entry in schema if entry["meta-type"] == "command"))
        names = {entry["name"] for entry in schema}
        for entry in schema:
            for reference in ("arg-type", "ret-type", "element-type"):
                if reference in entry:
                    self.assertIn(entry[reference], names)

    def test_human_monitor_speaks_through_qmp(self) -> None:
        client = self.client()

        def monitor(line: str) -> str:
            return client.ask("human-monitor-command", {"command-line": line})["return"]

        self.assertEqual(monitor(""), "")
        self.assertEqual(monitor("bogus"), "unknown command: 'bogus'\r\n")
        self.assertEqual(monitor("migrate_set_capability events on"), "")
        self.assertIn("events: on\r\n", monitor("info migrate_capabilities"))
        self.assertEqual(monitor("migrate_set_parameter max-bandwidth 5"), "")
        self.assertIn("max-bandwidth: 5242880 bytes/second\r\n", monitor("info migrate_parameters"))
        self.assertTrue(monitor("info status").startswith("VM status: "))
        self.assertEqual(monitor("closefd nope"), "Error: File descriptor named 'nope' not found\r\n")
        self.assertEqual(client.ask("human-monitor-command", {"command-line": "info name", "cpu-index": 0}),
                         generic("Parameter 'cpu-index' expects a CPU number"))

    def test_settings_are_all_or_nothing(self) -> None:
        client = self.client()
        before = client.ask("query-migrate-parameters")["return"]
        self.assertEqual(client.ask("migrate-set-parameters", {"downtime-limit": 7, "multifd-channels": 0}),
                         generic("Parameter 'multifd_channels' expects a value between 1 and 255"))
        self.assertEqual(client.ask("query-migrate-parameters")["return"], before)
        self.assertEqual(client.ask("migrate-set-parameters", before), {"return": {}})
        self.assertEqual(client.ask("migrate_set_parameter", {"parameter": "downtime-limit", "value": 400}),
                         {"return": {}})
        self.assertEqual(client.ask("query-migrate-parameters")["return"]["downtime-limit"], 400)
        capabilities = client.ask("query-migrate-capabilities")["return"]
        self.assertEqual(json.loads(json.dumps(capabilities))[4]["capability"], "events")
        self.assertEqual(client.ask("migrate_set_capability", {"capability": "return-path", "state": True}),
                         {"return": {}})
        refused = client.ask("migrate-set-capabilities", {"capabilities": [
            {"capability": "return-path", "state": False}, {"capability": "switchover-ack", "state": True}]})
        self.assertEqual(refused, generic("Capability 'switchover-ack' requires capability 'return-path'"))
        self.assertTrue(next(c["state"] for c in client.ask("query-migrate-capabilities")["return"]
                             if c["capability"] == "return-path"))

    def test_devices_are_absent_and_said_to_be(self) -> None:
        client = self.client()
        for command in ("query-block", "query-named-block-nodes", "query-chardev", "query-iothreads",
                        "query-hotpluggable-cpus", "query-cpus-fast"):
            self.assertEqual(client.ask(command), {"return": []})
        self.assertEqual(client.ask("qom-list", {"path": "/machine/peripheral"}),
                         {"return": [{"name": "type", "type": "string"}]})
        self.assertEqual(client.ask("qom-get", {"path": "/machine/unattached/device[0]", "property": "realized"}),
                         {"error": {"class": "DeviceNotFound",
                                    "desc": "Device '/machine/unattached/device[0]' not found"}})
        self.assertEqual(client.ask("blockdev-set-active", {"active": True}), {"return": {}})
        self.assertEqual(client.ask("object-del", {"id": "x"}), generic("object 'x' not found"))
        refused = client.ask("object-add", {"qom-type": "tls-creds-x509", "id": "x", "dir": "/"})
        self.assertIn("tls-creds-x509", refused["error"]["desc"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
