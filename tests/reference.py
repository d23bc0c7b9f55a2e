"""Writes docs/reference.md from the code: `python -m tests.reference`. A test fails when the two differ."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from random import Random
from typing import Any, Final

import click

from setpoint import cli, metrics, settings
from setpoint.engine.records import Trouble
from setpoint.judge import judge, park_poison
from setpoint.outcome import (
    Crashed,
    Failed,
    Later,
    Moved,
    Nothing,
    Outcome,
    Reached,
    TimedOut,
    Vanished,
    Waiting,
)
from setpoint.registry import Policy

PAGE: Final = Path(__file__).parents[1] / "docs" / "reference.md"

EXITS: Final = (
    (0, "done"),
    (cli.FAILED, "it failed, or a check is red"),
    (cli.USAGE, "usage or configuration; the application does not import. Starting again cannot help"),
    (cli.UNREACHABLE, "Redis cannot be reached, or is full"),
    (cli.NOT_FOUND, "no such entity or kind"),
    (cli.CONFLICT, "it changed meanwhile: `set --if-revision`"),
    (cli.TIMED_OUT, "waited long enough: `set --wait`"),
    (cli.REFUSED, "refused: waiting for what is paused, or deleting without `--yes` where nobody can answer"),
    (cli.INTERRUPTED, "interrupted by Ctrl+C"),
)

EVENTS: Final = {
    "goal": "Its goal was set to another one, which follows.",
    "reached": "It is in the state of its goal; the state follows if it is known.",
    "moved": "It changed its state and is not there yet.",
    "nothing": "There was nothing to do, so it is at rest.",
    "failed": "The first failure in a row: where, and the type of the error. `explain` has the rest.",
    "crashed": "The first time it killed its process while it ran alone.",
    "parked": "Given up: `permanent`, `after N failures`, or `poison` (it kills its processes). `dead` lists them.",
    "gone": "It exists no more, said its `state()`; forgotten.",
    "deleted": "Deleted; if it ran, its outcome is dropped.",
    "reaped": "The lease of the named worker ran out; another one takes over.",
}


def produced() -> set[str]:
    """The names of all events that there are, as the code makes them."""
    policy = Policy("any", attempts=2)
    outcomes: list[Outcome] = [
        *(Reached("a", True), Nothing("a"), Moved("a"), Waiting(), Later(1, None), Vanished(), Crashed("how")),
        *(Failed("E", "m", "w", ""), Failed("E", "m", "w", "", permanent=True), TimedOut("w", 1)),
    ]
    endings = [
        judge(policy, outcome, Trouble(failures=n), now_us=0, rng=Random(0)).ending
        for outcome in outcomes
        for n in (0, 1)
    ]
    endings.append(park_poison(policy, Trouble(crashes=3), now_us=0, rng=Random(0)).ending)
    said = {ending.event.decode().partition(" ")[0] for ending in endings} - {""}
    package = Path(settings.__file__).parent
    for name in ("verbs.py", *(f"engine/lua/{path.name}" for path in (package / "engine" / "lua").glob("*.lua"))):
        said |= set(re.findall(r"""event(?:=f?b?"|\(ref, ')([a-z]+)""", (package / name).read_text()))
    return said


def page() -> str:
    """The whole page."""
    parts = [
        "# Reference\n\nWritten from the code by `python -m tests.reference`; a test keeps it true.",
        _commands(),
        _exits(),
        _settings(),
        _metrics(),
        _events(),
    ]
    return "\n\n".join(parts) + "\n"


def _commands() -> str:
    context = click.Context(cli.cli, info_name="setpoint")
    lines = ["## Commands", "Options of `setpoint` itself, before the command:", _options(cli.cli, context)]
    for path, command in _walk(cli.cli, context):
        usage = " ".join(command.collect_usage_pieces(path))
        lines += [f"### `{path.command_path} {usage}`", _text(command), _options(command, path)]
    return "\n\n".join(line for line in lines if line)


def _walk(group: click.Group, context: click.Context) -> Iterator[tuple[click.Context, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        inner = click.Context(command, info_name=name, parent=context)
        yield inner, command
        if isinstance(command, click.Group):
            yield from _walk(command, inner)


def _text(command: click.Command) -> str:
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        "    " + "\n    ".join(each.splitlines()[1:]) if each.startswith("\b") else " ".join(each.split())
        for each in paragraphs
    )


def _options(command: click.Command, context: click.Context) -> str:
    found = [each.get_help_record(context) for each in command.params if isinstance(each, click.Option)]
    rows = [(f"`{left}`", right) for left, right in filter(None, found) if left != "--version"]
    return _table(("option", ""), rows) if rows else ""


def _exits() -> str:
    return "## Exit codes\n\n" + _table(("code", "meaning"), [(str(code), text) for code, text in EXITS])


def _settings() -> str:
    texts = _texts()
    rows = [
        (f"`SETPOINT_{each.name.upper()}`", _default(each), texts[each.name])
        for each in fields(settings.Settings)
        if each.init
    ]
    intro = (
        "Environment variables; empty ones count as unset. Options of the command line go before them.\n"
        "`Settings` has the same names in lower case. `--app` is as `SETPOINT_APP`."
    )
    return f"## Settings\n\n{intro}\n\n" + _table(("variable", "default", ""), rows)


def _default(field: Any) -> str:
    assert field.default is not MISSING
    return f"`{field.default}`" if field.default != "" else ""


def _texts() -> dict[str, str]:
    """What stands below each field, which Python itself does not keep."""
    (tree,) = (
        node
        for node in ast.parse(inspect.getsource(settings)).body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            variable = f" (`SETPOINT_{field.target.id.upper()}`)"
            found[field.target.id] = " ".join(str(text.value.value).split()).replace(variable, "")
    return found


def _metrics() -> str:
    def no_door() -> Any:
        raise AssertionError("shapes need no Redis")

    rows = []
    for metric in metrics.FleetCollector(no_door, "any").describe():
        labels: tuple[str, ...] = getattr(metric, "_labelnames", ())
        name = metric.name + ("_total" if metric.type == "counter" else "")
        rows.append((f"`{name}`", metric.type, ", ".join(labels), metric.documentation))
    intro = "Served by `setpoint exporter` at `/metrics`; beside it `/livez` (it runs) and `/readyz` (Redis answers)."
    return f"## Metrics\n\n{intro}\n\n" + _table(("name", "type", "labels", ""), rows)


def _events() -> str:
    intro = "What `setpoint watch` and `Fleet.watch` tell, by the first word. About the last 10,000 entries are kept."
    return f"## Events\n\n{intro}\n\n" + _table(("event", ""), [(f"`{name}`", text) for name, text in EVENTS.items()])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
