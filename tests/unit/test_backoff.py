"""Delays as whole series."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.backoff import Backoff, Retry
from setpoint.errors import BadTime, UsageError

S = 1_000_000


def test_an_exponential_series_doubles_up_to_its_maximum_and_stays_there() -> None:
    backoff = Backoff(jitter=0)
    series = [backoff.nth(n) // S for n in range(1, 10_001)]
    assert series[:10] == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600]
    assert set(series[9:]) == {3600}


def test_a_linear_series_is_the_original_one() -> None:
    backoff = Backoff.linear("10s", "60m")
    series, previous = [], 0
    for n in range(1, 10_001):
        previous = backoff.next(n, previous, Random(1))
        series.append(previous // S)
    assert series == [min(10 * n, 3600) for n in range(1, 10_001)]


@given(st.integers(), st.integers(), st.floats(1, 1e300), st.floats(0, 1), st.integers())
def test_no_number_of_failures_overflows(n: int, previous: int, factor: float, jitter: float, seed: int) -> None:
    for backoff in (Backoff("1s", "36500d", factor=factor, jitter=jitter), Backoff.linear("1s", "36500d")):
        for huge in (n, 10**400):
            assert 1 <= backoff.next(huge, previous, Random(seed)) <= backoff.max_us
            assert backoff.initial_us <= backoff.after(previous) <= backoff.max_us


def test_jitter_picks_from_the_upper_part_of_each_delay() -> None:
    rng, backoff = Random(7), Backoff("10s", jitter=0.5)
    delays = [backoff.next(1, 0, rng) for _ in range(2000)]
    assert 5 * S <= min(delays) < 5.1 * S
    assert 9.9 * S < max(delays) <= 10 * S


def test_growing_from_the_delay_before_gives_the_same_series_as_counting() -> None:
    backoff, previous = Backoff("3s", "1d", factor=1.7), 0
    for n in range(1, 50):
        previous = backoff.after(previous)
        assert abs(previous - backoff.nth(n)) <= n * n + backoff.nth(n) // 10**6


def test_a_backoff_survives_the_wire() -> None:
    for backoff in (Backoff(), Backoff.linear("5s", "1m"), Backoff("1ms", "2d", factor=3.5, jitter=0.1)):
        assert Backoff.from_wire([*backoff.to_wire(), 99]) == backoff


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (("0s",), {}),
        (("2h", "1h"), {}),
        (("1s",), {"factor": 0.5}),
        (("1s",), {"factor": float("nan")}),
        (("1s",), {"factor": float("inf")}),
        (("1s",), {"jitter": 1.1}),
        (("1s",), {"jitter": True}),
        ((None,), {}),
    ],
)
def test_a_backoff_that_cannot_be_meant_is_refused(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Backoff(*args, **options)


def test_none_is_no_delay() -> None:
    with pytest.raises(BadTime):
        Backoff.linear(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": True},
        {"attempts": 1.5},
        {"backoff": "10s"},
        {"never": ValueError},
        {"never": ("x",)},
        {"reset": "x"},
    ],
)
def test_a_retry_that_cannot_be_meant_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Retry(**options)


def test_retry_is_unlimited_unless_told() -> None:
    assert Retry() == Retry(attempts=None, backoff=Backoff("10s", "1h", factor=2, jitter=0.5), never=(), reset="list")
