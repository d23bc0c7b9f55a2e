"""The reference page says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import setpoint
from setpoint import cli
from tests.reference import EVENTS, EXITS, PAGE, page, produced

TOP = Path(__file__).parents[2]
SOURCES = [path for folder in ("shared", "scheduler", "workers") for path in (TOP / folder).rglob("*.py")]


def test_the_page_is_as_the_code_writes_it() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.reference"


def test_every_exit_code_is_explained() -> None:
    codes = {getattr(cli, name) for name in cli.__all__ if isinstance(getattr(cli, name), int)}
    assert {code for code, _ in EXITS} == codes | {0}


def test_every_event_is_explained() -> None:
    assert produced() == EVENTS.keys()


def test_every_variable_that_the_code_reads_is_on_the_page() -> None:
    named = {name for path in SOURCES for name in re.findall(r"\bSETPOINT_[A-Z_]*[A-Z]\b", path.read_text())}
    assert {"SETPOINT_REDIS_URL", "SETPOINT_LEASE"} <= named
    assert sorted(named - set(re.findall(r"\bSETPOINT_[A-Z_]+\b", PAGE.read_text()))) == []


def test_every_error_is_in_the_tree_that_its_module_shows() -> None:
    said = setpoint.errors.__doc__ or ""
    assert all(re.search(rf"\b{name}\b", said) for name in setpoint.errors.__all__)
