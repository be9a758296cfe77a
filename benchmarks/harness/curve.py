"""A sweep as a curve: where it bends, and how far it may be loaded. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.harness.measures import Measures

ATTAINMENT = 0.99
"""Share of requests that must meet the objectives: as MLPerf's server scenario has it for its percentile."""


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """One load of a sweep."""

    name: str
    load: float
    """Requests a second that were offered, or requests at once in a closed loop."""
    measures: Measures

    @property
    def throughput(self) -> float:
        """Output tokens a second; requests where there are no tokens."""
        rates = self.measures.rates
        found = rates.get("output_tokens") or rates.get("images") or rates.get("requests")
        return found.value if found else 0.0

    @property
    def latency(self) -> float | None:
        """Median seconds until the whole answer was there, from its scheduled time."""
        found = self.measures.latencies.get("e2el")
        return found.percentiles[50].value if found else None


def knee(points: Sequence[CurvePoint]) -> CurvePoint | None:
    """Where throughput over latency is largest (Kleinrock's power, 1979): before it more load costs little
    time, after it more load buys little throughput. None for fewer than three points, or at an end of the
    sweep: the curve was not followed far enough to bend."""
    known = sorted((p for p in points if p.latency), key=lambda point: point.load)
    if len(known) < 3:
        return None
    best = max(known, key=lambda point: point.throughput / (point.latency or 1.0))
    return None if best in (known[0], known[-1]) else best


def highest_within(points: Sequence[CurvePoint], share: float = ATTAINMENT) -> CurvePoint | None:
    """The highest load up to which, at every load, so many requests met their objectives."""
    best: CurvePoint | None = None
    for point in sorted(points, key=lambda point: point.load):
        if point.measures.attainment is None or point.measures.attainment < share:
            break
        best = point
    return best
