"""`python -m tests.bench.runner [--reps 3] [--attempts 20000] [--waits 100000]`

The in-process runner beside stamina, tenacity and bare asyncio. Medians of interleaved repetitions, each in a process
of its own; ratios are to bare asyncio in this run.

Overhead: one task that fails at once and is retried without a wait, per attempt. Memory: tasks that have failed once
and wait for their next attempt, all at the same time, per task; bare tasks only sleep.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import psutil

PEERS = ("bare", "setpoint", "tenacity", "stamina")


class Down(Exception):
    """What the task raises."""


async def fails() -> None:
    raise Down


def retrying(peer: str, attempts: int, wait: float) -> Callable[[], Awaitable[Any]]:
    """A call that tries `fails` so often, with this wait between."""
    if peer == "setpoint":
        from setpoint.runner import run

        return lambda: run(fails, retry=attempts, delay=wait)
    if peer == "tenacity":
        import tenacity

        def made() -> Awaitable[Any]:
            retrying = tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(attempts), wait=tenacity.wait_fixed(wait), reraise=True
            )
            return retrying(fails)

        return made
    if peer == "stamina":
        import stamina

        stamina.instrumentation.set_on_retry_hooks([])
        caller = stamina.AsyncRetryingCaller(
            attempts=attempts, timeout=None, wait_initial=wait, wait_max=max(wait, 1e-9), wait_jitter=0, wait_exp_base=1
        )
        return lambda: caller(Down, fails)

    async def bare() -> None:
        for _ in range(attempts):
            try:
                await fails()
            except Down:
                await asyncio.sleep(wait)

    async def bare_wait() -> None:
        await asyncio.sleep(wait)

    return bare_wait if wait else bare


async def overhead(peer: str, attempts: int) -> float:
    """Microseconds per attempt."""
    call = retrying(peer, attempts, 0)
    began = time.perf_counter()
    with suppress(Down):
        await call()
    return (time.perf_counter() - began) / attempts * 1e6


async def memory(peer: str, waits: int) -> None:
    """Says how many bytes of resident memory a waiting task has, and ends the process."""
    call = retrying(peer, 10, 3_600)

    async def one() -> None:
        await call()

    process = psutil.Process()
    start = call if peer == "setpoint" else one  # `run` gives a coroutine, which is all a task needs
    warm = asyncio.ensure_future(start())
    await asyncio.sleep(0.05)
    gc.collect()
    before = process.memory_info().rss
    tasks = [asyncio.ensure_future(start()) for _ in range(waits)]
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    used = process.memory_info().rss - before
    assert not any(task.done() for task in tasks)
    warm.cancel()
    os.write(1, f"{used / waits}\n".encode())
    os._exit(0)  # 100,000 cancellations are not measured


def measure(what: str, peer: str, n: int) -> float:
    """One figure, from a process of its own."""
    command = [sys.executable, "-m", "tests.bench.runner", "--one", what, peer, str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--attempts", type=int, default=20_000)
    parser.add_argument("--waits", type=int, default=100_000)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, peer, n = options.one
        logging.disable()
        print(asyncio.run({"overhead": overhead, "memory": memory}[what](peer, int(n))))
        return
    cells = {"overhead": ("us/attempt", options.attempts), "memory": ("bytes/wait", options.waits)}
    print(f"{'':10} {'':>12} {'median':>10} {'range':>19}  x bare")
    for what, (unit, n) in cells.items():
        figures: dict[str, list[float]] = {peer: [] for peer in PEERS}
        for _ in range(options.reps):
            for peer in PEERS:
                figures[peer].append(measure(what, peer, n))
        base = statistics.median(figures["bare"])
        for peer, found in figures.items():
            middle = statistics.median(found)
            spread = f"{min(found):.1f}–{max(found):.1f}"
            print(f"{peer:10} {unit:>12} {middle:10.1f} {spread:>19}  {middle / base:.2f}", flush=True)


if __name__ == "__main__":
    main()
