"""The sample application: a fleet of web sites, each a real HTTP server on this machine.

    setpoint set site/3 drained --wait

setpoint keeps the goal of each site. The state is looked up in the world each time: is there a process, does it answer,
has it visitors? So a server that somebody kills is noticed, and started again, because its goal still says so.

`WEBFLEET_HOME` names the folder in which the servers keep what they need. Any number of workers may share it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Literal

from setpoint import ActionLike, Again, Backoff, Context, Fleet, Observed, Permanent, Retry

HOME = Path(os.environ.get("WEBFLEET_HOME", "."))
SERVER = Path(__file__).with_name("server.py")
LOOK_EVERY = 0.05  # seconds
PATIENCE = 2.0  # seconds in one evaluation; longer waits are `Again`, so that they hold no slot

SiteState = Literal["stopped", "starting", "serving", "draining", "drained", "broken"]

fleet = Fleet.from_env()


@fleet.entity("site", retry=Retry(backoff=Backoff("200ms", max="10s")), resync="5s", timeout="30s", settable=True)
class Site(Observed[SiteState]):
    """One web site. Goals that make sense: serving, drained, stopped."""

    # ----------------------------------------------------------------------------------------- what is, and what to do

    def state(self) -> SiteState:
        """Look: the lock tells whether the process lives, /healthz how it is."""
        if not self.lives():
            return "broken" if self.facts() else "stopped"
        health = self.ask("GET", "/healthz")
        if health is None:
            return "starting"
        if not health["draining"]:
            return "serving"
        return "draining" if health["visitors"] else "drained"

    def actions(self, state: SiteState, goal: SiteState) -> list[ActionLike]:
        """The way from here to there."""
        if state == goal:
            return []
        up: list[ActionLike] = {
            "stopped": [self.start, self.await_healthy],
            "broken": [self.stop, self.start, self.await_healthy],
            "starting": [self.await_healthy],
        }.get(state, [])
        match goal:
            case "serving":
                return [*up, self.undrain] if state in {"draining", "drained"} else up
            case "drained":
                return [*up, self.drain]
            case "stopped":
                return [self.drain, self.stop] if state in {"serving", "draining"} else [self.stop]
        raise Permanent(f"a site can be made serving, drained or stopped, not {goal}")

    # ------------------------------------------------------------------------------------------------------- actions
    # Each may be run twice, or by two workers at once, and does no harm.

    def start(self, ctx: Context) -> None:
        """Start the server; it goes into the background."""
        self.note(ctx, "start")
        subprocess.run([sys.executable, "-I", str(SERVER), str(HOME.absolute()), self.id], check=True, timeout=20)

    def await_healthy(self, ctx: Context) -> Again | None:
        """Wait until it answers."""
        answers = self.look_until(ctx, lambda: self.ask("GET", "/healthz") is not None)
        return None if answers else Again("200ms")

    def drain(self, ctx: Context) -> Again | None:
        """Take no new visitors, and wait for those it has."""
        self.note(ctx, "drain")
        self.ask("POST", "/drain")
        return None if self.look_until(ctx, lambda: self.visitors(ctx) == 0) else Again("200ms")

    def undrain(self) -> None:
        """Take visitors again."""
        self.ask("POST", "/undrain")

    def stop(self, ctx: Context) -> None:
        """End the process, if there is one."""
        self.note(ctx, "stop")
        facts = self.facts()
        if self.lives() and facts:
            os.kill(facts["pid"], signal.SIGTERM)
            if not self.look_until(ctx, lambda: not self.lives()):
                os.kill(facts["pid"], signal.SIGKILL)
                self.look_until(ctx, lambda: not self.lives())
        self.path("json").unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------------- helpers

    def path(self, suffix: str) -> Path:
        """A file of this site."""
        if not self.id.replace("-", "").isalnum():
            raise Permanent(f"{self.id!r} cannot name a site: letters, digits and '-'")
        return HOME / f"{self.id}.{suffix}"

    def lives(self) -> bool:
        """Whether its process is there: it holds a lock as long as it lives."""
        try:
            with self.path("lock").open("rb") as lock:
                fcntl.flock(lock.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def facts(self) -> dict[str, Any] | None:
        """The process and port that the server wrote down; None if it was stopped properly, or never started."""
        try:
            return dict(json.loads(self.path("json").read_text()))
        except (FileNotFoundError, ValueError):
            return None

    def ask(self, method: str, path: str) -> dict[str, Any] | None:
        """Ask the server; None if it does not answer."""
        facts = self.facts()
        if facts is None:
            return None
        connection = HTTPConnection("127.0.0.1", facts["port"], timeout=2)
        try:
            connection.request(method, path, headers={"Connection": "close"})
            answer = json.loads(connection.getresponse().read())
        except (OSError, HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return dict(answer) if answer.get("name") == self.id else None  # the port may be somebody else's by now

    def visitors(self, ctx: Context) -> int:
        """How many connections are open; none if the server is gone."""
        left = int((self.ask("GET", "/healthz") or {"visitors": 0})["visitors"])
        if left:
            ctx.progress(0, left, f"{left} open connections")
        return left

    def look_until(self, ctx: Context, there: Any) -> bool:
        """Look again and again for a while; False if it did not come."""
        pause = threading.Event()
        for _ in range(int(PATIENCE / LOOK_EVERY)):
            if there():
                return True
            if ctx.cancelled or ctx.lost:
                return False
            pause.wait(LOOK_EVERY)
        return False

    def note(self, ctx: Context, what: str) -> None:
        """Write down who did what: one line, in one write, so that lines of several workers do not mix."""
        line = {"site": self.id, "what": what, "attempt": ctx.attempt, "fence": ctx.fence, "worker": os.getppid()}
        journal = os.open(HOME / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(journal, json.dumps(line).encode() + b"\n")
        finally:
            os.close(journal)
