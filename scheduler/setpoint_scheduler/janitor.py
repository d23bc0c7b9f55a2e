"""The Janitor: has entities at rest looked at again in time, ends pauses that have an end, forgets dead workers."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Final

from setpoint.engine.door import Door
from setpoint.engine.records import Trouble
from setpoint.engine.scripts import BATCH
from setpoint_scheduler.loop import Agent
from setpoint_scheduler.plan import Plan

__all__ = ["Janitor"]

LOG: Final = logging.getLogger("setpoint.scheduler")

PERIOD: Final = 20.0
"""Seconds between two looks at the same duty."""
SHORTEST: Final = 1.0
DEAD_FOR: Final = 60.0
"""Seconds for which a worker must have been dead to be forgotten."""
_AGAIN = 0.05
_SPREAD_MAX_US = 30_000_000


class Janitor(Agent):
    """Its duties take turns: resync of each kind, pauses of single entities that end, dead workers."""

    name = "janitor"

    def __init__(self, door: Door, plan: Plan, *, period: float = PERIOD, dead_for: float = DEAD_FOR) -> None:
        self._door = door
        self._plan = plan
        self._period, self._dead_for = period, dead_for
        self._look_at: dict[str, float] = {}
        self._pauses_at = 0.0
        self._pauses_cursor = 0
        self._waiters_cursor = 0
        self._dead: dict[str, tuple[int, float]] = {}

    def tick(self) -> float:
        """Do what is to be done now; seconds until there may be more."""
        now = monotonic()
        self._resync(now)
        if now >= self._pauses_at:
            self._end_pauses()
            self._pauses_at = now + (_AGAIN if self._pauses_cursor else self._period)
            self._forget_waiters()
        self._forget_dead(now)
        ahead = min([self._pauses_at, *self._look_at.values()])
        # A tick with nothing to do asks Redis nothing, so it may be frequent: a new kind is seen within a second.
        return min(max(ahead - monotonic(), _AGAIN), SHORTEST)

    def _resync(self, now: float) -> None:
        known = self._plan.policies
        self._look_at = {kind: at for kind, at in self._look_at.items() if kind in known}
        for kind, policy in known.items():
            if policy.resync_us is None:
                self._look_at.pop(kind, None)
                continue
            if self._look_at.get(kind, 0.0) > now:
                continue
            spread = min(policy.resync_us // 10, _SPREAD_MAX_US)
            looked = self._door.run(self._door.scripts.look(kind, spread_us=spread))
            period = min(max(policy.resync_us / 10_000_000, SHORTEST), self._period)
            self._look_at[kind] = now + (_AGAIN if looked >= BATCH else period)

    def _end_pauses(self) -> None:
        """What is paused until an instant goes on by itself then."""
        ((cursor, found),) = self._door.read(
            ("HSCAN", self._door.keys.paused, self._pauses_cursor, "COUNT", BATCH),
        )
        self._pauses_cursor = int(cursor)
        if not found:
            return
        now_us = self._door.now_us()
        for field, value in found.items():
            until = value.partition(b" ")[0]
            if not until.isdigit() or not 0 < int(until) <= now_us:
                continue
            target = field.decode()
            if target.startswith("ref:"):
                self._end_pause_of(target)
            else:
                self._door.run(self._door.scripts.resume(target))
            LOG.info("pause ended", extra={"target": target})

    def _end_pause_of(self, target: str) -> None:
        keys, ref = self._door.keys, target.removeprefix("ref:")
        (trouble,) = self._door.read(("HGET", keys.trouble, ref))
        if Trouble.unpack(trouble or b"").reason in {"failed", "poison"}:
            # It was parked for another reason before: the pause ends, it stays parked.
            self._door.read(("HDEL", keys.paused, target))
        else:
            self._door.run(self._door.scripts.revive(ref, clear=False))

    def _forget_waiters(self) -> None:
        """A client that was killed while it waited leaves its mark; the mark says until when it holds."""
        waiters = self._door.keys.waiters
        ((cursor, found),) = self._door.read(("HSCAN", waiters, self._waiters_cursor, "COUNT", BATCH))
        self._waiters_cursor = int(cursor)
        if found:
            now_us = self._door.now_us()
            over = [ref for ref, until in found.items() if until.isdigit() and int(until) < now_us]
            if over:
                self._door.read(("HDEL", waiters, *over))

    def _forget_dead(self, now: float) -> None:
        """Only if nothing changed for long by our own clock: after a clock step live workers look dead for a beat."""
        dead = self._plan.dead
        for worker in [name for name, (at, _) in self._dead.items() if dead.get(name) != at]:
            del self._dead[worker]
        for worker, at in dead.items():
            since = self._dead.setdefault(worker, (at, now))[1]
            if now - since < self._dead_for:
                continue
            (score,) = self._door.read(("ZSCORE", self._door.keys.workers, worker))
            if score is not None and int(float(score)) == at and self._door.run(self._door.scripts.leave(worker)):
                LOG.warning("worker forgotten", extra={"worker": worker})
            del self._dead[worker]
