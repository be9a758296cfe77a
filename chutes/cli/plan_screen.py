"""The plan as one screen for a person: plain text everywhere, colours on a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

from chutes.cli import output
from chutes.hardware.choice import Choice, PlanResult, Rejected
from chutes.hardware.compare import Compared
from chutes.hardware.profiles import Profiles

GIB = 1 << 30
WIDEST = 104  # columns; beyond, lines are hard to follow back
LABEL = 11
MISSES = 5  # rejected ways that are shown; --json has them all

FIXED = "\u00a0"  # a blank at which no line is broken; printed as a plain one

BOLD, DIM, RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN = "1", "2", "31", "32", "33", "34", "35", "36"


def show(found: PlanResult, shelf: Profiles) -> None:
    for line in lines(found, shelf, _columns()):
        output.say(line)


def lines(found: PlanResult, shelf: Profiles, columns: int) -> list[str]:
    """The whole screen."""
    best = found.choice
    drawn = [*_heading(found, columns), ""]
    if found.tier is not None:
        tier = found.tier
        mark = paint("✓", GREEN) if tier.agrees else paint("≠", YELLOW)
        size = f"{paint(tier.name, BOLD)}, by size alone {tier.gpu_count} × {tier.min_vram_gb_per_gpu} GB"
        drawn += _entry("tier", size, columns)
        drawn += _entry("", f"{mark} {tier.verdict}", columns, hang=2)
    if best is None:
        return drawn
    drawn.append("")
    drawn += _choice(found, best, columns)
    drawn += ["", *_bar(best, columns), ""]
    if best.fits:
        drawn += _room(found, best, columns)
    drawn += _speed(best, columns)
    drawn += _price(best, shelf, columns)
    drawn += _arguments(found, best, columns)
    for number, reason in enumerate(r for r in found.reasons if not r.startswith("arithmetic overrides")):
        drawn += _entry("because" if number == 0 else "", reason, columns)
    if found.alternatives:
        drawn += ["", *_alternatives(found, best)]
    if found.rejected:
        drawn += ["", *_rejected(found, best, columns)]
    return drawn


def _heading(found: PlanResult, columns: int) -> list[str]:
    size = "size unknown"
    if found.parameters:
        billions = found.parameters / 1e9
        size = f"{billions:,.0f} B parameters" if billions >= 100 else f"{billions:.2f} B parameters"
    if found.active_parameters and found.parameters and found.active_parameters < 0.8 * found.parameters:
        size += f" ({found.active_parameters / 1e9:.1f} B active)"
    facts = [size]
    if found.quantization or found.dtype:
        facts.append(found.quantization or found.dtype)
    if found.loaded_weights_bytes:
        loaded = f"{found.loaded_weights_bytes / GIB:.1f} GiB loaded"
        if found.weights_bytes and found.weights_bytes > 1.001 * found.loaded_weights_bytes:
            loaded += f" of {found.weights_bytes / GIB:.1f} stored"
        facts.append(loaded)
    if found.kv_bytes_per_token:
        facts.append(f"{found.attention.upper()} cache {_bytes(found.kv_bytes_per_token)} a token")
    elif found.attention:
        facts.append(f"attention: {found.attention}")
    head = f"  {paint(found.model, BOLD)}"
    if found.revision:
        head += f" {paint(found.revision[:12], DIM)}"
    origin = f"facts from {found.facts_from}" if found.facts_from else ""
    return [
        "",
        head,
        *_wrapped(" · ".join(facts), columns, "  "),
        *([paint(line, DIM) for line in _wrapped(origin, columns, "  ")] if origin else []),
    ]


def _choice(found: PlanResult, best: Choice, columns: int) -> list[str]:
    if best.gpu_count:
        name = f"{best.gpu_count} × {best.gpu}"
        detail = f"{best.gpu_name}, {best.per_gpu_bytes.total / GIB:.1f} GiB each"
        if best.gpus:
            detail += f", device {', '.join(map(str, best.gpus))}"
    else:
        name, detail = "cpu", f"{best.gpu_name}, {best.per_gpu_bytes.total / GIB:.1f} GiB of main memory"
    if best.fits_safely:
        verdict = paint("fits", f"{BOLD};{GREEN}")
    elif best.fits:
        verdict = paint("only just fits", f"{BOLD};{YELLOW}")
    else:
        verdict = paint("does not fit", f"{BOLD};{RED}")
    how = [f"tensor parallel {best.tensor_parallel_size}"] if best.gpu_count > 1 else []
    if best.pipeline_parallel_size > 1:
        how.append(f"pipeline {best.pipeline_parallel_size}")
    if best.expert_parallel:
        how.append("experts spread over the GPUs")
    if best.kv_cache_dtype != "auto":
        how.append(f"{best.kv_cache_dtype} cache")
    how += [f"context {best.max_model_len:,}", f"up to {best.max_num_seqs:,} at once"]
    how.append(f"{found.engine} {found.engine_version}")
    drawn = _entry("choice", f"{paint(name, f'{BOLD};{CYAN}')}  {verdict}  {paint(detail, DIM)}", columns)
    drawn += _entry("", " · ".join(how), columns)
    if not best.fits_safely:
        drawn += _entry("", best.reason, columns)
    for note in best.notes:
        drawn += _entry("", f"! {note}", columns, hang=2)
    return drawn


def _bar(best: Choice, columns: int) -> list[str]:
    """Where the memory of one GPU goes, to scale; what is missing sticks out in red."""
    memory = best.per_gpu_bytes
    cache, safe = memory.kv_cache_expected, max(0, memory.kv_cache_safe)
    # The graphs lie inside the budget or outside it, as the release has it; the bar shows them once.
    inside = memory.weights + memory.kv_cache_expected + memory.peak_activation + memory.non_torch
    graphs_inside = inside + memory.cuda_graph <= memory.usable + (1 << 20)
    runtime = memory.non_torch + (memory.cuda_graph if graphs_inside else 0)
    runtime_name = "engine" if not best.gpu_count else "runtime"
    parts = [
        ("weights", memory.weights, "█", BLUE),
        ("cache", max(0, min(cache, safe)), "▓", GREEN),
        ("reserve", max(0, cache - safe), "▒", GREEN),
        ("activations", memory.peak_activation, "░", YELLOW),
        (runtime_name, runtime, "▞", MAGENTA),
        ("unused", max(0, memory.total - memory.usable), "·", DIM),
    ]
    width = min(columns, WIDEST) - LABEL - 14
    whole = max(memory.total, sum(size for _, size, _, _ in parts))
    bar = ""
    edge, drawn_to = 0.0, 0
    for name, size, glyph, colour in parts:
        edge += size / whole * width
        cells = max(round(edge) - drawn_to, 1 if size > 0.004 * whole and name != "unused" else 0)
        drawn_to += cells
        bar += paint(glyph * cells, colour)
    legend = "  ".join(
        f"{paint(glyph, colour)}{FIXED}{name}{FIXED}{size / GIB:.1f}"
        for name, size, glyph, colour in parts
        if size > 0
    )
    label = "each GPU" if best.gpu_count > 1 else "the GPU" if best.gpu_count else "memory"
    drawn = [f"  {label:<{LABEL}}{bar} {memory.total / GIB:.1f} GiB"]
    drawn += _entry("", legend, columns)
    if cache < 0:
        drawn += _entry("", paint(f"{-cache / GIB:.2f} GiB too little before any cache", RED), columns)
    return drawn


def _room(found: PlanResult, best: Choice, columns: int) -> list[str]:
    cells = [f"{room.context:,}{FIXED}×{FIXED}{_times(room.requests_safe)}" for room in found.fits_at]
    drawn = _entry("holds", paint("tokens × requests at once", DIM) + "  " + " · ".join(cells), columns)
    needed = best.kv_cache_needed_bytes_per_gpu / GIB
    where = "on each GPU" if best.gpu_count > 1 else ""
    if needed:
        text = f"one request of {best.max_model_len:,} tokens takes {needed:.2f} GiB {where}".rstrip()
        drawn += _entry("", paint(text, DIM), columns)
    return drawn


def _speed(best: Choice, columns: int) -> list[str]:
    speed = best.speed
    if speed is None:
        return []
    text = f"~{speed.tokens_per_second:,.0f} tokens/s for one request"
    if speed.batch > 1:
        text += f", ~{speed.tokens_per_second_batch:,.0f} for {speed.batch:,} at once"
    text += f"; prompts ~{speed.prefill_tokens_per_second:,.0f} tokens/s"
    note = paint(f"a roofline estimate at {speed.context:,} tokens of context, for comparing", DIM)
    return _entry("estimate", text, columns) + _entry("", note, columns)


def _price(best: Choice, shelf: Profiles, columns: int) -> list[str]:
    if best.price_per_hour is None:
        return []
    each = f" ({best.gpu_count} × ${best.price_per_hour / best.gpu_count:.2f})" if best.gpu_count > 1 else ""
    dated = paint(f"{shelf.prices.source}, {best.price_date}", DIM)
    return _entry("price", f"${best.price_per_hour:.2f} an hour{each}  {dated}", columns)


def _arguments(found: PlanResult, best: Choice, columns: int) -> list[str]:
    if not best.fits:
        return []
    variables = " ".join(f"{name}={value}" for name, value in best.environment.items())
    text = f"{variables} {' '.join(best.engine_args)}".strip()
    drawn = _entry(found.engine, text, columns)
    if best.node_selector:
        inside = ", ".join(f"{key}={value!r}" for key, value in best.node_selector.items())
        drawn += _entry("chute", f"NodeSelector({inside})", columns)
    return drawn


def _alternatives(found: PlanResult, best: Choice) -> list[str]:
    rows = []
    for other in found.alternatives:
        how = f"tp {other.tensor_parallel_size}"
        how += f" pp {other.pipeline_parallel_size}" if other.pipeline_parallel_size > 1 else ""
        how += " ep" if other.expert_parallel else ""
        differs = [one for one in other.notes if one.startswith("with ")]
        if not differs and other.max_num_seqs != best.max_num_seqs:
            differs = [f"{other.max_num_seqs} at once"]
        if not other.fits_safely:
            differs.append("only just fits")
        rows.append(
            (
                other.label,
                how,
                f"${other.price_per_hour:.2f}/h" if other.price_per_hour is not None else "no price",
                f"{other.max_model_len:,} × {_times(other.max_concurrency_safe)}",
                f"~{other.speed.tokens_per_second:,.0f} tok/s" if other.speed else "",
                ", ".join(differs),
            )
        )
    return [f"  {paint('next best', BOLD)}", *_columns_of(rows)]


def _rejected(found: PlanResult, best: Choice, columns: int) -> list[str]:
    """The nearest misses: what would have been cheaper, dearest first, then what the tier names."""

    def cheaper(one: Rejected) -> bool:
        limit = best.price_per_hour
        return one.price_per_hour is not None and (limit is None or one.price_per_hour < limit)

    order = {"memory": 1, "context": 0, "layout": 0, "bound": 2, "capability": 3}
    misses = sorted(
        found.rejected, key=lambda one: (not cheaper(one), order[one.kind], -(one.price_per_hour or 0.0))
    )
    drawn = [f"  {paint('rejected', BOLD)}"]
    widest = max(len(_label(one)) for one in misses[:MISSES])
    for one in misses[:MISSES]:
        indent = " " * (4 + widest + 2)
        text = textwrap.wrap(one.reason, min(columns, WIDEST) - len(indent)) or [""]
        drawn.append(f"    {_label(one):<{widest}}  {paint(text[0], DIM)}")
        drawn += [indent + paint(line, DIM) for line in text[1:2]]
        if len(text) > 2:
            drawn[-1] += paint(" …", DIM)
    if len(misses) > MISSES:
        drawn.append(paint(f"    and {len(misses) - MISSES} more ways: --json has them all", DIM))
    return drawn


def _label(one: Rejected) -> str:
    return f"{one.gpu_count} × {one.gpu}"


def show_compared(rows: Sequence[Compared], shelf: Profiles) -> None:
    table: list[tuple[str, ...]] = []
    for row in rows:
        if row.plan is None or row.plan.choice is None or row.plan.tier is None:
            table.append((row.model, "", "", "", "", "", row.problem))
            continue
        best, tier = row.plan.choice, row.plan.tier
        table.append(
            (
                row.model,
                f"{(row.plan.parameters or 0) / 1e9:.1f} B",
                f"{tier.name}: {tier.gpu_count} × {tier.min_vram_gb_per_gpu} GB",
                f"{best.label}" if best.fits else "none",
                f"${best.price_per_hour:.2f}" if best.price_per_hour is not None else "",
                f"{best.max_model_len:,}",
                "does"
                if tier.agrees
                else "too little"
                if "too little" in tier.verdict
                else "more than needed",
            )
        )
    output.table(("MODEL", "SIZE", "TIER", "ARITHMETIC", "$/H", "CONTEXT", "THE TIER"), table)
    output.note(f"Prices: {shelf.prices.source}, {shelf.prices.date}.")


def paint(text: str, code: str) -> str:
    """Colour on a terminal whose owner did not ask for none (https://no-color.org)."""
    if not text or not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def _entry(label: str, text: str, columns: int, hang: int = 0) -> list[str]:
    """A label and its text, wrapped under itself."""
    room = min(columns, WIDEST) - LABEL - 2
    wrapped = _wrap_painted(text, room, hang)
    labels = [label] + [""] * (len(wrapped) - 1)
    return [f"  {one:<{LABEL}}{line.replace(FIXED, ' ')}" for one, line in zip(labels, wrapped, strict=True)]


def _wrap_painted(text: str, room: int, hang: int) -> list[str]:
    """Wrap at blanks by what is seen: escape codes have no width."""
    found: list[str] = [""]
    for word in text.split(" "):
        width = len(_ESCAPE.sub("", found[-1])) + 1 + len(_ESCAPE.sub("", word))
        if found[-1].strip() and width > room:
            found.append(" " * hang + word)
        else:
            found[-1] = f"{found[-1]} {word}" if found[-1] else word
    return found


def _wrapped(text: str, columns: int, indent: str) -> list[str]:
    return [indent + line for line in textwrap.wrap(text, min(columns, WIDEST) - len(indent))]


def _columns_of(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = {2, 4}  # prices and speeds
    return [
        "    "
        + "  ".join(
            f"{cell:>{width}}" if i in right else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _times(requests: float) -> str:
    """Whole requests are what counts; below one none fits."""
    return f"{int(requests):,}" if requests >= 1 else f"{requests:.1f}"


def _bytes(count: int) -> str:
    return f"{count / 1024:,.1f} KiB" if count >= 1024 else f"{count} B"


def _columns() -> int:
    return shutil.get_terminal_size((100, 40)).columns
