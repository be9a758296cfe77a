"""The hardware in question used differently: what a person who has just that card can still do. Pure."""

from __future__ import annotations

from dataclasses import replace

from chutes.hardware import gpu_names, tiers
from chutes.hardware.choice import Choice, Rejected, Request
from chutes.hardware.describing import context_wanted
from chutes.hardware.offers import Offer
from chutes.hardware.profiles import Profiles
from chutes.hardware.searching import SHORTEST_CONTEXT
from chutes.hardware.ways import Ways
from chutes.model import variants
from chutes.model.facts import ModelFacts

MOST = 3  # ways to use one piece of hardware differently that are told


def on_less(
    facts: ModelFacts, request: Request, profiles: Profiles, offers: list[Offer], best: Choice
) -> list[Choice]:
    """Ways on fewer or cheaper GPUs than the choice: of the types asked for, else of the size tier."""
    for offer in _worth_a_look(facts, request, profiles, offers, best):
        if found := _ways(facts, request, profiles, offer):
            return found
    return []


def on_the_same(
    facts: ModelFacts, request: Request, profiles: Profiles, offer: Offer, best: Choice
) -> tuple[list[Choice], str]:
    """(Ways to use the very hardware that does not do, the same as a sentence of what to do)."""
    limit, asked = facts.max_model_len, request.max_model_len
    if limit and asked and asked > limit:
        return [], f"--max-model-len {limit}, all that the model was made for"
    refusal = Ways(facts, request, profiles).consider(offer)
    if isinstance(refusal, Rejected) and refusal.kind not in ("memory", "context"):
        return [], ""  # no byte that is saved changes what divisibility or the chip forbid
    found = _ways(facts, request, profiles, offer)
    told = [choice.notes[0] for choice in found if choice.fits_safely]
    packed = variants.narrowed(facts, "fp8")
    if packed is not None and not best.fits:
        # The whole context, not a shorter one: weights of half the size are meant to bring it back.
        choice = Ways(packed, request, profiles).consider(offer)
        length = context_wanted(facts, request)
        if isinstance(choice, Choice) and choice.fits_safely:
            told.append(f"with an FP8 checkpoint, whose weights are half as large, at {length:,} tokens")
        else:
            nearest = Ways(packed, request, profiles).exactly(offer)
            most = nearest.estimated_max_model_len_safe
            if most >= SHORTEST_CONTEXT:
                told.append(f"with an FP8 checkpoint, whose weights are half as large, at {most:,} tokens")
            else:
                told.append("not even with an FP8 checkpoint, whose weights are half as large")
    if not told:
        return found, ""
    will = [words for words in told if not words.startswith("not even")]
    fix = f"{offer.count} × {offer.gpu} will do {'; or '.join(will)}" if will else told[0]
    return found, fix


def _worth_a_look(
    facts: ModelFacts, request: Request, profiles: Profiles, offers: list[Offer], best: Choice
) -> list[Offer]:
    """The most GPUs first: the fewer there are, the less they hold."""
    asked = gpu_names.asked(request, profiles)
    if asked or best.gpus:
        own = [one for one in offers if one.count < best.gpu_count and (not asked or one.gpu in asked)]
        return sorted(own, key=lambda one: -one.count * one.memory)
    tier = tiers.cheapest(profiles.tier(facts.parameters), profiles) if facts.parameters else None
    if tier is None or tier.hourly is None:
        return []
    dearer = best.price_per_hour is None or tier.hourly < best.price_per_hour
    return [one for one in offers if dearer and (one.gpu, one.count) == (tier.gpu, tier.count)]


def _ways(facts: ModelFacts, request: Request, profiles: Profiles, offer: Offer) -> list[Choice]:
    if facts.attention == "none":
        return []
    plain = Ways(facts, request, profiles).consider(offer)
    if isinstance(plain, Choice) and plain.fits_safely:
        return []
    found = [_told("only just fits", plain)] if isinstance(plain, Choice) else []
    given = request.max_num_seqs
    if given is not None and given > request.concurrency:
        open_ = request.model_copy(update={"max_num_seqs": None, "max_num_batched_tokens": None})
        fewer = Ways(facts, open_, profiles).consider(offer)
        if isinstance(fewer, Choice) and fewer.fits_safely and fewer.max_num_seqs < given:
            found.append(_told(f"with --max-num-seqs {fewer.max_num_seqs} (a smaller batch)", fewer))
    if request.kv_cache_dtype == "auto" and not facts.kv_cache_fp8:
        small = request.model_copy(update={"kv_cache_dtype": "fp8"})
        packed = Ways(facts, small, profiles).consider(offer)
        if isinstance(packed, Choice) and packed.fits_safely:
            found.append(_told("with --kv-cache-dtype fp8", packed))
    if shorter := _shorter(facts, request, profiles, offer):
        found.append(shorter)
    return found[:MOST]


def _shorter(facts: ModelFacts, request: Request, profiles: Profiles, offer: Offer) -> Choice | None:
    """The longest context that is sure to fit: the figure that is told of this hardware everywhere."""
    free = request.model_copy(update={"max_price": None, "max_tpot_ms": None})
    ways = Ways(facts, free, profiles)
    length = ways.longest(replace(offer, free=None), ways.exactly(offer), safe=True)
    if not SHORTEST_CONTEXT <= length < context_wanted(facts, request):
        return None
    cut = request.model_copy(update={"max_model_len": length})
    found = Ways(facts, cut, profiles).consider(offer)
    if not isinstance(found, Choice) or not found.fits_safely:
        return None
    return _told(f"with --max-model-len {length}", found)


def _told(what: str, choice: Choice) -> Choice:
    return choice.model_copy(update={"notes": [what, *choice.notes]})
