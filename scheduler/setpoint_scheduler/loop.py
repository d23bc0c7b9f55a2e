"""The one loop of the scheduler: it owns waiting, jitter, back-off, tick counts and stop; agents own the rest."""

from __future__ import annotations

import ctypes
import logging
import random
import select
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, cast

import redis
from redis.connection import Connection

from setpoint.engine.connect import connect
from setpoint.errors import RedisFull, RedisUnavailable

__all__ = ["Agent", "Loop", "Ticks", "Wake"]

LOG: Final = logging.getLogger("setpoint.scheduler")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_REMIND = 30.0
"""Seconds between two log lines about the same trouble."""
_PR_SET_TIMERSLACK = 29


class Agent(ABC):
    """One duty of the scheduler. `tick` does what is to be done now and says how many seconds to wait."""

    name: str
    wakes: bool = False
    """A wake-up cuts its wait short."""
    hold: float = 0.0
    """Seconds after a tick in which wake-ups are not listened to; set at each tick."""
    jitter: float = 0.1
    """The part of its waits that may be left out by chance, so that schedulers do not march in step."""

    @abstractmethod
    def tick(self) -> float:
        """Do what is to be done now; seconds until there may be more."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Let go of what it opened."""


class Wake:
    """A BLPOP left outstanding on a connection of its own: its socket becomes readable when there is something to do.

    The client waits in `select()` with its own timeout, because the server rounds that of a BLPOP up to 100 ms.
    """

    def __init__(self, url: str, key: str, *, role: str = "scheduler-wake") -> None:
        self._client = connect(url, role=role, timeout=None)
        self._key = key
        self._connection: Connection | None = None
        self._asked = False
        self._pause = _FIRST_PAUSE
        self.retry_at = 0.0
        """When the next try to connect is due, by the monotonic clock."""

    def arm(self) -> bool:
        """Have a BLPOP outstanding if that is possible now. True if it needed a new connection: something may have been
        missed, so that counts as a wake-up."""
        if self._asked or monotonic() < self.retry_at:
            return False
        fresh = self._connection is None
        try:
            if self._connection is None:
                self._connection = self._client.connection_pool.get_connection()
                self._keep_alive()
            self._connection.send_command("BLPOP", self._key, 0)
        except (redis.RedisError, OSError):
            self.reset()
            return False
        self._asked = True
        return fresh

    def socket(self) -> socket.socket | None:
        """What to select on, while a BLPOP is outstanding."""
        if self._connection is None or not self._asked:
            return None
        return _socket_of(self._connection)

    def take(self) -> bool:
        """Read the answer that select() announced; False if it was the end of the connection."""
        if self._connection is None:
            return False
        self._asked = False
        try:
            self._connection.read_response()
        except (redis.RedisError, OSError):
            self.reset()
            return False
        self._pause = _FIRST_PAUSE
        return True

    def reset(self) -> None:
        """Drop the connection; a later `arm` makes a new one."""
        if self._connection is not None:
            self._connection.disconnect()
            self._client.connection_pool.release(self._connection)
            self._connection = None
        self._asked = False
        self.retry_at = monotonic() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def close(self) -> None:
        """Close the connection for good."""
        self.reset()
        self._client.close()

    def _keep_alive(self) -> None:
        """Have the kernel notice a peer that is gone without a word; we would wait for ever."""
        found = None if self._connection is None else _socket_of(self._connection)
        if found is not None and found.family in {socket.AF_INET, socket.AF_INET6}:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _socket_of(connection: Connection) -> socket.socket | None:
    return cast("socket.socket | None", vars(connection)["_sock"])  # redis-py shows it nowhere


@dataclass(slots=True)
class Ticks:
    """What one agent has cost so far."""

    ticks: int = 0
    failures: int = 0
    seconds: float = 0.0
    longest: float = 0.0


@dataclass(slots=True)
class _Slot:
    agent: Agent
    at: float = 0.0
    listens_at: float = 0.0
    pause: float = _FIRST_PAUSE
    trouble: str = ""
    told_at: float = 0.0
    ticks: Ticks = field(default_factory=Ticks)


class Loop:
    """Runs agents on the calling thread until `stop`."""

    def __init__(self, agents: Sequence[Agent], wake: Wake) -> None:
        self._slots = [_Slot(agent) for agent in agents]
        self._wake = wake
        self._stopping = False
        self._away_since: float | None = None
        self._away_told = 0.0
        self._away_pause = _FIRST_PAUSE
        self._stop_in, self._stop_out = socket.socketpair()
        self._stop_in.setblocking(False)

    @property
    def ticks(self) -> dict[str, Ticks]:
        """Counts of each agent, by its name."""
        return {slot.agent.name: slot.ticks for slot in self._slots}

    def stop(self) -> None:
        """End `run` after the tick under way. For other threads and signal handlers."""
        self._stopping = True
        try:
            self._stop_in.send(b".")
        except OSError:  # full: it wakes up anyway; closed: it has ended
            return

    def run(self) -> None:
        """Tick and wait until told to stop."""
        _precise_timers()
        try:
            while not self._stopping:
                self._tick_those_due()
                self._wait()
        finally:
            self._wake.close()
            for slot in self._slots:
                slot.agent.close()
            self._stop_in.close()
            self._stop_out.close()

    def _tick_those_due(self) -> None:
        for slot in self._slots:
            if self._stopping:
                return
            if slot.at <= monotonic():
                self._tick(slot)

    def _wait(self) -> None:
        if self._stopping:
            return
        listens_at = max((slot.listens_at for slot in self._slots if slot.agent.wakes), default=0.0)
        until = min(slot.at for slot in self._slots)
        if listens_at <= monotonic():
            if self._wake.arm():
                self._woken()
                return
            if self._wake.socket() is None:
                until = min(until, self._wake.retry_at)
        else:
            until = min(until, listens_at)
        sockets = [self._stop_out]
        outstanding = self._wake.socket()
        if outstanding is not None:
            sockets.append(outstanding)
        # Not poll or epoll: they round to whole milliseconds.
        readable, _, _ = select.select(sockets, [], [], max(0.0, until - monotonic()))
        if outstanding in readable and self._wake.take():
            self._woken()

    def _woken(self) -> None:
        for slot in self._slots:
            if slot.agent.wakes and self._away_since is None:
                slot.at = min(slot.at, max(monotonic(), slot.listens_at))

    def _tick(self, slot: _Slot) -> None:
        began = monotonic()
        try:
            wait = slot.agent.tick()
        except RedisFull as error:  # it answers, and most scripts are allowed to run
            slot.ticks.failures += 1
            self._failed(slot, error)
            return
        except RedisUnavailable as error:
            slot.ticks.failures += 1
            self._away(error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the other agents go on and this one tries again
            slot.ticks.failures += 1
            self._failed(slot, error)
            return
        ended = monotonic()
        slot.ticks.ticks += 1
        slot.ticks.seconds += ended - began
        slot.ticks.longest = max(slot.ticks.longest, ended - began)
        slot.at = ended + max(0.0, wait) * (1 - random.random() * slot.agent.jitter)
        slot.listens_at = ended + slot.agent.hold
        slot.pause = _FIRST_PAUSE
        if slot.trouble:
            LOG.info("agent works again", extra={"agent": slot.agent.name})
            slot.trouble = ""
        if self._away_since is not None:
            LOG.warning("redis is back", extra={"after_s": round(ended - self._away_since, 1)})
            self._away_since, self._away_pause = None, _FIRST_PAUSE

    def _away(self, error: RedisUnavailable) -> None:
        """Nothing works without Redis: all wait, and one line says so."""
        now = monotonic()
        if self._away_since is None:
            self._away_since, self._away_told = now, now - _REMIND
        if now - self._away_told >= _REMIND:
            LOG.warning("redis is away", extra={"error": str(error), "for_s": round(now - self._away_since, 1)})
            self._away_told = now
        self._wake.reset()
        again = now + self._away_pause * random.uniform(0.5, 1)
        self._away_pause = min(self._away_pause * 2, _LONGEST_PAUSE)
        for each in self._slots:
            each.at = max(each.at, again)
            each.listens_at = max(each.listens_at, again)

    def _failed(self, slot: _Slot, error: Exception) -> None:
        now = monotonic()
        trouble = f"{type(error).__name__}: {error}"
        if trouble != slot.trouble or now - slot.told_at >= _REMIND:
            LOG.error("agent failed", exc_info=error, extra={"agent": slot.agent.name, "error": trouble})
            slot.trouble, slot.told_at = trouble, now
        slot.at = now + slot.pause * random.uniform(0.5, 1)
        slot.listens_at = slot.at
        slot.pause = min(slot.pause * 2, _REMIND)


def _precise_timers() -> None:
    """Linux adds up to 50 µs to every wait of a thread that does not ask for less."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1_000, 0, 0, 0)
