"""Results taken apart into what can be set side by side: single figures of single runs. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

from benchmarks.harness.measures import Slo, arrivals, pools_of, slices, tokens
from benchmarks.harness.noise import Figure, Floats, Pool, quantiles
from benchmarks.harness.records import Record
from benchmarks.harness.result import Phase, Result, Samples
from benchmarks.harness.steady import whole

CONFIDENCE = 0.99
"""Of each measure: of a hundred that did not change one is called different. At 0.95 it would be one in most
comparisons, as each has a dozen."""

LATENCIES: tuple[tuple[str, int], ...] = (
    ("ttft", 50), ("ttft", 99), ("tpot", 50), ("tpot", 99), ("gap", 99), ("e2el", 50), ("e2el", 99),
)  # fmt: skip
"""What is compared: a latency and its percentile."""
RATES = ("requests", "output_tokens", "input_tokens", "goodput", "images", "failed")

Verdict = Literal["better", "worse", "within noise"]
Point = tuple[str, str]
"""Name of a load, name of a target."""


@dataclass(frozen=True, eq=False)
class Run:
    """Requests of one phase to one target, those of its window, in order of their time."""

    records: Sequence[Record]
    """Scheduled in the window."""
    window: tuple[float, float]
    slo: Slo | None = None
    everyone: Sequence[Record] = field(default=(), repr=False)
    """With those before and after the window, whose tokens may have arrived in it."""

    @classmethod
    def of(cls, records: Sequence[Record], window: tuple[float, float] | None, slo: Slo | None = None) -> Run:
        everyone = sorted(records, key=lambda record: (record.scheduled, record.number))
        start, end = window or whole(everyone)
        inside = [record for record in everyone if start <= record.scheduled <= end]
        return cls(inside, (start, end), slo, everyone)

    @cached_property
    def _pools(self) -> dict[str, tuple[Pool, int]]:
        return pools_of([record for record in self.records if not record.error])

    @cached_property
    def _arrivals(self) -> dict[str, tuple[Floats, Floats]]:
        return arrivals(self.everyone, self.slo)

    def pool(self, latency: str) -> tuple[Pool, int] | None:
        """Its values, and of how many requests; None where no request has it."""
        return self._pools.get(latency)

    def percentile(self, latency: str, percentile: int) -> float | None:
        if (found := self.pool(latency)) is None:
            return None
        return float(quantiles(found[0].values, found[0].weights, np.array([percentile / 100]))[0])

    def rate(self, name: str) -> float:
        """A second, over the whole window."""
        start, end = self.window
        at, amount = self._arrivals.get(name, (np.empty(0), np.empty(0)))
        return float(amount[(at >= start) & (at <= end)].sum()) / (end - start) if end > start else 0.0

    def slices(self, name: str) -> Floats:
        """The same in each part of the window."""
        at, amount = self._arrivals.get(name, (np.empty(0), np.empty(0)))
        return slices(at, amount, *self.window) if self.window[1] > self.window[0] else np.empty(0)


def by_point(result: Result, slo: Slo | None = None) -> dict[Point, list[Run]]:
    """All runs by load and target; several of one are repeats, in the order of their blocks."""
    found: dict[Point, list[Run]] = defaultdict(list)
    for phase in sorted(result.phases, key=lambda phase: phase.block):
        for target, records in by_target(phase).items():
            found[phase.name, target].append(Run.of(records, phase.window, slo))
    return dict(found)


def by_target(phase: Phase) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in phase.records:
        found[record.target].append(record)
    return dict(found)


def verdict(change: Figure, *, lower_is_better: bool) -> Verdict:
    """Different only where the interval leaves no room for no change."""
    if change.low <= 0 <= change.high:
        return "within noise"
    return "better" if (change.value < 0) == lower_is_better else "worse"


def thin(result: Result) -> Result:
    """Small enough for a baseline in the tree: no samples, no times between first and last token."""

    def thinner(record: Record) -> Record:
        times = [] if record.last is None or not record.times else [record.last]
        return msgspec.structs.replace(record, times=times, output_tokens=tokens(record), message="")

    if result.thinned:
        return result
    phases = [
        msgspec.structs.replace(phase, records=[thinner(r) for r in phase.records], samples=Samples())
        for phase in result.phases
    ]
    return msgspec.structs.replace(result, phases=phases, thinned=True)
