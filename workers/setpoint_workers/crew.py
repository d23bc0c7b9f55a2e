"""The threads of a runner child that run plain functions: they share one row of work, and few of them are awake.

Quick work is run by one thread, for threads that take turns at the interpreter's lock cost more than the work itself.
As soon as all that are awake have been busy with one item for `JOIN_AFTER`, one more joins; it rests again when there
is another that is quick. A row no longer than there are free threads gets them all at once: whoever sends so few items
at a time knows that they take long.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, Generic, TypeVar

__all__ = ["JOIN_AFTER", "Crew", "Member"]

JOIN_AFTER: Final = 0.001
"""Seconds that all who are awake must have been in one item before another thread joins."""

_FOREVER = float("inf")


class Member:
    """One thread, made in it. `since` is when it began with what it runs now."""

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.awake = True
        self.since = monotonic()
        self.gate = threading.Semaphore(0)


M = TypeVar("M", bound=Member)
T = TypeVar("T")


class Crew(Generic[M, T]):
    """At most `size` threads; `run` is called in one of them for each item and must not raise."""

    def __init__(self, size: int, member: Callable[[], M], run: Callable[[M, T], None]) -> None:
        self._size = size
        self._member = member
        self._run = run
        self._row: deque[T] = deque()
        self._lock = threading.Lock()
        self._members: list[M] = []
        self._awake = 0
        self._closed = False

    @property
    def waiting(self) -> bool:
        """Something waits for a thread."""
        return bool(self._row)

    def add(self, items: Sequence[T]) -> None:
        """Put items in the row."""
        with self._lock:
            self._row.extend(items)
            free = self._size - self._awake
            join = len(self._row) if len(self._row) <= free else int(self._awake == 0)
            for _ in range(join):
                self._wake()

    def look_at(self) -> float:
        """By when `look` is to be called: soon, as long as something waits, for whoever is awake may rest meanwhile."""
        return monotonic() + JOIN_AFTER if self._row else _FOREVER

    def look(self) -> None:
        """Have one more join if something waits and all who are awake are long in one item."""
        if not self._row:
            return
        with self._lock:
            if self._row and self._awake < self._size and not self._anybody_quick():
                self._wake()

    def close(self) -> None:
        """Let the threads end once the row is empty; does not wait for them."""
        with self._lock:
            self._closed = True
            for member in self._members:
                member.gate.release()

    def _anybody_quick(self, but: M | None = None) -> bool:
        before = monotonic() - JOIN_AFTER
        return any(each.awake and each.since > before and each is not but for each in self._members)

    def _wake(self) -> None:
        self._awake += 1
        for member in self._members:
            if not member.awake:
                member.awake = True
                member.since = monotonic()
                member.gate.release()
                return
        name = f"setpoint-slot-{len(self._members)}"
        made = threading.Event()
        threading.Thread(target=self._work, args=(made,), daemon=True, name=name).start()
        made.wait()

    def _work(self, made: threading.Event) -> None:
        member = self._member()
        self._members.append(member)  # by leave of the thread that waits for it, and has the lock
        made.set()
        row, run = self._row, self._run
        while True:
            try:
                item = row.popleft()
            except IndexError:
                if self._rests(member):
                    return
                continue
            member.since = began = monotonic()
            run(member, item)
            if self._awake > 1 and row and monotonic() - began < JOIN_AFTER and self._rests(member):
                return

    def _rests(self, member: M) -> bool:
        """Sleep until woken, unless there is work and nobody else at it; whether it is time to end."""
        with self._lock:
            if self._row and not self._anybody_quick(but=member):
                return False
            if self._closed:
                return True
            member.awake = False
            self._awake -= 1
        member.gate.acquire()
        return False
