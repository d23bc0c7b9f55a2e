"""The scheduler process: agents that promote, reap, audit, tidy and keep the calendar; no application code here."""

from __future__ import annotations

import threading

from setpoint.settings import Settings

__all__ = ["run"]


def run(settings: Settings, *, stop: threading.Event | None = None) -> None:
    """Run a scheduler on this thread until `stop` is set or, on the main thread, until SIGTERM or SIGINT.

    Any number may run at once. A Redis that is away is waited for. Raises `ConfigurationError` for settings that cannot
    be used.
    """
    from setpoint_scheduler.process import run as run_process

    run_process(settings, stop)
