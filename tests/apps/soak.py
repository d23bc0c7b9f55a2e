"""The application of the soak: entities that are evaluated again and again, by each way there is to come back.

Every action appends a line when it starts and one when it has ended to the file SOAK_LOG: the word, the fence, the time
in µs of the clock that all processes share, the worker's pid, the ref.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import zlib
from typing import Any, Literal

from setpoint import Context, Fleet, Managed, Observed, action

_never = threading.Event()
_fds: dict[int, int] = {}

LOOP, SLOW, RESYNC, GATE = "loop", "slow", "resync", "gate"


def note(word: str, ctx: Context) -> None:
    """One line in one write: lines of several processes stay whole and in order."""
    pid = os.getpid()
    if pid not in _fds:
        _fds[pid] = os.open(os.environ["SOAK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    line = f"{word} {ctx.fence} {time.monotonic_ns() // 1000} {os.getppid()} {ctx.ref}\n"
    os.write(_fds[pid], line.encode())


def part(ref: str) -> float:
    """Between 0 and 1, always the same for a ref: they differ without any chance."""
    return zlib.crc32(ref.encode()) % 1000 / 1000


fleet = Fleet.from_env()


class _Acts(Observed[str]):
    acted = False

    def state(self) -> str:
        return "done" if self.acted else "todo"

    def goal_state(self) -> str:
        return "done"

    def actions(self, state: str, goal: str) -> list[Any]:
        return [self.act]

    def act(self, ctx: Context) -> Any:
        raise NotImplementedError


@fleet.entity(LOOP, remember=True)
class Loop(_Acts):
    """Quick and plain; asks for itself again."""

    def act(self, ctx: Context) -> None:
        note("start", ctx)
        ctx.enqueue(ctx.ref, after=0.6 + part(ctx.ref))
        _never.wait(part(ctx.ref) * 0.04)
        note("end", ctx)
        self.acted = True


@fleet.entity(SLOW, remember=True)
class Slow(_Acts):
    """As `loop`, and takes about as long as a lease."""

    def act(self, ctx: Context) -> None:
        note("start", ctx)
        ctx.enqueue(ctx.ref, after=0.5)
        _never.wait(1 + 2 * part(ctx.ref))
        note("end", ctx)
        self.acted = True


@fleet.entity(RESYNC, resync="1s")
class Resync(_Acts):
    """A coroutine that rests until the Janitor looks again."""

    async def act(self, ctx: Context) -> None:
        note("start", ctx)
        await asyncio.sleep(part(ctx.ref) * 0.1)
        note("end", ctx)
        self.acted = True


GateState = Literal["open", "closed"]


@fleet.entity(GATE, initial="open")
class Gate(Managed[GateState]):
    """Has a record, and goals that are set from outside."""

    @action(when="open", goal="closed")
    def close(self, ctx: Context) -> GateState:
        return self._move(ctx, "closed")

    @action(when="closed", goal="open")
    def open(self, ctx: Context) -> GateState:
        return self._move(ctx, "open")

    def _move(self, ctx: Context, to: GateState) -> GateState:
        note("start", ctx)
        _never.wait(part(ctx.ref) * 0.05)
        note("end", ctx)
        return to
