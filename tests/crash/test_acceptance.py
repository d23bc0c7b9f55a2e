"""What the whole promises, with real processes: schedulers, workers, their children, and servers that lose things.

With SETPOINT_LONG=1 each runs at its full size.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from setpoint.engine.door import skewed
from tests.conftest import NewServer
from tests.waiting import let_pass
from tests.world import World

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
LONG = os.environ.get("SETPOINT_LONG") == "1"


class NewWorld(Protocol):
    def __call__(self, rq_url: str = "") -> World: ...


@pytest.fixture
def new_world(url: str, namespace: str, tmp_path: Path) -> Iterator[NewWorld]:
    made: list[World] = []

    def make(rq_url: str = "") -> World:
        made.append(World(url, rq_url, namespace, tmp_path))
        return made[-1]

    try:
        yield make
    finally:
        for world in made:
            world.close()


@pytest.fixture
def world(new_world: NewWorld) -> World:
    return new_world()


def test_workers_that_are_killed_every_two_seconds_lose_nothing_and_charge_nobody(world: World) -> None:
    world.scheduler()
    workers = [world.worker() for _ in range(3)]
    refs = [f"work/{i}-0.04" for i in range(1000)]  # all slots are busy for longer than a worker lives
    ends = time.monotonic() + (60 if LONG else 15)
    kills = 0
    while time.monotonic() < ends:
        world.enqueue(*refs)
        let_pass(2)
        victim = workers[kills % 3]
        assert victim.poll() is None, world.output.read_text()[-4000:]
        victim.kill()
        workers[kills % 3] = world.worker(ready=False)
        kills += 1
    world.until_all("end", refs, 30)
    world.until_at_rest("work", 1000, 60)
    assert world.noted("start").total() > world.noted("end").total() + kills, "hardly anything ran when it was killed"
    assert kills >= 5
    assert not world.charged()


def test_what_is_due_outlives_flushes_of_rqs_server_and_a_time_without_workers(
    new_world: NewWorld, new_server: NewServer
) -> None:
    rq = new_server()
    world = new_world(rq.url)
    refs = [f"work/{i}-0.001" for i in range(1000)]
    limit = 3 if LONG else 10
    world.scheduler()
    first = world.worker()
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0
    world.enqueue(*refs)
    for _ in range(3):
        world.until(lambda: world.rq.read(("KEYS", "rq:queue:*"))[0], "a hint")
        world.rq.read(("FLUSHALL",))
    world.worker()
    began = time.monotonic()
    world.until_all("end", refs, limit)
    print(f"{time.monotonic() - began:.2f} s after a worker came")
    for times in (2, 3):
        began = time.monotonic()
        world.enqueue(*refs)
        world.rq.read(("FLUSHALL",))
        world.until_all("end", refs, limit, times)
        print(f"{time.monotonic() - began:.2f} s after a flush with a worker")
    world.until_at_rest("work", 1000)
    assert not world.charged()


def test_short_work_passes_long_work_of_its_lane(world: World) -> None:
    world.scheduler()
    for _ in range(4):
        world.worker("--slots", "4")
    long = [f"stay/{i}" for i in range(8)]
    short = [f"work/{i}-0.005" for i in range(1000 if LONG else 300)]
    world.enqueue(*long)
    world.until_all("start", long)
    world.enqueue(*short)
    world.until_all("end", short)
    assert not any(world.noted("end")[ref] for ref in long)
    world.release.touch()
    world.until_all("end", long)
    assert world.noted("start") == Counter(long + short)
    assert not world.charged()


def test_one_worker_runs_as_many_coroutines_at_once_as_it_has_slots(world: World) -> None:
    world.scheduler()
    world.worker("--slots", "10")
    refs = [f"later/{i}" for i in range(10)]
    for ref in refs:
        world.enqueue(ref)
        world.until_all("start", [ref])
    assert not world.noted("end")
    world.release.touch()
    world.until_at_rest("later", 10)
    assert not world.charged()


def test_two_versions_that_put_a_kind_in_different_lanes_run_together_and_no_ref_runs_twice_at_once(
    world: World,
) -> None:
    world.scheduler()
    world.worker("--lanes", "a", app="old")
    second = world.worker("--lanes", "b", app="new")
    refs = [f"moved/{i}-0.01" for i in range(1000 if LONG else 200)]
    for times in (1, 2, 3):
        world.enqueue(*refs)
        let_pass(0.3)
        world.enqueue(*refs)  # while some of them run
        world.until_all("end", refs, 30, times)
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == 0
    world.enqueue(*refs)
    world.worker("--lanes", "b", app="new")
    world.until_all("end", refs, 30, 4)
    world.until_at_rest("moved", len(refs))
    running: set[str] = set()
    for line in world.log.read_text().splitlines():
        word, _, ref = line.partition(" ")
        assert (ref in running) == (word == "end"), f"{ref} ran twice at once"
        running ^= {ref}
    assert not running
    assert not world.charged()


def test_a_kind_that_no_worker_knows_waits_and_says_so(world: World) -> None:
    world.scheduler()
    world.worker()
    world.enqueue("stranger/1", "work/1-0")
    world.until_all("end", ["work/1-0"])
    told = world.fleet.explain("stranger/1")
    assert told.place == "due"
    assert told.codes[0] == "kind-unknown"
    assert "no worker has ever published the kind stranger" in told.why[0]
    assert not world.charged()


@pytest.mark.parametrize("how", ["init", "thread", "sigkill", "exit", "segfault"])
def test_who_kills_its_process_is_parked_as_poison_and_its_mates_are_done_and_not_charged(
    world: World, how: str
) -> None:
    world.scheduler()
    world.worker("--slots", "4")
    mates = [f"work/{i}-0.1" for i in range(50)]
    guilty = f"{how}/guilty"
    world.enqueue(*mates[:25], guilty, *mates[25:])
    world.until(lambda: world.fleet.explain(guilty).place == "parked", "the guilty to be parked")
    world.until_at_rest("work", 50)
    assert world.noted("end").keys() == set(mates)
    found = world.troubles()[guilty]
    assert (found.reason, found.crashes, found.failures) == ("poison", 3, 0)
    assert 3 <= world.noted("dying")[guilty] <= 4  # at most once among others
    assert world.charged().keys() == {guilty}
    assert [letter.ref for letter in world.fleet.dead()] == [guilty]


@pytest.mark.parametrize("minutes", [10, -10])
def test_a_step_of_the_clock_neither_stops_new_work_nor_takes_running_work_away(world: World, minutes: int) -> None:
    world.scheduler()
    world.worker()
    world.enqueue("stay/1")
    world.until_all("start", ["stay/1"])
    with skewed(world.door, minutes * 60_000_000):
        for i in range(5):
            world.enqueue(f"work/{i}-0")
            world.until_all("end", [f"work/{i}-0"], 10)
            let_pass(1)
        assert world.noted("start")["stay/1"] == 1
        assert world.counted("stay")["leased"] == 1
    world.enqueue("work/back-0")
    world.until_all("end", ["work/back-0"], 10)
    let_pass(4)  # two leases
    assert world.counted("stay")["leased"] == 1
    world.release.touch()
    world.until_at_rest("stay", 1)
    assert world.noted("start")["stay/1"] == 1
    assert not world.troubles()


def test_a_busy_worker_told_to_end_exits_with_0_in_its_grace_and_its_refs_are_due_and_not_charged(
    world: World,
) -> None:
    world.scheduler()
    worker = world.worker("--slots", "4", "--grace", "2s")
    refs = [f"stay/{i}" for i in range(4)] + ["work/ends-1"]
    world.enqueue(*refs[:3], refs[4])
    world.until_all("start", [*refs[:3], refs[4]])
    world.enqueue(refs[3])
    worker.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert worker.wait(20) == 0
    assert time.monotonic() - began < 6
    assert world.noted("end") == Counter([refs[4]])
    assert world.counted("stay") | {"ready": 0} == {"due": 4, "ready": 0, "leased": 0, "idle": 0, "parked": 0}
    assert not world.charged()
    world.release.touch()
    world.worker()
    world.until_at_rest("stay", 4)
    assert not world.charged()


PROGRAM = """
from setpoint import Fleet
with Fleet.from_env() as fleet:
    fleet.enqueue("mail/7")
    print(fleet.get("mail/7").place)
"""


def test_a_wheel_in_an_empty_environment_enqueues_by_name(url: str, namespace: str, tmp_path: Path) -> None:
    wheels, empty = tmp_path / "wheels", tmp_path / "empty"
    environ = {
        **{name: os.environ[name] for name in os.environ if not name.startswith(("SETPOINT_", "PYTHON", "VIRTUAL"))},
        "SETPOINT_REDIS_URL": url,
        "SETPOINT_NAMESPACE": namespace,
    }

    def run(*command: object) -> str:
        argv = [str(part) for part in command]
        done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, ROOT)
    (wheel,) = wheels.glob("setpoint-*.whl")
    run(sys.executable, "-m", "venv", empty)
    python = empty / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel)
    assert run(python, "-c", PROGRAM).strip() == "due"
    assert "scheduler" in run(empty / "bin" / "setpoint", "--help")
