"""What applications declare: kinds of entities, their actions and their policy. It neither runs nor stores anything."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar

from setpoint.backoff import Backoff, Retry
from setpoint.clock import NOT_GIVEN, Duration, Instant, NotGiven, format_duration, parse_duration, when
from setpoint.entity import Ref, check_kind, check_lane
from setpoint.errors import BadTime, DuplicateKind, UnknownKind, UnknownState, UsageError
from setpoint.outcome import Again, Gone

if TYPE_CHECKING:
    import logging

    from setpoint.engine.scripts import When

__all__ = [
    "Action",
    "ActionLike",
    "Context",
    "Entity",
    "Kind",
    "Link",
    "Managed",
    "Observed",
    "Policy",
    "Registry",
    "action",
    "as_action",
]

S = TypeVar("S", bound=str)
F = TypeVar("F", bound="Callable[..., str | Again | Awaitable[str | Again | None] | None]")

DEFAULT_TIMEOUT_US: Final = 600 * 1_000_000
RESERVED: Final = ("task", "run", "step", "process", "cron")
"""Kinds that other kinds of work use, alone or before a dot."""

_MARKS: Final = "__setpoint_action__"


# ------------------------------------------------------------------------------------------------------------ context


class Link(Protocol):
    """What a context needs from whoever runs the evaluation."""

    def due(self) -> datetime:
        """When it was due, UTC."""
        ...

    def deadline(self) -> datetime | None:
        """When it will be cut off, UTC; None for never."""
        ...

    def cancelled(self) -> bool:
        """The entity was deleted, or the evaluation is to end: its outcome will be dropped."""
        ...

    def lost(self) -> bool:
        """The lease may have ended: another worker may be at it."""
        ...

    def progress(self, done: float, total: float | None, text: str) -> None:
        """Pass on how far it is."""
        ...

    def enqueue(self, ref: str, due: When) -> None:
        """Pass on an enqueue."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What an action is told about its evaluation, and what it can say meanwhile."""

    id: str
    """The entity's id within its kind."""
    kind: str
    attempt: int
    """1 for the first try, one more after each failure in a row."""
    fence: int
    """Grows with every claim: pass it to services that can refuse an older one."""
    revision: int | None
    """Of the record that was read; None for a kind without records."""
    link: Link = field(repr=False)

    @property
    def ref(self) -> str:
        """`kind/id`."""
        return f"{self.kind}/{self.id}"

    @property
    def due(self) -> datetime:
        """When it was due, UTC."""
        return self.link.due()

    @property
    def deadline(self) -> datetime | None:
        """When it will be cut off, UTC; None for never."""
        return self.link.deadline()

    @property
    def cancelled(self) -> bool:
        """The entity was deleted meanwhile, or its time is up: stop; the outcome will be dropped."""
        return self.link.cancelled()

    @property
    def lost(self) -> bool:
        """The lease may have ended and another worker may be at it: change nothing more."""
        return self.link.lost()

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines name the entity."""
        import logging

        extra = {"entity": self.ref, "kind": self.kind, "attempt": self.attempt}
        return logging.LoggerAdapter(logging.getLogger(f"setpoint.app.{self.kind}"), extra)

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Say how far it is, for whoever looks; the newest word replaces the one before."""
        self.link.progress(done, total, text)

    def enqueue(
        self, ref: str | Ref, *, at: Instant | NotGiven = NOT_GIVEN, after: Duration | NotGiven = NOT_GIVEN
    ) -> None:
        """Have an entity evaluated no later than then; now if neither is given.

        Its own ref: once more after this evaluation, and only if it succeeds. Others: at once, at least once. Raises
        `BadRef` or `BadTime`.
        """
        self.link.enqueue(str(Ref.of(ref)), when(at=at, after=after))


# ------------------------------------------------------------------------------------------------------------- action


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a list. Write it so that running it twice does no harm."""

    name: str
    """For metrics and messages: the same for every entity."""
    run: Callable[[Context], Any]
    """Given the context; returns a state, `Again`, None, or an awaitable of these."""
    timeout_us: int | None = None
    """It may take so long; None: as long as the kind's timeout leaves."""
    is_async: bool = False

    @classmethod
    def of(cls, run: Callable[..., Any], *, name: str | None = None, timeout: Duration | None = None) -> Action:
        """Make one of anything callable with the context or with nothing; `name` is its own if not given.

        Raises `UsageError` for what cannot be called so, and `BadTime`.
        """
        made = as_action(run)
        return cls(name or made.name, made.run, _timeout(timeout) if timeout else made.timeout_us, made.is_async)


ActionLike: TypeAlias = Action | Callable[[], Any] | Callable[[Context], Any]
"""What `actions()` may list: an `Action`, or a function or bound method that takes the context or nothing."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """What one `@action` says."""

    when: tuple[str, ...]
    goal: tuple[str, ...]
    timeout_us: int | None


def action(
    *, when: str | tuple[str, ...], goal: str | tuple[str, ...], timeout: Duration | None = None
) -> Callable[[F], F]:
    """Mark a method of a `Managed` class: run it when the state is `when` and the goal `goal` (or one of several).

    Actions of one (when, goal) run in order of definition. The method takes the context or nothing, and returns the new
    state, `Again`, or None for "the state is as it was". `timeout`: it may take so long; the kind's timeout holds for
    the whole list. Raises `BadTime` or `UsageError`.
    """
    mark = _Mark(_states("when", when), _states("goal", goal), None if timeout is None else _timeout(timeout))

    def mark_it(method: F) -> F:
        function: Any = method
        if not inspect.isroutine(function):
            raise UsageError(f"@action marks a method, not {method!r}")
        marks: tuple[_Mark, ...] = getattr(function, _MARKS, ())
        setattr(function, _MARKS, (mark, *marks))
        return method

    return mark_it


def _states(word: str, value: object) -> tuple[str, ...]:
    values: tuple[object, ...] = value if isinstance(value, tuple) else (value,)  # pyright: ignore[reportUnknownVariableType]
    names = tuple(str(each) for each in values if isinstance(each, str) and each)
    if not names or len(names) != len(values):
        raise UsageError(f"{word}= is a state or a tuple of states, not {value!r}")
    return names


def as_action(value: object) -> Action:
    """An entry of what `actions()` returned, as an `Action`. Raises `UsageError` for what cannot be called."""
    if isinstance(value, Action):
        return value
    if isinstance(value, types.MethodType):
        shape = _shape_of(value.__func__, bound=True)
    elif isinstance(value, types.FunctionType):
        shape = _shape_of(value, bound=False)
    elif callable(value):
        shape = _inspect(value, bound=False)
    else:
        raise UsageError(f"an action is a method, a function or an Action, not {value!r}")
    run: Any = value
    return Action(shape.name, run if shape.takes_context else _without_context(run), shape.timeout_us, shape.is_async)


def _without_context(run: Callable[[], Any]) -> Callable[[Context], Any]:
    return lambda _ctx: run()


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a callable wants to be called."""

    name: str
    takes_context: bool
    is_async: bool
    timeout_us: int | None


@functools.lru_cache(maxsize=4096)
def _shape_of(function: Callable[..., Any], *, bound: bool) -> _Shape:
    return _inspect(function, bound=bound)


def _inspect(function: Callable[..., Any], *, bound: bool) -> _Shape:
    name = _name_of(function)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise UsageError(f"action {name}: its parameters cannot be told; wrap it in a function") from None
    if bound:
        parameters = parameters[1:] if parameters and parameters[0].kind not in _VARIADIC else parameters
    required = [p for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise UsageError(f"action {name} takes the context or nothing, not ({', '.join(p.name for p in required)})")
    # An optional parameter is the context only by its name: `def boot(self, force=False)` wants no context.
    takes = bool(required) or any(p.kind is p.VAR_POSITIONAL or p.name in {"ctx", "context"} for p in parameters)
    marks: tuple[_Mark, ...] = getattr(function, _MARKS, ())
    return _Shape(name, takes, _is_async(function), marks[0].timeout_us if marks else None)


_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func  # pyright: ignore[reportUnknownVariableType]
    return str(getattr(function, "__name__", None) or type(function).__name__)  # pyright: ignore[reportUnknownArgumentType]


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(typing.cast("object", type(function)), "__call__", None)  # noqa: B004  # an object whose call is async
    )


# ----------------------------------------------------------------------------------------------------------- entities


class Managed(Generic[S]):
    """Base of entities whose state and goal live in setpoint: `class Host(Managed[HostState])`.

    The attributes are set before each evaluation; an instance lives for one.
    """

    id: str
    """The id within the kind."""
    state: S
    """The state it is in."""
    goal: S
    """The state it should be in."""
    data: Any
    """What was last given to `Fleet.set(data=…)`; None if nothing."""
    labels: Mapping[str, str]
    """What was last given to `Fleet.set(labels=…)`."""

    def __init__(self, id: str) -> None:  # noqa: A002  # the word of the whole API
        self.id = id
        self.data = None
        self.labels = {}

    def reached(self, state: S, goal: S) -> bool:
        """Whether this state is as good as the goal; equality unless overridden."""
        return state == goal


class Observed(Generic[S]):
    """Base of entities whose state and goal the application itself knows: `class VM(Observed[VMState])`.

    Each hook may be `async def`. An instance lives for one evaluation.
    """

    id: str
    """The id within the kind."""
    goal: S | None
    """What was last set with `Fleet.set`, if the kind is settable; None if nothing."""
    data: Any
    """What was last given to `Fleet.set(data=…)`; None if nothing."""
    labels: Mapping[str, str]
    """What was last given to `Fleet.set(labels=…)`."""

    def __init__(self, id: str) -> None:  # noqa: A002  # as above
        self.id = id
        self.goal = None
        self.data = None
        self.labels = {}

    def state(self) -> S | Gone | Awaitable[S | Gone]:
        """The state it is in now, or `Gone()` if it exists no more."""
        raise NotImplementedError

    def goal_state(self) -> S | Awaitable[S]:
        """The state it should be in; unless overridden, the goal that was set, and at rest if none was."""
        raise NotImplementedError

    def actions(self, state: S, goal: S) -> Sequence[ActionLike] | Awaitable[Sequence[ActionLike]]:
        """What to run, in order, to get from `state` towards `goal`; empty if there is nothing to do."""
        raise NotImplementedError

    def reached(self, state: S, goal: S) -> bool | Awaitable[bool]:
        """Whether this state is as good as the goal; equality unless overridden."""
        return state == goal


Entity: TypeAlias = Managed[Any] | Observed[Any]

_HOOKS: Final = ("state", "goal_state", "actions", "reached")


# ------------------------------------------------------------------------------------------------------------- policy


@dataclass(frozen=True, slots=True)
class Policy:
    """What the fleet needs to know of a kind without its code; workers publish it."""

    kind: str
    lane: str = "default"
    managed: bool = False
    """Its state is what its actions return, kept in its record."""
    settable: bool = False
    """Its goal, data and labels can be set from outside, as those of a managed one always can."""
    initial: str = ""
    """State of a managed entity when its first goal is set."""
    states: tuple[str, ...] = ()
    """All states there are; empty: any string."""
    attempts: int | None = None
    """As in `Retry`."""
    backoff: Backoff = field(default_factory=Backoff)
    reset: Literal["list", "action"] = "list"
    timeout_us: int | None = DEFAULT_TIMEOUT_US
    """For a whole evaluation; None is no limit."""
    resync_us: int | None = None
    """Every known entity is evaluated this often, even at rest."""
    cap: int = 0
    """Evaluations at once in the whole fleet; 0 is no limit."""
    rate: int = 0
    """Evaluations started in each `per_us`; 0 is no limit."""
    per_us: int = 0
    remember: bool = False
    """Stays known when at rest, also without record and resync."""
    exclusive: bool = False
    """Its process is killed at once when the lease may be lost."""
    after_success: Literal["check", "idle"] = "check"
    """After a list that went well: see whether the goal is reached, or rest until the next enqueue."""
    crash_budget: int = 3
    """Crashes within 24 h that park it as poison."""
    version: str = ""
    """Of the application's code."""

    @property
    def kept(self) -> bool:
        """Stays known when at rest."""
        return self.remember or self.recorded or self.resync_us is not None

    @property
    def recorded(self) -> bool:
        """It has a record."""
        return self.managed or self.settable

    def pack(self) -> bytes:
        """As published: a map by field names."""
        wire: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        packed: bytes = _msgpack().packb(wire | {"backoff": self.backoff.to_wire(), "states": list(self.states)})
        return packed

    @classmethod
    def unpack(cls, stored: bytes) -> Policy:
        """Read what `pack` wrote, by this version or another: unknown fields are ignored, missing ones have defaults.

        Raises `ValueError` for what is no policy at all.
        """
        msgpack = _msgpack()
        try:
            found: dict[str, Any] = msgpack.unpackb(stored)
            known: dict[str, Any] = {each.name: found[each.name] for each in fields(cls) if each.name in found}
            if "backoff" in known:
                known["backoff"] = Backoff.from_wire(known["backoff"])
            if "states" in known:
                known["states"] = tuple(known["states"])
            return cls(**known)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ValueError(f"not a policy: {error}") from error


def _msgpack() -> Any:
    import msgpack  # here, so that `import setpoint` stays quick

    return msgpack


# --------------------------------------------------------------------------------------------------------------- kind


@dataclass(frozen=True, slots=True)
class _Step:
    """A marked method, ready to be bound to an entity."""

    method: str
    takes_context: bool
    timeout_us: int | None
    is_async: bool

    def bind(self, entity: object) -> Action:
        run = getattr(entity, self.method)
        run = run if self.takes_context else _without_context(run)
        return Action(self.method, run, self.timeout_us, self.is_async)


@dataclass(frozen=True, slots=True)
class Kind:
    """A declared kind: its policy, and the code that only workers need."""

    policy: Policy
    cls: type[Any]
    """A subclass of `Managed` or `Observed`."""
    never: tuple[type[BaseException], ...] = ()
    """Exceptions that are final."""
    is_async: bool = False
    """One of its hooks or actions is `async def`."""
    steps: Mapping[tuple[str, str], tuple[_Step, ...]] = field(default_factory=dict[tuple[str, str], tuple[_Step, ...]])

    @property
    def name(self) -> str:
        """The kind."""
        return self.policy.kind

    @property
    def sets_goal(self) -> bool:
        """An Observed kind that says by itself what its goal is."""
        return self.cls.goal_state is not Observed.goal_state

    def create(self, id: str) -> Any:  # noqa: A002  # the word of the whole API
        """A new instance for one evaluation; raises what its constructor raises."""
        return self.cls(id)

    def plan(self, entity: Entity, state: str, goal: str) -> list[Action]:
        """The actions of a managed entity for (state, goal), in order of definition; empty if there are none."""
        return [step.bind(entity) for step in self.steps.get((state, goal), ())]

    def check_state(self, state: object) -> str:
        """Return a state or goal that the kind has; raise `UnknownState` for any other, naming those it has."""
        states = self.policy.states
        if not isinstance(state, str) or not state or (states and state not in states):
            known = f"it has {', '.join(states)}" if states else "a state is a string with at least one character"
            raise UnknownState(f"{self.name} has no state {state!r}: {known}")
        return str(state)


class Registry:
    """The kinds of one fleet, each declared once."""

    def __init__(self, *, version: str = "") -> None:
        self.version = version
        self.kinds: dict[str, Kind] = {}

    def declare(
        self,
        cls: type[Any],
        name: str,
        *,
        initial: str | None = None,
        lane: str = "default",
        retry: Retry | None = None,
        timeout: Duration | None = "10m",
        resync: Duration | None = None,
        cap: int | None = None,
        rate: str | tuple[int, Duration] | None = None,
        remember: bool | None = None,
        settable: bool | None = None,
        exclusive: bool = False,
        after_success: Literal["check", "idle"] = "check",
    ) -> Kind:
        """Declare a kind: check everything that can be checked before anything runs, and keep it.

        Raises `BadRef` for a bad name, `DuplicateKind`, `UnknownState`, `BadTime`, and `UsageError` for the rest.
        """
        check_kind(name)
        if name.partition(".")[0] in RESERVED:
            raise UsageError(f"{name}: {', '.join(RESERVED)} are kinds of setpoint's own, take another name")
        managed = _managed(cls, name)
        if settable is None:
            settable = not managed and cls.goal_state is Observed.goal_state
        elif managed:
            raise UsageError(f"{name}: settable= is for Observed; a Managed goal always comes from outside")
        states = _states_of(cls, name)
        steps, async_steps = _steps_of(cls, name, states) if managed else ({}, False)
        retry = Retry() if retry is None else retry
        if not isinstance(retry, Retry):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{name}: retry is a Retry, not {retry!r}")
        count, per_us = _rate(name, rate)
        policy = Policy(
            kind=name,
            lane=check_lane(lane),
            managed=managed,
            settable=_bool(name, "settable", settable),
            initial=_initial(name, managed, initial, states),
            states=states,
            attempts=retry.attempts,
            backoff=retry.backoff,
            reset=retry.reset,
            timeout_us=None if timeout is None else _timeout(timeout),
            resync_us=None if resync is None else _resync(name, resync),
            cap=0 if cap is None else _count(name, "cap", cap),
            rate=count,
            per_us=per_us,
            remember=_bool(name, "remember", managed or settable if remember is None else remember),
            exclusive=_bool(name, "exclusive", exclusive),
            after_success=_one_of(name, after_success),
            version=self.version,
        )
        return self.add(Kind(policy, cls, retry.never, async_steps or _async_hooks(cls), steps))

    def add(self, kind: Kind) -> Kind:
        """Keep a kind; raises `DuplicateKind`."""
        if kind.name in self.kinds:
            raise DuplicateKind(f"kind {kind.name} is declared already, by {self.kinds[kind.name].cls.__qualname__}")
        self.kinds[kind.name] = kind
        return kind

    def get(self, name: str) -> Kind:
        """The kind of this name; raises `UnknownKind`, naming those there are."""
        found = self.kinds.get(name)
        if found is None:
            known = ", ".join(sorted(self.kinds)) or "none"
            raise UnknownKind(f"no kind {name!r} is declared in this fleet; declared: {known}")
        return found

    def manifest(self) -> dict[str, bytes]:
        """Every kind with its packed policy, as workers publish them."""
        return {name: kind.policy.pack() for name, kind in self.kinds.items()}


# ------------------------------------------------------------------------------------------- reading a declared class


def _managed(cls: object, name: str) -> bool:
    if not isinstance(cls, type) or not issubclass(cls, Managed | Observed):
        raise UsageError(f"{name}: an entity is a class with Managed[…] or Observed[…] as its base, not {cls!r}")
    if issubclass(cls, Managed):
        if issubclass(cls, Observed):
            raise UsageError(f"{name}: {cls.__qualname__} is both Managed and Observed; its state lives in one place")
        return True
    for hook in _HOOKS:
        written: object = getattr(typing.cast("object", cls), hook)
        if not callable(written):
            raise UsageError(f"{name}: {cls.__qualname__}.{hook} is a method")
        if hook in {"state", "actions"} and written is getattr(Observed, hook):
            raise UsageError(f"{name}: {cls.__qualname__} does not say what {hook}() is")
    return False


def _async_hooks(cls: type[Any]) -> bool:
    return any(_is_async(getattr(cls, hook, None)) for hook in _HOOKS)


def _steps_of(
    cls: type[Any], name: str, states: tuple[str, ...]
) -> tuple[dict[tuple[str, str], tuple[_Step, ...]], bool]:
    table: dict[tuple[str, str], list[_Step]] = {}
    any_async = False
    # Bases first, so that what a subclass overrides keeps its place in the list.
    order = dict.fromkeys(attribute for each in reversed(cls.__mro__) for attribute in vars(each))
    for attribute in order:
        marks = _marks_of(cls, attribute)
        if not marks:
            continue
        static: object = inspect.getattr_static(cls, attribute)
        if not isinstance(static, types.FunctionType):
            raise UsageError(f"{name}: {cls.__qualname__}.{attribute} is marked as an action and is not a method")
        shape = _shape_of(static, bound=True)
        any_async = any_async or shape.is_async
        for mark in marks:
            _check_states(name, attribute, mark, states)
            step = _Step(attribute, shape.takes_context, mark.timeout_us, shape.is_async)
            for pair in ((state, goal) for state in mark.when for goal in mark.goal):
                listed = table.setdefault(pair, [])
                if step.method not in {each.method for each in listed}:
                    listed.append(step)
    return {pair: tuple(steps) for pair, steps in table.items()}, any_async


def _marks_of(cls: type[Any], attribute: str) -> tuple[_Mark, ...]:
    """Of the method itself, or of the one that it overrides without a word."""
    for each in cls.__mro__:
        written = vars(each).get(attribute)
        written = getattr(written, "__func__", written)  # class and static methods are refused by the caller
        marks: tuple[_Mark, ...] = getattr(written, _MARKS, ())
        if marks:
            return marks
    return ()


def _check_states(name: str, attribute: str, mark: _Mark, states: tuple[str, ...]) -> None:
    for word, given in (("when", mark.when), ("goal", mark.goal)):
        for state in given:
            if states and state not in states:
                raise UnknownState(
                    f"{name}.{attribute}: {word}={state!r} is no state of it; it has {', '.join(states)}"
                )


def _states_of(cls: type[Any], name: str) -> tuple[str, ...]:
    """The states that the parameter of `Managed[…]` or `Observed[…]` lists; none if it is plain `str`."""
    for each in cls.__mro__:
        for base in vars(each).get("__orig_bases__", ()):
            origin: object = typing.get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Managed | Observed):
                (parameter, *_) = typing.get_args(base)
                if not isinstance(parameter, TypeVar):
                    return tuple(dict.fromkeys(_listed(parameter, each, name)))
    return ()


def _listed(parameter: Any, owner: type[Any], name: str) -> list[str]:
    if isinstance(parameter, typing.ForwardRef):
        scope = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
        if parameter.__forward_arg__ not in scope:
            raise UsageError(f"{name}: its states, {parameter.__forward_arg__!r}, are not defined above the class")
        parameter = scope[parameter.__forward_arg__]
    parameter = getattr(parameter, "__value__", parameter)  # `type HostState = Literal[…]`
    origin: object = typing.get_origin(parameter)
    if origin is Literal:
        values: list[object] = list(typing.get_args(parameter))
    elif origin is typing.Union or origin is types.UnionType:
        values = [state for part in typing.get_args(parameter) for state in _listed(part, owner, name)]
    elif isinstance(parameter, type) and issubclass(parameter, StrEnum):
        values = list(parameter)
    elif parameter is str or parameter is Any:
        return []
    else:
        raise UsageError(f"{name}: its states are a Literal of strings, a StrEnum or str, not {parameter!r}")
    if not all(isinstance(value, str) and value for value in values):
        raise UsageError(f"{name}: its states are strings with at least one character, not {parameter!r}")
    return [str(value) for value in values]


# ------------------------------------------------------------------------------------------------- reading the options


def _initial(name: str, managed: bool, initial: object, states: tuple[str, ...]) -> str:
    if not managed:
        if initial is not None:
            raise UsageError(f"{name}: initial= is for Managed; an Observed entity says its state itself")
        return ""
    if initial is None:
        if not states:
            raise UsageError(f"{name}: say initial=, the state of an entity whose first goal is set")
        return states[0]
    if not isinstance(initial, str) or not initial or (states and initial not in states):
        raise UnknownState(f"{name}: initial={initial!r} is no state of it; it has {', '.join(states) or 'any string'}")
    return str(initial)


def _timeout(timeout: object) -> int:
    us = parse_duration(timeout)
    if us == 0:
        raise BadTime("a timeout of 0 leaves no time at all; None is no limit")
    return us


def _resync(name: str, resync: object) -> int:
    us = parse_duration(resync)
    if us < 1_000_000:
        raise BadTime(f"{name}: resync every {format_duration(us)} is too often; 1s at least")
    return us


def _count(name: str, word: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 31:
        raise UsageError(f"{name}: {word} is a whole number of 1 or more, not {value!r}")
    return value


def _rate(name: str, rate: object) -> tuple[int, int]:
    if rate is None:
        return 0, 0
    if isinstance(rate, str):
        text, _, per = rate.partition("/")
        pair: tuple[Any, ...] = (int(text) if re.fullmatch(r" *[0-9]{1,9} *", text) else text, per)
    elif isinstance(rate, tuple):
        pair = rate  # pyright: ignore[reportUnknownVariableType]
    else:
        pair = ()
    if len(pair) != 2:
        raise UsageError(f'{name}: rate is "100/1m" or (100, "1m"), not {rate!r}')
    count, per = pair
    per_us = parse_duration(per)
    if per_us == 0:
        raise BadTime(f'{name}: rate is so many in a span of time, such as "100/1m", not {rate!r}')
    return _count(name, "the count of rate", count), per_us


def _bool(name: str, word: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name}: {word} is True or False, not {value!r}")
    return value


def _one_of(name: str, value: Literal["check", "idle"]) -> Literal["check", "idle"]:
    if value not in {"check", "idle"}:
        raise UsageError(f'{name}: after_success is "check" or "idle", not {value!r}')
    return value
