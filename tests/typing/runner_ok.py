"""Every line of this is right."""

from collections.abc import Callable
from functools import partial
from typing import assert_type

from setpoint.runner import Group, Intermittent, PollState, Runner, Scope, Service, ServiceRetry, Step, poll, run


async def fetch() -> int:
    return 5


def plain(text: str) -> str:
    return text


async def on_attempt(state: PollState, error: Exception | None) -> bool:
    return error is None


async def start() -> Callable[[], None] | None:
    return None


async def apply(scope: Scope, config: list[int]) -> None:
    scope.spawn(fetch, retry=3, backoff=("1s", "30s"))


def parse(config: bytes) -> list[int]:
    return list(config)


async def main() -> None:
    assert_type(await run(fetch, retry=3, delay="1s"), int)
    assert_type(await run(partial(plain, "x"), timeout="5s"), str)
    assert_type(await Runner(fetch).step(), Step[int])
    async with Group[str]() as group:
        group.spawn("a", fetch, retry=5)
    poll(fetch, "1s", on_attempt=on_attempt, error_backoff=("1s", "1m", 2))
    async with Intermittent(start).attach():
        pass
    Service(apply, parser=parse, retry=ServiceRetry(5)).start(b"x")
