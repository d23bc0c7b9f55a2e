"""Bad input and faults, from outside: a typed error that says what to do, nothing half-written, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner, Result

from setpoint import BadPayload, BadRef, BadTime, DuplicateKind, Managed, RedisFull, RedisUnavailable, UsageError
from setpoint.cli import cli
from setpoint.engine.door import Door
from setpoint.fleet import Fleet
from setpoint.registry import Policy
from tests.conftest import NewServer
from tests.integration.worker_setup import Setup
from tests.servers import Server, free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
NAN = float("nan")
WRONG_URLS = ("http://x", "redis://", "redis://h:99999", "nonsense")


class Host(Managed[Literal["serving", "drained"]]):
    pass


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SETPOINT_") or name == "REDIS_URL":
            monkeypatch.delenv(name)


@pytest.fixture
def fleet(url: str, namespace: str) -> Iterator[Fleet]:
    with Fleet(url, namespace=namespace, patience="2s") as fleet:
        fleet.entity("host", initial="serving")(Host)
        yield fleet


@pytest.fixture
def setup(url: str, namespace: str, tmp_path: Path) -> Iterator[Setup]:
    made = Setup(url, namespace, tmp_path)
    yield made
    made.close()


def call(url: str, *args: str) -> Result:
    """`setpoint …` in this process; what it prints has no traceback."""
    result = CliRunner().invoke(cli, ["--redis-url", url, *args])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def start(url: str, *args: str, **env: str) -> subprocess.Popen[str]:
    """`setpoint …` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "setpoint.cli", *args],
        cwd=ROOT,
        env=os.environ | {"SETPOINT_REDIS_URL": url} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def three_lines(text: str) -> bool:
    """What, why, what to try."""
    return [line.split(":")[0].strip() for line in text.splitlines()] == ["error", "why", "try"]


def publish(url: str, namespace: str, **lanes: str) -> None:
    with Door(url, namespace, role="test") as door:
        kinds = {kind: Policy(kind, managed=True, lane=lane).pack() for kind, lane in lanes.items()}
        door.run(door.scripts.register("w1", born_us=1, ttl_us=10**9, info=b"", kinds=kinds))


# ---------------------------------------------------------------------------------------- one bad one spoils the whole


@pytest.mark.parametrize(
    ("verb", "error"),
    [
        (lambda fleet: fleet.set_many([("host/1", "drained"), ("host/", "drained")]), BadRef),
        (lambda fleet: fleet.set_many([("host/1", "drained"), ("host/2", "draned")]), UsageError),
        (lambda fleet: fleet.set_many([("host/1", "drained"), ("hots/2", "drained")]), UsageError),
        (lambda fleet: fleet.set_many([("host/1", "drained")], data="x" * 70_000), BadPayload),
        (lambda fleet: fleet.set_many([("host/1", "drained")], data={"a": object()}), BadPayload),
        (lambda fleet: fleet.set_many([("host/1", "drained")], labels={"a": "x" * 300}), BadPayload),
        (lambda fleet: fleet.enqueue_many([("host/1", 0)] * 600 + [("host/\x07", 0)]), BadRef),
        (lambda fleet: fleet.enqueue_many([("host/1", 0), ("host/2", NAN)]), BadTime),
        (lambda fleet: fleet.enqueue_many([("host/1", 0), ("hots/2", 0)]), UsageError),
        (lambda fleet: fleet.delete_many(["host/0", "host/" + "x" * 508]), BadRef),
    ],
)
def test_one_that_cannot_be_meant_leaves_all_unwritten(
    fleet: Fleet, redis_server: Server, verb: Callable[[Fleet], Any], error: type[Exception]
) -> None:
    fleet.set("host/0", "drained", data={"size": 1})
    with redis_server.client(decode_responses=False) as raw:

        def written() -> dict[bytes, bytes]:
            return {key: raw.dump(key) for key in raw.scan_iter()}

        before = written()
        with pytest.raises(error):
            verb(fleet)
        assert written() == before


def test_the_largest_payload_is_taken_and_one_byte_more_is_not(url: str, namespace: str) -> None:
    from setpoint.settings import Settings

    with Fleet(settings=Settings(redis_url=url, namespace=namespace, payload_limit=100)) as fleet:
        taken = "x" * 98  # packed with two bytes before it
        fleet.set("host/1", "drained", data=taken)
        with pytest.raises(BadPayload, match="100"):
            fleet.set("host/1", "serving", data=taken + "x")
        view = fleet.get("host/1")
        assert (view.goal, view.data) == ("drained", taken)


def test_a_kind_that_is_declared_twice_stays_as_it_was_first(fleet: Fleet) -> None:
    with pytest.raises(DuplicateKind, match="host"):
        fleet.entity("host", initial="drained")(Host)
    assert fleet.registry.kinds["host"].policy.initial == "serving"
    fleet.set("host/1", "drained")
    assert fleet.get("host/1").state == "serving"


# ------------------------------------------------------------------------------------------------------- unknown lanes


def test_a_lane_that_no_kind_is_in_cannot_be_paused(fleet: Fleet, url: str, namespace: str) -> None:
    fleet.pause("lane:default")
    publish(url, namespace, vm="slow")
    fleet.pause("lane:slow")
    with pytest.raises(UsageError, match=r"did you mean 'slow'\? There are: default, slow"):
        fleet.pause("lane:slwo")
    result = call(url, "--namespace", namespace, "pause", "lane:slwo")
    assert result.exit_code == 2
    assert "slow" in result.stderr
    assert sorted(each.target for each in fleet.pauses()) == ["lane:default", "lane:slow"]
    assert fleet.resume("lane:slwo") is False
    with Fleet(url, namespace=namespace, unknown_kind="accept") as bold:
        assert bold.pause("lane:slwo").target == "lane:slwo"


def test_a_fleet_without_kinds_yet_takes_any_lane(url: str, namespace: str) -> None:
    with Fleet(url, namespace=namespace) as client:
        assert client.pause("lane:slow").target == "lane:slow"


# ---------------------------------------------------------------------------------------------- on the command line


@pytest.mark.parametrize(
    "args",
    [
        ("enqueue", "host/"),
        ("enqueue", "host/a\nb"),
        ("enqueue", "host/" + "x" * 508),
        ("enqueue", "host/ok", "host/\x1b[31m"),
        ("enqueue", "host/1", "--in", "nan"),
        ("enqueue", "host/1", "--in", "inf"),
        ("enqueue", "host/1", "--in", "-1s"),
        ("enqueue", "host/1", "--in", "200000d"),
        ("enqueue", "host/1", "--at", "9999-12-31T23:59:59Z"),
        ("enqueue", "host/1", "--at", "0001-01-01T00:00:00+14:00"),
        ("set", "host/1", "drained", "--data", "NaN"),
        ("set", "host/1", "drained", "--data", '"' + "x" * 70_000 + '"'),
        ("set", "host/1", "drained", "--data", "[" * 100_000),
        ("set", "host/1", "drained", "--data", "1" + "0" * 30),
        ("set", "host/1", "drained", "--label", "a=" + "x" * 300),
        ("set", "host/1", "a\nb"),
        ("set", "host/1", "x" * 300),
        ("set", "host/1", "drained", "--wait", "soon"),
        ("set", "host/1", "drained", "--if-revision", "-1"),
    ],
    ids=lambda args: " ".join(args)[:40],
)
def test_what_cannot_be_meant_ends_with_2_and_writes_nothing(
    url: str, redis_server: Server, args: tuple[str, ...]
) -> None:
    result = call(url, *args, "--force")
    assert result.exit_code == 2, result.output
    assert result.stderr
    assert "\x1b" not in result.stderr
    with redis_server.client() as raw:
        assert raw.dbsize() == 0


@pytest.mark.parametrize("wrong", WRONG_URLS)
@pytest.mark.parametrize(
    "args", [("ls",), ("set", "host/1", "x", "--force"), ("watch", "host/1"), ("exporter", "--port", "0")]
)
def test_a_wrong_url_ends_every_command_with_2_and_says_which_are_accepted(wrong: str, args: tuple[str, ...]) -> None:
    result = call(wrong, *args)
    assert result.exit_code == 2
    assert three_lines(result.stderr)
    assert "redis://" in result.stderr


@pytest.mark.parametrize("variable", ["SETPOINT_REDIS_URL", "SETPOINT_RQ_URL"])
@pytest.mark.parametrize("args", [("scheduler",), ("worker", "--app", "tests.apps.wrong:fleet")])
def test_a_wrong_url_ends_processes_with_2_before_they_begin(url: str, variable: str, args: tuple[str, ...]) -> None:
    process = start(url, *args, **{variable: "http://x"})
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "accepted: redis://" in err
    assert "Traceback" not in out + err


# ------------------------------------------------------------------------------------------------- when Redis is away


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fleets give up on their Redis after 0.1 s unless told otherwise."""
    defaults = Fleet.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setattr(Fleet.__init__, "__kwdefaults__", defaults | {"patience": "100ms"})


@pytest.mark.usefixtures("hasty")
def test_redis_away_at_the_start_ends_every_command_with_3() -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}"
    for args in (
        ("set", "host/1", "x", "--force", "--wait"),
        ("get", "host/1"),
        ("show", "host/1"),
        ("explain", "host/1"),
        ("ls",),
        ("enqueue", "host/1"),
        ("delete", "host/1", "--yes"),
        ("watch", "host/1"),
        ("dead", "ls"),
        ("dead", "show", "host/1"),
        ("dead", "retry", "host/1"),
        ("dead", "drop", "host/1", "--yes"),
        ("pause", "fleet"),
        ("pause",),
        ("resume", "fleet"),
    ):
        result = call(nowhere, *args)
        assert result.exit_code == 3, args
        assert three_lines(result.stderr), result.stderr


def test_redis_that_goes_away_in_the_middle_is_an_error_of_wait_and_watch(new_server: NewServer) -> None:
    server = new_server()
    errors: list[BaseException] = []
    with Fleet(server.url, patience="300ms") as fleet, server.client() as raw:
        fleet.set("host/1", "drained")

        def catch(verb: Callable[[], object]) -> None:
            try:
                verb()
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=catch, args=(lambda: fleet.wait("host/1", "30s"),)),
            threading.Thread(target=catch, args=(lambda: list(fleet.watch("host/1")),)),
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: raw.pubsub_numsub("{setpoint:0}at:host/1") and raw.info("clients")["blocked_clients"])
        server.kill9()
        for thread in threads:
            thread.join(15)
            assert not thread.is_alive()
    assert [type(error) for error in errors] == [RedisUnavailable, RedisUnavailable]


@pytest.mark.usefixtures("hasty")
def test_a_command_whose_redis_goes_away_in_the_middle_ends_with_3(new_server: NewServer) -> None:
    server = new_server()

    def kill() -> None:
        with server.client() as raw:
            wait_until(lambda: raw.keys("*waiters*"), what="the command to wait")
        server.kill9()

    killer = threading.Thread(target=kill)
    killer.start()
    result = call(server.url, "set", "host/1", "drained", "--force", "--wait", "60s")
    killer.join()
    assert result.exit_code == 3, result.output
    assert three_lines(result.stderr), result.stderr
    assert result.stdout == ""


def test_a_worker_waits_for_a_redis_that_is_away_at_its_start(
    new_server: NewServer, namespace: str, tmp_path: Path
) -> None:
    server = new_server()
    server.stop()
    setup = Setup(server.url, namespace, tmp_path)
    try:
        worker = setup.worker(ready=False)
        wait_until(lambda: "is away" in setup.said(), what="the worker to say that Redis is away")
        server.start()
        setup.enqueue("noted/a")
        setup.until_place("noted/a", "idle")
        assert worker.poll() is None
        assert setup.stop(worker) == 0
        assert "Traceback" not in setup.said()
    finally:
        setup.close()


# ---------------------------------------------------------------------------------------------------------- no memory


def test_a_full_redis_ends_commands_with_3_and_lets_through_what_relieves_it(new_server: NewServer) -> None:
    server = new_server(maxmemory_policy="noeviction")
    assert call(server.url, "set", "host/1", "drained", "--force").exit_code == 0
    with server.client() as raw:
        raw.config_set("maxmemory", 1)
        before = sorted(raw.keys())
        for args in (
            ("set", "host/1", "serving", "--force"),
            ("set", "host/2", "serving", "--force", "--wait"),
            ("enqueue", "host/3", "--force"),
        ):
            result = call(server.url, *args)
            assert result.exit_code == 3, args
            assert three_lines(result.stderr)
            assert "full" in result.stderr
            assert "memory" in result.stderr
        assert sorted(raw.keys()) == before
    assert '"goal": "drained"' in call(server.url, "get", "host/1", "--json").output
    assert call(server.url, "pause", "fleet").exit_code == 0
    assert call(server.url, "delete", "host/1", "--yes").exit_code == 0


def test_a_list_that_meets_full_memory_midway_says_so_and_can_be_given_again(new_server: NewServer) -> None:
    server = new_server(maxmemory_policy="noeviction")
    refs = [(f"host/{number}", 0) for number in range(2_000)]
    with Fleet(server.url, patience="1s") as fleet, server.client() as raw:
        fleet.enqueue("host/0")
        raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 60_000)
        with pytest.raises(RedisFull):
            fleet.enqueue_many(refs)
        raw.config_set("maxmemory", 0)
        assert len(fleet.enqueue_many(refs)) == 2_000
        assert fleet.counts("host")["host"]["due"] == 2_000


def test_workers_live_through_full_memory_and_finish_what_was_due(
    new_server: NewServer, namespace: str, tmp_path: Path
) -> None:
    server = new_server(maxmemory_policy="noeviction")
    setup = Setup(server.url, namespace, tmp_path)
    try:
        worker = setup.worker()
        setup.enqueue("noted/a", after_us=500_000)
        with server.client() as raw:
            raw.config_set("maxmemory", 1)
            setup.until_place("noted/a", "idle", 20)
            late = setup.worker(ready=False)
            wait_until(lambda: setup.said().count("maxmemory") >= 2, what="the workers to say that memory is full")
            raw.config_set("maxmemory", 0)
        setup.enqueue("noted/b")
        setup.until_place("noted/b", "idle", 20)
        assert setup.stop(worker) == setup.stop(late) == 0
        assert "Traceback" not in setup.said()
        assert setup.trouble("noted/a").failures == 0
    finally:
        setup.close()


# ------------------------------------------------------------------------------------ what applications get wrong


def test_what_actions_and_hooks_may_not_return_parks_the_entity_with_words(setup: Setup) -> None:
    with Fleet(setup.url, namespace=setup.namespace) as fleet:
        for name in ("ajar", "number", "thing", "yes"):
            fleet.set(f"door/{name}", "open")
        setup.enqueue("tap/1", "lamp/1")
        worker = setup.worker("--app", "tests.apps.wrong:fleet", SETPOINT_REDIS_URL=setup.url)
        for ref in ("door/ajar", "door/number", "door/thing", "door/yes", "tap/1", "lamp/1"):
            setup.until_place(ref, "parked")
        for name in ("ajar", "number", "thing", "yes"):
            error = setup.trouble(f"door/{name}").error
            assert error is not None
            assert error.where == "open"
            assert "expected None, Again or a state of closed, open" in error.message
            assert fleet.get(f"door/{name}").state is None, "no state was written"
        tap, lamp = setup.trouble("tap/1").error, setup.trouble("lamp/1").error
        assert tap is not None
        assert lamp is not None
        assert (tap.where, tap.message) == ("state", "state() returned 3; expected a state")
        assert lamp.where == "burn"
        assert "make it `async def`" in lamp.message
        assert setup.stop(worker) == 0
        explained = call(setup.url, "--namespace", setup.namespace, "explain", "door/ajar").output
        assert "ajar" in explained
        assert "dead retry" in explained


def test_an_application_that_declares_a_kind_twice_ends_its_worker_with_2(setup: Setup) -> None:
    worker = setup.worker("--app", "tests.apps.twice:fleet", ready=False, SETPOINT_REDIS_URL=setup.url)
    assert worker.wait(20) == 2
    assert "DuplicateKind: kind door is declared already, by Door" in setup.said()
    assert setup.redis.keys() == []
