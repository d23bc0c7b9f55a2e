"""The same jobs for plain RQ: SimpleWorker with its defaults."""

from __future__ import annotations

import os

import redis
import rq

from tests.bench.log import note


def noop() -> None:
    note()


def late(due: float) -> None:
    note(due)


def loop() -> None:
    note()
    job = rq.get_current_job()
    assert job is not None
    rq.Queue("bench", connection=job.connection).enqueue(loop)


def main() -> None:
    connection = redis.Redis.from_url(os.environ["BENCH_URL"])
    queue = rq.Queue("bench", connection=connection)
    worker = rq.SimpleWorker([queue], connection=connection)
    worker.work(with_scheduler=bool(os.environ.get("BENCH_SCHEDULER")), logging_level="ERROR")


if __name__ == "__main__":
    main()
