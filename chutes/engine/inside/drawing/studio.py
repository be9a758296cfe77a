"""The line of pictures to draw, and the one thread that draws them, several of a kind at once.

A thread of its own because a pipeline holds its caller for seconds, and health checks must not wait for it.
The server's loop puts jobs in and is told of each by its `tell`, which is called in the drawing thread.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .asked import Picture

BATCH_PIXELS = 1024 * 1024
"""Of one picture, for which a batch size is meant: of larger ones fewer are drawn at once."""


class Full(Exception):
    """The line is as long as it may be."""


class Stopped(Exception):
    """Nobody wants any picture of this batch any more."""


class OutOfMemory(Exception):
    """A batch did not fit."""


class Failed(Exception):
    """A picture could not be drawn: why, for whoever asked."""


@dataclass(frozen=True)
class Step:
    """`done` of `total` steps are done; `preview` is what can be seen by then, where it was asked for."""

    done: int
    total: int
    preview: Any = None


@dataclass(frozen=True)
class Drawn:
    image: Any
    unsafe: bool = False
    """The pipeline's safety checker took it away."""


@dataclass
class Job:
    """One picture that somebody waits for."""

    picture: Picture
    tell: Callable[[Step | Drawn | Exception], None]
    previews: int = 0
    """How many times it wants to be seen before it is done."""
    cancelled: bool = False
    """Set by whoever asked, when it has gone."""


class Artist(Protocol):
    """Draws pictures of one kind in one call."""

    def draw(
        self,
        pictures: Sequence[Picture],
        on_step: Callable[[int, int, Callable[[int], Any]], None],
    ) -> list[Drawn]:
        """Blocking.

        Args:
            on_step: called after each step with (steps done, of how many, what shows picture number i as it
                is by then, or None). What it raises ends the drawing.

        Raises:
            OutOfMemory: so many do not fit.
        """
        ...


@dataclass
class Counts:
    """What has been drawn since the start."""

    pictures: int = 0
    batches: int = 0
    failures: int = 0
    seconds: float = 0.0
    drawing: int = 0
    """Pictures in hand now."""


class Studio:
    """The line and its thread.

    Args:
        most_waiting: pictures that may wait.
        batch: pictures of up to a million pixels that are drawn at once.
    """

    def __init__(self, artist: Artist, most_waiting: int = 32, batch: int = 4) -> None:
        self.artist = artist
        self.most_waiting = most_waiting
        self.batch = batch
        self.counts = Counts()
        self._line: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="draw", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def waiting(self) -> int:
        return sum(not job.cancelled for job in list(self._line))

    def add(self, jobs: Sequence[Job]) -> None:
        """Put jobs in line, all or none.

        Raises:
            Full: so many do not go in.
        """
        with self._changed:
            if any(job.cancelled for job in self._line):
                self._line = deque(job for job in self._line if not job.cancelled)
            # One request may always wait alone, however much it asks for.
            if self._line and len(self._line) + len(jobs) > self.most_waiting:
                raise Full
            self._line.extend(jobs)
            self._changed.notify_all()

    def take(self) -> list[Job]:
        """The oldest job and those after it that can be drawn with it; waits for one. Empty: closed."""
        with self._changed:
            while True:
                while self._line and self._line[0].cancelled:
                    self._line.popleft()
                if self._line or self._closed:
                    break
                self._changed.wait()
            if not self._line:
                return []
            first = self._line[0].picture
            room = max(1, self.batch * BATCH_PIXELS // max(BATCH_PIXELS, first.width * first.height))
            taken: list[Job] = []
            rest: deque[Job] = deque()
            for job in self._line:
                fits = len(taken) < room and not job.cancelled and job.picture.kind == first.kind
                (taken if fits else rest).append(job)
            self._line = rest
            return taken

    def _work(self) -> None:
        while jobs := self.take():
            self.counts.drawing = len(jobs)
            started = time.monotonic()
            try:
                self._draw(jobs)
            finally:
                self.counts.drawing = 0
                self.counts.seconds += time.monotonic() - started

    def _draw(self, jobs: list[Job]) -> None:
        try:
            drawn = self.artist.draw([job.picture for job in jobs], _Watch(jobs))
        except Stopped:
            return
        except OutOfMemory:
            jobs = [job for job in jobs if not job.cancelled]
            if len(jobs) > 1:
                half = len(jobs) // 2
                print(
                    f"out of memory with {len(jobs)} pictures at once: drawing {half} and the rest",
                    flush=True,
                )
                self._draw(jobs[:half])
                self._draw(jobs[half:])
            elif jobs:
                self.counts.failures += 1
                one = jobs[0].picture
                jobs[0].tell(Failed(f"There is not enough memory to draw {one.width}x{one.height} pixels."))
            return
        except Exception as error:
            traceback.print_exc()
            self.counts.failures += len(jobs)
            what = (
                str(error) if isinstance(error, Failed) else f"The pipeline failed: {type(error).__name__}."
            )
            for job in jobs:
                job.tell(Failed(what))
            return
        self.counts.batches += 1
        self.counts.pictures += len(jobs)
        for job, one in zip(jobs, drawn, strict=True):
            job.tell(one)


class _Watch:
    """Follows a batch: tells each job its steps, and stops when nobody waits any more."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs

    def __call__(self, done: int, total: int, preview: Callable[[int], Any]) -> None:
        if all(job.cancelled for job in self.jobs):
            raise Stopped
        for index, job in enumerate(self.jobs):
            if not job.cancelled:
                job.tell(Step(done, total, preview(index) if _due(done, total, job.previews) else None))


def _due(done: int, total: int, previews: int) -> bool:
    """Whether a preview is to be made after so many steps: they are spread evenly, none after the last."""
    return done < total and any(
        done == max(1, round(total * number / (previews + 1))) for number in range(1, previews + 1)
    )
