"""Why an entity is where it is, in words: from what was read, to sentences. It reads nothing itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from setpoint.clock import format_duration, format_us, to_datetime
from setpoint.registry import Policy
from setpoint.views import EntityView, Explanation, error_line

__all__ = ["Facts", "explain"]

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to know beside the entity itself."""

    now_us: int
    policy: Policy | None
    """As published by a worker, or else as declared here; None if neither is."""
    published_by: str | None
    """The worker that published it; None if none ever did."""
    workers: Mapping[str, bytes]
    """Workers that live, each with what it says of itself."""
    leased: int
    """How many of its kind run now."""
    ready: int
    """How many of its kind are due now."""


@dataclass(slots=True)
class _Story:
    """An explanation in the making: whatever is said first is the most telling."""

    why: list[str]
    codes: list[str]
    next: str = ""
    next_at: datetime | None = None

    def tell(self, code: str, text: str, then: str = "", at: datetime | None = None) -> None:
        """Add a reason; the first to say what comes next decides that."""
        self.codes.append(code)
        self.why.append(text)
        if then and not self.next:
            self.next, self.next_at = then, at


def explain(view: EntityView, facts: Facts) -> Explanation:
    """Tell why it is where it is, and what happens next and when."""
    story = _Story([], [])
    if view.goal is not None and view.goal != view.state and view.place in {"due", "leased", "parked"}:
        story.tell("off-goal", f"its state is {view.state or 'not known yet'}, its goal {view.goal}")
    match view.place:
        case "due":
            _due(story, view, facts)
        case "leased":
            _leased(story, view, facts)
        case "parked":
            _parked(story, view)
        case "idle":
            _idle(story, view)
        case "unknown":
            _unknown(story, view)
    return Explanation(view.ref, view.place, tuple(story.why), story.next, story.next_at, tuple(story.codes), view)


def _due(story: _Story, view: EntityView, facts: Facts) -> None:
    due = view.due or to_datetime(facts.now_us)
    ahead_us = (due - to_datetime(facts.now_us)) // _MICROSECOND
    for pause in view.paused:
        story.tell("paused", str(pause), f"it is evaluated once resumed: setpoint resume {pause.target}", pause.until)
    _without_workers(story, view, facts)
    _at_cap(story, facts, ahead_us)
    _troubled(story, view, facts, ahead_us)
    if ahead_us > 0:
        text = f"due at {_when(due)}, in {_span(ahead_us)}"
        story.tell("scheduled", text, f"evaluated at {_when(due)}", due)
    else:
        queue = f"; {facts.ready} of its kind are due" if facts.ready > 1 else ""
        story.tell(
            "ready", f"due since {_when(due)}, {_span(-ahead_us)} ago{queue}", "evaluated by the next free worker"
        )


def _without_workers(story: _Story, view: EntityView, facts: Facts) -> None:
    kind = view.ref.partition("/")[0]
    if facts.published_by is None:
        story.tell(
            "kind-unknown",
            f"no worker has ever published the kind {kind}",
            f"evaluated once a worker runs whose application declares {kind}: setpoint worker --app APP",
        )
        return
    lane = facts.policy.lane if facts.policy else "default"
    if facts.published_by not in facts.workers and not any(
        _serves(info, lane, kind) for info in facts.workers.values()
    ):
        story.tell(
            "no-workers",
            f"no worker of lane {lane} that knows the kind {kind} is alive",
            f"evaluated once such a worker of lane {lane} runs: setpoint worker --app APP --lanes {lane}",
        )


def _at_cap(story: _Story, facts: Facts, ahead_us: int) -> None:
    policy = facts.policy
    if policy and policy.cap and facts.leased >= policy.cap and ahead_us <= 0:
        text = f"{policy.kind} is at its cap: {facts.leased} of {policy.cap} run"
        story.tell("at-cap", text, "evaluated when one of them ends")


def _troubled(story: _Story, view: EntityView, facts: Facts, ahead_us: int) -> None:
    trouble = view.trouble
    if trouble.suspect:
        story.tell("suspect", "the process that ran it died; it runs alone next")
    if trouble.failures:
        attempts = facts.policy.attempts if facts.policy else None
        count = f"{trouble.failures}/{attempts}" if attempts else f"{trouble.failures}"
        left = f", {_span(ahead_us)} of backoff left" if ahead_us > 0 else ", the backoff is over"
        error = error_line(trouble)
        story.tell("backoff", f"failed {count} times in a row{left}" + (f"; last error: {error}" if error else ""))
    elif trouble.waits:
        story.tell("waiting", f"looked at {trouble.waits} times in a row without reaching its goal")


def _leased(story: _Story, view: EntityView, facts: Facts) -> None:
    holder = view.holder
    if holder is not None:
        for_us = facts.now_us - (holder.since - to_datetime(0)) // _MICROSECOND
        story.tell("leased", f"held by worker {holder.worker} since {_when(holder.since)}, for {_span(max(for_us, 0))}")
        if holder.worker not in facts.workers:
            story.tell("worker-gone", f"worker {holder.worker} does not show that it lives")
        if holder.ending == "deleted":
            story.tell("cancelling", "it was deleted meanwhile: its outcome will be dropped")
        elif holder.ending == "paused":
            story.tell("paused", "it will be paused when this evaluation ends")
    if view.wish is not None:
        story.tell("wish", f"once more after this, at {_when(view.wish)}")
    until = f"; if its worker is gone, taken back after {_when(view.until)}" if view.until else ""
    story.next, story.next_at = f"this evaluation ends{until}", view.until


def _parked(story: _Story, view: EntityView) -> None:
    ref, trouble = view.ref, view.trouble
    error = error_line(trouble)
    last = f"; last error: {error}" if error else ""
    match trouble.reason:
        case "poison":
            text = f"poison: the processes that ran it died {trouble.crashes} times{last}"
            story.tell("poison", text, f"find out why, then: setpoint dead retry {ref}")
        case "paused":
            mine = next((each for each in view.paused if each.target == ref), None)
            text = str(mine) if mine else "it is paused"
            until = f"{_when(mine.until)} or " if mine and mine.until else ""
            then = f"stays until {until}resumed: setpoint resume {ref}"
            story.tell("paused", text, then, mine.until if mine else None)
        case _:
            times = f" after {trouble.failures} failures in a row" if trouble.failures else ""
            story.tell("failed", f"failed for good{times}{last}", f"fix the cause, then: setpoint dead retry {ref}")
    if view.since is not None:
        story.tell("since", f"parked since {_when(view.since)}")
    if view.wish is not None:
        story.tell("wish", f"due at {_when(view.wish)} when it comes out")


def _idle(story: _Story, view: EntityView) -> None:
    if view.goal is None:
        story.tell("at-rest", "nothing is to be done")
    elif view.state == view.goal:
        story.tell("at-goal", f"its goal {view.goal!r} is reached")
    else:
        story.tell("not-at-goal", f"its state is {view.state!r} and its goal {view.goal!r}, and nothing was left to do")
    if view.until is not None:
        story.tell(
            "resync", f"looked at again at {_when(view.until)}", f"looked at again at {_when(view.until)}", view.until
        )
    story.next = story.next or "nothing, until it is set or enqueued"


def _unknown(story: _Story, view: EntityView) -> None:
    if view.revision:
        story.tell("unscheduled", "it has a record and is not scheduled")
    elif view.holder is not None:
        story.tell("cancelling", "it was deleted while it ran")
    else:
        story.tell("unknown", "it was never enqueued, is done and forgotten, or was deleted")
    story.next = "nothing, until it is set or enqueued"


def _serves(info: bytes, lane: str, kind: str) -> bool:
    """Whether a worker says that it serves the lane and knows the kind; one that does not say counts."""
    said = _read(info)
    if not isinstance(said, dict):
        return True
    lanes, kinds = cast("dict[str, Any]", said).get("lanes"), cast("dict[str, Any]", said).get("kinds")
    return (not isinstance(lanes, list | tuple) or lane in lanes) and (
        not isinstance(kinds, list | tuple) or kind in kinds
    )


def _read(info: bytes) -> Any:
    import msgpack

    try:
        said: Any = json.loads(info) if info[:1] == b"{" else msgpack.unpackb(info)  # pyright: ignore[reportUnknownVariableType]
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    return said  # pyright: ignore[reportUnknownVariableType]


def _when(at: datetime) -> str:
    return format_us((at - to_datetime(0)) // _MICROSECOND)


def _span(us: int) -> str:
    """Rounded to what a person reads: tenths below ten seconds, then seconds."""
    step = 100_000 if us < 10_000_000 else 1_000_000
    return format_duration(us // step * step)
