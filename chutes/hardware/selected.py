"""A NodeSelector held against GPUs: those of this machine, or, where it has none, the catalogue's. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from chutes.chute.node_selector import NodeSelector
from chutes.hardware.choice import Choice, Request
from chutes.hardware.devices import Gpu
from chutes.hardware.offers import COUNTS, Offer, of_catalogue
from chutes.hardware.profiles import Profiles
from chutes.hardware.ranking import rank
from chutes.hardware.searching import choose
from chutes.hardware.ways import Ways
from chutes.model.facts import ModelFacts


def refusal(gpu: Gpu, selector: NodeSelector, profiles: Profiles) -> str:
    """Why this GPU will not do, or an empty string.

    The selector's GB are the label's: NVML reports at least that many decimal GB for every card sold.
    """
    id_ = profiles.gpu_id(gpu.name, gpu.memory_total)
    if selector.include and id_ not in {name.lower() for name in selector.include}:
        return f"not among include={selector.include}"
    if selector.exclude and id_ in {name.lower() for name in selector.exclude}:
        return f"excluded by exclude={selector.exclude}"
    # Left out it means 16 there and here; set it is a wish of its own, whatever the arithmetic says.
    asked = "min_vram_gb_per_gpu" in selector.model_fields_set
    if asked and gpu.memory_total < selector.min_vram_gb_per_gpu * 1_000_000_000:
        return f"{gpu.memory_total / 1e9:.0f} GB, and min_vram_gb_per_gpu={selector.min_vram_gb_per_gpu}"
    price = profiles.gpus[id_].usd_per_hour if id_ else None
    if selector.max_hourly_price_per_gpu is not None and price and price > selector.max_hourly_price_per_gpu:
        return f"${price}/h, and max_hourly_price_per_gpu={selector.max_hourly_price_per_gpu}"
    return ""


@dataclass(frozen=True)
class Judgement:
    """What a selector is worth; empty where there is nothing to say."""

    shortage: str = ""
    """The least hardware that it allows, and by how much that is too little."""
    would_do: str = ""
    """The cheapest that would do, as the fields that ask for it."""


def judge(selector: NodeSelector, facts: ModelFacts, request: Request, profiles: Profiles) -> Judgement:
    """Whether the smallest GPUs of the catalogue that `selector` allows hold the model, and what would."""
    fixed = "gpu_count" in selector.model_fields_set
    offers, _ = of_catalogue(profiles, None, (selector.gpu_count,) if fixed else COUNTS)
    allowed = [offer for offer in offers if _allows(selector, offer)]
    shortage = ""
    if selector.model_fields_set and not allowed:
        shortage = "no GPU type of hardware_profiles.yaml is what the NodeSelector asks for"
    elif selector.model_fields_set & {"gpu_count", "min_vram_gb_per_gpu", "include"}:
        least = min(allowed, key=lambda offer: (offer.count, offer.memory))
        shortage = _shortage(least, facts, request, profiles) if fixed else ""
    return Judgement(shortage, _would_do(facts, request, profiles))


def _shortage(least: Offer, facts: ModelFacts, request: Request, profiles: Profiles) -> str:
    found = Ways(facts, request, profiles).consider(least)
    if isinstance(found, Choice):
        return ""
    size = f" of {least.type.label_gb} GB" if least.type else ""
    return (
        f"the NodeSelector lets {least.count} × {least.gpu}{size} be chosen, which would not hold the model: "
        f"{found.reason}"
    )


def _would_do(facts: ModelFacts, request: Request, profiles: Profiles) -> str:
    free = request.model_copy(
        update={"tensor_parallel": None, "pipeline_parallel": None, "expert_parallel": None}
    )
    choices, _ = choose(Ways(facts, free, profiles), of_catalogue(profiles)[0])
    ranked = rank([one for one in choices if one.fits_safely], free)
    if not ranked:
        return ""
    best = ranked[0]
    price = f", ${best.price_per_hour:.2f}/h" if best.price_per_hour is not None else ""
    fields = best.node_selector
    return (
        f"{best.label} would do ({best.max_model_len:,} tokens{price}): gpu_count={fields['gpu_count']}, "
        f"min_vram_gb_per_gpu={fields['min_vram_gb_per_gpu']}, include={fields['include']!r}."
    )


def _allows(selector: NodeSelector, offer: Offer) -> bool:
    if selector.include and offer.gpu not in selector.include:
        return False
    if selector.exclude and offer.gpu in selector.exclude:
        return False
    if offer.type is None or offer.type.label_gb < selector.min_vram_gb_per_gpu:
        return False
    most = selector.max_hourly_price_per_gpu
    return most is None or (offer.price is not None and offer.price <= most)
