"""Whole fleets on one machine: the demo, one's own application in development, and the exporter of metrics."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import monotonic
from typing import Any, Final

import click

from setpoint.cli import INTERRUPTED, USAGE, Problem, Shell
from setpoint.supervisor import Program, Signals, Supervisor, catch_signals

__all__ = ["demo", "dev", "exporter"]

#: Seconds in which the whole of `demo --check` must be through.
_CHECK_LIMIT: Final = 45.0
_LEASE: Final = 3.0
_POLL: Final = 0.05
_SETPOINT: Final = (sys.executable, "-m", "setpoint.cli")
_SCHEDULER, _WORKER = 0, 1  # stages
_KEPT_LINES: Final = 60


# --------------------------------------------------------------------------------------------------------------- demo


@click.command("demo")
@click.option("--check", is_flag=True, help="Try everything by itself and end; exit code 1 if something does not work.")
@click.option("--sites", type=click.IntRange(6, 200), default=12, show_default=True, help="How many web sites.")
@click.option("--workers", type=click.IntRange(2, 16), default=2, show_default=True, help="How many workers.")
@click.pass_obj
def demo(shell: Shell, check: bool, sites: int, workers: int) -> int:
    """A whole fleet on this machine: Valkey, a scheduler, workers, and web sites that are kept as they should be.

    Everything is in a temporary folder and ends with Ctrl+C.

    \b
    setpoint demo --check
    """
    application = _sample()
    with catch_signals() as signals:
        fleet = _Demo(application, sites, workers, signals, verbose=shell.verbose)
        try:
            with fleet.running():
                fleet.converge()
                if check:
                    _Check(fleet).run()
                else:
                    fleet.invite()
                    fleet.follow()
        except _Interrupted:
            return INTERRUPTED if check else 0
        except Problem:
            fleet.show_output()
            raise
    return 0


class _Interrupted(Exception):
    """Somebody pressed Ctrl+C."""


def _sample() -> Path:
    """The folder of the sample application: in an installed setpoint, or in the checkout it is developed in."""
    package = Path(__file__).parent.parent
    for folder in (package / "_demo", package.parent.parent / "docs" / "examples" / "webfleet"):
        if (folder / "fleet.py").is_file():
            return folder
    raise Problem(
        "the sample application is not installed",
        why=f"neither {package / '_demo'} nor a checkout of setpoint is here",
        todo="run it from a checkout of setpoint with `make demo`",
    )


class _Demo:
    """The running demo, and a look at its sites from outside: as a visitor sees them, not as Redis has it."""

    def __init__(self, application: Path, sites: int, workers: int, signals: Signals, *, verbose: bool) -> None:
        self.application = application
        self.names = [str(number) for number in range(1, sites + 1)]
        self.workers = workers
        self.signals = signals
        self.verbose = verbose
        self.began = monotonic()
        self.home = Path()
        self.env: dict[str, str] = {}
        self.output: deque[str] = deque(maxlen=_KEPT_LINES)
        self.supervisor: Supervisor | None = None

    @contextmanager
    def running(self) -> Generator[None]:
        """Everything is started; at the end everything has stopped, and no file is left."""
        from setpoint import embedded

        with ExitStack() as undo:
            base = Path(tempfile.mkdtemp(prefix="setpoint-demo-"))
            undo.callback(shutil.rmtree, base, ignore_errors=True)
            self.home = base / "sites"
            self.home.mkdir()
            server = undo.enter_context(embedded.start(base / "valkey"))
            self.env = _environment(
                SETPOINT_REDIS_URL=server.url,
                SETPOINT_NAMESPACE="setpoint",
                SETPOINT_LEASE=f"{_LEASE:g}s",
                SETPOINT_GRACE="5s",
                SETPOINT_LOG_FORMAT="text",
                WEBFLEET_HOME=str(self.home),
                PYTHONPATH=str(self.application),
                PYTHONDONTWRITEBYTECODE="1",
            )
            programs = [Program("scheduler", (*_SETPOINT, "scheduler"), _SCHEDULER, self.env, 10)]
            programs += [
                Program(f"worker-{number}", (*_SETPOINT, "worker", "--app", "fleet:fleet"), _WORKER, self.env, 10)
                for number in range(1, self.workers + 1)
            ]
            undo.callback(_end_servers, self.home)
            self.supervisor = Supervisor(programs, self.note)
            self.signals.on_second(self.supervisor.hurry)
            undo.callback(_quietly, "stopping…")
            undo.enter_context(self.supervisor)
            yield

    def note(self, name: str, line: str) -> None:
        """Keep what the processes say, for when something goes wrong."""
        self.output.append(f"{name:<10} {line}")
        if self.verbose:
            _quietly(f"{name:<10} {line}")

    def show_output(self) -> None:
        """Show the last lines that the processes said."""
        for line in self.output:
            click.echo(f"  | {line}", err=True)

    # ---------------------------------------------------------------------------------------------------- from outside

    def look(self, name: str) -> str:
        """How a site is, for a visitor."""
        facts = self.facts(name)
        if facts is None:
            return "stopped"
        health = _ask(facts["port"])
        if health is None or health.get("name") != name:
            return "broken"
        if not health["draining"]:
            return "serving"
        return "draining" if health["visitors"] else "drained"

    def facts(self, name: str) -> dict[str, Any] | None:
        """The process and port of a site."""
        try:
            return dict(json.loads((self.home / f"{name}.json").read_text()))
        except (OSError, ValueError):
            return None

    def journal(self, name: str) -> list[dict[str, Any]]:
        """What workers did to a site, oldest first."""
        try:
            lines = [json.loads(line) for line in (self.home / "journal").read_text().splitlines()]
        except OSError:
            return []
        return [line for line in lines if line["site"] == name]

    def visit(self, name: str) -> socket.socket:
        """Come as a visitor and stay."""
        facts = self.facts(name) or {"port": 0}
        visitor = socket.create_connection(("127.0.0.1", facts["port"]), timeout=5)
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        visitor.recv(65536)
        return visitor

    def wait_until(self, true: Callable[[], Any], seconds: float, what: str) -> Any:
        """Wait for something to be true; `Problem` if it does not come true in time."""
        deadline = monotonic() + seconds
        while True:
            if self.supervisor is not None and self.supervisor.failed:
                raise Problem(f"{self.supervisor.failed} cannot run", why="its last words are above", code=USAGE)
            said = true()
            if said:
                return said
            if monotonic() > deadline:
                raise Problem(f"waited {seconds:g} s for {what}", why=self.summary())
            if self.signals.wait(_POLL):
                raise _Interrupted

    def summary(self) -> str:
        """How many sites are in which state."""
        counts = Counter(self.look(name) for name in self.names)
        return ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), key=lambda item: -item[1]))

    # ------------------------------------------------------------------------------------------------------- its acts

    def converge(self) -> None:
        """Say that all sites should serve, and wait until they do."""
        click.echo(
            f"Valkey, 1 scheduler and {self.workers} workers are starting; {len(self.names)} sites should serve."
        )
        from setpoint.errors import UnknownKind
        from setpoint.fleet import Fleet
        from setpoint.settings import Settings

        with closing(Fleet(settings=Settings.from_env(self.env))) as fleet:

            def say() -> bool:
                try:
                    for name in self.names:
                        fleet.set(f"site/{name}", "serving")
                except UnknownKind:  # until the first worker has told its kinds
                    return False
                return True

            self.wait_until(say, 20, "a worker that knows the kind `site`")
        said = ""

        def all_serve() -> bool:
            nonlocal said
            summary = self.summary()
            if summary != said:
                said = summary
                click.echo(f"{monotonic() - self.began:6.1f} s  {summary}")
            return summary == f"{len(self.names)} serving"

        self.wait_until(all_serve, 20, "all sites to serve")

    def invite(self) -> None:
        """Tell what to try."""
        port = (self.facts("3") or {"port": "?"})["port"]
        pid = (self.facts("4") or {"pid": "?"})["pid"]
        worker = self.supervisor.pid("worker-1") if self.supervisor else None
        command = "setpoint" if shutil.which("setpoint") else str(Path(sys.executable).with_name("setpoint"))
        hints = (
            (f"{command} set site/3 drained --wait", "say what should be, and wait until it is"),
            (f"{command} explain site/3", "why it is as it is, and what comes next"),
            (f"{command} ls", "all of them"),
            (f"kill -9 {pid}", "the server of site/4: it is started again within seconds"),
            (f"kill -9 {worker or '?'}", "a worker: what it was doing is taken over"),
        )
        width = max(len(typed) for typed, _ in hints)
        click.echo(f"\nAll sites serve; site/3 is http://127.0.0.1:{port}/. In another terminal:\n")
        click.echo(f"  export SETPOINT_REDIS_URL='{self.env['SETPOINT_REDIS_URL']}'\n")
        for typed, meaning in hints:
            click.echo(f"  {typed:<{width}}   {meaning}")
        click.echo(f"\nCtrl+C ends everything and removes {self.home.parent}.\n")

    def follow(self) -> None:
        """Print every change until Ctrl+C."""
        before = {name: self.look(name) for name in self.names}
        while not self.signals.wait(0.5):
            for name in self.names:
                now = self.look(name)
                if now != before[name]:
                    click.echo(f"{monotonic() - self.began:6.1f} s  site/{name}: {before[name]} → {now}")
                    before[name] = now


class _Check:
    """Everything the demo invites to, done and asserted."""

    def __init__(self, demo: _Demo) -> None:
        self.demo = demo

    def run(self) -> None:
        """All of it; `Problem` for the first thing that does not work."""
        for what, step in (
            ("site/3 is drained, once its visitor has left", self.drain),
            ("site/3 explains itself", self.explain),
            ("the server of site/4 is killed, and comes back", self.kill_server),
            ("a worker is killed while it drains site/5, and another takes over", self.kill_worker),
            ("site/6 is stopped", self.halt),
        ):
            began = monotonic()
            step()
            click.echo(f"{monotonic() - self.demo.began:6.1f} s  ok: {what} ({monotonic() - began:.1f} s)")
            if monotonic() - self.demo.began > _CHECK_LIMIT:
                raise Problem("the check takes too long", why=f"more than {_CHECK_LIMIT:g} s")
        click.echo(f"{monotonic() - self.demo.began:6.1f} s  everything works")

    def drain(self) -> None:
        """Not before the visitor has left."""
        visitor = self.demo.visit("3")
        with closing(visitor), self._started("set", "site/3", "drained", "--wait", "15s") as command:
            self._see("3", "draining", 10)
            if command.poll() is not None:
                raise Problem("`set --wait` returned while a visitor was there", why=_said(command))
            visitor.close()
            self._ended(command)
        self._see("3", "drained", 1)

    def explain(self) -> None:
        """In words."""
        self._do("explain", "site/3")

    def kill_server(self) -> None:
        """Noticed when the site is looked at again."""
        demo = self.demo
        before = (demo.facts("4") or {"pid": 0})["pid"]
        os.kill(before, signal.SIGKILL)
        demo.wait_until(
            lambda: (demo.facts("4") or {"pid": before})["pid"] != before and demo.look("4") == "serving",
            12,
            "the killed server of site/4 to be started again",
        )

    def kill_worker(self) -> None:
        """Its lease ends, and the other worker begins."""
        demo = self.demo
        with closing(demo.visit("5")):
            self._do("set", "site/5", "drained")
            drains = demo.wait_until(lambda: _drains(demo.journal("5")), 10, "site/5 to be drained")
            fence = drains[-1]["fence"]
            os.kill(drains[-1]["worker"], signal.SIGKILL)
            demo.wait_until(
                lambda: _drains(demo.journal("5"))[-1]["fence"] > fence,
                _LEASE + 3,
                "another worker to take over site/5",
            )
        self._see("5", "drained", 10)

    def halt(self) -> None:
        """Its process is gone."""
        self._do("set", "site/6", "stopped", "--wait", "10s")
        self._see("6", "stopped", 1)

    def _see(self, name: str, state: str, seconds: float) -> None:
        self.demo.wait_until(lambda: self.demo.look(name) == state, seconds, f"site/{name} to be {state}")

    def _do(self, *args: str) -> None:
        """A command of setpoint, as people type it; it must end well."""
        with self._started(*args) as command:
            self._ended(command)

    @contextmanager
    def _started(self, *args: str) -> Generator[subprocess.Popen[str]]:
        command = subprocess.Popen(
            [*_SETPOINT, *args],
            env=self.demo.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield command
        finally:
            command.kill()
            command.communicate()

    def _ended(self, command: subprocess.Popen[str]) -> None:
        words = " ".join(["setpoint", *(str(word) for word in _words(command)[len(_SETPOINT) :])])
        self.demo.wait_until(lambda: command.poll() is not None, 20, f"`{words}` to end")
        if command.returncode != 0:
            raise Problem(f"`{words}` ended with status {command.returncode}", why=_said(command))


def _words(command: subprocess.Popen[str]) -> list[str]:
    return [str(word) for word in command.args] if isinstance(command.args, list) else []


def _said(command: subprocess.Popen[str]) -> str:
    return command.communicate()[0]


def _drains(journal: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in journal if line["what"] == "drain"]


def _ask(port: int) -> dict[str, Any] | None:
    connection = HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/healthz", headers={"Connection": "close"})
        return dict(json.loads(connection.getresponse().read()))
    except (OSError, HTTPException, ValueError, TypeError):
        return None
    finally:
        connection.close()


def _end_servers(home: Path) -> None:
    """End every server of the demo: they belong to nobody, so nobody else does."""
    deadline = monotonic() + 10
    pause = threading.Event()
    while monotonic() < deadline:
        holders = [_holder(lock) for lock in home.glob("*.lock")]
        if all(holder is None for holder in holders):
            return
        for holder in holders:
            if holder:
                with suppress(ProcessLookupError):
                    os.kill(holder, signal.SIGKILL)
        pause.wait(_POLL)


def _holder(lock: Path) -> int | None:
    """The process that holds a lock: None for nobody, 0 for one that has not said its name yet."""
    with lock.open("rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read().strip()
            return int(text) if text.isdigit() else 0
    return None


def _quietly(text: str) -> None:
    """Say something, even where nobody listens any more."""
    with suppress(OSError, ValueError):
        click.echo(text)


def _environment(**values: str) -> dict[str, str]:
    """Ours, without what would lead the processes elsewhere."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SETPOINT_") and name not in {"REDIS_URL", "PYTHONPATH", "PYTHONSTARTUP"}
    }
    path = os.pathsep.join(filter(None, [values.get("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]))
    return kept | values | ({"PYTHONPATH": path} if path else {})


# ---------------------------------------------------------------------------------------------------------------- dev


@click.command("dev")
@click.argument("app", metavar="MODULE:FLEET")
@click.option("-n", "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="How many workers.")
@click.option("--reload/--no-reload", default=None, help="Start the workers anew when a file changes.  [if possible]")
@click.pass_obj
def dev(shell: Shell, app: str, workers: int, reload: bool | None) -> int:
    """Run your application here: a Valkey of your own unless --redis-url names one, a scheduler and workers.

    \b
    setpoint dev myapp:fleet
    """
    from setpoint import embedded

    here = Path.cwd()
    watch = _watcher(reload)
    with catch_signals() as signals, ExitStack() as undo:
        settings = shell.settings()
        url = settings.redis_url
        if not url:
            url = undo.enter_context(embedded.start()).url
        env = dict(os.environ) | {
            "SETPOINT_REDIS_URL": url,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH", "")])),
            "PYTHONUNBUFFERED": "1",
            "SETPOINT_LOG_FORMAT": os.environ.get("SETPOINT_LOG_FORMAT", "text"),
        }
        programs = [Program("scheduler", (*_SETPOINT, "scheduler"), _SCHEDULER, env)]
        programs += [
            Program(f"worker-{number}", (*_SETPOINT, "worker", "--app", app), _WORKER, env)
            for number in range(1, workers + 1)
        ]
        click.echo(f"in another terminal:\n  export SETPOINT_REDIS_URL='{url}'\nCtrl+C ends it.")
        supervisor = Supervisor(programs, _prefixed)
        signals.on_second(supervisor.hurry)
        undo.enter_context(supervisor)
        if watch is not None:
            undo.enter_context(_reloading(watch, here, supervisor))
        while not signals.wait(0.2):
            if supervisor.failed and watch is None:
                raise Problem(f"{supervisor.failed} cannot run", why="it says why above", code=USAGE)
    return 0


def _prefixed(name: str, line: str) -> None:
    _quietly(f"{name:<10} | {line}")


def _watcher(reload: bool | None) -> Callable[..., Any] | None:
    if reload is False:
        return None
    try:
        import watchfiles
    except ImportError:
        if reload:
            raise Problem(
                "--reload cannot watch files",
                why="watchfiles is missing",
                todo="pip install 'setpoint[dev]'",
                code=USAGE,
            ) from None
        return None
    return watchfiles.watch


@contextmanager
def _reloading(watch: Callable[..., Any], folder: Path, supervisor: Supervisor) -> Generator[None]:
    """Start the workers anew whenever a Python file in `folder` changes."""
    stop = threading.Event()

    def follow() -> None:
        import watchfiles

        for changes in watch(folder, watch_filter=watchfiles.PythonFilter(), stop_event=stop, rust_timeout=200):
            names = sorted({Path(path).name for _, path in changes})
            _prefixed("setpoint", f"{', '.join(names[:3])} changed: the workers start anew")
            supervisor.restart(_WORKER)

    thread = threading.Thread(target=follow, name="reload", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(2)


# ----------------------------------------------------------------------------------------------------------- exporter


@click.command("exporter")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=9464, show_default=True, help="0: any that is free.")
@click.pass_obj
def exporter(shell: Shell, host: str, port: int) -> int:
    """Serve metrics for Prometheus at /metrics.

    \b
    setpoint exporter --port 9464
    """
    fleet = shell.fleet()
    fleet.door("exporter").close()  # a URL that cannot be used is told now, and not by every scrape
    from setpoint import metrics

    fleet.door("exporter").close()  # connects to nothing; a URL that makes no sense is told now, not at each scrape
    with catch_signals() as signals:
        try:
            server = metrics.serve(host, port, door=lambda: fleet.door("exporter"), namespace=fleet.settings.namespace)
        except OSError as error:
            raise Problem(
                f"cannot listen on {host}:{port}", why=error.strerror or str(error), todo="--port names another"
            ) from error
        with server:
            click.echo(f"metrics: http://{host}:{server.port}/metrics")
            signals.wait(None)
    return 0
