"""The verbs of a fleet against a real server, without workers: what they answer, and what they leave in Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from setpoint import Action, Context, Managed, Observed
from setpoint.engine.door import Door, skewed
from setpoint.engine.records import ErrorText, Trouble
from setpoint.engine.scripts import FAR_US, ClaimKind, Ending, Settlement
from setpoint.errors import (
    ConfigurationError,
    Conflict,
    NotFound,
    RedisFull,
    RedisUnavailable,
    TimedOut,
    UnknownKind,
    UnknownState,
)
from setpoint.fleet import Fleet
from setpoint.registry import action
from tests.conftest import NewServer
from tests.servers import Server
from tests.waiting import wait_until

HostState = Literal["serving", "draining", "drained"]
NOON = datetime(2099, 1, 1, 12, tzinfo=UTC)


class Host(Managed[HostState]):
    @action(when="serving", goal="drained")
    def drain(self, ctx: Context) -> HostState:
        return "drained"


class VM(Observed[str]):
    def state(self) -> str:
        return "up"

    def goal_state(self) -> str:
        return "up"

    def actions(self, state: str, goal: str) -> list[Action]:
        return []


@pytest.fixture
def fleet(url: str, namespace: str) -> Iterator[Fleet]:
    with Fleet(url, namespace=namespace, patience="2s") as fleet:
        fleet.entity("host", initial="serving")(Host)
        fleet.entity("vm", cap=1)(VM)
        yield fleet


@pytest.fixture
def client(url: str, namespace: str) -> Iterator[Fleet]:
    """One that declares nothing."""
    with Fleet(url, namespace=namespace, patience="2s") as client:
        yield client


@pytest.fixture
def door(fleet: Fleet) -> Iterator[Door]:
    with fleet.door("test") as door:
        yield door


def claim(door: Door, ref: str, worker: str = "w1") -> int:
    """Lease one due ref as a worker does; its fence."""
    kind = ref.partition("/")[0]
    got = door.run(
        door.scripts.claim(
            worker, [ClaimKind(kind, "default")], lane="default", lease_us=30_000_000, lead_us=0, limit=1, named=[ref]
        )
    )
    assert [item.ref for item in got.items] == [ref]
    return got.fence


def settle(
    door: Door,
    ref: str,
    place: Literal["idle", "due", "failed", "poison", "forget", "gone"],
    *,
    fence: int | None = None,
    delay_us: int = FAR_US,
    trouble: Trouble | None = None,
    state: str | None = None,
    event: bytes = b"",
) -> None:
    fence = claim(door, ref) if fence is None else fence
    packed = trouble.pack() if trouble else b""
    item = Settlement((ref,), fence, Ending(place, delay_us, packed, state, event))
    assert door.run(door.scripts.settle([item])) == ("ok",)


def publish(door: Door, fleet: Fleet, worker: str = "w1", *, ttl_us: int = 60_000_000) -> None:
    door.run(door.scripts.register(worker, born_us=1, ttl_us=ttl_us, info=b"", kinds=fleet.registry.manifest()))


BOOM = Trouble(failures=3, delay_us=40_000_000, error=ErrorText("TimeoutError", "no answer", "drain", 1))


# ------------------------------------------------------------------------------------------------------ goals and times


def test_set_makes_a_record_with_its_initial_state_and_is_due_now(fleet: Fleet) -> None:
    result = fleet.set("host/a", "drained", data={"since": NOON, "n": [1, None]}, labels={"rack": "r1"})
    assert (result.revision, result.changed, result.outcome) == (1, True, "scheduled")
    view = fleet.get("host/a")
    assert (view.place, view.state, view.goal, view.revision) == ("due", "serving", "drained", 1)
    assert view.data == {"since": NOON, "n": [1, None]}
    assert view.labels == {"rack": "r1"}
    assert [(each.what, each.value) for each in view.history] == [("goal", "drained")]
    json.dumps(view.as_dict())


def test_set_leaves_what_it_was_not_given_and_can_store_none(fleet: Fleet) -> None:
    fleet.set("host/a", "drained", data=7, labels={"a": "b"})
    fleet.set("host/a", "serving")
    assert (fleet.get("host/a").data, fleet.get("host/a").labels) == (7, {"a": "b"})
    fleet.set("host/a", "serving", data=None, labels={})
    assert (fleet.get("host/a").data, fleet.get("host/a").labels) == (None, {})


def test_set_with_another_revision_is_a_conflict_and_writes_nothing(fleet: Fleet) -> None:
    fleet.set("host/a", "drained", if_revision=0)
    with pytest.raises(Conflict, match="has revision 1, not 0"):
        fleet.set("host/a", "serving", if_revision=0)
    assert fleet.get("host/a").goal == "drained"
    assert fleet.set("host/a", "serving", if_revision=1).revision == 2


def test_set_many(fleet: Fleet) -> None:
    results = fleet.set_many([("host/a", "drained"), ("host/b", "serving")])
    assert [each.ref for each in results] == ["host/a", "host/b"]
    assert fleet.set_many({"host/a": "drained"})[0].changed is False


def test_enqueue_takes_the_earlier_time(fleet: Fleet) -> None:
    first = fleet.enqueue("vm/7", at=NOON)
    assert (first.outcome, first.due) == ("scheduled", NOON)
    assert fleet.enqueue("vm/7", at=NOON + timedelta(hours=1)).outcome == "merged"
    assert fleet.enqueue("vm/7", at=NOON - timedelta(hours=1)).due == NOON - timedelta(hours=1)
    assert fleet.reschedule("vm/7", at=NOON).due == NOON
    assert fleet.get("vm/7").due == NOON
    assert fleet.is_scheduled("vm/7")
    assert fleet.unschedule("vm/7") is True
    assert fleet.unschedule("vm/7") is False
    assert not fleet.is_scheduled("vm/7")
    with pytest.raises(NotFound):
        fleet.get("vm/7")


@pytest.mark.parametrize("declared", [True, False])
def test_unschedule_keeps_a_managed_entity_known(fleet: Fleet, client: Fleet, declared: bool) -> None:
    fleet.set("host/a", "drained")
    assert (fleet if declared else client).unschedule("host/a")
    assert fleet.get("host/a").place == "idle"


def test_enqueue_while_leased_is_a_wish(fleet: Fleet, door: Door) -> None:
    fleet.enqueue("vm/7")
    fence = claim(door, "vm/7")
    assert not fleet.is_scheduled("vm/7")
    assert fleet.enqueue("vm/7", at=NOON).outcome == "wish"
    assert fleet.is_scheduled("vm/7")
    view = fleet.get("vm/7")
    assert (view.place, view.wish) == ("leased", NOON)
    assert view.holder
    assert (view.holder.worker, view.holder.fence) == ("w1", fence)


def test_enqueue_many_answers_each_in_order_and_merges_what_is_named_twice(fleet: Fleet) -> None:
    refs = [f"vm/{i}" for i in range(600)]
    answers = fleet.enqueue_many([*((ref, 5) for ref in refs), ("host/x", NOON), ("vm/3", "1s"), ("vm/3", "9s")])
    assert [each.ref for each in answers] == [*refs, "host/x", "vm/3", "vm/3"]
    assert answers[600].due == NOON
    assert answers[3] == answers[601] == answers[602]
    assert answers[3].due_us < answers[4].due_us
    assert fleet.counts() == {
        "host": {"due": 1, "ready": 0, "leased": 0, "idle": 0, "parked": 0},
        "vm": {"due": 600, "ready": 0, "leased": 0, "idle": 0, "parked": 0},
    }
    assert fleet.enqueue_many([]) == []


# ------------------------------------------------------------------------------------------------------- unknown kinds


def test_a_kind_that_nobody_has_is_refused_with_near_matches(fleet: Fleet, door: Door) -> None:
    with pytest.raises(UnknownKind, match="did you mean host"):
        fleet.enqueue("hosst/1")
    door.read(("HSET", door.keys.kinds, "other", b"1 w|" + fleet.registry.manifest()["vm"]))
    assert fleet.enqueue("other/1").outcome == "scheduled"
    for verb in (
        lambda: fleet.enqueue_many([("vm/1", 0), ("nope/1", 0)]),
        lambda: fleet.set_many([("host/1", "drained"), ("nope/1", "x")]),
        lambda: fleet.reschedule("nope/1", after=1),
        lambda: fleet.pause("kind:nope"),
    ):
        with pytest.raises(UnknownKind):
            verb()
    assert fleet.ls("vm") == fleet.ls("host") == []


def test_unknown_kinds_are_taken_by_pure_clients_and_on_request(client: Fleet, url: str, namespace: str) -> None:
    client.enqueue("nope/1")
    told = client.explain("nope/1")
    assert "kind-unknown" in told.codes
    with Fleet(url, namespace=namespace, unknown_kind="accept") as lenient:
        lenient.entity("vm")(VM)
        assert lenient.enqueue("nope/2").outcome == "scheduled"


# ------------------------------------------------------------------------------------------------------------- explain


def test_explain_names_every_reason(fleet: Fleet, door: Door) -> None:
    assert fleet.explain("vm/1").codes == ("unknown",)
    fleet.enqueue("vm/1")
    assert fleet.explain("vm/1").codes[0] == "kind-unknown"
    publish(door, fleet, ttl_us=1)
    assert fleet.explain("vm/1").codes[0] == "no-workers"
    publish(door, fleet)
    assert fleet.explain("vm/1").codes == ("ready",)

    fleet.pause("lane:default", why="deploy", who="ann", for_="1h")
    told = fleet.explain("vm/1")
    assert told.codes[0] == "paused"
    assert "by ann: deploy" in told.why[0]
    assert told.next == "it is evaluated once resumed: setpoint resume lane:default"
    assert told.next_at
    fleet.resume("lane:default")

    fence = claim(door, "vm/1")
    fleet.enqueue("vm/1", at=NOON)
    assert fleet.explain("vm/1").codes == ("leased", "wish")
    assert "held by worker w1" in fleet.explain("vm/1").why[0]
    fleet.enqueue("vm/2")
    assert fleet.explain("vm/2").codes[0] == "at-cap"
    fleet.reschedule("vm/1", at=NOON)
    settle(door, "vm/1", "due", fence=fence, delay_us=40_000_000, trouble=BOOM)

    told = fleet.explain("vm/1")
    assert told.codes == ("backoff", "scheduled")
    assert "failed 3 times in a row" in told.why[0]
    assert "drain: TimeoutError: no answer" in told.why[0]
    assert told.next_at == fleet.get("vm/1").due
    json.dumps(told.as_dict())
    assert str(told).startswith("vm/1 is due")


def test_explain_tells_what_to_do_about_the_dead(fleet: Fleet, door: Door) -> None:
    fleet.enqueue_many([("vm/f", 0), ("vm/p", 0)])
    settle(door, "vm/f", "failed", trouble=BOOM)
    settle(door, "vm/p", "poison", trouble=Trouble(crashes=3))
    assert fleet.explain("vm/f").codes[0] == "failed"
    assert "setpoint dead retry vm/f" in fleet.explain("vm/f").next
    assert fleet.explain("vm/p").codes[0] == "poison"


def test_explain_at_rest(fleet: Fleet, door: Door) -> None:
    fleet.set("host/a", "drained")
    settle(door, "host/a", "idle", state="drained")
    assert fleet.explain("host/a").codes == ("at-goal",)
    fleet.set("host/a", "draining")
    settle(door, "host/a", "idle", delay_us=3_600_000_000)
    assert fleet.explain("host/a").codes == ("not-at-goal", "resync")


# ---------------------------------------------------------------------------------------------------------------- wait


def test_wait_is_woken_when_the_goal_is_reached(fleet: Fleet, door: Door) -> None:
    fleet.set("host/a", "drained")
    fence = claim(door, "host/a")
    seen: list[object] = []
    waiting = threading.Thread(target=lambda: seen.append(fleet.wait("host/a", "20s").state))
    waiting.start()
    wait_until(lambda: door.read(("HEXISTS", door.keys.waiters, "host/a"))[0], what="the waiter to register")
    settle(door, "host/a", "idle", fence=fence, state="drained")
    waiting.join(10)
    assert seen == ["drained"]
    assert door.read(("HLEN", door.keys.waiters)) == [0]


def test_wait_for_a_state_on_the_way(fleet: Fleet, door: Door) -> None:
    fleet.set("host/a", "drained")
    settle(door, "host/a", "due", state="draining")
    assert fleet.wait("host/a", goal="draining").place == "due"
    with pytest.raises(UnknownState):
        fleet.wait("host/a", goal="gone")


def test_wait_times_out_and_leaves_nothing(fleet: Fleet, door: Door) -> None:
    fleet.enqueue("vm/7", after="1h")
    with pytest.raises(TimedOut, match="within 50ms: it is due"):
        fleet.wait("vm/7", "50ms")
    assert door.read(("HLEN", door.keys.waiters)) == [0]


def test_wait_knows_what_is_at_rest_and_what_will_never_be(fleet: Fleet, door: Door) -> None:
    assert fleet.wait("vm/7").place == "unknown"
    fleet.enqueue("vm/7")
    settle(door, "vm/7", "failed", trouble=BOOM)
    with pytest.raises(TimedOut, match=r"parked as failed .*no answer.* revive"):
        fleet.wait("vm/7", "1h")
    fleet.pause("vm/8", why="broken")
    with pytest.raises(TimedOut, match=r"broken.* resume"):
        fleet.wait("vm/8", "1h")


# --------------------------------------------------------------------------------------------------------------- watch


def test_watch_sees_what_happens_and_goes_on_after_an_event(fleet: Fleet, door: Door) -> None:
    fleet.set("host/old", "drained")
    events = fleet.watch("host")
    fleet.set("host/a", "drained")
    settle(door, "host/a", "idle", state="drained", event="reached serving→drained".encode())
    fleet.enqueue("vm/1")
    settle(door, "vm/1", "idle", event=b"nothing")
    fleet.delete("host/a")
    found = [next(events) for _ in range(3)]
    assert [(e.ref, e.name, e.detail) for e in found] == [
        ("host/a", "goal", "drained"),
        ("host/a", "reached", "serving→drained"),
        ("host/a", "deleted", ""),
    ]
    json.dumps(found[0].as_dict())
    after = fleet.watch("host/a", since=found[0].id)
    assert next(after) == found[1]
    everything = fleet.watch(since="5m")
    assert next(everything).ref == "host/old"
    from_then = fleet.watch(since=datetime(2020, 1, 1, tzinfo=UTC))
    assert next(from_then).ref == "host/old"
    for each in (events, after, everything, from_then):
        each.close()  # type: ignore[attr-defined]


def test_watch_resumes_within_one_entry(fleet: Fleet, door: Door) -> None:
    fleet.enqueue_many([("vm/1", 0), ("vm/2", 0)])
    fences = [claim(door, "vm/1"), claim(door, "vm/2")]
    ending = Ending("idle", FAR_US, event=b"nothing")
    items = [Settlement((f"vm/{i + 1}",), fences[i], ending) for i in range(2)]
    door.run(door.scripts.settle(items))
    watch = fleet.watch(since="0-0")
    first, second = next(watch), next(watch)
    resumed = fleet.watch(since=first.id)
    assert next(resumed) == second
    assert (first.ref, second.ref) == ("vm/1", "vm/2")
    for each in (watch, resumed):
        each.close()  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------ deleting and the dead


def test_delete(fleet: Fleet, door: Door) -> None:
    fleet.enqueue_many([("vm/1", 0), ("vm/2", 0)])
    claim(door, "vm/2")
    assert fleet.delete("vm/1") == "deleted"
    assert fleet.delete_many(["vm/1", "vm/2", "vm/2"]) == {"vm/1": "absent", "vm/2": "cancelling"}
    holder = fleet.get("vm/2").holder
    assert holder
    assert holder.ending == "deleted"


def test_dead_letters(fleet: Fleet, door: Door) -> None:
    fleet.enqueue_many([("vm/f", 0), ("vm/p", 0), ("vm/ok", NOON)])
    settle(door, "vm/f", "failed", trouble=BOOM)
    settle(door, "vm/p", "poison", trouble=Trouble(crashes=3))
    fleet.pause("vm/paused")
    dead = fleet.dead()
    assert [(each.ref, each.reason) for each in dead] == [("vm/p", "poison"), ("vm/f", "failed")]
    assert dead[1].error == "drain: TimeoutError: no answer"
    json.dumps(dead[1].as_dict())
    assert [each.ref for each in fleet.dead("vm", limit=1)] == ["vm/p"]
    assert fleet.enqueue("vm/p").outcome == "parked"
    assert fleet.enqueue("vm/p").due is None
    revived = fleet.retry_dead(["vm/p", "vm/ok", "vm/paused"])
    assert [each.outcome for each in revived] == ["scheduled", "absent", "absent"]
    assert fleet.get("vm/p").trouble == Trouble()
    assert fleet.drop_dead(["vm/f", "vm/ok"]) == {"vm/f": "deleted", "vm/ok": "absent"}
    assert fleet.revive("vm/ok").outcome == "absent"
    assert fleet.dead() == []


# -------------------------------------------------------------------------------------------------------------- pausing


def test_pause_and_resume_one_entity(fleet: Fleet) -> None:
    fleet.enqueue("vm/7", at=NOON)
    info = fleet.pause("vm/7", why="disk", who="ann", until=NOON)
    assert (info.why, info.who, info.until) == ("disk", "ann", NOON)
    view = fleet.get("vm/7")
    assert (view.place, view.wish) == ("parked", NOON)
    assert view.paused == (info,)
    assert fleet.pauses() == [info]
    json.dumps(view.as_dict())
    assert fleet.resume("vm/7") is True
    assert fleet.resume("vm/7") is False
    assert fleet.get("vm/7").due == NOON


def test_resume_does_not_free_the_dead(fleet: Fleet, door: Door) -> None:
    fleet.enqueue("vm/f")
    settle(door, "vm/f", "failed", trouble=BOOM)
    fleet.pause("vm/f")
    assert fleet.resume("vm/f") is True
    assert fleet.get("vm/f").place == "parked"


def test_pauses_end_by_themselves(fleet: Fleet, door: Door) -> None:
    fleet.pause("fleet", for_="1m")
    fleet.pause("kind:vm")
    assert [each.target for each in fleet.pauses()] == ["fleet", "kind:vm"]
    with skewed(door, 61_000_000):
        assert [each.target for each in fleet.pauses()] == ["kind:vm"]


# ------------------------------------------------------------------------------------------------------------------- ls


def test_ls_filters(fleet: Fleet, door: Door) -> None:
    fleet.set_many((f"host/web-{i}", "drained") for i in range(300))
    fleet.set("host/db-1", "drained")
    settle(door, "host/db-1", "idle", state="drained")
    fleet.enqueue("vm/1")
    assert len(fleet.ls()) == 100
    assert len(fleet.ls(limit=1000)) == 302
    assert [each.ref for each in fleet.ls("host", state="drained")] == ["host/db-1"]
    assert [each.ref for each in fleet.ls("host", place="idle")] == ["host/db-1"]
    assert {each.ref for each in fleet.ls("host", prefix="web-29", limit=50)} == {
        "host/web-29",
        *(f"host/web-29{i}" for i in range(10)),
    }
    assert [each.ref for each in fleet.ls(limit=1, kind="host", prefix="web-299")] == ["host/web-299"]


# -------------------------------------------------------------------------------------------------------- when Redis …


def test_redis_away_is_a_typed_error_within_patience() -> None:
    with (
        Fleet("redis://127.0.0.1:1/0", patience="300ms") as fleet,
        pytest.raises(RedisUnavailable, match=r"127.0.0.1:1"),
    ):
        fleet.enqueue("vm/7")


def test_no_url_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="SETPOINT_REDIS_URL"):
        Fleet.from_env({}).enqueue("vm/7")
    with pytest.raises(ConfigurationError, match="accepted"):
        Fleet("http://nowhere").get("vm/7")


def test_out_of_memory_writes_nothing(new_server: NewServer) -> None:
    server: Server = new_server(maxmemory="100mb")
    with Fleet(server.url, patience="1s") as fleet, server.client() as raw:
        fleet.enqueue("vm/0")
        raw.config_set("maxmemory", 1)
        before = raw.dbsize()
        for verb in (
            lambda: fleet.enqueue("vm/7"),
            lambda: fleet.enqueue_many([("vm/8", 0)]),
            lambda: fleet.set("host/1", "x"),
        ):
            with pytest.raises(RedisFull):
                verb()
        assert raw.dbsize() == before
        assert fleet.is_scheduled("vm/0")
        # What relieves the server is let through.
        assert fleet.pause("fleet").target == "fleet"
        assert fleet.delete("vm/0") == "deleted"


def test_a_restarted_server_is_met_again(new_server: NewServer) -> None:
    server = new_server(appendonly="yes", appendfsync="always")
    with Fleet(server.url) as fleet:
        fleet.enqueue("vm/7", at=NOON)
        server.restart()
        assert fleet.get("vm/7").due == NOON


# ------------------------------------------------------------------------------------------------- threads, forks, cost


def test_threads_share_a_fleet(fleet: Fleet) -> None:
    def enqueue(n: int) -> None:
        for i in range(50):
            fleet.enqueue(f"vm/{n}-{i}")

    threads = [threading.Thread(target=enqueue, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fleet.counts("vm")["vm"]["due"] == 1000


def test_a_forked_process_uses_connections_of_its_own(url: str, namespace: str) -> None:
    program = """if True:
        import os, sys
        from setpoint.fleet import Fleet
        fleet = Fleet(sys.argv[1], namespace=sys.argv[2])
        fleet.enqueue("vm/0")
        child = os.fork()
        for i in range(200):
            ref = f"vm/{'c' if child == 0 else 'p'}{i}"
            assert fleet.enqueue(ref).ref == ref and fleet.get(ref).ref == ref
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert fleet.counts("vm")["vm"]["due"] == 401
        fleet.close()
    """
    subprocess.run([sys.executable, "-c", program, url, namespace], check=True, timeout=60)


def test_making_a_fleet_imports_no_redis() -> None:
    program = "import sys; from setpoint import Fleet; Fleet('redis://x'); sys.exit('redis' in sys.modules)"
    environ = {**os.environ, "PYTHONWARNINGS": "error"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environ)
