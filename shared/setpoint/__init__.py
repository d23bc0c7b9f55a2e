"""Goal states, durable tasks, workflows and processes for fleets, on Redis and RQ.

Everything an application needs is importable from here; whatever is not in `__all__` is private.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

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

if TYPE_CHECKING:
    from setpoint.backoff import Backoff as Backoff
    from setpoint.backoff import Retry as Retry
    from setpoint.entity import Ref as Ref
    from setpoint.fleet import Fleet as Fleet
    from setpoint.outcome import Again as Again
    from setpoint.outcome import Gone as Gone
    from setpoint.registry import Action as Action
    from setpoint.registry import ActionLike as ActionLike
    from setpoint.registry import Context as Context
    from setpoint.registry import Managed as Managed
    from setpoint.registry import Observed as Observed
    from setpoint.registry import action as action
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


#: Imported when first asked for: who only declares kinds needs no Redis, and `setpoint --help` needs neither.
_LATER: Final = {
    "Action": "registry",
    "ActionLike": "registry",
    "Again": "outcome",
    "Backoff": "backoff",
    "Context": "registry",
    "Fleet": "fleet",
    "Gone": "outcome",
    "Managed": "registry",
    "Observed": "registry",
    "Ref": "entity",
    "Retry": "backoff",
    "Settings": "settings",
    "action": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
