#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A guest in Python: counter.py LIBRARY SOCKET [empty] counts in shared memory, and goes on where it is migrated to."""
import ctypes as c
import struct
import sys
import threading
import time

LIB, turn, VALUE = c.CDLL(sys.argv[1]), threading.Semaphore(1 if len(sys.argv) < 4 else 0), [0]
HOOK, SAVE = c.CFUNCTYPE(c.c_int, c.c_void_p), c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p)
LOAD = c.CFUNCTYPE(c.c_int, c.c_void_p, c.POINTER(c.c_char), c.c_size_t, c.c_uint32)
class Callbacks(c.Structure):
    _fields_ = [("size", c.c_size_t), ("stop", HOOK), ("start", HOOK)]
class Opaque(c.Structure):
    _fields_ = [("size", c.c_size_t), ("name", c.c_char_p), ("version", c.c_uint32), ("minimum", c.c_uint32),
                ("save", SAVE), ("load", LOAD)]
for name, kind in (("md_guest_new", c.c_void_p), ("md_guest_new_block", c.c_void_p), ("md_guest_error", c.c_char_p)):
    getattr(LIB, name).restype = kind
hooks = HOOK(lambda _: not turn.acquire()), HOOK(lambda _: turn.release() or 0)
callbacks = Callbacks(c.sizeof(Callbacks), *hooks)
save = SAVE(lambda _, writer: LIB.md_write(c.c_void_p(writer), struct.pack(">Q", VALUE[0]), c.c_size_t(8)) and 0)
load = LOAD(lambda _, data, n, version: VALUE.__setitem__(0, struct.unpack(">Q", data[:n])[0]) or 0)
device = Opaque(c.sizeof(Opaque), b"counter", 1, 1, save, load)
guest = c.c_void_p(LIB.md_guest_new(b"counter.py", c.byref(callbacks), None))
address = LIB.md_guest_new_block(guest, b"ram", c.c_uint64(1 << 24), 4096, 1)
bad = LIB.md_guest_add_opaque(guest, c.byref(device), None, None, c.c_uint32(0)) or LIB.md_guest_attach(
    guest, sys.argv[2].encode(), 2 if len(sys.argv) < 4 else 0)
memory = (c.c_uint64 * (1 << 21)).from_address(address)
while not bad or sys.exit(LIB.md_guest_error(guest).decode()):
    with turn:
        VALUE[0] += 1
        memory[VALUE[0] % (1 << 21)] = VALUE[0]
    print("counter", VALUE[0], flush=True) if VALUE[0] % 1000 == 0 else time.sleep(0.0001)
