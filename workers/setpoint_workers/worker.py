"""One fleet worker: an RQ worker whose jobs are only hints. It claims what is due, has it run, settles the outcomes.

One thread, one `poll` over the popping connection, the children's sockets and a wake pipe; signals and RQ's commands
set flags only. User code never runs here (except with isolation `none`), and nothing read from Redis is imported.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import platform
import random
import select
import signal
import socket
import threading
import time
import zlib
from base64 import b64encode
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from time import monotonic
from types import FrameType
from typing import Any, Final, Literal, NamedTuple, assert_never

import msgpack
import redis
from rq import Worker
from rq.command import parse_payload
from rq.version import VERSION

from setpoint.clock import SystemClock, to_datetime
from setpoint.counters import (
    BUCKETS_US,
    bucket_fields,
    evaluation_field,
    retry_field,
    sum_field,
)
from setpoint.engine.connect import connect
from setpoint.engine.door import Door
from setpoint.engine.records import Trouble
from setpoint.engine.scripts import BATCH, Call, Claim, ClaimKind, Released, Settlement, When
from setpoint.errors import RedisFull, RedisUnavailable
from setpoint.jobs import JSONSerializer, is_hint, job_key, queue_key
from setpoint.judge import Verdict, judge, park_poison, poisoned
from setpoint.outcome import Crashed, Failed, Outcome, TimedOut, from_wire
from setpoint.registry import Policy, Registry
from setpoint.settings import Settings
from setpoint_workers.children import Child, Respawn, Role
from setpoint_workers.intake import Intake

__all__ = ["EXIT_UNFIT", "FleetWorker", "Options"]

log = logging.getLogger("setpoint.worker")

EXIT_UNFIT: Final = 2
"""The application does not import."""

HINT_SHOWN: Final = 0.05
"""A hint that is older is shown in RQ as the job we are busy with."""
HINT_LIFE: Final = 1.0
"""A hint that is older has done its work, whatever still runs."""
RQ_BEAT: Final = 5.0
HARD_MARGIN: Final = 1.0
"""The child has so long, after an evaluation's time is over, to say so by itself."""
RECALL_AFTER: Final = 0.05
WATCH: Final = 0.25
QUARANTINE_IDLE: Final = 10.0
FAILURE_TTL: Final = 14 * 86_400
PATIENCE: Final = 1.0
"""Seconds for which one call to Redis is replayed before the loop goes on without its answer."""

_RQ_ERRORS = (redis.RedisError, OSError)
_SUSPENDED = "rq:suspended"
_FOREVER = float("inf")


class Fields:
    """Names of a kind's counters."""

    __slots__ = ("_actions", "_kind", "wait", "wait_sum")

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._actions: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {}
        self.wait = bucket_fields("wait", kind)
        self.wait_sum = sum_field("wait", kind)

    def action(self, name: str, label: str) -> tuple[tuple[str, ...], str]:
        """Buckets and sum of how long an action ran that ended so."""
        known = self._actions.get((name, label))
        if known is None:
            labels = (self._kind, name, label)
            known = self._actions[name, label] = bucket_fields("duration", *labels), sum_field("duration", *labels)
        return known


class Info(NamedTuple):
    """A kind as this worker needs it, with what is looked up for every item prepared."""

    policy: Policy
    claim: ClaimKind
    fields: Fields
    quick: dict[tuple[Any, ...], Verdict]
    """Verdicts that are the same for every entity without trouble, by outcome."""


class Held(NamedTuple):
    """One ref that is ours and in a child."""

    ref: str
    fence: int
    due_us: int
    trouble: bytes
    info: Info


class Options(NamedTuple):
    """What one worker is told at its start."""

    app: str
    lanes: tuple[str, ...] = ()
    """Empty: all lanes of the application."""
    slots: int = 4
    isolation: Literal["process", "none"] = "process"
    grace: float = 30.0
    max_items: int = 0
    max_memory: int = 0


_FAILURES: Final = frozenset({"failed", "unreadable", "timed_out"})
_QUIET: Final = frozenset({"reached", "nothing"})
"""Outcomes that are no transition: a fleet at rest says them all day. The event stream and the counters have them."""


def _tell(held: Held, verdict: Verdict) -> None:
    """One log line for a transition."""
    log.info(
        "%s: %s",
        held.ref,
        verdict.ending.event.decode(),
        extra={
            "event": f"entity.{verdict.label}",
            "entity": held.ref,
            "kind": held.info.claim.kind,
            "fence": held.fence,
        },
    )


def _again(verdict: Verdict, after_us: int) -> Verdict:
    """The same, for an entity that asked to be evaluated again so long from now: that is part of how it ends."""
    ending = verdict.ending
    match ending.place:
        case "idle" | "forget":
            return Verdict(replace(ending, place="due", delay_us=after_us), verdict.label)
        case "due":
            return Verdict(replace(ending, delay_us=min(after_us, ending.delay_us)), verdict.label)
        case "failed" | "poison" | "gone":
            return verdict
        case _:
            assert_never(ending.place)


class _Ended(NamedTuple):
    """Evaluations that end alike."""

    verdict: Verdict
    held: list[Held]


class _Hint(NamedTuple):
    id: str
    lane: str
    since: float


class _Unsaid(NamedTuple):
    """A call that Redis has not answered, with what it is about."""

    call: Call[Any]
    held: Sequence[tuple[Sequence[str], int]]


def boottime() -> float:
    """Seconds that also pass while the machine sleeps, where the system knows them."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return monotonic() if clock is None else time.clock_gettime(clock)


class FleetWorker(Worker):
    """RQ's worker in its registration, commands and visibility; everything else is our own."""

    def __init__(self, settings: Settings, options: Options, *, registry: Registry | None = None) -> None:
        """Opens no connection. `registry` is for isolation `none`."""
        self.settings = settings
        self.options = options
        host = socket.gethostname()
        name = f"{host}.{os.getpid()}.{os.urandom(3).hex()}"
        rq = connect(settings.hints_url, role="worker-rq", timeout=2.0)
        super().__init__(
            list(options.lanes),
            name=name,
            connection=rq,
            serializer=JSONSerializer,
            prepare_for_work=False,
            worker_ttl=60,
        )
        self.hostname, self.pid = host, os.getpid()
        self.version = VERSION
        self.log = log

        self.door = Door(settings.redis_url, settings.namespace, role="worker", patience=PATIENCE)
        self.scripts = self.door.scripts
        self._lease = settings.lease_us / 1e6
        self._registry = registry
        self._clock = SystemClock()
        self._rng = random.Random()
        self._born_us = self._clock.now_us()

        # What we may claim, known when the child is ready.
        self._kinds: dict[str, Info] = {}
        self._policies: dict[str, bytes] = {}
        self._lanes: dict[str, tuple[ClaimKind, ...]] = {}
        self._registered = False

        self._children: list[Child] = []
        self._respawn = Respawn()
        self._respawn_alone = Respawn()
        self._successor_at = 0.0
        self._intake = Intake(options.slots)
        self._ahead_us = 0  # what Redis' clock was ahead of our monotonic one at the last claim
        self._due: dict[str, str] = {}  # lanes that may have more that is due -> hint to drop with the next claim
        self._more = False
        self._suspects: dict[str, None] = {}  # lanes with suspects that wait; they take turns
        self._refused: deque[Call[Any]] = deque()  # enqueues for which Redis had no memory

        self._unsaid: deque[_Unsaid] = deque()
        self._retry_at = 0.0
        self._retry_pause = 0.0
        self._beat_at = 0.0
        self._good_at = boottime()
        self._lost = False
        self._watch_at = 0.0
        self._recall_at = _FOREVER

        self._pop: _Popper | None = None
        self._hints: dict[str, _Hint] = {}
        self._shown: _Hint | None = None
        self._rq_at = 0.0
        self._drain_at = _FOREVER
        self._suspended = False
        self._state_said = ""
        self._jobs_done = 0

        self._signals = 0
        self._commands: deque[dict[str, Any]] = deque()
        self._stopping = False
        self._forced = False
        self._stop_by = _FOREVER
        self._exit: int | None = None
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._poll = select.poll()
        self._polled: dict[int, int] = {}

    # ---------------------------------------------------------------------------------------------------- RQ's hooks

    def _set_connection(self, connection: Any) -> Any:
        """Keep our own timeout; RQ would wait seven minutes for an answer."""
        return connection

    def validate_queues(self) -> None:
        """Lanes are known later, from the application."""

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as RQ calls it
        """A signal: only noted; the wake pipe has its number already."""
        self._signals += 1

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """The same: the second one counts as force."""
        self.request_stop(signum, frame)

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:  # noqa: ARG002
        """Kill the children; what they held is handed back and nothing is charged."""
        for child in self._children:
            child.kill()

    def check_for_suspension(self, burst: bool) -> None:
        """Done in the loop."""

    def execute_job(self, job: Any, queue: Any) -> None:  # noqa: ARG002
        """Never: a job is a hint here."""
        raise AssertionError("a fleet worker executes no RQ job")

    def handle_payload(self, message: Any) -> None:
        """A command over RQ's pub/sub, in its thread: noted for the loop."""
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            self._commands.append(dict(parse_payload(message)))
            self._wake()

    def _pubsub_exception_handler(self, exc: Any, pubsub: Any, pubsub_thread: Any) -> None:  # noqa: ARG002
        """RQ's server is away: go on listening a little later."""
        threading.Event().wait(0.5)

    def subscribe(self) -> None:
        """Listen for RQ's commands, in a thread of its own."""
        self.pubsub = pubsub = self.connection.pubsub()
        pubsub.subscribe(**{self.pubsub_channel_name: self.handle_payload})
        self.pubsub_thread = pubsub.run_in_thread(
            sleep_time=0.5, daemon=True, exception_handler=self._pubsub_exception_handler
        )

    def unsubscribe(self) -> None:
        """The opposite."""
        thread: Any = self.pubsub_thread
        pubsub: Any = self.pubsub
        self.pubsub_thread = None
        if thread is None:
            return
        thread.stop()
        with contextlib.suppress(*_RQ_ERRORS):
            pubsub.unsubscribe()
        thread.join(timeout=1)
        with contextlib.suppress(*_RQ_ERRORS):
            pubsub.close()

    # ----------------------------------------------------------------------------------------------------- the loop

    def work(self, *_: Any, **__: Any) -> bool:
        """Work until told to stop; whether all went well. `exit_code` says more."""
        restore = self._catch_signals()
        try:
            self._ensure_main()
            while self._exit is None:
                self._turn()
        finally:
            try:
                self._close()
            finally:
                restore()
        return self._exit == 0

    @property
    def exit_code(self) -> int:
        """For the process, once `work` has returned."""
        return self._exit or 0

    def _catch_signals(self) -> Callable[[], None]:
        if threading.current_thread() is not threading.main_thread():
            return _nothing
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self.request_stop) for number in numbers]
        fd_before = signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)

        def restore() -> None:
            signal.set_wakeup_fd(fd_before)
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

        return restore

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_in, b"w")

    def _turn(self) -> None:
        ready = self._wait()
        if self._wake_out in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_out, 4096)
        if self._signals:
            self._on_signals()
        while self._commands:
            self._on_command(self._commands.popleft())
        for child in list(self._children):
            if child.outbox:
                child.flush()
            if child.fd in ready:
                self._hear(child)
        self._timers()
        if self._pop is not None and self._pop.fd in ready:
            self._popped()
        if not self._stopping:
            self._claim_all()
        self._listen()
        self._finish()

    def _wait(self) -> dict[int, int]:
        wanted = {self._wake_out: select.POLLIN}
        for child in self._children:
            wanted[child.fd] = select.POLLIN | (select.POLLOUT if child.outbox else 0)
        if self._pop is not None:
            wanted[self._pop.fd] = select.POLLIN
        if wanted != self._polled:
            for fd in self._polled.keys() - wanted.keys():
                with contextlib.suppress(KeyError, OSError):
                    self._poll.unregister(fd)
            for fd, mask in wanted.items():
                self._poll.register(fd, mask)
            self._polled = wanted
        if (self._due and self._more and self._room() > 0) or self._commands:
            timeout = 0
        else:
            timeout = max(0, min(int((self._next_timer() - monotonic()) * 1000) + 1, 5_000))
        return dict(self._poll.poll(timeout))

    def _next_timer(self) -> float:
        at = min(self._beat_at, self._rq_at, self._recall_at)
        if self._unsaid:
            at = min(at, self._retry_at)
        if self._drain_at < at:
            at = self._drain_at
        if any(child.items for child in self._children):
            at = min(at, self._watch_at)
        if self._pop is None:
            at = min(at, max(self._rq_at, monotonic() + 0.5))
        if self._main() is None and not self._stopping:
            at = min(at, max(self._respawn.at, monotonic() + 0.005))
        if self._suspects and self._registry is None and self._may_claim() and self._alone() is None:
            at = min(at, max(self._respawn_alone.at, monotonic() + 0.005))
        if self._hints and self._shown is None:
            at = min(at, min(hint.since for hint in self._hints.values()) + HINT_SHOWN)
        if self._alone() is not None:
            at = min(at, monotonic() + 1.0)
        return min(at, self._stop_by)

    def _timers(self) -> None:
        now = monotonic()
        if self._unsaid and now >= self._retry_at:
            self._say_again()
        self._check_deadline()
        if now >= self._beat_at:
            self._beat()
        if now >= self._watch_at:
            self._watch_at = now + WATCH
            for child in list(self._children):
                if child.items:
                    self._watch(child, now)
        if now >= self._recall_at:
            self._recall_waiting()
        if now >= self._rq_at:
            self._rq_beat()
        if now >= self._drain_at:
            self._drain_at = _FOREVER
            if self._pop is None:
                self._drain_at = now + 1.0
                self._drain_all()
        self._show_hint(now)
        if not self._stopping:
            self._ensure_main()
        self._end_quarantine(now)

    def _drain_all(self) -> None:
        for lane in self._lanes:
            self._due.setdefault(lane, "")
        self._more = True

    # ------------------------------------------------------------------------------------------------------ children

    def _main(self) -> Child | None:
        for child in self._children:
            if child.role == "main":
                return child
        return None

    def _alone(self) -> Child | None:
        for child in self._children:
            if child.role == "quarantine":
                return child
        return None

    def _spawn(self, role: Role) -> Child:
        slots = 1 if role == "quarantine" else self.options.slots
        in_thread = None if self._registry is None else self._start_thread
        child = Child(role, self.options.app, slots, in_thread=in_thread)
        self._children.append(child)
        if role == "main":
            self._horse_pid = child.pid
        return child

    def _start_thread(self, sock: socket.socket, shared: mmap.mmap) -> threading.Thread:
        from setpoint_workers.child import run_in_thread

        assert self._registry is not None
        return run_in_thread(sock, shared, self._registry, self.options.slots)

    def _ensure_main(self) -> None:
        now = monotonic()
        if self._main() is None and now >= self._respawn.at:
            self._spawn("main")

    def _hear(self, child: Child) -> None:
        frames = child.receive()
        if frames is None:
            self._died(child)
            return
        rows: list[Any] = []
        for frame in frames:
            match frame:
                case ["done", done]:
                    rows += done
                case ["returned", indexes]:
                    if rows:
                        self._ended(child, rows)
                        rows = []
                    self._give_back(child, indexes)
                case ["enqueue", ref, mode, us]:
                    self._say(self.scripts.enqueue([(ref, When(us, mode == "r"))]))
                case ["ready", manifest, _]:
                    self._on_ready(child, manifest)
                case ["unfit", text]:
                    self._on_unfit(text)
                case ["progress", *_]:
                    pass
                case _:
                    log.error("the child sent an unknown frame %r", frame[0])
        if rows:
            self._ended(child, rows)

    def _on_unfit(self, text: str) -> None:
        log.error("the application %s does not import:\n%s", self.options.app, text)
        if not self._kinds:
            self._exit = EXIT_UNFIT

    def _on_ready(self, child: Child, manifest: dict[str, bytes]) -> None:
        child.ready = True
        child.idle_since = monotonic()
        if child.role == "quarantine":
            return
        if child.role == "successor":
            for other in self._children:
                if other.role == "main":
                    other.role = "successor"
                    other.draining = True
            child.role = "main"
            self._horse_pid = child.pid
        self._learn(manifest)
        if self._exit is not None:
            return
        self._beat_at = 0.0
        self._drain_all()

    def _learn(self, manifest: dict[str, bytes]) -> None:
        kinds: dict[str, Info] = {}
        lanes: dict[str, list[ClaimKind]] = {}
        policies = {kind: Policy.unpack(packed) for kind, packed in manifest.items()}
        there = sorted({policy.lane for policy in policies.values()})
        if not self._kinds and (unknown := sorted(set(self.options.lanes) - set(there))):
            log.error(
                "no kind of %s is in the lane %s; its lanes: %s", self.options.app, ", ".join(unknown), ", ".join(there)
            )
            self._exit = EXIT_UNFIT
            return
        for kind, policy in policies.items():
            if self.options.lanes and policy.lane not in self.options.lanes:
                continue
            claim = ClaimKind(kind, policy.lane, policy.cap, policy.rate, policy.per_us)
            kinds[kind] = Info(policy, claim, Fields(kind), {})
            lanes.setdefault(policy.lane, []).append(claim)
        self._kinds = kinds
        self._policies = {kind: manifest[kind] for kind in kinds}
        for lane in self.options.lanes:
            lanes.setdefault(lane, [])
        if {lane: tuple(found) for lane, found in lanes.items()} != self._lanes:
            self._lanes = {lane: tuple(found) for lane, found in lanes.items()}
            self.queues = [
                self.queue_class(name=lane, connection=self.connection, serializer=self.serializer) for lane in lanes
            ]
            self._stop_popping()
            self._registered = False
        if not self._registered:
            self._rq_at = 0.0

    def _died(self, child: Child) -> None:
        """Decide for each item it held what its end means."""
        how = child.reap()
        self._children.remove(child)
        deliberate = child.killed
        started = [index for index in child.items if child.is_started(index)]
        rows: list[tuple[Held, Outcome]] = []
        back: list[Released] = []
        now = monotonic()
        for index in list(child.items):
            began = child.started.get(index, now)
            overdue, was_started = index in child.overdue, index in started
            held = child.drop(index)
            if held is None:
                continue
            if overdue:
                rows.append((held, TimedOut("child", int((now - began) * 1e6))))
            elif was_started and child.role == "quarantine" and len(started) == 1 and not deliberate:
                rows.append((held, Crashed(how)))
            else:
                suspect = was_started and not deliberate and self._registry is None
                back.append(Released(held.ref, held.fence, suspect))
                if suspect:
                    self._suspects[held.info.policy.lane] = None
        if not (child.draining and not started) and not self._stopping:
            log.warning("child %d %s; %d evaluations were running", child.pid, how, len(started))
        self._settle([_Ended(self._judge(held, outcome), [held]) for held, outcome in rows])
        self._release(back)
        if child.role == "quarantine":
            self._respawn_alone.died(child.born, child.done)
        elif child.role == "main":
            self._respawn.died(child.born, child.done)
            self._horse_pid = 0
            self._intake.slow()
        elif not child.draining:
            self._successor_at = now + Respawn.LONGEST
        if not self._stopping and (back or rows):
            self._drain_all()

    def _watch(self, child: Child, now: float) -> None:
        """Kill a child that has not ended what is long overdue."""
        started = child.started
        kill = False
        for index, held in child.items.items():
            timeout_us = held.info.policy.timeout_us
            if timeout_us is None or not child.is_started(index):
                continue
            since = started.setdefault(index, now)
            if now > since + timeout_us / 1e6 + HARD_MARGIN:
                child.overdue.add(index)
                kill = True
        if kill and child.process is not None:
            log.error("killing child %d: %d evaluations are over their time", child.pid, len(child.overdue))
            child.kill()

    def _recall_waiting(self) -> None:
        self._recall_at = _FOREVER
        for child in self._children:
            if child.recalled or len(child.items) <= child.slots or not child.ready:
                continue
            waits = monotonic() - child.sent_at
            if waits < RECALL_AFTER:
                self._recall_at = min(self._recall_at, child.sent_at + RECALL_AFTER)
            elif sum(map(child.is_started, child.items)) >= child.slots:
                child.recalled = True
                child.send(["recall"])
                self._intake.slow()
            else:
                self._recall_at = monotonic() + RECALL_AFTER

    def _give_back(self, child: Child, indexes: list[int]) -> None:
        back: list[Released] = []
        for index in indexes:
            held = child.drop(index)
            if held is not None:
                back.append(Released(held.ref, held.fence))
                self._due.setdefault(held.info.policy.lane, "")  # ours again when a slot is free, if nobody was quicker
        self._release(back)

    def _end_quarantine(self, now: float) -> None:
        for child in list(self._children):
            if child.items:
                child.idle_since = now
            elif not child.killed and (
                child.draining
                or (child.role == "quarantine" and (child.done or now - child.idle_since > QUARANTINE_IDLE))
            ):
                child.draining = True
                child.killed = True
                child.send(["stop"])

    def _recycle(self, child: Child) -> None:
        options = self.options
        over = (options.max_items and child.done >= options.max_items) or (
            options.max_memory and child.rss() > options.max_memory
        )
        coming = any(other.role == "successor" and not other.draining for other in self._children)
        coming = coming or monotonic() < self._successor_at
        if over and not coming and child.role == "main" and not self._stopping and child.process is not None:
            self._spawn("successor")

    # ------------------------------------------------------------------------------------------------------ claiming

    def _room(self) -> int:
        child = self._main()
        if child is None or not child.ready or not self._may_claim():
            return 0
        return self._intake.room(len(child.items))

    def _may_claim(self) -> bool:
        return not (self._stopping or self._suspended or self._lost or self._unsaid)

    def _claim_all(self) -> None:
        while self._due and self._claim_one():
            pass
        if self._suspects:
            self._claim_alone()

    def _claim_one(self) -> bool:
        """Claim once for the next lane; whether another claim may follow at once."""
        room = self._room()
        if room <= 0:
            return False
        child = self._main()
        assert child is not None
        lane, hint = next(iter(self._due.items()))
        kinds = self._lanes.get(lane)
        if not kinds:
            del self._due[lane]
            return True
        claim = self._claim(lane, kinds, room, hint)
        if claim is None:
            return False
        del self._due[lane]
        self._more = claim.more and bool(claim.items)
        if self._more:
            self._due[lane] = ""  # last in the row: lanes take turns
        else:
            self._more = bool(self._due)
        if claim.suspects:
            self._suspects[lane] = None
        self._start(child, claim)
        return True

    def _claim(
        self, lane: str, kinds: tuple[ClaimKind, ...], limit: int, hint: str = "", *, alone: bool = False
    ) -> Claim | None:
        settings = self.settings
        call = self.scripts.claim(
            self.name, kinds, lane=lane, lease_us=settings.lease_us, lead_us=settings.lead_us, limit=min(limit, BATCH),
            hint=hint, alone=alone,
        )  # fmt: skip
        try:
            return self.door.run(call)
        except RedisUnavailable as error:
            self._away(error)
            return None

    def _claim_alone(self) -> None:
        """One suspect at a time, in a child of its own."""
        if not self._may_claim() or not self._lanes:
            return
        child = self._alone()
        if child is None:
            if self._registry is not None:
                child = self._main()  # nothing can be isolated here
            elif monotonic() >= self._respawn_alone.at:
                self._spawn("quarantine")
                return
        if child is None or not child.ready or child.items or child.draining:
            return
        if child.done and child.process is not None:
            return  # each suspect has a child of its own: what the one before left behind must not be charged to it
        lane = next(iter(self._suspects))
        del self._suspects[lane]
        claim = self._claim(lane, self._lanes.get(lane, ()), 1, alone=True)
        if claim is None:
            self._suspects[lane] = None
            return
        if claim.items:
            self._suspects[lane] = None  # there may be more
        self._start(child, claim)

    def _start(self, child: Child, claim: Claim) -> None:
        """Send what was claimed to the child, but for what is poisoned."""
        items = claim.items
        if not items:
            return
        received = monotonic()
        now_us, fence = claim.now_us, claim.fence
        self._ahead_us = now_us - int(received * 1e6)
        kinds = self._kinds
        take = child.take
        work: list[list[Any]] = []
        managed: list[list[Any]] = []
        poison: list[_Ended] = []
        for item in items:
            ref, due_us, stored = item.ref, item.due_us, item.trouble
            info = kinds[ref.partition("/")[0]]
            held = Held(ref, fence, due_us, stored, info)
            attempt = 1
            policy = info.policy
            if stored:
                trouble = Trouble.unpack(stored)
                attempt += trouble.failures
                if poisoned(policy, trouble, now_us):
                    verdict = park_poison(policy, trouble, now_us=now_us, rng=self._rng)
                    poison.append(_Ended(verdict, [held]))
                    continue
            wait = due_us - now_us
            row: list[Any] = [take(held), ref, fence, max(0, wait), attempt, due_us, policy.timeout_us, None]
            work.append(row)
            if policy.recorded:
                managed.append(row)
        if poison:
            self._settle(poison)
        if managed and not self._read_records(managed):
            self._give_back(child, [row[0] for row in work])
            return
        elapsed = int((monotonic() - received) * 1e6)
        for row in work:
            if row[3]:
                row[3] = max(0, row[3] - elapsed)
        if work:
            child.sent_at = monotonic()
            child.recalled = False
            child.send(["work", work])
            if len(child.items) > child.slots:
                self._recall_at = min(self._recall_at, child.sent_at + RECALL_AFTER)

    def _read_records(self, rows: list[list[Any]]) -> bool:
        record = self.door.keys.record
        try:
            fields = ("state", "goal", "rev", "data", "labels")
            found = self.door.read(*(("HMGET", record(row[1]), *fields) for row in rows))
        except RedisUnavailable as error:
            self._away(error)
            return False
        for row, (state, goal, revision, data, labels) in zip(rows, found, strict=True):
            row[7] = [_text(state), _text(goal), int(revision or 0), data, labels]
        return True

    # ------------------------------------------------------------------------------------------------------ settling

    def _ended(self, child: Child, rows: list[Any]) -> None:
        """The child reports outcomes: judge them and settle, many a call."""
        groups: dict[tuple[int, int], _Ended] = {}
        counts: dict[str, int] = {}
        get = counts.get
        total = slowest = ended = 0
        drop = child.drop
        for index, wire, took_us, late_us, acted, wished in rows:
            held = drop(index)
            if held is None:
                continue
            ended += 1
            fields = held.info.fields
            field = fields.wait[bisect_left(BUCKETS_US, late_us)]
            counts[field] = get(field, 0) + 1
            counts[fields.wait_sum] = get(fields.wait_sum, 0) + max(0, late_us)
            for name, label, act_us in acted:
                buckets, field = fields.action(name, label)
                counts[field] = get(field, 0) + act_us
                field = buckets[bisect_left(BUCKETS_US, act_us)]
                counts[field] = get(field, 0) + 1
            total += took_us
            if took_us > slowest:
                slowest = took_us
            verdict = self._verdict(held, wire, wished)
            group = groups.get((held.fence, id(verdict)))
            if group is None:
                groups[held.fence, id(verdict)] = _Ended(verdict, [held])
            else:
                group.held.append(held)
        if not ended:
            return
        child.done += ended
        if child.role == "main":
            self._intake.finished(ended, total, slowest)
        self._settle(groups.values(), counts)
        if self.options.max_items or self.options.max_memory:
            self._recycle(child)
        if not child.items and child.role == "main":
            self._end_hints()

    def _verdict(self, held: Held, wire: list[Any], wished: list[Any]) -> Verdict:
        """Judge what the child said. What the entity asked for itself is part of that and shares its fate: an enqueue
        of its own would bring back what was deleted meanwhile."""
        after_us = -1
        if wished:
            # Behind Redis' clock by the way of the claim's reply, so that an instant is never early.
            now_us = self._ahead_us + int(monotonic() * 1e6)
            after_us = min(us if mode == "r" else max(0, us - now_us) for mode, us in wished)
        quick = held.info.quick
        same = None
        if wire[0] == "reached" and not held.trouble:
            same = (wire[1], wire[2], after_us)
            verdict = quick.get(same)
            if verdict is not None:
                return verdict
        try:
            outcome: Outcome = from_wire(wire)
        except ValueError as error:
            outcome = Failed("BadFrame", str(error), "child")
        verdict = self._judge(held, outcome)
        if after_us >= 0:
            verdict = _again(verdict, after_us)
        if same is not None and len(quick) < 64:
            quick[same] = verdict
        return verdict

    def _judge(self, held: Held, outcome: Outcome) -> Verdict:
        trouble = Trouble.unpack(held.trouble)
        return judge(held.info.policy, outcome, trouble, now_us=self._clock.now_us(), rng=self._rng)

    def _settle(self, ended: Iterable[_Ended], counts: dict[str, int] | None = None) -> None:
        counts = {} if counts is None else counts
        settlements: list[Settlement] = []
        size = 0
        for verdict, held in ended:
            ending, label = verdict.ending, verdict.label
            if ending.event and (label not in _QUIET or ending.trouble):
                for each in held:
                    _tell(each, verdict)
            kind = held[0].info.claim.kind
            field = evaluation_field(kind, label)
            counts[field] = counts.get(field, 0) + len(held)
            if ending.place == "due" and label in _FAILURES:
                field = retry_field(kind, Trouble.unpack(ending.trouble).failures)
                counts[field] = counts.get(field, 0) + len(held)
            at = 0
            while at < len(held):
                part = held[at : at + BATCH - size]
                settlements.append(Settlement([each.ref for each in part], part[0].fence, ending))
                at += len(part)
                size += len(part)
                if size == BATCH:
                    self._say_settled(settlements, counts)
                    settlements, counts, size = [], {}, 0
        if settlements:
            self._say_settled(settlements, counts)

    def _say_settled(self, settlements: list[Settlement], counts: dict[str, int]) -> None:
        later = any(each.ending.place == "due" for each in settlements)
        follows = bool(self._due) and self._more and self._room() > 0
        call = self.scripts.settle(settlements, counters=counts, wake=later or not follows)
        self._say(call, [(each.refs, each.fence) for each in settlements])

    def _release(self, back: list[Released]) -> None:
        for at in range(0, len(back), BATCH):
            batch = back[at : at + BATCH]
            self._say(self.scripts.release(batch), [((each.ref,), each.fence) for each in batch])

    def _say(self, call: Call[Any], held: Sequence[tuple[Sequence[str], int]] = ()) -> None:
        """Run a call; keep it for later if Redis does not answer, and keep the order."""
        if self._unsaid:
            self._unsaid.append(_Unsaid(call, held))
            return
        try:
            self.door.run(call)
        except RedisFull as error:
            self._refuse_call(call, error)
        except RedisUnavailable as error:
            self._unsaid.append(_Unsaid(call, held))
            self._away(error)

    def _refuse_call(self, call: Call[Any], error: RedisFull) -> None:
        """Only an enqueue can be refused for memory: it waits aside, so that results, which never are, go on."""
        if not self._refused:
            log.error("Redis is full: what actions enqueue waits here until it has memory again: %s", error)
        self._refused.append(call)

    def _say_refused(self) -> None:
        while self._refused:
            try:
                self.door.run(self._refused[0])
            except RedisUnavailable:
                return
            self._refused.popleft()
        log.info("Redis has memory again; all that actions enqueued is said")

    def _say_again(self) -> None:
        while self._unsaid:
            try:
                self.door.run(self._unsaid[0].call)
            except RedisFull as error:
                self._refuse_call(self._unsaid[0].call, error)
            except RedisUnavailable as error:
                self._away(error)
                return
            self._unsaid.popleft()
        log.info("Redis answers again; all results are settled")
        self._retry_pause = 0.0
        self._drain_all()

    def _away(self, error: RedisUnavailable) -> None:
        self._retry_pause = min(max(0.1, self._retry_pause * 2), 2.0)
        self._retry_at = monotonic() + self._retry_pause
        self._drain_at = min(self._drain_at, self._retry_at)
        self._more = False
        log.warning("Redis is away: %s", error)

    # --------------------------------------------------------------------------------------------------------- beats

    def _held(self) -> list[tuple[str, int]]:
        held = [
            (item.ref, item.fence)
            for child in self._children
            for index, item in child.items.items()
            if index not in child.lost
        ]
        for unsaid in self._unsaid:
            held += ((ref, fence) for refs, fence in unsaid.held for ref in refs)
        return held

    def _beat(self) -> None:
        """Extend what we hold and our own life."""
        now = monotonic()
        self._beat_at = now + self._lease / 6
        if not self._kinds:
            return
        began = boottime()
        held = self._held()
        scripts, lease_us = self.scripts, self.settings.lease_us
        try:
            info = self._info(len(held))
            self.door.run(
                scripts.register(self.name, born_us=self._born_us, ttl_us=2 * lease_us, info=info, kinds=self._policies)
            )
            for at in range(0, len(held), BATCH):
                beat = self.door.run(
                    scripts.beat(self.name, held[at : at + BATCH], lease_us=lease_us, ttl_us=2 * lease_us)
                )
                if beat.lost or beat.cancelled:
                    self._not_ours(set(beat.lost), set(beat.cancelled))
        except RedisUnavailable as error:
            self._away(error)
            self._beat_at = monotonic() + min(0.5, self._lease / 6)
            return
        self._good_at = began
        if self._refused:
            self._say_refused()
        if self._lost:
            self._lost = False
            self._drain_all()
        child = self._main()
        if self.options.max_memory and child is not None:
            self._recycle(child)

    def _info(self, held: int) -> bytes:
        pack: Any = msgpack.packb  # pyright: ignore[reportUnknownVariableType]
        packed: bytes = pack(
            {
                "lanes": list(self._lanes),
                "kinds": list(self._kinds),
                "slots": self.options.slots,
                "pid": os.getpid(),
                "host": self.hostname,
                "version": next((each.policy.version for each in self._kinds.values()), ""),
                "python": platform.python_version(),
                "started": self._born_us,
                "held": held,
            }
        )
        return packed

    def _not_ours(self, lost: set[str], cancelled: set[str]) -> None:
        for child in self._children:
            tell: list[int] = []
            kill = False
            for index, held in child.items.items():
                if held.ref in lost:
                    child.lost.add(index)
                    kill = kill or (held.info.policy.exclusive and child.is_started(index))
                if (held.ref in lost or held.ref in cancelled) and index not in child.told:
                    child.told.add(index)
                    tell.append(index)
            if tell:
                child.send(["cancel", tell])
            if kill:
                log.warning("killing child %d: the lease of an exclusive kind is lost", child.pid)
                child.kill()

    def _check_deadline(self) -> None:
        """Past the time that our leases surely last, start nothing and say so."""
        if self._lost or not self._kinds or boottime() < self._good_at + self._lease * 0.9:
            return
        self._lost = True
        self._beat_at = min(self._beat_at, monotonic())
        for child in self._children:
            if child.items:
                log.warning("no beat for %.1f s: the leases may be lost", self._lease * 0.9)
                child.send(["lost"])
                child.send(["recall"])
                if any(held.info.policy.exclusive for held in child.items.values()):
                    child.kill()

    # ------------------------------------------------------------------------------------------------------------ RQ

    def _listen(self) -> None:
        """Have a BLPOP outstanding while there is a slot for what it may bring."""
        if self._pop is None or self._pop.waiting or self._stopping or self._suspended:
            return
        if self._due or self._room() <= 0:
            return
        try:
            self._pop.ask([queue_key(lane) for lane in self._lanes])
        except _RQ_ERRORS as error:
            self._rq_lost(error)

    def _popped(self) -> None:
        assert self._pop is not None
        try:
            found = self._pop.answer()
        except _RQ_ERRORS as error:
            self._rq_lost(error)
            return
        if found is None:
            return
        queue, job_id = found
        lane = queue.removeprefix(queue_key(""))
        try:
            if not is_hint(job_id):
                self._refuse(lane, job_id)
            elif self._stopping or self._suspended:
                self.connection.lpush(queue, job_id)
            else:
                now = monotonic()
                self._end_hints(older=HINT_LIFE)
                self._hints[job_id] = _Hint(job_id, lane, now)
                self._due[lane] = job_id
                self._more = True
        except _RQ_ERRORS as error:
            self._rq_lost(error)

    def _refuse(self, lane: str, job_id: str) -> None:
        """Somebody else's job: never read, never run; shown as failed."""
        log.error("RQ job %s in queue %s is no hint of setpoint and is not run; use another queue for it", job_id, lane)
        key = job_key(job_id)
        if not self.connection.exists(key):
            return
        now_us = self._clock.now_us()
        ended = f"{to_datetime(now_us):%Y-%m-%dT%H:%M:%S.%fZ}"
        text = f"The queue {lane} is a lane of setpoint, whose workers run no RQ jobs. Enqueue this elsewhere."
        packed = b64encode(zlib.compress(text.encode())).decode()
        result: dict[Any, Any] = {"type": 2, "worker_name": self.name, "exc_string": packed}
        pipeline = self.connection.pipeline()
        pipeline.hset(key, mapping={"status": "failed", "ended_at": ended})
        pipeline.expire(key, FAILURE_TTL)
        pipeline.zadd(f"rq:failed:{lane}", {job_id: now_us // 1_000_000 + FAILURE_TTL})
        pipeline.xadd(f"rq:results:{job_id}", result, maxlen=10)
        pipeline.expire(f"rq:results:{job_id}", FAILURE_TTL)
        pipeline.execute()

    def _show_hint(self, now: float) -> None:
        """Show the oldest hint as our current job once it is worth it; end those that have nothing left to do."""
        if not self._hints:
            return
        busy = any(child.items for child in self._children)
        if not busy and not self._due:
            self._end_hints()
            return
        if self._shown is not None:
            return
        hint = next(iter(self._hints.values()))
        if now - hint.since < HINT_SHOWN:
            return
        self._shown = hint
        now_us = self._clock.now_us()
        started = f"{to_datetime(now_us):%Y-%m-%dT%H:%M:%S.%fZ}"
        try:
            if self.connection.exists(job_key(hint.id)):
                pipeline = self.connection.pipeline()
                pipeline.hset(
                    job_key(hint.id), mapping={"status": "started", "started_at": started, "worker_name": self.name}
                )
                pipeline.zadd(f"rq:wip:{hint.lane}", {f"{hint.id}:{hint.id}": now_us // 1_000_000 + 2 * 86_400})
                pipeline.hset(self.key, mapping={"state": "busy", "current_job": hint.id})
                pipeline.execute()
        except _RQ_ERRORS as error:
            self._rq_lost(error)

    def _end_hints(self, older: float = -1.0) -> None:
        """Leave nothing of hints that are done in RQ."""
        now = monotonic()
        ended = [hint for hint in self._hints.values() if now - hint.since > older]
        if not ended:
            return
        for hint in ended:
            del self._hints[hint.id]
        self._jobs_done += len(ended)
        shown, self._shown = self._shown, None
        try:
            if shown is None:
                self.connection.unlink(*(job_key(hint.id) for hint in ended))
                return
            pipeline = self.connection.pipeline()
            pipeline.unlink(*(job_key(hint.id) for hint in ended))
            pipeline.zrem(f"rq:wip:{shown.lane}", f"{shown.id}:{shown.id}")
            pipeline.hset(self.key, "state", "idle")
            pipeline.hdel(self.key, "current_job")
            pipeline.execute()
        except _RQ_ERRORS as error:
            self._rq_lost(error)

    def _rq_beat(self) -> None:
        """Heartbeat in RQ, registration if it is not (or no more) there, connection if there is none."""
        now = monotonic()
        self._rq_at = now + (1.0 if self._suspended else RQ_BEAT)
        if not self._lanes or self._stopping:
            return
        try:
            pipeline = self.connection.pipeline(transaction=False)
            pipeline.sismember(self.redis_workers_keys, self.key)
            pipeline.hexists(self.key, "birth")
            pipeline.exists(_SUSPENDED)
            listed, born, suspended = pipeline.execute()
            if not (listed and born and self._registered):
                self.connection.delete(self.key)
                self.register_birth()  # type: ignore[no-untyped-call]
                self.connection.hset(self.key, "state", "idle")
                self.connection.sadd("rq:queues", *(queue_key(lane) for lane in self._lanes))
                self._registered = True
                if self.pubsub_thread is None:
                    self.subscribe()
                log.info("worker %s listens on %s", self.name, ", ".join(self._lanes))
            else:
                pipeline = self.connection.pipeline(transaction=False)
                self.heartbeat(pipeline=pipeline)
                if self._jobs_done:
                    pipeline.hincrby(self.key, "successful_job_count", self._jobs_done)
                pipeline.execute()
                self._jobs_done = 0
            if bool(suspended) != self._suspended:
                self._suspend(bool(suspended))
            if self._pop is None:
                self._pop = _Popper(self.settings.hints_url)
                self._drain_at = _FOREVER
                self._drain_all()
        except (*_RQ_ERRORS, ValueError) as error:
            self._rq_lost(error)

    def _suspend(self, on: bool) -> None:
        self._suspended = on
        self.connection.hset(self.key, "state", "suspended" if on else "idle")
        log.info("suspended, `rq resume` to resume" if on else "resumed")
        if on:
            self._take_back_pop()
        else:
            self._drain_all()
        self._rq_at = monotonic() + (1.0 if on else RQ_BEAT)

    def _take_back_pop(self) -> None:
        """End the outstanding BLPOP; what it brought in the last moment goes back."""
        pop = self._pop
        if pop is None or not pop.waiting:
            return
        try:
            self.connection.execute_command("CLIENT", "UNBLOCK", pop.id)
            found = pop.answer(timeout=2.0)
            if found is not None:
                self.connection.lpush(*found)
        except _RQ_ERRORS as error:
            self._rq_lost(error)

    def _stop_popping(self) -> None:
        if self._pop is not None:
            self._take_back_pop()
        if self._pop is not None:
            self._pop.close()
            self._pop = None

    def _rq_lost(self, error: Exception) -> None:
        if self._pop is not None:
            self._pop.close()
            self._pop = None
        now = monotonic()
        self._rq_at = now + 1.0
        self._drain_at = min(self._drain_at, now + 1.0)
        log.warning("RQ's Redis is away, working without hints: %s", error)

    # ---------------------------------------------------------------------------------------------------------- ends

    def _on_command(self, payload: dict[str, Any]) -> None:
        match payload.get("command"):
            case "shutdown":
                log.info("told to shut down by RQ")
                self._begin_stop()
            case "stop-job":
                job_id = payload.get("job_id")
                if self._shown is not None and self._shown.id == job_id:
                    log.info("told to stop job %s by RQ", job_id)
                    self.kill_horse()
            case "kill-horse":
                log.info("told to kill the child by RQ")
                self.kill_horse()
            case other:
                log.warning("RQ sent an unknown command %r", other)

    def _on_signals(self) -> None:
        count, self._signals = self._signals, 0
        if self._stopping or count > 1:
            self._forced = True
        self._begin_stop()

    def _begin_stop(self) -> None:
        if self._stopping:
            if self._forced:
                self._stop_by = 0.0
            return
        running = sum(len(child.items) for child in self._children)
        log.info("stopping: %d evaluations have %.0f s to end", running, self.options.grace)
        self._stopping = True
        self._stop_by = 0.0 if self._forced else monotonic() + self.options.grace
        self._take_back_pop()
        for child in self._children:
            if child.items:
                child.send(["recall"])

    def _finish(self) -> None:
        """While stopping: see whether we are done, or out of time."""
        if not self._stopping or self._exit is not None:
            return
        if any(child.items for child in self._children):
            if monotonic() < self._stop_by:
                return
            for child in list(self._children):
                child.kill()
                self._died(child)
        if self._unsaid and monotonic() < self._stop_by:
            return
        self._exit = 0

    def _close(self) -> None:
        for child in list(self._children):
            child.kill()
            if child.items:
                self._died(child)
            else:
                child.reap()
        self._children.clear()
        self._end_hints()
        if self._kinds:
            with contextlib.suppress(RedisUnavailable):
                self._say_again()
                if self._refused:
                    self._say_refused()
                self.door.run(self.scripts.leave(self.name))
            if self._refused:
                log.error("%d enqueues of actions are lost: Redis is full", len(self._refused))
        self.unsubscribe()
        if self._registered:
            with contextlib.suppress(*_RQ_ERRORS):
                self.register_death()  # type: ignore[no-untyped-call]
        if self._pop is not None:
            self._pop.close()
        self.door.close()
        self.connection.close()
        os.close(self._wake_out)
        os.close(self._wake_in)


class _Popper:
    """A connection of its own with at most one BLPOP outstanding, whose socket can be polled."""

    def __init__(self, url: str) -> None:
        self._client = connect(url, role="worker-pop", timeout=None)
        connection: Any = self._client.connection_pool.get_connection()
        self._connection = connection
        try:
            self._connection.send_command("CLIENT", "ID")
            self.id = int(self._connection.read_response())
        except BaseException:
            self.close()
            raise
        self.fd: int = self._connection._sock.fileno()
        self.waiting = False

    def ask(self, keys: Sequence[str]) -> None:
        """Wait on the server for the first id in any of these lists."""
        self._connection.send_command("BLPOP", *keys, 0)
        self.waiting = True

    def answer(self, timeout: float | None = 2.0) -> tuple[str, str] | None:
        """The list and the id; None if it was unblocked. Call when the socket is readable."""
        reply = self._connection.read_response(timeout=timeout)
        self.waiting = False
        if reply is None:
            return None
        queue, job_id = reply
        return str(queue, errors="replace"), str(job_id, errors="replace")

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(*_RQ_ERRORS):
            self._connection.disconnect()
        with contextlib.suppress(*_RQ_ERRORS):
            self._client.close()


def _nothing() -> None:
    pass


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
