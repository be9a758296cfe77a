"""What became of every measure from one result to another, and whether that is more than noise. Pure."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from benchmarks.harness.measures import Slo
from benchmarks.harness.noise import Figure, Floats, draws, mann_whitney, resampled_quantiles, welch
from benchmarks.harness.result import Result
from benchmarks.harness.runs import CONFIDENCE, LATENCIES, RATES, Point, Run, Verdict, by_point, thin, verdict
from chutes.exception import UsageError

RESAMPLES = 2000
LEAST_REPEATS = 3  # of two the spread is known to a factor of a hundred
BOUND = 0.05  # a change for the worse that a regression check lets pass
LOWER_IS_BETTER = {"failed"}  # of the rates; every latency is
NOT_COMPARED = {"output", "html", "png", "processes", "salt", "seed", "name", "notes"}
"""Fields of a config that do not change what is asked of the server."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of two results."""

    phase: str
    target: str
    measure: str
    """`ttft_p50`, `output_tokens`, …"""
    a: float
    b: float
    """Seconds, or a second."""
    change: Figure
    """b / a − 1, with its interval. Infinite where something came from nothing."""
    verdict: Verdict
    method: str
    """`repeats`: between repeats of both; `requests`, `slices`: within one run of each."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    differences: list[Difference]
    warnings: list[str]

    def worse(self, bound: float = BOUND) -> list[Difference]:
        """Worse beyond the noise and by more than `bound`: what a regression check fails for."""
        return [d for d in self.differences if d.verdict == "worse" and abs(d.change.value) > bound]


def compare(a: Result, b: Result, *, anyway: bool = False, seed: int = 0) -> Comparison:
    """Every measure that both have, from a to b.

    Args:
        anyway: compare although different things were asked; that becomes a warning.

    Raises:
        UsageError: the configs differ, or no load is in both.
    """
    warnings = list(_circumstances(a, b))
    if differing := config_differences(a, b):
        if not anyway:
            raise UsageError(
                "These results answer different questions: " + "; ".join(differing) + ".",
                "Measure with the same options, or compare them all the same with --anyway.",
            )
        warnings.insert(0, "DIFFERENT QUESTIONS: " + "; ".join(differing))
    if a.thinned or b.thinned:
        a, b = thin(a), thin(b)
    same_slo = a.slo == b.slo
    if not same_slo:
        warnings.append("goodput is not compared: the objectives differ")
    mine, others = (by_point(result, Slo.of(result.slo) if same_slo else None) for result in (a, b))
    pairs = _matched(mine, others)
    if not pairs:
        raise UsageError(
            f"No load is in both: the first has {_named(mine)}, the second {_named(others)}.",
            "Loads are matched by their name and target.",
        )
    for point in mine.keys() - pairs.keys():
        warnings.append(f"only in the first: {_named([point])}")
    for point in others.keys() - set(pairs.values()):
        warnings.append(f"only in the second: {_named([point])}")
    found: list[Difference] = []
    few: list[Point] = []
    for point, other in pairs.items():
        runs = mine[point], others[other]
        if min(map(len, runs)) < LEAST_REPEATS:
            few.append(point)
        found += _differences(point, *runs, gaps=not a.thinned, seed=seed)
    if few:
        warnings.append(
            f"fewer than {LEAST_REPEATS} repeats of {_named(few)}: those intervals know the noise within a "
            "run only, not that between runs"
        )
    return Comparison(differences=found, warnings=warnings)


def config_differences(a: Result, b: Result) -> list[str]:
    """Fields in which the two were asked different things: `load.rate: 4 → 8`."""
    mine, others = dict(_flat(a.config)), dict(_flat(b.config))
    return [
        f"{name}: {mine.get(name, 'not set')} → {others.get(name, 'not set')}"
        for name in sorted(mine.keys() | others.keys())
        if mine.get(name) != others.get(name) and not NOT_COMPARED & set(name.split("."))
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _circumstances(a: Result, b: Result) -> Iterator[str]:
    """What else was different: not a reason to refuse, but perhaps the reason for the difference."""
    mine, others = a.environment, b.environment
    for name in ("cpu", "cores", "memory_bytes", "system", "gpus"):
        if getattr(mine, name) != getattr(others, name):
            yield f"measured elsewhere: {name} {getattr(mine, name)} → {getattr(others, name)}"
    for name in sorted(mine.versions.keys() | others.versions.keys()):
        if mine.versions.get(name) != others.versions.get(name):
            yield f"version of {name}: {mine.versions.get(name)} → {others.versions.get(name)}"
    for one in a.targets:
        for other in b.targets:
            if one.name == other.name:
                for name in ("model", "engine", "engine_version", "deployment_version", "arguments"):
                    if getattr(one, name) != getattr(other, name):
                        yield f"{one.name}: {name} {getattr(one, name)} → {getattr(other, name)}"
    if a.seed != b.seed:
        yield f"other prompts: seed {a.seed} → {b.seed}"
    for result, which in ((a, "first"), (b, "second")):
        if result.interrupted:
            yield f"the {which} was interrupted: {result.interrupted}"


def _matched(mine: Iterable[Point], others: Iterable[Point]) -> dict[Point, Point]:
    """Which of the other's loads is set beside each. Where each asked one target, names need not agree."""
    mine, others = list(mine), list(others)
    renamed = len({target for _, target in mine}) == len({target for _, target in others}) == 1
    target = others[0][1] if renamed and others else ""
    wanted = {point: (point[0], target) if renamed else point for point in mine}
    return {point: other for point, other in wanted.items() if other in others}


def _named(points: Iterable[Point]) -> str:
    return ", ".join(f"{name or 'a load without a name'} at {target}" for name, target in points) or "none"


def _differences(
    point: Point, a: Sequence[Run], b: Sequence[Run], *, gaps: bool, seed: int
) -> Iterator[Difference]:
    repeats = min(len(a), len(b)) >= LEAST_REPEATS
    drawn = functools.cache(functools.partial(_resampled, seed=seed))
    for latency, percentile in LATENCIES:
        if latency == "gap" and not gaps:
            continue
        found = (
            _between([run.percentile(latency, percentile) for run in a],
                     [run.percentile(latency, percentile) for run in b])
            if repeats
            else _within(a[0], b[0], latency, percentile, drawn)
        )  # fmt: skip
        if found is not None:
            yield _difference(point, f"{latency}_p{percentile}", *found, lower=True)
    for rate in RATES:
        if repeats:
            found = _between([run.rate(rate) for run in a], [run.rate(rate) for run in b])
        else:
            found = _sliced(a[0], b[0], rate)
        if found is not None:
            yield _difference(point, rate, *found, lower=rate in LOWER_IS_BETTER)


def _difference(
    point: Point, measure: str, a: float, b: float, change: Figure, method: str, *, lower: bool
) -> Difference:
    return Difference(
        phase=point[0],
        target=point[1],
        measure=measure,
        a=a,
        b=b,
        change=change,
        verdict=verdict(change, lower_is_better=lower),
        method=method,
    )


_Drawn = Callable[[Run, str, str], dict[int, Floats]]
Found = tuple[float, float, Figure, str]
"""a, b, change, method."""


def _between(a: Sequence[float | None], b: Sequence[float | None], method: str = "repeats") -> Found | None:
    """From the spread of repeats (or of slices of one run, for rates)."""
    x = np.array([value for value in a if value is not None])
    y = np.array([value for value in b if value is not None])
    if min(len(x), len(y)) < LEAST_REPEATS or not (x.any() or y.any()):
        return None
    was, now = float(x.mean()), float(y.mean())
    added = welch(x, y, CONFIDENCE)
    if not was:
        sure = added.low > 0
        return was, now, Figure(math.inf, math.inf if sure else -math.inf, math.inf), method
    return was, now, Figure(added.value / was, added.low / was, added.high / was), method


def _sliced(a: Run, b: Run, rate: str) -> Found | None:
    found = _between(a.slices(rate).tolist(), b.slices(rate).tolist(), "slices")
    if found is None:
        return None
    return a.rate(rate), b.rate(rate), found[2], found[3]


def _within(a: Run, b: Run, latency: str, percentile: int, drawn: _Drawn) -> Found | None:
    """From requests drawn again within one run of each."""
    mine, others = a.pool(latency), b.pool(latency)
    was, now = a.percentile(latency, percentile), b.percentile(latency, percentile)
    if mine is None or others is None or not was or now is None:
        return None
    x, y = drawn(a, latency, "a")[percentile], drawn(b, latency, "b")[percentile]
    least = min(len(x), len(y))
    ratios = y[:least] / x[:least] - 1
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(bound) for bound in np.nanquantile(ratios, [tail, 1 - tail]))
    value = now / was - 1
    change = Figure(value, min(low, value), max(high, value))
    # The bootstrap looks at one point, ranks at all requests: a median has moved when both say so.
    if percentile == 50 and mann_whitney(mine[0].values, others[0].values) > 1 - CONFIDENCE:
        change = Figure(value, min(change.low, 0.0), max(change.high, 0.0))
    return was, now, change, "requests"


def _resampled(run: Run, latency: str, side: str, *, seed: int) -> dict[int, Floats]:
    """By percentile, as both come out of one search."""
    found = run.pool(latency)
    assert found is not None
    pool, requests = found
    percentiles = sorted({percentile for _, percentile in LATENCIES})
    drawn = draws(requests, RESAMPLES, seed + (side == "b"), len(pool.values))
    around = resampled_quantiles(pool, drawn, np.array(percentiles) / 100)
    return dict(zip(percentiles, around.T, strict=True))
