"""How many refs a worker takes at once."""

from __future__ import annotations

from setpoint_workers.intake import Intake


def test_at_first_it_takes_no_more_than_there_are_free_slots() -> None:
    intake = Intake(4)
    assert [intake.room(held) for held in (0, 3, 4, 9)] == [4, 1, 0, 0]


def test_quick_work_doubles_the_batch_and_batches_overlap() -> None:
    intake = Intake(4)
    intake.finished(4, 4 * 100, 200)
    assert intake.batch == 8
    assert [intake.room(held) for held in (0, 8, 9)] == [8, 8, 0]
    for _ in range(10):
        intake.finished(256, 256 * 100, 4000)
    assert intake.batch == 256


def test_a_batch_is_no_more_than_the_slots_finish_in_ten_milliseconds() -> None:
    intake = Intake(4)
    for _ in range(10):
        intake.finished(256, 256 * 1_000, 1_100)
    assert intake.batch == 40


def test_one_slow_evaluation_ends_all_batching() -> None:
    intake = Intake(4)
    intake.finished(4, 4 * 100, 200)
    intake.finished(1, 5_001, 5_001)
    assert intake.batch == 4
