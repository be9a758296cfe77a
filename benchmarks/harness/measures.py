"""From records to figures. Pure: no clock, no file. docs/benchmarks.md has the formulas and the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks.harness.records import Record


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """What a request must meet to be a good one, in milliseconds; None: any will do."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None


class Figure(msgspec.Struct, frozen=True):
    """A value and the interval that it lies in with the asked-for confidence."""

    value: float
    low: float
    high: float


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """One latency over all requests that have it. Seconds."""

    count: int
    mean: Figure
    std: float
    min: float
    max: float
    percentiles: dict[int, Figure]
    """50, 90, 95, 99."""


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is said of one phase (and target)."""

    seconds: float
    sent: int
    completed: int
    failed: int
    latencies: dict[str, Distribution]
    """ttft, tpot, itl, gap, e2el, ttft_sent, e2el_sent, lag; those that any request has."""
    rates: dict[str, Figure]
    """requests, input_tokens, output_tokens, total_tokens, images: of each, how many a second; goodput where
    there is an SLO."""
    attainment: float | None
    """Share of all requests that were good ones."""
    errors: dict[str, int]
    lengths: dict[str, int]
    """Answers whose length was not the one asked for, see `lengths`."""


def measure(
    records: Sequence[Record],
    *,
    window: tuple[float, float] | None = None,
    slo: Slo | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> Measures:
    """All figures of one phase; of one target when the caller leaves out the other's records."""
    raise NotImplementedError


def steady_window(records: Sequence[Record]) -> tuple[float, float] | None:
    """The part of a run in which its load was on and its queue had found its level; None: there is none."""
    raise NotImplementedError


def summary(measures: Measures) -> dict[str, Any]:
    """Flat, under vLLM's names (`mean_ttft_ms`, `p99_tpot_ms`, `request_goodput`, …), milliseconds."""
    raise NotImplementedError
