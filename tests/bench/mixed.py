"""`python -m tests.bench.mixed [--seconds 20]`: how late work starts beside long work. The bar is 100 ms.

Mixed: in one lane 8 evaluations of 20 s and 1,000 of 5 ms at 200 a second, for 4 workers of 4 slots.
Coroutines: ten of 60 s, enqueued one by one for one worker of 10 slots; they are killed once all have started.
Step: one enqueue for now after the clock of Redis has stepped by 10 minutes, either way.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from setpoint import Fleet, embedded
from setpoint.engine.door import skewed
from tests.bench.peers import Processes
from tests.waiting import let_pass, wait_until

BAR_MS = 100.0
NAMESPACE = "mixed"


class Mixed(Processes):
    """Schedulers and workers of the acceptance application, killed at the end, and what they noted."""

    def __init__(self, url: str, log: Path) -> None:
        super().__init__(url, log)
        self.fleet = Fleet(url, namespace=NAMESPACE, unknown_kind="accept")

    def start(self, workers: int, slots: int) -> None:
        """A scheduler and so many workers, ready."""
        environ = {"ACCEPTANCE_LOG": str(self.log), "SETPOINT_NAMESPACE": NAMESPACE, "SETPOINT_LOG_LEVEL": "warning"}
        self.spawn(sys.executable, "-m", "setpoint.cli", "scheduler", **environ)
        app = ("--app", "tests.apps.acceptance:fleet")
        for _ in range(workers):
            self.spawn(sys.executable, "-m", "setpoint.cli", "worker", *app, "--slots", str(slots), **environ)
        with self.fleet.door() as door:
            wait_until(lambda: door.read(("HLEN", door.keys.worker))[0] >= workers, 30, "the workers")
        let_pass(1)

    def stop(self) -> None:
        """At once: what runs need not end."""
        for process in self.running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.running = []
        self.fleet.close()

    def lates(self, seconds: str) -> list[float]:
        """Milliseconds that each of those that take so long started after it was due."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        parts = (line.split(" ") for line in lines)
        return sorted(float(late) * 1e3 for _, took, late in parts if took == seconds)


def report(name: str, lates: Sequence[float], *, percentile: float) -> bool:
    """Print it; whether it keeps to the bar."""
    at = {share: lates[min(int(len(lates) * share), len(lates) - 1)] for share in (0.5, 0.99, 1.0)}
    good = at[percentile] <= BAR_MS
    print(
        f"{name:32} n={len(lates):<5} p50 {at[0.5]:8.2f} ms  p99 {at[0.99]:8.2f} ms  max {at[1.0]:8.2f} ms  "
        f"{'within' if good else 'OVER'} the bar of {BAR_MS:g} ms",
        flush=True,
    )
    return good


def mixed(peer: Mixed, long: float) -> bool:
    """Short work beside long work of its lane."""
    peer.start(4, 4)
    for i in range(8):
        peer.fleet.enqueue(f"timedplain/{i}@{time.time()}@{long}")
    wait_until(lambda: len(peer.lates(str(long))) == 8, 10, "the long ones to start")
    ends = time.monotonic() + long - 1
    n, begin = 1000, time.time() + 0.5
    dues = [begin + i / 200 for i in range(n)]
    peer.fleet.enqueue_many(
        (f"timedplain/s{i}@{due}@0.005", datetime.fromtimestamp(due, UTC)) for i, due in enumerate(dues)
    )
    wait_until(lambda: len(peer.lates("0.005")) == n, 60, "the short ones to start")
    print("  the short ones started while the long ones", "ran" if time.monotonic() < ends else "had ended already")
    good = report("short of 5 ms, 200/s, known ahead", peer.lates("0.005"), percentile=0.99)
    return report("long, enqueued for now", peer.lates(str(long)), percentile=1.0) and good


def mixed_now(peer: Mixed, long: float) -> bool:
    """The same, each short one enqueued for now, when it is due."""
    peer.start(4, 4)
    for i in range(8):
        peer.fleet.enqueue(f"timedplain/{i}@{time.time()}@{long}")
    wait_until(lambda: len(peer.lates(str(long))) == 8, 10, "the long ones to start")
    n, begin = 1000, time.monotonic()
    for i in range(n):
        let_pass(begin + i / 200 - time.monotonic())
        peer.fleet.enqueue(f"timedplain/s{i}@{time.time()}@0.005")
    wait_until(lambda: len(peer.lates("0.005")) == n, 60, "the short ones to start")
    return report("short of 5 ms, 200/s, for now", peer.lates("0.005"), percentile=0.99)


def coroutines(peer: Mixed, _long: float) -> bool:
    """Ten long coroutines in one worker."""
    peer.start(1, 10)
    for i in range(10):
        peer.fleet.enqueue(f"timed/{i}@{time.time()}@60")
        let_pass(0.1)
    wait_until(lambda: len(peer.lates("60")) == 10, 30, "ten coroutines to start")
    return report("coroutines of 60 s, one by one", peer.lates("60"), percentile=1.0)


def step(peer: Mixed, _long: float) -> bool:
    """New work after a step of the clock."""
    peer.start(1, 4)
    with peer.fleet.door() as door:
        for i, minutes in enumerate((10, -10)):
            with skewed(door, minutes * 60_000_000):
                peer.fleet.enqueue(f"timed/{i}@{time.time()}@0")
                wait_until(lambda: len(peer.lates("0")) > i, 60, "work after the step")  # noqa: B023
                let_pass(2)
    return report("now, after a step of 10 min", peer.lates("0"), percentile=1.0)


def main() -> None:
    """Measure all; exits with 1 if one is over the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the long ones take")
    options = parser.parse_args()
    good = True
    for measure in (mixed, mixed_now, coroutines, step):
        with tempfile.TemporaryDirectory() as folder, embedded.start(Path(folder), appendonly=False) as server:
            peer = Mixed(server.url, Path(folder) / "noted")
            try:
                good = measure(peer, options.seconds) and good
            finally:
                peer.stop()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
