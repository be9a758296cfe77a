"""Which loads a sweep tries: far enough to see the curve bend, and close where its answers lie. Pure.

Three questions, in this order: where is more asked than is served, what is the highest rate that meets the
objectives, where is the knee. Every step follows from the points so far, so that a sweep can be cut off and
its points are still the ones that mattered most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.harness.curve import ATTAINMENT

FACTOR = 2.0
"""From one rate to the next while the bend is not in sight."""
PRECISION = 1.15
"""Neighbours of an answer closer than this are close enough: repeats of one rate differ by as much."""
LEAST_RATE = 1e-3
"""Requests a second: one in a quarter of an hour."""
LATE_SHARE = 0.1
"""Of the load's duration, that answers may take after its end besides what a lone answer takes."""


class Point(NamedTuple):
    """One load that was tried."""

    rate: float
    """Requests per second that were offered."""
    throughput: float
    """Tokens, images or requests per second that came back."""
    latency: float
    """Median seconds of an answer."""
    attainment: float | None
    """Share of requests that met the objectives; None without any."""
    overloaded: bool
    """More was asked than was served, see `overloaded`."""


def overloaded(drain: float, seconds: float, alone: float) -> bool:
    """Whether a queue had grown: answers went on coming for longer after the last request than one answer
    takes.

    Args:
        drain: seconds from the last request to the last answer.
        seconds: that requests were sent.
        alone: seconds of an answer at the lightest load.
    """
    return drain > 2 * alone + LATE_SHARE * seconds


def next_rate(points: Sequence[Point], start: float, precision: float = PRECISION) -> float | None:
    """The rate to try next; None when all is known.

    Args:
        start: the first one, well below what the server can do.
    """
    if not points:
        return start
    by_rate = sorted(points)
    serves: Callable[[Point], bool] = lambda point: not point.overloaded  # noqa: E731
    meets: Callable[[Point], bool] = lambda point: (point.attainment or 0.0) >= ATTAINMENT  # noqa: E731
    rate = _boundary(by_rate, serves, FACTOR)  # only far enough to have it in sight
    if rate is None and any(point.attainment is not None for point in by_rate):
        rate = _boundary(by_rate, meets, precision)
    return rate if rate is not None else _knee(by_rate, max(precision, math.sqrt(FACTOR)))


def _boundary(points: Sequence[Point], holds: Callable[[Point], bool], precision: float) -> float | None:
    """The rate that narrows down where `holds` ends; None when it is known to `precision`."""
    failing = next((point.rate for point in points if not holds(point)), None)
    if failing is None:
        return points[-1].rate * FACTOR
    passing = max((point.rate for point in points if point.rate < failing), default=None)
    if passing is None:
        return failing / FACTOR if failing / FACTOR >= LEAST_RATE else None
    return math.sqrt(passing * failing) if failing / passing > precision * 1.001 else None


def _knee(points: Sequence[Point], precision: float) -> float | None:
    """Closer to where throughput over latency is largest (see `curve.knee`): the wider gap first."""
    best = max(
        range(len(points)), key=lambda place: points[place].throughput / (points[place].latency or 1.0)
    )
    if best == 0 and points[0].rate / FACTOR >= LEAST_RATE and len(points) < 3:
        return points[0].rate / FACTOR
    gaps = [(points[place], points[place + 1]) for place in (best - 1, best) if 0 <= place < len(points) - 1]
    widest = max(gaps, key=lambda gap: gap[1].rate / gap[0].rate, default=None)
    if widest is None or widest[1].rate / widest[0].rate <= precision * 1.001:
        return None
    return math.sqrt(widest[0].rate * widest[1].rate)
