"""Schedulers against real servers: what is due is rung, what is lost is rung again, what is broken is repaired."""

from __future__ import annotations

import logging
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any

import msgpack
import pytest
from rq import Queue

from setpoint.engine.door import Door, skewed
from setpoint.engine.records import Trouble
from setpoint.engine.scripts import FAR_US, ClaimKind, When
from setpoint.errors import ConfigurationError
from setpoint.jobs import JSONSerializer, is_hint
from setpoint.registry import Policy
from setpoint.settings import Settings
from setpoint_scheduler import run
from setpoint_scheduler.auditor import Auditor
from setpoint_scheduler.janitor import Janitor
from setpoint_scheduler.loop import Agent, Loop, Wake
from setpoint_scheduler.plan import Plan
from setpoint_scheduler.promoter import Promoter
from setpoint_scheduler.reaper import Reaper
from tests.conftest import NewServer
from tests.servers import Server
from tests.waiting import let_pass, wait_until

SECOND = 1_000_000


class Fleet:
    """A door, what RQ holds, and workers that exist on paper."""

    def __init__(self, server: Server, namespace: str, *, rq: Server | None = None, lease: str = "2s") -> None:
        self.settings = Settings(
            redis_url=server.url, rq_url="" if rq is None else rq.url, namespace=namespace, lease=lease
        )
        self.door = Door(server.url, namespace, role="test")
        self.scripts, self.keys = self.door.scripts, self.door.keys
        self.rq = (rq or server).client(decode_responses=False)

    def publish(self, *kinds: str, worker: str = "w1", lane: str = "default", ttl: float = 600, **policy: Any) -> None:
        info = msgpack.packb({"lanes": [lane]})
        published = {kind: Policy(kind, lane=lane, **policy).pack() for kind in kinds}
        self.door.run(self.scripts.register(worker, born_us=1, ttl_us=int(ttl * SECOND), info=info, kinds=published))

    def enqueue(self, *refs: str, after: float = 0) -> None:
        self.door.run(self.scripts.enqueue([(ref, When.after(int(after * SECOND))) for ref in refs]))

    def hints(self, lane: str = "default") -> list[str]:
        return [job for job in Queue(lane, connection=self.rq, serializer=JSONSerializer).get_job_ids() if is_hint(job)]

    def pop(self, lane: str = "default") -> bytes | None:
        return self.rq.lpop(f"rq:queue:{lane}")

    def claim(self, *kinds: str, hint: str = "", limit: int = 10, lease: float = 2, worker: str = "w1") -> Any:
        return self.door.run(
            self.scripts.claim(
                worker,
                [ClaimKind(kind, "default") for kind in kinds],
                lane="default",
                lease_us=int(lease * SECOND),
                lead_us=0,
                limit=limit,
                hint=hint,
            )
        )

    def due(self, ref: str) -> float | None:
        return self.door.read(("ZSCORE", self.keys.due(ref.partition("/")[0]), ref))[0]

    def close(self) -> None:
        self.door.close()
        self.rq.close()


@pytest.fixture
def fleet(url: str, redis_server: Server, namespace: str) -> Iterator[Fleet]:
    found = Fleet(redis_server, namespace)
    yield found
    found.close()


@contextmanager
def scheduler(settings: Settings) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(settings,), kwargs={"stop": stop})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive()


@contextmanager
def looping(fleet: Fleet, make: Callable[[Door, Plan], list[Agent]]) -> Iterator[None]:
    """Chosen agents in a loop of their own."""
    door = Door(fleet.settings.redis_url, fleet.settings.namespace, role="scheduler", patience=0.5)
    plan = Plan(door)
    plan.refresh()
    loop = Loop(make(door, plan), Wake(fleet.settings.redis_url, door.keys.wake))
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield
    finally:
        loop.stop()
        thread.join(15)
        door.close()
        assert not thread.is_alive()


class TestHints:
    def test_what_is_due_is_rung(self, fleet: Fleet) -> None:
        fleet.publish("host")
        fleet.enqueue("host/web-7")
        with scheduler(fleet.settings):
            wait_until(fleet.hints, timeout=3)
        queue = Queue("default", connection=fleet.rq, serializer=JSONSerializer)
        job = queue.get_jobs()[0]
        assert job.args == ["host/web-7"]
        assert job.description is not None
        assert job.description.startswith("reconcile host/web-7 (due ")
        assert queue in Queue.all(connection=fleet.rq, serializer=JSONSerializer)

    def test_rung_at_once_after_an_enqueue(self, fleet: Fleet) -> None:
        fleet.publish("host")
        took: list[float] = []
        with scheduler(fleet.settings):
            wait_until(lambda: fleet.rq.sismember("rq:queues", "rq:queue:default"), timeout=3)
            for i in range(20):
                began = monotonic()
                fleet.enqueue(f"host/{i}")
                popped = fleet.rq.blpop(["rq:queue:default"], timeout=3)
                took.append(monotonic() - began)
                assert popped is not None
                assert fleet.claim("host", hint=popped[1].decode()).items
        print(f"hint after enqueue: p50 {statistics.median(took) * 1e3:.2f} ms, max {max(took) * 1e3:.2f} ms")
        assert statistics.median(took) <= 0.050

    def test_a_future_ref_is_rung_at_its_time(self, fleet: Fleet) -> None:
        fleet.publish("host")
        late: list[int] = []
        with scheduler(fleet.settings):
            wait_until(lambda: fleet.rq.sismember("rq:queues", "rq:queue:default"), timeout=3)
            for i in range(5):
                fleet.enqueue(f"host/{i}", after=0.25)
                due = int(fleet.due(f"host/{i}") or 0)
                popped = fleet.rq.blpop(["rq:queue:default"], timeout=3)
                late.append(fleet.door.now_us() - due)
                assert popped is not None
                fleet.door.run(fleet.scripts.unschedule(f"host/{i}", keep=False))
                fleet.door.run(fleet.scripts.unhint("default", [popped[1].decode()]))
        print(f"hint after due: p50 {statistics.median(late) / 1e3:.2f} ms, min {min(late) / 1e3:.2f} ms")
        assert min(late) >= -fleet.settings.lead_us
        assert statistics.median(late) <= 50_000

    def test_no_more_than_the_room(self, fleet: Fleet) -> None:
        fleet.publish("host", worker="w1")
        fleet.publish("host", worker="w2")
        fleet.publish("host", worker="dead", ttl=0)
        fleet.publish("disk", worker="other", lane="slow")
        for batch in range(5):
            fleet.enqueue(*(f"host/{batch}-{i}" for i in range(250)))
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(scheduler(fleet.settings))
            wait_until(lambda: len(fleet.hints()) == 4, timeout=3)
            fleet.enqueue("host/another")
            let_pass(0.5)
            assert len(fleet.hints()) == 4
            hint = (fleet.pop() or b"").decode()
            fleet.claim("host", hint=hint)
            wait_until(lambda: len(fleet.hints()) == 4 and hint not in fleet.hints(), timeout=1.5)

    def test_a_kind_nobody_published_is_left_alone_until_somebody_does(self, fleet: Fleet) -> None:
        fleet.enqueue("ghost/1")
        with scheduler(fleet.settings):
            let_pass(0.3)
            assert fleet.hints() == []
            fleet.publish("ghost")
            wait_until(fleet.hints, timeout=2)

    def test_lanes_have_their_own_hints(self, fleet: Fleet) -> None:
        fleet.publish("host", worker="a")
        fleet.publish("disk", worker="b", lane="slow")
        with scheduler(fleet.settings):
            fleet.enqueue("disk/1")
            wait_until(lambda: fleet.hints("slow"), timeout=2)
            assert fleet.hints() == []

    def test_paused_rings_nothing(self, fleet: Fleet) -> None:
        fleet.publish("host")
        fleet.door.run(fleet.scripts.pause("lane:default", text="maintenance"))
        with scheduler(fleet.settings):
            fleet.enqueue("host/1")
            let_pass(0.3)
            assert fleet.hints() == []
            fleet.door.run(fleet.scripts.resume("lane:default"))
            wait_until(fleet.hints, timeout=2)

    def test_an_unreadable_policy_harms_no_other(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        fleet.publish("host")
        fleet.door.read(
            ("HSET", fleet.keys.kinds, "broken", b"1 w|\xc1\xff"), ("HSET", fleet.keys.worker, "w1", b"\xc1")
        )
        with scheduler(fleet.settings):
            fleet.enqueue("host/1", "broken/1")
            wait_until(fleet.hints, timeout=2)
        assert [r.message for r in caplog.records].count("policy unreadable") == 1

    def test_a_full_room_does_not_spin(self, new_server: NewServer, namespace: str) -> None:
        server = new_server()
        fleet = Fleet(server, namespace)
        fleet.publish("host")
        with scheduler(fleet.settings):
            fleet.enqueue("host/1", "host/2")
            wait_until(lambda: len(fleet.hints()) == 2, timeout=3)
            with server.client() as client:
                client.config_resetstat()
                sent, end = 0, monotonic() + 1
                while monotonic() < end:
                    fleet.enqueue(f"host/{sent % 200}-x")
                    sent += 1
                ran = client.info("commandstats")["cmdstat_evalsha"]["calls"] - sent
        assert sent > 1000
        assert ran <= 520
        fleet.close()


class TestLostHints:
    def test_flushed_rq_server(self, new_server: NewServer, redis_server: Server, url: str, namespace: str) -> None:
        rq = new_server()
        fleet = Fleet(redis_server, namespace, rq=rq)
        fleet.publish("host")
        fleet.enqueue("host/1")
        with scheduler(fleet.settings):
            wait_until(lambda: len(fleet.hints()) == 2, timeout=3, what="all the room to be used")
            first = fleet.hints()
            fleet.rq.flushall()
            wait_until(fleet.hints, timeout=3)
            assert not set(first) & set(fleet.hints())
            assert fleet.rq.sismember("rq:queues", "rq:queue:default")
        fleet.close()

    @pytest.mark.crash
    def test_rq_server_down_for_a_while(
        self,
        new_server: NewServer,
        redis_server: Server,
        url: str,
        namespace: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        rq = new_server()
        fleet = Fleet(redis_server, namespace, rq=rq)
        fleet.publish("host")
        with scheduler(fleet.settings):
            wait_until(lambda: fleet.rq.sismember("rq:queues", "rq:queue:default"), timeout=3)
            rq.kill9()
            fleet.enqueue("host/1")
            wait_until(lambda: "rq is away" in caplog.messages, timeout=3)
            let_pass(1)
            assert fleet.door.read(("ZCARD", fleet.keys.hints("default"))) == [0]
            rq.start()
            wait_until(fleet.hints, timeout=4)
        assert caplog.messages.count("rq is away") == 1
        assert caplog.messages.count("rq is back") == 1
        fleet.close()

    def test_hints_that_stand_in_the_list_are_kept(self, fleet: Fleet) -> None:
        fleet.publish("host")
        fleet.enqueue("host/1")
        with scheduler(fleet.settings):
            wait_until(lambda: len(fleet.hints()) == 2, timeout=3)
            before = fleet.hints()
            let_pass(3)
            assert fleet.hints() == before


class TestReaper:
    def test_takes_over_within_a_lease_and_a_second(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        fleet.publish("host")
        fleet.enqueue("host/1", "host/2")
        with scheduler(fleet.settings):
            wait_until(lambda: fleet.door.read(("HEXISTS", fleet.keys.meta, "reap_tick"))[0])
            let_pass(1)  # past the hold-off at the start
            before = fleet.due("host/1")
            assert len(fleet.claim("host").items) == 2
            assert fleet.due("host/1") is None
            wait_until(lambda: fleet.due("host/1") is not None and fleet.due("host/2") is not None, timeout=3)
        assert fleet.due("host/1") == before
        trouble = Trouble.unpack(fleet.door.read(("HGET", fleet.keys.trouble, "host/1"))[0])
        assert (trouble.suspect, trouble.crashes) == (1, 0)
        assert "reaped" in caplog.messages

    def test_a_worker_that_beats_is_left_alone(self, fleet: Fleet) -> None:
        fleet.publish("host")
        fleet.enqueue("host/1")
        claim = fleet.claim("host")
        held = [("host/1", claim.fence)]
        with scheduler(fleet.settings):
            for _ in range(15):
                beat = fleet.door.run(fleet.scripts.beat("w1", held, lease_us=2 * SECOND, ttl_us=60 * SECOND))
                assert beat.lost == ()
                let_pass(0.2)

    def test_after_a_gap_it_gives_two_beats_first(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        fleet.publish("host")
        fleet.enqueue("host/1")
        fleet.claim("host", lease=0)
        fleet.door.read(("HSET", fleet.keys.meta, "reap_tick", fleet.door.now_us() - 60 * SECOND))
        plan = Plan(fleet.door)
        plan.refresh()
        reaper = Reaper(fleet.door, plan, lease_us=2 * SECOND)
        assert 0 < reaper.tick() <= 0.34
        assert "reaper holds off" in caplog.messages
        assert fleet.due("host/1") is None
        wait_until(lambda: bool(reaper.tick()) and fleet.due("host/1") is not None, timeout=1.5)

    def test_a_clock_step_ahead_costs_live_workers_no_leases(self, fleet: Fleet) -> None:
        fleet.publish("host")
        fleet.enqueue("host/1")
        claim = fleet.claim("host", lease=2)
        plan = Plan(fleet.door)
        plan.refresh()
        reaper = Reaper(fleet.door, plan, lease_us=2 * SECOND)
        with skewed(fleet.door, 600 * SECOND):
            reaper.tick()
            assert fleet.due("host/1") is None
            beat = fleet.door.run(
                fleet.scripts.beat("w1", [("host/1", claim.fence)], lease_us=2 * SECOND, ttl_us=60 * SECOND)
            )
            assert beat.lost == ()
            let_pass(0.7)
            reaper.tick()
            assert fleet.due("host/1") is None


class TestClockSteps:
    @pytest.mark.parametrize("step", [600, -600])
    def test_work_goes_on(self, fleet: Fleet, step: int) -> None:
        fleet.publish("host", ttl=7200)
        with scheduler(fleet.settings):
            wait_until(lambda: fleet.rq.sismember("rq:queues", "rq:queue:default"), timeout=3)
            with skewed(fleet.door, step * SECOND):
                fleet.enqueue("host/1")
                wait_until(fleet.hints, timeout=2)
                fleet.claim("host")
                wait_until(lambda: fleet.due("host/1") is not None, timeout=5, what="a takeover by the new clock")

    def test_hints_rung_before_a_step_are_not_taken_for_lost(self, fleet: Fleet) -> None:
        fleet.publish("host", ttl=7200)
        fleet.enqueue("host/1")
        with scheduler(fleet.settings):
            wait_until(lambda: len(fleet.hints()) == 2, timeout=3)
            before = fleet.hints()
            with skewed(fleet.door, 600 * SECOND):
                let_pass(1.5)
                assert fleet.hints() == before

    def test_leases_far_ahead_are_cut(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        fleet.publish("host", ttl=7200)
        fleet.enqueue("host/1")

        def agents(door: Door, plan: Plan) -> list[Agent]:
            return [
                Promoter(door, plan, rq_url=fleet.settings.hints_url, lead_us=3000),
                Reaper(door, plan, lease_us=2 * SECOND),
                Auditor(door, plan, lease_us=2 * SECOND, page=0.5, rest=0.5),
            ]

        with looping(fleet, agents):
            wait_until(fleet.hints, timeout=3)
            fleet.claim("host")
            with skewed(fleet.door, -600 * SECOND):
                wait_until(lambda: "clock stepped back" in caplog.messages, timeout=3)
                wait_until(lambda: "clock step" in caplog.messages, timeout=3)
                wait_until(lambda: fleet.due("host/1") is not None, timeout=5)


class TestAuditor:
    def test_repairs_planted_damage(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        fleet.publish("host", "disk")
        keys = fleet.keys
        fleet.enqueue(*(f"disk/{i}" for i in range(100)))
        fleet.door.read(
            ("ZADD", keys.due("host"), 5, "host/doubled", 5, "host/fine"),
            ("ZADD", keys.idle("host"), FAR_US, "host/doubled"),
            ("ZADD", keys.parked("host"), 5, "host/doubled"),
            ("ZADD", keys.lease("host"), 5, "host/unheld"),
            ("HSET", keys.holder, "host/orphan", "1 h 5 5 w1"),
        )
        plan = Plan(fleet.door)
        plan.refresh()
        auditor = Auditor(fleet.door, plan, lease_us=2 * SECOND, rest=99)
        waits = 0
        while auditor.tick() < 80:
            waits += 1
            assert waits < 100
        assert auditor.repaired == 3
        assert fleet.due("host/doubled") is None
        assert fleet.due("host/unheld") is not None
        assert fleet.door.read(
            ("ZSCORE", keys.idle("host"), "host/doubled"),
            ("ZSCORE", keys.parked("host"), "host/doubled"),
            ("HEXISTS", keys.holder, "host/orphan"),
            ("ZCARD", keys.due("disk")),
        ) == [None, 5.0, 0, 100]
        assert "repaired" in caplog.messages
        while auditor.tick() < 80:
            pass
        assert auditor.repaired == 3

    def test_walks_large_sets(self, fleet: Fleet) -> None:
        fleet.publish("host")
        for batch in range(8):
            fleet.enqueue(*(f"host/{batch}-{i}" for i in range(250)))
        fleet.door.read(("ZADD", fleet.keys.idle("host"), *(x for b in range(8) for x in (FAR_US, f"host/{b}-249"))))
        plan = Plan(fleet.door)
        plan.refresh()
        auditor = Auditor(fleet.door, plan, lease_us=2 * SECOND, rest=99)
        while auditor.tick() < 80:
            pass
        assert auditor.repaired == 8
        assert fleet.door.read(("ZCARD", fleet.keys.idle("host"))) == [0]


class TestJanitor:
    def test_waiters_that_were_killed_leave_nothing(self, fleet: Fleet) -> None:
        waiters, now = fleet.keys.waiters, fleet.door.now_us()
        fleet.door.read(("HSET", waiters, "host/killed", now - 1, "host/waits", now + 60 * SECOND))
        self.janitor(fleet).tick()
        assert fleet.door.read(("HKEYS", waiters)) == [[b"host/waits"]]

    def janitor(self, fleet: Fleet, **options: float) -> Janitor:
        plan = Plan(fleet.door)
        plan.refresh()
        return Janitor(fleet.door, plan, **options)

    def test_resync(self, fleet: Fleet) -> None:
        fleet.publish("host", resync_us=60 * SECOND)
        fleet.publish("disk")
        now = fleet.door.now_us()
        fleet.door.read(
            ("ZADD", fleet.keys.idle("host"), now - 1, "host/old", now + 60 * SECOND, "host/new"),
            ("ZADD", fleet.keys.idle("disk"), now - 1, "disk/old"),
        )
        assert 0 < self.janitor(fleet).tick() <= 1  # a kind that is published later must be seen soon
        assert fleet.due("host/old") is not None
        assert fleet.due("host/new") is None
        assert fleet.due("disk/old") is None

    def test_resync_is_spread(self, fleet: Fleet) -> None:
        fleet.publish("host", resync_us=60 * SECOND)
        fleet.door.read(("ZADD", fleet.keys.idle("host"), *(x for i in range(300) for x in (5, f"host/{i}"))))
        janitor = self.janitor(fleet)
        assert janitor.tick() < 0.1
        wait_until(lambda: bool(janitor.tick()) and fleet.door.read(("ZCARD", fleet.keys.due("host"))) == [300])
        scores = [float(s) for s in fleet.door.read(("ZRANGE", fleet.keys.due("host"), 0, -1, "WITHSCORES"))[0][1::2]]
        assert 5 * SECOND < max(scores) - min(scores) < 7 * SECOND

    def test_resync_through_the_whole_scheduler(self, fleet: Fleet) -> None:
        fleet.publish("host", resync_us=SECOND)
        fleet.door.read(("ZADD", fleet.keys.idle("host"), fleet.door.now_us() + SECOND // 2, "host/a"))
        with scheduler(fleet.settings):
            wait_until(fleet.hints, timeout=4)

    def test_pauses_with_an_end(self, fleet: Fleet) -> None:
        fleet.publish("host")
        fleet.enqueue("host/a", "host/b", "host/c")
        soon = fleet.door.now_us() + SECOND // 5
        fleet.door.run(fleet.scripts.park("host/a", text="me", until_us=soon))
        fleet.door.run(fleet.scripts.park("host/b", text="me"))
        poison = Trouble(reason="poison").pack()
        fleet.door.read(
            ("ZREM", fleet.keys.due("host"), "host/c"),
            ("ZADD", fleet.keys.parked("host"), 5, "host/c"),
            ("HSET", fleet.keys.trouble, "host/c", poison),
        )
        fleet.door.run(fleet.scripts.park("host/c", text="me", until_us=soon))
        fleet.door.run(fleet.scripts.pause("kind:host", text="me", until_us=soon))
        janitor = self.janitor(fleet, period=0.05)
        janitor.tick()
        assert fleet.due("host/a") is None
        wait_until(lambda: bool(janitor.tick()) and fleet.due("host/a") is not None, timeout=2)
        assert fleet.due("host/b") is None
        assert fleet.due("host/c") is None
        assert fleet.door.read(("HKEYS", fleet.keys.paused)) == [[b"ref:host/b"]]

    def test_dead_workers_are_forgotten(self, fleet: Fleet) -> None:
        fleet.publish("host", worker="alive")
        fleet.publish("host", worker="dead", ttl=0)
        janitor = self.janitor(fleet, dead_for=0.2)
        janitor.tick()
        names = ("ZRANGE", fleet.keys.workers, 0, -1), ("HKEYS", fleet.keys.worker)
        assert len(fleet.door.read(*names)[0]) == 2
        wait_until(lambda: bool(janitor.tick()) and len(fleet.door.read(*names)[0]) == 1, timeout=2)
        assert fleet.door.read(*names) == [[b"alive"], [b"alive"]]

    def test_a_worker_that_came_back_is_kept(self, fleet: Fleet) -> None:
        fleet.publish("host", worker="w1", ttl=0)
        janitor = self.janitor(fleet, dead_for=0.05)
        janitor.tick()
        fleet.publish("host", worker="w1")
        let_pass(0.1)
        janitor.tick()
        assert fleet.door.read(("ZCARD", fleet.keys.workers)) == [1]


class TestLoop:
    def test_idle_costs_little(self, new_server: NewServer, namespace: str) -> None:
        server = new_server()
        fleet = Fleet(server, namespace, lease="30s")
        fleet.publish("host", resync_us=3600 * SECOND)
        fleet.publish("disk", lane="slow", worker="w2")
        window, count = 8.0, 3
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(scheduler(fleet.settings))
            let_pass(1.5)
            with server.client() as client, client.monitor() as monitor:
                client.execute_command("PING")
                let_pass(window)
                client.execute_command("ECHO", "end")
                commands: list[str] = []
                for each in monitor.listen():
                    if each["client_type"] != "lua":
                        commands.append(each["command"].split()[0])
                    if each["command"] == "ECHO end":
                        break
        rate = (len(commands) - 2) / window / count
        print(f"idle: {rate:.2f} commands/s each; {sorted({c: commands.count(c) for c in commands}.items())}")
        assert rate <= 2
        fleet.close()

    @pytest.mark.crash
    def test_goes_on_after_redis_was_killed(
        self, new_server: NewServer, namespace: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = new_server(appendonly="yes", appendfsync="always")
        fleet = Fleet(server, namespace)
        fleet.publish("host")
        with scheduler(fleet.settings):
            fleet.enqueue("host/1")
            wait_until(fleet.hints, timeout=3)
            server.kill9()
            wait_until(lambda: "redis is away" in caplog.messages, timeout=5)
            let_pass(1)
            server.start()
            fleet.enqueue("host/2")
            wait_until(lambda: "redis is back" in caplog.messages, timeout=5)
            wait_until(lambda: len(fleet.hints()) == 2, timeout=5)
            server.restart()
            fleet.rq.flushdb()
            fleet.publish("host")
            fleet.enqueue("host/3")
            wait_until(fleet.hints, timeout=8)
        assert caplog.messages.count("redis is away") <= 2
        assert "agent failed" not in caplog.messages
        fleet.close()

    @pytest.mark.crash
    def test_redis_away_at_the_start(
        self, new_server: NewServer, namespace: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = new_server()
        fleet = Fleet(server, namespace)
        server.kill9()
        with scheduler(fleet.settings):
            wait_until(lambda: "redis is away" in caplog.messages, timeout=5)
            server.start()
            fleet.publish("host")
            fleet.enqueue("host/1")
            wait_until(fleet.hints, timeout=5)
        assert caplog.messages.count("redis is away") == 1
        fleet.close()

    def test_a_failing_agent_stops_no_other(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        ticked = threading.Event()

        class Broken(Agent):
            name = "broken"
            tries = 0

            def tick(self) -> float:
                self.tries += 1
                raise ZeroDivisionError("always")

        class Fine(Agent):
            name = "fine"
            ticks = 0

            def tick(self) -> float:
                self.ticks += 1
                if self.ticks > 50:
                    ticked.set()
                return 0.01

        broken = Broken()
        with looping(fleet, lambda _door, _plan: [broken, Fine()]):
            assert ticked.wait(5)
        assert 1 < broken.tries < 10
        assert caplog.messages.count("agent failed") == 1

    def test_full_memory_is_not_taken_for_an_outage(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        fleet.publish("host", resync_us=SECOND)
        fleet.door.read(("ZADD", fleet.keys.idle("host"), 5, "host/1"), ("CONFIG", "SET", "maxmemory", "1"))
        with scheduler(fleet.settings):
            wait_until(lambda: "rq is away" in caplog.messages, timeout=3, what="RQ's writes to be refused")
            wait_until(lambda: fleet.due("host/1") is not None, timeout=3, what="scripts to go on")
            fleet.door.read(("CONFIG", "SET", "maxmemory", "0"))
            wait_until(fleet.hints, timeout=5)
        assert "redis is away" not in caplog.messages

    def test_wake_ups_wait_while_an_agent_holds(self, fleet: Fleet) -> None:
        class Holding(Agent):
            name = "holding"
            wakes = True
            ticks = 0

            def tick(self) -> float:
                self.ticks += 1
                self.hold = 0.1
                return 5

        agent = Holding()
        with looping(fleet, lambda _door, _plan: [agent]):
            end = monotonic() + 1
            while monotonic() < end:
                fleet.door.read(("RPUSH", fleet.keys.wake, "1"))
        assert 5 <= agent.ticks <= 12

    def test_needs_a_redis(self) -> None:
        with pytest.raises(ConfigurationError, match="SETPOINT_REDIS_URL"):
            run(Settings())


class TestCommand:
    def start(self, url: str, namespace: str) -> subprocess.Popen[bytes]:
        code = "from setpoint_scheduler.cli import scheduler; scheduler()"
        env = {**os.environ, "SETPOINT_NAMESPACE": namespace, "SETPOINT_LEASE": "2s"}
        return subprocess.Popen([sys.executable, "-c", code, "--redis-url", url], env=env, stderr=subprocess.PIPE)

    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
    def test_ends_cleanly(self, fleet: Fleet, how: signal.Signals) -> None:
        fleet.publish("host")
        fleet.enqueue("host/1")
        with self.start(fleet.settings.redis_url, fleet.settings.namespace) as process:
            wait_until(fleet.hints)
            process.send_signal(how)
            assert process.wait(5) == 0
            assert process.stderr is not None
            assert process.stderr.read() == b""

    @pytest.mark.crash
    def test_killed_and_started_again(self, fleet: Fleet) -> None:
        fleet.publish("host")
        fleet.enqueue("host/1")
        with self.start(fleet.settings.redis_url, fleet.settings.namespace) as process:
            wait_until(fleet.hints)
            process.kill()
        claimed = fleet.claim("host")
        assert claimed.items
        fleet.rq.delete("rq:queue:default")
        with self.start(fleet.settings.redis_url, fleet.settings.namespace) as process:
            wait_until(lambda: fleet.due("host/1") is not None, timeout=10)
            wait_until(fleet.hints)
            process.terminate()

    def test_says_what_is_missing(self, namespace: str) -> None:
        with self.start("", namespace) as process:
            assert process.wait(10) == 2


def test_a_wake_survives_the_end_of_its_connection(fleet: Fleet) -> None:
    wake = Wake(fleet.settings.redis_url, fleet.keys.wake, role="scheduler-wake-test")
    try:
        assert wake.arm()
        assert not wake.arm()
        for each in fleet.rq.client_list():
            if each["name"] == "setpoint-scheduler-wake-test":
                fleet.rq.client_kill_filter(_id=each["id"])
        assert not wake.take()
        assert wake.socket() is None
        wait_until(wake.arm, timeout=2)
        fleet.rq.rpush(fleet.keys.wake, "1")
        assert wake.take()
    finally:
        wake.close()
