"""How each peer is started and fed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from tests.bench import ceiling_app
from tests.waiting import wait_until

PYTHON = sys.executable


class Peer(Protocol):
    """One system under measurement."""

    name: str
    scale: int
    """Its rough rate in W1, so that a cell takes about as long for each peer."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def noops(self, n: int) -> None: ...
    def lates(self, dues: Sequence[float]) -> None: ...
    def loops(self, n: int) -> None: ...


class Processes:
    """The processes of one peer, started and stopped together."""

    def __init__(self, url: str, log: Path, server: int = 0) -> None:
        """`server`: the pid of its Valkey, whose CPU counts too."""
        self.url, self.log, self.server = url, log, server
        self.running: list[subprocess.Popen[bytes]] = []

    def spawn(self, *argv: str, **environ: str) -> None:
        env = {
            **os.environ,
            "BENCH_URL": self.url,
            "BENCH_LOG": str(self.log),
            "SETPOINT_REDIS_URL": self.url,
            **environ,
        }
        self.running.append(subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, start_new_session=True))

    def stop(self) -> None:
        for process in self.running:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.running = []

    def cpu(self) -> float:
        """Seconds of CPU used by the processes, their children and the server so far."""
        import psutil

        total = 0.0
        for pid in [*(process.pid for process in self.running), *([self.server] if self.server else [])]:
            root = psutil.Process(pid)
            for each in [root, *root.children(recursive=True)]:
                times = each.cpu_times()
                total += times.user + times.system
        return total


class Setpoint(Processes):
    name, scale = "setpoint", 40_000

    def start(self, workers: int = 1) -> None:
        self.spawn(PYTHON, "-m", "setpoint.cli", "scheduler", SETPOINT_LOG_LEVEL="warning")
        worker = (PYTHON, "-m", "setpoint.cli", "worker", "--app", "tests.bench.fleet_app:fleet")
        for _ in range(workers):
            self.spawn(*worker, SETPOINT_LOG_LEVEL="warning")
        with self._fleet().door("bench") as door:
            wait_until(lambda: door.read(("ZCARD", door.keys.workers))[0] >= workers, 20, "the workers register")

    def _fleet(self):
        from setpoint import Fleet

        return Fleet(self.url)

    def noops(self, n: int) -> None:
        self._fleet().enqueue_many([(f"noop/{i}", 0) for i in range(n)])

    def lates(self, dues: Sequence[float]) -> None:
        self._fleet().enqueue_many(
            [(f"late/{i}@{due:.6f}", datetime.fromtimestamp(due, UTC)) for i, due in enumerate(dues)]
        )

    def loops(self, n: int) -> None:
        self._fleet().enqueue_many([(f"loop/{i}", 0) for i in range(n)])


class PlainRQ(Processes):
    name, scale = "rq", 350

    def start(self) -> None:
        self.spawn(PYTHON, "-m", "tests.bench.rq_app", BENCH_SCHEDULER="1")
        import redis

        client = redis.Redis.from_url(self.url)
        wait_until(lambda: client.scard("rq:workers"), 20, "the worker registers")
        client.close()

    def _queue(self):
        import redis
        import rq

        return rq.Queue("bench", connection=redis.Redis.from_url(self.url))

    def noops(self, n: int) -> None:
        from tests.bench import rq_app

        queue = self._queue()
        queue.enqueue_many([queue.prepare_data(rq_app.noop) for _ in range(n)])

    def lates(self, dues: Sequence[float]) -> None:
        from tests.bench import rq_app

        queue = self._queue()
        for due in dues:
            queue.enqueue_at(datetime.fromtimestamp(due, UTC), rq_app.late, due)

    def loops(self, n: int) -> None:
        from tests.bench import rq_app

        queue = self._queue()
        queue.enqueue_many([queue.prepare_data(rq_app.loop) for _ in range(n)])


class Huey(Processes):
    name, scale = "huey", 2_500

    def start(self) -> None:
        self.spawn(PYTHON, "-c", "from tests.bench.huey_app import consume; consume()")
        time.sleep(1.5)

    def _app(self):
        os.environ["BENCH_URL"] = self.url
        from tests.bench import huey_app

        return importlib.reload(huey_app)  # each measurement has a server of its own

    def noops(self, n: int) -> None:
        app = self._app()
        for _ in range(n):
            app.noop()

    def lates(self, dues: Sequence[float]) -> None:
        app = self._app()
        for due in dues:
            app.late.schedule((due,), eta=datetime.fromtimestamp(due, UTC))

    def loops(self, n: int) -> None:
        app = self._app()
        for _ in range(n):
            app.loop()


class Ceiling(Processes):
    name, scale = "ceiling", 40_000

    def start(self) -> None:
        self.spawn(PYTHON, "-m", "tests.bench.ceiling_app")
        time.sleep(1)

    def noops(self, n: int) -> None:
        ceiling_app.fill(self.url, "noop", [0.0] * n)

    def lates(self, dues: Sequence[float]) -> None:
        ceiling_app.fill(self.url, "late", dues)

    def loops(self, n: int) -> None:
        ceiling_app.fill(self.url, "loop", [0.0] * n)


PEERS = (Setpoint, PlainRQ, Huey, Ceiling)
