"""The closed set of outcomes."""

from __future__ import annotations

import pytest

from setpoint.errors import BadTime, Permanent
from setpoint.outcome import (
    MESSAGE_CHARS,
    TRACE_CHARS,
    Again,
    Crashed,
    Failed,
    Gone,
    Later,
    Moved,
    Nothing,
    Outcome,
    Reached,
    TimedOut,
    Vanished,
    Waiting,
    failure,
    from_wire,
    is_gone,
    to_wire,
)

ALL: list[Outcome] = [
    Reached("a", 2),
    Reached(None, 0),
    Nothing("a"),
    Moved("b"),
    Waiting(None),
    Later(100_000, "a"),
    Vanished(),
    Failed("ValueError", "no", "drain", "trace", permanent=True, reset=True),
    TimedOut("drain", 5),
    Crashed("killed by SIGSEGV"),
]


@pytest.mark.parametrize("outcome", ALL, ids=lambda o: type(o).__name__)
def test_every_outcome_survives_the_wire(outcome: Outcome) -> None:
    assert from_wire(to_wire(outcome)) == outcome


@pytest.mark.parametrize("wire", [[], ["x"], ["reached"], ["gone", 1], [["x"]], None, 5])
def test_what_is_no_outcome_is_refused(wire: object) -> None:
    with pytest.raises(ValueError, match="not an outcome"):
        from_wire(wire)  # type: ignore[arg-type]


def test_again_has_a_floor_of_a_tenth_of_a_second() -> None:
    assert Again("5s").after_us == 5_000_000
    assert Again(0).after_us == Again("1ms").after_us == 100_000
    with pytest.raises(BadTime):
        Again(None)  # type: ignore[arg-type]


def test_gone_is_told_by_value_or_by_class() -> None:
    assert is_gone(Gone())
    assert is_gone(Gone)
    assert not is_gone("gone")
    assert not is_gone(None)


def test_a_failure_tells_type_message_place_and_trace() -> None:
    try:
        raise KeyError("host")
    except KeyError as error:
        told = failure(error, "drain", reset=True)
    assert (told.type, told.message, told.where, told.permanent, told.reset) == (
        "KeyError",
        "'host'",
        "drain",
        False,
        True,
    )
    assert "test_outcome.py" in told.trace


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("x")])
def test_an_exception_of_any_kind_is_a_failure(error: BaseException) -> None:
    assert failure(error, "drain").type == type(error).__name__


def test_permanent_and_what_is_never_tried_again_are_final() -> None:
    assert failure(Permanent("no"), "x").permanent
    assert failure(FileNotFoundError("no"), "x", never=(OSError,)).permanent
    assert not failure(ValueError("no"), "x", never=(OSError,)).permanent


def test_an_unreadable_exception_is_told_all_the_same() -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "raised RuntimeError" in failure(Nasty(), "x").message


def test_long_and_broken_texts_can_be_stored() -> None:
    told = failure(ValueError("\ud800" + "x" * 100_000), "x")
    assert len(told.message) == MESSAGE_CHARS
    assert len(told.trace) <= TRACE_CHARS + 8
    assert told.message.encode()
    assert told.trace.encode()
