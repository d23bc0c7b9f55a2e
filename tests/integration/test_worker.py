"""A worker process, as people start it, against a real server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rq import Queue
from rq.command import send_shutdown_command, send_stop_job_command
from rq.suspension import resume, suspend

from setpoint.jobs import JSONSerializer, job_key, queue_key
from tests.conftest import NewServer
from tests.integration.worker_setup import Setup
from tests.waiting import let_pass, wait_until


@pytest.fixture
def setup(url: str, namespace: str, tmp_path: Path) -> Iterator[Setup]:
    made = Setup(url, namespace, tmp_path)
    yield made
    made.close()


def residue(setup: Setup) -> list[str]:
    """Keys of RQ that a drained fleet should not have."""
    keys = [key for key in setup.redis.keys("rq:*") if not key.startswith(("rq:worker", "rq:queues"))]
    return sorted(keys)


def test_drains_what_was_due_before_it_came(setup: Setup) -> None:
    setup.enqueue(*(f"noted/{i}" for i in range(1000)))
    worker = setup.worker()
    setup.until_place("noted/999", "idle")
    wait_until(lambda: len(setup.ran()) == 1000)
    assert sorted(set(setup.ran())) == sorted(f"ran {i}" for i in range(1000))
    assert setup.stop(worker) == 0


def test_a_hint_wakes_it_and_leaves_nothing_in_rq(setup: Setup) -> None:
    worker = setup.worker()
    for i in range(5):
        setup.ring(f"noted/{i}")
        setup.until_place(f"noted/{i}", "idle")
    wait_until(lambda: not residue(setup), what="no residue")
    assert setup.stop(worker) == 0
    assert setup.rq_workers() == set()
    assert setup.redis.zcard(setup.door.keys.workers) == 0


def test_counts_what_it_does(setup: Setup) -> None:
    worker = setup.worker()
    setup.ring("noted/a", "failing/a")
    setup.until_place("noted/a", "idle")
    wait_until(lambda: setup.trouble("failing/a").failures == 1)
    assert setup.stop(worker) == 0
    counters = setup.redis.hgetall(setup.door.keys.counters)
    assert counters["evaluations|noted|reached"] == "1"
    assert counters["evaluations|failing|failed"] == "1"
    assert sum(int(n) for field, n in counters.items() if field.startswith("duration|noted|act|ok|")) == 1
    assert sum(int(n) for field, n in counters.items() if field.startswith("duration|failing|act|failed|")) == 1
    assert sum(int(n) for field, n in counters.items() if field.startswith("wait|noted|")) == 1
    assert {"duration_sum_us|noted|act|ok", "wait_sum_us|noted", "retries|failing|1"} <= set(counters)


def test_managed_state_is_written(setup: Setup) -> None:
    worker = setup.worker()
    setup.door.run(setup.door.scripts.set("host/a", "down", initial="up"))
    setup.hint()
    setup.until_place("host/a", "idle")
    assert setup.redis.hget(setup.door.keys.record("host/a"), "state") == "down"
    assert setup.stop(worker) == 0


def test_actions_may_enqueue_others_and_themselves(setup: Setup) -> None:
    worker = setup.worker()
    setup.ring("echo/a")
    due = setup.door.keys.due("echo")
    wait_until(
        lambda: (setup.redis.zscore(due, "echo/a") or 0) - setup.door.now_us() > 3_000_000_000, what="its own next time"
    )
    setup.hint()
    setup.until_place("noted/a", "idle")
    assert setup.stop(worker) == 0


def test_nothing_starts_before_it_is_due(setup: Setup) -> None:
    worker = setup.worker(SETPOINT_LEAD="1s")
    setup.enqueue("noted/early", after_us=700_000)
    setup.hint()
    setup.until_place("noted/early", "lease")
    let_pass(0.3)
    assert setup.ran() == []
    setup.until_place("noted/early", "idle")
    assert setup.stop(worker) == 0


def test_unknown_kinds_wait(setup: Setup) -> None:
    worker = setup.worker()
    setup.ring("nobody/a", "noted/a")
    setup.until_place("noted/a", "idle")
    assert setup.place("nobody/a") == "due"
    assert setup.stop(worker) == 0


def test_other_lanes_are_left_alone(setup: Setup) -> None:
    setup.enqueue("slow/a-0", "noted/a")
    worker = setup.worker("--lanes", "default")
    setup.until_place("noted/a", "idle")
    assert setup.place("slow/a-0") == "due"
    assert setup.stop(worker) == 0


def test_an_app_that_does_not_import_is_exit_2_and_nothing_is_claimed(setup: Setup) -> None:
    setup.enqueue("noted/a")
    for app in ("tests.integration.no_such_app:fleet", "tests.integration.worker_app:nothing"):
        for isolation in ("process", "none"):
            process = setup.worker("--app", app, "--isolation", isolation, ready=False)
            assert process.wait(10) == 2, setup.said()
    assert setup.place("noted/a") == "due"
    assert setup.rq_workers() == set()


def test_slots_bound_what_runs(setup: Setup) -> None:
    worker = setup.worker("--slots", "2")
    setup.ring(*(f"slow/{i}-0.3" for i in range(6)), lane="slow")
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, len(setup.ran("start")) - len(setup.ran("end")))
        assert setup.redis.zcard(setup.door.keys.lease("slow")) <= 2
        return len(setup.ran("end")) == 6

    wait_until(done)
    assert most == 2
    assert setup.stop(worker) == 0


def test_slow_items_in_a_quick_batch_are_handed_back(setup: Setup) -> None:
    """The intake has learned that all is quick, then it meets slow ones: what waits behind them is free for others."""
    worker = setup.worker("--slots", "1")
    setup.enqueue(*(f"noted/{i}" for i in range(600)))
    setup.hint()
    setup.until_place("noted/599", "idle")
    setup.ring(*(f"slow/{i}-1.0" for i in range(10)), lane="slow")
    wait_until(lambda: setup.ran("start"))
    wait_until(lambda: setup.redis.zcard(setup.door.keys.lease("slow")) == 1, what="only the running one leased")
    assert setup.redis.zcard(setup.door.keys.due("slow")) == 9
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0


def test_sigterm_idle(setup: Setup) -> None:
    worker = setup.worker()
    assert setup.stop(worker, 3) == 0


def test_sigterm_lets_running_ones_end_and_takes_no_more(setup: Setup) -> None:
    worker = setup.worker("--slots", "1")
    setup.ring("slow/a-1", "slow/b-1", lane="slow")
    wait_until(lambda: setup.ran("start"))
    assert setup.stop(worker) == 0
    first = setup.ran("start")[0].removeprefix("start ")
    assert setup.ran("end") == [f"end {first}"]
    assert setup.place(f"slow/{first}") == "idle"
    other = "b-1" if first == "a-1" else "a-1"
    assert setup.place(f"slow/{other}") == "due"
    assert setup.trouble(f"slow/{other}").failures == 0


@pytest.mark.parametrize("second", [True, False])
def test_out_of_grace_hands_back_uncharged(setup: Setup, second: bool) -> None:
    worker = setup.worker("--grace", "30s" if second else "0.3s")
    setup.ring("slow/a-20", lane="slow")
    wait_until(lambda: setup.ran("start"))
    worker.send_signal(signal.SIGTERM)
    if second:
        let_pass(0.2)
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
    assert worker.wait(3) == 0
    assert setup.place("slow/a-20") == "due"
    trouble = setup.trouble("slow/a-20")
    assert (trouble.failures, trouble.crashes, trouble.suspect) == (0, 0, 0)


def test_a_foreign_job_is_failed_and_never_executed(setup: Setup, tmp_path: Path) -> None:
    worker = setup.worker()
    target = tmp_path / "executed"
    job = Queue("default", connection=setup.door._redis).enqueue("os.mkdir", str(target))
    wait_until(lambda: setup.redis.hget(job_key(job.id), "status") == "failed")
    assert setup.redis.zscore("rq:failed:default", job.id) is not None
    assert not target.exists()
    setup.ring("noted/a")
    setup.until_place("noted/a", "idle")
    assert setup.stop(worker) == 0


def test_forged_and_lost_hints_do_no_harm(setup: Setup) -> None:
    worker = setup.worker()
    setup.redis.rpush(queue_key("default"), "sp-forged", "sp-", "sp-default-x-1")
    setup.ring("noted/a")
    setup.until_place("noted/a", "idle")
    wait_until(lambda: not residue(setup))
    assert setup.stop(worker) == 0


def test_rq_sees_it_and_can_stop_a_job(setup: Setup) -> None:
    worker = setup.worker("--slots", "2")
    hint = setup.ring("slow/a-30", lane="slow")
    wait_until(lambda: setup.redis.hget(job_key(hint), "status") == "started")
    (key,) = setup.rq_workers()
    assert setup.redis.hget(key, "state") == "busy"
    assert setup.redis.hget(key, "current_job") == hint
    send_stop_job_command(setup.door._redis, hint, serializer=JSONSerializer)
    wait_until(lambda: len(setup.ran("start")) == 2, what="a new start, uncharged")
    trouble = setup.trouble("slow/a-30")
    assert (trouble.failures, trouble.crashes, trouble.suspect) == (0, 0, 0)
    worker.send_signal(signal.SIGTERM)
    let_pass(0.1)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(5) == 0
    assert residue(setup) == []


def test_shutdown_command(setup: Setup) -> None:
    worker = setup.worker()
    (key,) = setup.rq_workers()
    wait_until(lambda: setup.redis.pubsub_channels("rq:pubsub:*"))
    send_shutdown_command(setup.door._redis, key.removeprefix("rq:worker:"))
    assert worker.wait(5) == 0


def test_suspended_takes_nothing_and_resumes(setup: Setup) -> None:
    suspend(setup.door._redis)
    worker = setup.worker()
    (key,) = setup.rq_workers()
    wait_until(lambda: setup.redis.hget(key, "state") == "suspended")
    setup.ring("noted/a")
    let_pass(0.5)
    assert setup.place("noted/a") == "due"
    resume(setup.door._redis)
    setup.until_place("noted/a", "idle")
    assert setup.stop(worker) == 0


def test_a_flushed_rq_is_registered_in_again(setup: Setup) -> None:
    worker = setup.worker()
    (key,) = setup.rq_workers()
    setup.redis.delete("rq:workers", key, "rq:workers:default")
    # At the next of its beats (5 s); at the one after, if the flush came between the look and the beat of this one.
    wait_until(lambda: setup.rq_workers() == {key}, timeout=15)
    setup.ring("noted/a")
    setup.until_place("noted/a", "idle")
    assert setup.stop(worker) == 0


def test_what_was_deleted_while_it_ran_does_not_come_back_by_what_it_asked_for_itself(setup: Setup) -> None:
    worker = setup.worker()
    setup.ring("later/gone", "later/there")
    wait_until(lambda: len(setup.ran("asked")) == 2)
    assert setup.door.run(setup.door.scripts.delete(["later/gone"])) == ("cancelling",)
    setup.until_place("later/there", "due")
    wait_until(lambda: not setup.redis.hexists(setup.door.keys.holder, "later/gone"))
    (due,) = setup.door.read(("ZRANGE", setup.door.keys.due("later"), 0, -1))
    assert due == [b"later/there"]
    assert setup.stop(worker) == 0


def test_a_first_goal_that_is_the_initial_state_is_reached_and_stored(setup: Setup) -> None:
    worker = setup.worker()
    setup.door.run(setup.door.scripts.set("host/a", "up"))  # by a client that knows no kinds: no initial state
    setup.hint("default", "host/a")
    setup.until_place("host/a", "idle")
    assert setup.redis.hget(setup.door.keys.record("host/a"), "state") == "up"
    assert setup.stop(worker) == 0


def test_a_lane_that_no_kind_is_in_ends_the_worker_with_2(setup: Setup) -> None:
    worker = setup.worker("--lanes", "default,nosuch", ready=False)
    assert worker.wait(15) == 2
    assert "nosuch" in setup.said()
    assert setup.rq_workers() == set()


def test_isolation_none(setup: Setup) -> None:
    worker = setup.worker("--isolation", "none")
    setup.ring("noted/a")
    setup.until_place("noted/a", "idle")
    assert setup.log.read_text().split()[0] == str(worker.pid)
    assert setup.stop(worker) == 0


def test_children_are_replaced_by_count(setup: Setup) -> None:
    worker = setup.worker("--max-items", "50")
    for start in range(0, 300, 50):
        refs = [f"noted/{i}" for i in range(start, start + 50)]
        setup.ring(*refs)
        for ref in refs:
            setup.until_place(ref, "idle")
        let_pass(0.3)
    pids = {line.split()[0] for line in setup.log.read_text().splitlines()}
    assert len(pids) >= 3
    assert len(setup.ran()) == 300
    assert setup.stop(worker) == 0


def test_two_workers_under_a_supervisor(setup: Setup) -> None:
    worker = setup.worker("-n", "2")
    wait_until(lambda: len(setup.rq_workers()) == 2)
    setup.ring("noted/a")
    setup.until_place("noted/a", "idle")
    assert setup.stop(worker) == 0
    assert setup.rq_workers() == set()


def test_a_supervisor_gives_up_on_an_app_that_does_not_import(setup: Setup) -> None:
    worker = setup.worker("-n", "2", "--app", "tests.integration.no_such_app:fleet", ready=False)
    assert worker.wait(15) == 2


def test_a_restarted_server_is_found_again(new_server: NewServer, namespace: str, tmp_path: Path) -> None:
    server = new_server(appendonly="yes", appendfsync="always")
    setup = Setup(server.url, namespace, tmp_path)
    try:
        worker = setup.worker("--slots", "2")
        setup.ring("slow/a-1", lane="slow")
        wait_until(lambda: setup.ran("start"))
        server.stop()
        wait_until(lambda: setup.ran("end"))
        let_pass(1.0)
        assert worker.poll() is None
        server.start()
        setup.until_place("slow/a-1", "idle")
        setup.ring("noted/b")
        setup.until_place("noted/b", "idle")
        assert setup.ran("start") == ["start a-1"]
        assert setup.stop(worker) == 0
    finally:
        setup.close()
