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


PAGE = 4096
_BATCH = 128        # pages per call; with their headers 256 pieces, well below IOV_MAX


def _records(memory: mmap.mmap, headers: mmap.mmap) -> list[list[memoryview]]:
    """The pieces of each call: 8 bytes of header before each page, as in a stream."""
    pages, heads = memoryview(memory), memoryview(headers)
    return [[piece for page in range(first, first + _BATCH)
             for piece in (heads[page % _BATCH * 8:][:8], pages[page * PAGE:][:PAGE])]
            for first in range(0, len(memory) // PAGE, _BATCH)]


def _from(pieces: list[memoryview], skip: int) -> list[memoryview]:
    """What is left of `pieces` after `skip` bytes went through."""
    for index, piece in enumerate(pieces):
        if skip < len(piece):
            return [piece[skip:], *pieces[index + 1:]]
        skip -= len(piece)
    return []


def _shared(size: int) -> mmap.mmap:
    fd = os.memfd_create("limit")
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    os.close(fd)
    for offset in range(0, size, _CHUNK):
        memory[offset:offset + _CHUNK] = b"\xa5" * _CHUNK
    return memory


def _receive_records(connection: socket.socket, calls: list[list[memoryview]], report: int) -> None:
    before = time.process_time()
    for call in calls:
        rest = call
        while rest:
            rest = _from(rest, connection.recvmsg_into(rest)[0])
    os.write(report, f"{time.process_time() - before}\n".encode())


def records_over_tcp(size: int) -> tuple[float, float]:
    """The stream's records from warm guest memory into warm guest memory, nothing done to them: bytes per second, and
    CPU seconds of both sides. What is left of plain precopy when everything but the kernel's two copies costs nothing."""
    told, report = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = os.fork()
        if receiver == 0:
            connection, _ = listener.accept()
            calls = _records(_shared(size), mmap.mmap(-1, PAGE))
            connection.sendall(b"r")
            _receive_records(connection, calls, report)
            os._exit(0)
        os.close(report)
        with socket.create_connection(listener.getsockname()) as connection:
            calls = _records(_shared(size), mmap.mmap(-1, PAGE))
            connection.recv(1)
            started, before = time.monotonic(), time.process_time()
            for call in calls:
                rest = call
                while rest:
                    rest = _from(rest, connection.sendmsg(rest))
            own = time.process_time() - before
            with os.fdopen(told) as answer:
                theirs = float(answer.readline())
            seconds = time.monotonic() - started
        os.waitpid(receiver, 0)
    return size / seconds, own + theirs


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
