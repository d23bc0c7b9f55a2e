"""Everything setpoint raises, in one tree. A message says what is wrong and what to do about it.

::

    SetpointError
    ├── UsageError (ValueError)        the caller's arguments cannot be meant
    │   ├── BadRef                     not a `kind/id`
    │   ├── BadTime (TypeError too)    not a time or duration
    │   ├── BadPayload                 cannot be stored: too large, or of a type with no wire form
    │   ├── UnknownKind                no such kind in this fleet
    │   ├── UnknownState               a state or goal that the kind does not have
    │   └── DuplicateKind              declared twice
    ├── ConfigurationError             settings, URLs, applications that do not import
    ├── NotFound                       no such entity
    ├── Conflict                       it changed meanwhile
    ├── TimedOut                       waited long enough
    ├── RedisUnavailable               Redis did not answer, or not in time
    │   └── RedisFull                  Redis refuses writes for want of memory
    ├── EmbeddedServerError            the Valkey we start ourselves does not start
    └── Permanent                      raised by actions: never try this again

`Permanent` is the only one meant for applications to raise.
"""

from __future__ import annotations

__all__ = [
    "BadPayload",
    "BadRef",
    "BadTime",
    "ConfigurationError",
    "Conflict",
    "DuplicateKind",
    "EmbeddedServerError",
    "NotFound",
    "Permanent",
    "RedisFull",
    "RedisUnavailable",
    "SetpointError",
    "TimedOut",
    "UnknownKind",
    "UnknownState",
    "UsageError",
]


class SetpointError(Exception):
    """Root of all errors of setpoint."""


class UsageError(SetpointError, ValueError):
    """The arguments cannot be meant; nothing was written."""


class BadRef(UsageError):
    """Not a ref: `kind/id`, the id 1 or more characters, 512 bytes in all, no control characters."""


class BadTime(UsageError, TypeError):
    """Not a time: give an aware datetime, a duration such as "90s", a timedelta or a number of seconds."""


class BadPayload(UsageError):
    """Cannot be stored: larger than the limit, or of a type that has no form on the wire."""


class UnknownKind(UsageError):
    """No such kind is declared here or known to any worker."""


class UnknownState(UsageError):
    """The kind has no such state."""


class DuplicateKind(UsageError):
    """This kind is declared already; a kind has one declaration in a fleet."""


class ConfigurationError(SetpointError):
    """A setting, URL or application that cannot be used."""


class NotFound(SetpointError):
    """No such entity."""


class Conflict(SetpointError):
    """It changed meanwhile: read it again and decide again."""


class TimedOut(SetpointError):
    """What was waited for did not come in time."""


class RedisUnavailable(SetpointError):
    """Redis did not answer; whether the call took effect is told in the message."""


class RedisFull(RedisUnavailable):
    """Redis refuses writes for want of memory; nothing was written."""


class EmbeddedServerError(SetpointError):
    """The Valkey that setpoint starts by itself does not start."""


class Permanent(SetpointError):
    """Raised by an action: never try this again. The entity is parked as failed."""
