"""Many tasks under names, each with retries of its own; none can end another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, Unpack

from setpoint.clock import Duration, parse_duration
from setpoint.errors import UsageError
from setpoint.runner.calls import keep
from setpoint.runner.errors import TagExists
from setpoint.runner.retry import Runner, RunOptions, TaskState

__all__ = ["Group", "GroupTask"]

H = TypeVar("H", bound=Hashable)

REMEMBERED: Final = 1_000
"""Finished tasks whose state a group still knows; the oldest are forgotten first."""


class GroupTask(Generic[H]):
    """One task of a group: where it is, and how to end it. Made by `Group.spawn`."""

    __slots__ = ("_ended_with", "_runner", "_task", "tag")

    tag: H

    def __init__(self, tag: H, runner: Runner[Any], task: asyncio.Task[Any]) -> None:
        self.tag = tag
        self._runner = runner
        self._task = task
        self._ended_with: BaseException | None = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if self._ended_with is None:
            try:
                self._ended_with = task.exception()
            except asyncio.CancelledError as cancelled:  # asyncio gives the one with the cause only once
                self._ended_with = cancelled

    @property
    def state(self) -> TaskState:
        """Where it is."""
        return TaskState.STOPPED if self._task.done() else self._runner.state

    @property
    def error(self) -> BaseException | None:
        """What the last attempt raised, between attempts too.

        None if it succeeded; `CancelledError` if it was cancelled, with the last attempt's error as its cause.
        """
        if not self._task.done():
            return self._runner.error
        self._ended(self._task)
        return self._ended_with

    @property
    def attempts(self) -> int:
        """Attempts that have ended."""
        return self._runner.attempts

    def cancel(self) -> None:
        """End it: in an attempt, at its next await; between attempts, at once. Does not wait; twice is fine."""
        self._task.cancel()

    async def wait(self, timeout: Duration | None = None) -> bool:  # noqa: ASYNC109  # False is the answer, no error
        """Wait for its end, `timeout` at most; whether it has ended. Never raises what the task raised."""
        return await _wait(lambda: [self._task], timeout)


class Group(Generic[H]):
    """Tasks under tags. `async with` cancels what is left at its end, and waits for it.

    A tag is any hashable value. Finished tasks can be looked at until their tag is used again; of those, the latest
    `REMEMBERED` are kept.
    """

    def __init__(self) -> None:
        self._tasks: dict[H, GroupTask[H]] = {}
        self._alive: set[asyncio.Task[Any]] = set()
        self._finished: deque[GroupTask[H]] = deque()
        self._closed = False

    def spawn(
        self, tag: H, task: Callable[[], Awaitable[object]] | Callable[[], object], **options: Unpack[RunOptions]
    ) -> GroupTask[H]:
        """Start a task and return at once; options as in `run`.

        Raises `TagExists` while a task of this tag is alive, which goes on untouched; `UsageError` once `async with`
        has ended.
        """
        if self._closed:
            raise UsageError("this group has ended; spawn inside its `async with`")
        found = self._tasks.get(tag)
        if found is not None and found.state is not TaskState.STOPPED:
            raise TagExists(f"a task {tag!r} is {found.state.name.lower()} in this group; use another tag or cancel it")
        runner = Runner[Any](task, **options)
        running = keep(runner.run(), name=str(tag))
        made = GroupTask(tag, runner, running)
        self._tasks[tag] = made
        self._alive.add(running)
        running.add_done_callback(lambda ended: self._ended(made, ended))
        return made

    def _ended(self, task: GroupTask[H], ended: asyncio.Task[Any]) -> None:
        self._alive.discard(ended)
        self._finished.append(task)
        if len(self._finished) > REMEMBERED:
            oldest = self._finished.popleft()
            if self._tasks.get(oldest.tag) is oldest:
                del self._tasks[oldest.tag]

    def tasks(self) -> dict[H, GroupTask[H]]:
        """The tasks by tag, finished ones too; a copy."""
        return dict(self._tasks)

    def cancel(self) -> None:
        """Cancel every task. Does not wait."""
        for task in list(self._alive):
            task.cancel()

    async def wait(self, timeout: Duration | None = None) -> bool:  # noqa: ASYNC109  # as above
        """Wait until no task is alive, those spawned meanwhile included, `timeout` at most; whether none is."""
        return await _wait(lambda: list(self._alive), timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self.cancel()
        await self.wait()


async def _wait(tasks: Callable[[], list[asyncio.Task[Any]]], timeout: Duration | None) -> bool:  # noqa: ASYNC109
    loop = asyncio.get_running_loop()
    end = None if timeout is None else loop.time() + parse_duration(timeout) / 1_000_000
    while alive := [task for task in tasks() if not task.done()]:
        if asyncio.current_task() in alive:
            raise UsageError("a task cannot wait for its own end")
        left = None if end is None else end - loop.time()
        if left is not None and left <= 0:
            return False
        await asyncio.wait(alive, timeout=left)
    return True
