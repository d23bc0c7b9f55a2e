"""Every program ends with 2 and a word, before it begins, when its settings or options cannot be meant."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOWHERE = "redis://127.0.0.1:1/0"
WORKER = ("worker", "--app", "tests.integration.worker_app:fleet")
SUPERVISED = (*WORKER, "-n", "2")
"""Its workers must not be started again and again."""


def refused(*args: str, **given: str) -> str:
    """What it says."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SETPOINT_") and k != "REDIS_URL"}
    command = [sys.executable, "-m", "setpoint.cli", *args]
    done = subprocess.run(
        command, cwd=ROOT, env=environ | given, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize("program", [("ls",), ("scheduler",), ("exporter",), WORKER, SUPERVISED], ids=" ".join)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"SETPOINT_REDIS_URL": NOWHERE, "SETPOINT_NAMESPACE": "a b"}, r"namespace.*letters"),
        ({"SETPOINT_REDIS_URL": NOWHERE, "SETPOINT_LEASE": "1s"}, r"SETPOINT_LEASE.*2s at least"),
        ({}, r"SETPOINT_REDIS_URL"),
    ],
    ids=["namespace", "lease", "no url"],
)
def test_a_wrong_setting_ends_every_program(program: tuple[str, ...], given: dict[str, str], says: str) -> None:
    assert re.search(says, refused(*program, **given))


@pytest.mark.parametrize("variable", ["SETPOINT_REDIS_URL", "SETPOINT_RQ_URL"])
def test_a_wrong_url_ends_a_supervisor_too(variable: str) -> None:
    assert "'http://rq'" in refused(*SUPERVISED, **{"SETPOINT_REDIS_URL": NOWHERE, variable: "http://rq"})


@pytest.mark.parametrize(
    "options", [("--lanes", "a b"), ("--grace", "soon"), ("--slots", "0"), ("-n", "0")], ids=" ".join
)
def test_a_wrong_option_ends_a_worker(options: tuple[str, ...]) -> None:
    assert options[1] in refused(*WORKER, *options, SETPOINT_REDIS_URL=NOWHERE)
