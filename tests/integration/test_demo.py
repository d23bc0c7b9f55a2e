"""The demo: it converges, survives what it invites people to do, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.crash]

DEMO = [sys.executable, "-m", "setpoint.cli", "demo"]


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], Path, IO[str]]]:
    """A running demo whose temporary files are in `folder`, and what it says."""
    said = folder / "said"
    temporary = folder / "tmp"
    temporary.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("SETPOINT_")}
    with said.open("w") as out, said.open() as read:
        process = subprocess.Popen(
            [*DEMO, *options],
            env=env | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process, temporary, read
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)


def text(said: IO[str]) -> str:
    said.seek(0)
    return said.read()


def left_over(folder: Path) -> list[str]:
    """Processes that have to do with the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            about = [*process.cmdline(), *process.environ().values()]
            if process.status() != psutil.STATUS_ZOMBIE and any(str(folder) in each for each in about):
                found.append(f"{process.pid} {process.cmdline()}")
        except psutil.Error:
            continue
    return found


def assert_clean(folder: Path) -> None:
    assert left_over(folder) == []
    assert list(folder.iterdir()) == []


def test_check_succeeds_and_leaves_nothing(tmp_path: Path) -> None:
    with demo(tmp_path, "--check") as (process, temporary, said):
        assert process.wait(60) == 0, text(said)
        assert "everything works" in text(said)
    assert_clean(temporary)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path) as (process, temporary, said):
        wait_until(lambda: "All sites serve" in text(said), 30, "the demo to be ready")
        assert len(left_over(temporary)) > 15  # so that finding none at the end means something
        process.send_signal(number)
        assert process.wait(30) == 0, text(said)
        assert "Traceback" not in text(said)
    assert_clean(temporary)


def test_a_signal_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    with demo(tmp_path) as (process, temporary, said):
        wait_until(lambda: "are starting" in text(said), 30, "the demo to begin")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, text(said)
    assert_clean(temporary)


def test_it_is_ready_quickly_and_tells_what_to_try(tmp_path: Path) -> None:
    with demo(tmp_path) as (process, _, said):
        wait_until(lambda: "All sites serve" in text(said), 30, "the demo to be ready")
        seconds = [float(found) for found in re.findall(r"^ *([\d.]+) s  ", text(said), re.MULTILINE)]
        assert seconds[-1] < 5
        assert "export SETPOINT_REDIS_URL='unix://" in text(said)
        assert "kill -9" in text(said)
        process.send_signal(signal.SIGINT)
        process.wait(30)
