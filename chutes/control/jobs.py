"""Runs of jobs as data: which may start, how one ended, which are kept. Pure; effects are in `job_runs`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from chutes.chute.spec import JobSpec
from chutes.exception import DoesNotFit, InvalidSpec

AT_ONCE = 4  # they share this machine with the instances, and wait in order otherwise
QUEUE = 100  # whoever sends more has a loop in it
KEPT_RUNS = 50  # of all chutes; older ones are forgotten with their files
KEPT_BYTES = 20 << 30
OUTPUT_BYTES = 4 << 30  # a fine-tuned adapter many times over
OUTPUT_FILES = 1000
ARGUMENT_BYTES = 1 << 20


class Status(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETE = "complete"
    CANCELLED = "cancelled"
    ERROR = "error"
    TIMEOUT = "timeout"
    LOST = "lost"
    """The platform went down meanwhile, and the run with it."""

    @property
    def over(self) -> bool:
        return self not in (Status.PENDING, Status.RUNNING)


class File(BaseModel, frozen=True):
    path: str
    """Relative, with slashes."""
    size: int
    """Bytes."""


class Run(BaseModel, frozen=True):
    job_id: str
    chute_id: str
    chute: str
    """Name of the chute."""
    method: str
    """Name of the job's function."""
    status: Status = Status.PENDING
    args: dict[str, Any] = {}
    ports: list[dict[str, Any]] = []
    """As declared, with `number`: where this run listens on this machine."""
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    result: Any = None
    detail: str = ""
    """Message and traceback of what went wrong."""
    files: list[File] = []
    left_out: list[str] = []
    """Files beyond the bounds on what is kept."""
    cancelling: bool = False

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def check(runs: Iterable[Run], job: JobSpec, args: Mapping[str, Any], size: int) -> None:
    """Whether one more may be taken. Raises InvalidSpec or DoesNotFit."""
    if "output_dir" in args:
        raise InvalidSpec(f"Job {job.name!r}: output_dir is the platform's to give.", "Leave it out.")
    if size > ARGUMENT_BYTES:
        raise InvalidSpec(
            f"Job {job.name!r}: arguments of {size} bytes; {ARGUMENT_BYTES} are taken.", "Pass a URL instead."
        )
    if sum(not run.status.over for run in runs) >= QUEUE:
        raise DoesNotFit(f"{QUEUE} jobs are waiting or running.", "`chutes jobs cancel` some, or wait.")


def to_start(runs: Iterable[Run]) -> list[str]:
    """Ids of the runs that may start now, the oldest first."""
    running = 0
    found: list[str] = []
    for run in sorted(runs, key=lambda run: run.created_at):
        running += run.status == Status.RUNNING
        if run.status == Status.PENDING:
            found.append(run.job_id)
    return found[: max(0, AT_ONCE - running)]


def ended(run: Run, outcome: Mapping[str, Any] | None, why: str, now: float, late: bool = False) -> Run:
    """A run whose process is gone.

    Args:
        outcome: what the job's process wrote: the published shapes of `Job.run`; None if it wrote nothing.
        why: how the process ended, for when it wrote nothing.
        late: it was ended because it did not keep to its timeout.
    """
    said = outcome or {}
    try:
        status = Status(said.get("status", ""))
    except ValueError:
        status = Status.TIMEOUT if late else Status.CANCELLED if run.cancelling else Status.ERROR
    detail = str(said.get("detail", "")) or (why if status == Status.ERROR else "")
    if status == Status.TIMEOUT and not detail:
        detail = "It did not end when its time was over and was killed."
    return run.model_copy(
        update={"status": status, "result": said.get("result"), "detail": detail, "ended_at": now}
    )


def lost(run: Run, now: float) -> Run:
    """What a platform makes of a run that it finds unfinished when it starts."""
    if run.status.over:
        return run
    detail = "The platform went down while it ran or waited; run it again."
    return run.model_copy(update={"status": Status.LOST, "detail": detail, "ended_at": now})


def to_forget(runs: Iterable[Run]) -> list[str]:
    """Ids of finished runs beyond the bounds, the oldest first."""
    newest = sorted((run for run in runs if run.status.over), key=lambda run: -(run.ended_at or 0))
    total = 0
    found: list[str] = []
    for kept, run in enumerate(newest, 1):
        total += run.size
        # The newest stays whatever its size: it is what somebody waits for.
        if kept > 1 and (kept > KEPT_RUNS or total > KEPT_BYTES):
            found.append(run.job_id)
    return found[::-1]


def choose_files(found: Iterable[File]) -> tuple[list[File], list[str]]:
    """Which output files are kept, small ones first, and the names of the others."""
    kept: list[File] = []
    left_out: list[str] = []
    total = 0
    for file in sorted(found, key=lambda file: (file.size, file.path)):
        if len(kept) < OUTPUT_FILES and total + file.size <= OUTPUT_BYTES:
            kept.append(file)
            total += file.size
        else:
            left_out.append(file.path)
    return sorted(kept, key=lambda file: file.path), sorted(left_out)
