"""Goal states, durable tasks, workflows and processes for fleets, on Redis and RQ.

Everything an application needs is importable from here; whatever is not in `__all__` is private.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from setpoint.backoff import Backoff, Retry
from setpoint.entity import Ref
from setpoint.errors import (
    BadPayload,
    BadRef,
    BadTime,
    ConfigurationError,
    Conflict,
    DuplicateKind,
    EmbeddedServerError,
    NotFound,
    Permanent,
    RedisFull,
    RedisUnavailable,
    SetpointError,
    TimedOut,
    UnknownKind,
    UnknownState,
    UsageError,
)
from setpoint.outcome import Again, Gone
from setpoint.registry import Action, ActionLike, Context, Managed, Observed, action

if TYPE_CHECKING:
    from setpoint.fleet import Fleet as Fleet
    from setpoint.settings import Settings as Settings

__all__ = [
    "Action",
    "ActionLike",
    "Again",
    "Backoff",
    "BadPayload",
    "BadRef",
    "BadTime",
    "ConfigurationError",
    "Conflict",
    "Context",
    "DuplicateKind",
    "EmbeddedServerError",
    "Fleet",
    "Gone",
    "Managed",
    "NotFound",
    "Observed",
    "Permanent",
    "RedisFull",
    "RedisUnavailable",
    "Ref",
    "Retry",
    "SetpointError",
    "Settings",
    "TimedOut",
    "UnknownKind",
    "UnknownState",
    "UsageError",
    "action",
]


def __getattr__(name: str) -> Any:
    # The fleet stands on Redis, whose import takes longer than all the rest; who only declares or reads need not wait.
    if name == "Fleet":
        from setpoint.fleet import Fleet

        return Fleet
    if name == "Settings":
        from setpoint.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
