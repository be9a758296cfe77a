"""The commands of `python -m benchmarks`: from what is typed to what is printed and written."""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import options as typed
from benchmarks.harness import result as results
from benchmarks.harness import sweep as sweeping
from benchmarks.harness.compare import compare
from benchmarks.harness.measures import Slo, measure
from benchmarks.harness.report import table
from benchmarks.harness.report.view import View, view
from benchmarks.harness.running import Session, document, interruptible, session
from benchmarks.harness.runs import by_target, thin
from benchmarks.harness.schedule import Load
from benchmarks.harness.summary import summary
from chutes.cli import output
from chutes.exception import UsageError

INTERRUPTED = 130
"""Exit code, as shells have it for Ctrl-C."""
REGRESSED = 3
"""Exit code of `check` when something became worse: neither a failure nor a wrong question."""


def run(options: argparse.Namespace, command: str) -> int:
    wanted, load = typed.wanted(options), typed.load(options)
    Slo.of(wanted.slo)
    with session(wanted, load, command) as measuring:
        place = _place(options, measuring.targets[0].address.model)
        _carry_out(_run(measuring, load))
        return _leave(measuring, place, load, options)


def _carry_out(work: Coroutine[Any, Any, None]) -> None:
    """To its end, or to the second Ctrl-C: then the load under way is lost, and no load before it."""
    try:
        asyncio.run(work)
    except asyncio.CancelledError:
        output.note("Ended at once: of the load that was under way nothing is kept.")


async def _run(measuring: Session, load: Load) -> None:
    with interruptible(measuring.stop):
        _announce(measuring)
        await measuring.warm_up(load)
        if not measuring.stop.is_set():
            await measuring.phases(load)


def sweep(options: argparse.Namespace, command: str) -> int:
    wanted = typed.wanted(options)
    slo = Slo.of(wanted.slo)
    shape = Load(
        kind=options.arrival or ("poisson" if options.burstiness is None else "gamma"),
        rate=1.0,
        burstiness=options.burstiness or 1.0,
        seconds=options.duration,
        warmup=options.warmup,
        cooldown=options.cooldown,
    )
    with session(wanted, shape, command) as measuring:
        place = _place(options, measuring.targets[0].address.model)
        _carry_out(_sweep(measuring, shape, slo, options))
        return _leave(measuring, place, shape, options)


async def _sweep(measuring: Session, shape: Load, slo: Slo | None, options: argparse.Namespace) -> None:
    """Load after load, until the answers are known, the points used up, or somebody interrupts."""
    points: list[sweeping.Point] = []
    given: list[float] = sorted(options.rates or [])
    wish = measuring.wanted.wish
    unit = "output tokens" if wish.generates else "images" if wish.kind == "images" else "requests"
    with interruptible(measuring.stop):
        _announce(measuring)
        await measuring.warm_up(Load(kind="closed", concurrency=1, requests=2))
        start = options.start or 0.5 / max(measuring.alone, 1e-3)
        while not measuring.stop.is_set() and len(points) < (len(given) or options.most):
            rate = given[len(points)] if given else sweeping.next_rate(points, start)
            if rate is None:
                break
            load = msgspec.structs.replace(shape, rate=float(f"{rate:.4g}"))
            phases = await measuring.phases(load)
            if measuring.stop.is_set():
                break
            points.append(_point(phases, load, slo, min(points, default=None)))
            last = points[-1]
            met = "" if last.attainment is None else f", {last.attainment:.0%} within the objectives"
            full = ", more than it can serve" if last.overloaded else ""
            got = f"{last.throughput:.1f} {unit}/s, p50 {last.latency:.2f} s"
            output.note(f"{load.rate:g} requests/s: {got}{met}{full}")


def _point(
    phases: list[results.Phase], load: Load, slo: Slo | None, lightest: sweeping.Point | None
) -> sweeping.Point:
    """What a sweep goes by, of one load and all its repeats."""
    found = [measure(phase.records, window=phase.window, slo=slo, resamples=2) for phase in phases]
    drains = [
        max((r.ended for r in p.records), default=0.0) - max((r.scheduled for r in p.records), default=0.0)
        for p in phases
    ]
    latencies = [m.latencies["e2el"].percentiles[50].value for m in found if "e2el" in m.latencies]
    latency = statistics.median(latencies) if latencies else float("inf")
    rates = [m.rates.get("output_tokens") or m.rates.get("images") or m.rates.get("requests") for m in found]
    alone = lightest.latency if lightest else latency
    failed = sum(m.failed for m in found) > 0.05 * sum(m.sent for m in found)
    return sweeping.Point(
        rate=load.rate,
        throughput=statistics.fmean(rate.value if rate else 0.0 for rate in rates),
        latency=latency,
        attainment=statistics.fmean(m.attainment or 0.0 for m in found) if slo else None,
        overloaded=failed or sweeping.overloaded(statistics.median(drains), load.seconds, alone),
    )


def compare_results(options: argparse.Namespace, command: str) -> int:
    del command
    found = compare(results.read(options.a), results.read(options.b), anyway=options.anyway)
    output.say(table.comparison(found))
    if options.html:
        from benchmarks.harness.report import html

        title = f"{options.a.stem} and {options.b.stem}"
        results.replace_file(options.html, html.comparison(found, title).encode())
        output.note(f"written to {options.html}")
    return 0


def check(options: argparse.Namespace, command: str) -> int:
    """Against a baseline; fails when something is worse beyond the noise and the bound."""
    del command
    found = compare(results.read(options.baseline), results.read(options.result), anyway=options.anyway)
    output.say(table.comparison(found))
    worse = found.worse(options.bound / 100)
    for one in worse:
        output.say(
            f"REGRESSION: {one.phase} at {one.target}: "
            f"{table.measure_name(one.measure)} {one.change.value:+.1%}"
        )
    output.say(f"{len(worse)} measures are more than {options.bound:g} % worse than the baseline.")
    blind = [one for one in found.differences if (one.change.high - one.change.low) / 2 > options.bound / 100]
    if blind:
        share = f"{len(blind)} of {len(found.differences)}"
        output.say(
            f"Intervals of {share} are wider: {options.bound:g} % would not have been seen. "
            "More --repeats or longer loads, in both, make them narrower."
        )
    return REGRESSED if worse else 0


def baseline(options: argparse.Namespace, command: str) -> int:
    """A result small enough for a repository."""
    del command
    results.write(thin(results.read(options.result)), options.output)
    output.note(f"written to {options.output}")
    return 0


def show(options: argparse.Namespace, command: str) -> int:
    """The report of a result that was written before."""
    del command
    found = results.read(options.result)
    shown = view(found)
    output.say(table.text(shown))
    if not options.no_pictures:
        _pictures(shown, options.result)
    return 0


def _pictures(shown: View, place: Path) -> None:
    """PNG and HTML beside the result."""
    from benchmarks.harness.report import html, plots  # a second of imports that the table does not need

    picture, page = place.with_suffix(".png"), place.with_suffix(".html")
    plots.picture(shown, picture)
    html.write(shown, page)
    output.note(f"pictures in {picture}, all of it in {page}")


def _announce(measuring: Session) -> None:
    for target in measuring.targets:
        output.note(f"{target.name}: {target.address.model} at {target.url('')}")
    output.note(
        f"seed {measuring.wanted.seed}, salt {measuring.salt} (--salt {measuring.salt} asks the same again)"
    )


def _leave(measuring: Session, place: Path, load: Load, options: argparse.Namespace) -> int:
    """Table, file and pictures of what was measured; nothing where nothing was."""
    interrupted = measuring.stop.is_set()
    if not any(phase.records for phase in measuring.result.phases):
        output.note("Nothing was measured, so nothing is written.")
        return INTERRUPTED if interrupted else 1
    wanted = measuring.wanted
    config = document(wanted, load if options.work is run else None)
    config["exact"] = wanted.wish.force and wanted.wish.generates
    found = measuring.finish(config)
    place = _kept(found, place)  # before anything else can go wrong
    shown = view(found)
    for phase in found.phases:
        phase.summary = _summary(phase, Slo.of(wanted.slo), bool(config["exact"]))
    results.write(found, place)  # with its figures
    output.say(table.text(shown))
    output.note(f"\nwritten to {place}")
    if not options.no_pictures:
        _pictures(shown, place)
    return INTERRUPTED if interrupted else 0


def _summary(phase: results.Phase, slo: Slo | None, exact: bool) -> dict[str, Any]:
    """The figures of a phase under vLLM's names; of several targets by their name."""
    found = {
        target: summary(measure(records, window=phase.window, slo=slo, exact=exact, resamples=2))
        for target, records in by_target(phase).items()
    }
    return found if len(found) != 1 else next(iter(found.values()))


def _place(options: argparse.Namespace, model: str) -> Path:
    """Where the result goes: found out, and tried, before the load. Raises UsageError."""
    name = re.sub(r"[^\w.-]+", "-", model.rpartition("/")[2]) or "model"
    stamp = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
    place: Path = options.output or typed.RESULTS / f"{stamp}-{name}.json"
    if place.is_dir():
        raise UsageError(f"{place} is a directory.", "--output FILE")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise UsageError(f"{place.parent} cannot be written to: {error.strerror}.", "--output FILE") from None
    return place


def _kept(found: results.Result, place: Path) -> Path:
    """Where it was written: there, or, if that has become impossible meanwhile, where it can be found."""
    try:
        results.write(found, place)
    except UsageError as error:
        place = Path(tempfile.mkdtemp(prefix="bench-result-")) / place.name
        results.write(found, place)
        output.note(f"{error.message} It is in {place}.")
    return place
