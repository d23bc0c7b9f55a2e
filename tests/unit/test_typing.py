"""What type checkers accept and refuse of the code that applications write: the files in tests/typing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SNIPPETS = sorted((ROOT / "tests" / "typing").glob("*.py"))
MYPY = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml"]
PYRIGHT = [sys.executable, "-m", "pyright", "--outputjson"]
pytestmark = pytest.mark.slow


def wrong_lines(path: Path) -> set[int]:
    return {number for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith("# wrong")}


def run(command: list[str], *paths: Path) -> str:
    done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", SNIPPETS, ids=lambda p: p.stem)
def test_mypy_accepts_what_is_right_and_refuses_what_is_wrong(path: Path) -> None:
    said = run(MYPY, path)
    expected = {f"{path.relative_to(ROOT)}:{number}: error" for number in wrong_lines(path)}
    assert {": ".join(line.split(": ")[:2]) for line in said.splitlines() if ": error:" in line} == expected, said


def test_pyright_accepts_what_is_right_and_refuses_what_is_wrong() -> None:
    said = run(PYRIGHT, *SNIPPETS)
    found: dict[str, set[int]] = {path.name: set() for path in SNIPPETS}
    for each in json.loads(said[said.index("{") :])["generalDiagnostics"]:
        if each["severity"] == "error":
            found[Path(each["file"]).name].add(each["range"]["start"]["line"] + 1)
    assert found == {path.name: wrong_lines(path) for path in SNIPPETS}, said
