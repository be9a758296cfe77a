"""Runs of jobs as data."""

from __future__ import annotations

from typing import Any

import pytest

from chutes.chute.spec import JobSpec
from chutes.control import jobs
from chutes.control.jobs import File, Run, Status
from chutes.exception import DoesNotFit, InvalidSpec


def run(number: int, status: Status = Status.PENDING, **more: Any) -> Run:
    return Run(
        job_id=str(number), chute_id="c", chute="C", method="m", status=status, created_at=number, **more
    )


def test_the_oldest_start_first_and_only_so_many():
    waiting = [run(n) for n in (9, 3, 5, 4, 8)]
    assert jobs.to_start(waiting) == ["3", "4", "5", "8"]
    assert jobs.to_start([*waiting, run(1, Status.RUNNING), run(2, Status.COMPLETE)]) == ["3", "4", "5"]
    assert jobs.to_start([*waiting, *(run(n, Status.RUNNING) for n in range(20, 24))]) == []


@pytest.mark.parametrize(
    ("outcome", "cancelling", "late", "status", "detail"),
    [
        ({"status": "complete", "result": 3}, False, False, Status.COMPLETE, ""),
        ({"status": "complete", "result": 3}, True, False, Status.COMPLETE, ""),  # it was done already
        ({"status": "cancelled"}, True, False, Status.CANCELLED, ""),
        ({"status": "error", "detail": "boom\nTraceback"}, False, False, Status.ERROR, "boom\nTraceback"),
        ({"status": "timeout", "detail": "too long"}, False, False, Status.TIMEOUT, "too long"),
        (None, True, False, Status.CANCELLED, ""),
        (None, False, True, Status.TIMEOUT, "It did not end when its time was over and was killed."),
        (None, False, False, Status.ERROR, "killed"),
        ({"status": "splendid"}, False, False, Status.ERROR, "killed"),
    ],
)
def test_how_a_run_ended(outcome, cancelling, late, status, detail):
    over = jobs.ended(run(1, Status.RUNNING, cancelling=cancelling), outcome, "killed", 9.0, late)
    assert (over.status, over.detail, over.ended_at) == (status, detail, 9.0)
    assert over.result == (outcome or {}).get("result")


def test_what_a_platform_finds_unfinished_is_lost():
    assert jobs.lost(run(1, Status.RUNNING), 5.0).status == Status.LOST
    assert jobs.lost(run(1), 5.0).ended_at == 5.0
    done = run(1, Status.COMPLETE, ended_at=2.0)
    assert jobs.lost(done, 5.0) is done


def test_old_runs_are_forgotten_by_number_and_by_size():
    many = [run(n, Status.COMPLETE, ended_at=n) for n in range(jobs.KEPT_RUNS + 2)]
    assert jobs.to_forget([*many, run(999)]) == ["0", "1"]
    big = [File(path="w", size=jobs.KEPT_BYTES // 2 + 1)]
    some = [run(n, Status.ERROR, ended_at=n, files=big) for n in range(3)]
    assert jobs.to_forget(some) == ["0", "1"]
    huge = run(7, Status.COMPLETE, ended_at=7, files=[File(path="w", size=jobs.KEPT_BYTES * 2)])
    assert jobs.to_forget([huge]) == []


def test_files_are_bounded_and_the_rest_is_named():
    found = [File(path="big", size=jobs.OUTPUT_BYTES), File(path="a", size=1), File(path="b", size=2)]
    kept, left_out = jobs.choose_files(found)
    assert ([file.path for file in kept], left_out) == (["a", "b"], ["big"])
    many = [File(path=f"{n:05}", size=1) for n in range(jobs.OUTPUT_FILES + 1)]
    assert len(jobs.choose_files(many)[0]) == jobs.OUTPUT_FILES


def test_what_is_not_taken():
    job = JobSpec(name="m")
    jobs.check([], job, {"a": 1}, 10)
    with pytest.raises(InvalidSpec, match="output_dir"):
        jobs.check([], job, {"output_dir": "/etc"}, 10)
    with pytest.raises(InvalidSpec, match="arguments"):
        jobs.check([], job, {}, jobs.ARGUMENT_BYTES + 1)
    with pytest.raises(DoesNotFit, match="waiting or running"):
        jobs.check([run(n) for n in range(jobs.QUEUE)], job, {}, 10)
