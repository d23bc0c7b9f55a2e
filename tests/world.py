"""A whole fleet of real processes, for tests that do them harm: schedulers, workers, their children."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from setpoint import Fleet
from setpoint.engine.door import Door
from setpoint.engine.records import Trouble
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
APP = "tests.apps.acceptance"


class World:
    """One fleet with its processes; it only looks at Redis and at what the application noted."""

    def __init__(self, url: str, rq_url: str, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        self.fleet = Fleet(url, namespace=namespace, unknown_kind="accept")
        self.door = Door(url, namespace, role="test")
        self.rq = Door(rq_url or url, namespace, role="test-rq")
        self.log, self.release, self.output = folder / "noted", folder / "release", folder / "output"
        self.log.touch()
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SETPOINT_")},
            "SETPOINT_REDIS_URL": url,
            "SETPOINT_RQ_URL": rq_url,
            "SETPOINT_NAMESPACE": namespace,
            "SETPOINT_LEASE": "2s",
            "ACCEPTANCE_LOG": str(self.log),
            "ACCEPTANCE_RELEASE": str(self.release),
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "setpoint.cli", *argv]
        with self.output.open("ab") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self.processes.append(process)
        return process

    def scheduler(self) -> subprocess.Popen[bytes]:
        return self._spawn("scheduler")

    def worker(self, *options: str, app: str = "fleet", ready: bool = True) -> subprocess.Popen[bytes]:
        known = self.alive() if ready else set()
        process = self._spawn("worker", "--app", f"{APP}:{app}", *options)
        if ready:
            self.until(lambda: bool(self.alive() - known), "a worker", 20)
        return process

    def alive(self) -> set[bytes]:
        return set(self.door.read(("HKEYS", self.door.keys.worker))[0])

    def enqueue(self, *refs: str) -> None:
        self.fleet.enqueue_many((ref, 0) for ref in refs)

    def noted(self, word: str) -> Counter[str]:
        """How often each ref did this."""
        lines = (line.partition(" ") for line in self.log.read_text().splitlines())
        return Counter(ref for first, _, ref in lines if first == word)

    def counted(self, kind: str) -> dict[str, int]:
        return self.fleet.counts(kind)[kind]

    def until(self, predicate: Callable[[], object], what: str, timeout: float = 30) -> None:
        try:
            wait_until(predicate, timeout, what)
        except AssertionError as error:
            said = self.output.read_text(errors="replace") if self.output.exists() else ""
            raise AssertionError(f"{error}; {self.fleet.counts()}; the processes said: {said[-4000:]}") from error

    def until_all(self, word: str, refs: list[str], timeout: float = 30, times: int = 1) -> None:
        def missing() -> list[str]:
            seen = self.noted(word)
            return [ref for ref in refs if seen[ref] < times]

        self.until(lambda: not missing(), f"{word} of all {len(refs)} refs", timeout)

    def until_at_rest(self, kind: str, count: int, timeout: float = 30) -> None:
        def at_rest() -> bool:
            found = self.counted(kind)
            return found["idle"] == count and found["due"] == found["leased"] == found["parked"] == 0

        self.until(at_rest, f"{count} of {kind} at rest", timeout)

    def troubles(self) -> dict[str, Trouble]:
        (found,) = self.door.read(("HGETALL", self.door.keys.trouble))
        return {ref.decode(): Trouble.unpack(value) for ref, value in found.items()}

    def charged(self) -> dict[str, Trouble]:
        """Those that were given the blame for anything."""
        found = self.troubles().items()
        return {ref: trouble for ref, trouble in found if trouble.failures or trouble.crashes or trouble.reason != "-"}

    def close(self) -> None:
        self.release.touch()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait(10)
        self.fleet.close()
        self.door.close()
        self.rq.close()
