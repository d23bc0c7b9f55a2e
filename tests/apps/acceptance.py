"""The application of the acceptance tests: healthy work, work that stays until it is let go, and every way to die.

What happens is appended to the file ACCEPTANCE_LOG, a line "word ref" each; the file ACCEPTANCE_RELEASE lets go what
stays.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setpoint import Backoff, Context, Fleet, Observed, Retry

_never = threading.Event()
_fds: dict[int, int] = {}
_RELEASE = Path(os.environ.get("ACCEPTANCE_RELEASE", "/nonexistent"))
_quickly = Retry(backoff=Backoff(initial="50ms", max="50ms", jitter=0))


def note(word: str, ref: str) -> None:
    """One line in one write: lines of several processes stay whole and in order."""
    pid = os.getpid()
    if pid not in _fds:
        _fds[pid] = os.open(os.environ["ACCEPTANCE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_fds[pid], f"{word} {ref}\n".encode())


def _released() -> bool:
    return _RELEASE.exists()


def seconds_of(id_: str) -> float:
    """`7-0.05` works for 50 ms."""
    return float(id_.rpartition("-")[2])


class _Acts(Observed[str]):
    """Is evaluated by one action, and then at rest."""

    acted = False

    def state(self) -> str:
        return "done" if self.acted else "todo"

    def goal_state(self) -> str:
        return "done"

    def actions(self, state: str, goal: str) -> list[Any]:
        return [self.act]

    def act(self, ctx: Context) -> Any:
        raise NotImplementedError


class _Works(_Acts):
    def act(self, ctx: Context) -> None:
        note("start", ctx.ref)
        _never.wait(seconds_of(self.id))
        note("end", ctx.ref)
        self.acted = True


class _Stays(_Acts):
    def act(self, ctx: Context) -> None:
        note("start", ctx.ref)
        while not _released():
            _never.wait(0.05)
        note("end", ctx.ref)
        self.acted = True


fleet = Fleet.from_env()


@fleet.entity("work", remember=True, retry=_quickly)
class Work(_Works):
    """Healthy: works for as long as its id says."""


@fleet.entity("stay", remember=True, retry=_quickly)
class Stay(_Stays):
    """Healthy: runs until it is let go."""


@fleet.entity("later", remember=True, retry=_quickly)
class Later(_Acts):
    """As `stay`, as a coroutine."""

    async def state(self) -> str:
        return "done" if self.acted else "todo"

    async def act(self, ctx: Context) -> None:
        note("start", ctx.ref)
        while not _released():
            await asyncio.sleep(0.05)
        note("end", ctx.ref)
        self.acted = True


@fleet.entity("timed")
class Timed(_Acts):
    """For measuring: notes how late it starts against the due time in its id, `<n>@<due>@<seconds>`."""

    async def act(self, ctx: Context) -> None:
        _, due, seconds = self.id.split("@")
        note("start", f"{seconds} {time.time() - float(due):.6f}")
        await asyncio.sleep(float(seconds))
        self.acted = True


@fleet.entity("timedplain")
class TimedPlain(_Acts):
    """The same as a plain function."""

    def act(self, ctx: Context) -> None:
        _, due, seconds = self.id.split("@")
        note("start", f"{seconds} {time.time() - float(due):.6f}")
        _never.wait(float(seconds))
        self.acted = True


# ------------------------------------------------------------------------------------------------------- ways to die


@fleet.entity("init", retry=_quickly)
class DiesInInit(_Acts):
    """Its child dies while the entity is made."""

    def __init__(self, id: str) -> None:  # noqa: A002 - as in the base
        note("dying", f"init/{id}")
        os._exit(3)


def _dies(name: str, how: Callable[[], object]) -> None:
    class Dies(_Acts):
        def act(self, ctx: Context) -> None:
            note("dying", ctx.ref)
            how()
            _never.wait(30)

    fleet.entity(name, retry=_quickly)(Dies)


def _from_a_stray_thread() -> None:
    threading.Timer(0.05, os.abort).start()


_dies("thread", _from_a_stray_thread)
_dies("sigkill", lambda: os.kill(os.getpid(), signal.SIGKILL))
_dies("exit", lambda: os._exit(0))
_dies("segfault", lambda: ctypes.string_at(0))


# ------------------------------------------------------------------------------------------------------- two versions

old = Fleet.from_env()
new = Fleet.from_env()


@old.entity("moved", lane="a", remember=True, retry=_quickly)
class MovedOld(_Works):
    """A kind in the lane where it was."""


@new.entity("moved", lane="b", remember=True, retry=_quickly)
class MovedNew(_Works):
    """The same kind in the lane where the next version puts it."""
