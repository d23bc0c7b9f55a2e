"""Threads that share one row of work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from setpoint_workers.crew import Crew, Member
from tests.waiting import wait_until

Run = Callable[[Member, Callable[[], object]], None]


@pytest.fixture
def crew() -> Iterator[Crew[Member, Callable[[], object]]]:
    crew: Crew[Member, Callable[[], object]] = Crew(4, Member, lambda _member, item: item())
    before = threading.active_count()
    yield crew
    crew.close()
    wait_until(lambda: threading.active_count() <= before, 10, "the crew's threads end")


def test_a_row_no_longer_than_the_free_threads_runs_all_at_once(crew: Crew[Member, Callable[[], object]]) -> None:
    together = threading.Barrier(5)
    crew.add([lambda: together.wait(10)] * 4)
    together.wait(10)


def test_a_long_row_of_quick_work_is_run_by_one_thread(crew: Crew[Member, Callable[[], object]]) -> None:
    threads: list[int] = []
    done = threading.Event()
    crew.add([*[lambda: threads.append(threading.get_ident())] * 500, done.set])
    assert done.wait(10)
    assert len(threads) == 500
    assert len(set(threads)) == 1


def test_others_join_a_long_row_when_all_who_are_awake_are_stuck(crew: Crew[Member, Callable[[], object]]) -> None:
    go, ran = threading.Event(), threading.Semaphore(0)

    def stuck() -> None:
        ran.release()
        go.wait(10)

    crew.add([stuck] * 9)
    for _ in range(4):
        wait_until(lambda: ran.acquire(blocking=False) or crew.look(), 10, "one more joins")
    crew.look()
    assert crew.waiting
    assert crew.look_at() < float("inf"), "one of them may rest and leave the row to one that is stuck"
    assert not ran.acquire(blocking=False), "no more than its size"
    go.set()
    wait_until(lambda: not crew.waiting)


def test_nothing_is_left_in_the_row_when_items_come_one_by_one(crew: Crew[Member, Callable[[], object]]) -> None:
    ran: list[int] = []
    for i in range(2000):
        crew.add([lambda i=i: ran.append(i)])  # type: ignore[misc]
    wait_until(lambda: len(ran) == 2000)


def test_threads_that_joined_rest_again_when_work_is_quick(crew: Crew[Member, Callable[[], object]]) -> None:
    together = threading.Barrier(5)
    crew.add([lambda: together.wait(10)] * 4)
    together.wait(10)

    def threads_of_a_row() -> int:
        threads: list[int] = []
        done = threading.Event()
        crew.add([*[lambda: threads.append(threading.get_ident())] * 500, done.set])
        assert done.wait(10)
        return len(set(threads))

    wait_until(lambda: threads_of_a_row() == 1)
