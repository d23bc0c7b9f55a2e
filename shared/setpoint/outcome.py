"""How one evaluation can end: a closed set of values. What follows from each is decided in `judge.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeGuard, assert_never

from setpoint.clock import Duration, parse_duration
from setpoint.errors import Permanent

__all__ = [
    "Again",
    "Crashed",
    "Failed",
    "Gone",
    "Later",
    "Moved",
    "Nothing",
    "Outcome",
    "Reached",
    "TimedOut",
    "Vanished",
    "Waiting",
    "failure",
    "from_wire",
    "is_gone",
    "to_wire",
]

AGAIN_FLOOR_US: Final = 100_000
"""No entity asks to be looked at more often than every 0.1 s, or a slip of units would be a hot loop."""

MESSAGE_CHARS: Final = 4_096
TRACE_CHARS: Final = 16_384


# -------------------------------------------------------------------------------------------- what applications return


@dataclass(frozen=True, slots=True, init=False)
class Again:
    """Returned by an action: not there yet, look again after this long. It is not a failure.

    `after` is a duration; anything below 0.1 s counts as 0.1 s. Raises `BadTime` if it is none.
    """

    after_us: int

    def __init__(self, after: Duration) -> None:
        object.__setattr__(self, "after_us", max(parse_duration(after), AGAIN_FLOOR_US))


@dataclass(frozen=True, slots=True)
class Gone:
    """Returned by `state()`: it exists no more, forget it. `return Gone()`."""


def is_gone(value: object) -> TypeGuard[Gone]:
    """Whether a hook said `Gone()`; the bare class counts too, a slip whose meaning is plain."""
    return value is Gone or isinstance(value, Gone)


# ------------------------------------------------------------------------------------------------- how evaluations end


@dataclass(frozen=True, slots=True)
class Reached:
    """The goal is reached."""

    state: str | None
    """The state it is in; None if it has none."""
    ran: int
    """Actions that ran for it in this evaluation; 1 at least for a managed entity that had no state stored yet."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """The goal is not reached and the list for it is empty: nothing to do."""

    state: str | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """All went well and the state is another, but not yet the goal."""

    state: str | None = None
    """The state it is in now."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """All went well and the state is what it was, and not the goal."""

    state: str | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """An action returned `Again`."""

    after_us: int
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Vanished:
    """`state()` returned `Gone`."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Something was raised. All of it is text: nothing is ever resolved back to code."""

    type: str
    """Name of the exception's class, with its module unless that is builtins."""
    message: str
    where: str
    """The action's name, or the hook that raised: `state`, `goal_state`, `actions`, `reached`, `child`."""
    trace: str = ""
    permanent: bool = False
    """Raised `Permanent`, or one of the exceptions that the kind never tries again."""
    reset: bool = False
    """An action before it had succeeded."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """It took longer than the kind or action allows."""

    where: str
    """What was running, as in `Failed`."""
    after_us: int
    """How long that was."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process died while it ran this alone."""

    how: str
    """In words, such as `killed by SIGSEGV`."""


Outcome: TypeAlias = Reached | Nothing | Moved | Waiting | Later | Vanished | Failed | TimedOut | Crashed


def failure(
    error: BaseException, where: str, *, never: tuple[type[BaseException], ...] = (), reset: bool = False
) -> Failed:
    """What an exception means, as text that is safe to store: clipped, and readable even if the exception is not."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    permanent = isinstance(error, (Permanent, *never))
    return Failed(clean(name, 256), clean(_message(error), MESSAGE_CHARS), where, _trace(error), permanent, reset)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:  # noqa: BLE001  # an application's __str__ may raise anything
        return f"<str() of it raised {type(broken).__name__}>"


def _trace(error: BaseException) -> str:
    import traceback  # only failures pay for it

    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as broken:  # noqa: BLE001  # as above
        return f"<no trace: {type(broken).__name__}>"
    if len(text) > TRACE_CHARS:  # both ends tell: where it began, and what was raised
        text = text[: TRACE_CHARS // 4] + "\n…\n" + text[-TRACE_CHARS * 3 // 4 :]
    return clean(text, TRACE_CHARS + 8)


def clean(text: str, limit: int) -> str:
    """Text that can be stored: no lone surrogates, `limit` characters at most."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


# --------------------------------------------------------------------------------------------------------------- wire


def to_wire(outcome: Outcome) -> list[Any]:
    """As plain values for a pipe between processes; the first is the outcome's name."""
    match outcome:
        case Reached(state, ran):
            return ["reached", state, ran]
        case Nothing(state):
            return ["nothing", state]
        case Moved(state):
            return ["moved", state]
        case Waiting(state):
            return ["waiting", state]
        case Later(after_us, state):
            return ["later", after_us, state]
        case Vanished():
            return ["gone"]
        case Failed(type_, message, where, trace, permanent, reset):
            return ["failed", type_, message, where, trace, permanent, reset]
        case TimedOut(where, after_us):
            return ["timed_out", where, after_us]
        case Crashed(how):
            return ["crashed", how]
        case _:
            assert_never(outcome)


_BY_NAME: Final[dict[str, type[Any]]] = {
    "reached": Reached,
    "nothing": Nothing,
    "moved": Moved,
    "waiting": Waiting,
    "later": Later,
    "gone": Vanished,
    "failed": Failed,
    "timed_out": TimedOut,
    "crashed": Crashed,
}


def from_wire(wire: Sequence[Any]) -> Outcome:
    """What `to_wire` gave. Raises `ValueError` for anything else."""
    try:
        name, *fields = wire
        made: Outcome = _BY_NAME[name](*fields)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"not an outcome: {str(wire)[:200]}") from error
    return made
