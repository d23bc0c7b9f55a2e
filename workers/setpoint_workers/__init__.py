"""Workers: claim what is due, have a child process run it, settle the outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from setpoint.settings import Settings

__all__ = ["run"]


def run(
    settings: Settings,
    app: str,
    *,
    lanes: tuple[str, ...] = (),
    slots: int = 4,
    isolation: Literal["process", "none"] = "process",
    max_items: int = 0,
    max_memory: int = 0,
) -> int:
    """Run one worker until it is told to stop; the exit code. `max_memory` in bytes, 0 is no limit for both."""
    import logging
    import traceback

    from setpoint import logs
    from setpoint_workers.worker import EXIT_UNFIT, FleetWorker, Options

    logger = logging.getLogger("setpoint")
    logs.configure(settings.log_format, settings.log_level)
    registry = None
    if isolation == "none":
        from setpoint_workers.child import load

        try:
            registry = load(app)
        except Exception:  # noqa: BLE001 - whatever an application raises on import
            logger.error("the application %s does not import:\n%s", app, traceback.format_exc())  # noqa: TRY400
            return EXIT_UNFIT
    options = Options(app, lanes, slots, isolation, settings.grace_us / 1e6, max_items, max_memory)
    worker = FleetWorker(settings, options, registry=registry)
    worker.work()
    return worker.exit_code
