"""A scheduler process, put together from settings; how it is stopped."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from setpoint.engine.connect import mask
from setpoint.engine.door import Door
from setpoint.errors import ConfigurationError
from setpoint.settings import Settings
from setpoint_scheduler.auditor import Auditor
from setpoint_scheduler.janitor import Janitor
from setpoint_scheduler.loop import Agent, Loop, Wake
from setpoint_scheduler.plan import Plan
from setpoint_scheduler.promoter import Promoter
from setpoint_scheduler.reaper import Reaper

__all__ = ["PATIENCE", "agents_for", "run"]

LOG: Final = logging.getLogger("setpoint.scheduler")

PATIENCE: Final = 0.5
"""Seconds a call is replayed: enough for a connection that had died; the loop does the waiting for longer outages."""


def agents_for(door: Door, plan: Plan, settings: Settings) -> list[Agent]:
    """The agents of one scheduler. The Promoter is first: it keeps the plan fresh for the others."""
    return [
        Promoter(door, plan, rq_url=settings.hints_url, lead_us=settings.lead_us),
        Reaper(door, plan, lease_us=settings.lease_us),
        Auditor(door, plan, lease_us=settings.lease_us),
        Janitor(door, plan),
    ]


def run(settings: Settings, stop: threading.Event | None = None) -> None:
    """See `setpoint_scheduler.run`."""
    if not settings.redis_url:
        raise ConfigurationError("no Redis is configured: set SETPOINT_REDIS_URL or give --redis-url")
    with Door(settings.redis_url, settings.namespace, role="scheduler", patience=PATIENCE) as door:
        loop = Loop(agents_for(door, Plan(door), settings), Wake(settings.redis_url, door.keys.wake))
        if stop is not None:
            _stop_with(loop, stop)
        facts = {"redis": mask(settings.redis_url), "namespace": settings.namespace}
        LOG.info("scheduler starts", extra=facts)
        with _signals(loop):
            loop.run()
        LOG.info("scheduler ends", extra=facts)


def _stop_with(loop: Loop, stop: threading.Event) -> None:
    def watch() -> None:
        stop.wait()
        loop.stop()

    threading.Thread(target=watch, name="scheduler-stop", daemon=True).start()


@contextmanager
def _signals(loop: Loop) -> Generator[None, None, None]:
    """SIGTERM and SIGINT end the loop after the tick under way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        loop.stop()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
