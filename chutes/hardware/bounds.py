"""Where hardware would hold the model and none meets a bound: which bound, and how near one comes. Pure."""

from __future__ import annotations

from chutes.hardware.choice import Choice, Request
from chutes.hardware.offers import Offer
from chutes.hardware.profiles import Profiles
from chutes.hardware.ranking import rank
from chutes.hardware.searching import choose
from chutes.hardware.ways import Ways
from chutes.model.facts import ModelFacts


def nearest(
    facts: ModelFacts, request: Request, profiles: Profiles, offers: list[Offer]
) -> tuple[str, Choice | None, list[Choice]]:
    """(What nothing meets, the nearest, the next nearest); nothing where no bound forbids it."""
    if request.max_price is None and request.max_tpot_ms is None:
        return "", None, []
    # Looked at for their speed, so that larger numbers of GPUs are looked at too.
    free = request.model_copy(update={"max_price": None, "max_tpot_ms": None, "optimize": "latency"})
    choices, _ = choose(Ways(facts, free, profiles), offers)
    choices = [choice for choice in choices if choice.fits_safely] or choices
    if not choices:
        return "", None, []
    said: list[str] = []
    priced = [choice for choice in choices if choice.price_per_hour is not None]
    cheapest = rank(priced, request.model_copy(update={"optimize": "price"}))
    fastest = rank(choices, free)
    ordered = cheapest
    if request.max_price is not None and request.max_tpot_ms is not None:
        said.append(f"nothing meets --max-price {request.max_price:g} and --max-tpot {request.max_tpot_ms:g}")
    elif request.max_price is not None:
        said.append(f"nothing meets --max-price {request.max_price:g}")
    else:
        said.append(f"nothing meets --max-tpot {request.max_tpot_ms:g}")
    if request.max_price is not None:
        said.append(
            f"the cheapest that fits is {cheapest[0].label} at ${cheapest[0].price_per_hour:.2f}/h"
            if cheapest
            else "of what fits no price is known"
        )
    if request.max_tpot_ms is not None:
        ordered = fastest
        said.append(
            f"the fastest that fits is {fastest[0].label}, about {_milliseconds(fastest[0]):.1f} ms a token"
        )
    ordered = ordered or fastest
    unmet = f"{said[0]}: {'; '.join(said[1:])}"
    best = ordered[0].model_copy(update={"fits": False, "fits_safely": False, "reason": unmet})
    others: dict[str, Choice] = {}
    for one in ordered[1:]:
        if one.gpu != best.gpu:
            others.setdefault(one.gpu, one)
    return unmet, best, list(others.values())


def _milliseconds(choice: Choice) -> float:
    return choice.speed.tpot_ms if choice.speed else float("inf")
