"""The same jobs for huey, one worker process; a popped task is lost if the worker dies."""

from __future__ import annotations

import os

from huey import RedisHuey

from tests.bench.log import note

huey = RedisHuey("bench", url=os.environ["BENCH_URL"], results=False)


@huey.task()
def noop() -> None:
    note()


@huey.task()
def late(due: float) -> None:
    note(due)


@huey.task()
def loop() -> None:
    note()
    loop()


def consume() -> None:
    """Run the consumer; the module must have been imported by its name, for that names the tasks."""
    from huey.consumer_options import ConsumerConfig

    config = ConsumerConfig(workers=1, worker_type="process", scheduler_interval=1, quiet=True)
    config.validate()
    huey.create_consumer(**config.values).run()
