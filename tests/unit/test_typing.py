"""Both type checkers, strict, accept what is right in tests/typing and refuse each line that is marked as wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
SNIPPETS = sorted((TOP / "tests" / "typing").glob("*.py"))
NAMES = [str(path.relative_to(TOP)) for path in SNIPPETS]
Lines = set[tuple[str, int]]


def marked() -> Lines:
    """The lines that end with the mark of an error."""
    return {
        (name, number)
        for name, path in zip(NAMES, SNIPPETS, strict=True)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("  # wrong")
    }


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command, *NAMES], cwd=TOP, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr  # 2 is that it could not check
    return done.stdout


def mypy() -> Lines:
    found = re.findall(r"^(\S+?):(\d+): error:", run("mypy", "--no-error-summary"), re.MULTILINE)
    return {(name, int(number)) for name, number in found}


def pyright() -> Lines:
    said = json.loads(run("pyright", "--outputjson"))["generalDiagnostics"]
    return {
        (str(Path(each["file"]).relative_to(TOP)), each["range"]["start"]["line"] + 1)
        for each in said
        if each["severity"] == "error"
    }


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_what_is_right_is_accepted_and_each_wrong_line_refused(checker: Callable[[], Lines]) -> None:
    expected, found = marked(), checker()
    assert len(expected) > 70
    assert sorted(found - expected) == [], "refused, but right"
    assert sorted(expected - found) == [], "accepted, but wrong"
