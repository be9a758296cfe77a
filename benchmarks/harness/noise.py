"""How far a figure could be from the truth. Pure.

Requests of one run are not independent: those that meet a long queue meet it together. So they are drawn
again in blocks of neighbours (the circular block bootstrap of Politis and Romano, 1992), and rates, which
are sums over time, get their interval from slices of the run (batch means). Both see the noise inside a run
only. What differs from run to run is seen by repeating runs: `of_blocks` and `welch` are for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WORK = 10_000_000
"""Values that are drawn again in all, so that a long run takes a second and not a minute."""
LEAST_RESAMPLES = 200


class Figure(msgspec.Struct, frozen=True):
    """A value and the interval that it lies in with the asked-for confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Pool:
    """Values of one kind, in ascending order, with what each counts and which request it is of."""

    values: Floats
    weights: Floats
    owners: NDArray[np.intp]

    @classmethod
    def of(cls, values: Floats, owners: NDArray[np.intp], weights: Floats | None = None) -> Pool:
        order = np.argsort(values, kind="stable")
        weights = np.ones(len(values)) if weights is None else weights
        return cls(values[order], weights[order], owners[order])


def quantiles(values: Floats, weights: Floats, shares: Floats) -> Floats:
    """Of ascending values that count `weights` times each, linearly between neighbours.

    With weights of 1 these are numpy's percentiles (its default method, Hyndman and Fan's 7th); with whole
    weights those of the values written that many times.
    """
    reached = weights.cumsum()
    total = reached[-1]
    position = np.maximum(0.0, shares * (total - 1))
    whole = np.floor(position)
    # One search for both neighbours: this is what a report spends its time on.
    found = reached.searchsorted(np.concatenate([whole, whole + 1]), "right")
    both = values[np.minimum(found, reached.searchsorted(total))]
    below, above = both[: len(shares)], both[len(shares) :]
    # Rounding must not lift a percentile over the next one.
    return np.minimum(above, below + (above - below) * (position - whole))


def draws(requests: int, resamples: int, seed: int, values: int = 0) -> NDArray[np.int32]:
    """How often each request, in the order of its time, is in each resample. Shape: resamples × requests.

    Args:
        values: of the largest pool that will be drawn with it; more values, fewer resamples.
    """
    resamples = min(resamples, max(LEAST_RESAMPLES, WORK // max(1, requests, values)))
    # The order of length at which the error of the variance is least (Künsch, 1989).
    block = max(1, min(math.ceil(requests ** (1 / 3)), requests // 2))
    rng = np.random.default_rng(seed)
    starts = rng.integers(requests, size=(resamples, math.ceil(requests / block)))
    rows = np.arange(resamples)[:, None] * requests
    began = np.bincount((starts + rows).ravel(), minlength=resamples * requests).reshape(resamples, requests)
    # A block that began up to `block - 1` places before covers this place too, around the end as well.
    wrapped = np.concatenate([began[:, -block:], began], axis=1)
    summed = np.cumsum(wrapped, axis=1, dtype=np.int32)
    return summed[:, block:] - summed[:, :-block]


def resampled_quantiles(pool: Pool, drawn: NDArray[np.int32], shares: Floats) -> Floats:
    """Shape: resamples × shares. NaN where a resample has none of the pool's values."""
    found = np.full((len(drawn), len(shares)), np.nan)
    for row, counts in enumerate(drawn):
        weights = counts[pool.owners] * pool.weights
        if weights.any():
            found[row] = quantiles(pool.values, weights, shares)
    return found


def resampled_means(pool: Pool, drawn: NDArray[np.int32]) -> Floats:
    requests = drawn.shape[1]
    sums = np.bincount(pool.owners, pool.values * pool.weights, minlength=requests)
    weights = np.bincount(pool.owners, pool.weights, minlength=requests)
    with np.errstate(invalid="ignore"):
        return (drawn @ sums) / (drawn @ weights)


def figure(value: float, resampled: Floats, confidence: float) -> Figure:
    """A value between the percentiles of its resamples."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Figure(value, min(value, float(low)), max(value, float(high)))


def of_blocks(blocks: Floats, confidence: float, value: float | None = None) -> Figure:
    """Mean of independent blocks (slices, rounds, repeats) with Student's interval; around `value` if given.

    One block says nothing of its noise: the interval is then without end.
    """
    value = float(blocks.mean()) if value is None else value
    if len(blocks) < 2:
        return Figure(value, -math.inf, math.inf)
    half = student(confidence, len(blocks) - 1) * float(blocks.std(ddof=1)) / math.sqrt(len(blocks))
    return Figure(value, value - half, value + half)


def welch(a: Floats, b: Floats, confidence: float) -> Figure:
    """Difference of means b − a of independent repeats whose spreads may differ (Welch, 1947)."""
    value = float(b.mean() - a.mean())
    if len(a) < 2 or len(b) < 2:
        return Figure(value, -math.inf, math.inf)
    of_a, of_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if of_a + of_b == 0:
        return Figure(value, value, value)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    half = student(confidence, freedom) * math.sqrt(of_a + of_b)
    return Figure(value, value - half, value + half)


def student(confidence: float, freedom: float) -> float:
    """How many standard errors hold the share `confidence` of Student's distribution, both sides together.

    By Simpson's rule over the angle: with t = √f · tan(a), the density is cos(a) ** (f − 1), smooth and on a
    finite interval for any f ≥ 1.
    """
    angles = np.linspace(0.0, math.pi / 2, 4001)
    density = np.cos(angles) ** (freedom - 1)
    middles = np.cos((angles[:-1] + angles[1:]) / 2) ** (freedom - 1)
    share = np.concatenate([[0.0], np.cumsum(density[:-1] + 4 * middles + density[1:])])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, share / share[-1], angles)))


def mann_whitney(a: Floats, b: Floats) -> float:
    """Chance of so different ranks if a and b were of one distribution, both sides; normal approximation with
    ties (Mann and Whitney, 1947). 1 where there is nothing to rank."""
    together = np.concatenate([a, b])
    if not len(a) or not len(b) or together.min() == together.max():
        return 1.0
    _, inverse, counts = np.unique(together, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(a), len(b)
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    ties = float((counts.astype(float) ** 3 - counts).sum()) / ((n + m) * (n + m - 1))
    spread = math.sqrt(n * m / 12 * (n + m + 1 - ties))
    return math.erfc(max(0.0, abs(u - n * m / 2) - 0.5) / spread / math.sqrt(2))
