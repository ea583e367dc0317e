# SPDX-License-Identifier: Apache-2.0
"""The list of cases, and what a case is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable


@dataclass(frozen=True)
class Case:
    name: str               # group/what/is/tried
    run: Callable[[Path], None]
    timeout: float          # seconds
    quick: bool             # part of the small selection every CI run makes
    daemon: bool            # needs migrationd


_cases: dict[str, Case] = {}


def add(name: str, run: Callable[[Path], None], timeout: float = 60, quick: bool = False, daemon: bool = True) -> None:
    assert name not in _cases, name
    _cases[name] = Case(name, run, timeout, quick, daemon)


def case(name: str, **options):
    """Decorator: the function gets an empty folder for its sockets and files."""
    def register(function: Callable[[Path], None]):
        add(name, function, **options)
        return function
    return register


def all_cases() -> list[Case]:
    return list(_cases.values())
