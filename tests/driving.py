"""Runs a coroutine in fake time, and sees that it left nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from setpoint.testing import FakeClock, FakeTimeLoop

T = TypeVar("T")


def drive(main: Callable[[], Awaitable[T]], clock: FakeClock | None = None, reports: int = 0) -> T:
    """What `main` returns. AssertionError for a task it left, and for other than `reports` errors told to the loop."""
    told: list[dict[str, Any]] = []

    async def run() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        result = await main()
        await settle()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left behind: {left}"
        return result

    with asyncio.Runner(loop_factory=lambda: FakeTimeLoop(clock)) as runner:
        result = runner.run(run())
    assert len(told) == reports, told
    return result


async def sleep(seconds: float) -> None:
    """As `asyncio.sleep`, in fake time."""
    await asyncio.sleep(seconds)  # noqa: TID251  # what the ban wants tests to have is this


async def settle(turns: int = 20) -> None:
    """Give all tasks turns; no time passes."""
    for _ in range(turns):
        await sleep(0)


def now() -> float:
    """Seconds of the loop's clock."""
    return asyncio.get_running_loop().time()


async def pass_time(seconds: float) -> None:
    """Let the loop's time pass, and stand just after what was due by then."""
    await sleep(seconds)
    await settle()
