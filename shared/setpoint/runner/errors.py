"""What the runner raises beside what tasks raise. All of it stands on the one root in `setpoint.errors`.

::

    SetpointError
    ├── TimedOut
    │   └── AttemptTimedOut (TimeoutError too)   one attempt took longer than its `timeout`
    ├── StrayCancellation                        a task was not cancelled and yet ended as if
    ├── TaskFailed, AbortRetry                   in `next.py`: raised by tasks, unwrapped by us
    ├── Conflict
    │   ├── TagExists                            a task of this tag is alive in the group
    │   ├── AlreadyStarted, AlreadyStopped       the service is so already
    │   ├── NotStarted                           the service was stopped
    │   └── ServiceExists                        the map has a service of this id
    ├── NotFound
    │   └── ServiceNotFound                      the map has none
    ├── WatchLagged                              a watcher was too slow; it says how much it missed
    └── UsageError
        ├── BadConfig                            the parser refused the configuration
        ├── BadId                                no id can be made
        ├── Immutable                            a map of fixed services
        └── CannotBeConfigured, CannotBeStopped  the value has no such method
"""

from __future__ import annotations

from setpoint.errors import Conflict, NotFound, SetpointError, TimedOut, UsageError

__all__ = [
    "AlreadyStarted",
    "AlreadyStopped",
    "AttemptTimedOut",
    "BadConfig",
    "BadId",
    "CannotBeConfigured",
    "CannotBeStopped",
    "Immutable",
    "NotStarted",
    "ServiceExists",
    "ServiceNotFound",
    "StrayCancellation",
    "TagExists",
    "WatchLagged",
]


class AttemptTimedOut(TimedOut, TimeoutError):
    """One attempt took longer than its `timeout`; it was cancelled."""


class StrayCancellation(SetpointError):
    """A task raised `CancelledError` though nobody cancelled it: something it awaited was. A failure like any other."""


class TagExists(Conflict):
    """A task of this tag is alive in the group; a finished one's tag may be used again."""


class AlreadyStarted(Conflict):
    """The service is active."""


class AlreadyStopped(Conflict):
    """The service is not active."""


class NotStarted(Conflict):
    """The service was stopped: start it first, with `start(config)` to give the new configuration along."""


class ServiceExists(Conflict):
    """The map has a service of this id."""


class ServiceNotFound(NotFound):
    """The map has no service of this id."""


class WatchLagged(SetpointError):
    """A watcher fell so far behind that changes were dropped for it. Watch again: it begins with what is now."""

    missed: int
    """Changes that it did not get."""

    def __init__(self, missed: int) -> None:
        super().__init__(f"fell behind and missed {missed} changes; watch again to begin with what is now")
        self.missed = missed


class BadConfig(UsageError):
    """The parser refused the configuration; its error is the cause."""


class BadId(UsageError):
    """No id was given, and none can be made."""


class Immutable(UsageError):
    """This map has fixed services: none can be created or deleted."""


class CannotBeConfigured(UsageError):
    """The value has no `configure`."""


class CannotBeStopped(UsageError):
    """The value has no `stop`."""
