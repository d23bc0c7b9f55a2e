"""Random histories of script calls on a real server; after each call its reply and the whole state must be the model's.

The scripts are the real ones but for their clock, which is `meta.skew` alone, so that the tests decide what time it is.
SETPOINT_MODEL_EXAMPLES=n tries n histories that differ in each run, instead of the same ones always.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from setpoint.engine import door as door_module
from setpoint.engine.door import Door, Script, compose
from setpoint.engine.records import ErrorText, Trouble
from setpoint.engine.scripts import FAR_US, Audit, Call, ClaimKind, Ending, LaneAsk, Released, Settlement, When
from tests.model.model import Model
from tests.model.mutants import MUTANTS, Mutant, text_of
from tests.servers import Server

MS, S = 1000, 1_000_000
LEASE, GAP, WAIT, LEAD = 10 * S, 3 * S, 2 * S, S // 4
START = 1_800_000_000 * S
KINDS = ("a", "b")
LANES = ("default", "slow")
REFS = tuple(f"{kind}/{i}" for kind in KINDS for i in "123")
WORKERS = ("w1", "w2")
TARGETS = ("fleet", "lane:default", "lane:slow", "kind:a", "kind:b")
LANE_OF = {"a": "default", "b": "slow"}

CLOCK = Mutant("clock", "prelude", "return t[1] * 1000000 + t[2] + skew", "return skew")


@contextmanager
def scripts_with(*changes: Mutant) -> Iterator[None]:
    """Let all doors run scripts that differ from the files."""
    texts: dict[str, Script] = {}

    def text(name: str) -> str:
        found = text_of(name)
        for change in changes:
            if change.file == name:
                found = change.applied(found)
        return found

    def load(name: str) -> Script:
        if name not in texts:
            texts[name] = compose(name, text("prelude"), text(name))
        return texts[name]

    with mock.patch.object(door_module, "load_script", load):
        yield


class Recorder(Door):
    """A door that remembers its last two numbered commands and the raw reply to the last."""

    last: tuple[Any, ...] | None = None
    last_reply: Any = None
    older: tuple[Any, ...] | None = None

    def run(self, call: Call[Any]) -> Any:
        self._numbered = call.numbered
        return super().run(call)

    def _send(self, command: tuple[Any, ...], script: Script) -> Any:
        reply = super()._send(command, script)
        if self._numbered:
            self.older, self.last, self.last_reply = self.last, command, reply
        return reply

    def send_again(self, command: tuple[Any, ...]) -> Any:
        return self._redis.execute_command(*command)

    def refusal(self, command: tuple[Any, ...]) -> str:
        try:
            return f"done: {self._redis.execute_command(*command)}"
        except redis.ResponseError as error:
            return str(error)


def _ints(reply: list[bytes]) -> dict[str, int]:
    return {reply[i].decode(): int(float(reply[i + 1])) for i in range(0, len(reply), 2)}


def _texts(reply: Any) -> dict[str, str]:
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {key.decode(): value.decode("latin-1") for key, value in pairs}


def _held(text: str) -> tuple[int, str, int, int, str]:
    fence, phase, due, since, worker = text.split(" ")
    return int(fence), phase, int(due), int(since), worker


def _scores(reply: Any) -> dict[str, int]:
    if reply and isinstance(reply[0], bytes):
        return _ints(reply)
    return {member.decode(): int(float(score)) for member, score in reply}


class Engine:
    """What all histories of one run share: the server, three callers, and what has happened so far."""

    def __init__(self, url: str) -> None:
        self.doors = [Recorder(url, "m", role="test", patience=5) for _ in range(3)]
        self.counts: Counter[str] = Counter()
        keys = self.doors[0].keys
        self.keys = keys
        places = [(place, getattr(keys, place)(kind)) for place in ("due", "lease", "idle", "parked") for kind in KINDS]
        self._places = [place for place, _ in places]
        self._reads = (
            *(("ZRANGE", key, 0, -1, "WITHSCORES") for _, key in places),
            *(("ZRANGE", keys.hints(lane), 0, -1, "WITHSCORES") for lane in LANES),
            *(("HGETALL", keys.record(ref)) for ref in REFS),
            *(("GET", keys.limit(kind)) for kind in KINDS),
            ("HGETALL", keys.holder),
            ("HGETALL", keys.wish),
            ("HGETALL", keys.trouble),
            ("HGETALL", keys.paused),
            ("ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
            ("HGETALL", keys.kinds),
            ("HGETALL", keys.counters),
            ("XRANGE", keys.events, "-", "+"),
            ("HGETALL", keys.meta),
            ("GET", keys.fence),
            ("LPOP", keys.wake),
            ("LPOP", keys.wake),
        )

    def close(self) -> None:
        for door in self.doors:
            door.close()

    def reset(self) -> None:
        self.doors[0].read(("FLUSHDB",))

    def set_clock(self, now: int) -> None:
        self.doors[0].read(("HSET", self.keys.meta, "skew", now))

    def read_state(self) -> tuple[dict[str, Any], int, list[tuple[str, str]]]:
        """The state, how many wake-ups were pending (they are taken away), and every (ref, place)."""
        found = iter(self.doors[0].read(*self._reads))
        state: dict[str, Any] = {"due": {}, "lease": {}, "idle": {}, "parked": {}}
        at: list[tuple[str, str]] = []
        for place in self._places:
            scores = _scores(next(found))
            state[place] |= scores
            at += [(ref, place) for ref in scores]
        state["hints"] = {lane: hints for lane in LANES if (hints := _scores(next(found)))}
        state["records"] = {ref: record for ref in REFS if (record := _texts(next(found)))}
        state["tats"] = {kind: int(tat) for kind in KINDS if (tat := next(found)) is not None}
        state["holder"] = {ref: _held(text) for ref, text in _texts(next(found)).items()}
        state["wish"] = {ref: int(float(us)) for ref, us in _texts(next(found)).items()}
        troubles = {ref: Trouble.unpack(text.encode("latin-1")) for ref, text in _texts(next(found)).items()}
        state["trouble"] = {ref: trouble for ref, trouble in troubles.items() if trouble != Trouble()}
        state["paused"] = {target: int(text.split(" ")[0]) for target, text in _texts(next(found)).items()}
        state["workers"] = _scores(next(found))
        state["kinds"] = {}
        for kind, text in _texts(next(found)).items():
            born, worker, policy = re.split("[ |]", text)
            state["kinds"][kind] = (int(born), worker, policy)
        state["counters"] = {name: int(count) for name, count in _texts(next(found)).items()}
        state["events"] = [pair for _, fields in next(found) for pair in _texts(fields).items()]
        meta = _texts(next(found))
        for field, name in (("topology", "topology"), ("reap_tick", "tick"), ("reap_hold", "hold")):
            state[name] = int(meta.get(field, 0))
        state["fence"] = int(next(found) or 0)
        return state, sum(wake is not None for wake in found), at


refs = st.sampled_from(REFS)
workers = st.sampled_from(WORKERS)
spans = st.sampled_from((0, 1, 300 * MS, S, 2 * S, 20 * S, 3600 * S))
offsets = st.sampled_from((-3600 * S, -5 * S, -1, 0, 1, 900 * MS, 2 * S, 30 * S, 7200 * S))
picks = st.integers(0, 99)
errors = st.sampled_from((None, ErrorText("ValueError", "a b|c \0 é\n%1", "step", START, "trace")))
troubles = st.builds(
    lambda failures, crashes, suspect, error: Trouble(failures, crashes, crashes * START, 5, 0, suspect, "-", error),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from((0, 0, 0, 1)),
    errors,
)
outcomes = st.tuples(
    refs,
    picks,
    st.sampled_from(("idle", "idle", "due", "due", "failed", "failed", "poison", "forget", "gone")),
    spans,
    st.none() | troubles,
    st.sampled_from((None, None, "up", "down")),
    st.sampled_from((b"", b"reached")),
)


class EngineMachine(RuleBasedStateMachine):
    """One history."""

    engine: ClassVar[Engine]

    @initialize(at_rest=st.booleans())
    def begin(self, at_rest: bool) -> None:
        self.engine.reset()
        self.model = Model()
        self.fences: dict[str, list[int]] = {}
        self.accepted: set[tuple[str, int]] = set()
        self.hint = 0
        self.turn = 0
        self.counts = self.engine.counts
        self._set_clock(START)
        if at_rest:
            self.enqueue_all()
            self.claim_all("w1")
            self._settle({ref: (self.model.holder[ref].fence, Ending("idle", S)) for ref in REFS}, True)

    # ---------------------------------------------------------------------------------------------------------- checks

    def _set_clock(self, now: int) -> None:
        self.model.now = now
        self.engine.set_clock(now)

    def _call(self, make: Callable[[Any], Call[Any]], model: Callable[..., Any], *, chosen: bool = False) -> Any:
        """Make a call, let the model do it too, and compare. `chosen`: the model is told the reply to break ties."""
        self.turn += 1
        door = self.engine.doors[self.turn // 2 % 3]
        call = make(door.scripts)
        self.counts[call.script] += 1
        actual = door.run(call)
        fence_before = self.model.fence
        expected = model(actual) if chosen else model()
        assert actual == expected, f"{call.script}: replied {actual}, should have replied {expected}"
        self._compare()
        if self.model.fence != fence_before:
            assert self.model.fence > fence_before  # I3
            for ref, held in self.model.holder.items():
                if held.fence == self.model.fence:
                    self.fences.setdefault(ref, []).append(held.fence)
        return actual

    def _compare(self) -> None:
        state, wakes, at = self.engine.read_state()
        doubled = [ref for ref, count in Counter(ref for ref, _ in at).items() if count > 1]
        assert not doubled, f"in two places: {doubled} of {at}"  # I1
        assert set(state["holder"]) == set(state["lease"]), (
            "a lease without a holder, or a holder without a lease"
        )  # I2
        nowhere = set(state["wish"]) - {ref for ref, place in at if place in ("lease", "parked")}
        assert not nowhere, f"a wish that nobody will look at: {nowhere}"
        expected = self.model.dump()
        for name, value in expected.items():
            assert state[name] == value, f"{name}: is {state[name]}, should be {value}"
        assert wakes <= 1
        assert wakes or not self.model.woken, "nobody woke the promoter"
        self.model.woken = False

    def _pick_fence(self, ref: str, pick: int) -> int:
        """Mostly the current fence of a leased ref; else any that has been, or one that never was."""
        held = self.model.holder.get(ref)
        if held and pick < 75:
            return held.fence
        old = self.fences.get(ref, [])
        return old[pick % len(old)] if old and pick < 97 else self.model.fence + pick

    def _pick_ref(self, ref: str, pick: int) -> str:
        """Mostly a leased one, if there is one."""
        if not self.model.holder and pick < 50:
            self.enqueue_all()
            self.claim_all(WORKERS[pick % 2])
        leased = self.model.leased()
        return leased[pick % len(leased)] if leased and pick < 80 else ref

    # ----------------------------------------------------------------------------------------------------- application

    def _when(self, offset: int, relative: bool) -> When:
        return When.after(offset) if relative else When.at(self.model.now + offset)

    @rule(items=st.lists(st.tuples(refs, offsets, st.booleans()), min_size=1, max_size=4), pick=picks)
    def enqueue(self, items: list[tuple[str, int, bool]], pick: int) -> None:
        items = [(self._pick_ref(ref, pick) if pick % 2 else ref, *when) for ref, *when in items]
        asked = [(ref, self._when(offset, relative)) for ref, offset, relative in items]
        replies = self._call(lambda s: s.enqueue(asked), lambda: self.model.enqueue(asked))
        self.counts["wishes"] += sum(reply.outcome == "wish" for reply in replies)

    @rule()
    def enqueue_all(self) -> None:
        asked = [(ref, When.after(0)) for ref in REFS]
        self._call(lambda s: s.enqueue(asked), lambda: self.model.enqueue(asked))

    @rule(ref=refs, pick=picks, offset=offsets, relative=st.booleans())
    def reschedule(self, ref: str, pick: int, offset: int, relative: bool) -> None:
        when = self._when(offset, relative)
        self._call(lambda s: s.reschedule(ref, when), lambda: self.model.reschedule(ref, when))

    @rule(ref=refs, keep=st.booleans())
    def unschedule(self, ref: str, keep: bool) -> None:
        self._call(lambda s: s.unschedule(ref, keep=keep), lambda: self.model.unschedule(ref, keep))

    @rule(
        ref=refs,
        goal=st.sampled_from(("up", "down")),
        initial=st.sampled_from(("", "new")),
        data=st.sampled_from((None, b"d\0")),
        revision=st.sampled_from((None, None, "right", "wrong")),
    )
    def set_goal(self, ref: str, goal: str, initial: str, data: bytes | None, revision: str | None) -> None:
        at = int(self.model.records.get(ref, {}).get("rev", 0))
        wanted = {None: None, "right": at, "wrong": at + 1}[revision]
        text = data.decode() if data else None
        self._call(
            lambda s: s.set(ref, goal, initial=initial, data=data, if_revision=wanted, event=b"goal"),
            lambda: self.model.set(ref, goal, initial, text, wanted, "goal"),
        )

    @rule(place=st.sampled_from(("poison", "failed", "due")), unschedule=st.booleans())
    def give_up_a_goal_while_it_fails(self, place: Any, unschedule: bool) -> None:
        """Another goal is set while the evaluation for the old one runs, and that then fails."""
        held = {ref: held.fence for ref, held in self.model.holder.items()}
        for ref in held:
            goal = "down" if self.model.records.get(ref, {}).get("goal") == "up" else "up"
            self.set_goal(ref, goal, "", None, None)
            if unschedule:
                self.unschedule(ref, True)
        failed = Ending(place, 60 * S, Trouble(3, crashes=2).pack())
        self._settle({ref: (fence, failed) for ref, fence in held.items()}, True)

    @rule(chosen=st.lists(refs, min_size=1, max_size=2, unique=True), pick=picks)
    def delete(self, chosen: list[str], pick: int) -> None:
        chosen = list(dict.fromkeys([self._pick_ref(chosen[0], pick), *chosen[1:]]))
        self.counts["deletes while leased"] += sum(ref in self.model.holder for ref in chosen)
        self._call(lambda s: s.delete(chosen, event=b"deleted"), lambda: self.model.delete(chosen, "deleted"))

    @rule(ref=refs, pick=picks, until=st.sampled_from((0, 60 * S)))
    def park(self, ref: str, pick: int, until: int) -> None:
        ref = self._pick_ref(ref, pick) if pick % 2 else ref
        until = until and self.model.now + until
        self._call(lambda s: s.park(ref, text="me why", until_us=until), lambda: self.model.park(ref, until))

    @rule(offset=offsets)
    def ask_for_what_failed_and_was_paused(self, offset: int) -> None:
        """Failed, then paused: it is asked for, and waits all the same."""
        failed = Ending("failed", 0, Trouble(1).pack())
        items = {ref: (held.fence, failed) for ref, held in self.model.holder.items()}
        self._settle(items, True)
        for ref in items:
            self.park(ref, 0, 0)
            asked = [(ref, When.after(offset))]
            self._call(lambda s: s.enqueue(asked), lambda: self.model.enqueue(asked))  # noqa: B023 - called at once

    @rule(ref=refs, pick=picks, clear=st.booleans())
    def revive(self, ref: str, pick: int, clear: bool) -> None:
        parked = [ref for ref, (place, _) in sorted(self.model.places.items()) if place == "parked"]
        ref = parked[pick % len(parked)] if parked and pick < 70 else ref
        self._call(lambda s: s.revive(ref, clear=clear), lambda: self.model.revive(ref, clear))

    @rule(what=st.sampled_from(TARGETS), until=st.sampled_from((0, 2 * S, 60 * S)))
    def pause(self, what: str, until: int) -> None:
        until = until and self.model.now + until
        self._call(lambda s: s.pause(what, text="me", until_us=until), lambda: self.model.pause(what, until))

    @rule(pick=picks)
    def resume(self, pick: int) -> None:
        paused = [target for target in sorted(self.model.paused) if target in TARGETS] or ["fleet"]
        target = paused[pick % len(paused)]
        self._call(lambda s: s.resume(target), lambda: self.model.resume(target))

    # ------------------------------------------------------------------------------------------------------ schedulers

    @rule(room=st.integers(0, 2), limit=st.integers(1, 4), lead=st.sampled_from((0, LEAD)))
    def promote(self, room: int, limit: int, lead: int) -> None:
        self.hint += 1
        asks = [LaneAsk(LANE_OF[kind], room, f"h{self.hint}{kind}", (kind,)) for kind in KINDS]
        if self.hint % 3 == 0:
            asks = [LaneAsk("default", room, f"h{self.hint}", KINDS)]
        self._call(
            lambda s: s.promote(asks, lead_us=lead, limit=limit),
            lambda actual: self.model.promote(asks, lead, limit, actual),
            chosen=True,
        )

    @rule(lane=st.sampled_from(LANES))
    def unhint(self, lane: str) -> None:
        ids = [*sorted(self.model.hints.get(lane, {}))[:1], "unknown"]
        self._call(lambda s: s.unhint(lane, ids), lambda: self.model.unhint(lane, ids))

    @rule(limit=st.sampled_from((1, 2, 256)))
    def reap(self, limit: int) -> None:
        found = self._call(
            lambda s: s.reap(KINDS, gap_us=GAP, wait_us=WAIT, lease_us=LEASE, limit=limit),
            lambda: self.model.reap(KINDS, GAP, WAIT, LEASE, limit),
        )
        self.counts["reaped"] += len(found.refs)
        self.counts["reaps held off"] += found.held

    @rule(steps=st.sampled_from(((0, 1, 1, 1, 1, 9), (11, 4, 4, 4, 4))))
    def reap_after_a_wait(self, steps: tuple[int, ...]) -> None:
        """A reaper that ticks until leases have run out; or one so slow that each tick comes after a gap."""
        for step in steps:
            self._set_clock(self.model.now + step * S)
            self.reap(256)

    @rule(kind=st.sampled_from(KINDS), spread=st.sampled_from((0, S)), limit=st.sampled_from((1, 256)))
    def look(self, kind: str, spread: int, limit: int) -> None:
        self._call(lambda s: s.look(kind, spread_us=spread, limit=limit), lambda: self.model.look(kind, spread, limit))

    @rule(spread=st.sampled_from((0, S)), limit=st.sampled_from((1, 256)))
    def look_at_what_rests(self, spread: int, limit: int) -> None:
        """What is being evaluated comes to rest, and is looked at when its time has come."""
        items = {ref: (held.fence, Ending("idle", S)) for ref, held in self.model.holder.items()}
        self._settle(items, True)
        self._set_clock(self.model.now + 2 * S)
        for kind in KINDS:
            self.look(kind, spread, limit)

    @rule(kind=st.sampled_from(KINDS), clock_stepped_back=st.sampled_from((False, False, True)))
    def audit(self, kind: str, clock_stepped_back: bool) -> None:
        if clock_stepped_back:
            self._set_clock(self.model.now - 1800 * S)
        mine = [ref for ref in REFS if ref.startswith(kind)]
        found = self._call(
            lambda s: s.audit(kind, mine, lease_us=LEASE),
            lambda: Audit(0, 0, self.model.cut(mine, LEASE), 0),
        )
        assert (found.doubled, found.unheld, found.orphans) == (0, 0, 0)

    # --------------------------------------------------------------------------------------------------------- workers

    @rule(
        worker=workers,
        limit=st.sampled_from((1, 2, 6, 6)),
        chosen=st.sampled_from((("a",), ("b",), KINDS, KINDS)),
        cap=st.sampled_from((0, 0, 1, 2)),
        rate=st.sampled_from((0, 0, 3, 3)),
        alone=st.sampled_from((False, False, True)),
        named=st.lists(refs, max_size=2, unique=True) | st.just([]),
        lead=st.sampled_from((0, LEAD)),
        hint=st.booleans(),
    )
    def claim(
        self,
        worker: str,
        limit: int,
        chosen: tuple[str, ...],
        cap: int,
        rate: int,
        alone: bool,
        named: list[str],
        lead: int,
        hint: bool,
    ) -> None:
        kinds = [ClaimKind(kind, LANE_OF[kind], cap, rate, 9 * S) for kind in chosen]
        lane = LANE_OF[chosen[0]]
        noted = min(self.model.hints.get(lane, {}), default="") if hint else ""
        found = self._call(
            lambda s: s.claim(
                worker,
                kinds,
                lane=lane,
                lease_us=LEASE,
                lead_us=lead,
                limit=limit,
                hint=noted,
                alone=alone,
                named=named,
            ),
            lambda actual: self.model.claim(worker, kinds, lane, LEASE, lead, limit, noted, alone, named, actual),
            chosen=True,
        )
        self.counts["claimed"] += len(found.items)

    @rule(worker=workers)
    def claim_all(self, worker: str) -> None:
        self.claim(worker, 6, KINDS, 0, 0, False, [], LEAD, True)

    @rule(worker=workers, limit=st.integers(1, 2))
    def claim_a_part(self, worker: str, limit: int) -> None:
        """A hint is answered, and more is left than was taken."""
        self.enqueue_all()
        self.promote(2, 4, LEAD)
        self.claim(worker, limit, ("a",), 0, 0, False, [], LEAD, True)

    @rule(worker=workers, by=st.sampled_from((S, -4 * S, -1800 * S)))
    def claim_all_that_the_rate_allows(self, worker: str, by: int) -> None:
        self.enqueue_all()
        for _ in range(2):
            self.claim(worker, 6, KINDS, 0, 3, False, [], LEAD, False)
            self._set_clock(self.model.now + by)

    @rule(ref=refs, pick=picks, park=st.booleans())
    def create_again(self, ref: str, pick: int, park: bool) -> None:
        """Delete what is being evaluated, and want it again at once."""
        ref = self._pick_ref(ref, pick)
        self.delete([ref], 99)
        self.enqueue([(ref, 0, True)], 0)
        if park:
            self.park(ref, 0, 0)

    @rule(worker=workers, chosen=st.lists(st.tuples(refs, picks), max_size=4, unique_by=lambda pair: pair[0]))
    def beat(self, worker: str, chosen: list[tuple[str, int]]) -> None:
        held = [(ref, self._pick_fence(ref, pick)) for ref, pick in chosen]
        self._call(
            lambda s: s.beat(worker, held, lease_us=LEASE, ttl_us=LEASE),
            lambda: self.model.beat(worker, held, LEASE, LEASE),
        )

    @rule(chosen=st.lists(outcomes, min_size=1, max_size=3), wake=st.sampled_from((True, True, False)))
    def settle(self, chosen: list[Any], wake: bool) -> None:
        items: dict[str, tuple[int, Ending]] = {}
        for ref, pick, place, delay, trouble, state, event in chosen:
            ref = self._pick_ref(ref, pick)
            fence = self._pick_fence(ref, (pick * 37) % 100)
            delay = FAR_US if place == "idle" and pick % 2 else delay
            packed = trouble.pack() if trouble else b""
            items[ref] = fence, Ending(place, delay, packed, None if place == "gone" else state, event)
        self._settle(items, wake)

    @precondition(lambda self: self.fences)
    @rule(pick=picks, place=st.sampled_from(("idle", "due", "poison", "gone")))
    def settle_late(self, pick: int, place: Any) -> None:
        """As a worker that had lost its lease: with every fence its ref has ever had but the current one."""
        ref = sorted(self.fences)[pick % len(self.fences)]
        held = self.model.holder.get(ref)
        for fence in self.fences[ref][-5:]:
            if not held or held.fence != fence:
                self._settle({ref: (fence, Ending(place, S, b"", None, b"late"))}, True)

    def _settle(self, items: Mapping[str, tuple[int, Ending]], wake: bool) -> None:
        alike: dict[tuple[int, Ending], list[str]] = {}
        for ref, ended in items.items():
            alike.setdefault(ended, []).append(ref)
        settlements = [Settlement(refs, fence, ending) for (fence, ending), refs in alike.items()]
        statuses = self._call(
            lambda s: s.settle(settlements, counters={"settled": len(items)}, wake=wake),
            lambda: self.model.settle(settlements, {"settled": len(items)}, wake),
        )
        self.counts["stale settles"] += statuses.count("stale")
        self.counts["deleted settles"] += statuses.count("deleted")
        settled = [(ref, each.fence) for each in settlements for ref in each.refs]
        for ref_and_fence, status in zip(settled, statuses, strict=True):
            if status != "stale":  # I4: one outcome a fence
                assert ref_and_fence not in self.accepted
                self.accepted.add(ref_and_fence)

    @rule(ref=refs, pick=picks, suspect=st.booleans(), wake=st.booleans())
    def release(self, ref: str, pick: int, suspect: bool, wake: bool) -> None:
        ref = self._pick_ref(ref, pick)
        items = [Released(ref, self._pick_fence(ref, (pick * 37) % 100), suspect)]
        statuses = self._call(lambda s: s.release(items, wake=wake), lambda: self.model.release(items, wake))
        self.counts["stale releases"] += statuses.count("stale")

    @rule(worker=workers, born=st.integers(1, 3), ttl=st.sampled_from((S, 60 * S)), leave=st.booleans())
    def register(self, worker: str, born: int, ttl: int, leave: bool) -> None:
        born = 2 * born + WORKERS.index(worker)  # no two alike
        policies = dict.fromkeys(KINDS[: 1 + born % 2], f"p{born}")
        if leave:
            self._call(lambda s: s.leave(worker), lambda: self.model.leave(worker))
        else:
            published = {kind: policy.encode() for kind, policy in policies.items()}
            self._call(
                lambda s: s.register(worker, born_us=born, ttl_us=ttl, info=b"i", kinds=published),
                lambda: self.model.register(worker, born, ttl, policies),
            )

    # ------------------------------------------------------------------------------------------- the network, the clock

    @rule(which=st.integers(0, 3))
    def repeat(self, which: int) -> None:
        """The last call of a caller arrives once more; it is answered as it was, and not done again."""
        if which < 3:
            self._repeat(self.engine.doors[which])
        else:
            for door in self.engine.doors:
                self._repeat(door)

    def _repeat(self, door: Recorder) -> None:
        if self.turn and door.last and door.last[4] == self.engine.keys.op(door.caller) and self._is_known(door):
            self.counts["repeats"] += 1
            assert door.send_again(door.last) == door.last_reply, "a repeat was answered otherwise"
            self._compare()
            if door.older:
                assert door.refusal(door.older).startswith("OUTDATED"), "an outdated call was not refused"
                self._compare()

    def _is_known(self, door: Recorder) -> bool:
        """Whether that call was of this history: the server was emptied since the others."""
        return bool(door.read(("EXISTS", self.engine.keys.op(door.caller)))[0])

    @rule(by=st.sampled_from((1, 50 * MS, S, S, 2 * S, 2 * S, 5 * S, 11 * S, 45 * S, 4000 * S, -S, -1800 * S)))
    def pass_time(self, by: int) -> None:
        self._set_clock(self.model.now + by)


def explore(url: str, *, examples: int, steps: int, fixed: bool, shrink: bool) -> Counter[str]:
    """Run histories against the server at `url`; raises at the first that goes wrong. What happened, counted."""
    engine = Engine(url)
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    machine = type("EngineMachine", (EngineMachine,), {"engine": engine})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=fixed,
                database=None,
                report_multiple_bugs=False,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        engine.close()
    return engine.counts


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_engine_does_what_the_model_does(url: str) -> None:
    wanted = os.environ.get("SETPOINT_MODEL_EXAMPLES")
    with scripts_with(CLOCK):
        counts = explore(url, examples=int(wanted or 400), steps=50, fixed=wanted is None, shrink=True)
    print(dict(sorted(counts.items())))
    enough = ("stale settles", "repeats", "reaped", "wishes", "reaps held off", "deletes while leased")
    few = {name: counts[name] for name in enough if counts[name] < 50}
    assert not few, f"too little happened for this test to mean much: {few}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_applies(mutant: Mutant) -> None:
    source = text_of(mutant.file)
    assert mutant.applied(source) != source


def test_the_real_clock_is_that_of_redis_plus_the_skew(redis_server: Server, url: str) -> None:
    with Door(url, "m", role="test") as door:
        for skew in (0, 10**12, -(10**12)):
            door.read(("HSET", door.keys.meta, "skew", skew))
            before = door.now_us()
            reply = door.run(door.scripts.beat("w", [], lease_us=1, ttl_us=1))
            assert before <= reply.now_us <= door.now_us()
            with redis_server.client() as client:
                seconds, micros = client.time()
            assert abs(reply.now_us - skew - seconds * S - micros) < 5 * S
