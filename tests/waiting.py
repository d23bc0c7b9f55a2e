"""The one place where tests wait. Tests never sleep: they say what they wait for."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_WAIT = 0.001
_LONGEST_WAIT = 0.05


def wait_until(predicate: Callable[[], T], timeout: float = 10, what: str = "") -> T:
    """Ask `predicate` until it says something true, and return that; AssertionError after `timeout` seconds.

    `what` completes "waited 10 s for …" in the error.
    """
    deadline = time.monotonic() + timeout
    wait = _FIRST_WAIT
    while True:
        said = predicate()
        if said:
            return said
        left = deadline - time.monotonic()
        if left <= 0:
            wanted = what or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"waited {timeout:g} s for {wanted}; last answer: {said!r}")
        select.select([], [], [], min(wait, left))
        wait = min(wait * 1.5, _LONGEST_WAIT)


def let_pass(seconds: float) -> None:
    """Let real time pass, for the rare test of what must *not* happen meanwhile."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        select.select([], [], [], left)
