"""Starts real worker processes for tests, and asks Redis what became of refs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import redis

from setpoint.clock import SystemClock
from setpoint.engine.door import Door
from setpoint.engine.records import Trouble
from setpoint.engine.scripts import When
from setpoint.jobs import hint_commands, hint_id
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


class Setup:
    """One namespace on one server, with any number of workers."""

    def __init__(self, url: str, namespace: str, tmp_path: Path) -> None:
        self.url = url
        self.namespace = namespace
        self.log = tmp_path / "ran.log"
        self.log.touch()
        self.output = tmp_path / "worker.out"
        self.door = Door(url, namespace, role="test")
        self.redis = redis.Redis.from_url(url, decode_responses=True, protocol=2)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._hints = 0

    def worker(self, *options: str, ready: bool = True, **environ: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "setpoint_workers.cli", "--redis-url", self.url, "--namespace", self.namespace]
        if "--app" not in options:
            command += ["--app", "tests.integration.worker_app:fleet"]
        env = {**os.environ, "WORKER_APP_LOG": str(self.log), "SETPOINT_LEASE": "2s", **environ}
        known = self.rq_workers() if ready else set()
        with self.output.open("ab") as out:
            process = subprocess.Popen([*command, *options], cwd=ROOT, env=env, stdout=out, stderr=out)
        self.workers.append(process)
        if ready:
            wait_until(lambda: self.rq_workers() - known or process.poll() is not None, what="a worker")
        return process

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def rq_workers(self) -> set[str]:
        return set(self.redis.smembers("rq:workers"))

    def enqueue(self, *refs: str, after_us: int = 0) -> None:
        for at in range(0, len(refs), 256):
            self.door.run(self.door.scripts.enqueue([(ref, When.after(after_us)) for ref in refs[at : at + 256]]))

    def hint(self, lane: str = "default", *refs: str) -> str:
        """Ring one hint, as a scheduler would."""
        self._hints += 1
        now_us = SystemClock().now_us()
        hint = hint_id(lane, "test", self._hints)
        with self.redis.pipeline() as pipeline:
            for command in hint_commands(hint, lane, refs, len(refs), now_us, now_us):
                pipeline.execute_command(*command)
            pipeline.execute()
        return hint

    def ring(self, *refs: str, lane: str = "default") -> str:
        self.enqueue(*refs)
        return self.hint(lane, *refs)

    def place(self, ref: str) -> str:
        keys, kind = self.door.keys, ref.partition("/")[0]
        places = {"lease": keys.lease, "due": keys.due, "idle": keys.idle, "parked": keys.parked}
        for name, key_of in places.items():
            if self.redis.zscore(key_of(kind), ref) is not None:
                return name
        return "none"

    def trouble(self, ref: str) -> Trouble:
        (stored,) = self.door.read(("HGET", self.door.keys.trouble, ref))
        return Trouble.unpack(stored or b"")

    def until_place(self, ref: str, place: str, timeout: float = 10) -> None:
        try:
            wait_until(lambda: self.place(ref) == place, timeout)
        except AssertionError as error:
            clients = [(each["name"], each["cmd"], each["idle"]) for each in self.redis.client_list()]
            raise AssertionError(
                f"{ref} is not {place} but {self.place(ref)}; ran {self.ran()[-5:]}; {clients}; {self.said()[-2000:]}"
            ) from error

    def ran(self, word: str = "") -> list[str]:
        """What the application has noted, without the pids."""
        lines = (line.partition(" ")[2] for line in self.log.read_text().splitlines())
        return [line for line in lines if line.startswith(word)]

    def child_of(self, process: subprocess.Popen[bytes]) -> int:
        import psutil

        return wait_until(lambda: [each.pid for each in psutil.Process(process.pid).children()], what="a child")[0]

    def stop(self, process: subprocess.Popen[bytes], timeout: float = 10) -> int:
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout)

    def stop_now(self, process: subprocess.Popen[bytes]) -> int:
        """Two signals, apart, so that they do not become one."""
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in self.said() or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        return process.wait(10)

    def close(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        self.door.close()
        self.redis.close()
