"""What one target adds to another when one run asked both in turn: a gateway's cost. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from benchmarks.harness.noise import Figure, of_blocks
from benchmarks.harness.result import Phase, Result
from benchmarks.harness.runs import CONFIDENCE, LATENCIES, Run, Verdict, by_target, verdict
from benchmarks.harness.steady import whole
from chutes.exception import UsageError

SLICES = 20  # of a phase in which requests alternate
LEAST_IN_SLICE = 5  # requests to each target, or their median says nothing
LEAST_ROUNDS = 3


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of both targets, over all rounds."""

    measure: str
    """`ttft_p50`, `output_tokens`, …"""
    base: float
    other: float
    """Means over rounds. Seconds, or a second."""
    added: Figure
    """other − base, of the same round, with its interval."""
    rounds: int
    verdict: Verdict
    """`worse`: the other is slower than the base, beyond the noise."""


@dataclass(frozen=True)
class _Round:
    base: Run
    other: Run
    apart: bool
    """Whether each had the server for itself, so that it has a rate of its own."""


def paired(result: Result, base: str, other: str, *, name: str = "") -> list[Added]:
    """What `other` adds to `base`, of the phases called `name` where it is given.

    Rounds are the phases' blocks; in a phase in which requests alternate, slices of its time. Differences are
    taken within a round, so that what changes slowly on the machine is in both and cancels.

    Raises:
        UsageError: the run did not ask both often enough.
    """
    phases = [phase for phase in result.phases if not name or phase.name == name]
    rounds = list(_rounds(phases, base, other))
    if len(rounds) < LEAST_ROUNDS:
        raise UsageError(
            f"{len(rounds)} rounds asked both {base} and {other}, and {LEAST_ROUNDS} are needed.",
            f"The run asked {', '.join(target.name for target in result.targets)}; give it more rounds.",
        )
    found: list[Added] = []
    for latency, percentile in LATENCIES:
        pairs: list[tuple[float, float]] = []
        for turn in rounds:
            x, y = turn.base.percentile(latency, percentile), turn.other.percentile(latency, percentile)
            if x is not None and y is not None:
                pairs.append((x, y))
        if len(pairs) >= LEAST_ROUNDS and not (result.thinned and latency == "gap"):
            found.append(_added(f"{latency}_p{percentile}", pairs, lower=True))
    # In an open loop the schedule sets the rate, and both have the same.
    if all(turn.apart for turn in rounds) and all(phase.load.get("kind") == "closed" for phase in phases):
        for rate in ("requests", "output_tokens"):
            pairs = [(turn.base.rate(rate), turn.other.rate(rate)) for turn in rounds]
            if any(x for x, _ in pairs):
                found.append(_added(rate, pairs, lower=False))
    return found


def _added(measure: str, pairs: Sequence[tuple[float, float]], *, lower: bool) -> Added:
    values = np.array(pairs)
    added = of_blocks(values[:, 1] - values[:, 0], CONFIDENCE)
    return Added(
        measure=measure,
        base=float(values[:, 0].mean()),
        other=float(values[:, 1].mean()),
        added=added,
        rounds=len(pairs),
        verdict=verdict(added, lower_is_better=lower),
    )


def _rounds(phases: Sequence[Phase], base: str, other: str) -> Iterator[_Round]:
    """Of phases that ask one target each, those of one load and block; of one that asks both, its slices."""
    alone: dict[tuple[str, int], dict[str, Run]] = {}
    for phase in phases:
        asked = by_target(phase)
        if base in asked and other in asked:
            yield from _slices(phase, base, other)
        else:
            for target, records in asked.items():
                alone.setdefault((phase.name, phase.block), {})[target] = Run.of(records, phase.window)
    for runs in alone.values():
        if base in runs and other in runs:
            yield _Round(runs[base], runs[other], True)


def _slices(phase: Phase, base: str, other: str) -> Iterator[_Round]:
    start, end = phase.window or whole(phase.records)
    both = [r for r in phase.records if r.target in (base, other) and start <= r.scheduled <= end]
    both.sort(key=lambda record: (record.scheduled, record.number))
    fewest = min(sum(r.target == name for r in both) for name in (base, other))
    count = min(SLICES, fewest // LEAST_IN_SLICE)
    for part in range(count):
        piece = both[part * len(both) // count : (part + 1) * len(both) // count]
        runs = [Run.of([r for r in piece if r.target == name], (start, end)) for name in (base, other)]
        if all(run.records for run in runs):
            yield _Round(runs[0], runs[1], False)
