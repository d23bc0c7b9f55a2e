"""Logs: one line a happening on stdout, as JSON for machines or as text for people.

A line is written by the standard library's logging; what it is about travels in `extra`, under the names of `FIELDS`::

    log.info("drained", extra={"event": "entity.reached", "entity": "host/web-7", "took_ms": 812})

or, for all lines of a stretch of code, those of the application included::

    with logs.bound(entity="host/web-7", action="drain"):
        ...

Arguments and results of user code are never logged by us, and passwords in URLs are masked in every line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from setpoint.errors import ConfigurationError

__all__ = ["FIELDS", "LEVELS", "Format", "bound", "configure", "masked"]

Format = Literal["auto", "text", "json"]
"""`auto` is text on a terminal and JSON elsewhere."""

FIELDS: Final = (
    "entity",
    "kind",
    "goal",
    "state",
    "action",
    "try",
    "due",
    "took_ms",
    "task",
    "workflow",
    "step",
    "process",
    "owner",
    "worker",
    "queue",
    "lane",
    "job_id",
    "trace_id",
    "err",
    "err_type",
)
"""Keys that a line may carry after `ts`, `level`, `event` and `msg`, in this order; others follow by name."""

LEVELS: Final = ("debug", "info", "warning", "error", "critical")

_LONGEST = 8_192
"""Characters kept of one value: a line must not become a payload."""

_bound: ContextVar[Mapping[str, object]] = ContextVar("setpoint_log_fields", default={})  # noqa: B039  never changed

# What every LogRecord has; all else in it came by `extra`.
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "event"}

# Up to the last @ of the word: a password may hold an unescaped @, : or /.
_PASSWORD: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s:/@?#\"']*:)[^\s\"']*@")
_OPTION: Final = re.compile(r"(?i)([?&](?:[a-z_]*password|[a-z_]*token|[a-z_]*secret)=)[^&#\s\"']*")
# What would end a line or steer a terminal.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@contextmanager
def bound(**fields: object) -> Generator[None, None, None]:
    """Have every line written in this block (and in its tasks) carry these fields."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def masked(text: str) -> str:
    """The text with the passwords of its URLs replaced by `***`."""
    if "://" in text:
        text = _PASSWORD.sub(r"\1***@", text)
        text = _OPTION.sub(r"\1***", text)
    return text


def configure(format: Format = "auto", level: str = "info", *, stream: TextIO | None = None) -> logging.Handler:  # noqa: A002
    """Send all logs of this process to stdout (or `stream`) in one format; calling it again replaces the first.

    Raises `ConfigurationError` for a format or level that does not exist.
    """
    out = sys.stdout if stream is None else stream
    if level.lower() not in LEVELS:
        raise ConfigurationError(f"no such log level: {level!r}; there are {', '.join(LEVELS)}")
    if format not in {"auto", "text", "json"}:
        raise ConfigurationError(f"no such log format: {format!r}; there are auto, text and json")
    text = format == "text" or (format == "auto" and out.isatty())
    handler = _Handler(out)
    handler.setFormatter(_Text() if text else _Json())
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    return handler


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, to be known again. The fields bound where the line was written are put on it here."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.addFilter(_bind)


def _bind(record: logging.LogRecord) -> bool:
    for name, value in _bound.get().items():
        if name not in _OWN and name not in vars(record):
            setattr(record, name, value)
    return True


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """What a line says, in the order of its keys."""
    given = {name: value for name, value in vars(record).items() if name not in _OWN and value is not None}
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        given.setdefault("err", str(error))
        given.setdefault("err_type", type(error).__qualname__)
    facts: dict[str, Any] = {
        "ts": _instant(record.created),
        "level": record.levelname.lower(),
        "event": str(getattr(record, "event", None) or f"log.{record.name}"),
        "msg": _plain(_message(record)),
    }
    for name in (*FIELDS, *sorted(given.keys() - set(FIELDS))):
        if name in given and name not in facts:
            facts[name] = _plain(given[name])
    return facts


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # arguments that do not fit must not cost the line
        return str(record.msg)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = masked(value if isinstance(value, str) else str(value))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        facts = _facts(record)
        if record.exc_info:
            facts["trace"] = _plain(self.formatException(record.exc_info))
        return json.dumps(facts)


class _Text(logging.Formatter):
    """One line, then the traceback if there is one, indented."""

    def format(self, record: logging.LogRecord) -> str:
        facts = _facts(record)
        shown = dict(facts)
        when, level, event, message = (str(shown.pop(name)) for name in ("ts", "level", "event", "msg"))
        parts = [when, f"{level.upper():<8}", event, message, *(f"{name}={_word(v)}" for name, v in shown.items())]
        line = _CONTROL.sub(_escape, " ".join(parts))
        if record.exc_info:
            trace = masked(self.formatException(record.exc_info))
            line += "".join("\n    " + _CONTROL.sub(_escape, each) for each in trace.splitlines())
        return line


def _word(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r'[\s"=]', text) else text


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
