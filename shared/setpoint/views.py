"""What a fleet answers its clients, as frozen values. `as_dict()` of each is ready for JSON: times are RFC 3339
text."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypeAlias, cast
from uuid import UUID

from setpoint.clock import format_duration, format_us, to_datetime
from setpoint.engine.records import Trouble

__all__ = [
    "DeadLetter",
    "Enqueued",
    "EntityView",
    "Event",
    "Explanation",
    "Holder",
    "PauseInfo",
    "Place",
    "SetResult",
    "Transition",
]

Place: TypeAlias = Literal["due", "leased", "idle", "parked", "unknown"]
"""Where an entity is: waiting for its time, being evaluated, at rest, taken out, or not known at all."""


class Enqueued(NamedTuple):
    """What became of an enqueue, reschedule or revive."""

    ref: str
    due_us: int
    """When it is due now, or what its wish asks for; microseconds since 1970 UTC, 0 if there is none."""
    outcome: Literal["scheduled", "merged", "wish", "parked", "absent"]
    """`scheduled`: due then. `merged`: it was due by then already. `wish`: it runs or is paused, once more after that.
    `parked`: it is poison and stays parked. `absent`: there was nothing to act on."""

    @property
    def due(self) -> datetime | None:
        """When it is due now, or what its wish asks for; None if it is not."""
        return to_datetime(self.due_us) if self.due_us and self.outcome not in {"parked", "absent"} else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ref": self.ref, "due": _time(self.due), "outcome": self.outcome}


class SetResult(NamedTuple):
    """What became of a set."""

    ref: str
    revision: int
    """The record's revision now; give it as `if_revision=` to change exactly what you read."""
    changed: bool
    """The goal is another than before."""
    outcome: Literal["scheduled", "wish", "parked"]
    """`scheduled`: due now. `wish`: it runs or is paused, once more after that. `parked`: it is poison and stays
    parked; `revive` it."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


@dataclass(frozen=True, slots=True)
class Holder:
    """Who evaluates an entity."""

    worker: str
    fence: int
    since: datetime
    due: datetime
    """When it had been due."""
    ending: Literal["", "deleted", "paused"] = ""
    """It was deleted meanwhile and its outcome will be dropped; or it will be paused when it ends."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "worker": self.worker,
            "fence": self.fence,
            "since": _time(self.since),
            "due": _time(self.due),
            "ending": self.ending,
        }


@dataclass(frozen=True, slots=True)
class PauseInfo:
    """A pause that holds now."""

    target: str
    """`fleet`, `lane:<lane>`, `kind:<kind>` or a ref."""
    why: str = ""
    who: str = ""
    since: datetime | None = None
    until: datetime | None = None
    """None: until it is resumed."""

    def __str__(self) -> str:
        text = f"{self.target} is paused"
        if self.who:
            text += f" by {self.who}"
        if self.why:
            text += f": {self.why}"
        return text + (f" (until {_time(self.until)})" if self.until else " (until resumed)")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "target": self.target,
            "why": self.why,
            "who": self.who,
            "since": _time(self.since),
            "until": _time(self.until),
        }


@dataclass(frozen=True, slots=True)
class Transition:
    """One of the last changes of a managed entity."""

    at: datetime
    what: Literal["goal", "state"]
    value: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"at": _time(self.at), "what": self.what, "value": self.value}


@dataclass(frozen=True, slots=True)
class EntityView:
    """All that is known of one entity, as of one moment."""

    ref: str
    place: Place
    state: str | None = None
    """As last recorded; None if it has no record (its state lives in the application) or no state yet."""
    goal: str | None = None
    revision: int = 0
    """Grows with each change of the record; 0 is no record."""
    due: datetime | None = None
    """When it is due; only in place `due`."""
    wish: datetime | None = None
    """It runs or is paused, and is to be evaluated again then."""
    since: datetime | None = None
    """When it was leased or parked."""
    until: datetime | None = None
    """`leased`: when the lease ends unless it is extended. `idle`: when it is looked at again; None is never."""
    trouble: Trouble = field(default_factory=Trouble)
    """How it has been failing."""
    holder: Holder | None = None
    data: Any = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    history: Sequence[Transition] = ()
    """The last transitions of the record, oldest first, at most 8."""
    paused: Sequence[PauseInfo] = ()
    """Pauses that hold it back now: of the fleet, its lane, its kind or itself."""

    @property
    def known(self) -> bool:
        """There is something to know: a place, or a record."""
        return self.place != "unknown" or self.revision > 0

    @property
    def at_rest(self) -> bool:
        """Nothing is to be done for it now: neither due, running, parked, nor wished for."""
        return self.place in {"idle", "unknown"} and self.wish is None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ref": self.ref,
            "place": self.place,
            "state": self.state,
            "goal": self.goal,
            "revision": self.revision,
            "due": _time(self.due),
            "wish": _time(self.wish),
            "since": _time(self.since),
            "until": _time(self.until),
            "trouble": _trouble(self.trouble),
            "holder": self.holder.as_dict() if self.holder else None,
            "data": _plain(self.data),
            "labels": dict(self.labels),
            "history": [each.as_dict() for each in self.history],
            "paused": [each.as_dict() for each in self.paused],
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an entity is where it is, and what happens next."""

    ref: str
    place: Place
    why: Sequence[str]
    """Sentences, the most telling first."""
    next: str
    """What happens next, or what you can do about it."""
    next_at: datetime | None = None
    """When that happens; None: at once, or nothing does by itself."""
    codes: Sequence[str] = ()
    """The same as `why` for programs: `backoff`, `waiting`, `scheduled`, `ready`, `paused`, `kind-unknown`,
    `no-workers`, `at-cap`, `leased`, `suspect`, `wish`, `cancelling`, `failed`, `poison`, `at-goal`, `not-at-goal`,
    `resync`, `unknown`."""
    entity: EntityView | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """The whole as lines of text for people."""
        return (f"{self.ref} is {self.place}", *(f"  {line}" for line in self.why), f"next: {self.next}")

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ref": self.ref,
            "place": self.place,
            "why": list(self.why),
            "next": self.next,
            "next_at": _time(self.next_at),
            "codes": list(self.codes),
            "entity": self.entity.as_dict() if self.entity else None,
        }


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entity that is parked because it failed or is poison."""

    ref: str
    reason: Literal["failed", "poison"]
    """`failed`: out of attempts, or told never to be tried again. `poison`: it killed the processes that ran it."""
    since: datetime
    trouble: Trouble

    @property
    def error(self) -> str:
        """Its last error in one line; empty if none was kept."""
        return error_line(self.trouble)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ref": self.ref,
            "reason": self.reason,
            "since": _time(self.since),
            "error": self.error,
            "trouble": _trouble(self.trouble),
        }


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an entity."""

    id: str
    """Grows with time; `watch(since=id)` goes on after it."""
    at: datetime
    ref: str
    name: str
    """`goal`, `reached`, `moved`, `nothing`, `failed`, `parked`, `deleted`, …"""
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"id": self.id, "at": _time(self.at), "ref": self.ref, "name": self.name, "detail": self.detail}


def error_line(trouble: Trouble) -> str:
    """The last error in one line: `drain: TimeoutError: no answer`; empty if there is none."""
    error = trouble.error
    if error is None:
        return ""
    first = error.message.strip().partition("\n")[0]
    return f"{error.where}: {error.type}" + (f": {first}" if first else "")


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trouble(trouble: Trouble) -> dict[str, Any]:
    error = trouble.error
    return {
        "failures": trouble.failures,
        "crashes": trouble.crashes,
        "waits": trouble.waits,
        "suspect": trouble.suspect > 0,
        "reason": None if trouble.reason == "-" else trouble.reason,
        "backoff": format_duration(trouble.delay_us),
        "error": None
        if error is None
        else {
            "type": error.type,
            "message": error.message,
            "where": error.where,
            "at": format_us(error.at_us),
            "trace": error.trace,
        },
    }


def _plain(value: object) -> Any:  # one for each type
    """A stored value as JSON can show it; bytes as base64."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return base64.b64encode(value).decode()
        case datetime():
            return _time(value)
        case timedelta():
            return format_duration(value // timedelta(microseconds=1))
        case date():
            return value.isoformat()
        case Decimal() | UUID():
            return str(value)
        case dict():
            return {str(key): _plain(item) for key, item in cast("dict[object, object]", value).items()}
        case list() | tuple():
            return [_plain(item) for item in cast("Sequence[object]", value)]
        case set() | frozenset():
            return sorted((_plain(item) for item in cast("frozenset[object]", value)), key=str)
        case _:
            return repr(value)
