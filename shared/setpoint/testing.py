"""For tests: a clock that moves only when told. Not imported by anything that runs for real."""

from __future__ import annotations

import threading

from setpoint.clock import Duration, parse_duration

__all__ = ["FakeClock"]


class FakeClock:
    """A clock that stands still until `advance`; whoever waits on it is woken when its time has come. Thread-safe."""

    def __init__(self, start_us: int = 1_767_225_600_000_000) -> None:
        """Start at this wall-clock time: 2026-01-01 UTC unless given."""
        self._now_us = start_us
        self._elapsed_us = 0
        self._waiters = 0
        self._moved = threading.Condition()

    def now_us(self) -> int:
        """Wall-clock time, microseconds since 1970 UTC."""
        with self._moved:
            return self._now_us

    def monotonic(self) -> float:
        """Seconds that have been advanced so far."""
        with self._moved:
            return self._elapsed_us / 1_000_000

    def advance(self, by: Duration) -> None:
        """Let this much time pass."""
        us = parse_duration(by)
        with self._moved:
            self._now_us += us
            self._elapsed_us += us
            self._moved.notify_all()

    def step_wall(self, us: int) -> None:
        """Set the wall clock forward or back, as an administrator would; no time passes."""
        with self._moved:
            self._now_us += us

    @property
    def waiters(self) -> int:
        """Threads that wait right now, so that a test can advance once they do."""
        with self._moved:
            return self._waiters

    def wait(self, event: threading.Event, timeout: float | None = None) -> bool:
        """Wait until the event is set, or `timeout` seconds of this clock have passed; whether it is set."""
        with self._moved:
            end_us = None if timeout is None else self._elapsed_us + round(timeout * 1_000_000)
            self._waiters += 1
            try:
                while not event.is_set() and (end_us is None or self._elapsed_us < end_us):
                    # An event cannot wake this condition, so it is looked at now and then in real time.
                    self._moved.wait(0.005)
            finally:
                self._waiters -= 1
            return event.is_set()
