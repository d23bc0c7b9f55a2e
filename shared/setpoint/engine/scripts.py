"""The typed face of the Lua scripts: one method a script, and each returns a `Call` that a door runs.

A `Call` is a value, so the same method serves the blocking `Door` and the `AsyncDoor`, and a call whose reply was lost
can be sent again as it was. Times are integers: microseconds of Redis' clock (`_us`). Refs are strings known to be
valid. No reply code leaves this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from setpoint.engine.keys import Keys
from setpoint.entity import kind_of

__all__ = [
    "BATCH",
    "FAR_US",
    "Audit",
    "Beat",
    "Call",
    "Claim",
    "ClaimKind",
    "Claimed",
    "Ending",
    "Enqueued",
    "LaneAsk",
    "LaneHint",
    "Promotion",
    "Reap",
    "Released",
    "Scripts",
    "SetReply",
    "Settlement",
    "Status",
    "When",
]

T = TypeVar("T")

BATCH = 256
"""Refs a script handles at most in one call; it bounds how long Redis is held."""

FAR_US = 1 << 53
"""Stands for "never" in scores: later than any time that is accepted."""

EVENTS_KEPT = 10_000
"""Entries of the event stream; one entry holds all events of one settle."""

Status = Literal["ok", "stale", "deleted"]
"""What became of a settle or release: accepted, refused for its old fence, or dropped because the ref was deleted."""

_STATUS: Mapping[str, Status] = {"o": "ok", "s": "stale", "x": "deleted"}

Arg = str | bytes | int


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One script call, ready to be run (and run again) by a door."""

    script: str
    keys: tuple[str, ...]
    """Without the operation key, which the door puts second."""
    args: tuple[Arg, ...]
    """Without the operation number, which the door puts first."""
    parse: Callable[[Any], T]
    numbered: bool = True
    """Carries an operation number, so that a repeat is answered from the first reply and not done again."""


@dataclass(frozen=True, slots=True)
class When:
    """A due time: microseconds of Redis' clock, or from now by Redis' clock."""

    us: int
    relative: bool

    @classmethod
    def at(cls, us: int) -> When:
        """At this instant."""
        return cls(us, False)

    @classmethod
    def after(cls, us: int) -> When:
        """This long after Redis has received the call; 0 is now."""
        return cls(us, True)

    def args(self) -> tuple[str, int]:
        """As the scripts read it."""
        return ("r" if self.relative else "a", self.us)


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What became of an enqueue, reschedule or revive."""

    outcome: Literal["scheduled", "merged", "wish", "parked", "absent"]
    """`scheduled`: due then. `merged`: was due by then already. `wish`: runs or is paused, once more after that.
    `parked`: poison, stays parked. `absent`: nothing to act on."""
    due_us: int
    """When it is due now (or what the wish asks for)."""


@dataclass(frozen=True, slots=True)
class SetReply:
    """What became of a set."""

    outcome: Literal["scheduled", "wish", "parked", "conflict"]
    revision: int
    """The record's revision after the call."""
    changed: bool
    """The goal is another than before."""


@dataclass(frozen=True, slots=True)
class LaneAsk:
    """What promote is to do for one lane."""

    lane: str
    room: int
    """Hints that may be out at once."""
    hint: str
    """Id of the next hint, if one is rung."""
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LaneHint:
    """What promote found for one lane."""

    lane: str
    hint: str | None
    """The hint noted now, to be rung in RQ; None if nothing is due or no room is left."""
    refs: tuple[str, ...]
    """The head of what is due, oldest first, when a hint was noted."""
    oldest_due_us: int
    backlog: int
    """How many refs are due in the lane (0 when no hint was noted)."""
    out: int
    """Hints out, this one included."""
    oldest_hint_us: int
    """Since when the oldest of them is out; 0 if none."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """Reply of promote."""

    now_us: int
    topology: int
    """Grows whenever workers or kinds change: read them again."""
    lanes: tuple[LaneHint, ...]
    next_due_us: int | None
    """The earliest due time that is still ahead, None if there is none."""


@dataclass(frozen=True, slots=True)
class ClaimKind:
    """One kind a worker may claim, with the limits that its policy sets."""

    kind: str
    lane: str
    cap: int = 0
    """How many may be leased at once in the whole fleet; 0 is no limit."""
    rate: int = 0
    """How many may start in each `per_us`; 0 is no limit."""
    per_us: int = 0


class Claimed(NamedTuple):
    """One ref that is ours until the lease ends."""

    ref: str
    due_us: int
    trouble: bytes
    """As stored; empty when it has none."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Reply of claim."""

    now_us: int
    fence: int
    """One for the whole batch."""
    items: tuple[Claimed, ...]
    more: bool
    """More was due than was taken."""
    suspects: bool
    """Suspects are due; they are handed out only to a claim that says `alone`."""


@dataclass(frozen=True, slots=True)
class Beat:
    """Reply of beat."""

    now_us: int
    lost: tuple[str, ...]
    """No longer ours."""
    cancelled: tuple[str, ...]
    """Deleted while we hold them; their outcome will be dropped."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an evaluation ends; many end alike."""

    place: Literal["idle", "due", "failed", "poison", "forget", "gone"]
    """Where it goes. `failed` and `poison` are parked (failed only if no wish waits), `forget` is in no set, `gone`
    drops the record too."""
    delay_us: int = 0
    """`due`: due so long from now. `idle`: the Janitor looks so long from now (`FAR_US`: never)."""
    trouble: bytes = b""
    """`Trouble.pack()`; empty clears it."""
    state: str | None = None
    """New state of a managed entity; None leaves it."""
    event: bytes = b""
    """For the event stream; empty for none."""

    @property
    def recorded(self) -> bool:
        """It writes the entity's record, or drops it."""
        return self.state is not None or self.place == "gone"


class Settlement(NamedTuple):
    """Refs that were claimed under one fence and end alike."""

    refs: Sequence[str]
    fence: int
    ending: Ending


@dataclass(frozen=True, slots=True)
class Released:
    """A ref handed back, nothing charged."""

    ref: str
    fence: int
    suspect: bool = False
    """It was running when its child died: run it alone next."""


@dataclass(frozen=True, slots=True)
class Reap:
    """Reply of reap."""

    now_us: int
    held: bool
    """After a gap: nothing is reaped before the workers had time for two beats."""
    refs: tuple[str, ...]
    """Taken back, marked suspect and due at their old time."""
    next_expiry_us: int | None


@dataclass(frozen=True, slots=True)
class Audit:
    """Reply of audit: how much had to be repaired."""

    doubled: int
    """Refs that were in two places."""
    unheld: int
    """Leases without a holder, put back to due."""
    cut: int
    """Leases further ahead than two lease lengths, cut: the clock has stepped back."""
    orphans: int
    """Holders without a lease, dropped."""


_KIND_KEYS = 4
_PLACES: Mapping[str, str] = {"idle": "i", "due": "d", "failed": "p", "poison": "P", "forget": "f", "gone": "g"}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _int(value: bytes | int | str) -> int:
    return int(value)


def _enqueued(code: bytes, due: bytes) -> Enqueued:
    return Enqueued(_ENQUEUED[_text(code)], _int(due))


_ENQUEUED: Mapping[str, Literal["scheduled", "merged", "wish", "parked", "absent"]] = {
    "s": "scheduled",
    "m": "merged",
    "w": "wish",
    "p": "parked",
    "a": "absent",
}
_SET: Mapping[str, Literal["scheduled", "wish", "parked", "conflict"]] = {
    "s": "scheduled",
    "m": "scheduled",
    "w": "wish",
    "p": "parked",
    "c": "conflict",
}


def _each_enqueued(reply: list[bytes]) -> tuple[Enqueued, ...]:
    return tuple(_enqueued(reply[i], reply[i + 1]) for i in range(0, len(reply), 2))


def _texts(reply: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(_text(item) for item in reply)


def _statuses(reply: bytes) -> tuple[Status, ...]:
    return tuple(_STATUS[c] for c in _text(reply))


class Scripts:
    """One method for each script in `lua/`; the file of the same name says exactly what it does."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self._head = (
            keys.meta,
            keys.holder,
            keys.wish,
            keys.trouble,
            keys.wake,
            keys.fence,
            keys.events,
            keys.counters,
            keys.waiters,
            keys.paused,
        )
        self._kind_keys: dict[str, tuple[str, str, str, str]] = {}

    def _call(
        self,
        script: str,
        kinds: Iterable[str],
        extra: Sequence[str],
        args: Sequence[Arg],
        parse: Callable[[Any], T],
        *,
        numbered: bool = True,
    ) -> Call[T]:
        names = tuple(dict.fromkeys(kinds))
        keys = [*self._head]
        for kind in names:
            keys.extend(self._of_kind(kind))
        keys.extend(extra)
        return Call(script, tuple(keys), (len(names), *names, *args), parse, numbered)

    def _of_kind(self, kind: str) -> tuple[str, str, str, str]:
        known = self._kind_keys.get(kind)
        if known is None:
            keys = self.keys
            known = (keys.due(kind), keys.lease(kind), keys.idle(kind), keys.parked(kind))
            self._kind_keys[kind] = known
        return known

    # ------------------------------------------------------------------------------------------------ for applications

    def enqueue(self, items: Sequence[tuple[str, When]]) -> Call[tuple[Enqueued, ...]]:
        """Have each ref evaluated no later than then. At most `BATCH` items; repeating it changes nothing."""
        args: list[Arg] = []
        for ref, when in items:
            args += (ref, *when.args())
        return self._call("enqueue", (kind_of(ref) for ref, _ in items), (), args, _each_enqueued, numbered=False)

    def set(
        self,
        ref: str,
        goal: str,
        *,
        initial: str = "",
        data: bytes | None = None,
        labels: bytes | None = None,
        if_revision: int | None = None,
        event: bytes = b"",
    ) -> Call[SetReply]:
        """Write a goal (and data, labels), due now. `initial` is the state of a record that has none."""
        args: list[Arg] = [ref, goal, initial, "" if if_revision is None else if_revision, event]
        args += ("0", "") if data is None else ("1", data)
        args += ("0", "") if labels is None else ("1", labels)

        def parse(reply: list[bytes]) -> SetReply:
            return SetReply(_SET[_text(reply[0])], _int(reply[1]), _text(reply[2]) == "1")

        return self._call("set", (kind_of(ref),), (self.keys.record(ref),), args, parse)

    def reschedule(self, ref: str, when: When) -> Call[Enqueued]:
        """Move the due time (or the wish), later too."""
        return self._call("reschedule", (kind_of(ref),), (), (ref, *when.args()), lambda r: _enqueued(r[0], r[1]))

    def unschedule(self, ref: str, *, keep: bool) -> Call[bool]:
        """Drop due time and wish; whether there was one. `keep`: stays known, at rest."""
        return self._call("unschedule", (kind_of(ref),), (), (ref, int(keep)), lambda r: _int(r) == 1)

    def delete(self, refs: Sequence[str], *, event: bytes = b"") -> Call[tuple[str, ...]]:
        """Leave every set at once; for each ref `deleted`, `cancelling` (it is running) or `absent`."""
        records = [self.keys.record(ref) for ref in refs]
        return self._call("delete", map(kind_of, refs), records, (event, *refs), _texts)

    def park(self, ref: str, *, text: str, until_us: int = 0) -> Call[str]:
        """Pause one entity; `parked`, or `parking` while it is running. `until_us` 0 is until resumed."""
        return self._call("park", (kind_of(ref),), (), (ref, until_us, text), _text)

    def revive(self, ref: str, *, clear: bool) -> Call[Enqueued]:
        """Take out of parked: due now, or when a wish says. `clear` forgets its failures and crashes."""
        return self._call("revive", (kind_of(ref),), (), (ref, int(clear)), lambda r: _enqueued(r[0], r[1]))

    def pause(self, target: str, *, text: str, until_us: int = 0) -> Call[bool]:
        """Pause `fleet`, `lane:<lane>` or `kind:<kind>`; whether it was not paused before."""
        return self._call("pause", (), (), (target, until_us, text), lambda r: _int(r) == 1)

    def resume(self, target: str) -> Call[bool]:
        """The opposite; whether it was paused."""
        return self._call("resume", (), (), (target,), lambda r: _int(r) == 1)

    # ------------------------------------------------------------------------------------------------ for schedulers

    def promote(self, lanes: Sequence[LaneAsk], *, lead_us: int, limit: int = BATCH) -> Call[Promotion]:
        """For each lane: if something is due and there is room, note a hint and return the head of what is due."""
        args: list[Arg] = [lead_us, limit, len(lanes)]
        for ask in lanes:
            args += (ask.lane, ask.room, ask.hint, len(ask.kinds), *ask.kinds)
        kinds = [kind for ask in lanes for kind in ask.kinds]
        extra = [self.keys.hints(ask.lane) for ask in lanes]

        def parse(reply: list[Any]) -> Promotion:
            found: list[LaneHint] = []
            for ask, lane in zip(lanes, reply[3:], strict=True):
                noted, oldest, backlog, out, since, *refs = lane
                hint = ask.hint if _text(noted) == "1" else None
                found.append(
                    LaneHint(ask.lane, hint, _texts(refs), _int(oldest), _int(backlog), _int(out), _int(since))
                )
            next_due = _int(reply[2])
            return Promotion(_int(reply[0]), _int(reply[1]), tuple(found), next_due if next_due < FAR_US else None)

        return self._call("promote", kinds, extra, args, parse)

    def unhint(self, lane: str, hints: Sequence[str]) -> Call[int]:
        """Forget hints that the RQ list no longer holds, so that new ones are rung."""
        return self._call("unhint", (), (self.keys.hints(lane),), tuple(hints), _int)

    def reap(self, kinds: Sequence[str], *, gap_us: int, wait_us: int, lease_us: int, limit: int = BATCH) -> Call[Reap]:
        """Put expired leases back to due, marked suspect. After a gap of more than `gap_us` between two ticks of any
        reaper it waits `wait_us` first; such a wait cannot begin again within `lease_us`."""

        def parse(reply: list[Any]) -> Reap:
            expiry = _int(reply[2])
            return Reap(_int(reply[0]), _text(reply[1]) == "1", _texts(reply[3:]), expiry if expiry < FAR_US else None)

        return self._call("reap", kinds, (), (gap_us, wait_us, lease_us, limit), parse)

    def look(self, kind: str, *, spread_us: int, limit: int = BATCH) -> Call[int]:
        """Make idle refs due whose time has come, spread over `spread_us`; how many."""
        return self._call("look", (kind,), (), (spread_us, limit), _int)

    def audit(self, kind: str, refs: Sequence[str], *, lease_us: int) -> Call[Audit]:
        """Check the invariants for these refs of one kind and repair what breaks them."""

        def parse(reply: list[Any]) -> Audit:
            return Audit(*(_int(n) for n in reply))

        return self._call("audit", (kind,), (), (lease_us, *refs), parse)

    # ------------------------------------------------------------------------------------------------ for workers

    def register(self, worker: str, *, born_us: int, ttl_us: int, info: bytes, kinds: Mapping[str, bytes]) -> Call[int]:
        """Say that this worker lives and publish its kinds, where no younger live worker did; Redis' time."""
        args: list[Arg] = [worker, born_us, ttl_us, info]
        for kind, policy in kinds.items():
            args += (kind, policy)
        keys = self.keys
        return self._call("register", (), (keys.workers, keys.worker, keys.kinds), args, _int)

    def leave(self, worker: str) -> Call[bool]:
        """Say that a worker is gone; whether it was there. Its leases run out by themselves."""
        keys = self.keys
        return self._call("leave", (), (keys.workers, keys.worker), (worker,), lambda r: _int(r) == 1)

    def claim(
        self,
        worker: str,
        kinds: Sequence[ClaimKind],
        *,
        lane: str,
        lease_us: int,
        lead_us: int,
        limit: int,
        hint: str = "",
        alone: bool = False,
        named: Sequence[str] = (),
    ) -> Call[Claim]:
        """Take up to `limit` due refs, oldest first, each under one new fence; drops the hint.

        `alone`: take one suspect, or nothing. `named`: only these refs.
        """
        args: list[Arg] = [worker, lease_us, lead_us, limit, hint, int(alone), len(kinds)]
        for each in kinds:
            args += (each.kind, each.lane, each.cap, each.rate, each.per_us)
        args += named
        extra = [self.keys.hints(lane), *(self.keys.limit(each.kind) for each in kinds)]

        def parse(reply: list[Any]) -> Claim:
            refs = _text(reply[4]).split("\n") if reply[4] else ()
            troubles = {int(reply[i]) - 1: reply[i + 1] for i in range(6, len(reply), 2)}
            dues = map(int, reply[5].split())
            items = tuple(
                Claimed(ref, due, troubles.get(i, b"")) for i, (ref, due) in enumerate(zip(refs, dues, strict=True))
            )
            return Claim(_int(reply[0]), _int(reply[1]), items, _text(reply[2]) == "1", _text(reply[3]) == "1")

        return self._call("claim", (each.kind for each in kinds), extra, args, parse)

    def beat(self, worker: str, held: Sequence[tuple[str, int]], *, lease_us: int, ttl_us: int) -> Call[Beat]:
        """Extend the leases of (ref, fence) pairs that are still ours, and the worker's own life."""
        args: list[Arg] = [worker, lease_us, ttl_us]
        for ref, fence in held:
            args += (ref, fence)

        def parse(reply: list[Any]) -> Beat:
            return Beat(_int(reply[0]), _texts(reply[1]), _texts(reply[2]))

        return self._call("beat", (kind_of(ref) for ref, _ in held), (self.keys.workers,), args, parse)

    def settle(
        self, items: Sequence[Settlement], *, counters: Mapping[str, int] | None = None, wake: bool = True
    ) -> Call[tuple[Status, ...]]:
        """End evaluations, at most `BATCH` refs; what became of each ref, in order. `wake` False if the caller claims
        again at once."""
        counts = counters or {}
        args: list[Arg] = [EVENTS_KEPT, int(wake), len(counts)]
        for field, count in counts.items():
            args += (field, count)
        records: list[str] = []
        kinds: set[str] = set()
        for refs, fence, end in items:
            if end.recorded:
                records += map(self.keys.record, refs)
            args += (len(refs), fence, _PLACES[end.place], end.delay_us, end.trouble, int(end.recorded))
            args += (end.state or "", end.event, *refs)
            kinds.update(map(kind_of, refs))
        return self._call("settle", sorted(kinds), records, args, _statuses)

    def release(self, items: Sequence[Released], *, wake: bool = True) -> Call[tuple[Status, ...]]:
        """Hand refs back at their old due time; nothing is charged."""
        args: list[Arg] = [int(wake)]
        for each in items:
            args += (each.ref, each.fence, int(each.suspect))
        return self._call("release", (kind_of(each.ref) for each in items), (), args, _statuses)
