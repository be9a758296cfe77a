"""The loop of a client process: times are kept, and nobody who is late stops the others."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest

from benchmarks.harness.loop import IN, MOST_DUE, OUT, Limit, Loop, clock


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_times_come_in_order_and_never_too_early(loop: Loop) -> None:
    start, came = clock(), []
    for after in (0.03, 0.01, 0.02, 0.01, -1.0):
        loop.at(start + after, lambda due: came.append((due - start, clock() - due)))
    loop.at(start + 0.04, lambda _: loop.stop())
    loop.run()
    assert [round(after, 6) for after, _ in came] == [-1.0, 0.01, 0.01, 0.02, 0.03]
    assert all(late >= 0 for _, late in came)


def test_an_earlier_time_wakes_before_a_later_one_that_was_first(loop: Loop, pipe: tuple[int, int]) -> None:
    """The timer is set for the later one when the earlier comes to be known."""
    start, came = clock(), []
    loop.at(start + 5.0, lambda _: came.append("late"))

    def ready() -> None:
        loop.forget(pipe[0])
        loop.at(start + 0.05, lambda _: loop.stop())

    loop.at(start + 0.01, lambda _: loop.watch(pipe[0], ready))
    os.write(pipe[1], b"x")
    loop.run()
    assert came == []
    assert clock() - start < 4.0


def test_who_is_behind_its_times_still_reads(loop: Loop, pipe: tuple[int, int]) -> None:
    called: list[float] = []
    read_after: list[int] = []

    def ready() -> None:
        os.read(pipe[0], 1)
        read_after.append(len(called))

    loop.watch(pipe[0], ready)
    os.write(pipe[1], b"x")
    for _ in range(10 * MOST_DUE):
        loop.at(clock() - 1.0, called.append)
    loop.at(clock(), lambda _: loop.stop())
    loop.run()
    assert len(called) == 10 * MOST_DUE
    assert read_after == [MOST_DUE]


def test_what_has_come_is_read_before_any_of_it_is_looked_at(loop: Loop) -> None:
    pipes = [os.pipe() for _ in range(3)]
    told: list[str] = []

    def watch(name: str, descriptor: int) -> None:
        def read() -> None:
            os.read(descriptor, 1)
            told.append(f"read {name}")
            loop.after.append(lambda: told.append(f"look {name}"))

        loop.watch(descriptor, read)

    for number, (reads, writes) in enumerate(pipes):
        watch(str(number), reads)
        os.write(writes, b"x")
    loop.turn()
    assert sorted(told[:3]) == ["read 0", "read 1", "read 2"]
    assert [one.replace("read", "look") for one in told[:3]] == told[3:]
    for ends in pipes:
        for end in ends:
            os.close(end)


def test_one_who_is_forgotten_is_not_called_even_for_what_had_come(loop: Loop) -> None:
    (one, writes_one), (two, writes_two) = os.pipe(), os.pipe()
    called: list[str] = []

    def first(name: str, other: int) -> None:
        called.append(name)
        loop.forget(other)

    loop.watch(one, lambda: first("one", two))
    loop.watch(two, lambda: first("two", one))
    os.write(writes_one, b"x")
    os.write(writes_two, b"x")
    loop.turn()
    assert len(called) == 1
    for end in (one, two, writes_one, writes_two):
        os.close(end)


def test_what_is_watched_for_can_change(loop: Loop, pipe: tuple[int, int]) -> None:
    called: list[str] = []
    loop.watch(pipe[1], lambda: called.append("no"), IN)
    loop.watch(pipe[1], lambda: called.append("room"), OUT)
    loop.turn()
    assert called == ["room"]


def test_a_time_just_before_a_whole_second_comes(loop: Loop) -> None:
    """Its nanoseconds, rounded up, are a second."""
    due = math.nextafter(math.ceil(clock() + 0.01), 0.0)
    loop.at(due, lambda _: loop.stop())
    loop.run()
    assert 0 <= clock() - due < 5


def test_a_limit_ends_what_takes_longer_and_nothing_else(loop: Loop) -> None:
    start, late = clock(), []
    limit = Limit[str](loop, 0.05, lambda item: late.append((item, clock() - start)))
    limit.add("in time", start)
    limit.add("late", start)
    limit.add("later", start + 0.05)
    loop.at(start + 0.02, lambda _: limit.discard("in time"))
    loop.at(start + 0.3, lambda _: loop.stop())
    loop.run()
    assert [item for item, _ in late] == ["late", "later"]
    assert late[0][1] >= 0.05
    assert late[1][1] >= 0.1
    assert len(limit) == 0


def test_a_limit_ends_thousands_at_once(loop: Loop) -> None:
    """All that are late, not the first of them, each time somebody looks."""
    late: list[int] = []

    def end(item: int) -> None:
        late.append(item)
        if len(late) == 20_000:
            loop.stop()

    limit = Limit[int](loop, 0.0, end)
    turns = 0
    for item in range(20_000):
        limit.add(item, clock())
    loop.at(clock(), lambda _: None)
    while len(late) < 20_000:
        loop.turn()
        turns += 1
    assert late == list(range(20_000))
    assert turns < 10
