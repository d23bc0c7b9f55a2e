"""Does something again and again while somebody listens: at once, then at every interval, never twice at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, TypeAlias

from setpoint.backoff import Backoff
from setpoint.clock import LONGEST_US, Duration, parse_duration, sleep_us
from setpoint.errors import UsageError
from setpoint.runner import throttle
from setpoint.runner.calls import as_async, keep, report
from setpoint.runner.intermittent import Intermittent, Stop
from setpoint.runner.next import TaskFailed
from setpoint.runner.retry import attempt, name_of
from setpoint.runner.throttle import Log

__all__ = ["OnAttempt", "PollState", "poll"]

_rng: Final = Random()


@dataclass(frozen=True, slots=True)
class PollState:
    """Counts of one polling, from its first listener to its last."""

    total_errors: int = 0
    total_successes: int = 0
    errors_since_success: int = 0
    """Failures in a row, up to now."""
    successes_since_error: int = 0
    """Successes in a row, up to now."""
    next_delay_us: int = 0
    """How long until the next attempt, from the end of this one; microseconds."""

    def succeeded(self) -> PollState:
        """After one more success."""
        return PollState(self.total_errors, self.total_successes + 1, 0, self.successes_since_error + 1)

    def failed(self) -> PollState:
        """After one more failure."""
        return PollState(self.total_errors + 1, self.total_successes, self.errors_since_success + 1, 0)


OnAttempt: TypeAlias = (
    Callable[[PollState, Exception | None], Awaitable[bool | None]]
    | Callable[[PollState, Exception | None], bool | None]
)
"""Told of each attempt and its error. True ends the polling, until all listeners have left and one comes again."""

ErrorBackoff: TypeAlias = Backoff | tuple[Duration, Duration, float]


def poll(
    action: Callable[[], Awaitable[object]] | Callable[[], object],
    interval: Duration = "1s",
    *,
    error_backoff: ErrorBackoff | None = None,
    on_attempt: OnAttempt | None = None,
    log: Log = None,
) -> Intermittent:
    """An `Intermittent` that runs `action` at once for its first listener, and then at every `interval`.

    The intervals are counted from the first run; a run that takes longer lets one more follow at once, and no others.
    Errors never end it. After an error it waits `interval`, or as `error_backoff` says: a `Backoff`, or (initial, max,
    scale), where a max of 0 is no limit and a scale of 0 or 1 no growth. A success returns to the interval.
    `action` is cancelled when the last listener leaves. For a limit of time, poll `lambda: run(action, timeout="5s")`.

    Raises `UsageError` and `BadTime` for an interval of 0 and a backoff that cannot be meant.
    """
    interval_us = parse_duration(interval)
    if not interval_us:
        raise UsageError("an interval of 0 would be a hot loop")
    call = as_async(action)
    told = None if on_attempt is None else as_async(on_attempt)
    backoff = _backoff(error_backoff)

    async def start() -> Stop:
        polling = keep(_Poller(call, name_of(action), interval_us, backoff, told, log).run(), name="poll")

        async def stop() -> None:
            polling.cancel()
            await asyncio.wait({polling})

        return stop

    return Intermittent(start)


def _backoff(given: Any) -> Backoff | None:
    match given:
        case None | Backoff():
            return given
        case (initial, longest, scale):
            if not parse_duration(longest):
                longest = LONGEST_US / 1_000_000
            return Backoff(initial, longest, factor=1.0 if scale == 0 else scale, jitter=0.0)
        case _:
            raise UsageError(f"error_backoff is a Backoff or (initial, max, scale), not {given!r}")


class _Poller:
    """One stretch of polling."""

    def __init__(
        self,
        call: Callable[[], Awaitable[Any]],
        name: str,
        interval_us: int,
        backoff: Backoff | None,
        told: Callable[[PollState, Exception | None], Awaitable[Any]] | None,
        log: Log,
    ) -> None:
        self._call, self._name, self._interval_us = call, name, interval_us
        self._backoff, self._told, self._log = backoff, told, log
        self._state = PollState()
        self._due_us = 0  # the next tick
        self._paced = False  # whether ticks count, or a backoff is waited for
        self._delay_us = 0  # the last one of the backoff
        self._wake_us = 0

    async def run(self) -> None:
        self._due_us = _now_us() + self._interval_us
        self._paced = True
        while await self._once():
            await sleep_us(max(self._wake_us - _now_us(), 0))

    async def _once(self) -> bool:
        _, error = await attempt(self._call, 0)
        if isinstance(error, TaskFailed):
            error = error.error
        now_us = _now_us()
        failures = self._state.errors_since_success
        if error is None:
            self._state = replace(self._state.succeeded(), next_delay_us=self._next_tick(now_us))
            self._delay_us = 0
            throttle.recovered(self._log, self._name, failures)
        else:
            self._state = replace(self._state.failed(), next_delay_us=self._after_error(now_us))
            throttle.tries_again(self._log, self._name, failures + 1, error, self._state.next_delay_us)
        self._wake_us = now_us + self._state.next_delay_us
        if self._told is None:
            return True
        ends, broken = await attempt(self._told, 0, self._state, error)
        if broken is not None:
            report("on_attempt of a poll failed; the polling goes on", broken)
        return not ends

    def _next_tick(self, now_us: int) -> int:
        """Wait for the tick that is due; of those that passed meanwhile one is made up for at once."""
        if not self._paced:  # after a backoff the pace begins anew
            self._paced, self._due_us = True, now_us + self._interval_us
        due_us = self._due_us
        missed = max(now_us - due_us, -1) // self._interval_us + 1
        self._due_us = due_us + max(missed, 1) * self._interval_us
        return max(due_us - now_us, 0)

    def _after_error(self, now_us: int) -> int:
        if self._backoff is None:
            return self._next_tick(now_us)
        self._paced = False
        self._delay_us = self._backoff.next(self._state.errors_since_success + 1, self._delay_us, _rng)
        return self._delay_us


def _now_us() -> int:
    return round(asyncio.get_running_loop().time() * 1_000_000)
