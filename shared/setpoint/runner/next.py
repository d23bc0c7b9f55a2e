"""How a failing task says what comes next: `raise TaskFailed(error, Next.RESET_BACKOFF)`. Decides nothing by itself."""

from __future__ import annotations

from enum import Enum
from typing import Any, cast

from setpoint.errors import SetpointError, UsageError

__all__ = ["AbortRetry", "Next", "TaskFailed", "unwrap"]


class Next(Enum):
    """What follows a failed attempt, as long as attempts are left."""

    NORMAL = 0
    """Wait the current delay, then try again; the delay grows. What any other exception means."""
    STOP_NOW = 1
    """Do not try again."""
    RETRY_NOW = 2
    """Try again at once; delays start over."""
    RESET_BACKOFF = 3
    """Delays start over: wait the first one. For work that got somewhere before it failed."""


class TaskFailed(SetpointError):
    """Raised by a task to say what comes next after `error`. Callers of the task get `error`, not this wrapper.

    A `next` that is no `Next` is a mistake in the program: it is raised as `UsageError`, and not tried again.
    """

    error: Exception
    next: Next

    def __init__(self, error: Exception, next: Next = Next.NORMAL) -> None:  # noqa: A002  # the word of the domain
        given: Any = error
        if not isinstance(given, Exception):
            raise UsageError(f"{type(self).__name__} wraps an exception, not {given!r}")
        super().__init__(error)
        self.error = error
        self.next = next

    def __str__(self) -> str:
        return f"{self.error} (then {self.next})"


class AbortRetry(TaskFailed):
    """Raised by a task, or a service's `apply`: `error` is final, do not try again."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error, Next.STOP_NOW)


def unwrap(raised: Exception) -> tuple[Exception, Next]:
    """The error itself, and what follows it.

    In a group of exceptions (a `TaskGroup` wraps everything in one) only `STOP_NOW` counts: one part that is final
    makes the whole final. Raises `UsageError` for a `next` that is none.
    """
    if isinstance(raised, TaskFailed):
        given: Any = raised.next
        if not isinstance(given, Next):
            raise UsageError(f"a task said {given!r} comes next; say one of {', '.join(map(str, Next))}") from raised
        return raised.error, raised.next
    return raised, Next.STOP_NOW if _has_final(raised) else Next.NORMAL


def _has_final(error: BaseException) -> bool:
    if isinstance(error, TaskFailed):
        return error.next is Next.STOP_NOW
    if not isinstance(error, BaseExceptionGroup):
        return False
    return any(map(_has_final, cast("BaseExceptionGroup[BaseException]", error).exceptions))
