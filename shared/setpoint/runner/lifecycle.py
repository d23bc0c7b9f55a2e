"""Whether a value can be started, configured and stopped, and doing so to any value. `Lifecycle` is `Service`."""

from __future__ import annotations

import inspect
from typing import Protocol, runtime_checkable

from setpoint.runner.errors import CannotBeConfigured, CannotBeStopped
from setpoint.runner.service import Service

__all__ = ["Configurable", "Lifecycle", "Startable", "Stoppable", "configure", "stop"]

Lifecycle = Service
"""The other name of a service: without `retry` it is the plain lifecycle."""


@runtime_checkable
class Startable(Protocol):
    """Has a `start`; `isinstance(value, Startable)` tells."""

    def start(self) -> object:
        """Begin to work."""
        ...


@runtime_checkable
class Configurable(Protocol):
    """Has a `configure`; `isinstance(value, Configurable)` tells."""

    def configure(self, config: bytes, /) -> object:
        """Take a configuration."""
        ...


@runtime_checkable
class Stoppable(Protocol):
    """Has a `stop`; `isinstance(value, Stoppable)` tells."""

    def stop(self) -> object:
        """End."""
        ...


async def configure(value: object, config: bytes) -> None:
    """Configure any value, by a method or a coroutine method. Raises `CannotBeConfigured` if it has none."""
    if not isinstance(value, Configurable):
        raise CannotBeConfigured(f"{type(value).__name__} has no configure()")
    answer = value.configure(config)
    if inspect.isawaitable(answer):
        await answer


async def stop(value: object) -> None:
    """Stop any value, by a method or a coroutine method. Raises `CannotBeStopped` if it has none."""
    if not isinstance(value, Stoppable):
        raise CannotBeStopped(f"{type(value).__name__} has no stop()")
    answer = value.stop()
    if inspect.isawaitable(answer):
        await answer
