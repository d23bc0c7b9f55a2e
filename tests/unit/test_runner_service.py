"""Services: the table of their states, the newest configuration wins, nothing old touches what is newer; the model."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.errors import SetpointError, UsageError
from setpoint.runner import (
    AbortRetry,
    AlreadyStarted,
    AlreadyStopped,
    BadConfig,
    CannotBeConfigured,
    CannotBeStopped,
    Configurable,
    Lifecycle,
    Next,
    NotStarted,
    Scope,
    Service,
    ServiceRetry,
    ServiceState,
    Startable,
    Status,
    Stoppable,
    TaskFailed,
    WatchLagged,
    configure,
    stop,
    update_system_check,
)
from setpoint.runner.service import KEPT
from setpoint.testing import FakeClock
from tests.driving import drive, now, pass_time, settle, sleep

# ----------------------------------------------------------------------------------------------------- the state alone

Value = ServiceState[str]
IDLE = Value(last_inactive_us=1)
STORED = IDLE.configured(b"c", 2)
ACTIVE = IDLE.started(3)
LOADING = STORED.started(3)
APPLIED = LOADING.applied(4)
RETRYING = LOADING.retrying("e", 4, 500)
FAILED = LOADING.failed("e", 4)
STOPPED = APPLIED.stopped(5)
REFUSED = IDLE.refused("bad", 2)


@pytest.mark.parametrize(
    ("state", "status", "fields"),
    [
        (IDLE, "inactive", {}),
        (STORED, "inactive", {"config": b"c", "last_config_us": 2}),
        (ACTIVE, "active", {"active": True, "last_active_us": 3}),
        (LOADING, "loading", {"active": True, "last_loading_start_us": 3, "last_loading_end_us": None}),
        (APPLIED, "active", {"active": True, "loading": False, "last_loading_end_us": 4, "err": None}),
        (
            RETRYING,
            "loading",
            {"active": True, "err": "e", "failed_attempts": 1, "last_err_us": 4, "next_attempt_us": 504},
        ),
        (RETRYING.attempting(), "loading", {"next_attempt_us": None, "err": "e"}),
        (RETRYING.attempting().retrying("f", 600, 750), "loading", {"failed_attempts": 2, "next_attempt_us": 1350}),
        (RETRYING.applied(9), "active", {"err": None, "failed_attempts": 1, "next_attempt_us": None}),
        (RETRYING.applied(9, keep_error=True), "active", {"err": "e", "last_err_us": 4}),
        (
            FAILED,
            "error",
            {"active": False, "loading": False, "config": b"c", "last_inactive_us": 4, "last_loading_end_us": 4},
        ),
        (FAILED.started(9), "loading", {"err": None, "failed_attempts": 0}),
        (STOPPED, "inactive", {"active": False, "last_inactive_us": 5, "last_loading_end_us": 4}),
        (RETRYING.stopped(6), "error", {"loading": False, "next_attempt_us": None, "last_loading_end_us": 6}),
        (LOADING.stopped(6), "inactive", {"loading": False, "active": False}),
        (REFUSED, "error", {"err": "bad", "active": False, "config": None, "last_inactive_us": 1}),
        (ACTIVE.refused("bad", 7), "error", {"active": False, "last_inactive_us": 7, "last_err_us": 7}),
        (APPLIED.refused("bad", 7), "active", asdict(APPLIED)),
        (RETRYING.configured(b"d", 8), "loading", {"config": b"d", "failed_attempts": 0, "next_attempt_us": None}),
        (APPLIED.configured(b"d", 8), "loading", {"last_config_us": 8, "last_loading_start_us": 8}),
        (APPLIED.retrying("w", 9, 5), "loading", {"failed_attempts": 1, "last_loading_start_us": 9}),
        (RETRYING.applied(9).retrying("w", 9, 5), "loading", {"failed_attempts": 1}),
        (RETRYING.applied(9).failed("w", 9), "error", {"failed_attempts": 1}),
    ],
)
def test_each_way_a_state_may_change(state: Value, status: str, fields: dict[str, Any]) -> None:
    assert state.status == status
    assert {name: asdict(state)[name] for name in fields} == fields


# ------------------------------------------------------------------------------------------------------------ services


class Probe:
    """A service whose `apply` does what its configuration says: {"n": …, "takes": seconds, "fails": times, …}."""

    def __init__(self, **options: Any) -> None:
        self.log: list[str] = []
        self.clock = FakeClock()
        self.running = 0
        self.failures: dict[int, int] = {}
        self.service: Service[dict[str, Any]] = Service(self.apply, clock=self.clock, **options)

    async def apply(self, scope: Scope, config: dict[str, Any]) -> None:
        n = config["n"]
        self.running += 1
        assert self.running == 1, "two applies overlap"
        scope.callback(lambda: self.log.append(f"end {n} {now():g}")) if config.get("ends") else None
        try:
            self.log.append(f"apply {n} {now():g}")
            try:
                await sleep(config.get("takes", 0))
            except asyncio.CancelledError:
                self.log.append(f"cancel {n} {now():g}")
                if config.get("stubborn") == "slow":
                    await sleep(5)
                elif config.get("stubborn") == "error":
                    raise ValueError("not cancelled, but failed") from None
                elif config.get("stubborn") == "success":
                    return
                raise
            self.failures[n] = self.failures.get(n, 0) + 1
            if self.failures[n] <= config.get("fails", 0):
                raise ValueError(f"{n} failed")
            if "raises" in config:
                raise {"abort": AbortRetry(KeyError("final")), "bad": TaskFailed(KeyError(), "x")}[config["raises"]]  # type: ignore[arg-type]
            if "dies" in config:
                scope.spawn(self.die)
        finally:
            self.running -= 1

    async def die(self) -> None:
        await sleep(3)
        raise OSError("connection lost")


def conf(n: int, **more: Any) -> bytes:
    import json

    return json.dumps({"n": n, **more}).encode()


def test_it_starts_applies_and_stops_and_each_verb_answers_with_the_state() -> None:
    async def main() -> None:
        probe = Probe()
        service = probe.service
        assert service.status is Status.INACTIVE
        assert not service.configure(conf(1, takes=2)).loading
        assert service.start().status is Status.LOADING
        with pytest.raises(AlreadyStarted):
            service.start()
        assert await service.wait_for_state_change(Status.LOADING) is Status.ACTIVE
        assert now() == 2
        assert service.stop().status is Status.INACTIVE
        with pytest.raises(AlreadyStopped):
            service.stop()
        with pytest.raises(NotStarted, match=r"start\(config\)"):
            service.configure(conf(2))
        assert service.state.config == conf(1, takes=2)
        assert service.start(conf(3)).status is Status.LOADING
        await pass_time(0)
        assert probe.log == ["apply 1 0", "apply 3 2"]
        service.stop()
        await service.ended()

    drive(main)
    assert Lifecycle is Service


@pytest.mark.parametrize("stubborn", [None, "slow", "error", "success"])
@pytest.mark.parametrize("verb", ["configure", "stop", "restart"])
def test_an_old_apply_never_touches_the_state_of_what_is_newer_and_never_overlaps_it(stubborn, verb) -> None:
    async def main() -> None:
        probe = Probe(retry=ServiceRetry())
        service = probe.service
        service.start(conf(1, takes=100, stubborn=stubborn))
        await pass_time(1)
        if verb == "configure":
            service.configure(conf(2, takes=100))
            service.configure(conf(3, takes=1))
        else:
            service.stop()
            assert (service.state.loading, service.status) == (False, Status.INACTIVE)
            if verb == "restart":
                service.start(conf(3, takes=1))
        stopped = service.state
        await pass_time(20)
        if verb == "stop":
            assert service.state == stopped
            assert probe.log == ["apply 1 0", "cancel 1 1"]
        else:
            assert probe.log == ["apply 1 0", "cancel 1 1", f"apply 3 {6 if stubborn == 'slow' else 1}"]
            assert service.status is Status.ACTIVE
            assert service.state.config == conf(3, takes=1)
            assert service.state.err is None
            service.stop()
        await service.ended()

    drive(main)


def test_a_retry_follows_the_series_and_the_error_is_forgotten_on_success() -> None:
    async def main() -> None:
        probe = Probe(retry=ServiceRetry())
        service = probe.service
        service.start(conf(1, fails=3))
        await settle()
        state = service.state
        assert (state.status, repr(state.err), state.failed_attempts) == (Status.LOADING, "ValueError('1 failed')", 1)
        assert state.next_attempt_us == probe.clock.now_us() + 500_000
        await pass_time(10)
        assert [line.split()[2] for line in probe.log] == ["0", "0.5", "1.25", "2.375"]
        assert (service.status, service.state.err, service.state.failed_attempts) == (Status.ACTIVE, None, 3)
        service.stop()

    drive(main)


def test_hours_of_retries_pass_at_once_and_stop_really_stops() -> None:
    async def main() -> None:
        probe = Probe(retry=ServiceRetry())
        service = probe.service
        service.start(conf(1, fails=10**9))
        await pass_time(3_600 * 24)
        assert service.state.failed_attempts > 2_800
        count = len(probe.log)
        service.stop()
        assert (service.state.loading, service.state.next_attempt_us) == (False, None)
        await pass_time(3_600)
        assert len(probe.log) == count
        service.start(conf(2))
        await settle()
        assert service.status is Status.ACTIVE
        service.stop()

    drive(main)


@pytest.mark.parametrize(
    ("options", "config", "attempts", "error"),
    [
        ({}, {"fails": 9}, 1, "ValueError('1 failed')"),
        ({"retry": ServiceRetry(3)}, {"fails": 9}, 3, "ValueError('1 failed')"),
        ({"retry": ServiceRetry()}, {"raises": "abort"}, 1, "KeyError('final')"),
        ({"retry": ServiceRetry()}, {"raises": "bad"}, 1, "UsageError"),
        ({"timeout": "2s"}, {"takes": 9}, 1, "AttemptTimedOut('the attempt took longer than 2s')"),
    ],
)
def test_what_is_given_up_is_inactive_and_in_error_until_it_is_started_again(options, config, attempts, error) -> None:
    async def main() -> None:
        probe = Probe(**options)
        service = probe.service
        service.start(conf(1, **config))
        await pass_time(60)
        assert service.status is Status.ERROR
        assert repr(service.state.err).startswith(error)
        assert service.state.failed_attempts == attempts
        service.configure(conf(2))  # kept, and not applied: somebody starts it
        assert not service.state.active
        service.start()
        await settle()
        assert service.status is Status.ACTIVE
        service.stop()

    drive(main)


def test_what_a_scope_holds_ends_before_the_next_is_applied_and_a_dead_background_task_is_a_failure() -> None:
    async def main() -> None:
        probe = Probe(retry=ServiceRetry())
        service = probe.service
        service.start(conf(1, ends=True, dies=True))
        await pass_time(5)
        assert probe.log == ["apply 1 0", "end 1 3", "apply 1 3.5"]
        assert repr(service.state.err) == "None"
        await pass_time(1.75)
        assert repr(service.state.err) == "OSError('connection lost')"
        service.configure(conf(2, ends=True))
        await settle()
        service.stop()
        await service.ended()
        assert probe.log[-2:] == ["apply 2 6.75", "end 2 6.75"]

    drive(main)


def test_a_background_task_whose_cancellation_a_library_has_lost_is_cancelled_again() -> None:
    cancelled: list[float] = []

    async def deaf() -> None:
        while True:
            try:
                await sleep(3600)
            except asyncio.CancelledError:
                cancelled.append(now())
                if len(cancelled) == 3:
                    raise

    async def apply(scope: Scope, config: object) -> None:
        scope.spawn(deaf)

    async def main() -> None:
        service = Service(apply)
        service.start(b"{}")
        await service.wait_for_state_change(Status.LOADING)
        await settle()
        began = now()
        service.stop()
        await service.ended()
        assert [at - began for at in cancelled] == [0, 5, 10]

    drive(main)


def test_reset_and_retry_now_mean_for_a_service_what_they_mean_for_a_task() -> None:
    times: list[float] = []
    acts = [Next.NORMAL, Next.NORMAL, Next.RESET_BACKOFF, Next.NORMAL, Next.RETRY_NOW, Next.NORMAL]

    async def apply(scope: Scope, config: Any) -> None:
        times.append(now())
        assert scope.attempt == len(times)
        if acts:
            raise TaskFailed(ValueError(), acts.pop(0))

    async def main() -> None:
        service = Service(apply, retry=ServiceRetry())
        service.start(b"{}")
        await pass_time(60)
        service.stop()

    drive(main)
    assert [b - a for a, b in pairwise(times)] == [0.5, 0.75, 0.5, 0.75, 0, 0.5]


@pytest.mark.parametrize("active", [True, False])
def test_a_configuration_that_cannot_be_parsed_leaves_a_working_one_working(active: bool) -> None:
    async def main() -> None:
        probe = Probe()
        service = probe.service
        if active:
            service.start()
        with pytest.raises(BadConfig, match="JSONDecodeError"):
            service.configure(b"{")
        assert (service.status, service.state.active) == (Status.ERROR, False)
        with pytest.raises(BadConfig, match="JSONDecodeError"):
            service.start()
        service.configure(conf(1))
        service.start()
        await settle()
        before = service.state
        with pytest.raises(BadConfig):
            service.configure(b"}")
        assert service.state is before
        with pytest.raises(UsageError, match="encode"):
            service.configure("{}")  # type: ignore[arg-type]
        service.stop()
        with pytest.raises(BadConfig):
            service.start(b"?")
        assert service.status is Status.INACTIVE

    drive(main)


def test_on_stop_runs_after_the_scope_has_ended_and_may_use_the_service() -> None:
    async def main() -> None:
        async def stopped() -> None:
            probe.log.append(f"stopped {now():g}")
            if len(probe.log) < 5:
                service.start()

        probe = Probe(on_stop=stopped)
        service = probe.service
        service.start(conf(1, takes=100, stubborn="slow", ends=True))
        await pass_time(1)
        service.stop()
        await pass_time(10)
        assert probe.log == ["apply 1 0", "cancel 1 1", "end 1 6", "stopped 6", "apply 1 6"]
        service.stop()
        await service.ended()
        assert probe.log[-1] == "stopped 16"

    drive(main)


def test_apply_may_use_its_own_service() -> None:
    async def main() -> None:
        async def apply(scope: Scope, config: Any) -> None:
            log.append(config)
            if config == 1:
                service.configure(b"2")
                await sleep(1)
                log.append("not reached")
            elif config == 2:
                service.stop()
            else:
                raise ValueError

        log: list[object] = []
        service = Service(apply)
        service.start(b"1")
        await service.ended()
        assert (log, service.status) == ([1, 2], Status.INACTIVE)

    drive(main)


def test_errors_that_nobody_is_there_to_get_are_reported() -> None:
    async def main() -> None:
        async def apply(scope: Scope, config: Any) -> None:
            scope.callback(lambda: 1 / 0)

        service = Service(apply, on_stop=lambda: 1 / 0)
        service.start(b"1")
        await settle()
        service.configure(b"2")
        await settle()
        assert service.status is Status.ACTIVE
        service.stop()
        await service.ended()
        assert service.status is Status.INACTIVE

    drive(main, reports=3)


def test_a_plain_apply_is_waited_for_before_the_next_one() -> None:
    gate, log = threading.Event(), []

    def apply(scope: Scope, config: int) -> None:
        log.append(f"begin {config}")
        if config == 1:
            gate.wait(10)
        log.append(f"end {config}")

    async def main() -> None:
        service = Service(apply)
        service.start(b"1")
        while not log:
            await settle()
        service.configure(b"2")
        await settle(100)
        assert log == ["begin 1"]
        assert service.status is Status.LOADING
        gate.set()
        assert await service.wait_for_state_change(Status.LOADING) is Status.ACTIVE
        assert log == ["begin 1", "end 1", "begin 2", "end 2"]
        with pytest.raises(RuntimeError):
            await asyncio.to_thread(service.stop)
        service.stop()

    drive(main)


def test_the_end_of_the_loop_is_a_stop() -> None:
    probe = Probe()

    async def main() -> None:
        probe.service.start(conf(1))
        await settle()
        assert probe.service.status is Status.ACTIVE

    from setpoint.testing import run_in_fake_time

    run_in_fake_time(main(), probe.clock)
    assert probe.service.status is Status.INACTIVE


def test_watchers_see_every_change_in_order_and_a_slow_one_is_told_what_it_missed() -> None:
    async def main() -> None:
        probe = Probe()
        service = probe.service
        watch = service.changes()
        quick: list[str] = []

        async def follow() -> None:
            async for state in service.changes():
                quick.append(state.status)  # noqa: PERF401  # it never ends

        task = asyncio.create_task(follow())
        await settle()
        service.start(conf(1))
        await settle()
        service.stop()
        await settle()
        assert quick == ["inactive", "inactive", "loading", "active", "inactive"]
        assert [(await anext(watch)).status for _ in range(5)] == quick
        for _ in range(KEPT):
            service.start()
            service.stop()
        task.cancel()
        with pytest.raises(WatchLagged) as caught:
            await anext(watch)
        assert caught.value.missed == KEPT
        assert (await anext(watch)).status == "loading"
        await service.ended()

    drive(main)


def test_a_stopped_service_is_no_garbage() -> None:
    async def main() -> weakref.ref[Any]:
        probe = Probe(retry=ServiceRetry(2))
        probe.service.start(conf(1, fails=5))
        await pass_time(10)
        assert probe.service.status is Status.ERROR
        with pytest.raises(BadConfig):
            Probe().service.configure(b"")
        return weakref.ref(probe.service)

    gc.collect()
    ref = drive(main)
    gc.collect()
    assert ref() is None


# ------------------------------------------------------------------------------------------------- against a model


@dataclass
class Model:
    """What a service must be: one configuration is being applied, or is applied, or none."""

    active: bool = False
    config: int | None = None
    stopped: bool = False
    fails: bool = False
    until: float | None = None
    """When apply will end."""
    applied: list[int] = field(default_factory=list)

    def begin(self, now: float) -> None:
        assert self.config is not None
        self.until = now + self.config % 7
        self.fails = self.config % 5 == 0

    def at(self, now: float) -> str:
        while self.active and self.until is not None and self.until <= now:
            if not self.fails:
                self.until = None
            else:
                self.until += 2 + (self.config or 0) % 7  # a wait of 2 s, and the next attempt
        if not self.active:
            return "inactive"
        return "active" if self.until is None else "loading"


OPS = st.lists(
    st.one_of(
        st.just(("start", 0)),
        st.just(("stop", 0)),
        st.tuples(st.just("configure"), st.integers(1, 40)),
        st.tuples(st.just("wait"), st.integers(0, 12)),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(OPS)
def test_any_sequence_of_verbs_leaves_it_as_the_newest_of_them_says(ops: list[tuple[str, int]]) -> None:  # noqa: C901  # one walk beside its model
    running: list[int] = []

    async def apply(scope: Scope, config: int) -> None:
        scope.callback(running.remove, config)
        assert not running
        running.append(config)
        await sleep(config % 7)
        if config % 5 == 0:
            raise ValueError

    async def main() -> None:  # noqa: C901  # as above
        service = Service(apply, retry=ServiceRetry(initial="2s", max="2s", factor=1))
        model = Model()
        for verb, argument in ops:
            at = now()
            model.at(at)
            expected: type[SetpointError] | None = None
            if verb == "start":
                expected = AlreadyStarted if model.active else None
            elif verb == "stop":
                expected = None if model.active else AlreadyStopped
            elif verb == "configure":
                expected = NotStarted if model.stopped else None
            try:
                if verb == "wait":
                    await sleep(argument + 0.5)  # between the instants of the model
                    await settle(3)
                else:
                    getattr(service, verb)(*[str(argument).encode()] if verb == "configure" else [])
                    if verb == "start":
                        model.active, model.stopped = True, False
                    elif verb == "stop":
                        model.active, model.stopped, model.until = False, True, None
                    else:
                        model.config = argument
                    if verb != "stop" and model.active and model.config is not None:
                        model.begin(at)
            except SetpointError as error:
                raised: type[SetpointError] | None = type(error)
            else:
                raised = None
            assert raised is expected
            status = model.at(now())
            shown = "inactive" if service.status is Status.ERROR else str(service.status)
            if verb == "wait":
                assert shown == status, (verb, argument)
                if status == "active" and model.config is not None:
                    assert running == [model.config]
            assert service.state.active == model.active
            assert service.state.config == (None if model.config is None else str(model.config).encode())
        if model.active:
            service.stop()
        final = service.state
        await service.ended()
        await pass_time(50)
        assert running == []
        assert service.state is final

    drive(main)


# ------------------------------------------------------------------------------------------------------ any value


def test_any_value_can_be_asked_and_told() -> None:
    class Async:
        async def configure(self, config: bytes) -> None:
            self.config = config

        async def stop(self) -> None:
            self.stopped = True

    async def main() -> None:
        async def apply(scope: Scope, config: Any) -> None: ...

        service, value = Service(apply), Async()
        assert isinstance(service, Startable)
        assert isinstance(value, Configurable)
        assert isinstance(value, Stoppable)
        await configure(value, b"x")
        await stop(value)
        assert (value.config, value.stopped) == (b"x", True)
        service.start()
        await configure(service, b"1")
        await stop(service)
        with pytest.raises(CannotBeConfigured):
            await configure(5, b"")
        with pytest.raises(CannotBeStopped):
            await stop("x")

    drive(main)


def test_a_system_check_is_told_of_what_says_something() -> None:
    told: list[str] = []

    class Check:
        def mark_running(self) -> None:
            told.append("running")

        def mark_failed(self, error: BaseException) -> None:
            told.append(repr(error))

    for error in (None, ValueError(), asyncio.CancelledError(), TimeoutError()):
        update_system_check(Check(), error)
        update_system_check(None, error)
    assert told == ["running", "ValueError()"]
