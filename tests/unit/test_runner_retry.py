"""`run`, `Runner` and their delays: whole series, the table of decisions, cancellation, threads, garbage."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.errors import BadTime, UsageError
from setpoint.runner import (
    RETRY_UNLIMITED,
    AbortRetry,
    AttemptTimedOut,
    Backoff,
    Next,
    Runner,
    ServiceRetry,
    StrayCancellation,
    TaskFailed,
    TaskState,
    run,
)
from setpoint.runner.calls import THREADS
from setpoint.runner.delays import HalfMore, delays
from setpoint.runner.throttle import is_logged
from tests.driving import drive, now, pass_time, settle
from tests.waiting import wait_until

RNG = Random(1)


def series(policy: Any, n: int) -> list[int]:
    found, previous = [], 0
    for failures in range(1, n + 1):
        previous = policy.next(failures, previous, RNG)
        found.append(previous)
    return found


# --------------------------------------------------------------------------------------------------------------- delays


def test_the_series_is_half_as_long_again_each_time_in_whole_microseconds() -> None:
    assert series(delays(("1s", "30s"), None), 12) == [
        1_000_000,
        1_500_000,
        2_250_000,
        3_375_000,
        5_062_500,
        7_593_750,
        11_390_625,
        17_085_937,
        25_628_905,
        30_000_000,
        30_000_000,
        30_000_000,
    ]


@given(st.integers(1, 10**9), st.integers(1, 10**12))
def test_no_series_overflows_stands_still_or_leaves_its_cap_in_10000_attempts(start: int, most: int) -> None:
    policy, delay, capped = HalfMore(start, most), 0, False
    for failures in range(1, 10_001 if start % 50 == 0 else 200):
        before, delay = delay, policy.next(failures, delay, RNG)
        assert delay == start if failures == 1 else delay == min(before + max(before // 2, 1), most)
        assert delay > 0
        assert delay == most or not capped
        capped = capped or (failures > 1 and delay == most)


@pytest.mark.parametrize("policy", [HalfMore(1, 30_000_000), HalfMore(90_000_000, 30_000_000), HalfMore(500, 500)])
def test_10000_attempts_end_at_the_cap(policy: HalfMore) -> None:
    found = series(policy, 10_000)
    assert found[0] == policy.start_us
    assert found[100:] == [policy.max_us] * 9_900
    assert all(delay > 0 for delay in found)


def test_the_series_of_services_has_a_floor_and_a_cap_up_to_10000_attempts() -> None:
    retry = ServiceRetry()
    found = [retry.delay_us(n, RNG) for n in range(1, 10_001)]
    shown = [f"{us / 1e6:.3g}" for us in found[:12]]
    assert shown == ["0.5", "0.75", "1.12", "1.69", "2.53", "3.8", "5.7", "8.54", "12.8", "19.2", "28.8", "30"]
    assert found[2] == 1_125_000
    assert found[11:] == [30_000_000] * 9_989
    assert [ServiceRetry(initial="1ms", min="5ms", factor=2).delay_us(n, RNG) for n in (1, 2, 3, 4)] == [
        5_000,
        5_000,
        5_000,
        8_000,
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"backoff": ("1s", "5s"), "delay": "1s"},
        {"backoff": ("0s", "5s")},
        {"backoff": ("1s", 0)},
        {"backoff": "1s"},
        {"backoff": ("1s",)},
        {"retry": 1.5},
        {"retry": True},
        {"delay": -1},
        {"timeout": "soon"},
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_anything_runs(options: dict[str, Any]) -> None:
    with pytest.raises((UsageError, BadTime)):
        run(lambda: None, **options)


@pytest.mark.parametrize("task", [5, None, (i for i in ())])
def test_what_is_no_function_is_refused(task: Any) -> None:
    with pytest.raises(UsageError):
        run(task)


def test_a_coroutine_in_place_of_its_function_is_refused_without_a_warning() -> None:
    async def work() -> None: ...

    with pytest.raises(UsageError, match="without"):
        run(work())  # type: ignore[call-overload]


@pytest.mark.parametrize("make", [lambda: ServiceRetry(0), lambda: ServiceRetry(min="1m"), lambda: ServiceRetry(max=0)])
def test_a_service_retry_that_cannot_be_meant_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        make()


# ------------------------------------------------------------------------------------------------------------ decisions


class Scripted:
    """A task that does what it is told, attempt by attempt; then it succeeds."""

    def __init__(self, *acts: Next | Exception | None) -> None:
        self.acts = list(acts)
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(now())
        act = self.acts.pop(0) if self.acts else None
        if isinstance(act, Next):
            raise TaskFailed(ValueError(str(act)), act)
        if act is not None:
            raise act
        return "done"


N, S, R, B = Next.NORMAL, Next.STOP_NOW, Next.RETRY_NOW, Next.RESET_BACKOFF


@pytest.mark.parametrize(
    ("retry", "act", "again", "delay"),
    [
        # no error: it stops, whatever is left
        (1, None, False, 0.0),
        (5, None, False, 0.0),
        (RETRY_UNLIMITED, None, False, 0.0),
        # no attempts left: it stops, whatever the task says
        *[(left, act, False, 0.0) for left in (1, 0, -7) for act in (N, S, R, B)],
        # attempts left: as the task says
        *[
            (left, act, again, delay)
            for left in (2, RETRY_UNLIMITED)
            for act, again, delay in ((N, True, 1.0), (S, False, 0.0), (R, True, 0.0), (B, True, 1.0))
        ],
    ],
)
def test_what_follows_an_attempt(retry: int, act: Next | None, again: bool, delay: float) -> None:
    async def main() -> None:
        runner = Runner(Scripted(act), retry=retry, backoff=("1s", "30s"))
        assert runner.state is TaskState.PENDING
        step = await runner.step()
        assert (step.again, step.delay.total_seconds()) == (again, delay)
        assert (step.error is None) == (act is None)
        assert step.value == ("done" if act is None else None)
        assert runner.state is (TaskState.DELAY if again else TaskState.STOPPED)
        assert (runner.attempts, runner.error) == (1, step.error)
        assert now() == 0

    drive(main)


@pytest.mark.parametrize(
    ("acts", "delays_"),
    [
        ((N, N, N, N), [1, 1.5, 2.25, 3.375]),
        ((N, N, R, N, N), [1, 1.5, 0, 1, 1.5]),
        ((N, N, B, N, N), [1, 1.5, 1, 1.5, 2.25]),
        ((R, R, R), [0, 0, 0]),
        ((B, B, N), [1, 1, 1.5]),
    ],
)
def test_delays_grow_and_start_over(acts: tuple[Next, ...], delays_: list[float]) -> None:
    async def main() -> list[float]:
        runner = Runner(Scripted(*acts), retry=RETRY_UNLIMITED, backoff=("1s", "30s"))
        return [(await runner.step()).delay.total_seconds() for _ in acts]

    assert drive(main) == delays_


def test_10000_attempts_wait_the_exact_series() -> None:
    task = Scripted(*[N] * 9_999)

    async def main() -> str:
        return await run(task, retry=10_000, backoff=("1s", "30s"))

    assert drive(main) == "done"
    waits = [round((b - a) * 1e6) for a, b in zip(task.times, task.times[1:], strict=False)]
    assert waits == series(HalfMore(1_000_000, 30_000_000), 9_999)


@pytest.mark.parametrize(("retry", "attempts"), [(-1, 1), (0, 1), (1, 1), (2, 2), (7, 7)])
def test_retry_counts_all_attempts_and_the_last_error_is_raised(retry: int, attempts: int) -> None:
    task = Scripted(*[ValueError(str(i)) for i in range(1, 20)])

    async def main() -> None:
        with pytest.raises(ValueError, match=str(attempts)):
            await run(task, retry=retry, delay="1s")

    drive(main)
    assert len(task.times) == attempts
    assert task.times == [float(i) for i in range(attempts)]


def test_a_linear_backoff_starts_over_too() -> None:
    async def main() -> list[float]:
        runner = Runner(Scripted(N, N, B, N, R, N), retry=RETRY_UNLIMITED, backoff=Backoff.linear("1s", "10s"))
        return [(await runner.step()).delay.total_seconds() for _ in range(6)]

    assert drive(main) == [1, 2, 1, 2, 0, 1]


def test_a_next_that_is_none_is_raised_at_once_and_not_tried_again() -> None:
    calls = []

    async def task() -> None:
        calls.append(1)
        raise TaskFailed(ValueError(), "again")  # type: ignore[arg-type]

    async def main() -> None:
        with pytest.raises(UsageError, match="RESET_BACKOFF"):
            await run(task, retry=5)

    drive(main)
    assert calls == [1]


def test_what_a_task_wraps_is_what_its_caller_gets() -> None:
    inner = KeyError("k")

    async def task() -> None:
        raise AbortRetry(inner)

    async def main() -> None:
        with pytest.raises(KeyError) as caught:
            await run(task, retry=5)
        assert caught.value is inner

    drive(main)
    with pytest.raises(UsageError):
        AbortRetry("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(("final", "attempts"), [(True, 1), (False, 3)])
def test_a_group_of_exceptions_is_one_failure_and_final_if_a_part_is(final: bool, attempts: int) -> None:
    count = []

    async def part(error: Exception) -> None:
        raise error

    async def task() -> None:
        count.append(1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(part(ValueError()))
            tasks.create_task(part(AbortRetry(KeyError()) if final else KeyError()))

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            await run(task, retry=3)

    drive(main)
    assert len(count) == attempts


@pytest.mark.parametrize("fatal", [SystemExit(3), KeyboardInterrupt()])
def test_the_end_of_the_program_is_no_failure(fatal: BaseException) -> None:
    async def task() -> None:
        raise fatal

    with pytest.raises(type(fatal)), asyncio.Runner() as runner:
        runner.run(run(task, retry=5))


def test_only_one_step_at_a_time() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        runner = Runner(gate.wait)
        first = asyncio.create_task(runner.step())
        await settle()
        assert runner.state is TaskState.RUNNING
        with pytest.raises(UsageError):
            await runner.step()
        gate.set()
        assert (await first).value is True

    drive(main)


# ----------------------------------------------------------------------------------------------- timeouts, cancellation


def test_an_attempt_that_takes_too_long_is_a_failure_and_its_own_timeouts_stay_its_own() -> None:
    async def slow() -> None:
        await pass_time(10)

    async def own() -> None:
        raise TimeoutError("mine")

    async def main() -> None:
        with pytest.raises(AttemptTimedOut, match="2s") as caught:
            await run(slow, timeout="2s", retry=3, delay="1s")
        assert isinstance(caught.value, TimeoutError)
        assert now() == 8
        with pytest.raises(TimeoutError, match="mine") as other:
            await run(own, timeout="2s")
        assert not isinstance(other.value, AttemptTimedOut)
        await run(slow, timeout=0)

    drive(main)


@pytest.mark.parametrize("where", ["wait", "attempt"])
def test_cancellation_carries_the_last_error_as_its_cause(where: str) -> None:
    async def task() -> None:
        if now() >= 5:
            await pass_time(100)
        raise ValueError(f"at {now():g}")

    async def main() -> None:
        running = asyncio.create_task(run(task, retry=RETRY_UNLIMITED, delay="5s"))
        await pass_time(3 if where == "wait" else 6)
        running.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await running
        assert repr(caught.value.__cause__) == "ValueError('at 0')"

    drive(main)


def test_cancellation_before_any_failure_has_no_cause_and_the_task_of_a_timeout_outside_ends() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7):
                await run(Scripted(*[N] * 99), retry=RETRY_UNLIMITED, delay="2s")
        assert now() == 7

    drive(main)


def test_a_cancelled_error_that_nobody_asked_for_is_a_failure_like_others() -> None:
    async def task() -> str:
        inner = asyncio.get_running_loop().create_future()
        if now() < 2:
            inner.cancel()
            await inner
        return "came"

    async def main() -> None:
        assert await run(task, retry=5, delay="1s") == "came"
        with pytest.raises(StrayCancellation):
            await run(partial(Scripted(asyncio.CancelledError()).__call__))  # type: ignore[arg-type]

    drive(main)


# -------------------------------------------------------------------------------------------------------------- threads


def test_plain_functions_run_in_a_thread_with_the_callers_context() -> None:
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable")

    def plain(extra: str) -> tuple[bool, str]:
        return threading.current_thread() is threading.main_thread(), variable.get() + extra

    async def main() -> None:
        variable.set("here")
        assert await run(partial(plain, "!")) == (False, "here!")

    drive(main)


def test_a_plain_function_may_return_an_awaitable_and_may_raise_anything() -> None:
    async def later() -> str:
        return "later"

    def stop() -> None:
        raise StopIteration

    async def main() -> None:
        assert await run(lambda: later()) == "later"  # noqa: PLW0108  # no coroutine function, but it gives one
        with pytest.raises(RuntimeError, match="StopIteration"):
            await run(stop)
        with pytest.raises(ZeroDivisionError):
            await run(lambda: 1 / 0, retry=3, delay="10s")
        assert now() == 20

    drive(main)


def test_whoever_waits_for_a_thread_may_leave_and_nothing_leaks() -> None:
    gate, ended = threading.Event(), threading.Event()

    def stuck() -> None:
        gate.wait(10)
        ended.set()
        raise ValueError("nobody hears this")

    async def main() -> None:
        waiting = [asyncio.create_task(run(stuck)) for _ in range(THREADS)]
        await settle()
        late = asyncio.create_task(run(lambda: "at last"))  # no place is free
        left = asyncio.create_task(run(lambda: "never"))
        await settle()
        left.cancel()
        for task in waiting:
            task.cancel()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        assert not late.done()
        gate.set()
        assert await late == "at last"

    drive(main)
    assert ended.is_set()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("runner ")], what="the threads' end")


def test_a_thread_that_ends_after_its_loop_disturbs_nobody() -> None:
    gate = threading.Event()

    async def main() -> None:
        task = asyncio.create_task(run(partial(gate.wait, 10)))
        await settle()
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(main())
    gate.set()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("runner ")], what="the thread's end")


# ----------------------------------------------------------------------------------------------------------------- logs


def test_logged_are_the_first_failures_then_fewer_then_every_100th() -> None:
    assert [n for n in range(401) if is_logged(n)] == [1, 2, 5, 10, 20, 50, 100, 200, 300, 400]


def test_a_night_of_failures_is_a_few_lines_and_their_end_is_one(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    caplog.set_level(logging.INFO)
    log = logging.getLogger("app")

    async def main() -> None:
        await run(Scripted(*[ValueError("no route")] * 60), retry=RETRY_UNLIMITED, backoff=("1s", "30s"), log=log)
        with pytest.raises(Odd):
            await run(Scripted(Odd()), log=log)

    drive(main)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 6 + ["INFO", "ERROR"]
    assert caplog.messages[2] == "Scripted failed 5 in a row, next try in 5s62ms500us: ValueError: no route"
    assert caplog.messages[6] == "Scripted succeeded after 60 failures"
    assert (caplog.records[0].exc_info is not None, caplog.records[1].exc_info) == (True, None)
    assert vars(caplog.records[5])["try"] == 50


# -------------------------------------------------------------------------------------------------------------- garbage


class Big:
    """Something a task holds, which must go when the task is over."""


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("end", ["success", "failure", "cancelled"])
def test_nothing_is_left_for_the_garbage_collector(plain: bool, end: str) -> None:
    refs: list[weakref.ref[Big]] = []

    def work() -> None:
        big = Big()
        refs.append(weakref.ref(big))
        if end != "success" or len(refs) < 3:
            raise ValueError(len(refs))

    async def async_work() -> None:
        work()

    async def main() -> None:
        delay = "1h" if end == "cancelled" else "1s"
        task = asyncio.create_task(run(work if plain else async_work, retry=3, delay=delay))
        await pass_time(0.5)
        if end == "cancelled":
            while not refs:
                await settle()
            task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(done[0], BaseException) == (end != "success")
        del done, task

    gc.collect()
    gc.disable()
    try:
        drive(main)
        assert refs
        assert not [ref for ref in refs if ref() is not None]
    finally:
        gc.enable()


def test_a_million_seconds_of_waits_pass_at_once() -> None:
    task = Scripted(*[N] * 1_000)

    async def main() -> float:
        await run(task, retry=RETRY_UNLIMITED, delay=1_000)
        return now()

    assert drive(main) == 1_000_000.0
    assert sys.maxsize == RETRY_UNLIMITED
