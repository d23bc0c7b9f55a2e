"""The Reaper: takes entities back from workers that no longer beat."""

from __future__ import annotations

import logging
from typing import Final

from setpoint.engine.door import Door
from setpoint.engine.scripts import BATCH
from setpoint_scheduler.loop import Agent
from setpoint_scheduler.plan import Plan

__all__ = ["Reaper"]

LOG: Final = logging.getLogger("setpoint.scheduler")

BEATS_PER_LEASE: Final = 6
_AFTER_EXPIRY = 0.010


class Reaper(Agent):
    """Puts expired leases back to due. After a gap in its ticks it gives live workers the time of two beats first."""

    name = "reaper"
    jitter = 0.0

    def __init__(self, door: Door, plan: Plan, *, lease_us: int) -> None:
        self._door = door
        self._plan = plan
        self._lease_us = lease_us
        self._beat_us = lease_us // BEATS_PER_LEASE
        self._held = False

    def tick(self) -> float:
        """Take back what has expired; seconds until the next expiry, a beat at most."""
        reap = self._door.run(
            self._door.scripts.reap(
                self._plan.kinds, gap_us=2 * self._beat_us, wait_us=2 * self._beat_us, lease_us=self._lease_us
            )
        )
        if reap.held != self._held:
            self._held = reap.held
            if reap.held:
                LOG.info("reaper holds off", extra={"why": "no ticks before", "for_ms": 2 * self._beat_us // 1000})
        if reap.refs:
            LOG.warning("reaped", extra={"count": len(reap.refs), "refs": " ".join(reap.refs[:10])})
        if len(reap.refs) >= BATCH:
            return 0.0
        wait = self._beat_us / 1_000_000
        if reap.next_expiry_us is not None:
            wait = min(wait, max(reap.next_expiry_us - reap.now_us, 0) / 1_000_000 + _AFTER_EXPIRY)
        return wait
