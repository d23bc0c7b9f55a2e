"""How long a runner waits between attempts: whole microseconds, growing, never below the cap once there. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol, TypeAlias

from setpoint.backoff import Backoff
from setpoint.clock import Duration, parse_duration
from setpoint.errors import UsageError

__all__ = ["NO_DELAY", "Delays", "HalfMore", "ServiceRetry", "Start", "delays"]

Start: TypeAlias = tuple[Duration, Duration]
"""(first delay, longest delay)"""


class Delays(Protocol):
    """A series of delays; `setpoint.Backoff` is one."""

    def next(self, failures: int, previous_us: int, rng: Random) -> int:
        """The delay after the n-th failure in a row, given the one before it; microseconds."""
        ...


@dataclass(frozen=True, slots=True)
class HalfMore:
    """`start`, then each delay half as long again, up to `max`: 1 s, 1.5 s, 2.25 s … Exact, without jitter.

    The first one is `start` even if that is more than `max`.
    """

    start_us: int
    max_us: int

    def next(self, failures: int, previous_us: int, rng: Random) -> int:  # noqa: ARG002  # as `Backoff.next`
        """The delay after the n-th failure in a row; the first one for 1."""
        if failures <= 1:
            return self.start_us
        # By 1 µs at least: half of 1 is nothing in whole numbers, and the series would stand still.
        return min(previous_us + max(previous_us // 2, 1), self.max_us)


NO_DELAY: Final = HalfMore(0, 0)


def delays(backoff: Start | Backoff | None, delay: Duration | None) -> Delays:
    """What the options `backoff` and `delay` say: a growing delay, the same each time, or none.

    Raises `UsageError` for both at once and for a backoff from or to 0, which would be a hot loop; `BadTime` for what
    is no duration.
    """
    given: Any = backoff
    if given is None:
        return NO_DELAY if delay is None else HalfMore(parse_duration(delay), parse_duration(delay))
    if delay is not None:
        raise UsageError("give backoff= or delay=, not both: delay is the same wait each time")
    if isinstance(given, Backoff):
        return given
    match given:
        case (first, longest):
            start_us, max_us = parse_duration(first), parse_duration(longest)
        case _:
            raise UsageError(f"backoff is a pair (first delay, longest delay) or a Backoff, not {given!r}")
    if not start_us or not max_us:
        raise UsageError("a backoff from 0 or to 0 would be a hot loop; to wait not at all, leave it out")
    return HalfMore(start_us, max_us)


@dataclass(frozen=True, slots=True, init=False)
class ServiceRetry:
    """How a service tries again: `initial`, times `factor` after each failure, between `min` and `max`, jittered.

    0.5 s, 0.75 s, 1.13 s … 30 s, for ever, unless told otherwise. `attempts` counts all, the first one too; None is no
    limit.
    Raises `UsageError` and `BadTime` for what cannot be meant.
    """

    attempts: int | None
    backoff: Backoff
    min_us: int

    def __init__(
        self,
        attempts: int | None = None,
        *,
        initial: Duration = "500ms",
        max: Duration = "30s",  # noqa: A002  # as in `Backoff`
        min: Duration = "500ms",  # noqa: A002
        factor: float = 1.5,
        jitter: float = 0.0,
    ) -> None:
        given: Any = attempts
        if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            raise UsageError(f"attempts is a whole number of 1 or more, or None for no limit, not {given!r}")
        if parse_duration(min) > parse_duration(max):
            raise UsageError(f"min ({min!r}) cannot be more than max ({max!r})")
        put = object.__setattr__
        put(self, "attempts", attempts)
        put(self, "backoff", Backoff(initial, max, factor=factor, jitter=jitter))
        put(self, "min_us", parse_duration(min))

    def delay_us(self, failures: int, rng: Random) -> int:
        """The delay after the n-th failure in a row; microseconds."""
        delay_us = self.backoff.next(failures, 0, rng)
        return max(self.min_us, delay_us)
