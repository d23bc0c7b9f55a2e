"""What one applied configuration owns: its background tasks, connections and whatever else must end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final, Unpack

from setpoint.runner.calls import keep
from setpoint.runner.retry import Runner, RunOptions

__all__ = ["Scope"]

CANCEL_AGAIN: Final = 5.0
"""Seconds after which a background task that was cancelled and has not ended is cancelled once more."""


class Scope(AsyncExitStack):
    """Given to a service's `apply`: what is entered, pushed or spawned here ends before another one is applied.

    It is an `AsyncExitStack`: `await scope.enter_async_context(client)`, `scope.push_async_callback(client.aclose)`.
    """

    attempt: int
    """1 for the first attempt at this configuration."""

    def __init__(self, attempt: int = 1) -> None:
        super().__init__()
        self.attempt = attempt
        self._broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    def spawn(
        self, task: Callable[[], Awaitable[object]] | Callable[[], object], **options: Unpack[RunOptions]
    ) -> None:
        """Start a background task; options as in `run`. It is cancelled when the scope ends, again every 5 s until it
        has ended, and waited for.

        If it fails for good, so has the configuration: the service goes on as after a failed `apply`.
        """
        runner = Runner[Any](task, **options)
        running = keep(runner.run(), name=runner.name)
        running.add_done_callback(self._ended)
        self.push_async_callback(_end, running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Exception) and not self._broken.done():
            self._broken.set_result(error)

    async def broken(self) -> Exception:
        """Wait until a background task has failed; its error."""
        return await self._broken


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel it until it has ended. Once is not always enough: libraries lose cancellations (redis-py on Python 3.11
    does, now and then, in the first command of a connection), and then it would go on for ever."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN)
