"""`AsyncFleet`: the verbs of `Fleet` on an event loop, same names, same arguments, same answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from weakref import WeakKeyDictionary

from setpoint.clock import NOT_GIVEN, Duration, Instant, NotGiven, sleep_us
from setpoint.entity import Ref
from setpoint.errors import SetpointError
from setpoint.verbs import Deleted, Listen, Step, Steps
from setpoint.views import DeadLetter, Enqueued, EntityView, Event, Explanation, PauseInfo, Place, SetResult

if TYPE_CHECKING:
    from setpoint.engine.door import AsyncDoor
    from setpoint.fleet import Fleet

__all__ = ["AsyncFleet"]

T = TypeVar("T")

DOORS: Final = 8
"""Connections of one event loop; more calls at once wait for one."""


class _Doors:
    """The doors of one event loop."""

    def __init__(self) -> None:
        self.free: list[AsyncDoor] = []
        self.room = asyncio.Semaphore(DOORS)


class AsyncFleet:
    """As `Fleet`, of which it is a part: `fleet.aio`. Tasks, and event loops in several threads, may share it.

    Close it (or use `async with fleet.aio:`) before its event loop ends.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._verbs = fleet._verbs  # pyright: ignore[reportPrivateUsage]  # two faces of one thing
        self._doors: WeakKeyDictionary[asyncio.AbstractEventLoop, _Doors] = WeakKeyDictionary()

    async def set(
        self,
        ref: str | Ref,
        goal: str,
        *,
        data: Any = NOT_GIVEN,
        labels: Mapping[str, str] | NotGiven = NOT_GIVEN,
        if_revision: int | None = None,
    ) -> SetResult:
        """As `Fleet.set`."""
        return await self._do(self._verbs.set(ref, goal, data=data, labels=labels, if_revision=if_revision))

    async def set_many(
        self,
        items: Mapping[str, str] | Iterable[tuple[str | Ref, str]],
        *,
        data: Any = NOT_GIVEN,
        labels: Mapping[str, str] | NotGiven = NOT_GIVEN,
    ) -> list[SetResult]:
        """As `Fleet.set_many`."""
        return await self._do(self._verbs.set_many(items, data=data, labels=labels))

    async def enqueue(
        self, ref: str | Ref, *, at: Instant | NotGiven = NOT_GIVEN, after: Duration | NotGiven = NOT_GIVEN
    ) -> Enqueued:
        """As `Fleet.enqueue`."""
        return await self._do(self._verbs.enqueue(ref, at=at, after=after))

    async def enqueue_many(self, items: Iterable[tuple[str | Ref, Instant | Duration]]) -> list[Enqueued]:
        """As `Fleet.enqueue_many`."""
        return await self._do(self._verbs.enqueue_many(items))

    async def reschedule(
        self, ref: str | Ref, *, at: Instant | NotGiven = NOT_GIVEN, after: Duration | NotGiven = NOT_GIVEN
    ) -> Enqueued:
        """As `Fleet.reschedule`."""
        return await self._do(self._verbs.reschedule(ref, at=at, after=after))

    async def unschedule(self, ref: str | Ref) -> bool:
        """As `Fleet.unschedule`."""
        return await self._do(self._verbs.unschedule(ref))

    async def is_scheduled(self, ref: str | Ref) -> bool:
        """As `Fleet.is_scheduled`."""
        return await self._do(self._verbs.is_scheduled(ref))

    async def get(self, ref: str | Ref) -> EntityView:
        """As `Fleet.get`."""
        return await self._do(self._verbs.get(ref))

    async def explain(self, ref: str | Ref) -> Explanation:
        """As `Fleet.explain`."""
        return await self._do(self._verbs.explain(ref))

    async def wait(
        self,
        ref: str | Ref,
        timeout: Duration = "30s",  # noqa: ASYNC109  # the same signature as the blocking one
        goal: str | None = None,
    ) -> EntityView:
        """As `Fleet.wait`."""
        return await self._do(self._verbs.wait(ref, timeout, goal))

    async def watch(
        self, ref_or_kind: str | Ref | None = None, since: str | datetime | Duration | None = None
    ) -> AsyncIterator[Event]:
        """As `Fleet.watch`; it begins when it is first asked for an event. Use `aclosing` to leave it early."""
        whom, cursor = await self._do(self._verbs.first_cursor(ref_or_kind, since))
        async with self._fleet.async_door("watch") as door:
            while True:
                events, cursor = await _drive(door, self._verbs.next_events(whom, cursor))
                for event in events:
                    yield event

    async def ls(
        self,
        kind: str | None = None,
        state: str | None = None,
        place: Place | None = None,
        limit: int = 100,
        prefix: str | None = None,
    ) -> list[EntityView]:
        """As `Fleet.ls`."""
        return await self._do(self._verbs.ls(kind, state, place, limit, prefix))

    async def counts(self, kind: str | None = None) -> dict[str, dict[str, int]]:
        """As `Fleet.counts`."""
        return await self._do(self._verbs.counts(kind))

    async def delete(self, ref: str | Ref) -> Deleted:
        """As `Fleet.delete`."""
        return await self._do(self._verbs.delete(ref))

    async def delete_many(self, refs: Iterable[str | Ref]) -> dict[str, Deleted]:
        """As `Fleet.delete_many`."""
        return await self._do(self._verbs.delete_many(refs))

    async def revive(self, ref: str | Ref) -> Enqueued:
        """As `Fleet.revive`."""
        return await self._do(self._verbs.revive(ref))

    async def dead(self, kind: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """As `Fleet.dead`."""
        return await self._do(self._verbs.dead(kind, limit))

    async def retry_dead(self, refs: Iterable[str | Ref]) -> list[Enqueued]:
        """As `Fleet.retry_dead`."""
        return await self._do(self._verbs.retry_dead(refs))

    async def drop_dead(self, refs: Iterable[str | Ref]) -> dict[str, Deleted]:
        """As `Fleet.drop_dead`."""
        return await self._do(self._verbs.drop_dead(refs))

    async def pause(
        self,
        target: str | Ref,
        *,
        why: str = "",
        until: Instant | NotGiven = NOT_GIVEN,
        for_: Duration | NotGiven = NOT_GIVEN,
        who: str = "",
    ) -> PauseInfo:
        """As `Fleet.pause`."""
        return await self._do(self._verbs.pause(target, why=why, until=until, for_=for_, who=who))

    async def resume(self, target: str | Ref) -> bool:
        """As `Fleet.resume`."""
        return await self._do(self._verbs.resume(target))

    async def pauses(self) -> list[PauseInfo]:
        """As `Fleet.pauses`."""
        return await self._do(self._verbs.pauses())

    # ------------------------------------------------------------------------------------------------ connections

    async def close(self) -> None:
        """Close the connections of this event loop that no call uses now; the next verb opens new ones."""
        doors = self._doors.get(asyncio.get_running_loop())
        while doors and doors.free:
            await doors.free.pop().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _do(self, steps: Steps[T]) -> T:
        try:
            first = next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        async with self._borrowed() as door:
            return await _drive(door, steps, first, self._fleet.redis_url)

    @asynccontextmanager
    async def _borrowed(self) -> AsyncGenerator[AsyncDoor]:
        """A door that no other task uses meanwhile."""
        doors = self._doors.setdefault(asyncio.get_running_loop(), _Doors())
        async with doors.room:
            door = doors.free.pop() if doors.free else self._fleet.async_door()
            try:
                yield door
            except SetpointError:
                doors.free.append(door)
                raise
            except BaseException:
                await door.aclose()  # cancelled, perhaps in the middle of an answer
                raise
            doors.free.append(door)


async def _drive(door: AsyncDoor, steps: Steps[T], step: Step | None = None, url: str = "") -> T:
    """Run the steps of a verb with a door."""
    ear: _Ear | None = None
    try:
        step = next(steps) if step is None else step
        while True:
            answer: Any = None
            match step:
                case tuple():
                    answer = await door.read(*step)
                case Listen():
                    ear = ear or _Ear(url)
                    await ear.listen(step)
                case _:
                    answer = await door.run(step)
            step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        if ear is not None:
            await ear.close()


class _Ear:
    """A connection that hears what is published on one channel. What it misses is found by looking again."""

    def __init__(self, url: str) -> None:
        from setpoint.engine.connect import connect_async

        self._client = connect_async(url, role="wait")
        self._pubsub = self._client.pubsub()

    async def listen(self, step: Listen) -> None:
        """Subscribe, the first time; later wait for a message."""
        import redis.exceptions

        try:
            if not self._pubsub.subscribed:
                await self._pubsub.subscribe(step.channel)
                await self._pubsub.get_message(timeout=1.0)  # the server's word that it listens
            elif step.seconds:
                await self._pubsub.get_message(timeout=step.seconds)
        except (redis.exceptions.RedisError, OSError):
            await self._pubsub.aclose()
            await sleep_us(round(min(step.seconds, 0.2) * 1_000_000))

    async def close(self) -> None:
        """Close the connection."""
        await self._pubsub.aclose()
        await self._client.aclose()
