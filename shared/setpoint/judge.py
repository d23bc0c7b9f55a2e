"""What follows from an evaluation: where the entity goes, when it is due again, what is remembered of its trouble.

Pure: everything it needs is given, and nothing is done here. Scripts carry out what it says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, assert_never

from setpoint.clock import format_duration
from setpoint.engine.records import NO_TROUBLE, ErrorText, Trouble
from setpoint.engine.scripts import FAR_US, Ending
from setpoint.outcome import (
    AGAIN_FLOOR_US,
    MESSAGE_CHARS,
    TRACE_CHARS,
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
    clean,
)

if TYPE_CHECKING:
    from random import Random

    from setpoint.registry import Policy

__all__ = ["Label", "Verdict", "judge", "park_poison", "poisoned"]

MOVES_AT_ONCE: Final = 10
"""Evaluations in a row that may change the state and be due again at once; more look like a circle."""

CRASH_WINDOW_US: Final = 24 * 3_600 * 1_000_000
"""Crashes count together for so long from the first of them."""

SUSPECT_LIMIT: Final = 10
"""So many deaths of a process around one ref are no coincidence, even if it never died alone."""

HOOKS: Final = frozenset({"state", "goal_state", "actions", "reached"})

Label: TypeAlias = Literal[
    "reached", "nothing", "moved", "waiting", "later", "gone", "failed", "unreadable", "timed_out", "crashed", "poison"
]
"""An evaluation's outcome in metrics. `unreadable`: `state()` or another hook raised, no action."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an evaluation ends."""

    ending: Ending
    label: Label


@dataclass(frozen=True, slots=True)
class _Case:
    """One evaluation to judge."""

    policy: Policy
    trouble: Trouble
    now_us: int
    rng: Random

    def rest(self, label: Label, event: str = "", *, state: str | None = None) -> Verdict:
        """At rest: known until the next resync, or forgotten."""
        policy = self.policy
        far = FAR_US if policy.resync_us is None else policy.resync_us
        if policy.kept:
            return self._end(label, "idle", far, self.calm(), event, state)
        return self._end(label, "forget", 0, self.calm(), event, state)

    def due(
        self, label: Label, delay_us: int, trouble: Trouble, event: str = "", *, state: str | None = None
    ) -> Verdict:
        """Due again so long from now."""
        return self._end(label, "due", delay_us, trouble, event, state)

    def park(self, label: Label, place: Literal["failed", "poison"], trouble: Trouble, event: str) -> Verdict:
        """Waits for a person."""
        return self._end(label, place, 0, replace(trouble, reason=place), event, None)

    def gone(self) -> Verdict:
        """It exists no more."""
        return self._end("gone", "gone", 0, NO_TROUBLE, "gone", None)

    def calm(self) -> Trouble:
        """No trouble but the crashes of the last 24 h: one good run between them does not clear it of those."""
        trouble = self.trouble
        if trouble.crashes and not _window_over(trouble, self.now_us):
            return Trouble(crashes=trouble.crashes, first_crash_us=trouble.first_crash_us)
        return NO_TROUBLE

    def _end(
        self,
        label: Label,
        place: Literal["idle", "due", "failed", "poison", "forget", "gone"],
        delay_us: int,
        trouble: Trouble,
        event: str,
        state: str | None,
    ) -> Verdict:
        packed = b"" if trouble == NO_TROUBLE else trouble.pack()
        kept = state if self.policy.recorded else None
        return Verdict(Ending(place, delay_us, packed, kept, event.encode()), label)


def judge(policy: Policy, outcome: Outcome, trouble: Trouble, *, now_us: int, rng: Random) -> Verdict:
    """What follows from this outcome, given the trouble before it; never raises for any outcome."""
    case = _Case(policy, trouble, now_us, rng)
    match outcome:
        case Reached(state, ran):
            return case.rest("reached", _words("reached", state), state=state if ran or not policy.managed else None)
        case Nothing(state):
            return case.rest("nothing", _words("nothing", state), state=None if policy.managed else state)
        case Moved(state):
            return _moved(case, state)
        case Waiting():
            return _waiting(case)
        case Later(after_us, state):
            return case.due("later", max(after_us, AGAIN_FLOOR_US), case.calm(), state=state)
        case Vanished():
            return case.gone()
        case Failed() | TimedOut():
            return _failed(case, outcome)
        case Crashed(how):
            return _crashed(case, how)
        case _:
            assert_never(outcome)


def poisoned(policy: Policy, trouble: Trouble, now_us: int) -> bool:
    """Whether it has killed too often to be run at all; asked before any code of the application runs."""
    within = trouble.crashes >= policy.crash_budget and not _window_over(trouble, now_us)
    return within or trouble.suspect >= SUSPECT_LIMIT


def park_poison(policy: Policy, trouble: Trouble, *, now_us: int, rng: Random) -> Verdict:
    """Park what is `poisoned`, without running it."""
    case = _Case(policy, trouble, now_us, rng)
    deaths = max(trouble.crashes, trouble.suspect)
    error = trouble.error or ErrorText("Crashed", f"its process died {deaths} times", "child", now_us)
    return case.park("poison", "poison", replace(trouble, error=error), f"parked poison: {deaths} deaths")


# ------------------------------------------------------------------------------------------------------ what went well


def _moved(case: _Case, state: str | None) -> Verdict:
    if case.policy.after_success == "idle":
        return case.rest("moved", _words("moved", state), state=state)
    # `waits` counts in a row; a remembered delay tells waits from moves (see `_waiting`).
    trouble = case.trouble
    moves = trouble.waits + 1 if trouble.delay_us == 0 else 1
    backoff = case.policy.backoff
    delay_us = 0 if moves <= MOVES_AT_ONCE else backoff.jittered(backoff.nth(moves - MOVES_AT_ONCE), case.rng)
    return case.due("moved", delay_us, replace(case.calm(), waits=moves), _words("moved", state), state=state)


def _waiting(case: _Case) -> Verdict:
    if case.policy.after_success == "idle":
        return case.rest("waiting")
    trouble = case.trouble
    waits = trouble.waits + 1 if trouble.delay_us else 1
    delay_us = case.policy.backoff.nth(waits)
    remembered = replace(case.calm(), waits=waits, delay_us=delay_us)
    return case.due("waiting", case.policy.backoff.jittered(delay_us, case.rng), remembered)


# ------------------------------------------------------------------------------------------------------- what went ill


def _failed(case: _Case, outcome: Failed | TimedOut) -> Verdict:
    policy, before = case.policy, case.trouble
    error, label, permanent, restart = _read(outcome, policy, case.now_us)
    failures = before.failures + 1
    # Delays are remembered without jitter, so that the series grows as it is written. After waits, it was theirs.
    previous_us = before.delay_us if before.failures and not restart else 0
    delay_us = policy.backoff.after(previous_us)
    trouble = replace(case.calm(), failures=failures, delay_us=delay_us, error=error)
    if permanent:
        return case.park(label, "failed", trouble, f"parked permanent: {error.type}")
    if policy.attempts is not None and failures >= policy.attempts:
        return case.park(label, "failed", trouble, f"parked after {failures} failures: {error.type}")
    event = f"failed {error.where}: {error.type}" if failures == 1 else ""
    return case.due(label, policy.backoff.jittered(delay_us, case.rng), trouble, event)


def _read(outcome: Failed | TimedOut, policy: Policy, now_us: int) -> tuple[ErrorText, Label, bool, bool]:
    match outcome:
        case TimedOut(where, after_us):
            error = ErrorText("TimedOut", f"took longer than {format_duration(after_us)}", where, now_us)
            return error, "timed_out", False, False
        case Failed(type_, message, where, trace, permanent, reset):
            error = ErrorText(
                clean(type_, 256), clean(message, MESSAGE_CHARS), where, now_us, clean(trace, TRACE_CHARS + 8)
            )
            label: Label = "unreadable" if where in HOOKS else "failed"
            return error, label, permanent, reset and policy.reset == "action"
        case _:
            assert_never(outcome)


def _crashed(case: _Case, how: str) -> Verdict:
    policy, before, now_us = case.policy, case.trouble, case.now_us
    fresh = before.crashes == 0 or _window_over(before, now_us)
    crashes, first_us = (1, now_us) if fresh else (before.crashes + 1, before.first_crash_us)
    trouble = replace(
        before,
        crashes=crashes,
        first_crash_us=first_us,
        suspect=1,  # it did die alone: it goes on running alone, but counts by its crashes from now on
        error=ErrorText("Crashed", clean(how, MESSAGE_CHARS), "child", now_us),
    )
    if crashes >= policy.crash_budget:
        return case.park("crashed", "poison", trouble, f"parked poison: {crashes} crashes")
    delay_us = policy.backoff.jittered(policy.backoff.nth(crashes), case.rng)
    return case.due("crashed", delay_us, trouble, f"crashed {how}" if crashes == 1 else "")


def _window_over(trouble: Trouble, now_us: int) -> bool:
    return now_us - trouble.first_crash_us > CRASH_WINDOW_US


def _words(name: str, state: str | None) -> str:
    return name if state is None else f"{name} {state}"
