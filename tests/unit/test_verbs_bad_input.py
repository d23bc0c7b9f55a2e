"""Whatever a caller gets wrong is a typed error before anything is sent: these fleets have no server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from setpoint import Context, Managed, Observed
from setpoint.errors import (
    BadPayload,
    BadRef,
    BadTime,
    ConfigurationError,
    SetpointError,
    UnknownState,
    UsageError,
)
from setpoint.fleet import Fleet
from setpoint.registry import action

NAN, INF = float("nan"), float("inf")
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001


class Host(Managed[Literal["serving", "drained"]]):
    @action(when="serving", goal="drained")
    def drain(self, ctx: Context) -> Literal["serving", "drained"]:
        return "drained"


class VM(Observed[str]):
    def state(self) -> str:
        return "up"

    def goal_state(self) -> str:
        return "up"

    def actions(self, state: str, goal: str) -> list[Any]:
        return []


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet()  # anything that is sent would raise ConfigurationError
    fleet.entity("host", initial="serving")(Host)
    fleet.entity("vm")(VM)
    return fleet


BAD_REFS: list[Any] = [
    None,
    7,
    b"vm/1",
    "",
    "vm",
    "vm/",
    "/1",
    "Vm/1",
    "vm/a\nb",
    "vm/\ud800",
    "vm/" + "x" * 510,
    ("vm", "1"),
    True,
]


@pytest.mark.parametrize("ref", BAD_REFS, ids=lambda ref: repr(ref)[:20])
def test_bad_refs(fleet: Fleet, ref: Any) -> None:
    one: list[Callable[[Any], Any]] = [
        fleet.enqueue,
        fleet.get,
        fleet.explain,
        fleet.wait,
        fleet.delete,
        fleet.revive,
        fleet.unschedule,
        fleet.is_scheduled,
        lambda ref: fleet.set(ref, "drained"),
        lambda ref: fleet.reschedule(ref, after=1),
        lambda ref: fleet.enqueue_many([("vm/1", 0), (ref, 0)]),
        lambda ref: fleet.set_many([("host/1", "drained"), (ref, "drained")]),
        lambda ref: fleet.delete_many(["vm/1", ref]),
        lambda ref: fleet.retry_dead([ref]),
        lambda ref: fleet.drop_dead([ref]),
    ]
    for verb in one:
        with pytest.raises(BadRef):
            verb(ref)
    with pytest.raises(UsageError):
        fleet.pause(ref)
    with pytest.raises(UsageError):
        fleet.resume(ref)


@pytest.mark.parametrize(
    "value", [None, NAN, INF, -INF, True, False, "", "soon", -1, "-1s", 10**30, 1e300, "200000d", [], b"1s"]
)
def test_bad_durations(fleet: Fleet, value: Any) -> None:
    for verb in (
        lambda: fleet.enqueue("vm/1", after=value),
        lambda: fleet.reschedule("vm/1", after=value),
        lambda: fleet.enqueue_many([("vm/1", 0), ("vm/2", value)]),
        lambda: fleet.wait("vm/1", value),
        lambda: fleet.pause("fleet", for_=value),
    ):
        with pytest.raises(BadTime):
            verb()


@pytest.mark.parametrize(
    "value", [None, NAN, INF, -INF, True, NAIVE, "noon", -1, 10**30, 1e300, datetime.max.replace(tzinfo=UTC)]
)
def test_bad_instants(fleet: Fleet, value: Any) -> None:
    for verb in (
        lambda: fleet.enqueue("vm/1", at=value),
        lambda: fleet.reschedule("vm/1", at=value),
        lambda: fleet.pause("fleet", until=value),
    ):
        with pytest.raises(BadTime):
            verb()


def test_one_time_only(fleet: Fleet) -> None:
    with pytest.raises(BadTime):
        fleet.enqueue("vm/1", at=1, after=1)
    with pytest.raises(BadTime):
        fleet.reschedule("vm/1")
    with pytest.raises(BadTime):
        fleet.pause("fleet", until=1, for_=1)


@pytest.mark.parametrize(
    "data", [object(), NAN, {"a": INF}, NAIVE, 1 << 70, "x" * 70_000, {1.5: 1}, "\ud800", lambda: 1]
)
def test_bad_data(fleet: Fleet, data: Any) -> None:
    with pytest.raises(BadPayload):
        fleet.set("host/1", "drained", data=data)


def test_data_that_contains_itself(fleet: Fleet) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(BadPayload):
        fleet.set("host/1", "drained", data=loop)


@pytest.mark.parametrize(
    "labels", [None, [], "a=b", {"a": 1}, {1: "a"}, {"a": None}, {"a": "x" * 300}, {"a": "\ud800"}]
)
def test_bad_labels(fleet: Fleet, labels: Any) -> None:
    with pytest.raises(BadPayload):
        fleet.set("host/1", "drained", labels=labels)
    with pytest.raises(BadPayload):
        fleet.set_many([("host/1", "drained")], labels=labels)


@pytest.mark.parametrize("goal", [None, 7, "", "Drained", "draned", "a\nb", "x" * 300, "\ud800", b"drained"])
def test_bad_goals(fleet: Fleet, goal: Any) -> None:
    with pytest.raises(UnknownState):
        fleet.set("host/1", goal)
    if goal is not None:
        with pytest.raises(UnknownState):
            fleet.wait("host/1", goal=goal)
        with pytest.raises(UnknownState):
            fleet.ls("host", state=goal)


def test_an_unknown_state_says_which_there_are(fleet: Fleet) -> None:
    with pytest.raises(UnknownState, match=r"did you mean 'drained'\?.*serving, drained"):
        fleet.set("host/1", "draned")


def test_the_goal_of_an_observed_entity_is_not_ours(fleet: Fleet) -> None:
    with pytest.raises(UsageError, match="in your application"):
        fleet.set("vm/1", "up")


@pytest.mark.parametrize("revision", [-1, True, 1.0, "1", 10**20])
def test_bad_revisions(fleet: Fleet, revision: Any) -> None:
    with pytest.raises(UsageError):
        fleet.set("host/1", "drained", if_revision=revision)


@pytest.mark.parametrize("items", [None, 7, "vm/1", b"x", ["vm/1"], [("vm/1",)], [("vm/1", 1, 2)], [None]])
def test_bad_lists(fleet: Fleet, items: Any) -> None:
    for verb in (fleet.enqueue_many, fleet.set_many):
        with pytest.raises(UsageError):
            verb(items)


@pytest.mark.parametrize("target", ["", "lane:", "lane:a b", "kind:", "kind:A", "everything", None, 3])
def test_bad_targets(fleet: Fleet, target: Any) -> None:
    with pytest.raises(UsageError):
        fleet.pause(target)


@pytest.mark.parametrize(
    "arguments",
    [{"limit": 0}, {"limit": None}, {"limit": True}, {"place": "gone"}, {"kind": "A"}, {"prefix": 7}, {"state": ""}],
)
def test_bad_ls(fleet: Fleet, arguments: Any) -> None:
    with pytest.raises(UsageError):
        fleet.ls(**arguments)


@pytest.mark.parametrize("since", ["yesterday", NAIVE, NAN, True, "1-"])
def test_bad_watch(fleet: Fleet, since: Any) -> None:
    with pytest.raises(BadTime):
        fleet.watch(since=since)
    with pytest.raises(BadRef):
        fleet.watch("A")


@pytest.mark.parametrize(
    "arguments",
    [{"redis_url": 7}, {"namespace": "a b"}, {"namespace": ""}, {"unknown_kind": "maybe"}, {"patience": -1}],
)
def test_bad_fleets(arguments: Any) -> None:
    with pytest.raises(SetpointError):
        Fleet(**arguments)


@pytest.mark.parametrize("url", ["http://x", "redis://", "redis://h:99999", "nonsense", "redis://h/x"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Fleet(url).enqueue("vm/1")


def test_no_url() -> None:
    with pytest.raises(ConfigurationError, match="SETPOINT_REDIS_URL"):
        Fleet().enqueue("vm/1")
