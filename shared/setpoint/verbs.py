"""What a client can ask of a fleet, each verb once: a generator that yields steps, is sent their answers, and returns.

A step is a script call, a tuple of commands that may be repeated, or a wait for news of one entity. `Fleet` drives the
generators with blocking doors, `AsyncFleet` on an event loop. Everything is checked before the first step, so bad
arguments write nothing.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

from setpoint.clock import (
    NOT_GIVEN,
    NotGiven,
    format_duration,
    format_us,
    parse_duration,
    parse_instant,
    to_datetime,
    when,
)
from setpoint.engine import scripts as engine
from setpoint.engine.records import NO_TROUBLE, Trouble
from setpoint.engine.scripts import BATCH, FAR_US, Call, Scripts, When
from setpoint.entity import Ref, check_kind, check_lane, kind_of
from setpoint.errors import (
    BadPayload,
    BadTime,
    Conflict,
    NotFound,
    TimedOut,
    UnknownKind,
    UnknownState,
    UsageError,
)
from setpoint.registry import RESERVED, Policy, Registry
from setpoint.views import (
    DeadLetter,
    Enqueued,
    EntityView,
    Event,
    Explanation,
    Holder,
    PauseInfo,
    Place,
    SetResult,
    Transition,
    error_line,
)

__all__ = ["Deleted", "Listen", "Step", "Steps", "Verbs"]

T = TypeVar("T")

GOAL_BYTES: Final = 256
RECHECK: Final = 1.0
"""`wait` looks again after so many seconds at most, should a message be lost; `watch` blocks for so long."""

Deleted: TypeAlias = Literal["deleted", "cancelling", "absent"]
"""`deleted`; `cancelling`: it is running, and its outcome will be dropped; `absent`: nothing was known of it."""


@dataclass(frozen=True, slots=True)
class Listen:
    """A step: return once something was published on the channel, after so many seconds at most."""

    channel: str
    seconds: float


Command: TypeAlias = "tuple[Any, ...]"
Step: TypeAlias = "Call[Any] | tuple[Command, ...] | Listen"
Steps: TypeAlias = "Generator[Step, Any, T]"

# Names of commands are bytes: redis-py then leaves the replies as they came, in a transaction too.
_MULTI: Final[Command] = (b"MULTI",)
_EXEC: Final[Command] = (b"EXEC",)
_QUICK_REF: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}/[!-~]{1,440}", re.ASCII)
_EVENT_ID: Final = re.compile(r"([0-9]{1,19})-([0-9]{1,19})(?:/([0-9]{1,6}))?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_PLACES: Final[tuple[Place, ...]] = ("due", "leased", "idle", "parked")
_ENDING: Final[Mapping[str, Literal["", "deleted", "paused"]]] = {"x": "deleted", "p": "paused"}


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far somebody has read the events: all of the entries up to `entry`, and `skip` events of the one after."""

    entry: str
    skip: int = 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one look at Redis showed."""

    now_us: int
    views: tuple[EntityView, ...]
    published: Mapping[str, Published]


@dataclass(frozen=True, slots=True)
class Published:
    """A kind as a worker published it."""

    worker: str
    policy: Policy


class Verbs:
    """The verbs of one fleet. What each does is told at `Fleet`."""

    def __init__(self, scripts: Scripts, registry: Registry, *, payload_limit: int, accept_unknown: bool) -> None:
        self.scripts = scripts
        self.keys = scripts.keys
        self.registry = registry
        self.payload_limit = payload_limit
        self.accept_unknown = accept_unknown
        self._published: set[str] = set()

    # ------------------------------------------------------------------------------------------------ goals

    def set(self, ref: object, goal: object, *, data: object, labels: object, if_revision: object) -> Steps[SetResult]:
        """As `Fleet.set`."""
        ref = read_ref(ref)
        self._set_call(ref, goal, data, labels, if_revision, self._policy(ref))  # what is wrong here needs no Redis
        return self._set(ref, goal, data, labels, if_revision)

    def _set(self, ref: str, goal: object, data: object, labels: object, if_revision: object) -> Steps[SetResult]:
        yield from self._known((kind_of(ref),))
        policy = self._policy(ref) or (yield from self._published_policy(kind_of(ref)))
        reply: engine.SetReply = yield self._set_call(ref, goal, data, labels, if_revision, policy)
        if reply.outcome == "conflict":
            raise Conflict(f"{ref} has revision {reply.revision}, not {if_revision}: get() it again and decide again")
        return SetResult(ref, reply.revision, reply.changed, reply.outcome)

    def set_many(self, items: object, *, data: object, labels: object) -> Steps[list[SetResult]]:
        """As `Fleet.set_many`."""
        if isinstance(items, Mapping):
            items = list(cast("Mapping[object, object]", items).items())
        asked = [(read_ref(ref), goal) for ref, goal in _pairs(items, "goal")]
        kinds = dict.fromkeys(kind_of(ref) for ref, _ in asked)
        for ref, goal in asked:
            self._set_call(ref, goal, data, labels, None, self._policy(ref))
        yield from self._known(kinds)
        policies: dict[str, Policy | None] = {}
        for ref, goal in asked:
            kind = kind_of(ref)
            if kind not in policies:
                policies[kind] = self._policy(ref) or (yield from self._published_policy(kind))
            self._set_call(ref, goal, data, labels, None, policies[kind])
        done: list[SetResult] = []
        for ref, goal in asked:
            done.append((yield from self._set(ref, goal, data, labels, None)))
        return done

    def _policy(self, ref: str) -> Policy | None:
        kind = self.registry.kinds.get(kind_of(ref))
        return None if kind is None else kind.policy

    def _published_policy(self, kind: str) -> Steps[Policy | None]:
        """As the youngest worker published it: a program that declares no kinds learns states and goals from there."""
        (stored,) = yield ((b"HGET", self.keys.kinds, kind),)
        published = _published(stored)
        return None if published is None else published.policy

    def _set_call(
        self, ref: str, goal: object, data: object, labels: object, if_revision: object, policy: Policy | None
    ) -> Call[engine.SetReply]:
        from setpoint.serializer import pack, pack_labels

        goal = _state(goal, "a goal")
        initial = ""
        if policy is not None:
            if not policy.recorded:
                raise UsageError(
                    f"{ref}: the goal of this Observed entity lives in your application: change it there and "
                    f"enqueue({ref!r}), or declare it settable=True"
                )
            _check_state(policy, goal)
            initial = policy.initial
        revision = None if if_revision is None else _count(if_revision, "if_revision", least=0)
        return self.scripts.set(
            ref,
            goal,
            initial=initial,
            data=None if isinstance(data, NotGiven) else pack(data, self.payload_limit),
            labels=None if isinstance(labels, NotGiven) else _packed_labels(labels, pack_labels),
            if_revision=revision,
            event=f"goal {goal}".encode(),
        )

    # ------------------------------------------------------------------------------------------------ due times

    def enqueue(self, ref: object, *, at: object, after: object) -> Steps[Enqueued]:
        """As `Fleet.enqueue`."""
        ref, due = read_ref(ref), when(at=at, after=after)
        yield from self._known((kind_of(ref),))
        (reply,) = yield self.scripts.enqueue([(ref, due)])
        return Enqueued(ref, reply.due_us, reply.outcome)

    def enqueue_many(self, items: object) -> Steps[list[Enqueued]]:
        """As `Fleet.enqueue_many`."""
        asked: list[tuple[str, When]] = []
        said: object = NOT_GIVEN
        due = When.after(0)
        quick = _QUICK_REF.fullmatch
        for ref, value in _pairs(items, "time"):
            if value is not said:  # mostly all of them say the same
                due, said = _due(value), value
            asked.append((ref if type(ref) is str and quick(ref) else read_ref(ref), due))
        soonest: dict[tuple[str, bool], When] = {}
        distinct = asked
        if len({ref for ref, _ in asked}) < len(asked):
            for ref, due in asked:
                key = ref, due.relative
                had = soonest.get(key)
                if had is None or due.us < had.us:
                    soonest[key] = due
            distinct = [(ref, due) for (ref, _), due in soonest.items()]
        yield from self._known({kind_of(ref) for ref, _ in distinct})
        done: list[Enqueued] = []
        for start in range(0, len(distinct), BATCH):
            batch = distinct[start : start + BATCH]
            answer: tuple[engine.Enqueued, ...] = yield self.scripts.enqueue(batch)
            done += [Enqueued(ref, got.due_us, got.outcome) for (ref, _), got in zip(batch, answer, strict=True)]
        if distinct is asked:
            return done
        replies = dict(zip(soonest, done, strict=True))
        return [replies[ref, due.relative] for ref, due in asked]

    def reschedule(self, ref: object, *, at: object, after: object) -> Steps[Enqueued]:
        """As `Fleet.reschedule`."""
        ref, due = read_ref(ref), when(at=at, after=after)
        if isinstance(at, NotGiven) and isinstance(after, NotGiven):
            raise BadTime("reschedule to when? give at= or after=")
        yield from self._known((kind_of(ref),))
        reply: engine.Enqueued = yield self.scripts.reschedule(ref, due)
        return Enqueued(ref, reply.due_us, reply.outcome)

    def unschedule(self, ref: object) -> Steps[bool]:
        """As `Fleet.unschedule`."""
        ref = read_ref(ref)
        kind = self.registry.kinds.get(kind_of(ref))
        if kind is not None:
            keep = kind.policy.kept
        else:
            record, published = yield (
                (b"EXISTS", self.keys.record(ref)),
                (b"HGET", self.keys.kinds, kind_of(ref)),
            )
            known = _published(published)
            keep = bool(record) or (known is not None and known.policy.kept)
        dropped: bool = yield self.scripts.unschedule(ref, keep=keep)
        return dropped

    def is_scheduled(self, ref: object) -> Steps[bool]:
        """As `Fleet.is_scheduled`."""
        ref = read_ref(ref)
        due, wish = yield from _atomic((b"ZSCORE", self.keys.due(kind_of(ref)), ref), (b"HEXISTS", self.keys.wish, ref))
        return due is not None or bool(wish)

    # ------------------------------------------------------------------------------------------------ looking

    def get(self, ref: object) -> Steps[EntityView]:
        """As `Fleet.get`."""
        ref = read_ref(ref)
        seen = yield from self._look((ref,))
        view = seen.views[0]
        if not view.known:
            raise NotFound(f"nothing is known of {ref}: it was never enqueued, is done and forgotten, or was deleted")
        return view

    def explain(self, ref: object) -> Steps[Explanation]:
        """As `Fleet.explain`."""
        from setpoint.explain import Facts, explain

        ref = read_ref(ref)
        kind = kind_of(ref)
        seen = yield from self._look((ref,))
        leased, ahead, workers, infos = yield from _atomic(
            (b"ZCARD", self.keys.lease(kind)),
            (b"ZCOUNT", self.keys.due(kind), "-inf", seen.now_us),
            (b"ZRANGE", self.keys.workers, seen.now_us, "+inf", "BYSCORE"),
            (b"HGETALL", self.keys.worker),
        )
        declared = self.registry.kinds.get(kind)
        published = seen.published.get(kind)
        found = _fields(infos)
        facts = Facts(
            now_us=seen.now_us,
            policy=published.policy if published else declared.policy if declared else None,
            published_by=published.worker if published else None,
            workers={_text(worker): found.get(_text(worker), b"") for worker in workers},
            leased=int(leased),
            ready=int(ahead),
        )
        return explain(seen.views[0], facts)

    def wait(self, ref: object, timeout: object, goal: object) -> Steps[EntityView]:
        """As `Fleet.wait`."""
        ref = read_ref(ref)
        patience_us = parse_duration(timeout)
        wanted = None if goal is None else _state(goal, "a goal")
        kind = self.registry.kinds.get(kind_of(ref))
        if wanted is not None and kind is not None:
            _check_state(kind.policy, wanted)
        channel = self.keys.at(ref)
        yield Listen(channel, 0)
        give_up: int | None = None
        while True:
            seen = yield from self._look((ref,))
            view = seen.views[0]
            if give_up is None:
                give_up = seen.now_us + patience_us
            if _is_reached(view, wanted):
                break
            left = give_up - seen.now_us
            stuck = _is_stuck(view, give_up)
            if stuck or left <= 0:
                yield ((b"HDEL", self.keys.waiters, ref),)
                raise TimedOut(_not_reached(view, wanted, patience_us, stuck=stuck))
            # Written again each time: another who waits for it may have taken it out.
            yield ((b"HSET", self.keys.waiters, ref, give_up),)
            yield Listen(channel, min(RECHECK, left / 1e6))
        yield ((b"HDEL", self.keys.waiters, ref),)
        return view

    def ls(self, kind: object, state: object, place: object, limit: object, prefix: object) -> Steps[list[EntityView]]:
        """As `Fleet.ls`."""
        most = _count(limit, "limit", least=1)
        start = "" if prefix is None else prefix
        if not isinstance(start, str):
            raise UsageError(f"prefix is the start of ids, a string, not {prefix!r}")
        if place is not None and place not in _PLACES:
            raise UsageError(f"place is one of {', '.join(_PLACES)}, not {place!r}")
        wanted = None if state is None else _state(state, "a state")
        if kind is not None and wanted is not None and (declared := self.registry.kinds.get(check_kind(kind))):
            _check_state(declared.policy, wanted)
        kinds = yield from self._kinds(kind)
        found: dict[str, EntityView] = {}
        for name in kinds:
            for where in _PLACES if place is None else (place,):
                pages = self._pages(self._set_of(name, where), f"{name}/{start}")
                yield from self._collect(pages, wanted, most, found)
                if len(found) >= most:
                    return list(found.values())
        return list(found.values())

    def _collect(
        self, pages: Iterator[Steps[list[str] | None]], state: str | None, most: int, found: dict[str, EntityView]
    ) -> Steps[None]:
        for page in pages:
            refs = yield from page
            if refs is None:
                return
            fresh = [ref for ref in refs if ref not in found]
            if state is None:
                fresh = fresh[: most - len(found)]
            if not fresh:
                continue
            seen = yield from self._look(fresh)
            for view in seen.views:
                if view.known and (state is None or view.state == state):
                    found[view.ref] = view
                    if len(found) >= most:
                        return

    def counts(self, kind: object) -> Steps[dict[str, dict[str, int]]]:
        """As `Fleet.counts`."""
        kinds = yield from self._kinds(kind)
        if not kinds:
            return {}
        now_us = yield from self._now()
        commands = [
            command
            for name in kinds
            for command in (
                (b"ZCARD", self.keys.due(name)),
                (b"ZCOUNT", self.keys.due(name), "-inf", now_us),
                (b"ZCARD", self.keys.lease(name)),
                (b"ZCARD", self.keys.idle(name)),
                (b"ZCARD", self.keys.parked(name)),
            )
        ]
        replies = yield from _atomic(*commands)
        columns = ("due", "ready", "leased", "idle", "parked")
        return {
            name: dict(zip(columns, map(int, replies[5 * i : 5 * i + 5]), strict=True)) for i, name in enumerate(kinds)
        }

    # ------------------------------------------------------------------------------------------------ events

    def first_cursor(self, target: object, since: object) -> Steps[tuple[str | None, Cursor]]:
        """Check what `watch` was given; whom it is about, and where it begins."""
        whom = _watched(target)
        match since:
            case None:
                (entries,) = yield ((b"XREVRANGE", self.keys.events, "+", "-", "COUNT", 1),)
                return whom, Cursor(_text(entries[0][0]) if entries else "0-0")
            case str() if found := _EVENT_ID.fullmatch(since):
                milliseconds, number, index = int(found[1]), int(found[2]), found[3]
                if index is None:
                    return whom, Cursor(since)
                # All but the first of the entry's events may still be ahead: read it once more.
                before = f"{milliseconds}-{number - 1}" if number else f"{milliseconds - 1}-{(1 << 64) - 1}"
                return whom, Cursor(before, int(index) + 1)
            case datetime():
                return whom, Cursor(f"{max(parse_instant(since) // 1000 - 1, 0)}-{(1 << 64) - 1}")
            case _:
                back_us = parse_duration(since)
                (now,) = yield ((b"TIME",),)
                then = max(int(now[0]) * 1000 - back_us // 1000 - 1, 0)
                return whom, Cursor(f"{then}-{(1 << 64) - 1}" if then else "0-0")

    def next_events(self, whom: str | None, cursor: Cursor) -> Steps[tuple[list[Event], Cursor]]:
        """What happened after the cursor; waits a moment if nothing did."""
        (reply,) = yield (
            (b"XREAD", b"COUNT", 100, b"BLOCK", int(RECHECK * 1000), b"STREAMS", self.keys.events, cursor.entry),
        )
        events: list[Event] = []
        entry, skip = cursor.entry, cursor.skip
        for stored_id, stored in reply[0][1] if reply else ():
            entry = _text(stored_id)
            at = to_datetime(int(entry.partition("-")[0]) * 1000)
            told = [(ref, text) for refs, text in _told(stored or ()) for ref in _text(refs).split("\n")]
            for index, (ref, text) in enumerate(told[skip:], skip):
                if whom is None or ref == whom or kind_of(ref) == whom:
                    name, _, detail = _text(text).partition(" ")
                    events.append(Event(f"{entry}/{index}", at, ref, name, detail))
            skip = 0
        return events, Cursor(entry, skip)

    # ------------------------------------------------------------------------------------------------ forgetting

    def delete(self, ref: object) -> Steps[Deleted]:
        """As `Fleet.delete`."""
        ref = read_ref(ref)
        (outcome,) = yield self.scripts.delete([ref], event=b"deleted")
        return cast("Deleted", outcome)

    def delete_many(self, refs: object) -> Steps[dict[str, Deleted]]:
        """As `Fleet.delete_many`."""
        return (yield from self._delete(_refs(refs)))

    def _delete(self, refs: Sequence[str]) -> Steps[dict[str, Deleted]]:
        outcomes: dict[str, Deleted] = {}
        for start in range(0, len(refs), BATCH):
            batch = refs[start : start + BATCH]
            reply = yield self.scripts.delete(batch, event=b"deleted")
            outcomes.update(zip(batch, reply, strict=True))
        return outcomes

    # ------------------------------------------------------------------------------------------------ dead letters

    def revive(self, ref: object) -> Steps[Enqueued]:
        """As `Fleet.revive`."""
        ref = read_ref(ref)
        reply: engine.Enqueued = yield self.scripts.revive(ref, clear=True)
        return Enqueued(ref, reply.due_us, reply.outcome)

    def dead(self, kind: object, limit: object) -> Steps[list[DeadLetter]]:
        """As `Fleet.dead`."""
        most = _count(limit, "limit", least=1)
        kinds = yield from self._kinds(kind)
        found: list[DeadLetter] = []
        for name in kinds:
            found += yield from self._dead_of(name, most)
        found.sort(key=lambda each: each.since, reverse=True)
        return found[:most]

    def _dead_of(self, kind: str, most: int) -> Steps[list[DeadLetter]]:
        found: list[DeadLetter] = []
        start = 0
        while len(found) < most:
            (page,) = yield ((b"ZRANGE", self.keys.parked(kind), start, start + BATCH - 1, b"REV", b"WITHSCORES"),)
            if not page:
                break
            refs = [_text(ref) for ref in page[::2]]
            (troubles,) = yield ((b"HMGET", self.keys.trouble, *refs),)
            for ref, since, stored in zip(refs, page[1::2], troubles, strict=True):
                trouble = Trouble.unpack(stored or b"")
                if trouble.reason == "failed" or trouble.reason == "poison":  # narrows the type
                    found.append(DeadLetter(ref, trouble.reason, to_datetime(_us(since)), trouble))
            start += BATCH
        return found[:most]

    def retry_dead(self, refs: object) -> Steps[list[Enqueued]]:
        """As `Fleet.retry_dead`."""
        named = _refs(refs)
        dead = yield from self._which_are_dead(named)
        outcomes: list[Enqueued] = []
        for ref in named:
            if ref in dead:
                outcomes.append((yield from self.revive(ref)))
            else:
                outcomes.append(Enqueued(ref, 0, "absent"))
        return outcomes

    def drop_dead(self, refs: object) -> Steps[dict[str, Deleted]]:
        """As `Fleet.drop_dead`."""
        named = _refs(refs)
        dead = yield from self._which_are_dead(named)
        dropped = yield from self._delete([ref for ref in named if ref in dead])
        return {ref: dropped.get(ref, "absent") for ref in named}

    def _which_are_dead(self, refs: Sequence[str]) -> Steps[frozenset[str]]:
        dead: set[str] = set()
        for start in range(0, len(refs), BATCH):
            seen = yield from self._look(refs[start : start + BATCH])
            dead.update(v.ref for v in seen.views if v.place == "parked" and v.trouble.reason in {"failed", "poison"})
        return frozenset(dead)

    # ------------------------------------------------------------------------------------------------ pausing

    def pause(self, target: object, *, why: object, until: object, for_: object, who: object) -> Steps[PauseInfo]:
        """As `Fleet.pause`."""
        target, is_ref, kind = _target(target)
        for word, value in (("why", why), ("who", who)):
            if not isinstance(value, str) or len(value) > 1000:
                raise UsageError(f"{word} is a text of at most 1000 characters, not {str(value)[:60]!r}")
        if not isinstance(until, NotGiven) and not isinstance(for_, NotGiven):
            raise BadTime("give until= or for_=, not both")
        until_us = 0 if isinstance(until, NotGiven) else parse_instant(until)
        for_us = 0 if isinstance(for_, NotGiven) else parse_duration(for_)
        yield from self._known((kind,) if kind else ())
        if target.startswith("lane:"):
            yield from self._known_lane(target.removeprefix("lane:"))
        now_us = yield from self._now()
        if not isinstance(for_, NotGiven):
            until_us = now_us + for_us
        if until_us and until_us <= now_us:
            raise BadTime(f"a pause until {format_us(until_us)} would be over: it is {format_us(now_us)}")
        text = json.dumps({"who": who, "why": why, "since": now_us})
        if is_ref:
            yield self.scripts.park(target, text=text, until_us=until_us)
        else:
            yield self.scripts.pause(target, text=text, until_us=until_us)
        return _pause_info(target, f"{until_us} {text}".encode())

    def resume(self, target: object) -> Steps[bool]:
        """As `Fleet.resume`."""
        target, is_ref, _ = _target(target)
        if not is_ref:
            was: bool = yield self.scripts.resume(target)
            return was
        seen = yield from self._look((target,))
        view = seen.views[0]
        if view.place == "parked" and view.trouble.reason != "paused":
            # What failed or is poison stays where it is: that is for revive.
            (dropped,) = yield ((b"HDEL", self.keys.paused, f"ref:{target}"),)
            return bool(dropped)
        reply: engine.Enqueued = yield self.scripts.revive(target, clear=False)
        return reply.outcome != "absent"

    def pauses(self) -> Steps[list[PauseInfo]]:
        """As `Fleet.pauses`."""
        now_us = yield from self._now()
        (stored,) = yield ((b"HGETALL", self.keys.paused),)
        return [
            _pause_info(field.removeprefix("ref:"), value)
            for field, value in sorted(_fields(stored).items())
            if _holds(value, now_us)
        ]

    # ------------------------------------------------------------------------------------------------ parts

    def _known(self, kinds: Iterable[str]) -> Steps[None]:
        """Refuse kinds that neither this fleet nor any worker has; a pure client cannot know and accepts all."""
        declared = self.registry.kinds
        if self.accept_unknown or not declared:
            return
        asked = [
            kind
            for kind in dict.fromkeys(kinds)
            if kind not in declared and kind not in self._published and kind.partition(".")[0] not in RESERVED
        ]
        if not asked:
            return
        (found,) = yield ((b"HMGET", self.keys.kinds, *asked),)
        for kind, published in zip(asked, found, strict=True):
            if published is None:
                (names,) = yield ((b"HKEYS", self.keys.kinds),)
                raise UnknownKind(_no_such_kind(kind, {*declared, *map(_text, names)}))
            self._published.add(kind)

    def _known_lane(self, lane: str) -> Steps[None]:
        """Refuse a lane that no kind is in, or a slip would pause nothing. Where no kind is known, any lane will do."""
        if self.accept_unknown:
            return
        (stored,) = yield ((b"HGETALL", self.keys.kinds),)
        lanes = {kind.policy.lane for kind in self.registry.kinds.values()}
        lanes |= {known.policy.lane for known in map(_published, _fields(stored).values()) if known}
        if lanes and lane not in lanes:
            near = difflib.get_close_matches(lane, lanes, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"no kind is in a lane {lane!r}; {hint}There are: {', '.join(sorted(lanes))}")

    def _kinds(self, kind: object) -> Steps[list[str]]:
        """The one kind, or all that are declared here or were published."""
        if kind is not None:
            return [check_kind(kind)]
        (names,) = yield ((b"HKEYS", self.keys.kinds),)
        return sorted({*self.registry.kinds, *map(_text, names)})

    def _now(self) -> Steps[int]:
        time, skew = yield ((b"TIME",), (b"HGET", self.keys.meta, "skew"))
        return _clock(time, skew)

    def _set_of(self, kind: str, place: Place) -> str:
        match place:
            case "due":
                return self.keys.due(kind)
            case "leased":
                return self.keys.lease(kind)
            case "parked":
                return self.keys.parked(kind)
            case _:
                return self.keys.idle(kind)

    def _pages(self, key: str, prefix: str) -> Iterator[Steps[list[str] | None]]:
        """Pages of a set in order of time; None after the last."""
        start = 0
        while True:
            yield self._page(key, start, prefix)
            start += BATCH

    @staticmethod
    def _page(key: str, start: int, prefix: str) -> Steps[list[str] | None]:
        (page,) = yield ((b"ZRANGE", key, start, start + BATCH - 1),)
        return [ref for ref in map(_text, page) if ref.startswith(prefix)] if page else None

    def _look(self, refs: Sequence[str]) -> Steps[_Seen]:
        """All that is known of these refs (at most `BATCH`), as of one moment."""
        keys = self.keys
        by_kind: dict[str, list[str]] = {}
        for ref in refs:
            by_kind.setdefault(kind_of(ref), []).append(ref)
        commands: list[Command] = [
            (b"TIME",),
            (b"HGET", keys.meta, "skew"),
            (b"HMGET", keys.holder, *refs),
            (b"HMGET", keys.wish, *refs),
            (b"HMGET", keys.trouble, *refs),
            (b"HGETALL", keys.paused),
            (b"HMGET", keys.kinds, *by_kind),
        ]
        for kind, of_kind in by_kind.items():
            commands += [(b"ZMSCORE", self._set_of(kind, place), *of_kind) for place in _PLACES]
        commands += [(b"HGETALL", keys.record(ref)) for ref in refs]
        time, skew, holders, wishes, troubles, paused, policies, *rest = yield from _atomic(*commands)
        now_us = _clock(time, skew)
        published = {
            kind: found for kind, stored in zip(by_kind, policies, strict=True) if (found := _published(stored))
        }
        pauses = {field: value for field, value in _fields(paused).items() if _holds(value, now_us)}
        where: dict[str, tuple[Place, int]] = {}
        for i, of_kind in enumerate(by_kind.values()):
            for place, scores in zip(_PLACES, rest[4 * i : 4 * i + 4], strict=True):
                where.update((ref, (place, _us(at))) for ref, at in zip(of_kind, scores, strict=True) if at is not None)
        records = rest[4 * len(by_kind) :]
        views = tuple(
            replace(
                _view(ref, where.get(ref, ("unknown", 0)), holder, wish, trouble, _fields(record)),
                paused=self._pauses_of(ref, pauses, published.get(kind_of(ref))),
            )
            for ref, holder, wish, trouble, record in zip(refs, holders, wishes, troubles, records, strict=True)
        )
        return _Seen(now_us, views, published)

    def _pauses_of(self, ref: str, pauses: Mapping[str, bytes], published: Published | None) -> tuple[PauseInfo, ...]:
        if not pauses:
            return ()
        kind = kind_of(ref)
        declared = self.registry.kinds.get(kind)
        policy = published.policy if published else declared.policy if declared else None
        fields = ["fleet", *([f"lane:{policy.lane}"] if policy else []), f"kind:{kind}", f"ref:{ref}"]
        return tuple(_pause_info(field.removeprefix("ref:"), pauses[field]) for field in fields if field in pauses)


# ---------------------------------------------------------------------------------------------- reading arguments


def read_ref(value: object) -> str:
    """A valid ref as text; raises `BadRef`."""
    return str(Ref.of(value))


def _refs(values: object) -> list[str]:
    """Distinct refs, in order."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UsageError(f"give a list of refs, not {type(values).__name__}")
    return list(dict.fromkeys(read_ref(each) for each in cast("Iterable[object]", values)))


def _pairs(items: object, second: str) -> Iterator[tuple[object, object]]:
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise UsageError(f"give a list of (ref, {second}), not {type(items).__name__}")
    for item in cast("Iterable[object]", items):
        pair = _sequence(item)
        if len(pair) != 2:
            raise UsageError(f"give a list of (ref, {second}); {repr(item)[:80]} is no such pair")
        yield pair[0], pair[1]


def _sequence(item: object) -> Sequence[object]:
    return cast("Sequence[object]", item) if isinstance(item, tuple | list) else ()


def _due(value: object) -> When:
    """An instant if it is a datetime, else a duration from now."""
    return when(at=value) if isinstance(value, datetime) else when(after=value)


def _state(value: object, what: str) -> str:
    if not isinstance(value, str) or not value or _CONTROL.search(value):
        raise UnknownState(f"{what} is a string of printable characters, not {value!r}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise UnknownState(f"{what} is valid Unicode; {value!r} has lone surrogates") from None
    if size > GOAL_BYTES:
        raise UnknownState(f"{what} has at most {GOAL_BYTES} bytes; {value[:40]!r}… has {size}")
    return str.__str__(value)  # of an Enum of strings, `str()` would be the member's name


def _check_state(policy: Policy, state: str) -> None:
    if policy.states and state not in policy.states:
        near = difflib.get_close_matches(state, policy.states, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownState(f"{policy.kind} has no state {state!r}{hint} It has: {', '.join(policy.states)}")


def _count(value: object, word: str, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < FAR_US:
        raise UsageError(f"{word} is a whole number, {least} or more, not {value!r}")
    return value


def _packed_labels(labels: object, pack_labels: Any) -> bytes:
    if not isinstance(labels, Mapping):
        raise BadPayload(f"labels are a mapping of strings, not {type(labels).__name__}")
    packed: bytes = pack_labels(labels)
    return packed


def _target(value: object) -> tuple[str, bool, str]:
    """What is to be paused, whether it is a ref, and the kind it is about, if any."""
    if isinstance(value, str):
        if value == "fleet":
            return value, False, ""
        if value.startswith("kind:"):
            return value, False, check_kind(value.removeprefix("kind:"))
        if value.startswith("lane:"):
            check_lane(value.removeprefix("lane:"))
            return value, False, ""
        if "/" not in value:
            raise UsageError(f"{value[:80]!r} cannot be paused: say fleet, lane:<lane>, kind:<kind> or a ref kind/id")
    ref = read_ref(value)
    return ref, True, kind_of(ref)


def _watched(target: object) -> str | None:
    if target is None:
        return None
    return read_ref(target) if isinstance(target, Ref) or "/" in str(target) else check_kind(target)


def _no_such_kind(kind: str, known: set[str]) -> str:
    near = difflib.get_close_matches(kind, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known)[:20])}."
    return f'no kind {kind!r} is declared here or known to any worker; {hint} (Fleet(unknown_kind="accept") takes any)'


# ------------------------------------------------------------------------------------------------- reading replies


def _atomic(*commands: Command) -> Steps[list[Any]]:
    """Run reads as of one moment."""
    replies: list[Any] = yield (_MULTI, *commands, _EXEC)
    answer: list[Any] = replies[-1]
    return answer


def _text(stored: bytes | str) -> str:
    return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else stored


def _us(stored: bytes | str | float) -> int:
    return int(float(stored))  # scores are below 2^53, so nothing is lost


def _clock(time: Sequence[Any], skew: bytes | None) -> int:
    return int(time[0]) * 1_000_000 + int(time[1]) + int(skew or 0)


def _fields(stored: Sequence[bytes]) -> dict[str, bytes]:
    return {_text(name): value for name, value in zip(stored[::2], stored[1::2], strict=True)}


def _published(stored: bytes | None) -> Published | None:
    if not stored:
        return None
    head, _, policy = stored.partition(b"|")
    try:
        return Published(_text(head).partition(" ")[2], Policy.unpack(policy))
    except ValueError:
        return None


def _holds(stored: bytes, now_us: int) -> bool:
    until = stored.partition(b" ")[0]
    return not until.isdigit() or int(until) == 0 or int(until) > now_us


def _pause_info(target: str, stored: bytes) -> PauseInfo:
    until, _, text = stored.partition(b" ")
    end = to_datetime(int(until)) if until.isdigit() and int(until) else None
    try:
        said: dict[str, Any] = json.loads(text)
        return PauseInfo(target, str(said["why"]), str(said["who"]), to_datetime(int(said["since"])), end)
    except (ValueError, TypeError, KeyError):
        return PauseInfo(target, _text(text), until=end)


def _told(stored: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(stored[::2], stored[1::2], strict=True)


def _holder(stored: bytes | None) -> Holder | None:
    if not stored:
        return None
    fence, phase, due, since, worker = _text(stored).split(" ", 4)
    return Holder(worker, int(fence), to_datetime(int(since)), to_datetime(int(due)), _ENDING.get(phase[:1], ""))


def _view(
    ref: str,
    where: tuple[Place, int],
    holder: bytes | None,
    wish: bytes | None,
    trouble: bytes | None,
    record: Mapping[str, bytes],
) -> EntityView:
    from setpoint.serializer import unpack, unpack_labels

    place, at_us = where
    held = _holder(holder)
    at = to_datetime(at_us) if 0 < at_us < FAR_US else None
    since = held.since if held and place == "leased" else at if place == "parked" else None
    return EntityView(
        ref,
        place,
        state=_text(record["state"]) if "state" in record else None,
        goal=_text(record["goal"]) if "goal" in record else None,
        revision=int(record.get("rev", 0)),
        due=at if place == "due" else None,
        wish=to_datetime(_us(wish)) if wish else None,
        since=since,
        until=at if place in {"leased", "idle"} else None,
        trouble=Trouble.unpack(trouble) if trouble else NO_TROUBLE,
        holder=held,
        data=unpack(record["data"]) if record.get("data") else None,
        labels=unpack_labels(record.get("labels", b"")),
        history=_history(record),
    )


def _history(record: Mapping[str, bytes]) -> tuple[Transition, ...]:
    found: list[Transition] = []
    for name, stored in record.items():
        if name[0] == "h" and name[1:].isdigit():
            at, what, value = _text(stored).split(" ", 2)
            found.append(Transition(to_datetime(int(at)), "goal" if what == "goal" else "state", value))
    return tuple(sorted(found, key=lambda each: each.at))


# -------------------------------------------------------------------------------------------------------- waiting


def _is_reached(view: EntityView, wanted: str | None) -> bool:
    if wanted is not None:
        return view.state == wanted
    return view.at_rest and (view.goal is None or view.state == view.goal)


def _is_stuck(view: EntityView, give_up_us: int) -> bool:
    """It is parked, and nothing will take it out in time."""
    if view.place != "parked":
        return False
    if view.trouble.reason != "paused":
        return view.wish is None
    mine = [each.until for each in view.paused if each.target == view.ref]
    return any(until is None or until > to_datetime(min(give_up_us, FAR_US)) for until in mine)


def _not_reached(view: EntityView, wanted: str | None, patience_us: int, *, stuck: bool) -> str:
    goal = wanted or view.goal
    aim = f"state {goal!r}" if goal else "rest"
    at = f"{view.place}, in state {view.state!r}" if view.state is not None else view.place
    if not stuck:
        return f"{view.ref} did not come to {aim} within {format_duration(patience_us)}: it is {at}; ask explain()"
    if view.trouble.reason == "paused":
        pause = next((str(each) for each in view.paused if each.target == view.ref), "it is paused")
        return f"{view.ref} will not come to {aim} by itself: {pause}; resume({view.ref!r}) it"
    error = error_line(view.trouble)
    return (
        f"{view.ref} will not come to {aim} by itself: it is parked as {view.trouble.reason}"
        + (f" ({error})" if error else "")
        + f"; revive({view.ref!r}) it"
    )
