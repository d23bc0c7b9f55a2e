"""What a service looks like from outside, in one word; and where it is shown."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Protocol

__all__ = ["Status", "SystemCheck", "update_system_check"]


class Status(StrEnum):
    """One word for a service's state."""

    INACTIVE = "inactive"
    """Stopped, or not started yet."""
    LOADING = "loading"
    """Its configuration is being applied, or waits to be tried again."""
    ACTIVE = "active"
    """Started; what configuration it has is applied."""
    ERROR = "error"
    """It is not active because something failed; `ServiceState.err` says what."""


class SystemCheck(Protocol):
    """Something that shows whether a part of the system runs."""

    def mark_running(self) -> None:
        """It runs."""
        ...

    def mark_failed(self, error: BaseException) -> None:
        """It does not."""
        ...


def update_system_check(check: SystemCheck | None, error: BaseException | None) -> None:
    """Show the outcome of some work: None is running. Cancellations and timeouts say nothing; no check is fine."""
    if check is None or isinstance(error, asyncio.CancelledError | TimeoutError):
        return
    if error is None:
        check.mark_running()
    else:
        check.mark_failed(error)
