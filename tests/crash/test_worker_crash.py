"""Children that die, and who is blamed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.worker_setup import Setup
from tests.waiting import wait_until

pytestmark = pytest.mark.crash


@pytest.fixture
def setup(url: str, namespace: str, tmp_path: Path) -> Iterator[Setup]:
    made = Setup(url, namespace, tmp_path)
    yield made
    made.close()


def uncharged(setup: Setup, ref: str) -> bool:
    trouble = setup.trouble(ref)
    return (trouble.failures, trouble.crashes) == (0, 0)


def test_a_killed_child_charges_nobody_and_all_is_done(setup: Setup) -> None:
    worker = setup.worker("--slots", "2")
    setup.ring(*(f"slow/{i}-0.5" for i in range(4)), lane="slow")
    wait_until(lambda: len(setup.ran("start")) >= 2)
    os.kill(setup.child_of(worker), signal.SIGKILL)
    for i in range(4):
        setup.until_place(f"slow/{i}-0.5", "idle")
        assert uncharged(setup, f"slow/{i}-0.5")
        assert setup.trouble(f"slow/{i}-0.5").suspect == 0
    assert setup.stop(worker) == 0


@pytest.mark.parametrize("slots", ["1", "4"])
def test_poison_is_found_and_parked_and_its_mates_are_not_charged(setup: Setup, slots: str) -> None:
    worker = setup.worker("--slots", slots)
    mates = [f"slow/{i}-0.3" for i in range(6)]
    setup.enqueue(*mates)
    setup.hint("slow")
    setup.ring("deadly/a")

    def parked() -> bool:
        setup.hint()  # as the scheduler would, when a delay is over
        return setup.place("deadly/a") == "parked"

    wait_until(parked, timeout=20, what=f"poison parked: {setup.said()[-3000:]}")
    trouble = setup.trouble("deadly/a")
    assert trouble.reason == "poison"
    assert trouble.crashes == 3
    assert len(setup.ran("dying")) == 4  # once among others, three times alone
    for mate in mates:
        setup.until_place(mate, "idle")
        assert uncharged(setup, mate)
    setup.ring("noted/after")
    setup.until_place("noted/after", "idle")
    assert setup.stop(worker) == 0


def test_a_stuck_action_is_killed_and_only_it_is_charged(setup: Setup) -> None:
    worker = setup.worker("--slots", "2")
    setup.ring("slow/mate-1.5", lane="slow")
    wait_until(lambda: setup.ran("start"))
    setup.ring("stuck/a")
    wait_until(lambda: setup.trouble("stuck/a").failures == 1, what=f"a timeout: {setup.said()}")
    error = setup.trouble("stuck/a").error
    assert error is not None
    assert error.type == "TimedOut"
    assert setup.trouble("stuck/a").crashes == 0
    assert uncharged(setup, "slow/mate-1.5")
    assert setup.trouble("slow/mate-1.5").suspect == 0
    assert setup.stop_now(worker) == 0


def test_children_die_with_their_worker(setup: Setup) -> None:
    worker = setup.worker()
    child = setup.child_of(worker)
    worker.kill()
    worker.wait(5)

    def gone() -> bool:
        return not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE

    wait_until(gone, timeout=3)


def test_a_dead_workers_refs_run_again_after_the_lease(setup: Setup) -> None:
    worker = setup.worker()
    setup.ring("slow/a-30", lane="slow")
    wait_until(lambda: setup.ran("start"))
    worker.kill()
    worker.wait(5)
    assert setup.place("slow/a-30") == "lease"
    scripts = setup.door.scripts

    def reaped() -> bool:
        setup.door.run(scripts.reap(["slow"], gap_us=60_000_000, wait_us=0, lease_us=2_000_000))
        return setup.place("slow/a-30") == "due"

    wait_until(reaped)
    assert setup.trouble("slow/a-30").suspect == 1
    again = setup.worker()
    wait_until(lambda: len(setup.ran("start")) == 2)
    assert setup.stop_now(again) == 0


def test_a_thread_that_a_suspect_leaves_behind_is_not_charged_to_the_next_suspect(setup: Setup) -> None:
    worker = setup.worker("--slots", "3")
    mates = ["slow/b-0.6", "slow/c-0.6"]
    setup.enqueue(*mates)
    setup.hint("slow", *mates)
    wait_until(lambda: len(setup.ran("start")) == 2)
    setup.ring("stray/a")  # kills the child in which the others run too; each runs alone then, one of them after it
    for ref in ("stray/a", *mates):
        setup.until_place(ref, "idle")
    assert [line for line in setup.ran() if "start" in line or "stray" in line][-1] != "stray a"
    assert len(setup.ran("stray")) == 2
    assert [setup.trouble(ref).crashes for ref in mates] == [0, 0]
    assert setup.stop(worker) == 0
