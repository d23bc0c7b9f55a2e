"""The contract with the tools people watch RQ with: the real rq-dashboard and `rq info`, over what we write."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from rq import Queue

from setpoint.jobs import QUEUES_KEY, JSONSerializer, hint_commands, hint_id, job_key, queue_key
from tests.servers import Server, free_port
from tests.waiting import wait_until

BIN = Path(sys.executable).parent
NOW_US = 1_760_000_000_000_000
LANE = "default"
QUEUED, STARTED, FAILED, FINISHED = (hint_id(LANE, "abc", n) for n in range(4))
MARKUP = "job-<script>alert(1)</script>"
WORKER = "setpoint.host.1"
FOREIGN_FAILED = "json-failed"
META = {"kind": "host", "try": 2}


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@dataclass
class Answer:
    status: int
    text: str
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Dashboard:
    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        request = urllib.request.Request(self.base + path, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Answer(answer.status, answer.read().decode(errors="replace"), answer.headers)
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode(), error.headers)

    def post(self, path: str, **headers: str) -> Answer:
        return self.get(path, "POST", **headers)

    def jobs(self, registry: str, queue: str = LANE) -> Any:
        answer = self.get(f"/0/data/jobs/{queue}/{registry}/50/asc/1.json")
        assert answer.status == 200, answer.text
        return [job["id"] for job in answer.json["jobs"]]


def foreign(client: redis.Redis, job: str, data: bytes, meta: bytes, status: str = "queued", **fields: Any) -> None:
    client.hset(
        job_key(job),
        mapping={
            "data": zlib.compress(data),
            "meta": meta,
            "status": status,
            "origin": LANE,
            "created_at": "2026-01-01T00:00:00.000000Z",
            "description": "someone's <b>job</b>",
            **fields,
        },
    )


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def client(url: str, redis_server: Server, canary: Path) -> Iterator[redis.Redis]:
    """A Redis with hints in every place RQ knows, a worker at work, and jobs of strangers."""
    evil = pickle.dumps(Canary(canary))
    with redis_server.client(decode_responses=False) as client:
        client.sadd(QUEUES_KEY, queue_key(LANE))
        for hint in (QUEUED, STARTED, FAILED, FINISHED):
            for command in hint_commands(hint, LANE, ["host/<script>x"], 1, NOW_US, NOW_US):
                client.execute_command(*command)
        for hint, registry, status in (
            (STARTED, "wip", "started"),
            (FAILED, "failed", "failed"),
            (FINISHED, "finished", "finished"),
        ):
            client.lrem(queue_key(LANE), 0, hint)
            client.zadd(f"rq:{registry}:{LANE}", {hint: 4_000_000_000})
            client.hset(job_key(hint), "status", status)
        foreign(client, "canary", evil, evil, result=evil)
        foreign(client, "canary-busy", evil, evil, "started")
        foreign(client, "canary-failed", evil, evil, "failed")
        for each in ("canary", "canary-failed"):
            client.xadd(
                f"rq:results:{each}", {"type": 1, "return_value": "gASVAAAA", "created_at": 1, "worker_name": ""}
            )
        foreign(client, MARKUP, JSONSerializer.dumps(["f", None, ["<script>alert(2)</script>"], {}]), b"{}")
        foreign(
            client, FOREIGN_FAILED, JSONSerializer.dumps(["f", None, [1], {}]), JSONSerializer.dumps(META), "failed"
        )
        client.rpush(queue_key(LANE), "canary", MARKUP)
        client.zadd(f"rq:failed:{LANE}", {"canary-failed": 4_000_000_000, FOREIGN_FAILED: 4_000_000_000})
        for worker, job in ((WORKER, STARTED), ("stranger", "canary-busy"), ("markup", MARKUP)):
            for workers in ("rq:workers", f"rq:workers:{LANE}"):
                client.sadd(workers, f"rq:worker:{worker}")
            client.hset(
                f"rq:worker:{worker}",
                mapping={
                    "hostname": "h",
                    "pid": 1,
                    "state": "busy",
                    "current_job": job,
                    "queues": LANE,
                    "birth": "2026-01-01T00:00:00.000000Z",
                    "last_heartbeat": "2026-01-01T00:00:00.000000Z",
                    "version": "2.12.0",
                    "python_version": "3.13",
                },
            )
        yield client


@pytest.fixture
def dashboard(client: redis.Redis, tcp_url: str) -> Iterator[Dashboard]:
    port = free_port()
    process = subprocess.Popen(
        [BIN / "rq-dashboard", "-c", "setpoint.rqdash", "-u", tcp_url, "-b", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    board = Dashboard(port)

    def answers() -> bool:
        assert process.poll() is None, process.stdout and process.stdout.read()
        try:
            return board.get("/favicon.ico").status == 200
        except OSError:
            return False

    try:
        wait_until(answers, timeout=30, what="rq-dashboard to answer")
        yield board
    finally:
        process.kill()
        print(process.communicate()[0])  # shown if the test fails


def test_every_page_answers_and_nothing_is_unpickled(dashboard: Dashboard, client: redis.Redis, canary: Path) -> None:
    ids = [QUEUED, STARTED, FAILED, FINISHED, "canary", "canary-busy", "canary-failed", FOREIGN_FAILED, MARKUP]
    paths = ["/", "/0/", "/0/view/queues", "/0/view/workers", "/0/view/jobs", "/0/data/queues.json"]
    paths += ["/0/data/workers.json"]
    for job in ids:
        if "/" not in job:  # their own pages cannot address such an id either
            paths += [f"/0/view/job/{quote(job)}", f"/0/data/job/{quote(job)}.json"]
    for registry in ("queued", "started", "failed", "finished", "deferred", "scheduled", "canceled"):
        paths += [f"/0/view/jobs/{LANE}/{registry}/8/asc/1", f"/0/data/jobs/{LANE}/{registry}/8/dsc/1.json"]
    for path in paths:
        answer = dashboard.get(path)
        assert answer.status == 200, (path, answer.text)
        assert "script-src-attr 'none'" in answer.headers["Content-Security-Policy"]
        assert "<script>alert" not in answer.text, path
    assert not canary.exists()

    (queue,) = dashboard.get("/0/data/queues.json").json["queues"]
    assert (queue["name"], queue["count"], queue["failed_job_registry_count"]) == (LANE, 3, 3)
    assert (queue["started_job_registry_count"], queue["finished_job_registry_count"]) == (1, 1)
    assert set(dashboard.jobs("queued")) == {QUEUED, "canary", MARKUP.replace("<", "‹").replace(">", "›")}
    assert dashboard.jobs("started") == [STARTED]
    assert set(dashboard.jobs("failed")) == {FAILED, "canary-failed", FOREIGN_FAILED}

    workers = {worker["name"]: worker for worker in dashboard.get("/0/data/workers.json").json["workers"]}
    assert workers[WORKER]["state"] == "busy"
    assert "setpoint.jobs.reconcile" in workers[WORKER]["current_job"]["call_string"]
    assert "not shown" in workers["stranger"]["current_job"]["call_string"]
    job = dashboard.get(f"/0/data/job/{QUEUED}.json").json
    assert job["description"].startswith("reconcile host/")
    assert json.loads(job["metadata"])["kind"] == "host"


def test_requeue_and_delete_do_no_harm(dashboard: Dashboard, client: redis.Redis, canary: Path) -> None:
    before = client.hgetall(job_key(FAILED))
    assert dashboard.post(f"/job/{FAILED}/requeue").status == 200
    assert client.hgetall(job_key(FAILED)) == before
    assert FAILED.encode() not in client.lrange(queue_key(LANE), 0, -1)

    stranger = client.hgetall(job_key("canary-failed"))
    assert dashboard.post("/job/canary-failed/requeue").status == 200
    assert client.hgetall(job_key("canary-failed")) == stranger

    assert dashboard.post(f"/job/{FOREIGN_FAILED}/requeue").status == 200
    assert json.loads(client.hget(job_key(FOREIGN_FAILED), "meta") or b"") == META
    assert FOREIGN_FAILED.encode() in client.lrange(queue_key(LANE), 0, -1)
    assert dashboard.post(f"/job/{FOREIGN_FAILED}/requeue").status == 200  # no longer failed: nothing
    assert dashboard.post("/job/no-such-job/requeue").status == 200

    for job in (QUEUED, STARTED, "canary"):
        assert dashboard.post(f"/job/{job}/delete").json == {"status": "OK"}
        assert not client.exists(job_key(job))
    assert dashboard.get(f"/0/view/job/{QUEUED}").status == 404
    assert not canary.exists()


def test_whole_queues(dashboard: Dashboard, client: redis.Redis, canary: Path) -> None:
    assert dashboard.get(f"/requeue/{LANE}").status == 405
    assert dashboard.post(f"/requeue/{LANE}", **{"Sec-Fetch-Site": "cross-site"}).status == 403
    assert client.zcard(f"rq:failed:{LANE}") == 3
    assert dashboard.post(f"/requeue/{LANE}").json == {"status": "OK", "count": 3}
    assert client.zcard(f"rq:failed:{LANE}") == 2  # the hint and the unreadable stay
    assert dashboard.post(f"/queue/{LANE}/compact").status == 200
    for registry in ("queued", "failed", "finished", "started", "deferred", "scheduled", "canceled"):
        assert dashboard.post(f"/queue/{LANE}/{registry}/empty").json == {"status": "OK"}
        assert dashboard.jobs(registry) == []
    assert not canary.exists()


def test_names_that_are_markup_reach_no_page(dashboard: Dashboard) -> None:
    assert dashboard.get(f"/0/view/jobs/{quote(chr(39) + ');alert(1)//', safe='')}/queued/8/asc/1").status == 404
    assert dashboard.get("/7/view/queues").status == 404
    assert "<script>alert" not in dashboard.get(f"/0/view/job/{quote('<script>alert(1)</script>', safe='')}").text


def test_rq_info_counts_them(client: redis.Redis, tcp_url: str, canary: Path) -> None:
    done = subprocess.run(
        [BIN / "rq", "info", "-u", tcp_url, "--raw"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"queue {LANE} 3, 1 executing, 1 finished, 3 failed" in done.stdout
    done = subprocess.run(
        [BIN / "rq", "info", "-u", tcp_url, "--raw", "-W", "-S", "setpoint.jobs.JSONSerializer"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, WORKER in done.stdout) == (0, True), done.stderr
    assert Queue(LANE, connection=client, serializer=JSONSerializer).count == 3
    assert not canary.exists()
