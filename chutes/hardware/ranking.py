"""Which of several ways to serve a model is the best, by what was asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from chutes.hardware.choice import Choice, Request

# Estimates that lie so near to each other say nothing about which is faster.
SAME_SPEED = 0.05


def rank(choices: Iterable[Choice], request: Request) -> list[Choice]:
    """The best first: safe ones before tight ones, then by what was asked for."""

    def price(choice: Choice) -> tuple[bool, float]:
        return (choice.price_per_hour is None, choice.price_per_hour or 0.0)

    def key(choice: Choice) -> tuple:
        alone = choice.speed.tokens_per_second if choice.speed else 0.0
        together = choice.speed.tokens_per_second_batch if choice.speed else 0.0
        if request.optimize == "latency":
            goal = (-alone, *price(choice))
        elif request.optimize == "throughput":  # for a dollar where there are prices: more is always faster
            goal = (choice.price_per_hour is None, -together / (choice.price_per_hour or 1.0))
        else:
            goal = (*price(choice), choice.gpu_count, -together)
        return (not choice.fits_safely, *goal, choice.gpu_count, choice.gpu)

    ranked = sorted(choices, key=key)
    return _priced_first(ranked) if request.optimize == "latency" else ranked


def _priced_first(fastest: list[Choice]) -> list[Choice]:
    """Of choices about as fast as each other those that have a price, and of these the cheapest, first."""
    found: list[Choice] = []
    rest = list(fastest)
    while rest:
        leader = rest[0]
        near = [one for one in rest if _as_fast(one, leader)]
        found += sorted(near, key=lambda one: (one.price_per_hour is None, one.price_per_hour or 0.0))
        rest = rest[len(near) :]
    return found


def _as_fast(one: Choice, leader: Choice) -> bool:
    if one.speed is None or leader.speed is None or one.fits_safely != leader.fits_safely:
        return one is leader
    return one.speed.tokens_per_second >= (1 - SAME_SPEED) * leader.speed.tokens_per_second
