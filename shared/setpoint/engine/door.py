"""The core's only door to Redis: runs the calls of `scripts.py`, blocking (`Door`) or on an event loop (`AsyncDoor`).

A door is one connection and one caller: its calls carry the caller's name and a growing number, so a call whose reply
was lost is sent again and answered from the first time. Redis' own refusals become typed errors here.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import uuid
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

import redis
import redis.asyncio
import redis.exceptions

from setpoint.clock import sleep_us
from setpoint.engine.connect import connect, connect_async, mask
from setpoint.engine.keys import Keys
from setpoint.engine.scripts import Call, Scripts
from setpoint.errors import RedisFull, RedisUnavailable

__all__ = ["AsyncDoor", "Door", "Script", "load_script"]

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds a call is replayed before it gives up."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


@dataclass(frozen=True, slots=True)
class Script:
    """The text of one script as Redis gets it, and its SHA-1."""

    name: str
    text: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """Read `lua/<name>.lua` with the prelude before it."""
    return compose(name, _lua("prelude"), _lua(name))


def compose(name: str, prelude: str, body: str) -> Script:
    """Put a script together; `-- FLAGS:` in its header becomes the flags Redis knows."""
    flags = ""
    for line in body.splitlines():
        if line.startswith("-- FLAGS:"):
            flags = " flags=" + line.removeprefix("-- FLAGS:").strip()
    text = f"#!lua{flags}\n{prelude}\n{body}"
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _lua(name: str) -> str:
    return files("setpoint.engine").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


_AWAY = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, ConnectionError, TimeoutError)
_PASSING = (
    redis.exceptions.BusyLoadingError,
    redis.exceptions.NoScriptError,  # flushed again, between the load and the call
    redis.exceptions.TryAgainError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
)
_PASSING_WORDS = ("LOADING", "BUSY ", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "UNBLOCKED")
_SECRET = (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError)


class _Sent:
    """What both doors share: how a call becomes a command, and what an error means."""

    def __init__(self, url: str, namespace: str, patience: float) -> None:
        self.keys = Keys(namespace)
        self.scripts = Scripts(self.keys)
        self.shown_url = mask(url)
        self.patience = patience
        self.caller = uuid.uuid4().hex
        self._number = 0
        self._op = self.keys.op(self.caller)

    def command(self, call: Call[Any], script: Script) -> tuple[Any, ...]:
        meta = call.keys[0]
        if call.numbered:
            self._number += 1
            op, number = self._op, str(self._number)
        else:
            op, number = meta, ""
        return ("EVALSHA", script.sha, len(call.keys) + 1, meta, op, *call.keys[1:], number, *call.args)

    def attempts(self) -> Generator[float, BaseException, None]:
        """Yields how long to pause before the next try; told of each failure by `send`. Ends by raising."""
        give_up = monotonic() + self.patience
        pause = _FIRST_PAUSE
        error = yield 0.0
        while True:
            self.judge(error)
            if monotonic() + pause > give_up:
                raise RedisUnavailable(
                    f"{self.shown_url} does not answer ({type(error).__name__}: {error}). The call may or may not have "
                    "taken effect; is the server up and the URL right?"
                ) from error
            error = yield pause
            pause = min(pause * 2, _LONGEST_PAUSE)

    def judge(self, error: BaseException) -> None:
        """Return if trying again can help; else raise what the error means."""
        text = str(error)
        if isinstance(error, _SECRET):
            raise RedisUnavailable(f"{self.shown_url} refuses us: {text}. Check user, password and ACL.") from error
        if isinstance(error, _AWAY + _PASSING):
            return
        if isinstance(error, redis.exceptions.ResponseError):
            if isinstance(error, redis.exceptions.OutOfMemoryError) or "OOM" in text:
                raise RedisFull(
                    f"{self.shown_url} is out of memory and refused the call; nothing was written. "
                    "Free memory or raise maxmemory."
                ) from error
            if text.startswith(_PASSING_WORDS):
                return
            if text.startswith(("NOREPLICAS", "MISCONF")):
                raise RedisUnavailable(f"{self.shown_url} refuses writes: {text}") from error
        raise error


class Door(_Sent):
    """A blocking door. Threads may share one; their calls go one by one."""

    def __init__(
        self, url: str, namespace: str, *, role: str, patience: float = PATIENCE, timeout: float = 5.0
    ) -> None:
        super().__init__(url, namespace, patience)
        self._redis: redis.Redis = connect(url, role=role, timeout=timeout)
        self._execute: Callable[..., Any] = self._redis.execute_command
        self._lock = threading.Lock()
        self._interrupt = threading.Event()

    def run(self, call: Call[T]) -> T:
        """Run a script.

        Raises `RedisUnavailable` if Redis did not answer for `patience` seconds, `RedisFull` if it refused for memory.
        """
        script = load_script(call.script)
        with self._lock:
            command = self.command(call, script)
            return call.parse(self._send(command, script))

    def _send(self, command: tuple[Any, ...], script: Script) -> Any:
        for failed in self._tries():
            try:
                try:
                    return self._execute(*command)
                except redis.exceptions.NoScriptError:
                    self._execute("SCRIPT LOAD", script.text)
                    return self._execute(*command)
            except (redis.exceptions.RedisError, OSError) as error:
                failed.append(error)
        raise AssertionError("unreachable")  # attempts() ends by raising

    def read(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run commands that may be repeated (reads, mostly) in one round trip."""
        with self._lock:
            for failed in self._tries():
                try:
                    pipeline = self._redis.pipeline(transaction=False)
                    for command in commands:
                        pipeline.execute_command(*command)
                    return pipeline.execute()
                except (redis.exceptions.RedisError, OSError) as error:
                    failed.append(error)
        raise AssertionError("unreachable")

    def _tries(self) -> Iterator[list[BaseException]]:
        attempts = self.attempts()
        pause = next(attempts)
        while True:
            if pause:
                self._interrupt.wait(pause)
            failed: list[BaseException] = []
            yield failed
            pause = attempts.send(failed[0])

    def now_us(self) -> int:
        """Redis' clock, in microseconds, as the scripts see it."""
        time, skew = self.read(("TIME",), ("HGET", self.keys.meta, "skew"))
        return _clock(time, skew)

    def close(self) -> None:
        """Close the connection; the door may be used again and opens a new one."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncDoor(_Sent):
    """The same on an event loop; tasks may share one, their calls go one by one."""

    def __init__(self, url: str, namespace: str, *, role: str, patience: float = PATIENCE) -> None:
        super().__init__(url, namespace, patience)
        self._redis: redis.asyncio.Redis = connect_async(url, role=role)
        self._execute: Callable[..., Awaitable[Any]] = self._redis.execute_command
        self._lock = asyncio.Lock()

    async def run(self, call: Call[T]) -> T:
        """As `Door.run`."""
        script = load_script(call.script)
        async with self._lock:
            command = self.command(call, script)
            attempts = self.attempts()
            pause = next(attempts)
            while True:
                await _pause(pause)
                try:
                    try:
                        reply = await self._execute(*command)
                    except redis.exceptions.NoScriptError:
                        await self._execute("SCRIPT LOAD", script.text)
                        reply = await self._execute(*command)
                    return call.parse(reply)
                except (redis.exceptions.RedisError, OSError) as error:
                    pause = attempts.send(error)

    async def read(self, *commands: tuple[Any, ...]) -> list[Any]:
        """As `Door.read`."""
        async with self._lock:
            attempts = self.attempts()
            pause = next(attempts)
            while True:
                await _pause(pause)
                try:
                    pipeline = self._redis.pipeline(transaction=False)
                    for command in commands:
                        pipeline.execute_command(*command)
                    return await pipeline.execute()
                except (redis.exceptions.RedisError, OSError) as error:
                    pause = attempts.send(error)

    async def now_us(self) -> int:
        """As `Door.now_us`."""
        time, skew = await self.read(("TIME",), ("HGET", self.keys.meta, "skew"))
        return _clock(time, skew)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _pause(seconds: float) -> None:
    if seconds:
        await sleep_us(round(seconds * 1_000_000))


def _clock(time: tuple[Any, Any], skew: bytes | None) -> int:
    return int(time[0]) * 1_000_000 + int(time[1]) + int(skew or 0)


@contextmanager
def skewed(door: Door, by_us: int) -> Generator[None]:
    """Shift the clock the scripts see, for tests of clock steps."""
    door.read(("HSET", door.keys.meta, "skew", by_us))
    try:
        yield
    finally:
        door.read(("HDEL", door.keys.meta, "skew"))
