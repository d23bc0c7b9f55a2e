"""The Auditor: walks everything there is, slowly, and repairs what breaks the invariants."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from setpoint.engine.door import Door
from setpoint.engine.scripts import BATCH, Audit
from setpoint.entity import kind_of
from setpoint_scheduler.loop import Agent
from setpoint_scheduler.plan import Plan

__all__ = ["Auditor"]

LOG: Final = logging.getLogger("setpoint.scheduler")

PAGE: Final = 10.0
"""Seconds between two pages."""
REST: Final = 60.0
"""Seconds between two passes."""
_HURRY = 0.02
_LEASES_EVERY = 20


class Auditor(Agent):
    """Looks at one page of one set a tick. Leases come first and often, and at once after the clock stepped back:
    a lease far ahead keeps an entity from being taken over."""

    name = "auditor"

    def __init__(self, door: Door, plan: Plan, *, lease_us: int, page: float = PAGE, rest: float = REST) -> None:
        self._door = door
        self._plan = plan
        self._lease_us = lease_us
        self._page, self._rest = page, rest
        self._walk: Iterator[list[str]] | None = None
        self._waiting: deque[tuple[str, list[str]]] = deque()
        self._steps_back = 0
        self._hurry = False
        self.repaired = 0
        """Repairs so far."""

    def tick(self) -> float:
        """Check a page; seconds until the next."""
        if self._plan.steps_back != self._steps_back:
            self._steps_back = self._plan.steps_back
            self._walk, self._hurry = self._leases(), True
        if not self._waiting:
            self._turn_page()
        if self._waiting:
            kind, refs = self._waiting.popleft()
            self._report(kind, self._door.run(self._door.scripts.audit(kind, refs, lease_us=self._lease_us)))
        if self._waiting or self._hurry:
            return _HURRY
        return self._rest if self._walk is None else self._page

    def _turn_page(self) -> None:
        if self._walk is None:
            self._walk = self._everything()
        refs = next(self._walk, None)
        if refs is None:
            self._walk, self._hurry = None, False
            return
        by_kind: dict[str, list[str]] = {}
        for ref in refs:
            by_kind.setdefault(kind_of(ref), []).append(ref)
        for kind, some in by_kind.items():
            self._waiting.extend((kind, some[i : i + BATCH]) for i in range(0, len(some), BATCH))

    def _everything(self) -> Iterator[list[str]]:
        keys = self._door.keys
        yield from self._leases()
        pages = 0
        for kind in self._plan.kinds:
            for key in (keys.due(kind), keys.parked(kind), keys.idle(kind)):
                for page in self._members("ZSCAN", key):
                    yield page
                    pages += 1
                    if pages % _LEASES_EVERY == 0:
                        yield from self._leases()

    def _leases(self) -> Iterator[list[str]]:
        """Leases and holders, which should be the same refs."""
        for kind in self._plan.kinds:
            yield from self._members("ZSCAN", self._door.keys.lease(kind))
        yield from self._members("HSCAN", self._door.keys.holder)

    def _members(self, scan: str, key: str) -> Iterator[list[str]]:
        cursor = 0
        while True:
            ((cursor, found),) = self._door.read((scan, key, cursor, "COUNT", BATCH))
            names: Sequence[bytes] = list(found) if scan == "HSCAN" else [member for member, _ in found]
            yield [ref for ref in (name.decode(errors="replace") for name in names) if "�" not in ref]
            if not int(cursor):
                return

    def _report(self, kind: str, audit: Audit) -> None:
        if audit.cut:
            LOG.warning("clock step", extra={"kind": kind, "leases_cut": audit.cut})
        if audit.doubled or audit.unheld or audit.orphans:
            LOG.error(
                "repaired",
                extra={"kind": kind, "doubled": audit.doubled, "unheld": audit.unheld, "orphans": audit.orphans},
            )
        self.repaired += audit.doubled + audit.unheld + audit.orphans + audit.cut
