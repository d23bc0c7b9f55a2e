"""The command `setpoint`: what it is called with, how it ends, and how it says what went wrong.

Exit codes: 0 done · 1 failed · 2 usage or configuration · 3 Redis cannot be reached · 4 not found · 5 conflict ·
6 timed out waiting · 7 refused · 130 interrupted.

Commands are imported when they are run: `setpoint --help` needs neither Redis nor RQ.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from setpoint import errors

if TYPE_CHECKING:
    from setpoint.fleet import Fleet
    from setpoint.settings import Settings

__all__ = [
    "CONFLICT",
    "FAILED",
    "INTERRUPTED",
    "NOT_FOUND",
    "REFUSED",
    "TIMED_OUT",
    "UNREACHABLE",
    "USAGE",
    "Problem",
    "Shell",
    "cli",
    "json_option",
    "main",
]

FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_FOUND: Final = 4
CONFLICT: Final = 5
TIMED_OUT: Final = 6
REFUSED: Final = 7
INTERRUPTED: Final = 130

#: Name -> (where it is, its help in one line): `--help` is written without importing any of them.
_COMMANDS: Final = {
    "demo": ("setpoint.cli.run:demo", "A whole fleet on this machine, with a sample application."),
    "dev": ("setpoint.cli.run:dev", "Run your application here: Valkey, scheduler and workers."),
    "exporter": ("setpoint.cli.run:exporter", "Serve metrics for Prometheus."),
    "set": ("setpoint.cli.entities:set_", "Say in which state an entity should be."),
    "get": ("setpoint.cli.entities:get", "State and goal of an entity, in one line."),
    "show": ("setpoint.cli.entities:show", "Everything that is known of an entity."),
    "explain": ("setpoint.cli.entities:explain", "Why it is not there yet, and what comes next."),
    "ls": ("setpoint.cli.entities:ls", "List entities."),
    "enqueue": ("setpoint.cli.entities:enqueue", "Have an entity evaluated, now or later."),
    "delete": ("setpoint.cli.entities:delete", "Forget an entity."),
    "watch": ("setpoint.cli.entities:watch", "Print what happens to an entity as it happens."),
    "dead": ("setpoint.cli.entities:dead", "Entities that were given up: list, retry, drop."),
    "pause": ("setpoint.cli.entities:pause", "Start nothing more of a fleet, lane, kind or entity."),
    "resume": ("setpoint.cli.entities:resume", "Undo a pause."),
}
_FROM_PACKAGES: Final = {
    "scheduler": "Run a scheduler: it wakes workers when something is due.",
    "worker": "Run workers for an application.",
}
_GROUP: Final = "setpoint.commands"

F = TypeVar("F", bound="Callable[..., Any]")


class Problem(Exception):
    """What the person is told, and how the command ends: what, why, what to do."""

    def __init__(self, what: str, *, why: str = "", todo: str = "", code: int = FAILED) -> None:
        super().__init__(what)
        self.what, self.why, self.todo, self.code = what, why, todo, code

    def show(self) -> None:
        """Write it to standard error, a line each."""
        click.secho(f"error: {_one_line(self.what)}", fg="red", err=True)
        if self.why:
            click.echo(f"  why: {_one_line(self.why)}", err=True)
        if self.todo:
            click.echo(f"  try: {_one_line(self.todo)}", err=True)


@dataclass(slots=True)
class Shell:
    """The global options; every command gets it as its first argument."""

    redis_url: str | None = None
    namespace: str | None = None
    json: bool = False
    verbose: bool = False

    def settings(self) -> Settings:
        """The environment, and the options above it."""
        from setpoint.settings import Settings

        return Settings.from_env(redis_url=self.redis_url, namespace=self.namespace)

    def fleet(self, *, waits: bool = False) -> Fleet:
        """A fleet without kinds of its own: the command line knows those that workers published.

        A command that `waits` sits through a restart of Redis; people who wait for an answer are told soon.
        """
        settings = self.settings()
        if not settings.redis_url:
            raise Problem(
                "no Redis is named",
                why="neither --redis-url nor SETPOINT_REDIS_URL is set",
                todo="export SETPOINT_REDIS_URL=redis://127.0.0.1:6379, or start `setpoint demo` and copy its line",
                code=USAGE,
            )
        from setpoint.fleet import Fleet

        return Fleet(settings=settings, patience="10s" if waits else "2s")

    def emit(self, record: dict[str, Any]) -> None:
        """One JSON object on one line."""
        import json

        click.echo(json.dumps(record, ensure_ascii=False, default=_plain))


class _Root(click.Group):
    """Finds commands by name, also those of other packages, and turns every error into an exit code and three lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [*_COMMANDS, *sorted(_FROM_PACKAGES.keys() | _entry_points().keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        if cmd_name in _COMMANDS:
            module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
            found = getattr(importlib.import_module(module), attribute)
        else:
            entry = _entry_points().get(cmd_name)
            if entry is None:
                return None
            try:
                found = entry()
            except (ImportError, AttributeError) as error:
                raise Problem(f"the command {cmd_name} cannot be loaded", why=str(error)) from error
        if not isinstance(found, click.Command):
            raise Problem(f"{cmd_name} is not a command", why=f"it is a {type(found).__name__}")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 3)
            if near:
                raise click.UsageError(f"No such command '{args[0]}'. Meant: {', '.join(near)}?", ctx) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: list[tuple[str, str]] = []
        for name in self.list_commands(ctx):
            known = _COMMANDS[name][1] if name in _COMMANDS else _FROM_PACKAGES.get(name)
            if known is None:
                command = self.get_command(ctx, name)
                known = command.get_short_help_str() if command else ""
            rows.append((name, known))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        def run() -> object:
            start: Any = super(_Root, self).main
            return start(args, prog_name or "setpoint", complete_var, False, windows_expand_args, **extra)

        if not standalone_mode:
            return run()
        argv = list(sys.argv[1:] if args is None else args)
        return _finish(_run(run, argv))


def _run(run: Callable[[], Any], argv: list[str]) -> int:
    try:
        result = run()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # `setpoint ls | head`
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 people are told in words
        if _verbose(argv):
            traceback.print_exc()
        problem = _problem_of(error)
        problem.show()
        return problem.code
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _finish(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _verbose(argv: list[str]) -> bool:
    """Also when the options could not be read."""
    return "-v" in argv or "--verbose" in argv


#: The first that fits: (class, exit code, what happened, what to do).
_MEANINGS: Final[tuple[tuple[type[BaseException], int, str, str], ...]] = (
    (errors.UnknownKind, NOT_FOUND, "no such kind", "`setpoint ls` shows what there is"),
    (errors.RedisFull, UNREACHABLE, "Redis is full", "give it more memory, or forget entities that are not needed"),
    (
        errors.RedisUnavailable,
        UNREACHABLE,
        "Redis cannot be reached",
        "start it, or name another with --redis-url or SETPOINT_REDIS_URL",
    ),
    (errors.NotFound, NOT_FOUND, "not found", "`setpoint ls` shows what there is"),
    (errors.Conflict, CONFLICT, "it changed meanwhile", "look at it again and decide again"),
    (errors.TimedOut, TIMED_OUT, "waited long enough", "`setpoint explain` says what it is waiting for"),
    (errors.ConfigurationError, USAGE, "a setting cannot be used", "see `setpoint --help` and the SETPOINT_ variables"),
    (errors.UsageError, USAGE, "that cannot be meant", "see --help of the command"),
    (errors.EmbeddedServerError, FAILED, "the Valkey of our own does not run", "name another with --redis-url"),
    (errors.SetpointError, FAILED, "it failed", "-v shows where"),
)


def _problem_of(error: BaseException) -> Problem:
    if isinstance(error, Problem):
        return error
    for kind, code, what, todo in _MEANINGS:
        if isinstance(error, kind):
            return Problem(what, why=str(error), todo=todo, code=code)
    return Problem(
        "this should not have happened",
        why=f"{type(error).__name__}: {error}",
        todo="run it again with -v and report what it prints",
    )


def _entry_points() -> dict[str, Callable[[], Any]]:
    from importlib.metadata import entry_points

    return {entry.name: entry.load for entry in entry_points(group=_GROUP)}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(value: object) -> Any:
    """What JSON has no form for."""
    from datetime import datetime, timedelta

    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (set, frozenset)):
        return sorted(str(each) for each in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return str(value)


def _turn_on(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def turn_on(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        del parameter
        if value:
            setattr(ctx.ensure_object(Shell), name, True)

    return turn_on


def json_option(command: F) -> F:
    """Let `--json` (and -v) stand behind the command too."""
    verbose = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_turn_on("verbose"), hidden=True
    )
    as_json = click.option(
        "--json", is_flag=True, expose_value=False, callback=_turn_on("json"), help="One JSON object a line."
    )
    return as_json(verbose(command))


@click.group("setpoint", cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--redis-url", metavar="URL", help="Where the truth is kept. [env: SETPOINT_REDIS_URL, REDIS_URL]")
@click.option("--namespace", metavar="NS", help="Which fleet of that Redis. [env: SETPOINT_NAMESPACE]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("-v", "--verbose", is_flag=True, help="Say more; with errors, where they come from.")
@click.version_option(package_name="setpoint", message="setpoint %(version)s")
@click.pass_context
def cli(ctx: click.Context, redis_url: str | None, namespace: str | None, as_json: bool, verbose: bool) -> None:
    """Say what should be true; a fleet of workers makes it true and keeps it true.

    \b
    setpoint demo                         see it work
    setpoint set site/3 drained --wait    say what should be, and wait until it is
    setpoint explain site/3               why it is not there yet
    """
    ctx.obj = Shell(redis_url, namespace, as_json, verbose)
    for name, value in (("SETPOINT_REDIS_URL", redis_url), ("SETPOINT_NAMESPACE", namespace)):
        if value is not None:
            os.environ[name] = value  # for applications that read it, and for processes that are started


def main() -> NoReturn:
    """Run the command line and exit."""
    cli.main()
    sys.exit(0)
