"""A small application: one kind for each way an evaluation can behave."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from setpoint.outcome import Again, Gone
from setpoint.registry import Managed, Observed, Registry, action

T = TypeVar("T")


class Stand:
    """Stands in for a fleet: only its registry matters to the child."""

    def __init__(self) -> None:
        self.registry = Registry()


fleet = Stand()


def entity(name: str, **options: Any) -> Callable[[type[T]], type[T]]:
    def declare(cls: type[T]) -> type[T]:
        fleet.registry.declare(cls, name, **options)
        return cls

    return declare


_gate = threading.Event()
_count = {"running": 0, "most": 0}


@entity("noop")
class Noop(Observed[str]):
    def state(self) -> str:
        return "up"

    def goal_state(self) -> str:
        return "up"

    def actions(self, state: str, goal: str) -> list[Any]:
        return []


@entity("door", initial="closed")
class Door(Managed[Literal["closed", "open"]]):
    @action(when="closed", goal="open")
    def open(self, ctx: Any) -> str | Again:
        if self.id == "stuck":
            return Again("5s")
        if self.id == "locked":
            raise PermissionError("no key")
        return "open"

    @action(when="open", goal="closed")
    def close(self, ctx: Any) -> str:
        ctx.enqueue(f"door/{self.id}", after="1h")
        ctx.enqueue("door/other", after=2)
        ctx.progress(1, 2, "half")
        ctx.progress(2, 2, "dropped: too soon")
        return "closed"


class _One(Observed[str]):
    """Never reached: its one action always runs."""

    def state(self) -> str:
        return "down"

    def goal_state(self) -> str:
        return "up"

    def actions(self, state: str, goal: str) -> list[Any]:
        return [self.run]

    def run(self, ctx: Any) -> Any:
        raise NotImplementedError


@entity("waits")
class Waits(_One):
    """Says that it began, and goes on until it is cancelled."""

    def run(self, ctx: Any) -> None:
        ctx.enqueue(f"began/{self.id}", after=0)
        while not ctx.cancelled:
            _gate.wait(0.005)


@entity("loops", timeout="50ms")
class Loops(_One):
    def run(self, ctx: Any) -> None:
        while True:
            pass


@entity("dies")
class Dies(_One):
    def run(self, ctx: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@entity("exits")
class Exits(_One):
    def run(self, ctx: Any) -> None:
        raise SystemExit(7)


@entity("hangs", timeout="50ms")
class Hangs(_One):
    async def run(self, ctx: Any) -> None:
        ctx.enqueue(f"began/{self.id}", after=0)
        await asyncio.Event().wait()

    async def state(self) -> str:
        return "down"


@entity("busy")
class Busy(_One):
    """Async; its message says how many ran at once at most."""

    async def state(self) -> str:
        return "down"

    async def run(self, ctx: Any) -> None:
        _count["running"] += 1
        _count["most"] = max(_count.values())
        for _ in range(50):
            await asyncio.sleep(0)
        _count["running"] -= 1


@entity("most")
class Most(Observed[str]):
    async def state(self) -> str:
        return str(_count["most"])

    async def goal_state(self) -> str:
        return str(_count["most"])

    def actions(self, state: str, goal: str) -> list[Any]:
        return []


@entity("halfasync", timeout="50ms")
class HalfAsync(_One):
    """Async kind whose action is a plain endless loop: it must not stop the event loop, and times out."""

    async def state(self) -> str:
        return "down"

    def run(self, ctx: Any) -> None:
        while True:
            pass


@entity("torn")
class Torn(_One):
    """Its state is text that cannot be encoded."""

    def state(self) -> Any:
        return "\ud800"

    def goal_state(self) -> Any:
        return "\ud800"

    def run(self, ctx: Any) -> None: ...


@entity("gone")
class Missing(_One):
    def state(self) -> Any:
        return Gone()


@entity("oneasync")
class OneAsync(_One):
    """Plain hooks and an `async def` action, which nobody can know before it is listed."""

    async def run(self, ctx: Any) -> None:
        if self.id == "hangs":
            await asyncio.Event().wait()
        await asyncio.sleep(0)
