"""The Promoter: rings hints in RQ for what is due, and keeps watch that they are not lost."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

import redis

from setpoint.engine.connect import connect, mask
from setpoint.engine.door import Door
from setpoint.engine.scripts import BATCH, LaneAsk, LaneHint, Promotion
from setpoint.jobs import QUEUES_KEY, hint_commands, hint_id, queue_key
from setpoint_scheduler.loop import Agent
from setpoint_scheduler.plan import Plan

__all__ = ["Promoter"]

LOG: Final = logging.getLogger("setpoint.scheduler")

LONGEST_WAIT: Final = 1.0
"""Seconds between two looks when nothing is due and nobody wakes us."""

FULL_HOLD: Final = 0.002
"""Seconds for which wake-ups are not listened to when a lane has all the hints it may have."""

HINTS_PER_WORKER: Final = 2
ROOM_MIN: Final = 2

LOST_US: Final = 2_000_000
"""A hint older than this is looked for in RQ's list."""

_CHECK_PAUSE = 1.0
_NAME_QUEUES = 60.0
_AT_ONCE = 64
_RQ_TIMEOUT = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Promoter(Agent):
    """Asks the promote script what is due, pushes the hints it notes, and sleeps until the next due time less the lead.

    Any number may run: the script counts the hints of a lane in one place.
    """

    name = "promoter"
    wakes = True
    jitter = 0.0

    def __init__(self, door: Door, plan: Plan, *, rq_url: str, lead_us: int) -> None:
        self._door = door
        self._plan = plan
        self._lead_us = lead_us
        self._rq: redis.Redis = connect(rq_url, role="scheduler-rq", timeout=_RQ_TIMEOUT)
        self._rq_url = mask(rq_url)
        self._rq_away_since: float | None = None
        self._rq_pause = _FIRST_PAUSE
        self._unique = uuid.uuid4().hex[:12]
        self._number = 0
        self._checked: dict[str, float] = {}
        self._named: tuple[str, ...] = ()
        self._name_at = 0.0

    def tick(self) -> float:
        """Ring what is due; seconds until the next due time less the lead, 1 at most."""
        self.hold = 0.0
        if self._plan.stale():
            self._plan.refresh()
        try:
            self._name_queues()
            wait = 0.0
            for _ in range(_AT_ONCE):
                wait = self._promote()
                if wait > 0:
                    break
        except _RqAway as away:
            return self._back_off(away)
        self._rq_is_back()
        return wait

    def close(self) -> None:
        """Close the connection to RQ's server."""
        self._rq.close()

    # ---------------------------------------------------------------------------------------------------------- rounds

    def _promote(self) -> float:
        """One call of the script; 0 if another is to follow at once."""
        asks = self._asks()
        promotion = self._door.run(self._door.scripts.promote(asks, lead_us=self._lead_us))
        answered = monotonic()
        self._plan.saw(promotion.now_us)
        self._ring([lane for lane in promotion.lanes if lane.hint], promotion.now_us)
        if promotion.topology != self._plan.topology:
            self._plan.refresh()
            return 0.0
        full = False
        for ask, lane in zip(asks, promotion.lanes, strict=True):
            if lane.out >= ask.room:
                full = True
            elif lane.hint and lane.backlog > lane.out * BATCH:
                return 0.0
        wait = self._until_next(promotion)
        for lane in promotion.lanes:
            wait = min(wait, self._watch(lane, promotion.now_us))
        if full:
            self.hold = FULL_HOLD
            wait = max(wait, FULL_HOLD)
        return max(answered + wait - monotonic(), 0.0001)

    def _asks(self) -> list[LaneAsk]:
        asks: list[LaneAsk] = []
        for lane, kinds in self._plan.lanes.items():
            self._number += 1
            room = max(HINTS_PER_WORKER * self._plan.workers.get(lane, 0), ROOM_MIN)
            asks.append(LaneAsk(lane, room, hint_id(lane, self._unique, self._number), kinds))
        return asks

    def _until_next(self, promotion: Promotion) -> float:
        if promotion.next_due_us is None:
            return LONGEST_WAIT
        return min(LONGEST_WAIT, (promotion.next_due_us - self._lead_us - promotion.now_us) / 1_000_000)

    def _ring(self, lanes: Sequence[LaneHint], now_us: int) -> None:
        if not lanes:
            return
        commands: list[tuple[Any, ...]] = []
        for lane in lanes:
            commands += hint_commands(lane.hint or "", lane.lane, lane.refs, lane.backlog, lane.oldest_due_us, now_us)
        try:
            self._send(commands)
        except _RqAway:
            for lane in lanes:
                self._door.run(self._door.scripts.unhint(lane.lane, (lane.hint or "",)))
            raise

    # ------------------------------------------------------------------------------------------------------ lost hints

    def _watch(self, lane: LaneHint, now_us: int) -> float:
        """Look for old hints in RQ's list; seconds until to look again."""
        if not lane.oldest_hint_us:
            return LONGEST_WAIT
        young = (LOST_US - abs(now_us - lane.oldest_hint_us)) / 1_000_000
        wait = max(young, self._checked.get(lane.lane, 0.0) + _CHECK_PAUSE - monotonic())
        if wait >= 0:
            return min(LONGEST_WAIT, wait + 0.001)
        self._checked[lane.lane] = monotonic()
        noted = self._door.read(("ZRANGE", self._door.keys.hints(lane.lane), 0, -1, "WITHSCORES"))[0]
        old = [noted[i] for i in range(0, len(noted), 2) if abs(now_us - float(noted[i + 1])) > LOST_US]
        queue = queue_key(lane.lane)
        places = self._send([("LPOS", queue, hint) for hint in old])
        lost = [hint.decode() for hint, place in zip(old, places, strict=True) if place is None]
        for i in range(0, len(lost), BATCH):
            self._door.run(self._door.scripts.unhint(lane.lane, lost[i : i + BATCH]))
        if lost:
            LOG.warning("hints lost", extra={"lane": lane.lane, "count": len(lost)})
            self._name_at = 0.0
            self._name_queues()
            return 0.0
        return _CHECK_PAUSE

    # -------------------------------------------------------------------------------------------------------------- RQ

    def _name_queues(self) -> None:
        """Have RQ's tools see our queues, also after somebody emptied their server."""
        lanes = tuple(self._plan.lanes)
        if lanes and (lanes != self._named or monotonic() >= self._name_at):
            self._send([("SADD", QUEUES_KEY, *(queue_key(lane) for lane in lanes))])
            self._named, self._name_at = lanes, monotonic() + _NAME_QUEUES

    def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """One pipeline to RQ's server; all of it may be repeated. Tries once more on a connection that had died."""
        for last in (False, True):
            try:
                with self._rq.pipeline(transaction=False) as pipeline:
                    for command in commands:
                        pipeline.execute_command(*command)
                    return pipeline.execute()
            except (redis.ConnectionError, OSError) as error:
                if last:
                    raise _RqAway(error) from error
            except redis.RedisError as error:
                raise _RqAway(error) from error
        raise AssertionError("unreachable")

    def _back_off(self, away: _RqAway) -> float:
        """What is due stays due; the hints were taken back."""
        if self._rq_away_since is None:
            self._rq_away_since = monotonic()
            LOG.warning("rq is away", extra={"url": self._rq_url, "error": str(away)})
        pause = self._rq_pause
        self._rq_pause = min(pause * 2, _LONGEST_PAUSE)
        self.hold = pause
        return pause

    def _rq_is_back(self) -> None:
        if self._rq_away_since is not None:
            LOG.warning("rq is back", extra={"after_s": round(monotonic() - self._rq_away_since, 1)})
            self._rq_away_since, self._rq_pause = None, _FIRST_PAUSE


class _RqAway(Exception):
    """RQ's server did not do what it was asked."""
