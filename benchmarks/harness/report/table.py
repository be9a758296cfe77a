"""A result on one screen, as plain text: what a person reads first, and all that a log keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from benchmarks.harness.compare import Comparison
from benchmarks.harness.curve import ATTAINMENT, highest_within, knee
from benchmarks.harness.measures import Distribution
from benchmarks.harness.noise import Figure
from benchmarks.harness.paired import Added
from benchmarks.harness.planner import Truth
from benchmarks.harness.report.view import NAMES, RATES, Shown, View

MAIN = ("ttft", "tpot", "itl", "gap", "e2el")
BESIDE = ("ttft_sent", "e2el_sent", "lag")
GIB = 1 << 30


def text(view: View) -> str:
    """The whole table. A sweep has a line for each load; a single load has every percentile."""
    lines = [*head(view), ""]
    if len(view.shown) <= 2:
        for shown in view.shown:
            lines += [*_one(shown), ""]
    else:
        lines += [*_many(view), ""]
    for (base, other), added in view.added.items():
        lines += [*_added(base, other, added), ""]
    if view.truths:
        lines += [*_truths(view.truths), ""]
    if remarks := all_remarks(view):
        lines += ["Before believing it:", *(f"  · {line}" for line in remarks)]
    return "\n".join(lines).rstrip()


def all_remarks(view: View) -> list[str]:
    """What is to be said of all, then what of some loads, once for those of which it is the same."""
    of: dict[str, list[str]] = {}
    for shown in view.shown:
        for line in shown.remarks:
            of.setdefault(line, []).append(f"{shown.name} at {shown.target}")
    return [*view.remarks, *(f"{', '.join(names)}: {line}" for line, names in of.items())]


def head(view: View) -> Iterator[str]:
    """What was measured, where."""
    result = view.result
    for target in result.targets:
        engine = f"{target.engine} {target.engine_version}".strip()
        version = f", version {target.deployment_version}" if target.deployment_version else ""
        yield f"{target.name}: {target.model} at {target.url}{f' ({engine}{version})' if engine else ''}"
    place = result.environment
    yield " · ".join([f"{place.cpu}, {place.cpus} cores", *place.gpus, result.when])
    limits = ", ".join(f"{name.upper()} ≤ {limit:g} ms" for name, limit in result.slo.items())
    salt = f"salt {result.salt}" if result.salt else ""
    yield " · ".join(said for said in (f"seed {result.seed}", salt, limits) if said)


def _one(shown: Shown) -> Iterator[str]:
    measures = shown.measures
    # Whoever ended the run has cut these off, not the server.
    cut = measures.errors.get("unfinished", 0) if any(phase.interrupted for phase in shown.phases) else 0
    failed = f", {measures.failed - cut} FAILED" if measures.failed > cut else ""
    failed += f", {cut} cut off" if cut else ""
    yield (
        f"{shown.name} at {shown.target}: {measures.completed} of {measures.sent} requests{failed}, "
        f"{measures.seconds:.1f} s, up to {measures.peak_in_flight} at once"
    )
    yield f"{'ms':20}{'p50':>9} {'':17}{'p90':>9}{'p95':>9}{'p99':>10} {'':17}{'mean':>9}"
    for name in (*MAIN, *BESIDE):
        if found := measures.latencies.get(name):
            yield _latency(("  " if name in BESIDE else "") + NAMES[name], found)
    for name, label in RATES.items():
        if found := measures.rates.get(name):
            more = ""
            if name == "goodput" and measures.attainment is not None:
                more = f"   {measures.attainment:.1%} of requests met their objectives"
            yield f"{label:20}{number(found.value):>9} {interval(found):17}{more}".rstrip()
    if shown.cost:
        cost = shown.cost
        yield (
            f"at ${cost.usd_per_hour:.2f}/h: {cost.output_tokens_per_usd:,.0f} output tokens per dollar, "
            f"${cost.usd_per_million_output_tokens:.3f} per million (price of {cost.price_date})"
        )


def _latency(label: str, of: Distribution) -> str:
    cells = [f"{label:20}"]
    for percentile in (50, 90, 95, 99):
        at = of.percentiles[percentile]
        mark = "" if of.trusted(percentile) else "~"
        cells.append(f"{mark + number(at.value * 1e3):>{10 if percentile == 99 else 9}}")
        if percentile in (50, 99):
            cells.append(f" {interval(at, 1e3):17}")
    return "".join(cells) + f"{number(of.mean.value * 1e3):>9}"


def number(value: float) -> str:
    """Four digits, which is more than most figures deserve."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    digits = 3 - math.floor(math.log10(min(max(size, 1), 1000)))
    return f"{value:,.{digits}f}"


def interval(of: Figure, scale: float = 1.0) -> str:
    return f"[{number(of.low * scale)}, {number(of.high * scale)}]"


def _many(view: View) -> Iterator[str]:
    yield (
        f"{'':26}{'sent':>6}{'failed':>7}{'at once':>8}{'req/s':>8}{'good/s':>8}{'out tok/s':>10}"
        f"{'TTFT p50':>10}{'p99':>9}{'TPOT p50':>10}{'p99':>8}{'E2E p99':>10}"
    )
    curves = {target: view.curve(target) for target in view.targets}
    bends = {target: knee(points) for target, points in curves.items()}
    limits = {target: highest_within(points) for target, points in curves.items()}
    for shown in view.shown:
        measures = shown.measures
        rates = {name: found.value for name, found in measures.rates.items()}
        bend, limit = bends[shown.target], limits[shown.target]
        mark = " ← knee" if bend and bend.name == shown.name else ""
        mark += " ← highest within SLO" if limit and limit.name == shown.name else ""
        good = f"{rates['goodput']:.2f}" if "goodput" in rates else "-"
        label = f"{shown.name} {shown.target}" if len(view.targets) > 1 else shown.name
        yield (
            f"{label[:25]:26}{measures.sent:>6}{measures.failed:>7}{measures.peak_in_flight:>8}"
            f"{rates.get('requests', 0):>8.2f}{good:>8}{rates.get('output_tokens', 0):>10,.0f}"
            f"{_cell(shown, 'ttft', 50):>10}{_cell(shown, 'ttft', 99):>9}{_cell(shown, 'tpot', 50):>10}"
            f"{_cell(shown, 'tpot', 99):>8}{_cell(shown, 'e2el', 99):>10}{mark}"
        )
    yield "Latencies in ms, from the scheduled time; ~ where fewer than five requests are expected beyond it."
    for target in view.targets:
        if curves[target] and view.result.slo and limits[target] is None:
            yield f"{target}: no load had {ATTAINMENT:.0%} of its requests within the objectives."
        if curves[target] and bends[target] is None:
            yield f"{target}: the curve has no knee within the loads that were tried."


def _cell(shown: Shown, latency: str, percentile: int) -> str:
    found = shown.measures.latencies.get(latency)
    if found is None:
        return "-"
    return ("" if found.trusted(percentile) else "~") + number(found.percentiles[percentile].value * 1e3)


def _added(base: str, other: str, added: Sequence[Added]) -> Iterator[str]:
    rounds = max((one.rounds for one in added), default=0)
    yield f"What {other} adds to {base}, paired over {rounds} rounds (99 % intervals):"
    yield f"{'':24}{base:>12}{other:>12}{'added':>12}"
    for one in added:
        rate = one.measure in RATES
        scale = 1 if rate else 1e3
        yield (
            f"  {measure_name(one.measure):22}{number(one.base * scale):>12}{number(one.other * scale):>12}"
            f"{number(one.added.value * scale):>12} {interval(one.added, scale)} {one.verdict}"
        )


def measure_name(measure: str) -> str:
    """`ttft_p50` → `TTFT p50, ms`."""
    name, _, percentile = measure.partition("_p")
    if measure in RATES:
        return RATES[measure]
    return f"{NAMES.get(name, name)} p{percentile}, ms"


def _truths(truths: Sequence[Truth]) -> Iterator[str]:
    yield f"{'The planner said':24}{'predicted':>12}{'measured':>12}{'ratio':>8}"
    for truth in truths:
        unit, scale = ("GiB", GIB) if truth.unit == "bytes" else (truth.unit, 1)
        said = [
            "-" if value is None else number(value / scale) for value in (truth.predicted, truth.measured)
        ]
        ratio = "-" if truth.ratio is None else f"{truth.ratio:.2f}"
        yield f"  {truth.what + ', ' + unit:27}{said[0]:>7}{said[1]:>12}{ratio:>8}  {truth.remark}".rstrip()


def comparison(found: Comparison) -> str:
    """Every difference, the verdict last."""
    lines = [f"{'':48}{'a':>10}{'b':>10}{'change':>10}  99 % interval"]
    for one in found.differences:
        scale = 1 if one.measure in RATES else 1e3
        bounds = f"[{one.change.low:+.1%}, {one.change.high:+.1%}]"
        label = f"{one.phase} at {one.target}"[:20]
        lines.append(
            f"{label:21}{measure_name(one.measure):27}{number(one.a * scale):>10}{number(one.b * scale):>10}"
            f"{one.change.value:>+10.1%}  {bounds:20} {one.verdict}"
        )
    lines += ["", *(f"  · {line}" for line in found.warnings)] if found.warnings else []
    counts = {kind: sum(d.verdict == kind for d in found.differences) for kind in ("better", "worse")}
    rest = len(found.differences) - sum(counts.values())
    lines += ["", f"{counts['better']} better, {counts['worse']} worse, {rest} within noise"]
    return "\n".join(lines)
