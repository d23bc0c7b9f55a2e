"""A service in this process: it is started, configured while it runs, and stopped; the newest configuration wins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from random import Random
from typing import Any, Final, Generic, TypeVar

from setpoint.clock import Clock, Duration, SystemClock, parse_duration, sleep_us
from setpoint.errors import UsageError
from setpoint.runner import throttle
from setpoint.runner.calls import as_async, is_async, keep, report, to_its_end
from setpoint.runner.delays import ServiceRetry
from setpoint.runner.errors import AlreadyStarted, AlreadyStopped, BadConfig, NotStarted, WatchLagged
from setpoint.runner.feed import Feed, Watch
from setpoint.runner.next import Next, unwrap
from setpoint.runner.retry import attempt, name_of
from setpoint.runner.scope import Scope
from setpoint.runner.service_state import ServiceState
from setpoint.runner.status import Status
from setpoint.runner.throttle import Log

__all__ = ["Service", "State"]

C = TypeVar("C")

State = ServiceState[Exception]

KEPT: Final = 256
"""Changes of a service's state that a slow watcher can be behind."""

_rng: Final = Random()


class Service(Generic[C]):
    """Applies a configuration and keeps it applied: `start`, `configure`, `stop`, as often as you like.

    `apply(scope, config)` makes the configuration work; what it leaves running belongs to the `Scope`. A new
    configuration, or a stop, cancels the old `apply` and ends its scope; only then is the new one applied: two never
    overlap, and an old one can never touch the state of a newer one. A plain `apply` runs in a thread, which cannot be
    cancelled: the next one waits for its end. `parser` makes the configuration from bytes; it runs on the loop.

    With `retry` a failed apply is tried again, else the service is inactive and in error. `timeout` is for each apply.
    `on_stop` runs after each `stop`, when the scope has ended. `keep_error` leaves `err` as it was after a success.
    The verbs are quick and never wait; they are called on the event loop.
    """

    def __init__(
        self,
        apply: Callable[[Scope, C], Awaitable[None]] | Callable[[Scope, C], None],
        *,
        parser: Callable[[bytes], C] = json.loads,
        retry: ServiceRetry | None = None,
        timeout: Duration | None = None,
        on_stop: Callable[[], Awaitable[object]] | Callable[[], object] | None = None,
        keep_error: bool = False,
        clock: Clock | None = None,
        log: Log = None,
    ) -> None:
        self._apply = as_async(apply) if is_async(apply) else partial(_in_thread_to_its_end, as_async(apply))
        self._parser = parser
        self._retry = retry
        self._timeout_us = 0 if timeout is None else parse_duration(timeout)
        self._on_stop = None if on_stop is None else as_async(on_stop)
        self._keep_error = keep_error
        self._clock: Clock = SystemClock() if clock is None else clock
        self._log = log
        self._name = name_of(apply)
        self._state = State(last_inactive_us=self._clock.now_us())
        self._parsed: C | None = None
        self._was_stopped = False
        self._task: asyncio.Task[None] | None = None  # of the newest configuration; whoever is another is outdated
        self._tasks: set[asyncio.Task[None]] = set()  # that one, and those that have not ended yet
        self._turn = asyncio.Lock()
        self._feed: Feed[State] = Feed(KEPT)
        self._observers: list[Callable[[State, State], None]] = []

    # ------------------------------------------------------------------------------------------------------- reading

    @property
    def state(self) -> State:
        """Where it is."""
        return self._state

    @property
    def status(self) -> Status:
        """Where it is, in one word."""
        return self._state.status

    def changes(self) -> Watch[State]:
        """The state as it is, and then each change of it, in order and without gaps: `async for state in …`.

        Raises `WatchLagged` when the watcher is more than `KEPT` changes behind.
        """
        return self._feed.watch([self._state], self._feed.revision)

    async def wait_for_state_change(self, from_: Status) -> Status:
        """Wait until the status is, or has meanwhile been, another than this; which."""
        while True:
            try:
                async for state in self.changes():
                    if state.status is not from_:
                        return state.status
            except WatchLagged:
                continue

    async def ended(self) -> None:
        """Wait until it is stopped and all that it had applied has ended, `on_stop` too."""
        while self._state.active or self._tasks:
            await (asyncio.wait(set(self._tasks)) if self._tasks else self._feed.wait())

    def observe(self, observer: Callable[[State, State], None]) -> Callable[[], None]:
        """Call `observer(old, new)` at each change, at once; it must not raise. Returns how to end that."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    # --------------------------------------------------------------------------------------------------------- verbs

    def start(self, config: bytes | None = None) -> State:
        """Start it, with another configuration if one is given; the state, which may be loading already.

        Raises `AlreadyStarted`, and `BadConfig` if the configuration, or the last one when there is no other, cannot be
        parsed.
        """
        if self._state.active:
            raise AlreadyStarted("the service is active; configure it, or stop it first")
        if config is not None:
            parsed = self._parse(config)
            self._keep_config(config, parsed)
        elif self._state.config is None and self._state.err is not None:
            raise BadConfig(str(self._state.err)) from self._state.err
        self._was_stopped = False
        self._put(self._state.started(self._clock.now_us()))
        self._begin()
        return self._state

    def configure(self, config: bytes) -> State:
        """Apply another configuration in place of the one it has, whatever is going on; inactive: only keep it.

        Raises `BadConfig` if it cannot be parsed: a service with a configuration goes on with that, one without is
        inactive and in error. Raises `NotStarted` after `stop`.
        """
        if self._was_stopped:
            raise NotStarted("the service was stopped; start(config) starts it with a new configuration")
        self._keep_config(config, self._parse(config))
        self._begin()
        return self._state

    def stop(self) -> State:
        """Stop it: cancels `apply`, a wait for the next try and the scope. Does not wait for their end; `ended` does.

        Raises `AlreadyStopped` if it is not active.
        """
        if not self._state.active:
            raise AlreadyStopped("the service is not active")
        self._interrupt()
        self._was_stopped = True
        self._put(self._state.stopped(self._clock.now_us()))
        if self._on_stop is not None:
            _ = self._spawn(self._tell_stopped(self._on_stop))
        return self._state

    def _parse(self, config: bytes) -> C:
        given: Any = config
        if not isinstance(given, bytes | bytearray | memoryview):
            raise UsageError(f"a configuration is bytes, not {type(given).__name__}; encode it")
        try:
            return self._parser(bytes(config))
        except Exception as error:  # noqa: BLE001  # whatever a parser raises
            # Kept for long, so its traceback must not hold this frame.
            cause = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
            text = f"the configuration cannot be used: {type(cause).__name__}: {cause}"
        bad = BadConfig(text)
        bad.__cause__ = cause
        was_active = self._state.active
        self._put(self._state.refused(bad, self._clock.now_us()))
        if was_active and not self._state.active:
            self._interrupt()
        raise BadConfig(text) from cause

    def _keep_config(self, config: bytes, parsed: C) -> None:
        self._parsed = parsed
        self._put(self._state.configured(bytes(config), self._clock.now_us()))

    def _begin(self) -> None:
        if not self._state.loading:
            return
        self._interrupt()
        self._task = self._spawn(self._live(self._parsed))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = keep(work, name=self._name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _interrupt(self) -> None:
        if self._task is not None:
            asyncio.get_running_loop()  # refuses other threads, where cancel() would not be safe
            self._task.cancel()
            self._task = None

    def _put(self, state: State) -> None:
        old = self._state
        if state == old:
            return
        self._state = state
        self._feed.publish(state)
        for each in list(self._observers):
            each(old, state)

    # ---------------------------------------------------------------------------------------------- one configuration

    async def _live(self, config: Any) -> None:
        me = asyncio.current_task()
        failures = streak = 0
        try:
            async with self._turn:
                while True:
                    raised, applied = await self._hold(me, config, failures + 1)
                    self._only_if_newest(me)
                    if applied:
                        failures = streak = 0
                    failures += 1
                    error, next_ = _unwrap(raised)
                    streak = {Next.RESET_BACKOFF: 1, Next.RETRY_NOW: 0}.get(next_, streak + 1)
                    delay_us = self._delay_us(failures, streak, next_)
                    self._failed(failures, error, delay_us)
                    del raised, error
                    if delay_us is None:
                        return
                    await sleep_us(delay_us)
                    self._put(self._state.attempting())
        except asyncio.CancelledError:
            if self._task is me:  # the loop is shut down, or somebody cancels all tasks
                self._task = None
                self._put(self._state.stopped(self._clock.now_us()))
            raise

    async def _hold(self, me: object, config: Any, number: int) -> tuple[Exception, bool]:
        """Apply, and keep applied until that fails: the error, and whether it had been applied."""
        answer: tuple[Exception, bool] | None = None
        try:
            async with Scope(number) as scope:
                answer = await self._hold_in(scope, me, config)
        except Exception as closing:  # of the scope: nobody is there to get it
            report(f"the end of a configuration of {self._name} failed", closing)
            if answer is None:  # it was cancelled, which this error has hidden
                raise asyncio.CancelledError from closing
        try:
            assert answer is not None
            return answer
        finally:
            del answer  # its traceback may lead back here

    async def _hold_in(self, scope: Scope, me: object, config: Any) -> tuple[Exception, bool]:
        _, error = await attempt(self._apply, self._timeout_us, scope, config)
        if error is not None:
            try:
                return error, False
            finally:
                del error
        self._only_if_newest(me)
        throttle.recovered(self._log, self._name, scope.attempt - 1)
        self._put(self._state.applied(self._clock.now_us(), keep_error=self._keep_error))
        return await scope.broken(), True

    def _only_if_newest(self, me: object) -> None:
        """An apply that was told to end, and ended in another way, has no say."""
        if self._task is not me:
            raise asyncio.CancelledError

    def _delay_us(self, failures: int, streak: int, next_: Next) -> int | None:
        retry = self._retry
        if retry is None or next_ is Next.STOP_NOW or (retry.attempts is not None and failures >= retry.attempts):
            return None
        return 0 if next_ is Next.RETRY_NOW else retry.delay_us(streak, _rng)

    def _failed(self, failures: int, error: Exception, delay_us: int | None) -> None:
        now_us = self._clock.now_us()
        if delay_us is None:
            throttle.gave_up(self._log, self._name, failures, error)
            self._task = None
            self._put(self._state.failed(error, now_us))
        else:
            throttle.tries_again(self._log, self._name, failures, error, delay_us)
            self._put(self._state.retrying(error, now_us, delay_us))

    async def _tell_stopped(self, told: Callable[[], Awaitable[object]]) -> None:
        async with self._turn:  # after the scope has ended, before anything new is applied
            _, error = await attempt(told, 0)
        if error is not None:
            report(f"on_stop of {self._name} failed", error)


async def _in_thread_to_its_end(call: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
    await to_its_end(call(*args))


def _unwrap(raised: Exception) -> tuple[Exception, Next]:
    try:
        return unwrap(raised)
    except UsageError as wrong:  # a Next that is none: a mistake in the program, which no retry mends
        return wrong, Next.STOP_NOW
