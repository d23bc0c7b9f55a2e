"""Intermittents, `idle_keep_alive` and polls."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from setpoint.errors import UsageError
from setpoint.runner import AbortRetry, Backoff, Intermittent, PollState, StrayCancellation, idle_keep_alive, poll
from tests.driving import drive, now, pass_time, settle


class Thing:
    """Starts and stops, each taking a while, and notes when."""

    def __init__(self, takes: float = 0, fails: int = 0) -> None:
        self.takes, self.fails = takes, fails
        self.log: list[str] = []
        self.made = Intermittent(self.start)

    async def start(self) -> Any:
        self.log.append(f"start {now():g}")
        try:
            await pass_time(self.takes)
        except asyncio.CancelledError:
            self.log.append(f"cancelled {now():g}")
            raise
        if self.fails:
            self.fails -= 1
            raise ValueError(f"at {now():g}")
        return self.stop

    async def stop(self) -> None:
        self.log.append(f"stop {now():g}")
        await pass_time(self.takes)

    async def listen(self, seconds: float) -> float:
        async with self.made.attach():
            attached = now()
            await pass_time(seconds)
        return attached


async def _after(seconds: float, work: Any) -> Any:
    await pass_time(seconds)
    return await work


def test_the_first_listener_starts_it_and_the_last_one_stops_it_again_and_again() -> None:
    async def main() -> None:
        thing = Thing(takes=1)
        attached = await asyncio.gather(thing.listen(10), _after(0.5, thing.listen(2)), _after(5, thing.listen(20)))
        assert attached == [1, 1, 5]
        assert (thing.made.listeners, thing.made.running) == (0, False)
        assert await thing.listen(1) == 27
        assert thing.log == ["start 0", "stop 25", "start 26", "stop 28"]

    drive(main)


def test_an_error_of_start_goes_to_the_one_it_was_started_for_and_the_next_one_tries_anew() -> None:
    async def main() -> None:
        thing = Thing(takes=1, fails=2)
        done = await asyncio.gather(*(thing.listen(1) for _ in range(4)), return_exceptions=True)
        assert [repr(d) for d in done[:2]] == ["ValueError('at 1')", "ValueError('at 2')"]
        assert done[2:] == [3, 3]
        assert thing.log == ["start 0", "start 1", "start 2", "stop 4"]

    drive(main)


def test_waiting_listeners_may_leave_while_a_slow_start_runs() -> None:
    async def main() -> None:
        thing = Thing(takes=100)
        first, second = asyncio.create_task(thing.listen(1)), asyncio.create_task(thing.listen(1))
        await pass_time(1)
        second.cancel()
        await asyncio.wait({second})
        assert now() == 1
        assert thing.made.listeners == 1
        assert await first == 100

    drive(main)


def test_a_start_ends_with_the_listener_it_was_for_and_the_next_one_starts_it_again() -> None:
    async def main() -> None:
        thing = Thing(takes=10)
        first, second = asyncio.create_task(thing.listen(1)), asyncio.create_task(thing.listen(1))
        await pass_time(3)
        first.cancel()
        assert await second == 13
        assert thing.log == ["start 0", "cancelled 3", "start 3", "stop 14"]
        lonely = asyncio.create_task(thing.listen(1))
        await pass_time(1)
        lonely.cancel()
        await settle()
        assert not thing.made.running
        assert thing.made.listeners == 0

    drive(main)


def test_a_plain_start_cannot_be_interrupted_and_is_stopped_if_nobody_listens_then() -> None:
    gate, log = threading.Event(), []

    def start() -> Any:
        gate.wait(10)
        log.append("started")
        return lambda: log.append("stopped")

    async def main() -> None:
        thing = Intermittent(start)
        listener = asyncio.ensure_future(thing.attach().__aenter__())
        await settle()
        listener.cancel()
        await settle()
        gate.set()
        while len(asyncio.all_tasks()) > 1:
            await settle()
        assert log == ["started", "stopped"]

    drive(main)


def test_leaving_is_once_and_the_last_one_gets_the_error_of_stop() -> None:
    async def bad() -> None:
        raise ValueError("stop")

    async def start() -> Any:
        return bad

    async def main() -> None:
        thing = Intermittent(start)
        first, second = await thing.attach(), await thing.attach()
        with pytest.raises(UsageError):
            await first
        await first.release()
        await first.release()
        assert thing.running
        with pytest.raises(ValueError, match="stop"):
            await second.release()
        await second.release()
        assert not thing.running
        async with Intermittent(_no_stop).attach():
            pass

    drive(main)


async def _no_stop() -> None: ...


def test_what_was_started_is_stopped_even_if_the_last_one_is_cancelled_meanwhile() -> None:
    async def main() -> None:
        thing = Thing(takes=5)
        task = asyncio.create_task(thing.listen(1))
        await pass_time(6.5)
        task.cancel()
        await asyncio.wait({task})
        assert now() == 6.5
        assert await thing.listen(1) == 16  # waits for the stop, then starts
        assert thing.log == ["start 0", "stop 6", "start 11", "stop 17"]

    drive(main)


def test_start_may_not_attach_to_itself_and_errors_without_a_listener_are_reported() -> None:
    async def main() -> None:
        async def start() -> None:
            await own.attach()

        own = Intermittent(start)
        with pytest.raises(UsageError):
            await own.attach()

        async def stray() -> None:
            raise asyncio.CancelledError

        with pytest.raises(StrayCancellation):
            await Intermittent(stray).attach()

        async def stubborn() -> None:
            try:
                await pass_time(100)
            except asyncio.CancelledError:
                raise ValueError("while it ended") from None

        task = asyncio.ensure_future(Intermittent(stubborn).attach().__aenter__())
        await pass_time(1)
        task.cancel()
        await settle()

    drive(main, reports=1)


def test_idle_keep_alive_runs_at_once_and_then_after_each_pause() -> None:
    async def main() -> None:
        thing = Thing(fails=1)
        task = asyncio.create_task(idle_keep_alive(thing.made, idle_for="1m", run_for="5s"))
        await pass_time(200)
        task.cancel()
        await asyncio.wait({task})
        assert thing.log == ["start 0", "start 65", "stop 70", "start 130", "stop 135", "start 195", "stop 200"]
        with pytest.raises(UsageError):
            await idle_keep_alive(thing.made, idle_for=0, run_for=0)

    drive(main)


# ---------------------------------------------------------------------------------------------------------------- polls


def polled(acts: list[float | Exception], listen: float, **options: Any) -> tuple[list[float], list[PollState]]:
    """When the action ran and what it told; each act is how long it takes, or what it raises; then it takes no time."""
    times: list[float] = []
    states: list[PollState] = []

    async def action() -> None:
        times.append(round(now(), 6))
        act = acts.pop(0) if acts else 0
        if isinstance(act, Exception):
            raise act
        await pass_time(act)

    async def told(state: PollState, error: Exception | None) -> None:
        assert (error is None) == (state.errors_since_success == 0)
        states.append(state)

    async def main() -> None:
        async with poll(action, on_attempt=told, **options).attach():
            await pass_time(listen)

    drive(main)
    return times, states


E = ValueError("e")


@pytest.mark.parametrize(
    ("acts", "options", "times"),
    [
        ([], {}, [0, 1, 2, 3, 4, 5]),
        ([], {"interval": "2s"}, [0, 2, 4]),
        ([0.5, 0.5], {}, [0, 1, 2, 3, 4, 5]),
        ([2.5], {}, [0, 2.5, 3, 4, 5]),  # two ticks were missed, one is made up for
        ([0, 1.25], {}, [0, 1, 2.25, 3, 4, 5]),
        ([E, E], {}, [0, 1, 2, 3, 4, 5]),
        ([E, E, E], {"error_backoff": (0.25, 0, 2)}, [0, 0.25, 0.75, 1.75, 2.75, 3.75, 4.75]),
        ([E, E, E], {"error_backoff": (0.5, 0.75, 2)}, [0, 0.5, 1.25, 2.0, 3.0, 4.0, 5.0]),
        ([E, E, E], {"error_backoff": (1.5, 0, 0)}, [0, 1.5, 3.0, 4.5]),
        ([E, E], {"error_backoff": Backoff("2s", max="1m", jitter=0)}, [0, 2]),
    ],
)
def test_a_poll_runs_at_once_and_then_keeps_its_pace(acts: Any, options: Any, times: list[float]) -> None:
    assert polled(list(acts), 5.4, **options)[0] == times


def test_all_four_counters_are_right() -> None:
    _, states = polled([E, E, 0, 0, E, 0], 5.1)
    assert [(s.total_errors, s.total_successes, s.errors_since_success, s.successes_since_error) for s in states] == [
        (1, 0, 1, 0),
        (2, 0, 2, 0),
        (2, 1, 0, 1),
        (2, 2, 0, 2),
        (3, 2, 1, 0),
        (3, 3, 0, 1),
    ]
    assert {s.next_delay_us for s in states} == {1_000_000}


def test_10000_errors_end_at_the_cap_of_the_backoff() -> None:
    times, states = polled([E] * 10_000, 300_000, error_backoff=("1s", "30s", 1.5))
    assert {s.next_delay_us for s in states[20:9_999]} == {30_000_000}
    assert len(times) > 9_999


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0},
        {"error_backoff": (0, 0, 1)},
        {"error_backoff": (5, 1, 1)},
        {"error_backoff": (1, 5, 0.5)},
        {"error_backoff": (1, 5)},
    ],
)
def test_a_poll_that_cannot_be_meant_is_refused(options: Any) -> None:
    with pytest.raises(UsageError):
        poll(_no_stop, **options)


def test_on_attempt_may_end_a_poll_until_all_have_left_and_its_errors_end_nothing() -> None:
    times: list[float] = []

    async def action() -> None:
        times.append(now())

    def told(state: PollState, error: Exception | None) -> bool:
        if state.total_successes == 1:
            raise ValueError("bad callback")
        return state.total_successes == 3

    async def main() -> None:
        polling = poll(action, on_attempt=told)
        async with polling.attach():
            await pass_time(10)
        async with polling.attach():
            await pass_time(0.5)
        assert times == [0, 1, 2, 10]

    drive(main, reports=2)


def test_the_last_listener_ends_a_run_and_runs_never_overlap() -> None:
    running, most = 0, 0

    async def action() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await pass_time(3)
        finally:
            running -= 1

    async def main() -> None:
        polling = poll(action)
        for _ in range(5):
            async with polling.attach(), polling.attach():
                await pass_time(1)
            assert running == 0

    drive(main)
    assert most == 1


def test_an_action_may_leave_its_own_poll() -> None:
    async def main() -> None:
        async def action() -> None:
            if now() >= 2:
                await attachment.release()
                raise AssertionError("not reached")

        polling = poll(action)
        attachment = await polling.attach()
        await pass_time(10)
        assert not polling.running

    drive(main)


def test_a_poll_takes_plain_functions_and_what_tasks_raise() -> None:
    states = []

    def action() -> None:
        raise AbortRetry(KeyError("k"))

    async def main() -> None:
        async def told(state: PollState, error: Exception | None) -> None:
            states.append((state.total_errors, repr(error)))

        async with poll(action, on_attempt=told).attach():
            await pass_time(2.5)

    drive(main)
    assert states == [(1, "KeyError('k')"), (2, "KeyError('k')"), (3, "KeyError('k')")]
