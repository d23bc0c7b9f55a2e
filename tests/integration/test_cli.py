"""The command line: what it prints, how it ends, and that nobody is shown a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from setpoint import errors
from setpoint.cli import Problem, cli
from setpoint.fleet import Fleet
from tests.servers import free_port

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SETPOINT_") or name == "REDIS_URL":
            monkeypatch.delenv(name)


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`setpoint …` on the shared server; no output ever has a traceback."""
    monkeypatch.setenv("SETPOINT_REDIS_URL", url)

    def call(*args: str, **options: Any) -> Result:
        result = CliRunner().invoke(cli, list(args), **options)
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def command(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "setpoint.cli", *args],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---------------------------------------------------------------------------------------------------------------- help


SLOW = ("redis", "rq", "rich", "prometheus_client", "msgpack", "asyncio", "ssl", "http", "setpoint.fleet")


def loaded_by(code: str) -> tuple[str, set[str]]:
    """What the code prints, and which of the slow modules it has imported."""
    code += "\nimport sys; print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    said, _, modules = done.stdout.rpartition("LOADED")
    return said, set(SLOW) & set(modules.split())


def test_help_imports_nothing_slow_and_no_command() -> None:
    said, slow = loaded_by(
        "from setpoint.cli import main\nimport sys\nsys.argv = ['setpoint', '--help']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'setpoint.cli.entities', 'setpoint.cli.run', 'setpoint_workers', 'setpoint_scheduler'} "
        "& set(sys.modules)"
    )
    assert slow == set()
    for name in ("demo", "dev", "worker", "scheduler", "exporter", "set", "explain", "dead", "pause"):
        assert f"\n  {name} " in said


def test_the_help_of_every_command_needs_neither_redis_nor_rq() -> None:
    said, slow = loaded_by(
        "from click.testing import CliRunner\nfrom setpoint.cli import cli\n"
        "for name in cli.list_commands(cli.make_context('setpoint', ['ls'])):\n"
        "    assert CliRunner().invoke(cli, [name, '--help']).exit_code == 0, name\n"
        "    print(name)"
    )
    assert {"worker", "scheduler", "exporter", "demo", "set"} <= set(said.split())
    assert slow <= {"http", "ssl"}  # the demo visits web sites


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name in group.list_commands(click.Context(group)):
        found = group.get_command(click.Context(group), name)
        if isinstance(found, click.Group):
            yield from commands(found, *path, name)
        else:
            yield (*path, name)


def test_every_command_has_help_with_an_example() -> None:
    for path in commands(cli):
        result = CliRunner().invoke(cli, [*path, "--help"])
        assert result.exit_code == 0, path
        assert "Usage: setpoint" in result.output
        assert f"\n  setpoint {' '.join(path)} " in result.output, path


def test_a_misspelt_command_names_the_near_ones(run: Run) -> None:
    result = run("exlain", "a/b")
    assert result.exit_code == 2
    assert "explain" in result.output


# ---------------------------------------------------------------------------------------------------- set, get, list


def test_set_get_ls_show_explain_delete(run: Run) -> None:
    assert run("set", "host/1", "drained", "--force", "--label", "rack=r1", "--data", '{"a": 1}').exit_code == 0
    got = run("get", "host/1")
    assert got.exit_code == 0
    assert "drained" in got.output
    (view,) = lines(run("--json", "get", "host/1"))
    assert (view["ref"], view["goal"], view["labels"], view["data"]) == ("host/1", "drained", {"rack": "r1"}, {"a": 1})
    assert "rack" in run("show", "host/1").output
    explained = run("explain", "host/1")
    assert explained.exit_code == 0
    assert "next:" in explained.output
    assert run("delete", "host/1", "--yes").exit_code == 0
    assert run("get", "host/1").exit_code == 4
    assert run("delete", "host/1", "--yes").exit_code == 4


def test_json_is_one_object_a_line_before_or_behind_the_command(run: Run) -> None:
    for number in range(3):
        run("set", f"host/{number}", "drained", "--force")
    for args in (("ls", "host", "--json"), ("--json", "ls", "host")):
        assert sorted(each["ref"] for each in lines(run(*args))) == ["host/0", "host/1", "host/2"]
    assert len(lines(run("ls", "host", "--json", "--limit", "2"))) == 2


def test_an_empty_list_is_no_failure_and_valid_json(run: Run) -> None:
    assert run("ls").exit_code == 0
    assert run("ls", "--json").stdout == ""
    assert run("dead", "ls", "--json").stdout == ""


def test_an_unknown_kind_is_refused_and_the_near_ones_named(run: Run, url: str) -> None:
    with Fleet(url).door("test") as door:
        from setpoint.registry import Policy

        published = {"host": Policy("host", managed=True, initial="serving").pack()}
        call = door.scripts.register("w1", born_us=1, ttl_us=10**9, info=b"", kinds=published)
        door.run(call)
    for args in (("set", "hots/1", "drained"), ("enqueue", "hots/1")):
        result = run(*args)
        assert result.exit_code == 4
        assert "host" in result.stderr
        assert "--force" in result.stderr
        assert len(result.stderr.splitlines()) == 3
    assert run("set", "host/1", "drained").exit_code == 0
    assert run("enqueue", "hots/1", "--force").exit_code == 0


# ----------------------------------------------------------------------------------------------------------- enqueue


def test_enqueue_now_and_later(run: Run) -> None:
    (now,) = lines(run("enqueue", "vm/1", "--force", "--json"))
    assert (now["ref"], now["outcome"]) == ("vm/1", "scheduled")
    assert run("enqueue", "vm/2", "--in", "90s", "--force").exit_code == 0
    (later,) = lines(run("enqueue", "vm/3", "--at", "2100-01-01T12:00:00+01:00", "--force", "--json"))
    assert later["due"].startswith("2100-01-01T11:00:00")


@pytest.mark.parametrize(
    "args",
    [
        ("enqueue", "vm/1", "--at", "2100-01-01T12:00:00", "--force"),  # no zone
        ("enqueue", "vm/1", "--at", "soon", "--force"),
        ("enqueue", "vm/1", "--in", "soon", "--force"),
        ("enqueue", "vm/1", "--in", "1s", "--at", "2100-01-01T12:00:00Z", "--force"),
        ("enqueue", "novm", "--force"),
        ("set", "Host/1", "x", "--force"),
        ("set", "host/1", "x", "--data", "{", "--force"),
        ("set", "host/1", "x", "--label", "rack", "--force"),
        ("set", "host/1", "", "--force"),
        ("pause", "nothing"),
        ("ls", "--limit", "0"),
        ("dead", "retry"),
    ],
)
def test_what_cannot_be_meant_ends_with_2(run: Run, args: tuple[str, ...]) -> None:
    assert run(*args).exit_code == 2


# -------------------------------------------------------------------------------------------------------- exit codes


def test_conflict_is_5(run: Run) -> None:
    (first,) = lines(run("set", "host/1", "drained", "--force", "--json"))
    assert run("set", "host/1", "serving", "--force", "--if-revision", str(first["revision"])).exit_code == 0
    assert run("set", "host/1", "drained", "--force", "--if-revision", str(first["revision"])).exit_code == 5


def test_waiting_in_vain_is_6(run: Run) -> None:
    result = run("set", "host/1", "drained", "--force", "--wait", "200ms")
    assert result.exit_code == 6
    assert "explain" in result.stderr


def test_waiting_for_what_is_paused_is_refused(run: Run) -> None:
    assert run("pause", "kind:host", "--why", "maintenance").exit_code == 0
    began = time.monotonic()
    result = run("set", "host/1", "drained", "--force", "--wait", "30s")
    assert result.exit_code == 7
    assert "maintenance" in result.stderr
    assert time.monotonic() - began < 5


def test_no_redis_is_3(run: Run) -> None:
    result = run("--redis-url", f"redis://127.0.0.1:{free_port()}", "get", "host/1")
    assert result.exit_code == 3
    assert [line.split(":")[0].strip() for line in result.stderr.splitlines()] == ["error", "why", "try"]


def test_no_url_is_2_and_says_what_to_set() -> None:
    result = CliRunner().invoke(cli, ["ls"])
    assert result.exit_code == 2
    assert "SETPOINT_REDIS_URL" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadRef("x"), 2),
        (errors.ConfigurationError("x"), 2),
        (errors.RedisUnavailable("x"), 3),
        (errors.RedisFull("x"), 3),
        (errors.NotFound("x"), 4),
        (errors.UnknownKind("x"), 4),
        (errors.UnknownState("x"), 2),
        (errors.Conflict("x"), 5),
        (errors.TimedOut("x"), 6),
        (Problem("x", code=7), 7),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
    ],
)
def test_each_error_has_its_code(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Fleet, "ls", fail)
    assert run("ls").exit_code == code


def test_only_v_shows_the_traceback(url: str) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}"
    quiet = command("--redis-url", nowhere, "ls")
    assert quiet.returncode == 3
    assert "Traceback" not in quiet.stderr
    loud = command("-v", "--redis-url", nowhere, "ls")
    assert loud.returncode == 3
    assert "Traceback" in loud.stderr


# ------------------------------------------------------------------------------------------------ pause, ask, and pipes


def test_pause_is_listed_and_resumed(run: Run) -> None:
    assert run("pause", "fleet", "--why", "night", "--until", "1h").exit_code == 0
    assert run("pause", "lane:slow", "--until", "2100-01-01T00:00:00Z").exit_code == 0
    found = {each["target"]: each for each in lines(run("pause", "--json"))}
    assert found["fleet"]["why"] == "night"
    assert found["lane:slow"]["until"].startswith("2100-01-01")
    assert run("resume", "fleet").exit_code == 0
    assert run("resume", "fleet").exit_code == 0
    assert [each["target"] for each in lines(run("pause", "--json"))] == ["lane:slow"]


def test_deleting_without_a_yes_is_refused_where_nobody_can_answer(run: Run) -> None:
    run("set", "host/1", "drained", "--force")
    assert run("delete", "host/1").exit_code == 7
    assert run("get", "host/1").exit_code == 0


def test_what_is_not_dead_cannot_be_retried(run: Run) -> None:
    run("set", "host/1", "drained", "--force")
    assert run("dead", "retry", "host/1").exit_code == 4
    assert run("dead", "show", "host/1").exit_code == 4
    assert run("dead", "retry", "--kind", "host", "--yes").exit_code == 0


def test_a_reader_that_goes_away_is_no_error(run: Run, url: str) -> None:
    for number in range(50):
        run("set", f"host/{number}", "drained", "--force")
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m setpoint.cli ls host | head -n 1"],
        env=os.environ | {"SETPOINT_REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
