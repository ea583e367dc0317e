# SPDX-License-Identifier: Apache-2.0
"""Takes userfaultfd away from a child process, as a container or a hardened unit does."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Callable

from .programs import Skip

DEVICE = "/dev/userfaultfd"
NOBODY = 65534
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)

# The word of the architecture a filter checks, and the number of the system call.
_CALLS = {"x86_64": (0xC000003E, 323), "aarch64": (0xC00000B7, 282)}
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM = 1


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def _deny_call() -> Callable[[], None]:
    """The system call answers EPERM, as systemd's SystemCallFilter makes it."""
    if platform.machine() not in _CALLS:
        raise Skip(f"no system call filter for {platform.machine()}")
    architecture, number = _CALLS[platform.machine()]
    rows = [(_LOAD, 0, 0, 4), (_EQUAL, 0, 3, architecture), (_LOAD, 0, 0, 0), (_EQUAL, 0, 1, number),
            (_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *row) for row in rows))
    program = _Program(len(rows), ctypes.cast(code, ctypes.c_void_p))

    def deny(_kept=code) -> None:
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")
    return deny


def without_userfaultfd() -> Callable[[], None]:
    """Neither the device nor the system call. For root the device is covered, in a mount namespace of the child's own."""
    deny = _deny_call()
    root = os.geteuid() == 0
    if not root and os.access(DEVICE, os.R_OK | os.W_OK):
        raise Skip(f"{DEVICE} may be opened here, and only root can take that away")

    def restrict() -> None:
        if root and os.path.exists(DEVICE):
            _check(_libc.unshare(_CLONE_NEWNS), "a mount namespace")
            _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "a private mount namespace")
            _check(_libc.mount(b"/dev/null", DEVICE.encode(), None, _MS_BIND, None), f"cover {DEVICE}")
        deny()
    return restrict


def as_nobody() -> Callable[[], None]:
    """A user without any right: no access to the device; the system call for faults in user mode only."""
    if os.geteuid() != 0:
        raise Skip("only root can become nobody")

    def restrict() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return restrict
