"""The line of pictures and the thread that draws them; a painter of plain values plays the pipeline."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from chutes.engine.inside.drawing.asked import Picture
from chutes.engine.inside.drawing.shelf import KEPT_SECONDS, Shelf
from chutes.engine.inside.drawing.studio import Drawn, Failed, Full, Job, OutOfMemory, Step, Studio

SECONDS = 10  # to wait for the thread; a busy machine needs some of them


class Painter:
    """Paints a picture by its prompt, in as many steps as it has; what it did is written down."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.batches: list[list[str]] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def draw(
        self, pictures: Sequence[Picture], on_step: Callable[[int, int, Callable[[int], Any]], None]
    ) -> list[Drawn]:
        if len(pictures) > self.most:
            raise OutOfMemory
        self.batches.append([picture.prompt for picture in pictures])
        self.begun.set()
        total = pictures[0].steps or 1
        for step in range(1, total + 1):
            self.go_on.wait(SECONDS)
            on_step(step, total, lambda index: f"{pictures[index].prompt} so far")
        if pictures[0].prompt == "impossible":
            raise ZeroDivisionError("in the pipeline")
        return [Drawn(picture.prompt.upper()) for picture in pictures]


def picture(prompt: str, side: int = 128, steps: int = 2) -> Picture:
    return Picture(prompt, "", side, side, 0, steps, None)


class Client:
    def __init__(self, one: Picture, previews: int = 0) -> None:
        self.told: queue.Queue[Any] = queue.Queue()
        self.job = Job(one, self.told.put, previews)

    def until_done(self) -> list[Any]:
        """All that it is told, up to the picture or the failure."""
        found: list[Any] = []
        while not found or isinstance(found[-1], Step):
            found.append(self.told.get(timeout=SECONDS))
        return found


@pytest.fixture
def painter() -> Painter:
    return Painter()


def studio_of(painter: Painter, **settings: int) -> Studio:
    studio = Studio(painter, **settings)
    studio.start()
    return studio


def test_each_is_told_its_steps_and_its_picture(painter: Painter):
    studio = studio_of(painter)
    client = Client(picture("cat", steps=4), previews=1)
    studio.add([client.job])
    assert client.until_done() == [
        Step(1, 4), Step(2, 4, "cat so far"), Step(3, 4), Step(4, 4), Drawn("CAT"),
    ]  # fmt: skip
    assert (studio.counts.pictures, studio.counts.batches, studio.waiting) == (1, 1, 0)


@pytest.mark.parametrize(
    ("steps", "previews", "seen"), [(10, 3, 3), (10, 0, 0), (2, 3, 1), (1, 1, 0), (4, 3, 3)]
)
def test_previews_are_spread_over_the_steps_and_none_is_the_end(
    painter: Painter, steps: int, previews: int, seen: int
):
    studio = studio_of(painter)
    client = Client(picture("cat", steps=steps), previews)
    studio.add([client.job])
    told = client.until_done()
    assert len([one for one in told if isinstance(one, Step) and one.preview]) == seen
    assert told[-2].preview is None


def test_what_waits_is_drawn_together_if_it_is_of_one_kind(painter: Painter):
    painter.go_on.clear()
    studio = studio_of(painter, batch=3)
    clients = [Client(picture("first"))]
    studio.add([clients[0].job])
    assert painter.begun.wait(SECONDS)  # the others come while it draws
    clients += [Client(picture(name)) for name in "ab"]
    clients += [Client(picture("larger", side=256)), *(Client(picture(name)) for name in "cd")]
    for client in clients[1:]:
        studio.add([client.job])
    assert studio.waiting == 5
    painter.go_on.set()
    assert [client.until_done()[-1].image for client in clients] == ["FIRST", "A", "B", "LARGER", "C", "D"]
    assert painter.batches == [["first"], ["a", "b", "c"], ["larger"], ["d"]]


def test_of_large_pictures_fewer_are_drawn_at_once(painter: Painter):
    studio = Studio(painter, batch=4)
    studio.add([Client(picture(str(number), side=2048)).job for number in range(2)])
    assert len(studio.take()) == 1
    studio = Studio(painter, batch=4)
    studio.add([Client(picture(str(number), side=1024)).job for number in range(6)])
    assert len(studio.take()) == 4


def test_the_line_is_bounded_and_one_request_always_goes_in(painter: Painter):
    studio = Studio(painter, most_waiting=4)
    studio.add([Client(picture("a")).job] * 6)
    with pytest.raises(Full):
        studio.add([Client(picture("b")).job])
    for job in studio._line:
        job.cancelled = True
    studio.add([Client(picture("b")).job])  # those that have gone take no room
    assert [job.picture.prompt for job in studio.take()] == ["b"]


def test_who_has_gone_is_not_drawn_and_a_batch_goes_on_for_the_others(painter: Painter):
    painter.go_on.clear()
    studio = studio_of(painter)
    leaver, stayer = Client(picture("a")), Client(picture("b"))
    studio.add([leaver.job, stayer.job])
    assert painter.begun.wait(SECONDS)
    waiting = Client(picture("c"))
    studio.add([waiting.job])
    waiting.job.cancelled = leaver.job.cancelled = True
    painter.go_on.set()
    assert stayer.until_done()[-1] == Drawn("B")
    last = Client(picture("d"))
    studio.add([last.job])
    assert last.until_done()[-1] == Drawn("D")
    assert painter.batches == [["a", "b"], ["d"]]
    assert not any(isinstance(one, Step) for one in waiting.told.queue)


def test_a_batch_that_nobody_wants_any_more_stops_at_its_next_step(painter: Painter):
    painter.go_on.clear()
    studio = studio_of(painter)
    client, after = Client(picture("a", steps=50)), Client(picture("b"))
    studio.add([client.job])
    assert painter.begun.wait(SECONDS)
    client.job.cancelled = True
    painter.go_on.set()
    studio.add([after.job])
    assert after.until_done()[-1] == Drawn("B")
    assert (client.told.qsize(), studio.counts.pictures) == (0, 1)


def test_what_does_not_fit_together_is_drawn_in_parts():
    painter = Painter(most=1)
    studio = studio_of(painter)
    clients = [Client(picture(name)) for name in "abc"]
    studio.add([client.job for client in clients])
    assert [client.until_done()[-1].image for client in clients] == ["A", "B", "C"]
    painter.most = 0
    studio.add([clients[0].job])
    (failure,) = clients[0].until_done()
    assert isinstance(failure, Failed)
    assert "128x128" in str(failure)


def test_a_pipeline_that_fails_says_so_and_the_next_is_drawn(painter: Painter):
    studio = studio_of(painter)
    for name, wanted in (("impossible", "The pipeline failed: ZeroDivisionError."), ("cat", "CAT")):
        client = Client(picture(name))
        studio.add([client.job])
        told = client.until_done()[-1]
        assert (told.image if isinstance(told, Drawn) else str(told)) == wanted
    assert (studio.alive, studio.counts.failures) == (True, 1)
    studio.close()
    assert studio._thread is not None
    studio._thread.join(SECONDS)
    assert not studio.alive


def test_a_shelf_keeps_pictures_for_a_while_and_so_many_bytes():
    shelf = Shelf("i-1.", kept_bytes=10)
    first = shelf.put(b"1234", "image/png", 0.0)
    assert first.startswith("i-1.")
    assert len(first) > 30
    assert shelf.get(first, KEPT_SECONDS - 1) == ("image/png", b"1234")
    assert shelf.get(first, KEPT_SECONDS) is None
    second, third = (shelf.put(b"1234", "image/png", 1.0) for _ in range(2))
    assert shelf.get(first, 2.0) is None  # it made room
    assert shelf.get(second, 2.0)
    assert shelf.get(third, 2.0)
    assert shelf.get("i-1.guess", 2.0) is None
    huge = shelf.put(b"12345678901", "image/png", 2.0)
    assert shelf.get(huge, 2.0)  # what has just been promised is there, however large
