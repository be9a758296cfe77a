"""How many requests were under way when, and which part of a run is worth measuring. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness.noise import Floats
from benchmarks.harness.records import Record

LEAST_REQUESTS = 20  # fewer have no steady state that one could tell
TREND = 1.2  # standard deviations between the means of both halves: steady growth makes 1.7, a level 0.4
LOOKS, BATCH = 200, 5  # at the requests under way, in batches as MSER-5 has them


def done(record: Record) -> float:
    """When the client had all of the answer: its last token, or its end where tokens were not streamed."""
    return record.ended if record.last is None else record.last


def whole(records: Sequence[Record]) -> tuple[float, float]:
    """From the first request's time to the last one's end."""
    if not records:
        return 0.0, 0.0
    return min(r.scheduled for r in records), max(max(r.ended, done(r)) for r in records)


def in_flight(records: Sequence[Record]) -> tuple[Floats, Floats]:
    """Times at which the number of requests under way changes, and the number from then on."""
    if not records:
        return np.empty(0), np.empty(0)
    times = np.concatenate([[r.scheduled for r in records], [max(r.ended, r.scheduled) for r in records]])
    steps = np.repeat([1.0, -1.0], len(records))
    order = np.lexsort((steps, times))  # who ends at the moment that another begins made room for it
    return times[order], np.cumsum(steps[order])


def steady_window(records: Sequence[Record]) -> tuple[float, float] | None:
    """The part of a run in which its load was on and its queue had found its level; None: there is none.

    It ends with the last arrival. Where it begins is White's rule (MSER-5, 1997): leave out as much of the
    beginning as makes the mean number of requests under way best known. A queue that grows until the end has
    its minimum at the bound of one half, or a trend: more load than can be served has no steady state.
    """
    if len(records) < LEAST_REQUESTS:
        return None
    start, end = min(r.scheduled for r in records), max(r.scheduled for r in records)
    if end <= start:
        return None
    times, under_way = in_flight(records)
    looks = np.linspace(start, end, LOOKS, endpoint=False)
    levels = under_way[np.searchsorted(times, looks, "right") - 1]
    batches = levels.reshape(-1, BATCH).mean(axis=1)
    count = len(batches)
    rests = [batches[cut:] for cut in range(count // 2 + 1)]
    errors = [float(rest.var()) / len(rest) for rest in rests]
    best = int(np.argmin(errors))
    rest = rests[best]
    early, late = rest[: len(rest) // 2].mean(), rest[len(rest) // 2 :].mean()
    if best == count // 2 or late - early > TREND * rest.std():
        return None
    return float(start + (end - start) * best / count), float(end)
