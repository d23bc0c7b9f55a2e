"""What `deploy/` names exists: files parse, and every command line in them is one that our programs accept."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"
BIN = Path(sys.executable).parent
OURS = ("setpoint", "rq-dashboard")
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines()]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line and not line.startswith("#")]


def commands() -> Iterator[tuple[str, list[str]]]:
    for name, service in compose()["services"].items():
        yield f"compose:{name}", service["command"]
    for path in UNITS:
        program, *arguments = shlex.split(unit(path)["Service"]["ExecStart"])
        yield path.name, [Path(program).name, *arguments]
    for word, rest in instructions():
        if word == "CMD":
            yield "Dockerfile", json.loads(rest)
    for line in (DEPLOY / "README.md").read_text().splitlines():
        if line.startswith("    ") and line.split()[0] in OURS:
            yield "README", shlex.split(line)


COMMANDS = [(where, command) for where, command in commands() if command[0] in OURS]


def test_all_processes_are_there() -> None:
    started = {" ".join(command[:2]) for _, command in COMMANDS}
    assert started >= {"setpoint worker", "setpoint scheduler", "setpoint exporter", "rq-dashboard -c"}
    assert len(UNITS) == 2


@pytest.mark.parametrize(("where", "command"), COMMANDS, ids=[where for where, _ in COMMANDS])
def test_command_is_accepted(where: str, command: list[str]) -> None:
    program, *arguments = (re.sub(r"\$\{\w+(:-([^}]*))?\}", r"\2", word) or "fleet:fleet" for word in command)
    done = subprocess.run(
        [BIN / program, *arguments, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    # --help ends the reading of the command line early: look for each option by itself.
    for option in (word for word in arguments if word.startswith("-") and word != "--help"):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", done.stdout), f"{where}: no option {option}"


def test_settings_in_the_environment_are_ours() -> None:
    from setpoint import settings

    known = Path(settings.__file__).read_text()
    for path in [DEPLOY / "compose.yaml", DEPLOY / "Dockerfile", *UNITS]:
        for name in re.findall(r"\bSETPOINT_([A-Z_]+)", path.read_text()):
            assert name == "APP" or name.lower() in known, f"{path.name}: no setting {name}"


def test_compose_is_safe() -> None:
    services = compose()["services"]
    assert "everysec" in services["valkey"]["command"]
    assert "noeviction" in services["valkey"]["command"]
    assert services["scheduler"]["deploy"]["replicas"] == 2
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert (DEPLOY / services["worker"]["build"]["context"]).resolve() == TOP
    assert (TOP / services["worker"]["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units(path: Path) -> None:
    parsed = unit(path)
    service = parsed["Service"]
    assert service["RestartPreventExitStatus"] == "2"
    assert service["KillMode"] == "mixed"
    assert service["User"] == "setpoint"
    assert parsed["Install"]["WantedBy"]


def test_image_has_no_root_and_copies_what_the_build_sees() -> None:
    words = instructions()
    stages = [i for i, (word, _) in enumerate(words) if word == "FROM"]
    assert len(stages) == 2
    last = words[stages[-1] :]
    assert ("USER", "10001") in last
    let_in = {line[1:] for line in (TOP / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest in words:
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (TOP / source).exists()
                assert source in let_in


@pytest.mark.slow
def test_the_image_has_all_that_the_wheel_is_built_from(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for word, rest in instructions():
        if word == "COPY":
            *names, target = rest.split()
            for name in names:
                to = source / (name if target == "./" else target)
                if (TOP / name).is_dir():
                    shutil.copytree(TOP / name, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(TOP / name, to)
    wheels = tmp_path / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"setpoint/_demo/fleet.py", "setpoint/engine/lua/claim.lua", "setpoint/py.typed"} <= names
    assert {"setpoint_workers/worker.py", "setpoint_scheduler/promoter.py"} <= names


def test_the_application_of_compose_is_one(url: str, namespace: str) -> None:
    default = re.search(r"SETPOINT_APP:-([^}]*)", " ".join(compose()["services"]["worker"]["command"]))
    assert default is not None
    module, _, name = default[1].partition(":")
    code = f"import {module}; print(*{module}.{name}.registry.kinds); {module}.{name}.set('lamp/1', 'on')"
    environ = {"PYTHONPATH": str(DEPLOY / "app"), "SETPOINT_REDIS_URL": url, "SETPOINT_NAMESPACE": namespace}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lamp"]
    assert compose()["services"]["worker"]["volumes"] == ["./app:/app:ro"]
