"""Something that runs only while somebody listens: started by the first listener, stopped when the last one leaves."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Generator
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeAlias

from setpoint.clock import Duration, parse_duration, sleep_us
from setpoint.errors import UsageError
from setpoint.runner.calls import as_async, is_async, keep, report
from setpoint.runner.errors import StrayCancellation

__all__ = ["Attachment", "Intermittent", "Start", "Stop", "idle_keep_alive"]

Stop: TypeAlias = Callable[[], Awaitable[object]] | Callable[[], object]
"""Ends what was started."""

Start: TypeAlias = Callable[[], Awaitable[Stop | None]] | Callable[[], Stop | None]
"""Starts it; returns how to stop it, or None if there is nothing to stop."""


class _Phase(Enum):
    IDLE = 1
    STARTING = 2
    RUNNING = 3
    STOPPING = 4


class _Listener:
    __slots__ = ("context", "ready")

    def __init__(self) -> None:
        self.context = contextvars.copy_context()
        self.ready: asyncio.Future[None] | None = None  # while it waits


class Attachment:
    """One listener. Enter it with `async with`, or await it and `release` it later; releasing twice is nothing."""

    __slots__ = ("_enter", "_leave")

    def __init__(self, enter: Callable[[], Awaitable[None]], leave: Callable[[], Awaitable[None]]) -> None:
        self._enter, self._leave = enter, leave

    async def release(self) -> None:
        """Leave. The last one waits until it has stopped, and gets what that raises."""
        await self._leave()

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()


class Intermittent:
    """Runs `start` for the first listener, and what it returned after the last: `async with thing.attach(): …`.

    Listeners that come while it starts or stops wait for that, and may leave meanwhile. An error of `start` goes to the
    listener it was started for; the next one tries anew. When that listener is cancelled, so is a `start` that is a
    coroutine function; a plain function ends by itself, and is stopped if nobody listens by then.
    """

    def __init__(self, start: Start) -> None:
        self._start = as_async(start)
        self._interruptible = is_async(start)
        self._phase = _Phase.IDLE
        self._listeners: dict[_Listener, None] = {}  # in the order they came
        self._starting: tuple[_Listener, asyncio.Task[Stop | None]] | None = None
        self._stop: Callable[[], Awaitable[object]] | None = None
        self._stopped: asyncio.Future[None] | None = None
        self._changing: asyncio.Task[None] | None = None

    @property
    def listeners(self) -> int:
        """Who is attached, or waits to be."""
        return len(self._listeners)

    @property
    def running(self) -> bool:
        """Whether it has started, and not begun to stop."""
        return self._phase is _Phase.RUNNING

    def attach(self) -> Attachment:
        """A listener: `async with thing.attach():`, or `it = await thing.attach()` and later `await it.release()`."""
        listener = _Listener()
        return Attachment(partial(self._enter, listener), partial(self._leave, listener))

    async def _enter(self, listener: _Listener) -> None:
        if listener in self._listeners:
            raise UsageError("this attachment is in use; call attach() for another one")
        if self._starting is not None and self._starting[1] is asyncio.current_task():
            raise UsageError("start cannot attach to what it is starting")
        self._listeners[listener] = None
        if self._phase is _Phase.RUNNING:
            return
        listener.ready = asyncio.get_running_loop().create_future()
        self._change()
        try:
            await listener.ready
        except BaseException:
            self._listeners.pop(listener, None)
            if self._starting is not None and self._starting[0] is listener and self._interruptible:
                self._starting[1].cancel()
            self._change()
            raise
        finally:
            listener.ready = None  # may hold the error, whose traceback holds this frame

    async def _leave(self, listener: _Listener) -> None:
        if listener not in self._listeners:
            return
        del self._listeners[listener]
        if self._listeners or self._phase is not _Phase.RUNNING:
            return
        self._stopped = stopped = asyncio.get_running_loop().create_future()
        self._change()
        try:
            await stopped
        finally:
            del stopped

    def _change(self) -> None:
        if self._changing is None:
            self._changing = keep(self._settle(), name="start or stop of an intermittent")

    async def _settle(self) -> None:
        """Start and stop until it runs exactly if somebody listens. One at a time, so the two never overlap."""
        try:
            while bool(self._listeners) != (self._phase is _Phase.RUNNING):
                if self._phase is _Phase.RUNNING:
                    await self._run_stop()
                else:
                    await self._run_start(next(iter(self._listeners)))
        finally:
            self._changing = None
            if self._stopped is not None and not self._stopped.done():
                self._stopped.set_result(None)  # somebody came before it was stopped
            self._stopped = None

    async def _run_start(self, listener: _Listener) -> None:
        loop = asyncio.get_running_loop()
        starting = loop.create_task(self._start(), context=listener.context)
        self._phase, self._starting = _Phase.STARTING, (listener, starting)
        try:
            await asyncio.wait({starting})
        finally:
            self._phase, self._starting = _Phase.IDLE, None
            starting.cancel()  # nothing, unless this loop is being shut down
        try:
            stop = starting.result()
            self._stop = None if stop is None else as_async(stop)
        except asyncio.CancelledError:
            self._refuse(listener, StrayCancellation("start ended by CancelledError, though nobody cancelled it"))
        except Exception as error:  # noqa: BLE001  # it belongs to the listener
            self._refuse(listener, error)
        else:
            self._phase = _Phase.RUNNING
            for each in self._listeners:
                if each.ready is not None and not each.ready.done():
                    each.ready.set_result(None)
        finally:
            del starting

    def _refuse(self, listener: _Listener, error: Exception) -> None:
        ready = listener.ready
        if listener in self._listeners and ready is not None and not ready.done():
            del self._listeners[listener]
            ready.set_exception(error)
        elif not isinstance(error, StrayCancellation):
            report("an intermittent's start failed after its listener had left", error)

    async def _run_stop(self) -> None:
        self._phase = _Phase.STOPPING
        stop, self._stop = self._stop, None
        stopped, self._stopped = self._stopped, None
        try:
            if stop is not None:
                await stop()
        except Exception as error:  # noqa: BLE001  # it belongs to who left last
            if stopped is not None and not stopped.done():
                stopped.set_exception(error)
            else:
                report("an intermittent's stop failed after its last listener had left", error)
        finally:
            self._phase = _Phase.IDLE
            if stopped is not None and not stopped.done():
                stopped.set_result(None)
            del stopped


async def idle_keep_alive(thing: Intermittent, *, idle_for: Duration, run_for: Duration) -> None:
    """Keep something fresh that nobody listens to: attach for `run_for` at once, and again after each `idle_for`.

    Runs until it is cancelled. Errors of `start` are ignored: the next round tries again. Raises `UsageError` if both
    are 0, `BadTime` for what is no duration.
    """
    idle_us, run_us = parse_duration(idle_for), parse_duration(run_for)
    if not idle_us + run_us:
        raise UsageError("idle_for and run_for cannot both be 0: that would be a hot loop")
    while True:
        try:
            attachment = await thing.attach()
        except Exception:  # noqa: BLE001  # as documented
            await sleep_us(run_us)
        else:
            try:
                await sleep_us(run_us)
            finally:
                await attachment.release()
        await sleep_us(idle_us)
