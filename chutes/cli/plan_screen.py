"""The plan as one screen for a person: the answer first, then what to type, then what else there is.

Plain text everywhere, colours on a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

from chutes.cli import output, plan_next
from chutes.cli.layout import (
    BOLD,
    CYAN,
    DIM,
    FIXED,
    GREEN,
    LABEL,
    RED,
    WIDEST,
    YELLOW,
    columns,
    columns_of,
    entry,
    paint,
    wrapped,
)
from chutes.cli.plan_bar import bar
from chutes.hardware.choice import Choice, PlanResult, Rejected
from chutes.hardware.compare import Compared
from chutes.hardware.planner import USUAL_CONTEXT
from chutes.hardware.profiles import Profiles

GIB = 1 << 30
MISSES = 2  # rejected ways that are shown unless --why asks for all
REASONS = 2
NOTES = 2
OTHERS = 5

WITHOUT_CACHE = {"encoder": "an encoder: no cache", "none": "makes images: no cache"}

UNKNOWN_CPU = "none: how fast this CPU is was not measured, and no data sheet tells"

# What is kept of a request, in plain words.
ATTENTION = {
    "mha": "one for each head",
    "mqa": "all heads share it",
    "gqa": "heads share it in groups",
    "mla": "compressed (MLA)",
    "sliding": "of the latest tokens only",
    "chunked": "of the latest chunk only",
    "linear": "a state of fixed size",
    "hybrid-sliding": "in some layers of the latest tokens only",
    "hybrid-chunked": "in some layers of the latest chunk only",
    "hybrid-linear": "in some layers a state of fixed size",
}


def show(found: PlanResult, shelf: Profiles, *, why: bool = False) -> None:
    for line in lines(found, shelf, columns(), why=why):
        output.say(line)


def lines(found: PlanResult, shelf: Profiles, width: int, *, why: bool = False) -> list[str]:
    """The whole screen."""
    best = found.choice
    drawn = _heading(found, width)
    if best is None:
        return [*drawn, *_tier(found, width)]
    drawn += _choice(found, best, width, why)
    drawn += bar(found, best, width)
    drawn += _room(found, best, width)
    drawn += _speed(found, best, width)
    drawn += _price(best, shelf, width, why)
    drawn += _tier(found, width)
    reasons = [reason for reason in found.reasons if not reason.startswith("arithmetic overrides")]
    for number, reason in enumerate(reasons if why else reasons[:REASONS]):
        drawn += entry("because" if number == 0 else "", reason, width)
    if best.fits and best.engine_args:
        drawn += ["", *plan_next.lines(found, best, width)]
    if found.alternatives:
        drawn += ["", *_alternatives(found, why)]
    if found.rejected:
        drawn += _rejected(found, best, width, why)
    return drawn


def _heading(found: PlanResult, width: int) -> list[str]:
    size = "size unknown"
    if found.parameters:
        billions = found.parameters / 1e9
        size = f"{billions:,.0f} B parameters" if billions >= 100 else f"{billions:.2f} B parameters"
    if found.active_parameters and found.parameters and found.active_parameters < 0.8 * found.parameters:
        size += f" ({found.active_parameters / 1e9:.1f} B at work on a token)"
    facts = [size]
    if found.loaded_weights_bytes:
        loaded = f"{found.loaded_weights_bytes / GIB:.1f} GiB of {found.quantization or found.dtype} weights"
        if found.weights_bytes and found.weights_bytes > 1.001 * found.loaded_weights_bytes:
            loaded += f" (files {found.weights_bytes / GIB:.1f}, some of it is not loaded)"
        facts.append(loaded)
    if found.kv_bytes_per_token:
        kind = ATTENTION.get(found.attention, found.attention)
        facts.append(f"cache {_bytes(found.kv_bytes_per_token)} a token, {kind}")
    elif found.attention in WITHOUT_CACHE:
        facts.append(WITHOUT_CACHE[found.attention])
    head = f"  {paint(found.model, BOLD)}"
    if found.revision:
        head += f" {paint(found.revision[:12], DIM)}"
    origin = f"facts from {found.facts_from}" if found.facts_from else ""
    about = wrapped(" · ".join(facts), width, "  ")
    if len(found.model) + len(origin) + 6 > width or found.revision:
        return ["", head, *(paint(line, DIM) for line in wrapped(origin, width, "  ")), *about, ""]
    return ["", f"{head}  {paint(origin, DIM)}".rstrip(), *about, ""]


def _tier(found: PlanResult, width: int) -> list[str]:
    tier = found.tier
    if tier is None:
        return []
    mark = paint("✓", GREEN) if tier.agrees else paint("≠", YELLOW)
    rule = f"{tier.gpu_count} × {tier.min_vram_gb_per_gpu} GB"
    text = f"{paint(tier.name, BOLD)}, for its size alone {rule}: {mark} {tier.verdict}"
    return entry("tier", text, width)


def _choice(found: PlanResult, best: Choice, width: int, why: bool) -> list[str]:
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
        verdict = paint("misses what was asked" if found.unmet else "does not fit", f"{BOLD};{RED}")
    drawn = entry("choice", f"{paint(name, f'{BOLD};{CYAN}')}  {verdict}  {paint(detail, DIM)}", width)
    if best.max_model_len:
        drawn += entry("", " · ".join(_how(found, best)), width)
    if not best.fits_safely:
        drawn += entry("", best.reason, width)
    if found.fix:
        drawn += entry("", f"fix: {found.fix}", width, hang=2)
    # Of layouts that cannot be, only who asks why wants to know.
    notes = [note for note in best.notes if not note.startswith("tensor parallel ")][:NOTES]
    for note in best.notes if why else notes:
        drawn += entry("", f"! {note}", width, hang=2)
    return drawn


def _how(found: PlanResult, best: Choice) -> list[str]:
    how = [f"context {best.max_model_len:,}"]
    if found.attention != "encoder":
        how.append(f"up to {best.max_num_seqs:,} short requests at once")
    if best.gpu_count > 1 and best.tensor_parallel_size > 1:
        how.append(f"split over {best.tensor_parallel_size} GPUs")
    if best.pipeline_parallel_size > 1:
        how.append(f"pipeline of {best.pipeline_parallel_size}")
    if best.expert_parallel:
        how.append("whole experts on each GPU")
    if best.kv_cache_dtype != "auto":
        how.append(f"{best.kv_cache_dtype} cache")
    return [*how, f"{found.engine} {found.engine_version}"]


def _room(found: PlanResult, best: Choice, width: int) -> list[str]:
    drawn: list[str] = []
    if best.fits and found.fits_at:
        cells = [f"{room.context:,}{FIXED}×{FIXED}{_times(room.requests_safe)}" for room in found.fits_at]
        drawn = entry("holds", paint("tokens × requests at once:", DIM) + " " + " · ".join(cells), width)
    if not found.longest_context_expected:  # none: the reason above says why
        return drawn
    return drawn + entry("longest", _longest(found, best), width)


def _longest(found: PlanResult, best: Choice) -> str:
    safe, most = found.longest_context or 0, found.longest_context_expected or 0
    if found.context_of_model and safe >= found.context_of_model:
        return f"context {safe:,} tokens, all that the model was made for"
    if not safe:
        return f"context at most {most:,} tokens, and none for sure"
    if safe == most:
        return f"context {safe:,} tokens: --max-model-len {safe}"
    return f"context {safe:,} tokens for sure (--max-model-len {safe}), {most:,} at most"


def _speed(found: PlanResult, best: Choice, width: int) -> list[str]:
    speed = best.speed
    if speed is None:
        return (
            []
            if best.gpu_count or not best.max_model_len or not best.fits
            else entry("estimate", UNKNOWN_CPU, width)
        )
    if found.attention == "encoder":
        text = f"reads ~{speed.prefill_tokens_per_second:,.0f} tokens/s"
    else:
        text = f"~{speed.tokens_per_second:,.0f} tokens/s for one request"
        if speed.batch > 1:
            text += f", ~{speed.tokens_per_second_batch:,.0f} for {speed.batch:,}"
        text += f"; prompts ~{speed.prefill_tokens_per_second:,.0f}"
        if found.optimize == "throughput" and (per_dollar := _per_dollar(best)):
            text += f"; {per_dollar}"
    return entry("estimate", f"{text} {paint('(from data sheets)', DIM)}", width)


def _price(best: Choice, shelf: Profiles, width: int, why: bool) -> list[str]:
    if best.price_per_hour is None:
        return []
    each = f" ({best.gpu_count} × ${best.price_per_hour / best.gpu_count:.2f})" if best.gpu_count > 1 else ""
    dated = f"of {best.price_date}" + (f", {shelf.prices.source}" if why else "")
    return entry("price", f"${best.price_per_hour:.2f} an hour{each}  {paint(dated, DIM)}", width)


def _alternatives(found: PlanResult, why: bool) -> list[str]:
    rows = []
    for other in _shown(found, why):
        told = _told(other)
        if other.pipeline_parallel_size > 1:
            told = f"{told}; {other.pipeline_parallel_size} stages" if told else (
                f"{other.pipeline_parallel_size} stages")  # fmt: skip
        price = f"${other.price_per_hour:.2f}/h" if other.price_per_hour is not None else "no price"
        room = (
            f"{other.max_model_len:,} × {_times(other.max_concurrency_safe)}" if other.max_model_len else ""
        )
        rows.append((other.label, price, room, *_speeds(found, other), told))
    head = ("GPUs", "price", "tokens × requests", "tok/s one", "all at once", "")
    return [
        f"  {paint('next best', BOLD)}",
        *columns_of([head, *rows] if found.choice and found.choice.max_model_len else rows, right={1, 3, 4}),
    ]


def _shown(found: PlanResult, why: bool) -> list[Choice]:
    """The best few, ways to use less among them even where there are many others."""
    if why or len(found.alternatives) <= OTHERS:
        return found.alternatives
    ways = [one for one in found.alternatives if _told(one)]
    rest = [one for one in found.alternatives if not _told(one)][: max(0, OTHERS - len(ways))]
    return [one for one in found.alternatives if one in rest or one in ways][:OTHERS]


def _told(other: Choice) -> str:
    """How it differs from what was asked, where it does."""
    if other.notes and other.notes[0].startswith(("with ", "only just")):
        return other.notes[0]
    return "" if other.fits_safely else "only just fits"


def _speeds(found: PlanResult, other: Choice) -> tuple[str, str]:
    if other.speed is None:
        return "", ""
    alone, together = other.speed.tokens_per_second, other.speed.tokens_per_second_batch
    # By the dollar is how throughput is ranked: the column shows what the order comes from.
    return f"{alone:,.0f}", _per_dollar(other) if found.optimize == "throughput" else f"{together:,.0f}"


def _per_dollar(choice: Choice) -> str:
    if choice.speed is None or not choice.price_per_hour:
        return ""
    return f"{choice.speed.tokens_per_second_batch * 3600 / choice.price_per_hour / 1e6:,.1f} M tokens/$"


def _rejected(found: PlanResult, best: Choice, width: int, why: bool) -> list[str]:
    """The nearest misses: what would have been cheaper, dearest first; all of them with --why."""

    def cheaper(one: Rejected) -> bool:
        limit = best.price_per_hour
        return one.price_per_hour is not None and (limit is None or one.price_per_hour < limit)

    order = {"memory": 1, "context": 0, "layout": 0, "bound": 2, "used": 1, "capability": 3}
    misses = sorted(
        found.rejected, key=lambda one: (not cheaper(one), order[one.kind], -(one.price_per_hour or 0.0))
    )
    # A choice that is refused itself has said why above.
    misses = [one for one in misses if (one.gpu, one.gpu_count, one.reason) != _key(best)]
    shown = misses if why else [one for one in misses if one.kind != "capability"][:MISSES]
    if not shown:
        return []
    more = "" if why or len(shown) == len(misses) else f" ({len(shown)} of {len(misses)}: --why shows all)"
    drawn = ["", f"  {paint('rejected', BOLD)}{paint(more, DIM)}"]
    widest = max(len(_label(one)) for one in shown)
    for one in shown:
        indent = " " * (4 + widest + 2)
        text = [line.strip() for line in wrapped(one.reason if why else _short(one), width - 2, indent)]
        if len(text) > 1 and not why:
            text = [text[0].rstrip(" ,") + " …"]
        drawn.append(f"    {_label(one):<{widest}}  {paint(text[0], DIM)}")
        drawn += [indent + paint(line, DIM) for line in text[1:]]
    return drawn


def _short(one: Rejected) -> str:
    """Of a context that is too long only what would fit."""
    return one.reason.partition("; ")[2] or one.reason if one.kind == "context" else one.reason


def _key(best: Choice) -> tuple[str, int, str]:
    """Of a choice that is refused itself: its reason stands above already."""
    return (best.gpu, best.gpu_count, best.reason)


def _label(one: Rejected) -> str:
    return f"{one.gpu_count} × {one.gpu}"


def show_compared(rows: Sequence[Compared], shelf: Profiles, asked: int | None) -> None:
    table: list[tuple[str, ...]] = []
    for row in rows:
        name = row.model.split("/")[-1]  # the catalogue takes it without its organisation too
        if row.plan is None or row.plan.choice is None or row.plan.tier is None:
            table.append((name, "", "", row.problem, "", "", ""))
            continue
        best, tier = row.plan.choice, row.plan.tier
        billions = (row.plan.parameters or 0) / 1e9
        price = f"${best.price_per_hour:.2f}" if best.fits and best.price_per_hour is not None else ""
        table.append(
            (
                name,
                f"{billions:,.0f} B" if billions >= 100 else f"{billions:.1f} B",
                f"{tier.gpu_count} × {tier.min_vram_gb_per_gpu} GB",
                best.label if best.fits else "none fits",
                price,
                f"{best.max_model_len:,}" if best.max_model_len else "",
                "enough" if tier.agrees else "too little" if "too little" in tier.verdict else "too much",
            )
        )
    output.table(("MODEL", "SIZE", "TIER", "ARITHMETIC", "$/H", "CONTEXT", "TIER IS"), table)
    length = f"{asked:,} tokens" if asked else f"{USUAL_CONTEXT:,} tokens, or the model's own limit"
    output.say(f"\nFor {length} (--max-model-len asks for another).")
    output.say("TIER: what size alone suggests. Too much: more than needed, ARITHMETIC names the cheaper.")
    output.note(f"Prices: {shelf.prices.source}, {shelf.prices.date}.")


def _times(requests: float) -> str:
    """Whole requests are what counts; below one none fits."""
    return f"{int(requests):,}" if requests >= 1 else f"{requests:.1f}"


def _bytes(count: int) -> str:
    return f"{count / 1024:,.0f} KiB" if count >= 10_240 else f"{count / 1024:,.1f} KiB"


__all__ = ["LABEL", "WIDEST", "lines", "show", "show_compared"]
