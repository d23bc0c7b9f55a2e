"""Which failures in a row are worth a line in the log, and the line. A server that is away all night fills no disk."""

from __future__ import annotations

import logging
import traceback
from typing import Any, Final, TypeAlias

from setpoint.clock import format_duration

__all__ = ["Log", "gave_up", "is_logged", "recovered", "tries_again"]

Log: TypeAlias = "logging.Logger | logging.LoggerAdapter[Any] | None"
"""Where lines go; None is nowhere."""

_FIRST: Final = frozenset({1, 2, 5, 10, 20, 50})


def is_logged(failures: int) -> bool:
    """Whether the n-th failure in a row is logged: 1, 2, 5, 10, 20, 50, and then every 100th."""
    return failures in _FIRST or (failures > 0 and failures % 100 == 0)


def tries_again(log: Log, name: str, failures: int, error: Exception, delay_us: int) -> None:
    """A warning that the n-th failure in a row will be followed by another try, if it is worth one."""
    if log is not None and is_logged(failures):
        log.warning(
            "%s failed %d in a row, next try in %s: %s",
            name,
            failures,
            format_duration(delay_us),
            _text(error),
            exc_info=error if failures == 1 else None,
            extra=_fields(name, failures, error),
        )


def gave_up(log: Log, name: str, failures: int, error: Exception) -> None:
    """An error: it failed and is not tried again."""
    if log is not None:
        log.error(
            "%s failed, not tried again (%d in a row): %s",
            name,
            failures,
            _text(error),
            exc_info=error,
            extra=_fields(name, failures, error),
        )


def recovered(log: Log, name: str, failures: int) -> None:
    """A line that it worked after failures; none if there were none."""
    if log is not None and failures:
        log.info("%s succeeded after %d failures", name, failures, extra={"task": name, "try": failures + 1})


def _fields(name: str, failures: int, error: Exception) -> dict[str, object]:
    return {"task": name, "try": failures, "err": _text(error), "err_type": type(error).__name__}


def _text(error: Exception) -> str:
    # Unlike str(), this survives an exception whose __str__ raises.
    return traceback.format_exception_only(error)[-1].strip()
