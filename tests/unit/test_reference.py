"""docs/reference.md names exactly what the code has: both ways, so that neither is ahead of the other."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from random import Random

import click

import setpoint
from setpoint import cli, judge, outcome
from setpoint.engine.records import NO_TROUBLE
from setpoint.metrics import FleetCollector
from setpoint.registry import Policy
from setpoint.settings import Settings

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs" / "reference.md").read_text()
PACKAGE = Path(setpoint.__file__).parent


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"no section {title}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row but the head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [
        row for row, after in zip(cells, [*cells[1:], []], strict=True) if not _is_rule(row) and not _is_rule(after)
    ]


def _is_rule(row: list[str]) -> bool:
    return bool(row) and set("".join(row)) == {"-"}


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ------------------------------------------------------------------------------------------------------------ commands


def written_commands() -> dict[str, set[str]]:
    """Command -> its options, as the page has them."""
    _, *parts = re.split(r"^### `setpoint ?([^`]*)`\n", section("Commands"), flags=re.MULTILINE)
    found: dict[str, set[str]] = {}
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        words = title.split()
        name = " ".join(words[: 2 if words[:1] == ["dead"] else 1])
        assert name not in found, f"{name} is there twice"
        found[name] = {word.split()[0] for first, _ in rows(text) for word in code(first)}
    return found


def real_commands() -> Iterator[tuple[str, click.Command]]:
    yield "", cli.cli
    context = click.Context(cli.cli)
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", each) for sub, each in command.commands.items())
        else:
            yield name, command


def options(command: click.Command) -> set[str]:
    return {
        name
        for each in command.params
        if isinstance(each, click.Option) and not each.hidden
        for name in (*each.opts, *each.secondary_opts)
    }


def test_every_command_and_option_is_on_the_page_and_no_other() -> None:
    real = {name: options(command) for name, command in real_commands()}
    real[""] |= {"-h", "--help"}
    assert written_commands() == real


def test_arguments_are_written_as_the_command_line_writes_them() -> None:
    for name, command in real_commands():
        if name:
            pieces = [p for p in command.collect_usage_pieces(click.Context(command)) if p != "[OPTIONS]"]
            assert f"### `{' '.join(['setpoint', name, *pieces])}`\n" in PAGE


def test_every_default_of_an_option_is_on_the_page() -> None:
    for name, command in real_commands():
        part = PAGE.partition(f"### `setpoint {name}".rstrip())[2].partition("\n###")[0]
        for each in command.params:
            if isinstance(each, click.Option) and each.show_default:
                (row,) = [row for row in rows(part) if each.opts[-1] in " ".join(code(row[0])).split()]
                assert re.search(rf"Default `?{re.escape(str(each.default))}\b", row[1]), f"{name} {each.opts}"


def test_exit_codes() -> None:
    names = ("FAILED", "USAGE", "UNREACHABLE", "NOT_FOUND", "CONFLICT", "TIMED_OUT", "REFUSED", "INTERRUPTED")
    real = {name: value for name, value in vars(cli).items() if name.isupper() and type(value) is int}
    assert set(real) == set(names)
    assert [int(row[0]) for row in rows(section("Exit codes"))] == [0, *sorted(real.values())]


# ------------------------------------------------------------------------------------------- settings, metrics, events


def test_every_setting_is_on_the_page_with_its_default_and_no_other() -> None:
    real = {
        f"SETPOINT_{each.name.upper()}": [str(each.default)] if each.default != "" else []
        for each in fields(Settings)
        if each.init
    }
    assert {code(row[0])[0]: code(row[1]) for row in rows(section("Settings"))} == real


def test_every_metric_is_on_the_page_with_its_type_and_labels_and_no_other() -> None:
    def no_door() -> typing.NoReturn:
        raise AssertionError("shapes need no Redis")

    real = {
        each.name + ("_total" if each.type == "counter" else ""): (each.type, list(each._labelnames))  # type: ignore[attr-defined]
        for each in FleetCollector(no_door, "x").describe()
    }
    assert {code(row[0])[0]: (row[1], code(row[2])) for row in rows(section("Metrics"))} == real


def test_every_outcome_of_an_evaluation_is_on_the_page() -> None:
    (said,) = re.findall(r"outcome of an evaluation is one of (.*?)\n\n", section("Metrics"), re.DOTALL)
    assert code(said) == list(typing.get_args(judge.Label))


OUTCOMES: list[outcome.Outcome] = [
    outcome.Reached("up", 1),
    outcome.Nothing("down"),
    outcome.Moved("half"),
    outcome.Waiting("down"),
    outcome.Later(1_000_000, "down"),
    outcome.Vanished(),
    outcome.Failed("ValueError", "no", "start"),
    outcome.Failed("ValueError", "no", "start", permanent=True),
    outcome.TimedOut("start", 1_000_000),
    outcome.Crashed("SIGKILL"),
]


def events_of_judge() -> Iterator[str]:
    policy = Policy("vm", managed=False)
    for each in OUTCOMES:
        yield judge.judge(policy, each, NO_TROUBLE, now_us=1, rng=Random(0)).ending.event.decode()
    yield judge.park_poison(policy, NO_TROUBLE, now_us=1, rng=Random(0)).ending.event.decode()


def events_of_scripts() -> Iterator[str]:
    for path in (PACKAGE / "engine" / "lua").glob("*.lua"):
        yield from re.findall(r"\bevent\(ref, '(\w+)", path.read_text())


def events_of_verbs() -> Iterator[str]:
    yield from re.findall(r"\bevent=[bf]\"(\w+)", (PACKAGE / "verbs.py").read_text())


def test_every_event_is_on_the_page_and_no_other() -> None:
    assert {type(each) for each in OUTCOMES} == set(typing.get_args(outcome.Outcome))
    told = [*events_of_judge(), *events_of_scripts(), *events_of_verbs()]
    assert {code(row[0])[0] for row in rows(section("Events"))} == {text.split()[0] for text in told if text}


def test_the_readme_leads_to_the_page() -> None:
    assert "(docs/reference.md)" in (TOP / "README.md").read_text()
