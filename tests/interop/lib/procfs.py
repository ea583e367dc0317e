# SPDX-License-Identifier: Apache-2.0
"""What /proc knows of a process: CPU time, page tables, memory."""

from __future__ import annotations

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User plus system time of all threads, in seconds; of the scheduler's nanoseconds where they can be had."""
    total = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
    except OSError:
        return cpu_seconds_ticks(pid)
    return max(total / 1e9, cpu_seconds_ticks(pid))


def queue_seconds(pid: int) -> float:
    """How long its threads were ready to run and others ran; 0 where the kernel does not count it."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[1])
        except OSError:     # it has ended meanwhile, or nobody counts
            continue
    return total / 1e9


def cpu_seconds_ticks(pid: int) -> float:
    """The same in clock ticks; it counts threads that have ended, which schedstat does not."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def status_bytes(pid: int, field: str) -> int:
    """A size of /proc/PID/status, such as VmPTE, VmRSS, RssShmem, in bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise KeyError(field)


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def open_names(pid: int) -> list[str]:
    """What the descriptors are, for messages."""
    names = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            names.append(f"{number}: {os.readlink(f'/proc/{pid}/fd/{number}')}")
        except OSError:
            continue
    return names


def children(pid: int) -> list[str]:
    """The child processes, each as its name and state ('cat Z' is one nobody waited for)."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
            for child in file.read().split():
                try:
                    with open(f"/proc/{child}/stat", encoding="ascii") as stat:
                        name, _, rest = stat.read().partition("(")[2].rpartition(")")
                except OSError:
                    continue
                found.append(f"{name} {rest.split()[0]}")
    return found


def thread_names(pid: int) -> dict[str, int]:
    """Name and id of each thread; of two with the same name one."""
    names = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/comm", encoding="utf-8", errors="replace") as file:
                names[file.read().strip()] = int(task)
        except OSError:     # it has ended meanwhile
            continue
    return names


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def memfd_bytes(pid: int) -> int:
    """Memory allocated to the memfds the process holds (blocks in the file, not its size), each file once."""
    seen: dict[int, int] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        try:
            if os.readlink(path).startswith("/memfd:"):
                info = os.stat(path)
                seen[info.st_ino] = info.st_blocks * 512
        except OSError:
            continue
    return sum(seen.values())


def listens(path: Path) -> bool:
    """Somebody listens at that unix socket: its path is there a moment before. Asked without connecting to it."""
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        fields = line.split()
        if len(fields) == 8 and fields[7] == str(path) and int(fields[3], 16) & 0x10000:
            return True
    return False


def largest_area(pid: int) -> tuple[int, int]:
    """Start and end of the process's largest private mapping that can be written and not executed: a QEMU's guest
    memory, before the guest is there."""
    best = (0, 0)
    with open(f"/proc/{pid}/maps", encoding="ascii") as file:
        for line in file:
            addresses, rights, *_ = line.split()
            start, end = (int(number, 16) for number in addresses.split("-"))
            if rights == "rw-p" and end - start > best[1] - best[0]:
                best = (start, end)
    return best


def area_rss(pid: int, area: tuple[int, int]) -> int:
    """Bytes of memory behind that range, however many mappings it has become."""
    total = 0
    inside = False
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            word = line.split(maxsplit=1)[0]
            if "-" in word and not word.endswith(":"):
                start, end = (int(number, 16) for number in word.split("-"))
                inside = start >= area[0] and end <= area[1]
            elif inside and word == "Rss:":
                total += int(line.split()[1]) * 1024
    return total
