"""Services under ids: made by a factory, watched together."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self, TypeAlias

from setpoint.clock import Clock, SystemClock
from setpoint.errors import UsageError
from setpoint.runner.errors import AlreadyStopped, BadId, Immutable, ServiceExists, ServiceNotFound
from setpoint.runner.feed import Feed, Watch
from setpoint.runner.service import Service, State

__all__ = [
    "ChangeType",
    "IdFunction",
    "ServiceChange",
    "ServiceMap",
    "ServiceRecord",
    "id_is_kind",
    "id_is_required",
    "id_is_uuid",
]

KEPT: Final = 4_096
"""Changes that a slow watcher can be behind."""

IdFunction: TypeAlias = Callable[[str, Callable[[str], bool]], str]
"""(kind, whether an id is taken) → an id for a new service. Raises `BadId` if there is none."""


def id_is_kind(kind: str, taken: Callable[[str], bool]) -> str:
    """One service of each kind, under the kind's name. Raises `BadId` if there is one."""
    if taken(kind):
        raise BadId(f"there is a service {kind!r} already, and one of each kind is all there can be")
    return kind


def id_is_uuid(kind: str, taken: Callable[[str], bool]) -> str:  # noqa: ARG001  # an IdFunction
    """A random id."""
    for _ in range(10):
        made = str(uuid.uuid4())
        if not taken(made):
            return made
    raise BadId("ten random ids were all taken")


def id_is_required(kind: str, taken: Callable[[str], bool]) -> str:  # noqa: ARG001  # an IdFunction
    """Always raises `BadId`: whoever creates a service says its id."""
    raise BadId(f"give the new {kind!r} an id")


class ChangeType(StrEnum):
    """What happened to a service of the map."""

    ADD = "add"
    UPDATE = "update"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A service in the map."""

    id: str
    kind: str
    service: Service[Any]

    @property
    def state(self) -> State:
        """Where it is."""
        return self.service.state


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """One change of the map. Revisions are consecutive, so a gap would show."""

    revision: int
    type: ChangeType
    id: str
    kind: str
    time_us: int
    """Microseconds since 1970 UTC."""
    old: State | None
    """None for ADD."""
    new: State | None
    """None for REMOVE."""


class ServiceMap:
    """Services by id. `create(id, kind)` makes one with the factory, which raises for kinds it does not know.

    All verbs are quick, never wait, and do all or nothing. They are called on the event loop.
    """

    def __init__(
        self,
        factory: Callable[[str, str], Service[Any]],
        *,
        id_function: IdFunction = id_is_required,
        clock: Clock | None = None,
    ) -> None:
        self._factory: Callable[[str, str], Service[Any]] | None = factory
        self._id_function = id_function
        self._clock: Clock = SystemClock() if clock is None else clock
        self._records: dict[str, ServiceRecord] = {}
        self._unobserve: dict[str, Callable[[], None]] = {}
        self._feed: Feed[ServiceChange] = Feed(KEPT)

    @classmethod
    def of(cls, services: Sequence[Service[Any]], *, clock: Clock | None = None) -> Self:
        """A map of fixed services, with the ids "0", "1", …; their kind is the name of their class."""
        made = cls(_no_factory, clock=clock)
        made._factory = None
        for number, service in enumerate(services):
            made._add(ServiceRecord(str(number), type(service).__name__, service))
        return made

    @property
    def revision(self) -> int:
        """Number of the latest change."""
        return self._feed.revision

    def create(
        self,
        id: str | None,  # noqa: A002  # its word
        kind: str,
        *,
        active: bool = False,
        config: bytes | None = None,
    ) -> ServiceRecord:
        """Make a service, configure it if a configuration is given, and start it if it is to be active.

        Without an id, the map's `id_function` says one. Raises `ServiceExists`, `BadId`, `BadConfig`, `Immutable`, and
        what the factory raises; then there is no service, and no watcher has heard of one.
        """
        if self._factory is None:
            raise Immutable("this map has fixed services; none can be created")
        if not id:
            id = self._id_function(kind, self._records.__contains__)  # noqa: A001
        given: Any = id
        if not isinstance(given, str) or not given:
            raise BadId(f"an id is a text of one character or more, not {given!r}")
        self._refuse_taken(id)
        service = self._factory(id, kind)
        made: Any = service
        if not isinstance(made, Service):
            raise UsageError(f"the factory made {made!r} for {kind!r}, which is no Service")
        self._refuse_taken(id)  # the factory may have used the map
        if config is not None:
            service.configure(config)
        if active:
            service.start()
        record = ServiceRecord(id, kind, service)
        self._add(record)
        return record

    def _refuse_taken(self, id: str) -> None:  # noqa: A002
        if id in self._records:
            raise ServiceExists(f"there is a service {id!r} of kind {self._records[id].kind!r}; delete it first")

    def delete(self, id: str, *, allow_missing: bool = False) -> None:  # noqa: A002
        """Stop a service and remove it. `ended` of it waits for its end. Raises `ServiceNotFound`, `Immutable`."""
        if self._factory is None:
            raise Immutable("this map has fixed services; none can be deleted")
        record = self._records.get(id)
        if record is None:
            if allow_missing:
                return
            raise ServiceNotFound(f"there is no service {id!r}")
        with suppress(AlreadyStopped):
            record.service.stop()
        self._unobserve.pop(id)()
        del self._records[id]
        self._publish(ChangeType.REMOVE, record, record.state, None)

    def get(self, id: str) -> ServiceRecord | None:  # noqa: A002
        """The service of this id; None if there is none."""
        return self._records.get(id)

    def list(self) -> list[ServiceRecord]:
        """All services, by id."""
        return sorted(self._records.values(), key=lambda record: record.id)

    def watch(self, after: int | None = None) -> Watch[ServiceChange]:
        """Every change after that revision, in order and without gaps: `async for change in …`.

        Without a revision it begins with an ADD for each service there is, all with the map's revision as it is now.
        Raises `WatchLagged` when it is more than `KEPT` changes behind.
        """
        if after is not None:
            if not 0 <= after <= self.revision:
                raise UsageError(f"revision {after} has not been yet; the latest is {self.revision}")
            return self._feed.watch([], after)
        now_us = self._clock.now_us()
        first = [
            ServiceChange(self.revision, ChangeType.ADD, each.id, each.kind, now_us, None, each.state)
            for each in self.list()
        ]
        return self._feed.watch(first, self.revision)

    def _add(self, record: ServiceRecord) -> None:
        self._records[record.id] = record
        self._unobserve[record.id] = record.service.observe(
            lambda old, new: self._publish(ChangeType.UPDATE, record, old, new)
        )
        self._publish(ChangeType.ADD, record, None, record.state)

    def _publish(self, type_: ChangeType, record: ServiceRecord, old: State | None, new: State | None) -> None:
        self._feed.publish(
            ServiceChange(self.revision + 1, type_, record.id, record.kind, self._clock.now_us(), old, new)
        )


def _no_factory(id: str, kind: str) -> Service[Any]:  # noqa: A002
    raise Immutable(f"this map has fixed services; no {kind!r} can be created as {id!r}")
