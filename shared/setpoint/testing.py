"""For tests: a clock that moves only when told, and an event loop that goes by it. Nothing real imports this."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar, TypeVarTuple, Unpack

from setpoint.clock import Duration, parse_duration

__all__ = ["FakeClock", "FakeTimeLoop", "run_in_fake_time"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


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


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that never sleeps: when all tasks wait for time, its clock jumps to the next one's.

    An hour of retries takes milliseconds, each time the same way. While a function runs in a thread no time passes. It
    is for tests without real I/O: a wait for a socket looks like idleness, so time jumps meanwhile.
    """

    clock: FakeClock
    """Its time, and the wall clock that goes along; `advance` it to let time pass while a task runs."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = FakeClock() if clock is None else clock
        self._in_threads = 0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """Seconds of the fake clock."""
        return self.clock.monotonic()

    def _jump(self, seconds: float) -> bool:
        if self._in_threads:
            return False
        self.clock.advance(timedelta(microseconds=max(round(seconds * 1_000_000), 1)))
        return True

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """As every loop's; no time passes until the function has ended, even if nobody waits for it any more."""
        self._in_threads += 1
        watched = _InThread(self, partial(func, *args))
        future: asyncio.Future[T] = super().run_in_executor(executor, watched.run)
        future.add_done_callback(watched.answered)
        return future

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """As every loop's; no time passes meanwhile, or it would time out."""
        self._in_threads += 1
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            self._in_threads -= 1

    def thread_ended(self) -> None:
        """Time may pass again."""
        self._in_threads -= 1


class _InThread(Generic[T]):
    """A function in a thread: over with its answer or, if nobody waits for that any more, with its end."""

    def __init__(self, loop: FakeTimeLoop, call: Callable[[], T]) -> None:
        self._loop, self._call = loop, call
        self._begun = False
        self._ended = False
        self._abandoned = False

    def run(self) -> T:
        self._begun = True
        try:
            return self._call()
        finally:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._ended = True
        if self._abandoned:
            self._loop.thread_ended()

    def answered(self, future: asyncio.Future[T]) -> None:
        if future.cancelled() and self._begun and not self._ended:
            self._abandoned = True
        else:
            self._loop.thread_ended()


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for time, lets it pass."""

    def __init__(self, jump: Callable[[float], bool]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and (timeout <= 0 or self._jump(timeout))):
            return ready
        return super().select(None)


def run_in_fake_time(main: Coroutine[Any, Any, T], clock: FakeClock | None = None) -> T:
    """Like `asyncio.run`, but time jumps from one wait to the next instead of passing."""
    with asyncio.Runner(loop_factory=lambda: FakeTimeLoop(clock)) as runner:
        return runner.run(main)
