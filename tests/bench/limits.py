# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at best: the ceiling next to which every number of the bench is shown."""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
import time

_CHUNK = 1 << 20


def _copy_through(listener: socket.socket, connect, size: int) -> float:
    """Bytes per second of one process sending to another, both with large plain buffers."""
    receiver = os.fork()
    if receiver == 0:
        connection, _ = listener.accept()
        buffer = bytearray(_CHUNK)
        while connection.recv_into(buffer):
            pass
        os._exit(0)
    connection = connect()
    data = os.urandom(_CHUNK)
    started = time.monotonic()
    for _ in range(size // _CHUNK):
        connection.sendall(data)
    connection.close()
    os.waitpid(receiver, 0)
    return size / (time.monotonic() - started)


def loopback_tcp(size: int) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return _copy_through(listener, lambda: socket.create_connection(listener.getsockname()), size)


def loopback_unix(size: int) -> float:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()

        def connect() -> socket.socket:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(f"{folder}/s")
            return connection
        return _copy_through(listener, connect, size)


def memory_scan(size: int) -> float:
    """Reading memory once with the C library's fastest search: what looking for zero pages costs at least."""
    with mmap.mmap(-1, size) as memory:
        memory.write(b"\xa5" * size)
        started = time.monotonic()
        assert memory.find(b"\x5a", 0) < 0
        return size / (time.monotonic() - started)


def memory_copy(size: int) -> float:
    source = mmap.mmap(-1, size)
    source.write(b"\xa5" * size)
    target = bytearray(b"\x01") * size     # touched already
    started = time.monotonic()
    target[:] = memoryview(source)
    seconds = time.monotonic() - started
    source.close()
    return size / seconds


def first_touch(size: int) -> float:
    """Filling memory no process had before (this process at least): the cold destination's own ceiling."""
    with mmap.mmap(-1, size) as memory:
        zeros = bytes(_CHUNK)
        started = time.monotonic()
        for offset in range(0, size, _CHUNK):
            memory[offset:offset + _CHUNK] = zeros
        return size / (time.monotonic() - started)


def measure(size: int) -> dict[str, float]:
    """Everything above, the better of two runs, in bytes per second."""
    kinds = {"loopback tcp copy": loopback_tcp, "unix socket copy": loopback_unix, "memory scan": memory_scan,
             "memory copy": memory_copy, "first touch of memory": first_touch}
    return {name: max(run(size), run(size)) for name, run in kinds.items()}
