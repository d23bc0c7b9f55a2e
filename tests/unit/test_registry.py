"""Declarations."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

import msgpack
import pytest

from setpoint.backoff import Backoff, Retry
from setpoint.clock import parse_duration
from setpoint.engine.scripts import When
from setpoint.errors import BadRef, BadTime, DuplicateKind, UnknownKind, UnknownState, UsageError
from setpoint.outcome import Again, Gone
from setpoint.registry import Action, ActionLike, Context, Managed, Observed, Policy, Registry, action, as_action

HostState = Literal["serving", "draining", "drained"]


class Host(Managed[HostState]):
    @action(when="serving", goal="drained")
    async def begin(self, ctx: Context) -> HostState | Again:
        return "draining"

    @action(when=("serving", "draining"), goal="drained", timeout="5s")
    def drain(self) -> HostState | None:
        return "drained"


class VM(Observed[str]):
    async def state(self) -> str | Gone:
        return "off"

    def goal_state(self) -> str:
        return "on"

    def actions(self, state: str, goal: str) -> Sequence[ActionLike]:
        return [self.boot, self.check]

    def boot(self) -> None: ...

    async def check(self, ctx: Context) -> None: ...


class Link:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def due(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def deadline(self) -> datetime | None:
        return None

    def cancelled(self) -> bool:
        return True

    def lost(self) -> bool:
        return False

    def progress(self, done: float, total: float | None, text: str) -> None:
        self.calls.append((done, total, text))

    def enqueue(self, ref: str, due: When) -> None:
        self.calls.append((ref, due))


def context(link: Link) -> Context:
    return Context("web-1", "host", 2, 77, 3, link)


def declare(cls: type[Any], **options: Any) -> Policy:
    return Registry().declare(cls, "host", **options).policy


def test_a_managed_kind_knows_its_states_and_plans_its_actions_in_order_of_definition() -> None:
    kind = Registry().declare(Host, "host", initial="serving")
    assert kind.policy.states == ("serving", "draining", "drained")
    assert (kind.policy.managed, kind.is_async, kind.policy.remember) == (True, True, True)
    host = kind.create("web-1")
    plan = kind.plan(host, "serving", "drained")
    assert [(a.name, a.timeout_us, a.is_async) for a in plan] == [("begin", None, True), ("drain", 5_000_000, False)]
    assert plan[1].run(context(Link())) == "drained"
    assert [a.name for a in kind.plan(host, "draining", "drained")] == ["drain"]
    assert kind.plan(host, "drained", "serving") == []
    assert (host.id, host.data, host.labels, host.reached("a", "a")) == ("web-1", None, {}, True)


def test_a_subclass_overrides_in_place_and_keeps_the_mark() -> None:
    class Better(Host):
        async def begin(self, ctx: Context) -> HostState | Again:
            return "drained"

        @action(when="draining", goal="drained")
        def last(self) -> None: ...

    kind = Registry().declare(Better, "better")
    assert [a.name for a in kind.plan(kind.create("x"), "serving", "drained")] == ["begin", "drain"]
    assert [a.name for a in kind.plan(kind.create("x"), "draining", "drained")] == ["drain", "last"]
    assert kind.policy.initial == "serving"


def test_marks_may_be_stacked() -> None:
    class Door(Managed[Literal["open", "shut"]]):
        @action(when="open", goal="shut")
        @action(when="shut", goal="open")
        def turn(self) -> None: ...

    kind = Registry().declare(Door, "door")
    assert set(kind.steps) == {("open", "shut"), ("shut", "open")}
    assert kind.is_async is False


class Light(StrEnum):
    ON = "on"
    OFF = "off"


S = TypeVar("S", bound=str)


class Middle(Managed[S], Generic[S]): ...


class Final(Middle[Light]): ...


class Free(Managed[str]): ...


class Quoted(Managed["HostState"]): ...


class Mixed(Managed[Literal["a", "b"]]): ...


@pytest.mark.parametrize(
    ("cls", "states"),
    [(Final, ("on", "off")), (Free, ()), (Quoted, ("serving", "draining", "drained")), (Mixed, ("a", "b"))],
)
def test_states_come_from_the_type_parameter(cls: type[Any], states: tuple[str, ...]) -> None:
    assert declare(cls, initial=states[0] if states else "any").states == states


def test_an_observed_kind_lists_bound_methods() -> None:
    kind = Registry().declare(VM, "vm")
    vm = kind.create("7")
    boot, check = [as_action(each) for each in vm.actions("off", "on")]
    assert (boot.name, boot.is_async, check.name, check.is_async) == ("boot", False, "check", True)
    assert boot.run(context(Link())) is None
    assert (kind.policy.managed, kind.policy.kept, kind.is_async) == (False, False, True)


def test_functions_partials_and_objects_are_actions_too() -> None:
    def plain(ctx: Context, size: int = 1) -> int:
        return size

    class Work:
        async def __call__(self, ctx: Context) -> None: ...

    assert as_action(plain).name == "plain"
    assert as_action(functools.partial(plain, size=3)).run(context(Link())) == 3
    assert (as_action(Work()).name, as_action(Work()).is_async) == ("Work", True)
    assert as_action(lambda: 5).run(context(Link())) == 5
    made = Action.of(plain, name="other", timeout="5s")
    assert (made.name, made.timeout_us, as_action(made)) == ("other", 5_000_000, made)


@pytest.mark.parametrize("value", [None, "boot", 5, lambda a, b: None, lambda *, a: None])
def test_what_cannot_be_called_with_the_context_is_no_action(value: object) -> None:
    with pytest.raises(UsageError):
        as_action(value)


def test_a_wrong_state_is_told_at_declaration() -> None:
    class Wrong(Managed[HostState]):
        @action(when="serving", goal="drianed")
        def drain(self) -> None: ...

    with pytest.raises(UnknownState, match=r"drianed.*serving, draining, drained"):
        declare(Wrong)
    with pytest.raises(UnknownState, match="initial"):
        declare(Host, initial="x")


def test_a_marked_method_that_cannot_be_called_is_told_at_declaration() -> None:
    class TooMany(Managed[HostState]):
        @action(when="serving", goal="drained")
        def drain(self, ctx: Context, more: int) -> None: ...

    class Static(Managed[HostState]):
        @staticmethod
        @action(when="serving", goal="drained")
        def drain(ctx: Context) -> None: ...

    for cls in (TooMany, Static):
        with pytest.raises(UsageError, match="drain"):
            declare(cls)
    with pytest.raises(UsageError, match="marks a method"):
        action(when="a", goal="b")(5)  # type: ignore[type-var]


@pytest.mark.parametrize(
    "options",
    [{"when": (), "goal": "a"}, {"when": "a", "goal": ""}, {"when": None, "goal": "a"}, {"when": "a", "goal": 3}],
)
def test_an_action_says_its_states(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        action(**options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": "soon"}, BadTime),
        ({"timeout": 0}, BadTime),
        ({"resync": "1ms"}, BadTime),
        ({"rate": "100"}, BadTime),
        ({"rate": "x/1m"}, UsageError),
        ({"rate": (1, "0s")}, BadTime),
        ({"rate": (1, 2, 3)}, UsageError),
        ({"rate": 5}, UsageError),
        ({"cap": 0}, UsageError),
        ({"cap": True}, UsageError),
        ({"lane": "a b"}, UsageError),
        ({"lane": None}, UsageError),
        ({"retry": 3}, UsageError),
        ({"remember": 1}, UsageError),
        ({"exclusive": None}, UsageError),
        ({"after_success": "x"}, UsageError),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        declare(Host, **options)


def test_options_become_the_policy() -> None:
    policy = declare(
        Host, initial="drained", lane="slow", retry=Retry(5, Backoff.linear()), timeout=None, resync="1h", cap=3,
        rate="100/1m", exclusive=True, after_success="idle",
    )  # fmt: skip
    assert (policy.initial, policy.lane, policy.attempts, policy.timeout_us) == ("drained", "slow", 5, None)
    assert (policy.resync_us, policy.cap, policy.rate, policy.per_us) == (parse_duration("1h"), 3, 100, 60_000_000)
    assert (policy.exclusive, policy.after_success, policy.backoff) == (True, "idle", Backoff.linear())
    assert declare(Host, rate=(100, "1m")).rate == 100


@pytest.mark.parametrize(
    ("cls", "options"), [(int, {}), (5, {}), (VM, {"initial": "x"}), (Observed, {}), (Free, {}), (Managed[int], {})]
)
def test_a_class_that_is_no_entity_is_refused(cls: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        declare(cls, **options)


@pytest.mark.parametrize("name", ["process", "task.mail", "cron"])
def test_names_of_other_kinds_of_work_are_taken(name: str) -> None:
    with pytest.raises(UsageError, match="take another name"):
        Registry().declare(Host, name)


def test_a_kind_is_declared_once_and_found_by_name() -> None:
    registry = Registry(version="1.2")
    kind = registry.declare(Host, "host")
    with pytest.raises(DuplicateKind, match="Host"):
        registry.declare(VM, "host")
    with pytest.raises(BadRef):
        registry.declare(VM, "No Kind")
    with pytest.raises(UnknownKind, match="declared: host"):
        registry.get("hots")
    assert registry.get("host") is kind
    assert Policy.unpack(registry.manifest()["host"]) == kind.policy
    assert kind.policy.version == "1.2"
    assert kind.check_state("drained") == "drained"
    with pytest.raises(UnknownState, match="serving"):
        kind.check_state("x")


def test_a_policy_of_another_version_is_read() -> None:
    assert Policy.unpack(msgpack.packb({"kind": "host", "cap": 3, "new": [1]})) == Policy("host", cap=3)
    for broken in (b"", b"\xc1", msgpack.packb([1]), msgpack.packb({}), msgpack.packb({"kind": "a", "backoff": [1]})):
        with pytest.raises(ValueError, match="not a policy"):
            Policy.unpack(broken)


def test_a_context_passes_on_what_is_said() -> None:
    link = Link()
    ctx = context(link)
    ctx.progress(1, 2, "half")
    ctx.enqueue("vm/1", after="5s")
    with pytest.raises(BadTime):
        ctx.enqueue("vm/1", at=None)  # type: ignore[arg-type]
    with pytest.raises(BadRef):
        ctx.enqueue("vm")
    assert link.calls == [(1, 2, "half"), ("vm/1", When.after(5_000_000))]
    assert (ctx.cancelled, ctx.lost, ctx.ref) == (True, False, "host/web-1")
    assert ctx.log.extra == {"entity": "host/web-1", "kind": "host", "attempt": 2}
