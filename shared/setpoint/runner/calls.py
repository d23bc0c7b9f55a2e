"""Calls a coroutine function on the loop and a plain function in a thread, so that both may be given anywhere.

A plain function cannot be interrupted. Whoever waits for it may leave (cancelled, timed out); it then goes on in its
thread, its result is dropped, and its place among `THREADS` is free when it ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from setpoint.errors import UsageError

__all__ = ["THREADS", "as_async", "is_async", "keep", "report", "to_its_end"]

P = ParamSpec("P")
T = TypeVar("T")

THREADS: Final = 40
"""Plain functions that run at once, per event loop; more wait for their turn."""

_alive: set[asyncio.Task[Any]] = set()
_places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


def as_async(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The function itself if it is a coroutine function, else one that runs it in a thread.

    Raises `UsageError` for what cannot be called, or would give a generator.
    """
    given: Any = function
    if inspect.iscoroutine(given):
        given.close()  # or Python would warn that it was never awaited
        raise UsageError(f"give the function itself, not its call: {given.__qualname__}, without ()")
    if not callable(given):
        raise UsageError(f"a function is wanted, not {given!r}")
    if inspect.isasyncgenfunction(given) or inspect.isgeneratorfunction(given):
        raise UsageError(f"{given!r} is a generator; a function that returns is wanted")
    return function if is_async(function) else functools.partial(_in_thread, function)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: also for a partial of one, and an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


async def to_its_end(call: Coroutine[Any, Any, T]) -> T:
    """Await a call; when cancelled, wait until it really has ended, its thread too. A second cancellation leaves it."""
    task = keep(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_retrieve)
        await asyncio.wait({task})
        raise
    finally:
        del task  # holds the exception whose traceback holds this frame


def keep(coroutine: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
    """Start a task that lives until it ends, even if nobody keeps hold of it."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _alive.add(task)
    task.add_done_callback(_alive.discard)
    return task


def report(message: str, error: BaseException) -> None:
    """Tell the loop's exception handler of an error that no caller is there to get."""
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


# ------------------------------------------------------------------------------------------------------------- threads


class _ThreadPerCall(Executor):
    """Starts one thread a call: nothing idles between calls, and none keeps the process alive."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        name = getattr(args[0] if args else fn, "__qualname__", "call")
        thread = threading.Thread(
            target=_fulfil, args=(future, functools.partial(fn, *args, **kwargs)), name=f"runner {name}", daemon=True
        )
        thread.start()
        return future


def _fulfil(future: Future[T], call: Callable[[], T]) -> None:
    try:
        result = call()
    except StopIteration as error:  # a future cannot carry it
        wrapped = RuntimeError("a function raised StopIteration")
        wrapped.__cause__ = error
        future.set_exception(wrapped)
        del wrapped
    except BaseException as error:  # noqa: BLE001  # all of it belongs to the caller
        future.set_exception(error)
    else:
        future.set_result(result)
    del future  # holds the exception whose traceback holds this frame


_executor: Final = _ThreadPerCall()


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    loop = asyncio.get_running_loop()
    places = _places.get(loop)
    if places is None:
        places = _places[loop] = asyncio.Semaphore(THREADS)
    await places.acquire()
    try:
        future = loop.run_in_executor(
            _executor, _leaving, function, args, contextvars.copy_context(), loop, places.release
        )
    except BaseException:  # no thread could be started
        places.release()
        raise
    try:
        result = await future
    finally:
        del future  # as in `to_its_end`
    return await result if inspect.isawaitable(result) else result


def _leaving(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    context: contextvars.Context,
    loop: asyncio.AbstractEventLoop,
    leave: Callable[[], None],
) -> Any:
    try:
        return context.run(function, *args)
    finally:
        with suppress(RuntimeError):  # the loop is closed: nobody wants the place
            loop.call_soon_threadsafe(leave)
