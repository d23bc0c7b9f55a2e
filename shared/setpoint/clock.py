"""Time: the one reader of the clock, and the one reader of what people write for durations and instants.

It is not the time that decides what is due: that is Redis' own, read in its scripts. Inside, all times are integers:
microseconds (`_us`).
"""

from __future__ import annotations

import math
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from setpoint.errors import BadTime

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from setpoint.engine.scripts import When

__all__ = [
    "LONGEST_US",
    "NOT_GIVEN",
    "Clock",
    "Duration",
    "Instant",
    "NotGiven",
    "SystemClock",
    "format_duration",
    "format_us",
    "parse_duration",
    "parse_instant",
    "sleep_us",
    "to_datetime",
    "when",
]

SECOND_US: Final = 1_000_000

FAR_US: Final = 1 << 53
"""Stands for "never": later than any time that is accepted. As `engine.scripts.FAR_US`, which is slow to import."""

LONGEST_US: Final = 36_525 * 86_400 * SECOND_US
"""100 years: anything longer is a mistake of units, and together with today it stays far below `FAR_US`."""

Duration: TypeAlias = str | int | float | timedelta
"""`"90s"`, `"1h30m"`, `"250ms"`, `"2d"`, a timedelta, or a number of seconds."""

Instant: TypeAlias = datetime | int | float
"""An aware datetime, or seconds since 1970 UTC."""

_UNITS: Final = {
    "w": 7 * 86_400 * SECOND_US,
    "d": 86_400 * SECOND_US,
    "h": 3_600 * SECOND_US,
    "m": 60 * SECOND_US,
    "s": SECOND_US,
    "ms": 1_000,
    "us": 1,
}
_PART: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(ms|us|µs|w|d|h|m|s)")
_NUMBER: Final = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?")
_ACCEPTED: Final = 'write "90s", "1h30m", "250ms", "2d", a timedelta or a number of seconds'
_EXACT: Final = Context(prec=60)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class NotGiven:
    """The type of `NOT_GIVEN`: an argument that was left out, where `None` would hide a mistake."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<not given>"

    def __bool__(self) -> Literal[False]:
        return False


NOT_GIVEN: Final = NotGiven()


# ------------------------------------------------------------------------------------------------------------ parsing


def parse_duration(value: object) -> int:
    """Microseconds of a duration: `"90s"`, `"1h30m"`, `"250ms"`, `"2d"`, a timedelta, or a number of seconds.

    Units are w d h m s ms us, the larger first and each once. Less than a microsecond is rounded. Raises `BadTime` for
    anything else: booleans, `None`, NaN, infinities, negative durations and those above 100 years.
    """
    match value:
        case bool() | None:
            raise BadTime(f"{value!r} is not a duration: {_ACCEPTED}")
        case str():
            us = _parse_text(value)
        case timedelta():
            us = value // _MICROSECOND
        case int():
            us = value * SECOND_US
        case float():
            if not math.isfinite(value):
                raise BadTime(f"{value!r} is not a duration: {_ACCEPTED}")
            us = _from_float(value)
        case _:
            raise BadTime(f"{type(value).__name__} is not a duration: {_ACCEPTED}")
    if us < 0:
        raise BadTime(f"a duration cannot be negative: {_short(value)}")
    if us > LONGEST_US:
        raise BadTime(f"{_short(value)} is longer than 100 years; a plain number counts seconds")
    return us


def _parse_text(text: str) -> int:
    compact = text.strip()
    if _NUMBER.fullmatch(compact):
        return round(_scaled(compact, SECOND_US))
    total, at, last = Decimal(0), 0, math.inf
    while at < len(compact):
        part = _PART.match(compact, at)
        if part is None:
            break
        unit = _UNITS[part[2].replace("µ", "u")]
        if unit >= last:
            raise BadTime(f"{_short(text)} is not a duration: larger units come first, each once")
        total, last, at = total + _scaled(part[1], unit), unit, part.end()
    if not compact or at < len(compact):
        raise BadTime(f"{_short(text)} is not a duration: {_ACCEPTED}")
    return round(total)


def _scaled(number: str, unit: int) -> Decimal:
    return _EXACT.multiply(Decimal(number), Decimal(unit))


def _from_float(seconds: float) -> int:
    # Whole seconds apart, so that the fraction of a large number is not lost in the product.
    whole = math.floor(seconds)
    return whole * SECOND_US + round((seconds - whole) * SECOND_US)


def parse_instant(value: object) -> int:
    """Microseconds since 1970 UTC of an aware datetime, or of a number of seconds since then.

    Raises `BadTime` for anything else: naive datetimes, booleans, `None`, NaN, infinities, times before 1970 and those
    beyond the year 2255.
    """
    match value:
        case bool() | None:
            raise BadTime(f"{value!r} is not a time: give an aware datetime or seconds since 1970")
        case datetime():
            if value.utcoffset() is None:
                raise BadTime(f"{value!r} has no time zone: use datetime(…, tzinfo=UTC) or .astimezone()")
            us = (value - _EPOCH) // _MICROSECOND
        case int():
            us = value * SECOND_US
        case float():
            if not math.isfinite(value):
                raise BadTime(f"{value!r} is not a time: give an aware datetime or seconds since 1970")
            us = _from_float(value)
        case _:
            raise BadTime(f"{type(value).__name__} is not a time: give an aware datetime or seconds since 1970")
    if not 0 <= us < FAR_US:
        raise BadTime(f"{_short(value)} is out of range: a time is after 1970 and before 2255, numbers are seconds")
    return max(us, 1)  # 0 stands for "none" in replies


def when(*, at: object = NOT_GIVEN, after: object = NOT_GIVEN) -> When:
    """The due time that `at=` (an instant) or `after=` (a duration from now, by Redis' clock) says; neither is now.

    Raises `BadTime` if both are given, or one that is no time; `None` is never a time.
    """
    from setpoint.engine.scripts import When  # here, so that `import setpoint` stays quick

    if not isinstance(at, NotGiven):
        if not isinstance(after, NotGiven):
            raise BadTime("give at= or after=, not both")
        return When.at(parse_instant(at))
    if not isinstance(after, NotGiven):
        return When.after(parse_duration(after))
    return When.after(0)


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "an enormous number"
    return text if len(text) <= 60 else text[:60] + "…"


# --------------------------------------------------------------------------------------------------------- formatting


def format_us(us: int) -> str:
    """An instant as RFC 3339 in UTC with milliseconds: `2026-03-01T12:00:00.250Z`; `never` from `FAR_US` on."""
    if us >= FAR_US:
        return "never"
    return to_datetime(us).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_datetime(us: int) -> datetime:
    """An instant as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=us)


def format_duration(us: int) -> str:
    """A duration as `parse_duration` reads it, exactly: `1h30m`, `250ms`, `0s`; negative ones with a minus sign."""
    if us < 0:
        return "-" + format_duration(-us)
    parts: list[str] = []
    rest = us
    for unit, size in _UNITS.items():
        if unit == "w":  # "8d" reads better than "1w1d"
            continue
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


# -------------------------------------------------------------------------------------------------------------- clock


class Clock(Protocol):
    """Where a process reads time and waits, so that tests can own it."""

    def now_us(self) -> int:
        """Wall-clock time of this machine, microseconds since 1970 UTC; for people, never to decide what is due."""
        ...

    def monotonic(self) -> float:
        """Seconds of a clock that never steps back; only differences mean anything."""
        ...

    def wait(self, event: threading.Event, timeout: float | None = None) -> bool:
        """Wait until the event is set, `timeout` seconds at most (None: for ever); whether it is set."""
        ...


class SystemClock:
    """The clock of this machine."""

    __slots__ = ()

    def now_us(self) -> int:
        """Wall-clock time, microseconds since 1970 UTC."""
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout: float | None = None) -> bool:
        """Wait until the event is set, `timeout` seconds at most; whether it is set."""
        return event.wait(timeout)


def sleep_us(us: int) -> Coroutine[Any, Any, None]:
    """`await` it to let other tasks run for this many microseconds, 0 included.

    The one place that sleeps on an event loop. It goes by the loop's own clock: `setpoint.testing.FakeTimeLoop` is a
    loop whose time tests own.
    """
    import asyncio  # here, so that `import setpoint` stays quick

    return asyncio.sleep(us / 1_000_000)  # not awaited here: a frame less for each of a hundred thousand waits
