"""Hints as RQ itself reads them."""

from __future__ import annotations

import pickle

import pytest
import redis
from rq import Queue, SimpleWorker
from rq.job import Job, JobStatus

from setpoint.errors import ConfigurationError
from setpoint.jobs import (
    QUEUES_KEY,
    SERIALIZER,
    JSONSerializer,
    hint_commands,
    hint_id,
    is_hint,
    plain,
    queue_key,
    reconcile,
)
from tests.servers import Server

NOW = 1_772_366_579_250_000  # 2026-03-01T12:02:59.25Z
DUE = NOW - 1_250_000


def ring(client: redis.Redis, lane: str, refs: list[str], backlog: int = 0, hint: str = "") -> str:
    hint = hint or hint_id(lane, "abc", 1)
    client.sadd(QUEUES_KEY, queue_key(lane))
    for command in hint_commands(hint, lane, refs, backlog or len(refs), DUE, NOW):
        client.execute_command(*command)
    return hint


@pytest.fixture
def client(url: str, redis_server: Server) -> redis.Redis:
    return redis_server.client(decode_responses=False)


class TestReadByRq:
    def test_one_ref(self, client: redis.Redis) -> None:
        hint = ring(client, "fleet", ["host/web-7"])
        job = Job.fetch(hint, connection=client, serializer=JSONSerializer)
        assert job.func_name == "setpoint.jobs.reconcile"
        assert job.args == ["host/web-7"]
        assert job.kwargs == {}
        assert job.description == "reconcile host/web-7 (due 12:02:58Z)"
        assert job.origin == "fleet"
        assert job.get_status() is JobStatus.QUEUED
        assert job.created_at.isoformat() == "2026-03-01T12:02:59.250000+00:00"
        assert job.enqueued_at == job.created_at
        assert job.meta == {"kind": "host", "lane": "fleet", "due": "2026-03-01T12:02:58Z", "entity": "host/web-7"}
        assert (job.timeout, job.result_ttl, job.failure_ttl, job.ttl) == (3600, 3600, 1209600, 86400)
        assert "host/web-7" in job.get_call_string()
        assert 0 < client.ttl(job.key) <= 86400

    def test_many_refs(self, client: redis.Redis) -> None:
        hint = ring(client, "fleet", [f"host/{i}" for i in range(50)] + ["disk/1"], 70)
        job = Job.fetch(hint, connection=client, serializer=JSONSerializer)
        assert job.description == "reconcile 70 refs (oldest due 12:02:58Z)"
        assert job.args == ["70 refs"]
        assert job.meta["count"] == 70
        assert job.meta["kind"] == "disk host"

    def test_its_queue(self, client: redis.Redis) -> None:
        hint = ring(client, "fleet-slow", ["host/a"])
        (queue,) = Queue.all(connection=client, serializer=JSONSerializer)
        assert queue.name == "fleet-slow"
        assert queue.get_job_ids() == [hint]
        assert [job.id for job in queue.get_jobs()] == [hint]
        assert queue.count == 1

    def test_saved_and_deleted_by_rq(self, client: redis.Redis) -> None:
        job = Job.fetch(ring(client, "fleet", ["host/a"]), connection=client, serializer=JSONSerializer)
        job.meta["why"] = "looked at"
        job.save()
        assert Job.fetch(job.id, connection=client, serializer=JSONSerializer).meta["why"] == "looked at"
        job.delete()
        assert client.keys("rq:job:*") == []

    def test_serializer_by_name(self, client: redis.Redis) -> None:
        hint = ring(client, "fleet", ["host/a"])
        job = Queue("fleet", connection=client, serializer=SERIALIZER).fetch_job(hint)
        assert job is not None
        assert job.args == ["host/a"]

    def test_a_plain_rq_worker_says_what_to_start(self, client: redis.Redis) -> None:
        hint = ring(client, "fleet", ["host/a"])
        SimpleWorker(["fleet"], connection=client, serializer=JSONSerializer).work(burst=True, logging_level="ERROR")
        job = Job.fetch(hint, connection=client, serializer=JSONSerializer)
        assert job.get_status() is JobStatus.FAILED
        result = job.latest_result()
        assert result is not None
        assert "setpoint worker" in str(result.exc_string)


class TestText:
    def test_nothing_a_page_could_run(self, client: redis.Redis) -> None:
        hint = ring(client, "fleet", ["""host/<img src=x onerror="alert('1')">&amp;"""])
        job = Job.fetch(hint, connection=client, serializer=JSONSerializer)
        shown = f"{job.description}{job.args}{job.meta['entity']}"
        assert not set('<>&"') & set(shown.replace(str(job.args), ""))
        assert not set("<>&\"'") & set(job.args[0])

    def test_short(self, client: redis.Redis) -> None:
        hint = ring(client, "fleet", ["host/" + "x" * 500])
        job = Job.fetch(hint, connection=client, serializer=JSONSerializer)
        assert job.description is not None
        assert len(job.description) <= 160
        assert job.description.endswith("(due 12:02:58Z)")
        assert len(client.hget(job.key, "meta")) < 2_000

    def test_plain_drops_what_does_not_print(self) -> None:
        assert plain("a\u2028b\x00\x1b[31m", 50) == "a b  [31m"

    @pytest.mark.parametrize("lane", ["default", "fleet-slow", "a.b:c/d", "über", "x y", "-", "{}"])
    def test_ids(self, lane: str) -> None:
        from rq.job import validate_job_id

        hint = hint_id(lane, "0123456789ab", 17)
        validate_job_id(hint)
        assert is_hint(hint)

    def test_ids_differ_by_lane(self) -> None:
        assert hint_id("a-b", "u", 1) != hint_id("a_b", "u", 1) != hint_id("a.b", "u", 1)

    def test_not_a_hint(self) -> None:
        assert not is_hint("9d1e8c1c-7f5b-4f0e-9d1e-000000000000")


class TestSerializer:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("value", [None, 1, "text", ["setpoint.jobs.reconcile", None, ["x"], {}], {"a": (1,)}])
    def test_refuses_pickles(self, protocol: int, value: object) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - JSON's own error for protocol 0, which is text
            JSONSerializer.loads(pickle.dumps(value, protocol))

    def test_round_trip(self) -> None:
        value = ["f", None, ["é\u2028"], {"a": 1.5, "b": [True, None]}]
        assert JSONSerializer.loads(JSONSerializer.dumps(value)) == value

    def test_text_too(self) -> None:
        assert JSONSerializer.loads("[1]") == [1]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"x"])
    def test_only_json(self, value: object) -> None:
        with pytest.raises((ValueError, TypeError)):
            JSONSerializer.dumps(value)


def test_reconcile_never_reconciles() -> None:
    with pytest.raises(ConfigurationError, match="setpoint worker"):
        reconcile("host/a")
