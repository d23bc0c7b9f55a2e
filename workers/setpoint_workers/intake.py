"""How many refs a worker takes at once. Pure: it is told what has finished and how long that took."""

from __future__ import annotations

from typing import Final

from setpoint.engine.scripts import BATCH

AHEAD_US: Final = 10_000
"""A batch is no more than what the slots finish in this time."""
SLOW_US: Final = 5_000
"""One evaluation above this ends all batching."""


class Intake:
    """Free slots, no more, so that slow refs never wait behind others; batches while all is quick.

    The batch doubles, up to `BATCH` and to what takes `AHEAD_US`, each time a whole one has finished with nothing above
    `SLOW_US`, and falls back to the free slots at once when something was slow.
    """

    __slots__ = ("_count", "_total_us", "batch", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.batch = slots
        self._count = 0
        self._total_us = 0

    def room(self, held: int) -> int:
        """How many to claim while `held` are in the child. Batches overlap: one is fetched while one runs."""
        if self.batch <= self.slots:
            return max(0, self.slots - held)
        return self.batch if held <= self.batch else 0

    def finished(self, count: int, total_us: int, slowest_us: int) -> None:
        """`count` evaluations have ended."""
        if slowest_us > SLOW_US:
            self.slow()
            return
        self._count += count
        self._total_us += total_us
        if self._count >= self.batch:
            ahead = self.slots * AHEAD_US * self._count // max(self._total_us, 1)
            self.batch = max(self.slots, min(self.batch * 2, ahead, BATCH))
            self._count = self._total_us = 0

    def slow(self) -> None:
        """Something takes long: no more than the free slots from now on."""
        self.batch = self.slots
        self._count = self._total_us = 0
