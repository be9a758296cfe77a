"""A result worked out for showing: figures of every load and target, curves, comparisons of its targets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from benchmarks.harness import trust
from benchmarks.harness.curve import CurvePoint, highest_within, knee
from benchmarks.harness.measures import Measures, Slo, measure_all
from benchmarks.harness.paired import Added, paired
from benchmarks.harness.planner import Cost, Truth, cost, truths
from benchmarks.harness.records import Record
from benchmarks.harness.result import Phase, Result
from benchmarks.harness.runs import by_target
from chutes.exception import UsageError

NAMES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL, per token",
    "gap": "gap between events",
    "e2el": "E2E latency",
    "ntpot": "latency per token",
    "ttft_sent": "TTFT from send",
    "e2el_sent": "E2E from send",
    "lag": "client's lag",
}
RATES = {
    "requests": "requests/s",
    "goodput": "good requests/s",
    "output_tokens": "output tokens/s",
    "input_tokens": "input tokens/s",
    "total_tokens": "tokens/s in all",
    "images": "images/s",
    "failed": "failures/s",
}


class Shown(msgspec.Struct, kw_only=True):
    """One load on one target, all its repeats together."""

    name: str
    target: str
    load: dict
    phases: list[Phase]
    records: list[list[Record]]
    """By phase, the target's own."""
    measures: Measures
    remarks: list[str]
    cost: Cost | None

    @property
    def closed(self) -> bool:
        """Whether the next request waited for the last one's answer."""
        return self.load.get("kind") == "closed"

    @property
    def point(self) -> CurvePoint | None:
        """Its place on a curve; None where a load is not one number."""
        load = self.load.get("concurrency" if self.closed else "rate")
        return CurvePoint(name=self.name, load=float(load), measures=self.measures) if load else None


class View(msgspec.Struct, kw_only=True):
    """Everything that tables and pictures show."""

    result: Result
    shown: list[Shown]
    remarks: list[str]
    added: dict[tuple[str, str], list[Added]]
    """What each further target adds to the first one, where one run asked both in turn."""
    truths: list[Truth]

    def curve(self, target: str) -> list[CurvePoint]:
        """Of a target that was asked at three loads or more: rates, or numbers at once, never both in one."""
        closed, opened = [], []
        for shown in self.shown:
            if shown.target == target and (point := shown.point):
                (closed if shown.closed else opened).append(point)
        points = opened if len(opened) >= len(closed) else closed
        return sorted(points, key=lambda point: point.load) if len({p.load for p in points}) >= 3 else []

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(shown.target for shown in self.shown))


def view(result: Result) -> View:
    """Work it out. Takes a second or so for a thousand requests: the intervals do."""
    slo = Slo.of(result.slo)
    grouped: dict[tuple[str, str], list[tuple[Phase, list[Record]]]] = defaultdict(list)
    for phase in result.phases:
        for target, records in by_target(phase).items():
            grouped[phase.name, target].append((phase, records))
    shown: list[Shown] = []
    for (name, target), parts in grouped.items():
        exact = bool(parts[0][0].load.get("exact") or result.config.get("exact"))
        measures = measure_all(
            [(records, phase.window) for phase, records in parts], slo=slo, exact=exact, seed=result.seed
        )
        shown.append(
            Shown(
                name=name,
                target=target,
                load=parts[0][0].load,
                phases=[phase for phase, _ in parts],
                records=[records for _, records in parts],
                measures=measures,
                remarks=trust.of_load([phase for phase, _ in parts], measures),
                cost=cost(result.prediction, measures),
            )
        )
    if len({(one.closed, one.load.get("kind")) for one in shown}) == 1 and all(one.point for one in shown):
        # A sweep goes up and then closes in; a reader wants it from light to heavy.
        shown.sort(key=lambda one: one.point.load if one.point else 0.0)
    remarks = trust.of_result(result)
    return View(
        result=result,
        shown=shown,
        remarks=remarks,
        added=_added(result, shown, remarks),
        truths=_truths(result, shown),
    )


def _truths(result: Result, shown: Sequence[Shown]) -> list[Truth]:
    if result.prediction is None:
        return []
    samples = [phase.samples for phase in result.phases]
    return truths(result.prediction, [one.measures for one in shown], samples)


def _added(result: Result, shown: Sequence[Shown], remarks: list[str]) -> dict[tuple[str, str], list[Added]]:
    """Where targets cannot be set beside each other, a remark says why."""
    asked = {one.target for one in shown}
    targets = [target.name for target in result.targets if target.name in asked]
    found: dict[tuple[str, str], list[Added]] = {}
    for other in targets[1:]:
        try:
            found[targets[0], other] = paired(result, targets[0], other)
        except UsageError as error:
            remarks.append(f"what {other} adds to {targets[0]} is not known: {error.message}")
    return found


__all__ = ["NAMES", "RATES", "Shown", "View", "highest_within", "knee", "view"]
