"""The size tiers beside the arithmetic: always shown, and overruled where they are wrong."""

from __future__ import annotations

from chutes.hardware.choice import Choice, Request, TierView
from chutes.hardware.offers import Offer, of_catalogue
from chutes.hardware.profiles import Profiles, Tier
from chutes.hardware.ways import Ways
from chutes.model.facts import ModelFacts


def view(facts: ModelFacts, request: Request, profiles: Profiles, best: Choice) -> TierView | None:
    """What the tier would take, and whether that is too little, too much or right. None: size unknown."""
    if not facts.parameters:
        return None
    tier = profiles.tier(facts.parameters)

    def answer(verdict: str, agrees: bool) -> TierView:
        return TierView(
            name=tier.name,
            gpu_count=tier.gpu_count,
            min_vram_gb_per_gpu=tier.min_vram_gb_per_gpu,
            verdict=verdict,
            agrees=agrees,
        )

    offer = cheapest(tier, profiles)
    if offer is None or facts.problem:
        return answer("not checked", True)
    length = best.max_model_len
    asked = request.model_copy(
        update={"max_model_len": length or None, "max_price": None, "max_tpot_ms": None, "gpu": None,
                "gpu_count": None, "tensor_parallel": None, "pipeline_parallel": None,
                "expert_parallel": None, "engine_version": request.engine_version if best.gpu_count else ""}
    )  # fmt: skip
    found = Ways(facts, asked, profiles).consider(offer)
    wanted = f"{length:,} tokens" if length else "its weights"
    if request.concurrency > 1:
        wanted = f"{request.concurrency} requests of {wanted}"
    words = f"{tier.gpu_count} × {tier.min_vram_gb_per_gpu} GB ({offer.gpu}, ${offer.hourly or 0:.2f}/h)"
    if not isinstance(found, Choice) or not found.fits_safely:
        most = found.reason.partition("; ")[2]
        return answer(f"{words} are too little for {wanted}" + (f": {most}" if most else ""), False)
    if best.gpu_count and best.fits and best.price_per_hour is not None and offer.hourly is not None:
        if best.price_per_hour < offer.hourly:
            return answer(
                f"{words} are more than {wanted} need; {best.label} is enough, ${best.price_per_hour:.2f}/h",
                False,
            )
        return answer(f"{words} are enough for {wanted}", True)
    return answer(f"{words} would be enough for {wanted}", True)


def cheapest(tier: Tier, profiles: Profiles) -> Offer | None:
    """The cheapest hardware that is what the tier says."""
    offers, _ = of_catalogue(profiles, count=tier.gpu_count)
    fitting = [
        offer
        for offer in offers
        if offer.type is not None
        and offer.type.label_gb >= tier.min_vram_gb_per_gpu
        and offer.hourly is not None
    ]
    # Among equal prices the roomiest: a tier must not fail for a detail of one card.
    return min(fitting, key=lambda offer: (offer.hourly or 0.0, -offer.memory), default=None)
