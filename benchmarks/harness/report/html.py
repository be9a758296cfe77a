"""A report in one file: no script, no network, light and dark as the reader's system has it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import msgspec

from benchmarks.harness.compare import Comparison
from benchmarks.harness.curve import highest_within, knee
from benchmarks.harness.measures import Distribution
from benchmarks.harness.noise import Figure
from benchmarks.harness.report import plots, table
from benchmarks.harness.report.table import GIB, interval, measure_name, number
from benchmarks.harness.report.view import NAMES, RATES, View
from benchmarks.harness.result import replace_file

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d8dde3;
  --tint: #f5f7f9; --good: #1a7f37; --bad: #c0392b; --warn: #fff4d6; --link: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e3e6ea; --soft: #9aa4b0;
  --line: #343a43; --tint: #1c2027; --good: #3ddc97; --bad: #ff7b6b; --warn: #3a3016; --link: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 82rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p.sub { color: var(--soft); margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: .4rem 0; }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; } th[scope=row], td.text { text-align: left; }
th[scope=row] { font-weight: 500; } td.wrap { white-space: normal; }
td small { color: var(--soft); display: block; font-size: .8em; line-height: 1.2; }
tr.mark { background: var(--tint); } .better { color: var(--good); } .worse { color: var(--bad); }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
.card { flex: 1 1 9rem; background: var(--tint); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; white-space: nowrap; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
.remarks { background: var(--warn); border-radius: .5rem; padding: .7rem 1rem .7rem 2rem; margin: 1rem 0; }
img { width: 100%; height: auto; display: block; }
pre { background: var(--tint); padding: .8rem 1rem; border-radius: .5rem; overflow-x: auto;
  font-size: .85rem; }
details summary { cursor: pointer; color: var(--link); }
"""

DEFINITIONS = (
    ("TTFT", "first token − scheduled time. From the schedule, so that a late server cannot hide its queue."),
    ("TPOT", "(last token − first token) / (tokens − 1), one value for each request."),
    ("ITL, per token", "gaps between events, each divided by the tokens that an event carries on average."),
    ("gap between events", "gaps as they arrive: how smooth the text looks. What vLLM calls ITL."),
    ("E2E latency", "last token − scheduled time."),
    ("[low, high]", "where the figure lies with 95 % confidence, by what is seen inside this run."),
    ("~", "fewer than five requests are expected beyond this percentile: it is the luck of this run."),
)


def write(view: View, path: Path) -> None:
    """Put the report there.

    Raises:
        UsageError: it cannot be written.
    """
    replace_file(path, page(view).encode())


def page(view: View) -> str:
    """The whole document."""
    result = view.result
    model = result.targets[0].model if result.targets else "benchmark"
    body = [
        f"<header><h1>{escape(model)}</h1>",
        *(f'<p class="sub">{escape(line)}</p>' for line in table.head(view)),
        "</header><main>",
        _remarks(table.all_remarks(view)),
        _cards(view),
        *_pictures(view),
        *_tables(view),
        *_beside(view),
        *_circumstances(view),
        "</main>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(model)}: benchmark of {escape(result.when)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _remarks(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="remarks" aria-label="Before believing it">{items}</ul>'


def _cards(view: View) -> str:
    """The figures that one is asked for first: of the only load, or of the best one of a sweep."""
    if not view.shown:
        return "<p>Nothing was measured.</p>"
    best = view.shown[0]
    points = view.curve(best.target)
    chosen = highest_within(points) or knee(points)
    if chosen is not None:
        best = next(s for s in view.shown if s.name == chosen.name and s.target == best.target)
    cards: list[tuple[str, str]] = []
    for name in ("output_tokens", "requests", "images"):
        if found := best.measures.rates.get(name):
            cards.append((number(found.value), RATES[name]))
    for name in ("ttft", "tpot", "e2el"):
        if found := best.measures.latencies.get(name):
            value = number(found.percentiles[50].value * 1e3)
            cards.append((f"{value} ms", f"{NAMES[name]}, median"))
    if best.measures.attainment is not None:
        cards.append((f"{best.measures.attainment:.1%}", "of requests met their objectives"))
    if best.cost:
        cards.append((f"{best.cost.output_tokens_per_usd:,.0f}", "output tokens per dollar"))
    tiles = "".join(f'<div class="card"><b>{v}</b><span>{escape(t)}</span></div>' for v, t in cards)
    of = f"At {best.name}, {best.target}" + (" (the best of the sweep)" if chosen else "")
    return f'<p class="sub" style="margin-top:1.25rem">{escape(of)}:</p><div class="cards">{tiles}</div>'


def _pictures(view: View) -> Iterator[str]:
    for part in (plots.curve, plots.cdfs, plots.timeline):
        light, dark = (_data(plots.svg(view, part, theme)) for theme in (plots.LIGHT, plots.DARK))
        if light:
            yield (
                f"<section><h2>{part.title}</h2><picture>"
                f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">'
                f'<img src="{light}" alt="{escape(part.says)}"></picture></section>'
            )


def _data(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}" if svg else ""


def _tables(view: View) -> Iterator[str]:
    if len(view.shown) > 1:
        yield "<h2>All loads</h2>" + _loads(view)
    for shown in view.shown:
        measures = shown.measures
        title = f"{shown.name}, {shown.target}"
        said = (
            f"{measures.completed} of {measures.sent} requests in {measures.seconds:.1f} s, "
            f"up to {measures.peak_in_flight} at once. Milliseconds, with 95 % intervals."
        )
        rows = [
            _row(NAMES[name], _percentiles(measures.latencies[name]))
            for name in NAMES
            if name in measures.latencies
        ]
        rates = [
            _row(label, [_figure(found)])
            for name, label in RATES.items()
            if (found := measures.rates.get(name))
        ]
        inner = _table(said, ["", "p50", "p90", "p95", "p99", "mean", "std", "max"], rows)
        inner += _table("Throughput, a second", ["", "mean"], rates)
        folded = len(view.shown) > 1
        yield (
            f"<details><summary>{escape(title)}</summary>{inner}</details>"
            if folded
            else f"<h2>{escape(title)}</h2>{inner}"
        )


def _loads(view: View) -> str:
    bends = {target: knee(view.curve(target)) for target in view.targets}
    limits = {target: highest_within(view.curve(target)) for target in view.targets}
    rows: list[str] = []
    for shown in view.shown:
        measures, said = shown.measures, list[str]()
        for which, word in ((bends, "knee"), (limits, "highest within SLO")):
            point = which[shown.target]
            if point is not None and point.name == shown.name:
                said.append(word)
        cells = [str(measures.sent), str(measures.failed), str(measures.peak_in_flight)]
        for name in ("requests", "goodput", "output_tokens"):
            cells.append(number(measures.rates[name].value) if name in measures.rates else "–")
        for latency, percentile in (("ttft", 50), ("ttft", 99), ("tpot", 50), ("tpot", 99), ("e2el", 99)):
            found = measures.latencies.get(latency)
            cells.append("–" if found is None else _percentile(found, percentile))
        label = f"{shown.name}, {shown.target}" if len(view.targets) > 1 else shown.name
        rows.append(_row(f"{label}{' ← ' + ', '.join(said) if said else ''}", cells, marked=bool(said)))
    heads = ["", "sent", "failed", "at once", "requests/s", "good/s", "output tokens/s", "TTFT p50",
             "TTFT p99", "TPOT p50", "TPOT p99", "E2E p99"]  # fmt: skip
    return _table(
        "Latencies in milliseconds from the scheduled time; below each its 95 % interval.",
        heads,
        rows,
    )


def _beside(view: View) -> Iterator[str]:
    for (base, other), added in view.added.items():
        rows = []
        for one in added:
            scale = 1 if one.measure in RATES else 1e3
            cells = [number(one.base * scale), number(one.other * scale), _figure(one.added, scale)]
            rows.append(_row(measure_name(one.measure), cells, verdict=one.verdict))
        rounds = max((one.rounds for one in added), default=0)
        said = f"Paired over {rounds} rounds; 99 % intervals."
        yield f"<h2>What {escape(other)} adds to {escape(base)}</h2>"
        yield _table(said, ["", base, other, "added", "verdict"], rows)
    if view.truths:
        rows = []
        for truth in view.truths:
            unit, scale = ("GiB", GIB) if truth.unit == "bytes" else (truth.unit, 1)
            cells = ["–" if v is None else number(v / scale) for v in (truth.predicted, truth.measured)]
            cells.append("–" if truth.ratio is None else f"{truth.ratio:.2f}")
            rows.append(_row(f"{truth.what}, {unit}", cells, remark=truth.remark))
        yield "<h2>What the planner said</h2>"
        yield _table("", ["", "predicted", "measured", "ratio", ""], rows)


def comparison(found: Comparison, title: str = "Two results compared") -> str:
    """A page of its own for a comparison."""
    rows = []
    for one in found.differences:
        scale = 1 if one.measure in RATES else 1e3
        change = f"{one.change.value:+.1%}<small>[{one.change.low:+.1%}, {one.change.high:+.1%}]</small>"
        cells = [number(one.a * scale), number(one.b * scale), change]
        label = f"{one.phase}, {one.target}: {measure_name(one.measure)}"
        rows.append(_row(label, cells, verdict=one.verdict))
    body = _table("99 % intervals.", ["", "a", "b", "change", "verdict"], rows)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{_remarks(found.warnings)}{body}"
        "</body></html>\n"
    )


def _circumstances(view: View) -> Iterator[str]:
    result = view.result
    place = msgspec.to_builtins(result.environment)
    rows = [_row(name, [escape(str(value))], text=True) for name, value in place.items() if value]
    yield "<h2>How and where</h2>" + f"<pre>{escape(result.command)}</pre>"
    yield f"<details><summary>The machine</summary>{_table('', ['', ''], rows)}</details>"
    config = msgspec.json.format(msgspec.json.encode(result.config), indent=2).decode()
    yield f"<details><summary>Everything that was asked for</summary><pre>{escape(config)}</pre></details>"
    words = [_row(name, [escape(text)], text=True) for name, text in DEFINITIONS]
    yield f"<details><summary>What the words mean</summary>{_table('', ['', ''], words)}</details>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[str]) -> str:
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    top = "".join(f'<th scope="col">{escape(head)}</th>' if head else "<td></td>" for head in heads)
    shown = f"<thead><tr>{top}</tr></thead>" if any(heads) else ""
    named = f' role="region" aria-label="{escape(caption)}" tabindex="0"' if caption else ""
    return f'<div class="scroll"{named}><table>{said}{shown}<tbody>{"".join(rows)}</tbody></table></div>'


def _row(
    label: str,
    cells: Sequence[str],
    *,
    verdict: str = "",
    remark: str = "",
    marked: bool = False,
    text: bool = False,
) -> str:
    """Cells are HTML already."""
    kind = ' class="text wrap"' if text else ""
    inner = "".join(f"<td{kind}>{cell}</td>" for cell in cells)
    if verdict:
        inner += f'<td class="{verdict.replace(" ", "-")}">{verdict}</td>'
    if remark:
        inner += f'<td class="text wrap">{escape(remark)}</td>'
    return f'<tr{" class=mark" if marked else ""}><th scope="row">{escape(label)}</th>{inner}</tr>'


def _percentiles(of: Distribution) -> list[str]:
    cells = [_percentile(of, percentile) for percentile in (50, 90, 95, 99)]
    return [*cells, _figure(of.mean, 1e3), number(of.std * 1e3), number(of.max * 1e3)]


def _percentile(of: Distribution, percentile: int) -> str:
    mark = "" if of.trusted(percentile) else "~"
    return mark + _figure(of.percentiles[percentile], 1e3)


def _figure(of: Figure, scale: float = 1.0) -> str:
    return f"{number(of.value * scale)}<small>{interval(of, scale)}</small>"
