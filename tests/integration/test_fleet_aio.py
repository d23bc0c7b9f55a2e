"""`fleet.aio` is `Fleet` on an event loop: the same verbs, and they behave the same."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime

import pytest

from setpoint.aio import AsyncFleet
from setpoint.errors import BadRef, BadTime, Conflict, NotFound, RedisUnavailable, TimedOut
from setpoint.fleet import Fleet

NOON = datetime(2099, 1, 1, 12, tzinfo=UTC)
OF_THE_BLOCKING_ONE = {"aio", "async_door", "door", "entity", "from_env", "redis_url"}


@pytest.fixture
def fleet(url: str, namespace: str) -> Iterator[Fleet]:
    with Fleet(url, namespace=namespace, patience="2s") as fleet:
        yield fleet


def verbs(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def test_the_same_verbs() -> None:
    assert verbs(AsyncFleet) == verbs(Fleet) - OF_THE_BLOCKING_ONE


@pytest.mark.parametrize("name", sorted(verbs(AsyncFleet)))
def test_the_same_signatures(name: str) -> None:
    blocking, awaited = (inspect.signature(getattr(cls, name)) for cls in (Fleet, AsyncFleet))
    assert blocking.parameters == awaited.parameters
    if name != "watch":
        assert blocking.return_annotation == awaited.return_annotation


def test_verbs_answer_the_same(fleet: Fleet) -> None:
    async def main() -> None:
        async with fleet.aio as aio:
            assert (await aio.set("host/a", "up", data=1)).revision == 1
            with pytest.raises(Conflict):
                await aio.set("host/a", "up", if_revision=9)
            assert await aio.get("host/a") == fleet.get("host/a")
            assert (await aio.enqueue("vm/7", at=NOON)).due == NOON
            assert await aio.is_scheduled("vm/7")
            assert len(await aio.enqueue_many((f"vm/{i}", 5) for i in range(300))) == 300
            assert (await aio.reschedule("vm/7", at=NOON)).due == NOON
            assert (await aio.explain("vm/7")).codes == fleet.explain("vm/7").codes
            assert await aio.unschedule("vm/7")
            assert await aio.ls("vm", limit=3) == fleet.ls("vm", limit=3)
            assert await aio.counts("vm") == fleet.counts("vm")
            assert (await aio.pause("vm/1", why="x")).why == "x"
            assert await aio.pauses() == fleet.pauses()
            assert await aio.resume("vm/1")
            assert await aio.delete("vm/1") == "deleted"
            assert await aio.delete_many(["vm/1"]) == {"vm/1": "absent"}
            assert await aio.dead() == []
            assert (await aio.revive("vm/2")).outcome == "absent"
            assert (await aio.retry_dead(["vm/2"]))[0].outcome == "absent"
            assert await aio.drop_dead(["vm/2"]) == {"vm/2": "absent"}
            assert (await aio.set_many({"host/b": "up"}))[0].changed
            with pytest.raises(NotFound):
                await aio.get("vm/nothing")

    asyncio.run(main())


def test_wait_and_watch(fleet: Fleet) -> None:
    async def main() -> None:
        async with fleet.aio as aio, aclosing(aio.watch(since="0-0")) as events:  # type: ignore[type-var]
            await aio.enqueue("vm/7", after="1h")
            with pytest.raises(TimedOut):
                await aio.wait("vm/7", "50ms")
            waiting = asyncio.create_task(aio.wait("vm/7", "20s"))
            await asyncio.sleep(0.1)
            started = asyncio.get_running_loop().time()
            await aio.delete("vm/7")
            assert (await waiting).place == "unknown"
            assert asyncio.get_running_loop().time() - started < 0.9
            event = await anext(events)
            assert (event.ref, event.name) == ("vm/7", "deleted")

    asyncio.run(main())


def test_many_tasks_and_a_cancelled_one(fleet: Fleet) -> None:
    async def main() -> None:
        async with fleet.aio as aio:
            tasks = [asyncio.create_task(aio.enqueue(f"vm/{i}")) for i in range(200)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for i, answer in enumerate(answers):
                assert isinstance(answer, asyncio.CancelledError) or answer.ref == f"vm/{i}"  # type: ignore[union-attr]
            assert [(await aio.enqueue(f"vm/{i}")).ref for i in range(20)] == [f"vm/{i}" for i in range(20)]

    asyncio.run(main())


def test_each_event_loop_has_connections_of_its_own(fleet: Fleet) -> None:
    async def main() -> str:
        async with fleet.aio as aio:
            return (await aio.enqueue("vm/1")).ref

    assert [asyncio.run(main()) for _ in range(3)] == ["vm/1"] * 3


def test_bad_arguments_and_an_absent_server() -> None:
    async def main() -> None:
        async with Fleet("redis://127.0.0.1:1/0", patience="100ms").aio as aio:
            with pytest.raises(BadRef):
                await aio.enqueue("nope")
            with pytest.raises(BadTime):
                await aio.enqueue("vm/1", after=float("nan"))
            with pytest.raises(RedisUnavailable):
                await aio.enqueue("vm/1")

    asyncio.run(main())
