"""What `deploy/` names exists: files parse, and every command line in them runs."""

from __future__ import annotations

import configparser
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from tests.servers import free_port
from tests.waiting import wait_until

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"
BIN = Path(sys.executable).parent
OURS = ("setpoint", "rq-dashboard")
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


APPLICATION = """
from setpoint import Fleet, Managed

fleet = Fleet.from_env()

@fleet.entity("host", initial="up")
class Host(Managed[str]):
    pass
"""


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


def adapted(command: list[str], port: int, redis_url: str) -> list[str]:
    """The command line for this machine: our binaries, our server, and a port nobody else has."""
    words = [re.sub(r"\$\{\w+(:-([^}]*))?\}", r"\2", word) or "fleet:fleet" for word in command]
    words = [redis_url if word == "redis://valkey:6379/0" else word for word in words]
    if words[1] == "exporter" or words[0] == "rq-dashboard":
        words += ["--port", str(port)]
    return [str(BIN / words[0]), *words[1:]]


def page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.read().decode()
    except OSError:
        return ""


RUNNING = [(where, command) for where, command in COMMANDS if command[1] != "--help"]


@pytest.mark.parametrize(("where", "command"), RUNNING, ids=[where for where, _ in RUNNING])
def test_command_runs_and_ends_when_told(
    where: str, command: list[str], tcp_url: str, namespace: str, tmp_path: Path
) -> None:
    # As the image and the units have it: the application lies in the working directory.
    (tmp_path / "fleet.py").write_text(APPLICATION)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SETPOINT_", "PYTHON"))}
    env = kept | {"SETPOINT_REDIS_URL": tcp_url, "SETPOINT_NAMESPACE": namespace, "SETPOINT_LOG_FORMAT": "json"}
    port = free_port()
    output = tmp_path / "output"
    with output.open("w") as out:
        process = subprocess.Popen(
            adapted(command, port, tcp_url), cwd=tmp_path, env=env, stdout=out, stderr=out, start_new_session=True
        )
    signs: dict[str, Callable[[], bool]] = {
        "scheduler": lambda: "scheduler starts" in output.read_text(),
        "worker": lambda: "listens on" in output.read_text(),
        "exporter": lambda: "setpoint_up 1.0" in page(f"http://127.0.0.1:{port}/metrics"),
        "-c": lambda: "rq dashboard" in page(f"http://127.0.0.1:{port}/").lower(),
    }
    try:
        wait_until(lambda: process.poll() is not None or signs[command[1]](), timeout=30, what=f"{where} to be ready")
        assert process.poll() is None, output.read_text()
        process.send_signal(signal.SIGTERM)
        ended = process.wait(20)
        assert ended == 0 or (command[0] == "rq-dashboard" and ended == -signal.SIGTERM), output.read_text()
        assert "Traceback" not in output.read_text()
    finally:
        process.kill()
        process.wait()


def test_valkey_of_the_compose_file_keeps_what_it_is_given(valkey_binary: Path, tmp_path: Path) -> None:
    program, *arguments = compose()["services"]["valkey"]["command"]
    assert program == "valkey-server"
    port = free_port()
    server = subprocess.Popen(
        [valkey_binary, *arguments, "--port", str(port), "--dir", str(tmp_path)], stdout=subprocess.DEVNULL
    )
    try:
        with redis.Redis(port=port, decode_responses=True) as client:

            def answers() -> bool:
                with suppress(redis.ConnectionError):
                    return bool(client.ping())
                return False

            wait_until(answers, what="the server to answer")
            found = client.config_get("appendonly", "appendfsync", "maxmemory-policy")
            assert found == {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
    finally:
        server.terminate()
        server.wait()


def test_settings_in_the_environment_are_ours() -> None:
    from setpoint import settings

    known = {each.name.upper() for each in dataclasses.fields(settings.Settings) if each.init}
    for path in [DEPLOY / "compose.yaml", DEPLOY / "Dockerfile", *UNITS]:
        for name in re.findall(r"\bSETPOINT_([A-Z_]+)", path.read_text()):
            assert name in known, f"{path.name}: no setting {name}"


def test_compose_is_safe() -> None:
    services = compose()["services"]
    assert "valkey:/data" in services["valkey"]["volumes"]
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


def test_image_is_built_from_all_that_the_wheel_needs() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    packages = {package.partition("/")[0] for package in wheel["packages"]}
    needed = {project["project"]["readme"], *project["project"]["license-files"], *packages, *wheel["force-include"]}
    copied = {source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]}
    assert copied == needed | {"pyproject.toml"}
