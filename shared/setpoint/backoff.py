"""How long to wait after failures, and how many to bear. Pure arithmetic; what has failed is kept elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from setpoint.clock import Duration, parse_duration
from setpoint.errors import UsageError

if TYPE_CHECKING:
    from random import Random

__all__ = ["Backoff", "Retry"]


@dataclass(frozen=True, slots=True, init=False)
class Backoff:
    """A series of growing delays: `initial`, times `factor` after each failure, `max` at most, jittered.

    `jitter` j picks each delay evenly from [1-j, 1] of it, so that what failed together does not come back together.
    Raises `BadTime` or `UsageError` for delays that cannot be meant.
    """

    initial_us: int
    """The first delay; microseconds."""
    max_us: int
    """No delay is longer; microseconds."""
    factor: float
    """Growth of the exponential series, 1 or more."""
    jitter: float
    """0 is none; 1 picks from the whole delay."""
    step_us: int
    """Above 0: grows by adding this, not by the factor; microseconds."""

    def __init__(
        self,
        initial: Duration = "10s",
        max: Duration = "1h",  # noqa: A002  # the word that reads right where it is used
        *,
        factor: float = 2.0,
        jitter: float = 0.5,
    ) -> None:
        initial_us = parse_duration(initial)
        max_us = parse_duration(max)
        if initial_us == 0:
            raise UsageError("a backoff cannot start at 0: a failure would be a hot loop")
        if max_us < initial_us:
            raise UsageError(f"a backoff's max ({max!r}) cannot be less than its initial delay ({initial!r})")
        if not _number(factor) or not 1 <= factor < math.inf:
            raise UsageError(f"a backoff's factor is a number of 1 or more, not {factor!r}")
        if not _number(jitter) or not 0 <= jitter <= 1:
            raise UsageError(f"a backoff's jitter is between 0 and 1, not {jitter!r}")
        self._fill(initial_us, max_us, float(factor), float(jitter), 0)

    @classmethod
    def linear(cls, step: Duration = "10s", max: Duration = "1h") -> Self:  # noqa: A002  # as above
        """`step`, 2 `step`, 3 `step` … up to `max`, without jitter."""
        made = cls(step, max, factor=1.0, jitter=0.0)
        made._fill(made.initial_us, made.max_us, 1.0, 0.0, made.initial_us)
        return made

    def _fill(self, initial_us: int, max_us: int, factor: float, jitter: float, step_us: int) -> None:
        put = object.__setattr__
        put(self, "initial_us", initial_us)
        put(self, "max_us", max_us)
        put(self, "factor", factor)
        put(self, "jitter", jitter)
        put(self, "step_us", step_us)

    def next(self, failures: int, previous_us: int, rng: Random) -> int:
        """The delay after the n-th failure in a row (1 or more), jittered; microseconds.

        `previous_us` is the delay before this one, which the linear series adds to. Never overflows.
        """
        if self.step_us:
            return self.jittered(self.after(previous_us), rng)
        return self.jittered(self.nth(failures), rng)

    def nth(self, n: int) -> int:
        """The n-th delay of the series without jitter, for any n; below 1 counts as 1."""
        n = max(n, 1)
        if self.step_us:
            return min(self.step_us * n, self.max_us)
        if self.factor == 1.0:
            return self.initial_us
        # Compared before the power is taken: 2.0 ** 5000 is an OverflowError.
        if n - 1 >= math.log(self.max_us / self.initial_us) / math.log(self.factor):
            return self.max_us
        return min(round(self.initial_us * self.factor ** (n - 1)), self.max_us)

    def after(self, previous_us: int) -> int:
        """The delay that follows one of the series without jitter; the first one after 0."""
        if previous_us <= 0:
            return self.initial_us
        previous_us = min(previous_us, self.max_us)  # the policy may have been changed since
        if self.step_us:
            return min(previous_us + self.step_us, self.max_us)
        return min(max(round(previous_us * min(self.factor, self.max_us)), self.initial_us), self.max_us)

    def jittered(self, delay_us: int, rng: Random) -> int:
        """A delay picked evenly from [1 - jitter, 1] of this one; at least 1 µs."""
        if not self.jitter:
            return delay_us
        return max(round(delay_us * (1 - self.jitter * rng.random())), 1)

    def to_wire(self) -> list[int | float]:
        """As plain numbers."""
        return [self.initial_us, self.max_us, self.factor, self.jitter, self.step_us]

    @classmethod
    def from_wire(cls, wire: Sequence[int | float]) -> Self:
        """What `to_wire` gave; further numbers are ignored. Raises `ValueError` for what is none of its."""
        initial_us, max_us, factor, jitter, step_us = wire[:5]
        made = cls.__new__(cls)
        made._fill(int(initial_us), int(max_us), float(factor), float(jitter), int(step_us))
        return made


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Retry:
    """What follows a failure: how often to try, how long to wait, and which exceptions end it at once."""

    attempts: int | None = None
    """Evaluations that may fail in a row before the entity is parked as failed; None is no limit."""
    backoff: Backoff = field(default_factory=Backoff)
    """The delays between them."""
    never: tuple[type[BaseException], ...] = ()
    """Exceptions that are as final as `Permanent`."""
    reset: Literal["list", "action"] = "list"
    """When delays start over: after a whole list has succeeded, or already after each action that has."""

    def __post_init__(self) -> None:
        # As objects: callers without a type checker may give anything.
        given: Any = self
        attempts = given.attempts
        if attempts is not None and (not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1):
            raise UsageError(f"attempts is a whole number of 1 or more, or None for no limit, not {attempts!r}")
        if not isinstance(given.backoff, Backoff):
            raise UsageError(f"backoff is a Backoff, not {given.backoff!r}")
        never = given.never
        if not isinstance(never, tuple) or not all(_exception(each) for each in never):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            raise UsageError(f"never is a tuple of exception types, not {never!r}")
        if self.reset not in {"list", "action"}:
            raise UsageError(f'reset is "list" or "action", not {self.reset!r}')


def _exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)
