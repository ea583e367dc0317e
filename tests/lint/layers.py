#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fails on an include that docs/architecture.md, section "Layers", does not allow.

A folder may include itself and what its row names: a folder ("base"), a part of one ("protocol/stream") or one header
("transports/channel.hpp"). FORBIDDEN names system headers that would bring a thread or a socket where none belongs.
"""

import re
import sys

import tree

CONTRACTS = ["transports/channel.hpp", "transports/positional_file.hpp", "transports/seekable_channel.hpp",
             "transports/buffered.hpp", "transports/zero_copy_writer.hpp",
             "transports/rdma_link.hpp"]
RAM = ["base", "protocol/stream", "protocol/rdma", *CONTRACTS]
# What migrationctl reads and writes files with: no sockets, no guest memory.
FILES = [*CONTRACTS, "transports/file_channel.hpp", "transports/filter_channel.hpp", "ram/decode_next.hpp",
         "ram/mapped_layout.hpp", "ram/mapped_loader.hpp", "ram/ram_section_reader.hpp"]
ALLOWED = {
    "base": [],
    "protocol": ["base"],
    "transports": ["base"],
    "vmstate": ["base"],
    "ram": RAM,
    "postcopy": ["ram", *RAM],
    "guest": ["base", "vmstate"],
    "daemon": ["base", "protocol", "transports", "vmstate", "ram", "postcopy", "guest"],
    "tools": ["base", "protocol", "guest/protocol.hpp", *FILES],
    "tests": ["base", "protocol", "transports", "vmstate", "ram", "postcopy", "guest", "daemon", "tools"],
}

THREADS = r"thread|mutex|shared_mutex|condition_variable|future|semaphore|latch|barrier|pthread\.h"
SOCKETS = r"sys/(socket|un|epoll|poll)\.h|netinet/.*|arpa/.*|netdb\.h|poll\.h"
FORBIDDEN = {
    "protocol": (rf"{THREADS}|{SOCKETS}|boost/asio.*", "protocol is pure: never a socket, never a thread"),
    "vmstate": (rf"{THREADS}|{SOCKETS}|boost/asio.*", "vmstate writes bytes: never a socket, never a thread"),
    # poll waits for userfaults, which is ram's own business.
    "ram": (r"sys/(socket|un)\.h|netinet/.*|arpa/.*|netdb\.h|boost/asio.*", "ram moves pages through channels and stores: never a socket of its own"),
    "transports": (r"nlohmann/.*", "transports never speak a protocol"),
}


def allowed(source: str, target: str) -> bool:
    top = source.split("/")[0]
    rows = [top, *ALLOWED[top]]
    return any(target == row or target.startswith(row + "/") for row in rows)


def faults_of(name: str) -> list[str]:
    top = name.split("/")[0]
    if top not in ALLOWED:
        return [f"{name}: folder '{top}' has no row in tests/lint/layers.py"]
    faults = []
    pattern, reason = FORBIDDEN.get(top, (r"(?!)", ""))
    for line, kind, target in tree.includes(name):
        if kind == '"':
            if not (tree.ROOT / target).is_file():
                faults.append(f'{name}:{line}: "{target}" is not a file below the project root')
            elif not allowed(name, target):
                faults.append(f'{name}:{line}: {top} may not use "{target}"')
        elif re.fullmatch(pattern, target):
            faults.append(f"{name}:{line}: <{target}>: {reason}")
    return faults


def main() -> int:
    names = tree.code_files()
    return tree.report(len(names), [fault for name in names for fault in faults_of(name)])


if __name__ == "__main__":
    sys.exit(main())
