"""What the engine stores about an entity in trouble, as values. Packs and unpacks, decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

__all__ = ["ErrorText", "Reason", "Trouble"]

Reason = Literal["-", "failed", "poison", "paused"]


@dataclass(frozen=True, slots=True)
class ErrorText:
    """The last error of an entity, as text only: nothing of it is ever resolved to code."""

    type: str
    message: str
    where: str
    """The action's name, or `state`, `goal_state`, `actions`, `child`."""
    at_us: int
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """How an entity has been failing. Scripts read the numbers; the error is opaque to them."""

    failures: int = 0
    """Failed evaluations in a row."""
    crashes: int = 0
    """Times a child died while it ran this ref alone, within 24 h of `first_crash_us`."""
    first_crash_us: int = 0
    delay_us: int = 0
    """The last backoff delay."""
    waits: int = 0
    """Evaluations in a row that went well and did not reach the goal."""
    suspect: int = 0
    """Above 0: was running when a child or worker died; runs alone next. Counts such deaths."""
    reason: Reason = "-"
    """Why it is parked."""
    error: ErrorText | None = None

    def pack(self) -> bytes:
        """As stored: `failures crashes first_crash delay waits suspect reason|error`."""
        head = (
            f"{self.failures} {self.crashes} {self.first_crash_us} {self.delay_us} {self.waits} {self.suspect}"
            f" {self.reason}|"
        )
        if self.error is None:
            return head.encode()
        error = self.error
        packed: bytes = _msgpack().packb([error.type, error.message, error.where, error.at_us, error.trace])
        return head.encode() + packed

    @classmethod
    def unpack(cls, stored: bytes) -> Trouble:
        """Read what `pack` wrote; empty is no trouble. An error that cannot be read is dropped, the numbers count."""
        if not stored:
            return NO_TROUBLE
        head, _, blob = stored.partition(b"|")
        failures, crashes, first, delay, waits, suspect, reason = head.decode().split(" ")
        return cls(
            int(failures), int(crashes), int(first), int(delay), int(waits), int(suspect), _reason(reason), _error(blob)
        )


def _reason(text: str) -> Reason:
    match text:
        case "failed" | "poison" | "paused":
            return text
        case _:
            return "-"


def _error(blob: bytes) -> ErrorText | None:
    if not blob:
        return None
    msgpack = _msgpack()
    try:
        type_, message, where, at_us, trace = msgpack.unpackb(blob)
        return ErrorText(str(type_), str(message), str(where), int(at_us), str(trace))
    except (ValueError, TypeError, msgpack.UnpackException):
        return None


def _msgpack() -> Any:
    """Imported late, so that `import setpoint` stays quick; untyped, for it ships no types."""
    return import_module("msgpack")


NO_TROUBLE = Trouble()
