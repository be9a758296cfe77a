"""One way to serve a model in words and figures: what it needs, lacks and may run into. Pure."""

from __future__ import annotations

from chutes.hardware import roofline
from chutes.hardware.choice import WEIGHTS_ONLY, Choice, PerGpuBytes, Request, Speed
from chutes.hardware.memory import Estimate, Layout, Setting
from chutes.hardware.offers import Offer
from chutes.hardware.terms import gib
from chutes.model.facts import ModelFacts

GIB = 1 << 30

# An engine refuses to start when less is free than it is told to take, and its own CUDA context, some half a
# GiB, is taken before it looks: a share that leaves less than this is a gamble.
LEAST_SPARE = int(0.4 * GIB)

# Ways to pack weights whose size quantization.py reads rightly.
KNOWN_METHODS = {
    *("fp8", "mxfp4", "nvfp4", "int4", "int8", "awq", "gptq", "auto-round", "awq_marlin", "gptq_marlin"),
    *("bitsandbytes", "mixed"),
}

PUBLISHED_VRAM_LIMIT = 140  # GB; the published NodeSelector takes no more, an H200 is 140 there

UNKNOWN_CONTEXT = 4096  # tokens, for a model whose config.json names no limit


def context_wanted(facts: ModelFacts, request: Request) -> int:
    return request.max_model_len or facts.max_model_len or UNKNOWN_CONTEXT


def warnings(facts: ModelFacts, found: Estimate, fits: bool, safe: bool) -> list[str]:
    """What may go wrong although it fits."""
    remarks: list[str] = []
    if fits and found.total - found.usable < LEAST_SPARE:
        remarks.append(
            f"only {gib(found.total - found.usable)} of the GPU stay free of the engine, and its CUDA "
            "context alone takes about 0.5 GiB: it will hardly start; lower --gpu-memory-utilization"
        )
    elif fits and not safe:
        remarks.append(
            "fits by the expected figures only; the reserve for what arithmetic does not see is gone: "
            "it may fail to start"
        )
    quantization = facts.quantization
    if quantization is not None and quantization.method not in KNOWN_METHODS:
        remarks.append(
            f"the quantisation {quantization.method!r} is not known here: its weights were counted as "
            f"{quantization.bits:g} bits each, and the engine may not know it either"
        )
    return remarks


def only_weights(offer: Offer, found: Estimate, fits: bool, safe: bool, notes: list[str]) -> Choice:
    """Of a model that makes images: no tokens, no cache, no arguments of an engine for text."""
    idle = f"; one of the {offer.count} GPUs is used" if offer.count > 1 else ""
    return Choice(
        gpu=offer.gpu,
        gpu_name=offer.name,
        gpu_count=offer.count,
        gpus=list(offer.indices),
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        fits=fits,
        fits_safely=safe,
        reason=f"{gib(found.weights)} of weights of {gib(found.usable)} usable: what making an image "
        f"takes was not counted{idle}",
        notes=notes,
        price_per_hour=offer.hourly,
        price_date=offer.price_date,
        gpu_memory_utilization=round(found.gpu_memory_utilization, 4),
        node_selector=selector(offer),
        per_gpu_bytes=PerGpuBytes(**{name: getattr(found, name) for name in PerGpuBytes.model_fields}),
        **WEIGHTS_ONLY,
    )


def shortage(facts: ModelFacts, request: Request, layout: Layout, found: Estimate) -> str:
    """By how much it does not fit."""
    if found.kv_cache_expected <= 0:
        beside = found.usable - found.weights - found.kv_cache_expected
        return (
            f"{gib(found.weights)} of weights on each GPU ({spoken(layout)}) and {gib(beside)} beside "
            f"them, of {gib(found.usable)} usable: {gib(-found.kv_cache_expected)} too little "
            "before any cache"
        )
    wanted, length = request.concurrency, context_wanted(facts, request)
    if found.max_num_seqs < wanted:
        return f"the engine runs {found.max_num_seqs:,} requests at once, and {wanted:,} are wanted"
    what = f"{wanted} requests" if wanted > 1 else "one request"
    limit, sure = found.estimated_max_model_len, found.estimated_max_model_len_safe
    most = f"; {sure:,} tokens fit safely, at most {limit:,}" if 0 < limit < length else ""
    if wanted > 1 and found.fits_expected:
        most = f"; {found.max_concurrency:.1f} such requests fit"
    return (
        f"{gib(found.kv_cache_needed * wanted)} of cache needed on each GPU ({spoken(layout)}) for "
        f"{what} of {length:,} tokens, {gib(found.kv_cache_expected)} expected{most}"
    )


def room(facts: ModelFacts, request: Request, found: Estimate) -> str:
    return (
        f"{gib(found.kv_cache_expected)} of cache expected on each GPU ({gib(found.kv_cache_safe)} with "
        f"the reserve), {gib(found.kv_cache_needed)} needed for one request of "
        f"{context_wanted(facts, request):,} tokens"
    )


def speed_of(
    facts: ModelFacts, offer: Offer, layout: Layout, setting: Setting, found: Estimate
) -> Speed | None:
    if offer.type is None or not (facts.loaded_bytes or facts.weights_bytes):
        return None
    if facts.attention == "none":
        return None
    speed = roofline.speed(
        facts,
        layout,
        offer.type,
        max_model_len=setting.max_model_len,
        max_num_seqs=found.max_num_seqs,
        kv_cache_tokens=found.kv_cache_tokens_safe,
        kv_dtype=setting.kv_cache_dtype,
    )
    if facts.attention != "encoder":
        return speed
    # An encoder reads a text in one pass and writes nothing: reading is all there is to be quick at.
    reads = speed.prefill_tokens_per_second
    return speed.model_copy(update={"batch": 1, "tokens_per_second": reads, "tokens_per_second_batch": reads})


def selector(offer: Offer) -> dict:
    """The NodeSelector that asks for this offer."""
    if offer.type is None:
        return {"gpu_count": offer.count}
    return {
        "gpu_count": offer.count,
        "min_vram_gb_per_gpu": min(PUBLISHED_VRAM_LIMIT, offer.type.label_gb),
        "include": [offer.gpu],
    }


def spoken(layout: Layout) -> str:
    """`tensor parallel 4 × pipeline 2, experts spread`."""
    words = f"tensor parallel {layout.tensor_parallel}"
    if layout.pipeline_parallel > 1:
        words += f" × pipeline {layout.pipeline_parallel}"
    return words + (", experts spread" if layout.expert_parallel else "")
