"""What is wrong around real processes: each says in words what it is and what to do; nothing is written by halves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from setpoint import Fleet, RedisFull, RedisUnavailable
from tests.apps import wrong
from tests.conftest import NewServer
from tests.integration.worker_setup import Setup
from tests.servers import Server
from tests.waiting import let_pass, wait_until
from tests.world import ROOT, World

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def setup(url: str, namespace: str, tmp_path: Path) -> Iterator[Setup]:
    made = Setup(url, namespace, tmp_path)
    yield made
    made.close()


def environ(**given: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("SETPOINT_") and k != "REDIS_URL"} | given


def command(*args: str, **given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "setpoint.cli", *args],
        cwd=ROOT, env=environ(**given), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ wrong settings

WORKER = ("worker", "--app", "tests.integration.worker_app:fleet")


@pytest.mark.parametrize(
    "program", [("ls",), ("scheduler",), ("exporter",), WORKER, (*WORKER, "-n", "2")], ids=" ".join
)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"SETPOINT_REDIS_URL": "nonsense"}, r"'nonsense'.*redis://"),
        ({"SETPOINT_REDIS_URL": NOWHERE, "SETPOINT_NAMESPACE": "a b"}, r"namespace.*letters"),
        ({"SETPOINT_REDIS_URL": NOWHERE, "SETPOINT_LEASE": "1s"}, r"SETPOINT_LEASE.*2s at least"),
        ({"SETPOINT_REDIS_URL": NOWHERE, "SETPOINT_PAYLOAD_LIMIT": "much"}, r"SETPOINT_PAYLOAD_LIMIT.*number of bytes"),
        ({}, r"SETPOINT_REDIS_URL"),
    ],
    ids=["url", "namespace", "lease", "limit", "nothing"],
)
def test_a_wrong_setting_ends_every_program_with_2(program: tuple[str, ...], given: dict[str, str], says: str) -> None:
    done = command(*program, **given)
    assert done.returncode == 2, done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("program", [("scheduler",), WORKER, (*WORKER, "-n", "2")], ids=" ".join)
def test_a_wrong_url_for_hints_ends_them_with_2(program: tuple[str, ...]) -> None:
    done = command(*program, SETPOINT_REDIS_URL=NOWHERE, SETPOINT_RQ_URL="http://rq")
    assert done.returncode == 2, done.stderr
    assert "'http://rq'" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "options", [("--lanes", "a b"), ("--grace", "soon"), ("--slots", "0"), ("-n", "0")], ids=" ".join
)
def test_a_wrong_option_of_a_worker_is_2(options: tuple[str, ...]) -> None:
    done = command(*WORKER, *options, SETPOINT_REDIS_URL=NOWHERE)
    assert done.returncode == 2, done.stderr
    assert options[1] in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


# ------------------------------------------------------------------------------------------------- wrong applications


def test_an_app_that_declares_a_kind_twice_is_2_and_nothing_is_claimed(setup: Setup) -> None:
    setup.enqueue("host/1")
    process = setup.worker("--app", "tests.apps.doubled:fleet", ready=False)
    assert process.wait(10) == 2
    assert "DuplicateKind" in setup.said()
    assert setup.place("host/1") == "due"
    assert setup.rq_workers() == set()


def test_what_actions_must_not_return_fails_them_and_leaves_the_state_as_it_was(setup: Setup) -> None:
    setup.worker("--app", "tests.apps.wrong:fleet", SETPOINT_REDIS_URL=setup.url, SETPOINT_NAMESPACE=setup.namespace)
    with Fleet(setup.url, namespace=setup.namespace) as client:
        client.entity("host", initial="serving")(wrong.Host)
        client.entity("asked", initial="serving")(wrong.Asked)
        client.entity("seen")(wrong.Seen)
        managed = [f"{kind}/{name}" for kind in ("host", "asked") for name in wrong.RETURNS]
        revisions = {ref: client.set(ref, "drained").revision for ref in managed}
        seen = [f"seen/{name}" for name in wrong.RETURNS if name != "unknown"]
        client.enqueue_many((ref, 0) for ref in seen)
        setup.hint()
        for ref in [*managed, *seen]:
            setup.until_place(ref, "parked")
        for ref in managed:
            view = client.get(ref)
            assert (view.state, view.goal, view.revision) == ("serving", "drained", revisions[ref])
        letters = {letter.ref: letter for letter in client.dead()}
        assert letters.keys() == {*managed, *seen}
        for ref, letter in letters.items():
            assert "returned" in letter.error, (ref, letter)
            assert "expected" in letter.error, (ref, letter)


# ---------------------------------------------------------------------------------------------------------- Redis away


def test_a_worker_and_a_scheduler_that_start_before_redis_wait_for_it(
    new_server: NewServer, namespace: str, tmp_path: Path
) -> None:
    server: Server = new_server()
    server.stop()
    world = World(server.url, "", namespace, tmp_path)
    try:
        processes = [world.scheduler(), world.worker(ready=False)]
        world.until(lambda: "away" in world.output.read_text(), "somebody to say that Redis is away")
        let_pass(1.5)
        assert [process.poll() for process in processes] == [None, None]
        assert "Traceback" not in world.output.read_text()
        server.start()
        world.enqueue("work/1-0")
        world.until_all("end", ["work/1-0"], 15)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(15) for process in processes] == [0, 0]
    finally:
        world.close()


@pytest.mark.slow
def test_commands_that_wait_while_redis_goes_away_are_3(new_server: NewServer) -> None:
    server = new_server()
    lines = [("set", "host/1", "up", "--force", "--wait", "60s"), ("watch", "host/1")]
    waiting = [
        subprocess.Popen(
            [sys.executable, "-m", "setpoint.cli", *line],
            cwd=ROOT,
            env=environ(SETPOINT_REDIS_URL=server.url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in lines
    ]

    def names(client: redis.Redis) -> set[str]:
        return {each["name"] for each in client.client_list()}

    with server.client() as client:
        wait_until(lambda: {"setpoint-wait", "setpoint-watch"} <= names(client), what="both to wait")
    server.kill9()
    for process in waiting:
        out, err = process.communicate(timeout=30)
        assert process.returncode == 3, err
        assert [line.split(":")[0].strip() for line in err.splitlines()] == ["error", "why", "try"], err
        assert "Traceback" not in out + err


def test_a_verb_while_redis_is_away_is_a_typed_error_and_the_fleet_goes_on_after(new_server: NewServer) -> None:
    server = new_server(appendonly="yes", appendfsync="always")
    with Fleet(server.url, patience="300ms") as fleet:
        fleet.enqueue("vm/1", after="1h")
        server.kill9()
        for verb in (
            lambda: fleet.enqueue("vm/2"),
            lambda: fleet.enqueue_many([("vm/2", 0)]),
            lambda: fleet.set("host/1", "up"),
            lambda: fleet.get("vm/1"),
            lambda: fleet.ls("vm"),
            lambda: fleet.wait("vm/1", "5s"),
            lambda: next(fleet.watch()),
            lambda: fleet.delete("vm/1"),
            lambda: fleet.pause("fleet"),
        ):
            with pytest.raises(RedisUnavailable):
                verb()
        server.start()
        assert [view.ref for view in fleet.ls("vm")] == ["vm/1"]


# ------------------------------------------------------------------------------------------------------------ no memory


def test_a_full_redis_refuses_what_is_new_and_all_goes_on_when_there_is_memory_again(
    new_server: NewServer, namespace: str, tmp_path: Path
) -> None:
    server = new_server()  # noeviction
    world = World(server.url, "", namespace, tmp_path)
    try:
        processes = [world.scheduler(), world.worker()]
        world.enqueue("work/before-0")
        world.until_all("end", ["work/before-0"])
        runs = [f"work/{i}-0.5" for i in range(4)]
        world.enqueue(*runs)
        world.until_all("start", runs)
        with server.client() as client:
            client.config_set("maxmemory", 1)
            # What runs is settled all the same.
            world.until(lambda: world.counted("work")["idle"] == 5, "what ran to be settled")
            with pytest.raises(RedisFull, match="memory"):
                world.enqueue("work/during-0")
            refused = command(
                "set", "host/1", "up", "--force", SETPOINT_REDIS_URL=server.url, SETPOINT_NAMESPACE=namespace
            )
            assert refused.returncode == 3, refused.stderr
            assert refused.stderr.startswith("error: Redis is full\n")
            assert "Traceback" not in refused.stderr
            assert not client.exists(world.door.keys.record("host/1"))
            let_pass(3)  # longer than a lease
            client.config_set("maxmemory", 0)
        world.enqueue("work/after-0")
        world.until_all("end", ["work/after-0"], 15)
        assert [process.poll() for process in processes] == [None, None]
        assert not world.charged()
        assert "Traceback" not in world.output.read_text()
    finally:
        world.close()


def test_an_oversize_payload_on_the_command_line_writes_nothing(url: str, namespace: str) -> None:
    given = {"SETPOINT_REDIS_URL": url, "SETPOINT_NAMESPACE": namespace, "SETPOINT_PAYLOAD_LIMIT": "100"}
    done = command("set", "host/1", "up", "--force", "--data", f'"{"x" * 200}"', **given)
    assert done.returncode == 2, done.stderr
    assert "100" in done.stderr
    assert "Traceback" not in done.stderr
    assert command("get", "host/1", **given).returncode == 4
