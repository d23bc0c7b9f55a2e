"""Changes in order, each with a growing number, for any number of watchers at their own pace.

Publishing never waits and runs nobody's code. The last `limit` changes are kept: memory is bounded, and a watcher that
falls further behind is told how many it missed instead of going on with a gap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Self, TypeVar

from setpoint.runner.errors import WatchLagged

__all__ = ["Feed", "Watch"]

T = TypeVar("T")


class Feed(Generic[T]):
    """What has changed."""

    __slots__ = ("_kept", "_waiting", "revision")

    revision: int
    """Number of the latest change; they begin with 1."""

    def __init__(self, limit: int) -> None:
        self._kept: deque[T] = deque(maxlen=limit)
        self._waiting: set[asyncio.Future[None]] = set()
        self.revision = 0

    def publish(self, change: T) -> None:
        """Add a change and wake who waits for one."""
        self._kept.append(change)
        self.revision += 1
        for each in self._waiting:
            if not each.done():
                each.set_result(None)
        self._waiting.clear()

    def watch(self, first: list[T], after: int) -> Watch[T]:
        """What to begin with, and then every change after that revision."""
        return Watch(self, first, after)

    def get(self, revision: int) -> T:
        """The change of this number. Raises `WatchLagged` if it is not kept any more."""
        oldest = self.revision - len(self._kept) + 1
        if revision < oldest:
            raise WatchLagged(oldest - revision)
        return self._kept[revision - oldest]

    async def wait(self) -> None:
        """Wait for the next change."""
        # One future each: a shared one would be cancelled for all with the first of them.
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)


class Watch(Generic[T]):
    """`async for change in …`: never ends by itself. Leaving it needs nothing to be closed.

    Raises `WatchLagged` when it is too far behind; the next one goes on with the oldest change that is kept.
    """

    __slots__ = ("_feed", "_first", "_seen")

    def __init__(self, feed: Feed[T], first: list[T], after: int) -> None:
        self._feed = feed
        self._first = deque(first)
        self._seen = after

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._first:
            return self._first.popleft()
        while self._seen >= self._feed.revision:
            await self._feed.wait()
        try:
            change = self._feed.get(self._seen + 1)
        except WatchLagged as lagged:
            self._seen += lagged.missed
            raise
        self._seen += 1
        return change
