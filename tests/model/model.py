"""The engine as dictionaries: what each script must do, said again in plain Python and without Redis.

Written from the rules (the headers of the scripts), one entity at a time and with no thought for speed. Each method
answers what the call must answer and changes the state; `dump` is the whole state in the form in which a test reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from setpoint.engine.records import Trouble
from setpoint.engine.scripts import (
    FAR_US,
    Beat,
    Claim,
    Claimed,
    ClaimKind,
    Ending,
    Enqueued,
    LaneAsk,
    LaneHint,
    Promotion,
    Reap,
    Released,
    SetReply,
    Settlement,
    Status,
    When,
)
from setpoint.entity import kind_of

HORIZON = 1_000_000
NONE = Trouble()


@dataclass
class Held:
    """Who evaluates a ref."""

    fence: int
    due: int
    since: int
    worker: str
    phase: str = "h"
    regoaled: bool = False


@dataclass
class Model:
    """One fleet."""

    now: int = 0
    #: ref -> (due | lease | idle | parked, score): one place each, so I1 holds here by construction
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    holder: dict[str, Held] = field(default_factory=dict)
    wish: dict[str, int] = field(default_factory=dict)
    trouble: dict[str, Trouble] = field(default_factory=dict)
    records: dict[str, dict[str, str]] = field(default_factory=dict)
    paused: dict[str, int] = field(default_factory=dict)
    hints: dict[str, dict[str, int]] = field(default_factory=dict)
    tats: dict[str, int] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    topology: int = 0
    fence: int = 0
    tick: int = 0
    hold: int = 0
    #: the promoter must have been woken by now
    woken: bool = False

    # ---------------------------------------------------------------------------------------------------- small things

    def dump(self) -> dict[str, Any]:
        """The state, as `test_engine_model.read_state` reads it from Redis."""
        sets: dict[str, dict[str, int]] = {"due": {}, "lease": {}, "idle": {}, "parked": {}}
        for ref, (place, score) in self.places.items():
            sets[place][ref] = score
        return {
            **sets,
            "holder": {
                ref: (h.fence, h.phase + "g" * h.regoaled, h.due, h.since, h.worker) for ref, h in self.holder.items()
            },
            "wish": dict(self.wish),
            "trouble": {ref: trouble for ref, trouble in self.trouble.items() if trouble != NONE},
            "records": {ref: dict(record) for ref, record in self.records.items()},
            "paused": dict(self.paused),
            "hints": {lane: dict(hints) for lane, hints in self.hints.items() if hints},
            "tats": dict(self.tats),
            "workers": dict(self.workers),
            "kinds": dict(self.kinds),
            "counters": dict(self.counters),
            "events": list(self.events),
            "topology": self.topology,
            "fence": self.fence,
            "tick": self.tick,
            "hold": self.hold,
        }

    def of_kind(self, place: str, kind: str) -> list[tuple[int, str]]:
        """(score, ref) of a kind's refs in one place, in Redis' order."""
        found = ((score, ref) for ref, (at, score) in self.places.items() if at == place and kind_of(ref) == kind)
        return sorted(found)

    def leased(self) -> list[str]:
        return sorted(self.holder)

    def is_paused(self, target: str) -> bool:
        until = self.paused.get(target)
        return until is not None and (until == 0 or until > self.now)

    def _wake(self, due: int) -> None:
        self.woken = self.woken or due <= self.now + HORIZON

    def _make_due(self, ref: str, due: int) -> None:
        self.places[ref] = ("due", due)
        self._wake(due)

    def _place(self, ref: str) -> str | None:
        return self.places.get(ref, (None, 0))[0]

    def _when(self, when: When) -> int:
        return when.us + self.now if when.relative else when.us

    def _wish(self, ref: str, due: int) -> Enqueued:
        self.wish[ref] = min(due, self.wish.get(ref, due))
        return Enqueued("wish", self.wish[ref])

    def _set_reason(self, ref: str, reason: Any) -> None:
        self.trouble[ref] = replace(self.trouble.get(ref, NONE), reason=reason)

    def _reason(self, ref: str) -> str:
        return self.trouble.get(ref, NONE).reason

    # ---------------------------------------------------------------------------------------------------- applications

    def enqueue(self, items: Sequence[tuple[str, When]]) -> tuple[Enqueued, ...]:
        return tuple(self._ask(ref, self._when(when)) for ref, when in items)

    def _ask(self, ref: str, due: int) -> Enqueued:
        place = self._place(ref)
        if place == "lease":
            return self._wish(ref, due)
        if place == "parked":
            if self._reason(ref) == "poison":
                return Enqueued("parked", self.places[ref][1])
            if self._reason(ref) == "paused" or "ref:" + ref in self.paused:
                self._set_reason(ref, "paused")
                return self._wish(ref, due)
            self._set_reason(ref, "-")
        if place == "due" and self.places[ref][1] <= due:
            return Enqueued("merged", self.places[ref][1])
        if place == "idle":
            due = min(due, self.places[ref][1])
        self._make_due(ref, due)
        return Enqueued("scheduled", due)

    def reschedule(self, ref: str, when: When) -> Enqueued:
        due, place = self._when(when), self._place(ref)
        if place == "due":
            self._make_due(ref, due)
            return Enqueued("scheduled", due)
        if place == "lease" or (place == "parked" and self._reason(ref) == "paused"):
            self.wish[ref] = due
            return Enqueued("wish", due)
        return self._ask(ref, due)

    def unschedule(self, ref: str, keep: bool) -> bool:
        had = self.wish.pop(ref, None) is not None
        if self._place(ref) == "due":
            del self.places[ref]
            if keep:
                self.places[ref] = ("idle", FAR_US)
            else:
                self.trouble.pop(ref, None)
            had = True
        return had

    def set(self, ref: str, goal: str, initial: str, data: str | None, if_revision: int | None, event: str) -> SetReply:
        record = self.records.get(ref, {})
        revision = int(record.get("rev", 0))
        if if_revision is not None and if_revision != revision:
            return SetReply("conflict", revision, False)
        changed = record.get("goal") != goal
        self.records[ref] = record
        record["goal"], record["rev"] = goal, str(revision + 1)
        if initial:
            record.setdefault("state", initial)
        if data is not None:
            record["data"] = data
        if changed:
            record[f"h{(revision + 1) % 8}"] = f"{self.now} goal {goal}"
            reason = self._reason(ref)
            self.trouble[ref] = Trouble(reason="failed" if reason == "poison" else reason)
            if ref in self.holder:
                self.holder[ref].regoaled = self.holder[ref].phase != "x"
            if event:
                self.events.append((ref, event))
        outcome = self._ask(ref, self.now).outcome
        assert outcome != "absent"
        return SetReply("scheduled" if outcome == "merged" else outcome, revision + 1, changed)

    def delete(self, refs: Iterable[str], event: str) -> tuple[str, ...]:
        replies = []
        for ref in refs:
            had = ref in self.records or ref in self.wish or self._place(ref) in ("due", "idle", "parked")
            held = self.holder.get(ref)
            if held:
                had = had or held.phase != "x"
                held.phase = "x"
            else:
                self.places.pop(ref, None)
            for forgotten in (self.records, self.wish, self.trouble):
                forgotten.pop(ref, None)
            self.paused.pop("ref:" + ref, None)
            replies.append(("cancelling" if held else "deleted") if had else "absent")
            if had and event:
                self.events.append((ref, event))
        return tuple(replies)

    def park(self, ref: str, until: int) -> str:
        self.paused["ref:" + ref] = until
        if ref in self.holder:
            if self.holder[ref].phase == "h":
                self.holder[ref].phase = "p"
            return "parking"
        if self._place(ref) != "parked":
            if self._place(ref) == "due":
                self.wish[ref] = self.places[ref][1]
            self._park(ref, "paused")
        return "parked"

    def _park(self, ref: str, reason: str) -> None:
        self.places[ref] = ("parked", self.now)
        self._set_reason(ref, reason)

    def revive(self, ref: str, clear: bool) -> Enqueued:
        self.paused.pop("ref:" + ref, None)
        held = self.holder.get(ref)
        if held and held.phase == "p":
            held.phase = "h"
            return Enqueued("wish", held.due)
        if held or self._place(ref) != "parked":
            return Enqueued("absent", 0)
        due = self.wish.pop(ref, self.now)
        if clear:
            self.trouble.pop(ref, None)
        else:
            self._set_reason(ref, "-")
        self._make_due(ref, due)
        return Enqueued("scheduled", due)

    def pause(self, target: str, until: int) -> bool:
        fresh = not self.is_paused(target)
        self.paused[target] = until
        return fresh

    def resume(self, target: str) -> bool:
        self.woken = True
        return self.paused.pop(target, None) is not None

    # ------------------------------------------------------------------------------------------------------ schedulers

    def promote(self, lanes: Sequence[LaneAsk], lead: int, limit: int, actual: Promotion) -> Promotion:
        """`actual` chooses among refs that are due at the same instant."""
        found, ahead = [], FAR_US
        for ask, theirs in zip(lanes, actual.lanes, strict=True):
            hints = self.hints.setdefault(ask.lane, {})
            since = min(hints.values(), default=0)
            stopped = self.is_paused("fleet") or self.is_paused("lane:" + ask.lane)
            dues: list[tuple[int, str]] = []
            for kind in ask.kinds:
                if not stopped and not self.is_paused("kind:" + kind):
                    dues += self.of_kind("due", kind)
            heads = sorted(item for item in dues if item[0] <= self.now + lead)
            ahead = min([ahead, *(due for due, _ in dues if due > self.now + lead)])
            if heads and len(hints) < ask.room:
                hints[ask.hint] = self.now
                refs = _same_but_for_ties(heads, theirs.refs, limit)
                found.append(LaneHint(ask.lane, ask.hint, refs, heads[0][0], len(heads), len(hints), since))
            else:
                found.append(LaneHint(ask.lane, None, (), 0, 0, len(hints), since))
        return Promotion(self.now, self.topology, tuple(found), ahead if ahead < FAR_US else None)

    def unhint(self, lane: str, ids: Iterable[str]) -> int:
        gone = sum(self.hints.setdefault(lane, {}).pop(hint, None) is not None for hint in ids)
        self.woken = self.woken or gone > 0
        return gone

    def reap(self, kinds: Sequence[str], gap: int, wait: int, lease: int, limit: int) -> Reap:
        last, self.tick = self.tick, self.now
        if abs(self.now - last) > gap and abs(self.now - self.hold) > lease:
            self.hold = self.now
        if 0 <= self.now - self.hold < wait:
            return Reap(self.now, True, (), self.hold + wait)
        refs = []
        for kind in kinds:
            for _, ref in [item for item in self.of_kind("lease", kind) if item[0] <= self.now][:limit]:
                self.events.append((ref, f"reaped {self.holder[ref].worker}"))
                self._hand_back(ref, suspect=True)
                refs.append(ref)
        if refs:
            self.counters["takeovers"] = self.counters.get("takeovers", 0) + len(refs)
        ahead = min((item for kind in kinds for item in self.of_kind("lease", kind)), default=None)
        return Reap(self.now, False, tuple(refs), ahead[0] if ahead else None)

    def _hand_back(self, ref: str, suspect: bool) -> None:
        held = self.holder.pop(ref)
        del self.places[ref]
        if held.phase == "x":
            self._end_deleted(ref)
            return
        due = min(held.due, self.wish.pop(ref, held.due))
        if suspect:
            trouble = self.trouble.get(ref, NONE)
            self.trouble[ref] = replace(trouble, suspect=trouble.suspect + 1)
        if held.phase == "p":
            self.wish[ref] = due
            self._park(ref, "paused")
        else:
            self._make_due(ref, due)

    def _end_deleted(self, ref: str) -> None:
        """Only what was asked of the re-created entity counts."""
        if "ref:" + ref in self.paused:
            self._park(ref, "paused")
        elif ref in self.wish:
            self._make_due(ref, self.wish.pop(ref))

    def look(self, kind: str, spread: int, limit: int) -> int:
        refs = [ref for at, ref in self.of_kind("idle", kind) if at <= self.now][:limit]
        for i, ref in enumerate(refs):
            self._make_due(ref, self.now + spread * i // len(refs))
        return len(refs)

    def cut(self, refs: Iterable[str], lease: int) -> int:
        """Audit: on a sound store only leases that a clock step left too far ahead are repaired."""
        far = [ref for ref in refs if ref in self.holder and self.places[ref][1] > self.now + 2 * lease]
        for ref in far:
            self.places[ref] = ("lease", self.now + lease)
        return len(far)

    # --------------------------------------------------------------------------------------------------------- workers

    def register(self, worker: str, born: int, ttl: int, kinds: Mapping[str, str]) -> int:
        changed = worker not in self.workers
        self.workers[worker] = self.now + ttl
        for kind, policy in kinds.items():
            theirs = self.kinds.get(kind)
            younger = theirs and self.workers.get(theirs[1], 0) > self.now and theirs[0] > born
            if theirs != (born, worker, policy) and not younger:
                self.kinds[kind] = (born, worker, policy)
                changed = True
        self.topology += changed
        self.woken = self.woken or changed
        return self.now

    def leave(self, worker: str) -> bool:
        was = self.workers.pop(worker, None) is not None
        self.topology += was
        return was

    def claim(  # noqa: C901 -- mirrors every rule of a claim
        self,
        worker: str,
        kinds: Sequence[ClaimKind],
        lane: str,
        lease: int,
        lead: int,
        limit: int,
        hint: str,
        alone: bool,
        named: Collection[str],
        actual: Claim,
    ) -> Claim:
        """`actual` chooses among refs that are due at the same instant."""
        if alone:
            limit = min(limit, 1)
        candidates: list[tuple[int, str]] = []
        more = suspects = False
        tats = {}
        for each in kinds:
            room = limit
            if any(self.is_paused(target) for target in ("fleet", "lane:" + each.lane, "kind:" + each.kind)):
                continue
            if each.cap:
                room = min(room, each.cap - len(self.of_kind("lease", each.kind)))
            if each.rate and room > 0:
                tat = max(self.tats.get(each.kind, 0), self.now)
                if tat > self.now + each.per_us + 1:
                    tat = self.tats[each.kind] = self.now + each.per_us
                room = min(room, (self.now + each.per_us - tat) // (each.per_us // each.rate))
                tats[each.kind] = tat, each.per_us // each.rate
            if room <= 0:
                continue
            mine = []
            for due, ref in self.of_kind("due", each.kind):
                if due <= self.now + lead:
                    suspect = self.trouble.get(ref, NONE).suspect > 0
                    suspects = suspects or suspect
                    if suspect == alone and (not named or ref in named):
                        mine.append((due, ref))
            more = more or len(mine) > room
            candidates += mine[:room]
        more = more or len(candidates) > limit
        refs = _same_but_for_ties(sorted(candidates), tuple(item.ref for item in actual.items), limit)
        fence = 0
        if refs:
            fence = self.fence = max(self.fence + 1, self.now)
        items = []
        for ref in refs:
            due = self.places[ref][1]
            self.holder[ref] = Held(fence, due, self.now, worker)
            self.places[ref] = ("lease", self.now + lease)
            items.append((ref, due, self.trouble.get(ref, NONE)))
            if kind_of(ref) in tats:
                tat, step = tats[kind_of(ref)]
                self.tats[kind_of(ref)] = tat + step
                tats[kind_of(ref)] = tat + step, step
        if self.hints.setdefault(lane, {}).pop(hint, None) is not None and more:
            self.woken = True
        ours = tuple(Claimed(ref, due, b"" if trouble == NONE else trouble.pack()) for ref, due, trouble in items)
        # What is seen of suspects depends on how far a script pages on; tests with many of them ask for it directly.
        return Claim(self.now, fence, ours, more, suspects if len(ours) == 0 else actual.suspects)

    def beat(self, worker: str, held: Sequence[tuple[str, int]], lease: int, ttl: int) -> Beat:
        lost, cancelled = [], []
        for ref, fence in held:
            if not self._current(ref, fence):
                lost.append(ref)
                continue
            if self.holder[ref].phase == "x":
                cancelled.append(ref)
            self.places[ref] = ("lease", self.now + lease)
        if worker in self.workers:
            self.workers[worker] = self.now + ttl
        return Beat(self.now, tuple(lost), tuple(cancelled))

    def _current(self, ref: str, fence: int) -> bool:
        return ref in self.holder and self.holder[ref].fence == fence

    def settle(self, items: Sequence[Settlement], counters: Mapping[str, int], wake: bool) -> tuple[Status, ...]:
        woken = self.woken
        for name, count in counters.items():
            self.counters[name] = self.counters.get(name, 0) + count
        statuses: list[Status] = []
        freed = set()
        for refs, fence, ending in items:
            ended: list[Status] = [self._settle(ref, fence, ending) for ref in refs]
            freed |= {kind_of(ref) for ref, status in zip(refs, ended, strict=True) if status != "stale"}
            accepted = [ref for ref, status in zip(refs, ended, strict=True) if status == "ok"]
            if accepted and ending.event:
                self.events.append(("\n".join(accepted), ending.event.decode()))
            statuses += ended
        # A place that was freed may be what waits for a cap.
        waiting = any(due <= self.now for kind in freed for due, _ in self.of_kind("due", kind))
        self.woken = self.woken or waiting if wake else woken
        return tuple(statuses)

    def _settle(self, ref: str, fence: int, it: Ending) -> Status:  # noqa: C901 -- mirrors every rule of a settle
        if not self._current(ref, fence):
            return "stale"
        held = self.holder.pop(ref)
        del self.places[ref]
        if held.phase == "x":
            self._end_deleted(ref)
            return "deleted"
        wish = self.wish.pop(ref, None)
        due = self.now + it.delay_us if it.place == "due" else None
        place = it.place
        trouble = NONE if place == "gone" else Trouble.unpack(it.trouble)
        if held.regoaled and it.trouble:  # it failed at a goal that was given up meanwhile
            trouble = NONE
            if place in ("failed", "poison"):
                place, due = "due", self.now
        if wish is not None and place != "poison":
            due = wish if due is None else min(wish, due)
        self.trouble[ref] = trouble
        if it.place == "gone":
            self.records.pop(ref, None)
        elif it.state is not None and self.records.get(ref, {}).get("state") != it.state:
            record = self.records.setdefault(ref, {})
            revision = int(record.get("rev", 0)) + 1
            record |= {"state": it.state, "rev": str(revision), f"h{revision % 8}": f"{self.now} state {it.state}"}
        if place == "poison":
            self._park(ref, "poison")
        elif held.phase == "p":
            if due is not None:
                self.wish[ref] = due
            self._park(ref, "paused")
        elif due is not None:
            self._make_due(ref, due)
        elif place == "failed":
            self._park(ref, "failed")
        elif place == "idle":
            self.places[ref] = ("idle", FAR_US if it.delay_us >= FAR_US else self.now + it.delay_us)
        return "ok"

    def release(self, items: Sequence[Released], wake: bool) -> tuple[Status, ...]:
        woken = self.woken
        statuses: list[Status] = []
        for it in items:
            if not self._current(it.ref, it.fence):
                statuses.append("stale")
                continue
            statuses.append("deleted" if self.holder[it.ref].phase == "x" else "ok")
            self._hand_back(it.ref, it.suspect)
        if not wake:
            self.woken = woken
        return tuple(statuses)


def _same_but_for_ties(allowed: list[tuple[int, str]], actual: tuple[str, ...], limit: int) -> tuple[str, ...]:
    """`actual` if it is a right choice of the oldest `limit`; else the choice that sorts first."""
    due_of = {ref: due for due, ref in allowed}
    ours = allowed[:limit]
    right = len(set(actual)) == len(actual) and all(ref in due_of for ref in actual)
    if right and [due_of[ref] for ref in actual] == [due for due, _ in ours]:
        return actual
    return tuple(ref for _, ref in ours)
