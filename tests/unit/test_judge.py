"""What follows from outcomes, as whole series."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.backoff import Backoff
from setpoint.engine.records import Trouble
from setpoint.engine.scripts import FAR_US
from setpoint.judge import CRASH_WINDOW_US, Verdict, judge, park_poison, poisoned
from setpoint.outcome import (
    Crashed,
    Failed,
    Later,
    Moved,
    Nothing,
    Outcome,
    Reached,
    TimedOut,
    Vanished,
    Waiting,
)
from setpoint.registry import Policy

S = 1_000_000
NOW = 1_767_225_600 * S
FAIL = Failed("ValueError", "no", "drain", "trace")
PLAIN = Policy("host", backoff=Backoff(jitter=0))


def one(outcome: Outcome, policy: Policy = PLAIN, trouble: Trouble | None = None, now_us: int = NOW) -> Verdict:
    before = trouble or Trouble()
    return judge(policy, outcome, before, now_us=now_us, rng=Random(1))


def series(outcomes: Iterable[Outcome], policy: Policy = PLAIN) -> list[Verdict]:
    trouble, verdicts = Trouble(), []
    for outcome in outcomes:
        verdict = one(outcome, policy, trouble)
        trouble = Trouble.unpack(verdict.ending.trouble)
        verdicts.append(verdict)
    return verdicts


def delays(verdicts: Iterable[Verdict]) -> list[int]:
    return [v.ending.delay_us // S for v in verdicts]


def after(verdict: Verdict) -> Trouble:
    return Trouble.unpack(verdict.ending.trouble)


@pytest.mark.parametrize(
    ("options", "place", "delay"),
    [
        ({}, "forget", 0),
        ({"remember": True}, "idle", FAR_US),
        ({"managed": True}, "idle", FAR_US),
        ({"resync_us": 60 * S}, "idle", 60 * S),
    ],
)
def test_what_reached_its_goal_rests_or_is_forgotten(options: dict[str, Any], place: str, delay: int) -> None:
    trouble = Trouble(failures=3, delay_us=5, waits=2, suspect=4)
    ending = one(Reached("drained", 1), replace(PLAIN, **options), trouble).ending
    assert (ending.place, ending.delay_us, ending.trouble) == (place, delay, b"")
    assert ending.event == b"reached drained"


def test_nothing_to_do_is_at_rest() -> None:
    verdict = one(Nothing("serving"), replace(PLAIN, remember=True))
    assert (verdict.ending.place, verdict.ending.event) == ("idle", b"nothing serving")


def test_only_managed_states_that_changed_are_written() -> None:
    managed = replace(PLAIN, managed=True)
    assert one(Moved("b"), managed).ending.state == "b"
    assert one(Reached("b", 1), managed).ending.state == "b"
    assert one(Reached("b", 0), managed).ending.state is None
    assert one(Moved("b")).ending.state is None
    assert one(Waiting("b"), managed).ending.state is None


def test_a_state_that_moves_is_due_at_once_ten_times_and_then_ever_later() -> None:
    verdicts = series([Moved("x")] * 23)
    assert delays(verdicts) == [0] * 10 + [10, 20, 40, 80, 160, 320, 640, 1280, 2560] + [3600] * 4
    assert {v.ending.place for v in verdicts} == {"due"}


def test_waits_grow_and_are_no_failures() -> None:
    verdicts = series([Waiting("x")] * 11)
    assert delays(verdicts) == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
    assert (after(verdicts[-1]).failures, after(verdicts[-1]).waits) == (0, 11)


def test_moves_and_waits_are_counted_apart() -> None:
    outcomes: list[Outcome] = [Moved("a")] * 5 + [Waiting("a")] * 3 + [Moved("b"), Waiting("b")]
    assert delays(series(outcomes)) == [0] * 5 + [10, 20, 40] + [0, 10]


def test_a_failure_after_waits_starts_the_series_of_failures() -> None:
    assert delays(series([Waiting("a")] * 4 + [FAIL] * 3)) == [10, 20, 40, 80, 10, 20, 40]


def test_again_is_no_failure_and_forgets_those_before() -> None:
    verdicts = series([FAIL, FAIL, Later(5 * S, "x"), FAIL])
    assert delays(verdicts) == [10, 20, 5, 10]
    assert after(verdicts[2]) == Trouble()
    assert one(Later(0, "x")).ending.delay_us == 100_000


def test_failures_grow_for_ever_without_overflow() -> None:
    verdicts = series([FAIL] * 10_000)
    assert delays(verdicts)[:10] == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600]
    assert set(delays(verdicts)[9:]) == {3600}
    assert after(verdicts[-1]).failures == 10_000


def test_only_the_first_failure_is_an_event() -> None:
    assert [v.ending.event for v in series([FAIL] * 3)] == [b"failed drain: ValueError", b"", b""]


def test_one_success_of_the_whole_list_starts_the_series_over() -> None:
    for good in (Reached("x", 1), Moved("x"), Nothing("x"), Waiting("x")):
        assert delays(series([FAIL, FAIL, good, FAIL]))[-1] == 10, good


def test_jitter_does_not_slow_the_growth() -> None:
    verdicts = series([FAIL] * 12, replace(PLAIN, backoff=Backoff(jitter=0.5)))
    for n, verdict in enumerate(verdicts, 1):
        full = Backoff().nth(n)
        assert full / 2 <= verdict.ending.delay_us <= full


def test_reset_by_action_starts_the_delay_over_where_an_action_had_succeeded() -> None:
    second = replace(FAIL, reset=True)
    original = replace(PLAIN, backoff=Backoff.linear("10s", "1h"), reset="action")
    assert delays(series([FAIL, FAIL, FAIL, second, second, FAIL], original)) == [10, 20, 30, 10, 10, 20]
    exponential = replace(PLAIN, reset="action")
    assert delays(series([FAIL, FAIL, FAIL, second, second, FAIL], exponential)) == [10, 20, 40, 10, 10, 20]
    assert delays(series([FAIL, second, second])) == [10, 20, 40]  # reset="list" does not care


def test_over_the_limit_of_attempts_it_is_parked_with_its_last_error() -> None:
    verdicts = series([FAIL, FAIL, replace(FAIL, message="last")], replace(PLAIN, attempts=3))
    assert [v.ending.place for v in verdicts] == ["due", "due", "failed"]
    trouble = after(verdicts[-1])
    assert (trouble.reason, trouble.failures) == ("failed", 3)
    assert trouble.error is not None
    assert (trouble.error.message, trouble.error.where, trouble.error.at_us) == ("last", "drain", NOW)


def test_permanent_is_parked_at_once() -> None:
    verdict = one(replace(FAIL, permanent=True))
    assert (verdict.ending.place, after(verdict).reason) == ("failed", "failed")


def test_a_timeout_is_a_failure_of_its_own_label() -> None:
    verdict = one(TimedOut("drain", 60 * S))
    error = after(verdict).error
    assert verdict.label == "timed_out"
    assert error is not None
    assert error.message == "took longer than 1m"


@pytest.mark.parametrize("where", ["state", "goal_state", "actions", "reached"])
def test_errors_of_hooks_have_their_own_label(where: str) -> None:
    assert one(replace(FAIL, where=where)).label == "unreadable"
    assert one(FAIL).label == "failed"


def test_after_success_idle_rests_after_any_list_that_went_well() -> None:
    policy = replace(PLAIN, after_success="idle", managed=True)
    assert [v.ending.place for v in series([Moved("b"), Waiting("b")], policy)] == ["idle", "idle"]
    assert one(Moved("b"), policy).ending.state == "b"
    assert one(FAIL, policy).ending.place == "due"


def test_what_is_gone_is_gone() -> None:
    ending = one(Vanished(), replace(PLAIN, managed=True)).ending
    assert (ending.place, ending.trouble, ending.event) == ("gone", b"", b"gone")


def test_three_crashes_are_poison_and_use_up_no_attempts() -> None:
    verdicts = series([FAIL, Crashed("SIGSEGV"), Crashed("SIGSEGV"), Crashed("SIGKILL")], replace(PLAIN, attempts=2))
    assert [v.ending.place for v in verdicts] == ["due", "due", "due", "poison"]
    trouble = after(verdicts[-1])
    assert (trouble.failures, trouble.crashes, trouble.reason) == (1, 3, "poison")
    assert trouble.error is not None
    assert trouble.error.message == "SIGKILL"
    assert poisoned(PLAIN, trouble, NOW)


def test_crashes_are_counted_through_successes_and_forgotten_after_a_day() -> None:
    verdicts = series([Crashed("a"), Reached("x", 1), Crashed("b"), FAIL, Crashed("c")])
    assert verdicts[-1].ending.place == "poison"
    trouble = Trouble(crashes=2, first_crash_us=NOW - CRASH_WINDOW_US - 1)
    late = one(Crashed("d"), PLAIN, trouble)
    assert (late.ending.place, after(late).crashes) == ("due", 1)
    assert one(Reached("x", 1), PLAIN, trouble).ending.trouble == b""


def test_what_died_alone_runs_alone_again_and_any_outcome_clears_the_suspicion() -> None:
    assert after(one(Crashed("x"), PLAIN, Trouble(suspect=4))).suspect == 1
    for outcome in (Reached("x", 1), FAIL, Later(S, "x"), Moved("x"), Waiting("x")):
        assert after(one(outcome, PLAIN, Trouble(suspect=4))).suspect == 0


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (Trouble(), False),
        (Trouble(failures=10_000, suspect=9), False),
        (Trouble(suspect=10), True),
        (Trouble(crashes=2, first_crash_us=NOW), False),
        (Trouble(crashes=3, first_crash_us=NOW - CRASH_WINDOW_US), True),
        (Trouble(crashes=3, first_crash_us=NOW - CRASH_WINDOW_US - 1), False),
    ],
)
def test_poison_is_three_crashes_in_a_day_or_ten_suspicions(trouble: Trouble, expected: bool) -> None:
    assert poisoned(PLAIN, trouble, NOW) is expected


def test_poison_is_parked_without_running_it() -> None:
    verdict = park_poison(PLAIN, Trouble(suspect=10), now_us=NOW, rng=Random(1))
    assert (verdict.ending.place, verdict.label, after(verdict).reason) == ("poison", "poison", "poison")
    assert after(verdict).error is not None


OUTCOMES = st.one_of(
    st.builds(Reached, st.none() | st.text(max_size=5), st.integers(0, 5)),
    st.builds(Nothing, st.none()),
    st.builds(Moved, st.none() | st.text(max_size=5)),
    st.builds(Waiting, st.none()),
    st.builds(Later, st.integers(0, FAR_US - 1), st.none()),
    st.builds(Vanished),
    st.builds(Failed, st.text(), st.text(), st.text(), st.text(), st.booleans(), st.booleans()),
    st.builds(TimedOut, st.text(), st.integers(0, 10**15)),
    st.builds(Crashed, st.text()),
)
NUMBERS = st.integers(0, 1 << 60)


@given(OUTCOMES, st.builds(Trouble, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS), st.booleans())
def test_every_outcome_can_be_judged_after_any_trouble(outcome: Outcome, trouble: Trouble, linear: bool) -> None:
    policy = replace(PLAIN, backoff=Backoff.linear() if linear else Backoff())
    verdict = one(outcome, policy, trouble)
    assert 0 <= verdict.ending.delay_us <= FAR_US
    assert Trouble.unpack(verdict.ending.trouble).pack()
