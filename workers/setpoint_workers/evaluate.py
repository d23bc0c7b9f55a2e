"""One evaluation: read state, goal and action list now, run the actions in order, say how it ended.

It is written once, as a generator that yields what is to be called and is sent what that returned, so that the same
rules serve plain functions (`run_plain`, in a thread) and `async def` (the child's event loop).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from datetime import datetime
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, cast

from setpoint.clock import to_datetime
from setpoint.outcome import (
    Again,
    Later,
    Moved,
    Nothing,
    Outcome,
    Reached,
    TimedOut,
    Vanished,
    Waiting,
    clean,
    failure,
    is_gone,
)
from setpoint.registry import Action, Context, Entity, Kind, Managed, Observed, as_action
from setpoint.serializer import unpack, unpack_labels
from setpoint_workers.frames import Frame

if TYPE_CHECKING:
    from setpoint.engine.scripts import When

PROGRESS_EVERY: Final = 0.5
"""Seconds between two progress reports of one evaluation; what comes sooner is dropped."""

_FOREVER = float("inf")


class SoftTimeout(BaseException):
    """Raised inside a plain function whose time is over. Not an `Exception`, so `except Exception` lets it pass."""


Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], bool, bool]
"""What an evaluation wants called next: function, arguments, is it `async def`, does it only decide (so that the event
loop may call it itself). A plain tuple, for there are several in every evaluation."""

Evaluation: TypeAlias = Generator[Call, Any, Outcome]


class Work:
    """One item the parent sent, and what became of it: written by the thread that runs it; flags also by the reader."""

    # Most are at their default in most evaluations, so they are the class's until they are set.
    kind: Kind | None = None
    cancelled = False
    lost = False
    list_deadline = _FOREVER
    deadline = _FOREVER
    fired = False
    ended = False
    where = "state"
    where_since: float | None = None
    slot: object = None
    task: Any = None
    progressed = -_FOREVER

    def __init__(
        self,
        serial: int,
        index: int,
        ref: str,
        fence: int,
        start_at: float,
        attempt: int,
        due_us: int,
        timeout_us: int | None,
        record: list[Any] | None,
        send: Callable[[Frame], None],
    ) -> None:
        self.serial = serial
        self.index = index
        self.ref = ref
        self.fence = fence
        self.start_at = start_at
        self.attempt = attempt
        self.due_us = due_us
        self.timeout_us = timeout_us
        self.record = record
        self.send = send
        self.started = start_at
        self.limit: Callable[[Work, float], None] = _no_limit
        self.log: list[list[Any]] = []
        self.wishes: list[list[Any]] = []

    def timed_out(self) -> TimedOut:
        """The outcome once its time is over: what it asked for itself counts only if it succeeds."""
        self.wishes.clear()
        since = self.started if self.where_since is None else self.where_since
        return TimedOut(self.where, int((monotonic() - since) * 1e6))


def _no_limit(work: Work, deadline: float) -> None:
    work.deadline = deadline


class WorkLink:
    """How a `Context` reaches the work it belongs to."""

    __slots__ = ("_work",)

    def __init__(self, work: Work) -> None:
        self._work = work

    def due(self) -> datetime:
        """When it was due."""
        return to_datetime(self._work.due_us)

    def deadline(self) -> datetime | None:
        """When its time will be up, by Redis' clock."""
        work = self._work
        if work.timeout_us is None:
            return None
        late_us = max(0, int((work.started - work.start_at) * 1e6))
        return to_datetime(work.due_us + late_us + work.timeout_us)

    def cancelled(self) -> bool:
        """It was deleted, or its time is up."""
        return self._work.cancelled or self._work.fired

    def lost(self) -> bool:
        """The lease may have ended."""
        return self._work.lost

    def progress(self, done: float, total: float | None, text: str) -> None:
        """Two reports a second pass, the others are dropped."""
        work = self._work
        now = monotonic()
        if now - work.progressed >= PROGRESS_EVERY:
            work.progressed = now
            work.send(["progress", work.index, done, total, clean(text, 200)])

    def enqueue(self, ref: str, due: When) -> None:
        """Its own ref waits for the end of the evaluation, others go at once."""
        work = self._work
        if ref == work.ref:
            work.wishes.append(list(due.args()))
        else:
            work.send(["enqueue", ref, *due.args()])


def _context(work: Work) -> Context:
    kind, _, id_ = work.ref.partition("/")
    revision = None if work.record is None else work.record[2]
    return Context(id_, kind, work.attempt, work.fence, revision, WorkLink(work))


# --------------------------------------------------------------------------------------------------------------- rules


def run_plain(steps: Evaluation, awaits: Callable[[Call], Any]) -> Outcome:
    """Run an evaluation in a thread; the rare `async def` in it is handed to `awaits`."""
    try:
        call = next(steps)
        send = steps.send
        while True:
            try:
                value = awaits(call) if call[2] else call[0](*call[1])
            except BaseException as error:  # noqa: BLE001 - the evaluation judges it, whatever it is
                call = steps.throw(error)
            else:
                call = send(value)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


def evaluation(work: Work) -> Evaluation:
    """Evaluate `work` once. Yields calls; returns the outcome and never raises, except `SoftTimeout` between calls."""
    kind = work.kind
    assert kind is not None
    try:
        return (yield from (_managed if kind.policy.managed else _observed)(work, kind))
    except BaseException as error:  # noqa: BLE001 - SystemExit of an action must not end the worker
        work.wishes.clear()
        if work.fired or isinstance(error, SoftTimeout):
            return work.timed_out()
        succeeded = kind.policy.reset == "action" and any(row[1] == "ok" for row in work.log)
        return failure(error, work.where, never=kind.never, reset=succeeded)


def _observed(work: Work, kind: Kind) -> Evaluation:
    entity: Observed[str] = kind.create(work.ref.partition("/")[2])
    states = kind.policy.states
    direct = not kind.is_async  # its hooks are plain and we are in a thread: they are called right here
    if work.record is not None:
        _read_record(entity, work.record)
        entity.goal = work.record[1] or None
    state: Any = entity.state() if direct else (yield entity.state, (), _is_async(entity.state), False)
    if is_gone(state):
        return Vanished()
    _check_state(state, "state", states)
    work.where = "goal_state"
    goal: Any
    if not kind.sets_goal:
        goal = entity.goal
        if goal is None:
            return Nothing(_plain(state))
    elif direct:
        goal = entity.goal_state()
    else:
        goal = yield entity.goal_state, (), _is_async(entity.goal_state), False
    _check_state(goal, "goal_state", states)
    work.where = "actions"
    listed: Any
    if direct:
        listed = entity.actions(state, goal)
    else:
        listed = yield entity.actions, (state, goal), _is_async(entity.actions), True
    if not isinstance(listed, (list, tuple)):
        raise TypeError(_wrong("actions", listed, "a list of actions"))
    before, ran = state, len(cast("list[object]", listed))
    if listed:
        actions = [as_action(each) for each in cast("list[object]", listed)]
        ended = yield from _run_list(work, actions, _plain(state), direct)
        if ended is not None:
            return ended
        work.where = "state"
        state = entity.state() if direct else (yield entity.state, (), _is_async(entity.state), False)
        if is_gone(state):
            return Vanished()
        _check_state(state, "state", states)
    work.where = "reached"
    reached: Any
    if direct:
        reached = entity.reached(state, goal)
    else:
        reached = yield entity.reached, (state, goal), _is_async(entity.reached), True
    return _outcome(reached, _plain(before), _plain(state), ran)


def _run_list(work: Work, actions: list[Action], state: str, direct: bool) -> Generator[Call, Any, Outcome | None]:
    """Run the actions of an observed entity; the outcome if one of them ends it."""
    ctx = _context(work)
    for action in actions:
        with _Acting(work, action) as acting:
            if direct and not action.is_async:
                value = action.run(ctx)
            else:
                value = yield action.run, (ctx,), action.is_async, False
            acting.returned(value)
        if isinstance(value, Again):
            return Later(value.after_us, state)
        if is_gone(value):
            return Vanished()
    return None


def _managed(work: Work, kind: Kind) -> Evaluation:
    work.where = "actions"
    entity: Managed[str] = kind.create(work.ref.partition("/")[2])
    policy = kind.policy
    before: str = policy.initial
    goal: str | None = None
    if work.record is not None:
        before, goal = work.record[0] or before, work.record[1] or None
        _read_record(entity, work.record)
    if goal is None:
        return Nothing(before)
    entity.state = state = before
    entity.goal = goal
    actions = kind.plan(entity, state, goal)
    ran = 0
    if actions:
        ctx = _context(work)
        for action in actions:
            with _Acting(work, action) as acting:
                if action.is_async or kind.is_async:
                    value = yield action.run, (ctx,), action.is_async, False
                else:
                    value = action.run(ctx)
                acting.returned(value)
            ran += 1
            if value is None:
                continue
            if isinstance(value, Again):
                return Later(value.after_us, state)
            if is_gone(value):
                return Vanished()
            _check_state(value, action.name, policy.states, "None, Again or a state")
            if value != state:
                entity.state = state = _plain(value)
                break
    work.where = "reached"
    reached: object = yield entity.reached, (state, goal), _is_async(entity.reached), True
    if work.record is not None and work.record[0] is None:
        ran = max(ran, 1)  # or its first state would never be stored
    return _outcome(reached, before, state, ran)


def _read_record(entity: Entity, record: list[Any]) -> None:
    if record[3]:
        entity.data = unpack(record[3])
    if record[4]:
        entity.labels = unpack_labels(record[4])


def _outcome(reached: object, before: str, state: str, ran: int) -> Outcome:
    """How it ended, now that nothing has failed."""
    if not isinstance(reached, bool):
        raise TypeError(_wrong("reached", reached, "True or False"))
    if reached:
        return Reached(state, ran)
    if not ran:
        return Nothing(state)
    return Waiting(state) if state == before else Moved(state)


class _Acting:
    """While one action runs: its own time limit, and the note of how it went."""

    __slots__ = ("_action", "_limited", "_row", "_started", "_work")

    def __init__(self, work: Work, action: Action) -> None:
        self._work = work
        self._action = action

    def __enter__(self) -> Self:
        work, action = self._work, self._action
        work.where = action.name
        work.where_since = None
        self._started = started = monotonic()
        self._limited = False
        if action.timeout_us is not None and started + action.timeout_us / 1e6 < work.list_deadline:
            self._limited = True
            work.where_since = started
            work.limit(work, started + action.timeout_us / 1e6)
        self._row: list[Any] = [action.name, "failed", 0]
        work.log.append(self._row)
        return self

    def returned(self, value: Any) -> None:
        """The action returned; raises if that is no value but something to await."""
        if value is None:
            self._row[1] = "ok"
            return
        if inspect.isawaitable(value):
            raise TypeError(_wrong(self._action.name, value, "None, Again or a state"))
        self._row[1] = "again" if isinstance(value, Again) else "gone" if is_gone(value) else "ok"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        work = self._work
        self._row[2] = int((monotonic() - self._started) * 1e6)
        if self._limited and not work.fired:
            work.limit(work, work.list_deadline)
            work.where_since = None
        if work.fired and error is not None:
            self._row[1] = "timed_out"


def _check_state(value: Any, where: str, states: tuple[str, ...], expected: str = "a state") -> None:
    """Raise unless `value` may be a state: a string, and of the kind's if they are declared."""
    if isinstance(value, str) and value and (not states or value in states):
        return
    if states:
        expected += f" of {', '.join(states)}"
    raise TypeError(_wrong(where, value, expected))


def _plain(state: str) -> str:
    """The string itself, also of a member of an Enum of strings, whose `str()` is its name."""
    return str.__str__(state)


def _wrong(where: str, value: Any, expected: str) -> str:
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # or it warns that nobody awaited it
        return f"{where}() is a plain function and returned an awaitable; make it `async def`, or return {expected}"
    return f"{where}() returned {_short(value)}; expected {expected}"


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - an application's repr
        text = f"<repr raised {type(error).__name__}>"
    return clean(text, 80)


def _is_async(function: Any) -> bool:
    """Whether it is to be awaited."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is not None:
        return bool(code.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(function)
