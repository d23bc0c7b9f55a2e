"""Groups: states, tags, cancellation, what a task does to its own group."""

from __future__ import annotations

import asyncio

import pytest

from setpoint.errors import UsageError
from setpoint.runner import AbortRetry, Group, GroupTask, TagExists, TaskState
from setpoint.runner.group import REMEMBERED
from tests.driving import drive, now, pass_time, settle


async def _sleep() -> None:
    await pass_time(10)


async def _fail() -> None:
    raise ValueError(f"at {now():g}")


async def _final() -> None:
    raise AbortRetry(KeyError("final"))


async def _nothing() -> None: ...


@pytest.mark.parametrize(
    ("task", "retry", "seconds", "state", "error", "attempts"),
    [
        (_sleep, 1, None, TaskState.PENDING, "None", 0),
        (_sleep, 1, 0, TaskState.RUNNING, "None", 0),
        (_sleep, 1, 11, TaskState.STOPPED, "None", 1),
        (_nothing, 5, 0, TaskState.STOPPED, "None", 1),
        (_fail, 1, 0, TaskState.STOPPED, "ValueError('at 0')", 1),
        (_fail, 3, 0, TaskState.DELAY, "ValueError('at 0')", 1),
        (_fail, 3, 1, TaskState.DELAY, "ValueError('at 1')", 2),
        (_fail, 3, 2, TaskState.STOPPED, "ValueError('at 2')", 3),
        (_final, 3, 0, TaskState.STOPPED, "KeyError('final')", 1),
    ],
)
def test_state_and_last_error_are_visible_at_any_time(task, retry, seconds, state, error, attempts) -> None:
    async def main() -> None:
        async with Group[str]() as group:
            made = group.spawn("a", task, retry=retry, delay="1s")
            if seconds is not None:
                await pass_time(seconds)
            assert (made.state, repr(made.error), made.attempts, made.tag) == (state, error, attempts, "a")
            assert group.tasks() == {"a": made}

    drive(main)


@pytest.mark.parametrize(
    ("task", "retry", "seconds", "error", "cause"),
    [
        (_sleep, 1, None, asyncio.CancelledError, "None"),  # before it began
        (_sleep, 1, 1, asyncio.CancelledError, "None"),
        (_fail, 9, 1.5, asyncio.CancelledError, "ValueError('at 1')"),
        (_nothing, 9, 1, type(None), None),
        (_fail, 1, 1, ValueError, None),
    ],
)
def test_cancel_stops_a_task_and_keeps_its_last_error(task, retry, seconds, error, cause) -> None:
    async def main() -> None:
        group = Group[str]()
        made = group.spawn("a", task, retry=retry, delay="1s")
        if seconds is not None:
            await pass_time(seconds)
        made.cancel()
        made.cancel()
        assert await made.wait()
        assert made.state is TaskState.STOPPED
        for _ in range(2):  # the same each time it is looked at
            assert type(made.error) is error
            assert cause is None or repr(made.error.__cause__) == cause
        made.cancel()

    drive(main)


def test_a_live_tag_is_refused_and_a_finished_one_may_be_used_again() -> None:
    async def main() -> None:
        group = Group[int]()
        first = group.spawn(1, _sleep)
        with pytest.raises(TagExists, match="pending"):
            group.spawn(1, _nothing)
        await settle()
        assert first.state is TaskState.RUNNING
        await group.wait()
        second = group.spawn(1, _nothing)
        assert await group.wait()
        assert group.tasks() == {1: second}

    drive(main)


def test_wait_ends_at_its_timeout_or_with_the_tasks_those_spawned_meanwhile_too() -> None:
    async def main() -> None:
        group = Group[str]()
        task = group.spawn("a", _sleep)

        async def more() -> None:
            await pass_time(5)
            group.spawn("b", _sleep)

        group.spawn("more", more)
        assert not await task.wait("3s")
        assert now() == 3
        assert await group.wait("1h")
        assert now() == 15
        assert await group.wait(0)
        other = _one()
        assert not await other.wait(0)
        other.cancel()
        await other.wait()

    drive(main)


def _one() -> Group[str]:
    group = Group[str]()
    group.spawn("a", _sleep)
    return group


def test_no_task_ends_another_nor_its_group() -> None:
    async def main() -> None:
        group = Group[int]()
        for i in range(10):
            group.spawn(i, _fail if i % 2 else _sleep, retry=2, delay="1s")
        assert await group.wait()
        assert [type(task.error) for task in group.tasks().values()] == [type(None), ValueError] * 5

    drive(main)


def test_the_end_of_async_with_cancels_what_is_left_and_ends_the_group() -> None:
    async def main() -> None:
        async with Group[str]() as group:
            task = group.spawn("a", _sleep)
        assert isinstance(task.error, asyncio.CancelledError)
        assert now() == 0
        with pytest.raises(UsageError):
            group.spawn("b", _nothing)

    drive(main)


def test_a_task_may_call_its_group_but_not_wait_for_itself() -> None:
    async def main() -> None:
        group = Group[str]()
        said: list[object] = []

        async def inner() -> None:
            group.spawn("child", _sleep)
            for wait in (group.wait, group.tasks()["a"].wait):
                with pytest.raises(UsageError):
                    await wait()
            said.append(group.tasks()["a"].state)
            group.cancel()
            await pass_time(1)
            said.append("too late")

        task = group.spawn("a", inner)
        await group.wait()
        assert said == [TaskState.RUNNING]
        assert isinstance(task.error, asyncio.CancelledError)

    drive(main)


def test_only_the_latest_finished_tasks_are_remembered() -> None:
    async def main() -> None:
        group = Group[int]()
        keep: GroupTask[int] = group.spawn(-1, _sleep)
        for i in range(REMEMBERED + 50):
            group.spawn(i, _nothing)
        await settle()
        assert len(group.tasks()) == REMEMBERED + 1
        assert min(tag for tag in group.tasks() if tag >= 0) == 50
        keep.cancel()
        await group.wait()

    drive(main)


def test_a_group_that_nobody_holds_goes_on() -> None:
    import gc

    done: list[float] = []

    async def work() -> None:
        await pass_time(3)
        done.append(now())

    async def main() -> None:
        Group[str]().spawn("a", work)
        gc.collect()
        await pass_time(5)

    drive(main)
    assert done == [3]
