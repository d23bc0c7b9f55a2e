"""`Fleet`: what applications hold in their hands. It keeps what they declare and asks Redis what they ask, blocking."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from setpoint.backoff import Retry
from setpoint.clock import NOT_GIVEN, Duration, Instant, NotGiven, parse_duration
from setpoint.engine.keys import Keys
from setpoint.engine.scripts import Scripts
from setpoint.entity import Ref
from setpoint.errors import ConfigurationError, SetpointError
from setpoint.registry import Registry
from setpoint.settings import Settings
from setpoint.verbs import Cursor, Deleted, Listen, Step, Steps, Verbs
from setpoint.views import DeadLetter, Enqueued, EntityView, Event, Explanation, PauseInfo, Place, SetResult

if TYPE_CHECKING:
    from setpoint.aio import AsyncFleet
    from setpoint.engine.door import AsyncDoor, Door

__all__ = ["Fleet"]

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])

DOORS_KEPT: Final = 8
"""Connections kept open for the next call; more threads at once have more, closed again after use."""


class Fleet:
    """A fleet: its kinds, and every verb for its entities. Threads may share one; so may forked processes.

    Making one opens nothing and imports no Redis: the first verb connects. `redis_url` says where (see `Settings`),
    `namespace` which of several fleets there. `unknown_kind="accept"` lets verbs write to kinds that neither this fleet
    nor any worker ever declared; a fleet that declares nothing, a pure client, accepts any. `patience` is how long a
    verb goes on trying when Redis does not answer.

    All verbs raise `BadRef` for what is no `kind/id`, `BadTime` for what is no time, `ConfigurationError` if no URL is
    configured or it makes no sense, `RedisUnavailable` if Redis does not answer within `patience`, and `RedisFull` if
    it refuses writes for want of memory. What the caller got wrong is found before anything is written.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        namespace: str | None = None,
        rq_url: str | None = None,
        settings: Settings | None = None,
        unknown_kind: Literal["refuse", "accept"] = "refuse",
        patience: Duration = "10s",
    ) -> None:
        given = {"redis_url": redis_url, "namespace": namespace, "rq_url": rq_url}
        for name, value in given.items():
            if value is not None and not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(f"{name} is a string, not {type(value).__name__}")
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.settings = dataclasses.replace(settings or Settings(), **changes)
        if unknown_kind not in {"refuse", "accept"}:
            raise ConfigurationError(f'unknown_kind is "refuse" or "accept", not {unknown_kind!r}')
        self.registry = Registry()
        self._patience = parse_duration(patience) / 1e6
        self._verbs = Verbs(
            Scripts(Keys(self.settings.namespace)),
            self.registry,
            payload_limit=self.settings.payload_limit,
            accept_unknown=unknown_kind == "accept",
        )
        self._free: deque[Door] = deque()
        self._pid = os.getpid()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """A fleet as `SETPOINT_REDIS_URL`, `SETPOINT_NAMESPACE` and the rest of `Settings` say."""
        return cls(settings=Settings.from_env(environ))

    def __repr__(self) -> str:
        return f"<Fleet {self.settings.namespace} with {len(self.registry.kinds)} kinds>"

    # ------------------------------------------------------------------------------------------------ declaring

    def entity(
        self,
        name: str,
        *,
        initial: str | None = None,
        lane: str = "default",
        retry: Retry | None = None,
        timeout: Duration | None = "10m",
        resync: Duration | None = None,
        cap: int | None = None,
        rate: str | tuple[int, Duration] | None = None,
        remember: bool | None = None,
        settable: bool | None = None,
        exclusive: bool = False,
        after_success: Literal["check", "idle"] = "check",
    ) -> Callable[[C], C]:
        """Declare the class below as the kind `name`.

        `initial`: state of a managed entity whose first goal is set. `lane`: which workers run it. `retry`: when and
        how often failures are tried again (default: for ever, 10 s growing to 1 h). `timeout`: for one evaluation,
        None is none. `resync`: evaluate each known entity this often, even at rest. `cap`: evaluations at once in the
        whole fleet. `rate`: evaluations started, such as `"100/1m"`. `remember`: stays known at rest (managed ones
        always do). `settable`: the goal of an Observed entity can be set with `set` and is its `self.goal` (default:
        if it has no `goal_state` of its own). `exclusive`: killed at once when its lease may be lost.
        `after_success="idle"`: do not check the goal.

        Raises `DuplicateKind`, `UnknownState`, `BadTime`, and `UsageError` for whatever else cannot be meant.
        """

        def declare(cls: C) -> C:
            self.registry.declare(
                cls,
                name,
                initial=initial,
                lane=lane,
                retry=retry,
                timeout=timeout,
                resync=resync,
                cap=cap,
                rate=rate,
                remember=remember,
                settable=settable,
                exclusive=exclusive,
                after_success=after_success,
            )
            return cls

        return declare

    # ------------------------------------------------------------------------------------------------ goals

    def set(
        self,
        ref: str | Ref,
        goal: str,
        *,
        data: Any = NOT_GIVEN,
        labels: Mapping[str, str] | NotGiven = NOT_GIVEN,
        if_revision: int | None = None,
    ) -> SetResult:
        """Set the goal of a managed or settable entity and have it evaluated now; it is made if there is none.

        `data` (any value that can be stored) and `labels` (strings) replace what it has; left out, they stay.
        `if_revision`: only if its record has this revision, 0 being none. Another goal clears failures and crashes.

        Raises `UnknownState`, `UnknownKind`, `BadPayload`, and `Conflict` if it has another revision.
        """
        return self._do(self._verbs.set(ref, goal, data=data, labels=labels, if_revision=if_revision))

    def set_many(
        self,
        items: Mapping[str, str] | Iterable[tuple[str | Ref, str]],
        *,
        data: Any = NOT_GIVEN,
        labels: Mapping[str, str] | NotGiven = NOT_GIVEN,
    ) -> list[SetResult]:
        """Set many goals, (ref, goal) each; all are checked before the first is written, then each is a write of its
        own."""
        return self._do(self._verbs.set_many(items, data=data, labels=labels))

    # ------------------------------------------------------------------------------------------------ due times

    def enqueue(
        self, ref: str | Ref, *, at: Instant | NotGiven = NOT_GIVEN, after: Duration | NotGiven = NOT_GIVEN
    ) -> Enqueued:
        """Have it evaluated no later than `at` (an aware datetime, or seconds since 1970) or `after` this long; or now.

        The earliest of all wishes wins. If it runs or is paused it is evaluated once more after that. Repeating it
        changes nothing. Raises `UnknownKind`.
        """
        return self._do(self._verbs.enqueue(ref, at=at, after=after))

    def enqueue_many(self, items: Iterable[tuple[str | Ref, Instant | Duration]]) -> list[Enqueued]:
        """Enqueue many, (ref, when) each: a datetime is an instant, anything else a duration from now, 0 is now.

        All are checked before the first is written; they go in batches of 256, and a ref named twice goes once, with
        the earlier time. Answers in the order given. After an error, repeat the whole: it changes nothing.
        """
        return self._do(self._verbs.enqueue_many(items))

    def reschedule(
        self, ref: str | Ref, *, at: Instant | NotGiven = NOT_GIVEN, after: Duration | NotGiven = NOT_GIVEN
    ) -> Enqueued:
        """Move its due time, to a later one too; if it runs or is paused, replace the wish. Raises `UnknownKind`."""
        return self._do(self._verbs.reschedule(ref, at=at, after=after))

    def unschedule(self, ref: str | Ref) -> bool:
        """Drop its due time and its wish; whether there was one. What is known of it stays known."""
        return self._do(self._verbs.unschedule(ref))

    def is_scheduled(self, ref: str | Ref) -> bool:
        """Whether it is due, now or later, or is to be evaluated again after what runs now. Never waits for a run."""
        return self._do(self._verbs.is_scheduled(ref))

    # ------------------------------------------------------------------------------------------------ looking

    def get(self, ref: str | Ref) -> EntityView:
        """All that is known of it, as of one moment. Raises `NotFound` if nothing is."""
        return self._do(self._verbs.get(ref))

    def explain(self, ref: str | Ref) -> Explanation:
        """Why it is where it is, what happens next, and when. An entity nothing is known of is explained too."""
        return self._do(self._verbs.explain(ref))

    def wait(self, ref: str | Ref, timeout: Duration = "30s", goal: str | None = None) -> EntityView:
        """Wait until it is at rest, with its goal reached if it has one; or until it is in state `goal`, if that is
        given.

        An entity nothing is known of is at rest. Raises `TimedOut` after `timeout`, or at once when it is parked: it
        will not get there by itself.
        """
        return self._do(self._verbs.wait(ref, timeout, goal))

    def watch(
        self, ref_or_kind: str | Ref | None = None, since: str | datetime | Duration | None = None
    ) -> Iterator[Event]:
        """What happens from now on, to one entity, one kind or all; without end.

        `since`: the id of an event, to go on after it; a datetime; or a duration such as `"5m"`, to begin so long ago.
        About the last 10,000 entries are kept.
        """
        whom, cursor = self._do(self._verbs.first_cursor(ref_or_kind, since))
        return self._events(whom, cursor)

    def _events(self, whom: str | None, cursor: Cursor) -> Iterator[Event]:
        with self.door("watch") as door:
            while True:
                events, cursor = _drive(door, self._verbs.next_events(whom, cursor))
                yield from events

    def ls(
        self,
        kind: str | None = None,
        state: str | None = None,
        place: Place | None = None,
        limit: int = 100,
        prefix: str | None = None,
    ) -> list[EntityView]:
        """Entities by kind, recorded state, place and start of their ids; `limit` at most, the earliest first in each
        place.

        Entities that are at rest and forgotten are not listed. Looking for a rare state reads all entities of the kind.
        """
        return self._do(self._verbs.ls(kind, state, place, limit, prefix))

    def counts(self, kind: str | None = None) -> dict[str, dict[str, int]]:
        """For each kind how many are `due`, `ready` (due by now), `leased`, `idle` and `parked`."""
        return self._do(self._verbs.counts(kind))

    # ------------------------------------------------------------------------------------------------ forgetting

    def delete(self, ref: str | Ref) -> Deleted:
        """Forget it at once. If it runs it is told, and its outcome dropped: `cancelling`. Unknown: `absent`, no
        error."""
        return self._do(self._verbs.delete(ref))

    def delete_many(self, refs: Iterable[str | Ref]) -> dict[str, Deleted]:
        """Forget many; what became of each."""
        return self._do(self._verbs.delete_many(refs))

    # ------------------------------------------------------------------------------------------------ dead letters

    def revive(self, ref: str | Ref) -> Enqueued:
        """Take it out of parked, whatever the reason, with its failures and crashes forgotten; `absent` if it was
        not."""
        return self._do(self._verbs.revive(ref))

    def dead(self, kind: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """What is parked because it failed or is poison, the latest first, with its last error."""
        return self._do(self._verbs.dead(kind, limit))

    def retry_dead(self, refs: Iterable[str | Ref]) -> list[Enqueued]:
        """Revive those of the refs that failed or are poison; `absent` for the others."""
        return self._do(self._verbs.retry_dead(refs))

    def drop_dead(self, refs: Iterable[str | Ref]) -> dict[str, Deleted]:
        """Delete those of the refs that failed or are poison; `absent` for the others."""
        return self._do(self._verbs.drop_dead(refs))

    # ------------------------------------------------------------------------------------------------ pausing

    def pause(
        self,
        target: str | Ref,
        *,
        why: str = "",
        until: Instant | NotGiven = NOT_GIVEN,
        for_: Duration | NotGiven = NOT_GIVEN,
        who: str = "",
    ) -> PauseInfo:
        """Pause `fleet`, `lane:<lane>`, `kind:<kind>` or one entity, until an instant, for a duration, or until
        resumed.

        What runs ends; enqueues are accepted and wait. Pausing again replaces why, who and until.
        Raises `UsageError` for a lane that no known kind is in.
        """
        return self._do(self._verbs.pause(target, why=why, until=until, for_=for_, who=who))

    def resume(self, target: str | Ref) -> bool:
        """Take a pause back; whether there was one. What failed or is poison stays parked: see `revive`."""
        return self._do(self._verbs.resume(target))

    def pauses(self) -> list[PauseInfo]:
        """All pauses that hold now."""
        return self._do(self._verbs.pauses())

    # ------------------------------------------------------------------------------------------------ connections

    @functools.cached_property
    def aio(self) -> AsyncFleet:
        """The same verbs for asyncio: `await fleet.aio.enqueue("vm/7")`."""
        from setpoint.aio import AsyncFleet

        return AsyncFleet(self)

    def door(self, role: str = "client") -> Door:
        """A new door to Redis, not shared; close it. `role` shows in CLIENT LIST."""
        from setpoint.engine.door import Door

        return Door(self.redis_url, self.settings.namespace, role=role, patience=self._patience)

    def async_door(self, role: str = "client") -> AsyncDoor:
        """The same for asyncio; it belongs to the event loop that first uses it."""
        from setpoint.engine.door import AsyncDoor

        return AsyncDoor(self.redis_url, self.settings.namespace, role=role, patience=self._patience)

    @property
    def redis_url(self) -> str:
        """Where its Redis is; raises `ConfigurationError` if none is configured."""
        if not self.settings.redis_url:
            raise ConfigurationError(
                "no Redis is configured: set SETPOINT_REDIS_URL (such as redis://localhost:6379/0) and use "
                "Fleet.from_env(), or give Fleet(redis_url)"
            )
        return self.settings.redis_url

    def close(self) -> None:
        """Close the connections that no call uses now; the next verb opens new ones."""
        while self._free:
            try:
                self._free.pop().close()
            except IndexError:  # another thread was quicker
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, steps: Steps[T]) -> T:
        try:
            first = next(steps)  # checks the arguments: no connection is needed to refuse them
        except StopIteration as end:
            result: T = end.value
            return result
        with self._borrowed() as door:
            return _drive(door, steps, first, self.redis_url)

    @contextmanager
    def _borrowed(self) -> Generator[Door]:
        """A door that nobody else uses meanwhile. No lock: one that was held at a fork would stay so."""
        if self._pid != os.getpid():
            self._free, self._pid = deque(), os.getpid()  # the others' connections are the parent's
        try:
            door = self._free.pop()
        except IndexError:
            door = self.door()
        try:
            yield door
        except SetpointError:
            self._give_back(door)
            raise
        except BaseException:
            door.close()  # interrupted, perhaps in the middle of an answer
            raise
        self._give_back(door)

    def _give_back(self, door: Door) -> None:
        if len(self._free) < DOORS_KEPT:
            self._free.append(door)
        else:
            door.close()


def _drive(door: Door, steps: Steps[T], step: Step | None = None, url: str = "") -> T:
    """Run the steps of a verb with a door."""
    ear: _Ear | None = None
    try:
        step = next(steps) if step is None else step
        while True:
            answer: Any = None
            match step:
                case tuple():
                    answer = door.read(*step)
                case Listen():
                    ear = ear or _Ear(url)
                    ear.listen(step)
                case _:
                    answer = door.run(step)
            step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        if ear is not None:
            ear.close()


class _Ear:
    """A connection that hears what is published on one channel. What it misses is found by looking again."""

    def __init__(self, url: str) -> None:
        from setpoint.engine.connect import connect

        self._client = connect(url, role="wait")
        self._pubsub = self._client.pubsub()
        self._deaf = threading.Event()  # never set: waiting for it is how to let time pass

    def listen(self, step: Listen) -> None:
        """Subscribe, the first time; later wait for a message."""
        import redis.exceptions

        try:
            if not self._pubsub.subscribed:
                self._pubsub.subscribe(step.channel)
                self._pubsub.get_message(timeout=1.0)  # the server's word that it listens
            elif step.seconds:
                self._pubsub.get_message(timeout=step.seconds)
        except (redis.exceptions.RedisError, OSError):
            self._pubsub.reset()
            self._deaf.wait(min(step.seconds, 0.2))

    def close(self) -> None:
        """Close the connection."""
        self._pubsub.close()
        self._client.close()
