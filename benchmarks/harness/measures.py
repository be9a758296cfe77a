"""From records to figures. Pure: no clock, no file. docs/benchmarks.md has the formulas and the reasons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from benchmarks.harness.noise import (
    Figure,
    Floats,
    Pool,
    draws,
    figure,
    of_blocks,
    quantiles,
    resampled_means,
    resampled_quantiles,
)
from benchmarks.harness.records import Record
from benchmarks.harness.steady import done, in_flight, whole
from chutes.exception import UsageError

PERCENTILES = (50, 90, 95, 99)
SLICES = 20  # of a window, for the noise of rates: enough for Student's t, long enough to be independent
LENGTH_SHARE, LENGTH_TOKENS = 0.05, 50  # off by more than either is another workload (AIPerf's rule)


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """What a request must meet to be a good one, in milliseconds; None: any will do."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    @classmethod
    def of(cls, limits: dict[str, float]) -> Slo | None:
        """From `Result.slo`; None without any limit.

        Raises:
            UsageError: a name that is no limit, or a limit that nothing meets.
        """
        for name, limit in limits.items():
            if name not in cls.__struct_fields__ or not 0 < limit < math.inf:
                raise UsageError(
                    f"{name}:{limit:g} is not an objective.",
                    "Objectives are ttft, tpot and e2el with milliseconds above 0, as in ttft:500.",
                )
        return cls(**limits) if limits else None

    def met_by(self, record: Record) -> bool:
        """A token that there is no second one of has no TPOT to miss; other figures that are missing miss."""
        if record.error:
            return False
        for limit, name in ((self.ttft, "ttft"), (self.tpot, "tpot"), (self.e2el, "e2el")):
            if limit is not None:
                value = LATENCIES[name](record)
                if value is None and name == "tpot" and (tokens(record) or 0) < 2:
                    continue
                if value is None or value * 1e3 > limit:
                    return False
        return True


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """One latency over all requests that have it. Seconds."""

    count: int
    """Requests; of `itl` and `gap` the gaps."""
    mean: Figure
    std: float
    min: float
    max: float
    percentiles: dict[int, Figure]
    """50, 90, 95, 99."""

    def trusted(self, percentile: int) -> bool:
        """Whether five values are expected beyond it: with fewer it is the run's luck."""
        return self.count * (100 - percentile) / 100 >= 5


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is said of one phase (and target)."""

    seconds: float
    """Length of the window, or of the whole run: first scheduled to last ended."""
    sent: int
    """Scheduled in the window."""
    completed: int
    failed: int
    latencies: dict[str, Distribution]
    """ttft, tpot, itl, gap, e2el, ntpot, ttft_sent, e2el_sent, lag; those that any request has."""
    rates: dict[str, Figure]
    """requests, input_tokens, output_tokens, total_tokens, images, failed: of each, how many a second, where
    there are any; goodput where there is an SLO."""
    totals: dict[str, int]
    """Of the same names, not divided by time."""
    attainment: float | None
    """Share of all requests that were good ones; None without an SLO."""
    errors: dict[str, int]
    """By kind."""
    checks: dict[str, int]
    """How many completed requests are not what was asked for; only what is not 0, see `check`."""
    cached_share: float | None
    """Of input tokens that came from the engine's prefix cache; None where it does not say."""
    peak_output_tokens: float
    """In the best whole second."""
    peak_in_flight: int


def tokens(record: Record) -> int | None:
    """Output tokens as the server counted them, else the events that carried some."""
    if record.output_tokens is not None:
        return record.output_tokens
    return None if record.first is None else 1 + len(record.times)


def _ttft(record: Record) -> float | None:
    return None if record.first is None else record.first - record.scheduled


def _tpot(record: Record) -> float | None:
    """Not of an answer that came at once: what it took per token is not in how long its events were apart."""
    count = tokens(record) or 0
    if record.first is None or record.last is None or count < 2 or not record.times:
        return None
    return (record.last - record.first) / (count - 1)


def _ntpot(record: Record) -> float | None:
    count = tokens(record)
    return (done(record) - record.scheduled) / count if count else None


LATENCIES: dict[str, Callable[[Record], float | None]] = {
    "ttft": _ttft,
    "tpot": _tpot,
    "e2el": lambda record: done(record) - record.scheduled,
    "ntpot": _ntpot,
    "ttft_sent": lambda record: None if record.first is None else record.first - record.sent,
    "e2el_sent": lambda record: done(record) - record.sent,
}
"""Of one request, in seconds; None where it has none."""


def measure(
    records: Sequence[Record],
    *,
    window: tuple[float, float] | None = None,
    slo: Slo | None = None,
    exact: bool = False,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> Measures:
    """All figures of one phase; of one target when the caller leaves out the other's records.

    Latencies are of requests that were scheduled in the window, however late they ended; rates are of what
    arrived in it, whenever it was asked for.

    Args:
        exact: whether the length of answers was forced, so that one token off is wrong.
    """
    return measure_all(
        [(records, window)], slo=slo, exact=exact, seed=seed, confidence=confidence, resamples=resamples
    )


def measure_all(
    repeats: Sequence[tuple[Sequence[Record], tuple[float, float] | None]],
    *,
    slo: Slo | None = None,
    exact: bool = False,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> Measures:
    """The same of several repeats of one load (records and window of each): latencies of all their requests;
    rates as means of the repeats, with the interval that is between them."""
    runs: list[tuple[list[Record], float, float]] = []
    inside: list[Record] = []
    for records, window in repeats:
        # Any order of records gives the same figures, as blocks of neighbours are neighbours in time.
        everyone = sorted(records, key=lambda record: (record.scheduled, record.number, record.target))
        start, end = window or whole(everyone)
        runs.append((everyone, start, end))
        inside += [record for record in everyone if start <= record.scheduled <= end]
    well = [record for record in inside if not record.error]
    good = sum(slo.met_by(record) for record in inside) if slo else 0
    pools = pools_of(well)
    if inside:
        lags = np.array([record.sent - record.scheduled for record in inside])
        pools["lag"] = Pool.of(lags, np.arange(len(inside))), len(inside)
    rates, totals = _rates(runs, slo, confidence)
    inputs = [
        (r.cached_tokens, r.input_tokens) for r in well if r.cached_tokens is not None and r.input_tokens
    ]
    return Measures(
        seconds=sum(end - start for _, start, end in runs),
        sent=len(inside),
        completed=len(well),
        failed=len(inside) - len(well),
        latencies=_distributions(pools, seed, confidence, resamples),
        rates=rates,
        totals=totals,
        attainment=good / len(inside) if slo and inside else None,
        errors=dict(Counter(record.error for record in inside if record.error).most_common()),
        checks=check(well, exact=exact),
        cached_share=sum(c for c, _ in inputs) / sum(n for _, n in inputs) if inputs else None,
        peak_output_tokens=max((_peak_tokens(everyone) for everyone, _, _ in runs), default=0.0),
        peak_in_flight=int(max((max(in_flight(e)[1], default=0) for e, _, _ in runs), default=0)),
    )


def check(records: Sequence[Record], *, exact: bool = False) -> dict[str, int]:
    """What of completed requests is not as asked: by kind, how many.

    `output_length`, `input_length`: off by more than 5 % or 50 tokens, or at all where `exact` (output only).
    `uncounted`: the server did not say how many tokens it gave. `at_once`: several tokens in one event, so
    that there is no TPOT. `disordered`: times that run backwards.
    """
    found: Counter[str] = Counter()
    for record in records:
        found["output_length"] += _off(record.output_tokens, record.wanted_output_tokens, exact)
        found["input_length"] += _off(record.input_tokens, record.wanted_input_tokens, False)
        found["uncounted"] += record.first is not None and record.output_tokens is None
        found["at_once"] += record.first is not None and not record.times and (tokens(record) or 0) > 1
        times = [record.sent, *([record.first] if record.first is not None else []), *record.times]
        found["disordered"] += any(np.diff([*times, record.ended]) < 0)
    return {name: int(count) for name, count in found.items() if count}


def _off(got: int | None, wanted: int | None, exact: bool) -> bool:
    if got is None or wanted is None:
        return False
    return abs(got - wanted) > (0 if exact else min(LENGTH_SHARE * wanted, LENGTH_TOKENS))


def pools_of(records: Sequence[Record]) -> dict[str, tuple[Pool, int]]:
    """By name of the latency; and of how many requests."""
    pools: dict[str, tuple[Pool, int]] = {}
    for name, latency in LATENCIES.items():
        pairs = [(value, n) for n, r in enumerate(records) if (value := latency(r)) is not None]
        if pairs:
            values, owners = zip(*pairs, strict=True)
            pools[name] = (Pool.of(np.array(values), np.array(owners)), len(records))
    gaps, owners, weights = gaps_of(records)
    if len(gaps):
        pools["gap"] = Pool.of(gaps, owners), len(records)
        pools["itl"] = Pool.of(gaps / weights, owners, weights), len(records)
    return pools


def gaps_of(records: Sequence[Record]) -> tuple[Floats, Any, Floats]:
    """Seconds between each two events with tokens, whose request's they are (by place), and how many tokens
    an event after the first carries in that request on average: (tokens − 1) / (events − 1)."""
    gaps: list[Floats] = []
    owners: list[Any] = []
    weights: list[Floats] = []
    for place, record in enumerate(records):
        if record.first is None or not record.times:
            continue
        between = np.diff(np.array([record.first, *record.times]))
        share = max(1, (tokens(record) or 0) - 1) / len(between)
        gaps.append(between)
        owners.append(np.full(len(between), place))
        weights.append(np.full(len(between), share))
    if not gaps:
        return np.empty(0), np.empty(0, dtype=np.intp), np.empty(0)
    return np.concatenate(gaps), np.concatenate(owners), np.concatenate(weights)


def _distributions(
    pools: dict[str, tuple[Pool, int]], seed: int, confidence: float, resamples: int
) -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    shares = np.array(PERCENTILES) / 100
    drawn: dict[tuple[int, int], Any] = {}
    for name, (pool, requests) in pools.items():
        if name == "itl" and (pool.weights == 1).all():
            found[name] = found["gap"]  # every event had one token
            continue
        key = requests, max(requests, len(pool.values))
        if key not in drawn:
            drawn[key] = draws(requests, resamples, seed, key[1])
        mean = float(np.average(pool.values, weights=pool.weights))
        exact = quantiles(pool.values, pool.weights, shares)
        around = resampled_quantiles(pool, drawn[key], shares)
        found[name] = Distribution(
            count=len(pool.values),
            mean=figure(mean, resampled_means(pool, drawn[key]), confidence),
            std=math.sqrt(float(np.average((pool.values - mean) ** 2, weights=pool.weights))),
            min=float(pool.values[0]),
            max=float(pool.values[-1]),
            percentiles={
                p: figure(float(exact[n]), around[:, n], confidence) for n, p in enumerate(PERCENTILES)
            },
        )
    return found


def token_times(record: Record) -> tuple[Floats, Floats]:
    """When tokens arrived and how many with each event; all at the end where they were not streamed."""
    count = tokens(record) or 0
    if record.first is None:
        return np.array([done(record)]), np.array([float(count)])
    if not record.times:
        return np.array([record.first]), np.array([float(count)])
    share = max(0, count - 1) / len(record.times)
    return np.array([record.first, *record.times]), np.array([1.0] + [share] * len(record.times))


def arrivals(records: Sequence[Record], slo: Slo | None = None) -> dict[str, tuple[Floats, Floats]]:
    """By name of the rate: when something arrived, and how much of it."""
    well = [record for record in records if not record.error]
    failed = [record for record in records if record.error]
    ends = np.array([done(record) for record in well])
    firsts = np.array([done(r) if r.first is None else r.first for r in well])
    each = [token_times(record) for record in well]
    times = np.concatenate([np.empty(0), *(at for at, _ in each)])
    counts = np.concatenate([np.empty(0), *(count for _, count in each)])
    inputs = np.array([float(record.input_tokens or 0) for record in well])
    found = {
        "requests": (ends, np.ones(len(well))),
        "input_tokens": (firsts, inputs),  # the prompt has been read when the first token comes
        "output_tokens": (times, counts),
        "total_tokens": (np.concatenate([firsts, times]), np.concatenate([inputs, counts])),
        "images": (ends, np.array([float(record.images) for record in well])),
        "failed": (np.array([done(record) for record in failed]), np.ones(len(failed))),
    }
    if slo:
        found["goodput"] = (ends, np.array([float(slo.met_by(record)) for record in well]))
    return found


def _rates(
    runs: Sequence[tuple[list[Record], float, float]], slo: Slo | None, confidence: float
) -> tuple[dict[str, Figure], dict[str, int]]:
    """How much of everything arrived in the windows, a second and in all."""
    runs = [run for run in runs if run[2] > run[1]]
    seconds = sum(end - start for _, start, end in runs)
    amounts: dict[str, list[float]] = {}
    parts: dict[str, Floats] = {}
    for records, start, end in runs:
        for name, (at, amount) in arrivals(records, slo).items():
            inside = (at >= start) & (at <= end)
            amounts.setdefault(name, []).append(float(amount[inside].sum()))
            parts[name] = slices(at, amount, start, end)
    rates: dict[str, Figure] = {}
    totals: dict[str, int] = {}
    for name, each in amounts.items():
        total = sum(each)
        if not total and name != "goodput":
            continue
        lengths = np.array([end - start for _, start, end in runs])
        blocks = parts[name] if len(runs) == 1 else np.array(each) / lengths
        around = of_blocks(blocks, confidence, total / seconds)
        rates[name] = Figure(around.value, max(0.0, around.low), around.high)
        totals[name] = round(total)
    return rates, totals


def slices(at: Floats, amount: Floats, start: float, end: float) -> Floats:
    """A second, in each of SLICES equal parts of a window."""
    return np.histogram(at, SLICES, (start, end), weights=amount)[0] / ((end - start) / SLICES)


def _peak_tokens(records: Sequence[Record]) -> float:
    at, amount = arrivals(records)["output_tokens"]
    return float(np.bincount((at - at.min()).astype(int), amount).max()) if len(at) else 0.0
