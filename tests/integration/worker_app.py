"""The application of the worker tests: kinds that are quick, slow, broken, or deadly. What ran is written to files."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

from setpoint.backoff import Backoff
from setpoint.registry import Managed, Observed, Registry, Retry, action

LOG = Path(os.environ.get("WORKER_APP_LOG", "/dev/null"))


def note(text: str) -> None:
    """One line, in one write."""
    with LOG.open("a") as file:
        file.write(f"{os.getpid()} {text}\n")


class App:
    registry = Registry()


fleet = App()
quickly = Retry(backoff=Backoff(initial="50ms", max="50ms", jitter=0))


class Base(Observed[str]):
    """Never there until its action has run in this evaluation."""

    def state(self) -> str:
        return "done" if getattr(self, "acted", False) else "todo"

    def goal_state(self) -> str:
        return "done"

    def actions(self, state: str, goal: str) -> list[Any]:
        return [] if state == goal else [self.act]

    def act(self, ctx: Any) -> None:
        self.acted = True


class Noop(Observed[str]):
    def state(self) -> str:
        return "up"

    def goal_state(self) -> str:
        return "up"

    def actions(self, state: str, goal: str) -> list[Any]:
        return []


class Noted(Base):
    def act(self, ctx: Any) -> None:
        note(f"ran {self.id}")
        self.acted = True


class Failing(Base):
    def act(self, ctx: Any) -> None:
        raise ValueError("no such host")


class Slow(Base):
    """Its id says for how long it runs, in seconds, after a dash."""

    def act(self, ctx: Any) -> None:
        note(f"start {self.id}")
        threading.Event().wait(float(self.id.rpartition("-")[2]))
        note(f"end {self.id}")
        self.acted = True


class Deadly(Base):
    def act(self, ctx: Any) -> None:
        note(f"dying {self.id}")
        os.kill(os.getpid(), signal.SIGKILL)


class Stuck(Base):
    """Holds the GIL in C, so that nothing inside its process can end it."""

    def act(self, ctx: Any) -> None:
        note(f"stuck {self.id}")
        ctypes.PyDLL(None).sleep(60)


class Echo(Base):
    def act(self, ctx: Any) -> None:
        ctx.enqueue(f"noted/{self.id}")
        ctx.enqueue(f"echo/{self.id}", after="1h")
        self.acted = True


class Later(Base):
    """Asks for itself at an instant, and stays for half a second."""

    def act(self, ctx: Any) -> None:
        ctx.enqueue(f"later/{self.id}", at=ctx.due + timedelta(hours=1))
        note(f"asked {self.id}")
        threading.Event().wait(0.5)
        self.acted = True


class Stray(Base):
    """Dies the first time; the second time, alone, it leaves a thread that kills the process a little later."""

    def act(self, ctx: Any) -> None:
        note(f"stray {self.id}")
        if LOG.read_text().count(f"stray {self.id}\n") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
        self.acted = True


class Host(Managed[str]):
    @action(when="up", goal="down")
    def stop(self) -> str:
        return "down"


fleet.registry.declare(Noop, "noop")
fleet.registry.declare(Noted, "noted", remember=True)
fleet.registry.declare(Failing, "failing", retry=quickly)
fleet.registry.declare(Slow, "slow", lane="slow", remember=True)
fleet.registry.declare(Deadly, "deadly", retry=quickly)
fleet.registry.declare(Stuck, "stuck", timeout="0.5s", retry=quickly)
fleet.registry.declare(Echo, "echo")
fleet.registry.declare(Later, "later")
fleet.registry.declare(Stray, "stray", remember=True)
fleet.registry.declare(Host, "host", initial="up")
