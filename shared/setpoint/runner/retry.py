"""Runs a task until it succeeds or is given up: `run`, and `Runner` for those who wait themselves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from random import Random
from typing import Any, Final, Generic, TypedDict, TypeVar, assert_never, cast, overload

from setpoint.backoff import Backoff
from setpoint.clock import Duration, format_duration, parse_duration, sleep_us
from setpoint.errors import UsageError
from setpoint.runner import throttle
from setpoint.runner.calls import as_async
from setpoint.runner.delays import Start, delays
from setpoint.runner.errors import AttemptTimedOut, StrayCancellation
from setpoint.runner.next import Next, unwrap
from setpoint.runner.throttle import Log

__all__ = ["RETRY_UNLIMITED", "RunOptions", "Runner", "Step", "TaskState", "attempt", "run"]

T = TypeVar("T")

RETRY_UNLIMITED: Final = sys.maxsize
"""As `retry`: never give up."""

_rng: Final = Random()
_MICROSECOND: Final = timedelta(microseconds=1)
_NO_WAIT: Final = timedelta(0)


class TaskState(Enum):
    """Where a task is."""

    PENDING = 1
    """Not begun."""
    RUNNING = 2
    """In an attempt."""
    DELAY = 3
    """Between attempts."""
    STOPPED = 4
    """Ended: it succeeded, was given up or cancelled."""


@dataclass(frozen=True)  # with slots, Python 3.11 cannot call the generic form of it
class Step(Generic[T]):
    """What came of one attempt."""

    error: Exception | None
    """What it raised; None if it succeeded."""
    again: bool
    """Whether another attempt follows."""
    delay: timedelta
    """How long to wait before it."""
    value: T | None = None
    """What it returned."""


class RunOptions(TypedDict, total=False):
    """The options of `run`, taken by everything that runs tasks."""

    retry: int
    backoff: Start | Backoff | None
    delay: Duration | None
    timeout: Duration | None
    log: Log


class Runner(Generic[T]):
    """Runs one task attempt by attempt, and tells where it is. `step` never waits between attempts, `run` does.

    Options as in `run`. One step at a time: another raises `UsageError` meanwhile.
    """

    __slots__ = (
        "_call",
        "_delays",
        "_failures",
        "_left",
        "_log",
        "_previous_us",
        "_streak",
        "_timeout_us",
        "attempts",
        "error",
        "name",
        "state",
    )

    attempts: int
    """Attempts that have ended."""
    error: Exception | None
    """What the last attempt raised; None if it succeeded, or when `run` has raised it."""
    state: TaskState
    name: str
    """For logs: the function's."""

    @overload
    def __init__(
        self,
        task: Callable[[], Awaitable[T]],
        *,
        retry: int = 1,
        backoff: Start | Backoff | None = None,
        delay: Duration | None = None,
        timeout: Duration | None = None,
        log: Log = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        task: Callable[[], T],
        *,
        retry: int = 1,
        backoff: Start | Backoff | None = None,
        delay: Duration | None = None,
        timeout: Duration | None = None,
        log: Log = None,
    ) -> None: ...
    def __init__(
        self,
        task: Callable[[], Any],
        *,
        retry: int = 1,
        backoff: Start | Backoff | None = None,
        delay: Duration | None = None,
        timeout: Duration | None = None,
        log: Log = None,
    ) -> None:
        given: Any = retry
        if not isinstance(given, int) or isinstance(given, bool):
            raise UsageError(f"retry is a whole number of attempts or RETRY_UNLIMITED, not {given!r}")
        self._call = as_async(task)
        self._left = retry
        self._delays = delays(backoff, delay)
        self._timeout_us = 0 if timeout is None else parse_duration(timeout)
        self._log = log
        self._failures = 0  # in a row
        self._streak = 0  # the same, but counted anew when the backoff is reset
        self._previous_us = 0
        self.attempts = 0
        self.error = None
        self.state = TaskState.PENDING
        self.name = name_of(task)

    async def step(self) -> Step[T]:
        """Run the task once; what came of it, and whether and when to go on.

        Raises `CancelledError` when cancelled, and `UsageError` for a `Next` that is none. Anything else that the task
        raises is in the step.
        """
        if self.state is TaskState.RUNNING:
            raise UsageError("this runner is in an attempt already; one step at a time")
        self.state = TaskState.RUNNING
        try:
            value, error = await attempt(self._call, self._timeout_us)
            error, next_ = (None, Next.NORMAL) if error is None else unwrap(error)
        except BaseException:
            self.state = TaskState.STOPPED
            raise
        self.attempts += 1
        self.error = error
        if self._left != RETRY_UNLIMITED:
            self._left -= 1
        delay_us = self._decide(error, next_)
        self.state = TaskState.STOPPED if delay_us is None else TaskState.DELAY
        try:
            self._tell(error, delay_us)
            return Step(error, delay_us is not None, _NO_WAIT if not delay_us else delay_us * _MICROSECOND, value)
        finally:
            del error  # its traceback may lead back here

    def _decide(self, error: Exception | None, next_: Next) -> int | None:
        """Microseconds until the next attempt; None if there is none. The order of the checks is part of the contract.

        Ported from Smart Core BOS `pkg/task`: no error and no attempts left come first, whatever the task says.
        """
        if error is None:
            return None
        self._failures += 1
        if self._left <= 0:
            return None
        match next_:
            case Next.NORMAL:
                self._streak += 1
            case Next.STOP_NOW:
                return None
            case Next.RETRY_NOW:
                self._streak = self._previous_us = 0
                return 0
            case Next.RESET_BACKOFF:
                self._streak, self._previous_us = 1, 0
            case _:
                assert_never(next_)
        self._previous_us = self._delays.next(self._streak, self._previous_us, _rng)
        return self._previous_us

    def _tell(self, error: Exception | None, delay_us: int | None) -> None:
        if error is None:
            throttle.recovered(self._log, self.name, self._failures)
            self._failures = 0
        elif delay_us is None:
            throttle.gave_up(self._log, self.name, self._failures, error)
        else:
            throttle.tries_again(self._log, self.name, self._failures, error, delay_us)

    async def run(self) -> T:
        """Step and wait until it succeeds or is given up; what the task returned.

        Raises what the last attempt raised. When cancelled, raises `CancelledError` with the last attempt's error as
        its cause.
        """
        step = None
        try:
            step = await self.step()
            while step.again:
                waiting, step = sleep_us(step.delay // _MICROSECOND), None  # the least that can be held meanwhile
                await waiting
                step = await self.step()
        except asyncio.CancelledError as cancelled:
            self.state = TaskState.STOPPED
            if cancelled.__cause__ is None:
                cancelled.__cause__ = self.error
            # Frames of the error's traceback lead back here, so nothing here may lead to the error.
            self.error = step = None
            raise
        if step.error is None:
            return cast("T", step.value)
        error, self.error = step.error, None  # as above
        del step
        try:
            raise error
        finally:
            del error


@overload
def run(
    task: Callable[[], Awaitable[T]],
    *,
    retry: int = 1,
    backoff: Start | Backoff | None = None,
    delay: Duration | None = None,
    timeout: Duration | None = None,
    log: Log = None,
) -> Coroutine[Any, Any, T]: ...
@overload
def run(
    task: Callable[[], T],
    *,
    retry: int = 1,
    backoff: Start | Backoff | None = None,
    delay: Duration | None = None,
    timeout: Duration | None = None,
    log: Log = None,
) -> Coroutine[Any, Any, T]: ...
def run(
    task: Callable[[], Any],
    *,
    retry: int = 1,
    backoff: Start | Backoff | None = None,
    delay: Duration | None = None,
    timeout: Duration | None = None,
    log: Log = None,
) -> Coroutine[Any, Any, Any]:
    """Run a task until it succeeds or is given up: `await run(connect, retry=5, backoff=("1s", "30s"))`.

    `task` takes nothing; a plain function runs in a thread. `retry` counts all attempts, the first one too; less than 1
    is 1. `backoff` is (first delay, longest delay), each half as long again as the one before, or a `Backoff`; `delay`
    is the same wait each time; neither is no wait. `timeout` is for each attempt; None or 0 is none. `log` gets the
    first failure, then fewer and fewer of them, the end, and a success after failures.

    Returns what the task returns. Raises the last attempt's error; `AttemptTimedOut` if that took too long; when
    cancelled, `CancelledError` with the last attempt's error as its cause. A task steers by raising `TaskFailed`.
    Arguments are checked when called, not when awaited: `UsageError`, `BadTime`.
    """
    return Runner[Any](task, retry=retry, backoff=backoff, delay=delay, timeout=timeout, log=log).run()


def name_of(task: Callable[..., Any]) -> str:
    """A name for logs."""
    inner = getattr(task, "func", task)  # of a partial
    return str(getattr(inner, "__qualname__", None) or type(inner).__qualname__)


async def attempt(call: Callable[..., Awaitable[Any]], timeout_us: int, *args: Any) -> tuple[Any, Exception | None]:
    """Call once: its value, and what it raised. Only a real cancellation and what is no `Exception` leave it."""
    try:
        if not timeout_us:
            return await call(*args), None
        return await _in_time(call, timeout_us, args), None
    except asyncio.CancelledError as cancelled:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        stray = StrayCancellation("the task ended by CancelledError, though nobody cancelled it")
        stray.__cause__ = _without_our_frame(cancelled)
        return None, stray
    except Exception as raised:  # noqa: BLE001  # the point of a runner
        return None, _without_our_frame(raised)


async def _in_time(call: Callable[..., Awaitable[Any]], timeout_us: int, args: tuple[Any, ...]) -> Any:
    limit = asyncio.timeout(timeout_us / 1_000_000)
    try:
        async with limit:
            return await call(*args)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise AttemptTimedOut(f"the attempt took longer than {format_duration(timeout_us)}") from error


E = TypeVar("E", bound=BaseException)


def _without_our_frame(error: E) -> E:
    """Drop our own frame from the traceback: it tells nothing, costs memory while waiting, and would be a cycle."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
    return error
