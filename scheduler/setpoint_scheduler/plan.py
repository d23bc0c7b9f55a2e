"""What the agents of one scheduler know of the fleet: kinds, lanes and live workers; read again when they change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from time import monotonic
from typing import Any, Final

from setpoint.engine.door import Door
from setpoint.registry import Policy

__all__ = ["LOG", "Plan"]

LOG: Final = logging.getLogger("setpoint.scheduler")

_MSGPACK: Final[Any] = import_module("msgpack")  # it ships no types

READ_AGAIN: Final = 30.0
"""Seconds after which the plan is read again in any case: a worker that died says nothing."""

STEP_US: Final = 1_000_000
"""Redis' clock has stepped if it differs by so much from what our monotonic clock says has passed."""


class Plan:
    """Shared by the agents of one scheduler, all on one thread. The Promoter keeps it fresh."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.topology = -1
        self.policies: dict[str, Policy] = {}
        self.lanes: dict[str, tuple[str, ...]] = {}
        """Lane -> its kinds. Kinds that nobody published are in none, and so not promoted."""
        self.workers: dict[str, int] = {}
        """Lane -> how many live workers serve it."""
        self.dead: dict[str, int] = {}
        """Workers that count as dead -> since when."""
        self.steps_back = 0
        """How often Redis' clock stepped back while we looked."""
        self._read_at = 0.0
        self._seen: tuple[int, float] | None = None
        self._unreadable: set[str] = set()

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds that were ever published."""
        return tuple(self.policies)

    def stale(self) -> bool:
        """Whether to read it again for its age."""
        return self.topology < 0 or monotonic() - self._read_at > READ_AGAIN

    def refresh(self) -> None:
        """Read it again."""
        keys = self._door.keys
        found = self._door.read(
            # First, so that a change in between is noticed at the next promotion.
            ("HMGET", keys.meta, "topology", "skew"),
            ("TIME",),
            ("HGETALL", keys.kinds),
            ("ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
            ("HGETALL", keys.worker),
        )
        (topology, skew), (seconds, micros), kinds, workers, infos = found
        now = int(seconds) * 1_000_000 + int(micros) + int(skew or 0)
        self.policies = self._policies(kinds)
        lanes: dict[str, list[str]] = {}
        for kind, policy in sorted(self.policies.items()):
            lanes.setdefault(policy.lane, []).append(kind)
        self.lanes = {lane: tuple(names) for lane, names in lanes.items()}
        expiry = {workers[i]: int(float(workers[i + 1])) for i in range(0, len(workers), 2)}
        self.dead = {name.decode(errors="replace"): at for name, at in expiry.items() if at <= now}
        self.workers = {}
        for name, at in expiry.items():
            if at > now:
                for lane in _lanes_of(infos.get(name)):
                    self.workers[lane] = self.workers.get(lane, 0) + 1
        self.topology = int(topology or 0)
        self._read_at = monotonic()

    def saw(self, now_us: int) -> None:
        """Told of Redis' time at each promotion, to notice when it steps back."""
        at = monotonic()
        if self._seen is not None:
            step = now_us - self._seen[0] - int((at - self._seen[1]) * 1_000_000)
            if step < -STEP_US:
                self.steps_back += 1
                LOG.warning("clock stepped back", extra={"by_ms": -step // 1000})
        self._seen = (now_us, at)

    def _policies(self, kinds: Mapping[bytes, bytes]) -> dict[str, Policy]:
        policies: dict[str, Policy] = {}
        for name, value in kinds.items():
            kind = name.decode(errors="replace")
            try:
                policies[kind] = Policy.unpack(value.partition(b"|")[2])
            except ValueError as error:
                if kind not in self._unreadable:
                    LOG.warning("policy unreadable", extra={"kind": kind, "error": str(error)})
                    self._unreadable.add(kind)
            else:
                self._unreadable.discard(kind)
        return policies


def _lanes_of(info: bytes | None) -> tuple[str, ...]:
    """What a worker says it serves; nothing if it says nothing that can be read."""
    if info is None:
        return ()
    try:
        found: dict[str, Any] = _MSGPACK.unpackb(info)
        lanes: list[Any] = found["lanes"]
        return tuple({str(lane) for lane in lanes})
    except (ValueError, TypeError, KeyError, _MSGPACK.UnpackException):
        return ()
