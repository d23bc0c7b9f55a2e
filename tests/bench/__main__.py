"""`python -m tests.bench [--reps 5] [--cells w1,w2,w3,w9] [--peers setpoint,rq,huey]`

Peers are interleaved, figures are medians with their range, `x rq` is the ratio to plain RQ's SimpleWorker in this run.
Absolute figures do not carry over to another machine, nor from a quiet hour to a busy one.

W1: a backlog of no-ops drained by one worker. W2: a herd due at one instant. W3: lateness at 100 a second, idle worker.
W9: entities that have themselves evaluated again. Two: what a second worker adds to that with actions of 1 ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import redis

from setpoint import Fleet
from tests.bench.log import count, read
from tests.bench.peers import PEERS, Processes
from tests.waiting import wait_until

Figures = dict[str, float]


def w1(peer, log: Path, seconds: float) -> Figures:
    """A backlog of no-ops, there before the worker starts."""
    n = int(peer.scale * seconds)
    peer.noops(n)
    peer.start()
    begun, before = count(log), peer.cpu()
    wait_until(lambda: count(log) >= n, 120, f"{peer.name} drains {n} no-ops")
    used = peer.cpu() - before
    runs = [started for started, _ in read(log)]
    return {"jobs/s": (len(runs) - 1) / (runs[-1] - runs[0]), "cpu us/job": used / (n - begun) * 1e6}


def w2(peer, log: Path, seconds: float) -> Figures:
    """A herd due at one instant, while the worker idles."""
    n = (
        max(int(peer.scale * seconds / 2), 500)
        if peer.name != "setpoint"
        else max(int(peer.scale * seconds / 2), 10_000)
    )
    peer.start()
    due = float(int(time.time()) + 4 + n // 3000 * (peer.name != "setpoint"))
    peer.lates([due] * n)
    wait_until(lambda: count(log) >= n, 120, f"{peer.name} runs a herd of {n}")
    runs = [started for started, _ in read(log)]
    return {"jobs/s from T": n / (runs[-1] - due), "first ms after T": (runs[0] - due) * 1e3}


def w3(peer, log: Path, seconds: float) -> Figures:
    """100 a second, due at instants known in advance."""
    n = int(100 * max(seconds, 3))
    peer.start()
    begin = time.time() + 2
    dues = [begin + i / 100 for i in range(n)]
    peer.lates(dues)
    wait_until(lambda: count(log) >= n, 120, f"{peer.name} runs {n} on time")
    late = sorted((started - due) * 1e3 for started, due in read(log))
    return {
        "earliest ms": late[0],
        "p50 ms": late[len(late) // 2],
        "p99 ms": late[int(len(late) * 0.99)],
    }


def now_path(peer, log: Path, seconds: float) -> Figures:
    """One enqueue for now, on an idle worker: call to first line of the action."""
    peer.start()
    n = 100
    for i in range(n):
        peer.lates([time.time()])
        wait_until(lambda: count(log) > i, 10, "the action runs")  # noqa: B023
    late = sorted((started - due) * 1e3 for started, due in read(log))
    return {"p50 ms": late[n // 2], "p99 ms": late[n - 1]}


def w9(peer, log: Path, seconds: float) -> Figures:
    """Entities (1,000) that have themselves evaluated again at once."""
    peer.loops(1000)
    peer.start()
    wait_until(lambda: count(log) >= peer.scale * 0.2, 60, f"{peer.name} loops")
    first, began = count(log), time.monotonic()
    wait_until(lambda: time.monotonic() - began >= seconds, seconds + 5)
    return {"evaluations/s": (count(log) - first) / (time.monotonic() - began)}


def two(peer, log: Path, seconds: float) -> Figures:
    """A second worker, with entities (400) whose action takes 1 ms and that have themselves evaluated again."""
    rates: list[float] = []
    fleet = Fleet(peer.url, unknown_kind="accept")
    for workers in (1, 2):
        peer.start(workers)
        fleet.enqueue_many([(f"slow/{i}", 0) for i in range(400)])
        first = count(log)
        wait_until(lambda: count(log) >= first + 2000, 60, "the loop runs")  # noqa: B023
        first, began = count(log), time.monotonic()
        wait_until(lambda: time.monotonic() - began >= seconds, seconds + 5)  # noqa: B023
        rates.append((count(log) - first) / (time.monotonic() - began))
        peer.stop()
    return {"one, /s": rates[0], "two, /s": rates[1], "two / one": rates[1] / rates[0]}


CELLS: dict[str, Callable[..., Figures]] = {"w1": w1, "w2": w2, "w3": w3, "now": now_path, "w9": w9, "two": two}
ALONE = {"now", "two"}
"""Cells for setpoint alone."""


def measure(make: type[Processes], cell: str, seconds: float) -> Figures:
    """One peer, one cell, on a Valkey of its own."""
    from setpoint import embedded

    with tempfile.TemporaryDirectory() as folder:
        log = Path("/dev/shm" if Path("/dev/shm").is_dir() else folder) / f"bench-{os.getpid()}.log"
        log.unlink(missing_ok=True)
        with embedded.start(Path(folder), appendonly=False) as server:
            peer = make(server.url, log, _pid_of(server.url))
            os.environ["BENCH_LOG"] = str(log)
            try:
                return CELLS[cell](peer, log, seconds)
            finally:
                peer.stop()
                log.unlink(missing_ok=True)


def _pid_of(url: str) -> int:
    client = redis.Redis.from_url(url)
    found: dict[str, int] = client.info("server")
    client.close()
    return found["process_id"]


def main() -> None:
    """Run and print a table a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long one measurement takes")
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--peers", default="setpoint,rq,huey,ceiling")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if peer.name in options.peers.split(",")]
    for cell in options.cells.split(","):
        rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        used = [peer for peer in peers if not (cell in ALONE and peer.name != "setpoint")]
        for _ in range(options.reps):
            for peer in used:
                for figure, value in measure(peer, cell, options.seconds).items():
                    rows[peer.name][figure].append(value)
        print(f"\n{cell}: {(CELLS[cell].__doc__ or '').strip()}  (n={options.reps})")
        for name, figures in rows.items():
            for figure, values in figures.items():
                middle, low, high = statistics.median(values), min(values), max(values)
                line = f"  {name:9} {figure:16} {middle:>12,.2f}  [{low:,.2f} .. {high:,.2f}]"
                base = rows.get("rq", {}).get(figure)
                if base and name != "rq" and statistics.median(base):
                    line += f"  {statistics.median(values) / statistics.median(base):.2f} x rq"
                base = rows.get("ceiling", {}).get(figure)
                if base and name == "setpoint" and statistics.median(base):
                    line += f"  {statistics.median(values) / statistics.median(base):.2f} x ceiling"
                print(line, flush=True)


if __name__ == "__main__":
    main()
