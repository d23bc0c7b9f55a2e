"""What README.md shows works: its Python is run against a real Redis, and its commands are ones that there are."""

from __future__ import annotations

import re
import shlex
import types
from pathlib import Path

import pytest
from click.testing import CliRunner

from setpoint import Fleet
from setpoint.cli import cli
from tests.docs import blocks

README = Path(__file__).parents[2] / "README.md"


class Balancer:
    """What the example has of its reader's own."""

    async def connections(self, id_: str) -> int:
        return 0


def test_the_example_sets_a_goal(url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETPOINT_REDIS_URL", url)
    monkeypatch.setenv("SETPOINT_NAMESPACE", namespace)
    page = types.ModuleType("readme")
    page.__dict__["balancer"] = Balancer()
    found = blocks(README)
    assert found
    for block in found:
        exec(compile("\n" * (block.line - 1) + block.code, str(README), "exec"), page.__dict__)
    fleet: Fleet = page.__dict__["fleet"]
    with fleet:
        view = fleet.get("host/web-7")
        assert (view.state, view.goal, view.place) == ("serving", "drained", "due")
        assert fleet.registry.kinds.keys() == {"host"}


def commands() -> list[str]:
    text = README.read_text()
    typed = [line.partition("#")[0] for line in text.splitlines() if line.startswith("setpoint ")]
    return typed + re.findall(r"`(setpoint [^`]+)`", text)


def test_every_command_is_one_that_there_is() -> None:
    found = commands()
    assert len(found) > 12
    for line in found:
        words = shlex.split(re.sub(r"[\[\]]|\\?\|\S+|…", " ", line))
        program, verb, *rest = words
        assert program == "setpoint"
        told = CliRunner().invoke(cli, [verb, "--help"])
        assert told.exit_code == 0, line
        for option in (word for word in rest if word.startswith("-")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", told.output), f"{line}: no option {option}"
