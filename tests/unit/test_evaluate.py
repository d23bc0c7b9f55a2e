"""One evaluation, without a child: every way it can end."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from setpoint.backoff import Retry
from setpoint.errors import Permanent
from setpoint.outcome import (
    MESSAGE_CHARS,
    TRACE_CHARS,
    Again,
    Failed,
    Gone,
    Later,
    Moved,
    Nothing,
    Outcome,
    Reached,
    Vanished,
    Waiting,
)
from setpoint.registry import Managed, Observed, Registry, action
from setpoint.serializer import pack, pack_labels
from setpoint_workers.evaluate import Work, evaluation, run_plain

Gate = Literal["closed", "open", "stuck"]


def no_await(call: Any) -> Any:
    return asyncio.run(call[0](*call[1]))


def run(cls: type[Any], record: list[Any] | None = None, **options: Any) -> tuple[Outcome, Work, list[Any]]:
    sent: list[Any] = []
    work = Work(1, 0, "thing/a/b", 7, 0.0, 2, 1_000_000, None, record, sent.append)
    work.kind = Registry().declare(cls, "thing", **options)
    return run_plain(evaluation(work), no_await), work, sent


def observed(*values: Any, goal: Any = "up", actions: Any = (), reached: Any = None) -> type[Any]:
    states = iter(values)

    def say(value: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    class Thing(Observed[str]):
        def state(self) -> Any:
            return say(next(states))

        def goal_state(self) -> Any:
            return say(goal)

        def actions(self, state: str, goal: str) -> Any:
            return say(list(actions) if isinstance(actions, tuple) else actions)

        def reached(self, state: str, goal: str) -> Any:
            return state == goal if reached is None else say(reached)

    return Thing


def fails(error: BaseException) -> Any:
    def broken() -> None:
        raise error

    return broken


def ok() -> None:
    pass


@pytest.mark.parametrize(
    ("cls", "outcome"),
    [
        (observed("up"), Reached("up", 0)),
        (observed("down"), Nothing("down")),
        (observed("down", "up", actions=(ok,)), Reached("up", 1)),
        (observed("up", "up", actions=(ok, ok)), Reached("up", 2)),
        (observed("down", "half", actions=(ok,)), Moved("half")),
        (observed("down", "down", actions=(ok,)), Waiting("down")),
        (observed("down", actions=(lambda: Again("2s"), fails(ValueError()))), Later(2_000_000, "down")),
        (observed(Gone()), Vanished()),
        (observed("down", Gone(), actions=(ok,)), Vanished()),
        (observed("down", "other", actions=(ok,), reached=True), Reached("other", 1)),
    ],
)
def test_outcomes_of_observed(cls: type[Any], outcome: Outcome) -> None:
    assert run(cls)[0] == outcome


@pytest.mark.parametrize(
    ("cls", "where", "says"),
    [
        (observed(None), "state", "state() returned None; expected a state"),
        (observed("up", goal=3), "goal_state", "goal_state() returned 3; expected a state"),
        (observed("up", actions={}), "actions", "actions() returned {}; expected a list of actions"),
        (observed("up", actions=(5,)), "actions", "an action is"),
        (observed("up", reached=1), "reached", "reached() returned 1; expected True or False"),
        (observed(ZeroDivisionError("x")), "state", "x"),
        (observed("up", goal=KeyboardInterrupt("x")), "goal_state", "x"),
        (observed("up", actions=SystemExit("x")), "actions", "x"),
        (observed("up", reached=GeneratorExit("x")), "reached", "x"),
        (observed("up", actions=(fails(StopIteration("x")),)), "broken", "StopIteration"),
        (observed("up", actions=(ok, fails(SystemExit(3)), fails(ValueError()))), "broken", "3"),
    ],
)
def test_failures_say_where(cls: type[Any], where: str, says: str) -> None:
    outcome, work, _ = run(cls)
    assert isinstance(outcome, Failed)
    assert outcome.where == where
    assert says in outcome.message
    assert not outcome.permanent
    assert work.wishes == []


def test_an_awaitable_from_a_plain_function() -> None:
    async def later() -> str:
        return "up"

    class Thing(Observed[str]):
        def state(self) -> Any:
            return later()

        def goal_state(self) -> str:
            return "up"

        def actions(self, state: str, goal: str) -> list[Any]:
            return []

    outcome, _, _ = run(Thing)
    assert isinstance(outcome, Failed)
    assert "make it `async def`" in outcome.message
    outcome, _, _ = run(observed("up", actions=(lambda _ctx: later(),)))
    assert isinstance(outcome, Failed)
    assert "returned an awaitable" in outcome.message


def test_permanent_and_never() -> None:
    outcome, _, _ = run(observed("down", actions=(fails(Permanent("no")),)))
    assert isinstance(outcome, Failed)
    assert outcome.permanent
    outcome, _, _ = run(observed("down", actions=(fails(KeyError("no")),)), retry=Retry(never=(LookupError,)))
    assert isinstance(outcome, Failed)
    assert outcome.permanent


@pytest.mark.parametrize(
    ("actions", "mode", "reset"),
    [
        ((ok, fails(ValueError())), "action", True),
        ((ok, fails(ValueError())), "list", False),
        ((fails(ValueError()),), "action", False),
    ],
)
def test_reset(actions: Any, mode: Any, reset: bool) -> None:
    outcome, _, _ = run(observed("down", actions=actions), retry=Retry(reset=mode))
    assert isinstance(outcome, Failed)
    assert outcome.reset is reset


def test_error_text_is_capped() -> None:
    outcome, _, _ = run(observed("down", actions=(fails(ValueError("x" * 100_000)),)))
    assert isinstance(outcome, Failed)
    assert len(outcome.message) <= MESSAGE_CHARS
    assert len(outcome.trace) <= TRACE_CHARS + 8


class Door(Managed[Gate]):
    seen: list[Any]

    @action(when="closed", goal="open")
    def look(self, ctx: Any) -> None:
        Door.seen = [self.id, self.state, self.goal, self.data, dict(self.labels), ctx.revision, ctx.attempt]
        ctx.enqueue(ctx.ref, after="1m")
        ctx.enqueue("other/1", after="1m")

    @action(when="closed", goal=("open", "stuck"))
    def same(self) -> Gate:
        return "closed"

    @action(when="closed", goal=("open", "stuck"))
    def open(self) -> Gate:
        return "open"

    @action(when="closed", goal="open")
    def never(self) -> None:
        raise AssertionError("a new state ends the list")

    @action(when="open", goal="closed")
    def wrong(self) -> Any:
        return "ajar"


def test_managed() -> None:
    record = ["closed", "open", 4, pack({"a": 1}), pack_labels({"b": "c"})]
    outcome, work, sent = run(Door, record, initial="closed")
    assert outcome == Reached("open", 3)
    assert [row[:2] for row in work.log] == [["look", "ok"], ["same", "ok"], ["open", "ok"]]
    assert Door.seen == ["a/b", "closed", "open", {"a": 1}, {"b": "c"}, 4, 2]
    assert work.wishes == [["r", 60_000_000]]
    assert sent == [["enqueue", "other/1", "r", 60_000_000]]


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        (None, Nothing("closed")),
        (["open", None, 1, None, None], Nothing("open")),
        (["open", "open", 1, None, None], Reached("open", 0)),
        (["open", "stuck", 1, None, None], Nothing("open")),
        (["closed", "stuck", 1, None, None], Moved("open")),
    ],
)
def test_managed_at_rest_and_moved(record: Any, outcome: Outcome) -> None:
    assert run(Door, record, initial="closed")[0] == outcome


def test_a_state_the_kind_does_not_have() -> None:
    outcome, _, _ = run(Door, ["open", "closed", 1, None, None], initial="closed")
    assert isinstance(outcome, Failed)
    assert outcome.where == "wrong"
    assert outcome.message == "wrong() returned 'ajar'; expected None, Again or a state of closed, open, stuck"


def test_a_record_that_cannot_be_read_fails() -> None:
    outcome, _, _ = run(Door, ["closed", "open", 1, b"\xc1", None], initial="closed")
    assert isinstance(outcome, Failed)
    assert "BadPayload" in outcome.type
