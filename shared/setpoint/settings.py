"""What is set per process and not per call. `Settings.from_env` is the only reader of the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, cast

from setpoint.clock import Duration, parse_duration
from setpoint.engine.keys import Keys
from setpoint.errors import ConfigurationError, UsageError

__all__ = ["Settings"]

PREFIX: Final = "SETPOINT_"
LEASE_MIN_US: Final = 2_000_000
PAYLOAD_MAX: Final = 1 << 20

LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one process, checked when made: `ConfigurationError` names the one that cannot be used.

    Durations are given as `"30s"`, timedeltas or seconds, and read as microseconds from the fields that end in `_us`.
    """

    redis_url: str = field(default="", repr=False)
    """Where the truth is kept (`SETPOINT_REDIS_URL`, or `REDIS_URL`). Empty: none is configured. It may hold a
    password, so it is not shown."""
    rq_url: str = field(default="", repr=False)
    """Where RQ keeps its hints (`SETPOINT_RQ_URL`). Empty: in `redis_url` too."""
    namespace: str = "setpoint"
    """Several fleets share one Redis under different namespaces (`SETPOINT_NAMESPACE`)."""
    app: str = ""
    """The application of workers, `module:fleet` (`SETPOINT_APP`)."""
    lease: Duration = "30s"
    """An entity is ours for so long after the last beat (`SETPOINT_LEASE`); 2 s at least. Longer forgives longer
    pauses, shorter takes over sooner from workers that died."""
    lead: Duration = "3ms"
    """Work is handed out so long before it is due, and started when it is (`SETPOINT_LEAD`); 1 s at most."""
    grace: Duration = "30s"
    """Running evaluations may take so long to end after SIGTERM (`SETPOINT_GRACE`)."""
    payload_limit: int = 65_536
    """Largest packed data or arguments, bytes (`SETPOINT_PAYLOAD_LIMIT`); 1 MiB at most: Redis is no file store."""
    log_format: LogFormat = "auto"
    """`text`, `json`, or `auto`: text on a terminal, else JSON (`SETPOINT_LOG_FORMAT`)."""
    log_level: LogLevel = "info"
    """`debug`, `info`, `warning` or `error` (`SETPOINT_LOG_LEVEL`)."""
    lease_us: int = field(init=False, repr=False)
    lead_us: int = field(init=False, repr=False)
    grace_us: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("lease", "lead", "grace"):
            put(self, f"{name}_us", _duration(name, getattr(self, name)))
        if self.lease_us < LEASE_MIN_US:
            raise ConfigurationError(f"{PREFIX}LEASE is 2s at least, not {self.lease!r}")
        if self.lead_us > 1_000_000:
            raise ConfigurationError(f"{PREFIX}LEAD is 1s at most, not {self.lead!r}")
        limit: Any = self.payload_limit  # from the environment it may be anything
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= PAYLOAD_MAX:
            raise ConfigurationError(f"{PREFIX}PAYLOAD_LIMIT is a number of bytes up to {PAYLOAD_MAX}, not {limit!r}")
        _choice("LOG_FORMAT", self.log_format, ("auto", "text", "json"))
        _choice("LOG_LEVEL", self.log_level, ("debug", "info", "warning", "error"))
        try:
            Keys(self.namespace)
        except ValueError as error:
            raise ConfigurationError(f"{PREFIX}NAMESPACE: {error}") from error

    @property
    def hints_url(self) -> str:
        """Where RQ keeps its hints: `rq_url`, or `redis_url` if that is empty."""
        return self.rq_url or self.redis_url

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
        """Read `SETPOINT_…` from `environ` (the process's own if None); what is `given` goes before.

        Empty variables count as unset. Raises `ConfigurationError`.
        """
        env = os.environ if environ is None else environ
        found: dict[str, Any] = {}
        for each in fields(cls):
            text = env.get(PREFIX + each.name.upper(), "").strip()
            if each.init and text:
                found[each.name] = _read(each.name, text)
        fallback = env.get("REDIS_URL", "").strip()
        if "redis_url" not in found and fallback:
            found["redis_url"] = fallback
        unknown = given.keys() - {each.name for each in fields(cls) if each.init}
        if unknown:
            raise ConfigurationError(f"no such setting: {', '.join(sorted(unknown))}")
        return cls(**(found | {name: value for name, value in given.items() if value is not None}))


def _read(name: str, text: str) -> object:
    if name == "payload_limit":
        return int(text) if text.isdecimal() and len(text) < 10 else text
    return text.lower() if name in {"log_format", "log_level"} else text


def _duration(name: str, value: object) -> int:
    try:
        return parse_duration(value)
    except UsageError as error:
        raise ConfigurationError(f"{PREFIX}{name.upper()}: {error}") from error


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{PREFIX}{name} is one of {', '.join(choices)}, not {cast('object', value)!r}")
