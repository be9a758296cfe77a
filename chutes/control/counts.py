"""What Prometheus is told of requests, added up as they end.

prometheus_client costs a microsecond and more for every value that is added to a labelled series; a
request touches eight. So its objects are made only when somebody asks (`metrics.py`), out of the plain
sums here. Every dictionary is bounded: chutes and instances are those of the platform, never what a
client wrote.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable

from chutes.wire import GAP_BUCKETS, Record

TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
SECONDS_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
QUEUE_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

# The gateway has some thirty codes; should an engine's own ever get through, they must not be without end.
MAX_CODES = 64


class Histogram:
    """Counts by bucket, not yet cumulative, and the sum of what was counted."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus wants it: how many were at most this long."""
        total, rows = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            rows.append((bound, float(total)))
        return rows


class ChuteCounts:
    """Sums of one chute."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[int, bool], int] = defaultdict(int)
        """By status, and whether a stream was asked for."""
        self.errors: defaultdict[str, int] = defaultdict(int)
        self.instances: defaultdict[str, int] = defaultdict(int)
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.retries = 0
        self.wakes = 0
        self.ttft = Histogram(TTFT_BUCKETS)
        self.seconds = Histogram(SECONDS_BUCKETS)
        self.queue = Histogram(QUEUE_BUCKETS)


class Counts:
    """All sums since the platform started."""

    def __init__(self) -> None:
        self.chutes: dict[str, ChuteCounts] = {}
        """By chute id; "" for requests that never got as far as a chute."""
        self.gaps = [0] * (len(GAP_BUCKETS) + 1)
        self._codes: set[str] = set()

    def take(self, records: Iterable[Record], gaps: list[int]) -> None:
        chutes = self.chutes
        for record in records:
            chute = chutes.get(record.chute_id)
            if chute is None:
                chute = chutes[record.chute_id] = ChuteCounts()
            chute.requests[record.status, record.stream] += 1
            if record.error:
                chute.errors[self._code(record.error)] += 1
            if record.instance_id:
                chute.instances[record.instance_id] += 1
                chute.seconds.add(record.duration)
                chute.queue.add(record.queued)
                # Of an answer in one piece the first byte says nothing about its first token.
                if record.stream and record.first > 0 and record.status < 400:
                    chute.ttft.add(record.first)
            chute.prompt_tokens += record.prompt_tokens
            chute.completion_tokens += record.completion_tokens
            chute.cached_tokens += record.cached_tokens
            chute.retries += record.retries
        if len(gaps) == len(self.gaps):
            self.gaps = [total + more for total, more in zip(self.gaps, gaps, strict=True)]

    def refused(self, refused: Iterable[tuple[int, str, int]]) -> None:
        """Requests that were not let in; they belong to no chute."""
        nobody = self.chutes.setdefault("", ChuteCounts())
        for status, code, count in refused:
            nobody.requests[status, False] += count
            nobody.errors[self._code(code)] += count

    def woke(self, chute_id: str) -> None:
        self.chutes.setdefault(chute_id, ChuteCounts()).wakes += 1

    def forget(self, chutes: Collection[str], instances: Collection[str]) -> None:
        """Drop all but these: ids of instances are new with every restart, and the sums must not grow so."""
        self.chutes = {id_: chute for id_, chute in self.chutes.items() if id_ in chutes or id_ == ""}
        for chute in self.chutes.values():
            for gone in [id_ for id_ in chute.instances if id_ not in instances]:
                del chute.instances[gone]

    def _code(self, code: str) -> str:
        if code not in self._codes:
            if len(self._codes) >= MAX_CODES:
                return "other"
            self._codes.add(code)
        return code
