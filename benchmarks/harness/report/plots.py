"""Pictures of a result: latency CDFs, the curve of a sweep, what happened over time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.curve import CurvePoint, highest_within, knee
from benchmarks.harness.measures import pools_of, token_times
from benchmarks.harness.report.view import NAMES, Shown, View
from benchmarks.harness.result import replace_file
from benchmarks.harness.steady import in_flight

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

CDFS = ("ttft", "tpot", "e2el")
CDF_POINTS = 120  # of a line: a step for each pixel or two, and a report that can be mailed
LEVEL_POINTS = 800  # of the requests under way over the whole timeline
LOG_FROM = 20.0  # the ratio of the slowest to the fastest from which a straight scale hides the fast ones
TOKENS_BIN = 1.0  # seconds
WIDTH = 11.0  # inches
DASHES = ("-", (0, (4, 2)))  # of two lines that lie on each other both are seen
HEADROOM = 1.2  # over the lines of a timeline, for the legend
MOST_NAMES = 12  # over a timeline, before they run into each other


@dataclass(frozen=True)
class Theme:
    """Colours that can be told apart by those who see few (after Okabe and Ito), on light and on dark."""

    paper: str
    ink: str
    faint: str
    lines: tuple[str, ...]
    ramp: str
    ramp_ends: tuple[float, float]
    """Where a sweep's colours begin and end on the ramp, so that none of them melts into the paper."""


LIGHT = Theme(
    "#ffffff", "#1f2328", "#d8dde3", ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#8a6d00"), "viridis",
    (0.0, 0.85),
)  # fmt: skip
DARK = Theme(
    "#14171c", "#e3e6ea", "#343a43", ("#56b4e9", "#ff8c42", "#3ddc97", "#e58fc4", "#f0c94a"), "viridis",
    (0.25, 1.0),
)  # fmt: skip


def picture(view: View, path: Path, theme: Theme = LIGHT) -> None:
    """Everything in one PNG.

    Raises:
        UsageError: it cannot be written there.
    """
    parts = [part for part in (cdfs, curve, timeline) if part is not curve or _curves(view)]
    with _style(theme):
        canvas = _canvas(sum(part.height for part in parts))
        places = canvas.subfigures(
            len(parts), 1, height_ratios=[part.height for part in parts], squeeze=False
        )[:, 0]  # fmt: skip
        for part, place in zip(parts, places, strict=True):
            part.draw(view, place, theme)
        target = view.result.targets[0].model if view.result.targets else ""
        canvas.suptitle(f"{target}  ·  {view.result.when}", x=0.01, ha="left", fontsize=11, weight="bold")
        replace_file(path, _saved(canvas, "png"))


def svg(view: View, part: Part, theme: Theme) -> str:
    """One part as a document of its own; empty where there is nothing to draw."""
    if part is curve and not _curves(view):
        return ""
    with _style(theme):
        canvas = _canvas(part.height)
        part.draw(view, canvas, theme)
        return _saved(canvas, "svg").decode()


@dataclass(frozen=True)
class Part:
    """A row of panels."""

    title: str
    height: float
    """Inches."""
    draw: Callable[[View, Any, Theme], None]
    """Into a figure or a part of one."""
    says: str
    """What one sees, for those who do not."""


# CDFs ----------------------------------------------------------------------------------------------


def _draw_cdfs(view: View, place: Any, theme: Theme) -> None:
    axes = place.subplots(1, len(CDFS), squeeze=False)[0]
    colours = _colours(view.shown, theme)
    for axis, name in zip(axes, CDFS, strict=True):
        ends: list[float] = []
        for number, (shown, colour) in enumerate(zip(view.shown, colours, strict=True)):
            found = pools_of([r for records in shown.records for r in records if not r.error]).get(name)
            if found is None:
                continue
            values = found[0].values * 1e3
            shares = np.arange(1, len(values) + 1) / len(values)
            keep = np.unique(np.linspace(0, len(values) - 1, CDF_POINTS).astype(int))
            axis.step(
                values[keep],
                shares[keep],
                where="post",
                color=colour,
                label=_label(view, shown),
                linestyle=DASHES[number % 2] if len(view.targets) > 1 else "-",
            )
            ends += [values[0], values[-1]]
        limit = view.result.slo.get(name)
        if limit is not None:
            axis.axvline(limit, color=theme.ink, linestyle=(0, (4, 3)), linewidth=1)
            axis.text(
                limit, 0.97, "objective", fontsize=7.5, rotation=90, ha="right", va="top",
                bbox={"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.7, "pad": 1},
            )  # fmt: skip
        _time_scale(axis, ends)
        axis.set(title=NAMES[name], xlabel="ms", ylim=(0, 1.01))
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.yaxis.set_major_formatter("{x:.0%}")
    axes[0].set_ylabel("requests that were at most so slow")
    if len(view.shown) > 1 and (lines := axes[-1].get_legend_handles_labels())[0]:
        # Beside the panels: in each of them it would lie on lines.
        place.legend(*lines, loc="outside right center")


def _time_scale(axis: Axes, ends: Sequence[float]) -> None:
    positive = [end for end in ends if end > 0]
    if positive and max(positive) / min(positive) > LOG_FROM:
        axis.set_xscale("log")
    elif positive:
        axis.set_xlim(left=0)


# The curve of a sweep ----------------------------------------------------------------------------------


def _curves(view: View) -> dict[str, list[CurvePoint]]:
    return {target: points for target in view.targets if (points := view.curve(target))}


def _draw_curve(view: View, place: Any, theme: Theme) -> None:
    left, right = place.subplots(1, 2)
    drawn = {point.name for points in _curves(view).values() for point in points}
    closed = any(shown.closed and shown.name in drawn for shown in view.shown)
    tokens = all(
        "output_tokens" in point.measures.rates for points in _curves(view).values() for point in points
    )
    unit = "output tokens/s" if tokens else "requests/s"
    for (target, points), colour in zip(_curves(view).items(), theme.lines, strict=False):
        many = len(_curves(view)) > 1
        loads = [point.load for point in points]
        through = [point.throughput for point in points]
        left.plot(loads, through, "o-", color=colour, label=target if many else "delivered")
        good = [point.measures.attainment for point in points]
        if not many and all(share is not None for share in good):
            goods = [value * (share or 0.0) for value, share in zip(through, good, strict=True)]
            left.plot(loads, goods, "s--", color=theme.lines[2], label="× share within objectives")
            left.legend(loc="best")
        for latency, style in (("ttft", ":"), ("e2el", "-")):
            for percentile, alpha in ((50, 1.0), (99, 0.45)):
                values = [
                    p.measures.latencies[latency].percentiles[percentile].value * 1e3
                    if latency in p.measures.latencies else np.nan
                    for p in points
                ]  # fmt: skip
                label = f"{f'{target}, ' if many else ''}{NAMES[latency]} p{percentile}"
                right.plot(through, values, "o", linestyle=style, color=colour, alpha=alpha, label=label)
        _marks(left, right, points, theme)
    left.set(title="Throughput", xlabel="requests at once" if closed else "requests/s offered", ylabel=unit)
    left.set_xlim(left=0)
    left.set_ylim(bottom=0)
    right.set(title="Latency against throughput", xlabel=unit, ylabel="ms", yscale="log")
    right.set_xlim(left=0)
    right.yaxis.set_major_formatter("{x:,g}")
    # A scale of less than a decade would have no number at all.
    right.yaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if f"{value:e}"[0] in "25" else "")
    right.legend(loc="best")


def _marks(left: Axes, right: Axes, points: list[CurvePoint], theme: Theme) -> None:
    bend, limit = knee(points), highest_within(points)
    said = {"knee": bend, "highest within SLO": limit}
    if bend is limit:
        said = {"knee, and highest within SLO": bend}
    for text, point in said.items():
        if point is None:
            continue
        for axis, at in ((left, point.load), (right, point.throughput)):
            axis.axvline(at, color=theme.ink, linestyle=(0, (4, 3)), linewidth=1)
            axis.text(
                at, 0.03, f"{text}: {point.name}", transform=axis.get_xaxis_transform(), fontsize=7.5,
                rotation=90, ha="right", va="bottom",
                bbox={"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.7, "pad": 1},
            )  # fmt: skip


# What happened over time ---------------------------------------------------------------------------------


def _draw_timeline(view: View, place: Any, theme: Theme) -> None:
    requests, tokens, machine = place.subplots(3, 1, sharex=True, height_ratios=[3, 2, 2])
    blue, orange, green, pink, ochre = theme.lines
    start = 0.0
    seen: set[str] = set()

    def once(label: str) -> str:
        """A label for the first line of its kind."""
        return f"_{label}" if label in seen else (seen.add(label), label)[1]

    spans: list[tuple[float, str]] = []
    names = {phase.name for phase in view.result.phases}
    for phase in view.result.phases:
        if not phase.records:
            continue
        begin = min(record.scheduled for record in phase.records)
        end = max(record.ended for record in phase.records)
        shift = start - begin
        times, levels = in_flight(phase.records)
        looks = np.linspace(begin, end, max(10, LEVEL_POINTS // len(view.result.phases)))
        under_way = levels[np.searchsorted(times, looks, "right") - 1]
        requests.fill_between(
            looks + shift, under_way, color=blue, alpha=0.18, linewidth=0, label=once("under way")
        )
        _tokens_line(tokens, phase.records, begin, end, shift, blue, once("output tokens/s"))
        at = np.array(phase.samples.at) + shift
        for axis, series, colour, label in (
            (requests, "engine_running_requests", green, "running in the engine"),
            (requests, "engine_waiting_requests", orange, "waiting in the engine"),
            (machine, "engine_kv_cache_usage_ratio", pink, "KV cache in use"),
            *(
                (machine, name, ochre, "GPU busy")
                for name in phase.samples.series
                if name.endswith("_busy_ratio")
            ),
        ):
            values = phase.samples.series.get(series)
            if values:
                shown = np.array([np.nan if value is None else value for value in values])
                axis.plot(at, shown, color=colour, label=once(label))
        spans.append((start, phase.name if len(names) > 1 else phase.target or phase.name))
        start += end - begin
    for axis in (requests, tokens, machine):
        for at, _ in spans[1:]:
            axis.axvline(at, color=theme.faint, linewidth=1)
        axis.set_ylim(0, axis.get_ylim()[1] * HEADROOM)
    if 1 < len(spans) <= MOST_NAMES:
        for (at, _), name in zip(spans, _short([name for _, name in spans]), strict=True):
            requests.text(at, 1.01, f" {name}", transform=requests.get_xaxis_transform(), fontsize=7.5)
    requests.set(ylabel="requests")
    tokens.set(ylabel="output tokens/s")
    machine.set(ylabel="share", xlabel="seconds", ylim=(0, HEADROOM), xlim=(0, max(start, 1e-3)))
    machine.yaxis.set_major_formatter("{x:.0%}")
    for axis in (requests, machine):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="upper left", ncols=3)
    if not machine.lines:
        machine.text(
            0.5, 0.5, "nobody looked at the engine or a GPU", transform=machine.transAxes, ha="center"
        )


def _tokens_line(
    axis: Axes, records: Sequence[Any], begin: float, end: float, shift: float, colour: str, label: str
) -> None:
    arrivals = [token_times(record) for record in records if not record.error]
    if not arrivals or end - begin < TOKENS_BIN:
        return
    times = np.concatenate([at for at, _ in arrivals])
    counts = np.concatenate([count for _, count in arrivals])
    edges = np.arange(begin, end, TOKENS_BIN)
    if len(edges) < 2:
        return
    rate, _ = np.histogram(times, edges, weights=counts)
    axis.plot(edges[:-1] + shift + TOKENS_BIN / 2, rate / TOKENS_BIN, color=colour, label=label)


cdfs = Part(
    "How long requests took",
    3.1,
    _draw_cdfs,
    "Cumulative distributions of TTFT, TPOT and end-to-end latency, a line for each load; the tables below "
    "have their percentiles.",
)
curve = Part(
    "More load",
    3.3,
    _draw_curve,
    "Throughput over the offered load, and latency over throughput, with the knee; the table of all loads "
    "has the figures.",
)
timeline = Part(
    "Over time",
    4.6,
    _draw_timeline,
    "Requests under way, running and waiting in the engine; output tokens a second; KV cache and GPU in use; "
    "all over the seconds of the run.",
)


# Drawing -------------------------------------------------------------------------------------------------


def _colours(shown: Sequence[Shown], theme: Theme) -> list[Any]:
    """Targets have colours of their own; the loads of a sweep go from one end of a ramp to the other."""
    names = list(dict.fromkeys(one.name for one in shown))
    targets = list(dict.fromkeys(one.target for one in shown))
    if len(names) == 1 or len(targets) > 1:
        return [theme.lines[targets.index(one.target) % len(theme.lines)] for one in shown]
    import matplotlib

    low, high = theme.ramp_ends
    return [
        matplotlib.colormaps[theme.ramp](low + (high - low) * names.index(one.name) / (len(names) - 1))
        for one in shown
    ]


def _short(names: list[str]) -> list[str]:
    """Without a first word that all have: `poisson 2/s` and `poisson 4/s` are `2/s` and `4/s`."""
    words = [name.partition(" ") for name in names]
    alike = len({first for first, _, _ in words}) == 1 and all(rest for _, _, rest in words)
    return [rest for _, _, rest in words] if alike else names


def _label(view: View, shown: Shown) -> str:
    if len(view.targets) == 1:
        return shown.name
    return shown.target if len({one.name for one in view.shown}) == 1 else f"{shown.name}, {shown.target}"


@contextmanager
def _style(theme: Theme) -> Iterator[None]:
    import matplotlib

    settings: Any = {
        "figure.facecolor": theme.paper, "axes.facecolor": theme.paper, "savefig.facecolor": theme.paper,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.titlecolor": theme.ink,
        "xtick.color": theme.ink, "ytick.color": theme.ink, "axes.edgecolor": theme.ink,
        "axes.grid": True, "grid.color": theme.faint, "grid.linewidth": 0.6, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold",
        "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.labelsize": 8.5,
        "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 7.5, "legend.frameon": True,
        "legend.facecolor": theme.paper, "legend.edgecolor": "none", "legend.framealpha": 0.8,
        "legend.labelcolor": theme.ink, "lines.linewidth": 1.6, "lines.markersize": 4, "font.size": 9,
        "svg.hashsalt": "chutes",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def _canvas(height: float) -> Canvas:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas


def _saved(canvas: Canvas, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    canvas.savefig(buffer, format=kind, dpi=140, metadata=metadata)
    return buffer.getvalue()
