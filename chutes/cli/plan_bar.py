"""Where the memory of one GPU goes, to scale."""

from __future__ import annotations

from chutes.cli.layout import BLUE, DIM, FIXED, GREEN, LABEL, MAGENTA, WIDEST, YELLOW, entry, paint
from chutes.hardware.choice import Choice, PlanResult

GIB = 1 << 30


def bar(found: PlanResult, best: Choice, width: int) -> list[str]:
    """The bar and its legend; what is missing makes it longer than the memory."""
    memory = best.per_gpu_bytes
    parts = _parts(found, best)
    cells = min(width, WIDEST) - LABEL - 14
    whole = max(memory.total, sum(size for _, size, _, _ in parts))
    drawn = ""
    edge, drawn_to = 0.0, 0
    for name, size, glyph, colour in parts:
        edge += size / whole * cells
        count = max(round(edge) - drawn_to, 1 if size > 0.004 * whole and name != "free" else 0)
        drawn_to += count
        drawn += paint(glyph * count, colour)
    legend = "  ".join(
        f"{paint(glyph, colour)}{FIXED}{name.replace(' ', FIXED)}{FIXED}{size / GIB:.1f}"
        for name, size, glyph, colour in parts
        if size > 0
    )
    label = "each GPU" if best.gpu_count > 1 else "the GPU" if best.gpu_count else "memory"
    return [f"  {label:<{LABEL}}{drawn} {memory.total / GIB:.1f} GiB", *entry("", legend, width)]


def _parts(found: PlanResult, best: Choice) -> list[tuple[str, int, str, str]]:
    memory = best.per_gpu_bytes
    cache, safe = memory.kv_cache_expected, max(0, memory.kv_cache_safe)
    # The graphs lie inside the budget or outside it, as the release has it; the bar shows them once.
    inside = memory.weights + memory.kv_cache_expected + memory.peak_activation + memory.non_torch
    graphs_inside = inside + memory.cuda_graph <= memory.usable + (1 << 20)
    runtime = memory.non_torch + (memory.cuda_graph if graphs_inside else 0)
    spare = max(0, memory.total - memory.usable)
    if found.attention in ("encoder", "none"):  # nothing of a request stays: there is no cache to reserve
        held = [("free", max(0, cache) + spare, "·", DIM)]
    else:
        held = [("free", spare, "·", DIM)]
    packed = found.loaded_weights_bytes or 0
    padded = memory.weights > 1.02 * packed / max(1, best.gpu_count) and best.gpu_count == 1
    parts = [("weights (padded)" if padded else "weights", memory.weights, "█", BLUE)]
    if found.attention not in ("encoder", "none"):
        parts += [
            ("cache", max(0, min(cache, safe)), "▓", GREEN),
            ("reserve", max(0, cache - safe), "▒", GREEN),
        ]
    parts += [
        ("activations", memory.peak_activation, "░", YELLOW),
        ("CUDA" if best.gpu_count else "engine", runtime, "▞", MAGENTA),
    ]
    return parts + held
