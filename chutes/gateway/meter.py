"""What a worker counts: the requests that ended, and the gaps between the chunks of streams.

Counting costs a request one record; telling control costs one message for all that ended since the last.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from chutes import wire
from chutes.gateway import limits

monotonic: Final = time.monotonic


class Meter:
    """The counts of one worker.

    Args:
        send: takes each message.
    """

    def __init__(self, send: Callable[[wire.Usage], None]) -> None:
        self._send = send
        self._records: list[wire.Record] = []
        self._buckets: list[float] = list(wire.GAP_BUCKETS)
        self._gaps = [0] * (len(wire.GAP_BUCKETS) + 1)
        self._any_gap = False
        self._refused: dict[tuple[int, str], int] = {}
        self._wall = time.time() - monotonic()

    def started(self, at: float) -> float:
        """Unix time of a monotonic one. The wall clock may be set back; durations must not notice."""
        return self._wall + at

    def add(self, record: wire.Record) -> None:
        self._records.append(record)
        if len(self._records) >= limits.RECORDS_HELD:
            self.flush()

    def gap(self, seconds: float) -> None:
        """Two chunks of a stream came so far apart."""
        self._any_gap = True
        self._gaps[bisect_left(self._buckets, seconds)] += 1

    def refused(self, status: int, code: str) -> None:
        """A request was not let in: no key, no such model, no JSON."""
        self._refused[status, code] = self._refused.get((status, code), 0) + 1

    def flush(self) -> None:
        """Tell control; called several times a second, and at the end."""
        if not self._records and not self._any_gap and not self._refused:
            return
        refused = [(status, code, count) for (status, code), count in self._refused.items()]
        self._refused.clear()
        records, self._records = self._records, []
        gaps: list[int] = []
        if self._any_gap:
            gaps, self._gaps = self._gaps, [0] * len(self._gaps)
            self._any_gap = False
        self._wall = time.time() - monotonic()
        self._send(wire.Usage(records, gaps, refused))
