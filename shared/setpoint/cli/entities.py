"""The verbs for entities: say what should be, and see what is."""

from __future__ import annotations

import difflib
import getpass
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from setpoint.cli import FAILED, NOT_FOUND, REFUSED, Problem, Shell, json_option
from setpoint.clock import parse_duration
from setpoint.entity import Ref
from setpoint.errors import NotFound

if TYPE_CHECKING:
    from setpoint.fleet import Fleet
    from setpoint.views import EntityView, PauseInfo

__all__ = ["dead", "delete", "enqueue", "explain", "get", "ls", "pause", "resume", "set_", "show", "watch"]

_DEFAULT_WAIT = "60s"


# --------------------------------------------------------------------------------------------------------------- set


@click.command("set")
@click.argument("ref", metavar="KIND/ID")
@click.argument("goal")
@click.option(
    "--wait",
    is_flag=False,
    flag_value=_DEFAULT_WAIT,
    default=None,
    metavar="[DURATION]",
    help=f"Return when it is there; exit code 6 if it is not in time. [{_DEFAULT_WAIT}]",
)
@click.option("--data", metavar="JSON", help="Data for its actions.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label; may be repeated.")
@click.option("--if-revision", type=int, metavar="N", help="Only if nobody has set it since; else exit code 5.")
@click.option("--force", is_flag=True, help="Also for a kind that no worker has declared yet.")
@json_option
@click.pass_obj
def set_(
    shell: Shell,
    ref: str,
    goal: str,
    wait: str | None,
    data: str | None,
    labels: tuple[str, ...],
    if_revision: int | None,
    force: bool,
) -> None:
    """Say in which state an entity should be.

    \b
    setpoint set site/3 drained --wait
    setpoint set host/web-7 serving --label rack=r1 --data '{"size": 3}'
    """
    fleet = shell.fleet(waits=wait is not None)
    _check_known(fleet, ref, force=force)
    if wait is not None:
        parse_duration(wait)  # before the goal is set, not after
    options: dict[str, Any] = {}
    if data is not None:
        options["data"] = _json(data)
    if labels:
        options["labels"] = _labels(labels)
    if if_revision is not None:
        options["if_revision"] = if_revision
    result = fleet.set(ref, goal, **options)
    if wait is None:
        if shell.json:
            shell.emit(result.as_dict())
        else:
            click.echo(f"{ref}: goal {goal}{_note(result.outcome)}")
        return
    paused = fleet.get(ref).paused
    if paused:
        raise Problem(
            f"{ref} should be {goal} now, but it is not worked on",
            why=str(paused[0]),
            todo=f"setpoint resume {paused[0].target}",
            code=REFUSED,
        )
    _report(shell, fleet.wait(ref, wait, goal=goal), goal)


def _report(shell: Shell, view: EntityView, goal: str) -> None:
    """Say how the waiting ended."""
    if view.place == "parked":
        raise Problem(
            f"{view.ref} was given up on its way to {goal}",
            why=view.trouble.error.message if view.trouble.error else "",
            todo=f"setpoint explain {view.ref}; setpoint dead retry {view.ref}",
        )
    if shell.json:
        shell.emit(view.as_dict())
    else:
        click.echo(f"{view.ref}: {view.state or 'state not recorded'}, goal {view.goal or goal}")


def _note(outcome: str) -> str:
    return {
        "wish": ", worked on again when the evaluation that runs now has ended",
        "parked": "; it is parked as poison: `setpoint dead retry` takes it out",
        "merged": ", it was due by then already",
    }.get(outcome, "")


# -------------------------------------------------------------------------------------------------------------- read


@click.command("get")
@click.argument("ref", metavar="KIND/ID")
@json_option
@click.pass_obj
def get(shell: Shell, ref: str) -> None:
    """State and goal of an entity, in one line.

    \b
    setpoint get site/3
    """
    view = _known(shell.fleet(), ref)
    if shell.json:
        shell.emit(view.as_dict())
    else:
        click.echo(_row(view))


@click.command("show")
@click.argument("ref", metavar="KIND/ID")
@json_option
@click.pass_obj
def show(shell: Shell, ref: str) -> None:
    """Everything that is known of an entity.

    \b
    setpoint show site/3 --json
    """
    view = _known(shell.fleet(), ref)
    record = view.as_dict()
    if shell.json:
        shell.emit(record)
        return
    for name, value in record.items():
        if value not in (None, "", [], {}):
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
            click.echo(f"{name + ':':<10} {text}")


@click.command("explain")
@click.argument("ref", metavar="KIND/ID")
@json_option
@click.pass_obj
def explain(shell: Shell, ref: str) -> None:
    """Why an entity is not there yet, what comes next, and when.

    \b
    setpoint explain site/3
    """
    fleet = shell.fleet()
    explanation = fleet.explain(ref)
    if shell.json:
        shell.emit(explanation.as_dict())
    else:
        for line in explanation.lines:
            click.echo(line)
    if explanation.entity is not None and not explanation.entity.known:
        raise Problem(f"{ref} is not known", why="nobody has set or enqueued it, or it was deleted", code=NOT_FOUND)


@click.command("ls")
@click.argument("kind", required=False)
@click.option("--state", help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many.")
@json_option
@click.pass_obj
def ls(shell: Shell, kind: str | None, state: str | None, limit: int) -> None:
    """List entities, of one KIND or of all.

    \b
    setpoint ls site --state drained
    """
    fleet = shell.fleet()
    found = 0
    for view in fleet.ls(kind, state=state, limit=limit):
        found += 1
        if shell.json:
            shell.emit(view.as_dict())
        else:
            click.echo(_row(view))
    if not found and not shell.json:
        click.echo("nothing is known yet; `setpoint set KIND/ID GOAL` or `setpoint enqueue KIND/ID` begins", err=True)
    elif found == limit and not shell.json:
        click.echo(f"… the first {limit}; --limit shows more", err=True)


@click.command("watch")
@click.argument("ref", metavar="KIND/ID")
@click.option("--since", metavar="ID", help="Begin after this event; the ids are in the --json form.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Stop after so many.  [default: Ctrl+C]")
@json_option
@click.pass_obj
def watch(shell: Shell, ref: str, since: str | None, count: int | None) -> None:
    """Print what happens to an entity as it happens.

    \b
    setpoint watch site/3
    """
    Ref.of(ref)
    for event in islice(shell.fleet(waits=True).watch(ref, since=since), count):
        if shell.json:
            shell.emit(event.as_dict())
        else:
            click.echo(f"{_local(event.at)}  {event.ref}  {event.name} {event.detail}".rstrip())
        sys.stdout.flush()


# ------------------------------------------------------------------------------------------------------------- change


@click.command("enqueue")
@click.argument("refs", metavar="KIND/ID...", nargs=-1, required=True)
@click.option("--at", metavar="TIME", help="Not before this instant, with its zone: 2026-05-04T12:00:00Z.")
@click.option("--in", "after", metavar="DURATION", help="So long from now: 90s, 1h30m, 2d.")
@click.option("--force", is_flag=True, help="Also for a kind that no worker has declared yet.")
@json_option
@click.pass_obj
def enqueue(shell: Shell, refs: tuple[str, ...], at: str | None, after: str | None, force: bool) -> None:
    """Have entities evaluated, now or later. One that is due earlier stays so.

    \b
    setpoint enqueue vm/7 --in 90s
    """
    if at is not None and after is not None:
        raise click.UsageError("--at and --in exclude each other")
    options: dict[str, Any] = {}
    if at is not None:
        options["at"] = _instant(at)
    if after is not None:
        options["after"] = after
    fleet = shell.fleet()
    for ref in refs:
        _check_known(fleet, ref, force=force)
    for ref in refs:
        result = fleet.enqueue(ref, **options)
        if shell.json:
            shell.emit(result.as_dict())
        else:
            due = f"due {_local(result.due)}" if result.due else result.outcome
            click.echo(f"{ref}: {due}{_note(result.outcome)}")


@click.command("delete")
@click.argument("refs", metavar="KIND/ID...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def delete(shell: Shell, refs: tuple[str, ...], yes: bool) -> None:
    """Forget entities: their record, their due time and their past.

    \b
    setpoint delete site/3 site/4
    """
    for ref in refs:
        Ref.of(ref)
    fleet = shell.fleet()
    _ask(f"forget {_count(refs)}: {', '.join(refs[:5])}{'…' if len(refs) > 5 else ''}?", yes=yes)
    missing: list[str] = []
    for ref in refs:
        gone = fleet.delete(ref) != "absent"
        if not gone:
            missing.append(ref)
        if shell.json:
            shell.emit({"ref": ref, "deleted": gone})
        elif gone:
            click.echo(f"{ref}: forgotten")
    if missing:
        raise Problem(f"not known: {', '.join(missing)}", todo="`setpoint ls` shows what there is", code=NOT_FOUND)


@click.group("dead")
def dead() -> None:
    """Entities that were given up: they failed too often, or for good, or killed their workers."""


@dead.command("ls")
@click.option("--kind", help="Only of this kind.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True)
@json_option
@click.pass_obj
def dead_ls(shell: Shell, kind: str | None, limit: int) -> None:
    """List them, with the last error of each.

    \b
    setpoint dead ls site
    """
    for letter in shell.fleet().dead(kind, limit=limit):
        if shell.json:
            shell.emit(letter.as_dict())
        else:
            click.echo(f"{letter.ref:<32} {letter.reason:<7} {_local(letter.since)}  {letter.error}")


@dead.command("show")
@click.argument("ref", metavar="KIND/ID")
@json_option
@click.pass_obj
def dead_show(shell: Shell, ref: str) -> None:
    """The last error of one, whole.

    \b
    setpoint dead show site/3
    """
    view = _parked(shell.fleet(), ref)
    if shell.json:
        shell.emit(view.as_dict())
        return
    click.echo(_row(view))
    error = view.trouble.error
    if error is not None:
        click.echo(f"{error.where}: {error.type}: {error.message}")
        if error.trace:
            click.echo(str(error.trace))


@dead.command("retry")
@click.argument("refs", metavar="[KIND/ID...]", nargs=-1)
@click.option("--kind", help="All of this kind.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def dead_retry(shell: Shell, refs: tuple[str, ...], kind: str | None, yes: bool) -> None:
    """Try them again, their failures forgiven.

    \b
    setpoint dead retry site/3
    """
    fleet = shell.fleet()
    _each(shell, _chosen(fleet, refs, kind), "retried", fleet.retry_dead, ask=bool(kind) and not yes)


@dead.command("drop")
@click.argument("refs", metavar="[KIND/ID...]", nargs=-1)
@click.option("--kind", help="All of this kind.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def dead_drop(shell: Shell, refs: tuple[str, ...], kind: str | None, yes: bool) -> None:
    """Forget them.

    \b
    setpoint dead drop site/3
    """
    fleet = shell.fleet()
    _each(shell, _chosen(fleet, refs, kind), "dropped", fleet.drop_dead, ask=not yes)


def _chosen(fleet: Fleet, refs: tuple[str, ...], kind: str | None) -> list[str]:
    if bool(refs) == (kind is not None):
        raise click.UsageError("name entities, or --kind")
    if kind is not None:
        return [letter.ref for letter in fleet.dead(kind, limit=100_000)]
    for ref in refs:
        _parked(fleet, ref)
    return list(refs)


def _each(shell: Shell, refs: list[str], done: str, verb: Any, *, ask: bool) -> None:
    if ask and refs:
        _ask(f"{_count(refs)} will be {done}: go on?", yes=False)
    for ref in refs:
        verb([ref])
        if shell.json:
            shell.emit({"ref": ref, "outcome": done})
        else:
            click.echo(f"{ref}: {done}")
    if not refs:
        click.echo("none are dead", err=True)


# --------------------------------------------------------------------------------------------------- pause and resume


@click.command("pause")
@click.argument("target", metavar="[fleet|lane:NAME|kind:NAME|KIND/ID]", required=False)
@click.option("--why", default="", metavar="TEXT", help="Shown to everybody who asks why nothing happens.")
@click.option("--until", metavar="DURATION|TIME", help="Ends by itself then: 2h, 2026-05-04T12:00:00Z.")
@json_option
@click.pass_obj
def pause(shell: Shell, target: str | None, why: str, until: str | None) -> None:
    """Start nothing more of the whole fleet, a lane, a kind or one entity; without a target, list the pauses.

    What runs now ends. What is enqueued meanwhile waits, and nothing is lost.

    \b
    setpoint pause kind:site --why "network maintenance" --until 2h
    """
    fleet = shell.fleet()
    if target is None:
        _print_pauses(shell, fleet.pauses())
        return
    options: dict[str, Any] = {"why": why, "who": _who()}
    if until is not None:
        if ":" in until:
            options["until"] = _instant(until)
        else:
            options["for_"] = until
    fleet.pause(target, **options)
    if shell.json:
        shell.emit({"target": target, "paused": True, "why": why})
    else:
        click.echo(f"{target}: paused{f' for {until}' if until else ''}; `setpoint resume {target}` goes on")


@click.command("resume")
@click.argument("target", metavar="fleet|lane:NAME|kind:NAME|KIND/ID")
@json_option
@click.pass_obj
def resume(shell: Shell, target: str) -> None:
    """Undo a pause. Resuming what is not paused is fine.

    \b
    setpoint resume kind:site
    """
    was = shell.fleet().resume(target)
    if shell.json:
        shell.emit({"target": target, "paused": False})
    else:
        click.echo(f"{target}: {'was not paused' if was is False else 'goes on'}")


def _print_pauses(shell: Shell, pauses: Iterable[PauseInfo]) -> None:
    for each in pauses:
        if shell.json:
            shell.emit(each.as_dict())
        else:
            click.echo(str(each))


# ------------------------------------------------------------------------------------------------------------ helpers


def _check_known(fleet: Fleet, ref: str, *, force: bool) -> None:
    """A typing error in the kind would wait for ever for a worker that knows it."""
    kind = Ref.of(ref).kind
    if force:
        return
    kinds = sorted(fleet.counts())
    if kind in kinds:
        return
    near = difflib.get_close_matches(kind, kinds, 3)
    raise Problem(
        f"no worker knows the kind {kind!r}" + (f"; meant: {', '.join(near)}?" if near else ""),
        why=f"known kinds: {', '.join(kinds)}" if kinds else "no worker has declared any kind in this namespace yet",
        todo="start a worker that declares it, or say --force to have it wait for one",
        code=NOT_FOUND,
    )


def _known(fleet: Fleet, ref: str) -> EntityView:
    try:
        return fleet.get(ref)
    except NotFound as error:
        raise Problem(
            f"{ref} is not known", why=str(error), todo=f"setpoint ls {Ref.of(ref).kind}", code=NOT_FOUND
        ) from error


def _parked(fleet: Fleet, ref: str) -> EntityView:
    view = _known(fleet, ref)
    if view.place != "parked":
        raise Problem(f"{ref} is not dead", why=f"it is {view.place}", todo="setpoint dead ls", code=NOT_FOUND)
    return view


def _row(view: EntityView) -> str:
    state = view.state or "-"
    way = f"{state} → {view.goal}" if view.goal and view.goal != state else state
    extra: list[str] = []
    if view.due:
        extra.append(f"due {_local(view.due)}")
    if view.holder:
        extra.append(f"by {view.holder.worker}")
    if view.trouble.failures:
        extra.append(f"{view.trouble.failures} failures")
    if view.paused:
        extra.append("paused")
    return f"{view.ref:<32} {way:<24} {view.place:<7} {', '.join(extra)}".rstrip()


def _ask(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Problem(
            "this needs a yes",
            why=f"{question} Nobody can answer here: this is no terminal",
            todo="--yes",
            code=REFUSED,
        )
    if not click.confirm(question, err=True):
        raise Problem("nothing was done", code=FAILED)


def _count(refs: tuple[str, ...] | list[str]) -> str:
    return f"{len(refs)} {'entity' if len(refs) == 1 else 'entities'}"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON that can be read: {error}", param_hint="--data") from error


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r}: write NAME=VALUE", param_hint="--label")
        found[name] = value
    return found


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a time: write 2026-05-04T12:00:00Z") from error
    if instant.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no zone: write {text}Z for UTC, or {text}+02:00")
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        raise click.BadParameter(f"{text!r} is before or after all time in UTC") from error


def _local(instant: datetime) -> str:
    return instant.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
