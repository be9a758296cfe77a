"""A sweep against a server that is a formula: it must find its bend and its limit, in few loads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks.harness import sweep
from benchmarks.harness.sweep import Point

LIMIT = 0.9
"""Share of its capacity up to which the server here meets its objectives."""


def served(rate: float, capacity: float) -> Point:
    """As a queue of one server answers (M/M/1), up to the end of its rope."""
    share = min(rate / capacity, 0.99)
    return Point(rate, min(rate, capacity), 1 / (1 - share), float(share <= LIMIT), rate > capacity)


@given(capacity=some.floats(0.05, 500), start=some.floats(0.05, 50))
def test_it_finds_the_limit_and_ends(capacity: float, start: float) -> None:
    points: list[Point] = []
    while (rate := sweep.next_rate(points, start)) is not None:
        assert rate not in [point.rate for point in points]
        points.append(served(rate, capacity))
        assert len(points) < 40
    best = max((point.rate for point in points if point.attainment == 1), default=None)
    assert best is not None
    assert LIMIT * capacity / sweep.PRECISION / 1.01 <= best <= LIMIT * capacity
    assert any(point.overloaded for point in points), "the bend was in sight"


def test_without_objectives_it_looks_for_the_knee() -> None:
    points: list[Point] = []
    while (rate := sweep.next_rate(points, 0.5)) is not None:
        points.append(served(rate, 16.0)._replace(attainment=None))
    # The power of this queue, ρ(1 − ρ), is largest at half its capacity.
    best = max(points, key=lambda point: point.throughput / point.latency)
    assert 8 / 1.45 <= best.rate <= 8 * 1.45
    assert len(points) <= 12


def test_a_start_that_is_too_high_goes_down() -> None:
    points = [served(64.0, 4.0)]
    assert sweep.next_rate(points, 64.0) == 32


def test_a_server_that_meets_nothing_ends_the_sweep() -> None:
    points: list[Point] = []
    while (rate := sweep.next_rate(points, 1.0)) is not None and len(points) < 100:
        points.append(Point(rate, rate, 1.0, 0.0, rate > 8))
    assert len(points) < 40


@pytest.mark.parametrize(
    ("drain", "expected"), [(0.5, False), (1.9, False), (4.9, False), (5.5, True), (60, True)]
)
def test_overloaded_is_a_queue_that_outlives_the_load(drain: float, expected: bool) -> None:
    assert sweep.overloaded(drain, seconds=30, alone=1.0) is expected
