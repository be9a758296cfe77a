"""Several offers looked at together: which will do, and at which length of context. Pure."""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from itertools import groupby

from chutes.hardware.choice import Choice, Rejected, Request
from chutes.hardware.describing import context_wanted
from chutes.hardware.offers import Offer
from chutes.hardware.profiles import Profiles
from chutes.hardware.ways import Ways
from chutes.model.facts import ModelFacts

# A context is cut in steps of a quarter of a power of two down to this; below nothing useful is said.
SHORTEST_CONTEXT = 1024


def choose(ways: Ways, offers: list[Offer]) -> tuple[list[Choice], list[Rejected]]:
    """What each offer would be; more GPUs of a kind are looked at only while fewer do not do, for a price."""
    choices: list[Choice] = []
    rejected: list[Rejected] = []
    for _, same in groupby(offers, key=lambda offer: offer.gpu):
        for offer in same:
            found = ways.consider(offer)
            if isinstance(found, Rejected):
                rejected.append(found)
                continue
            choices.append(found)
            if found.fits_safely and ways.request.optimize == "price":
                break
    return choices, rejected


def best_shorter(
    facts: ModelFacts, request: Request, profiles: Profiles, offers: list[Offer]
) -> tuple[int, list[Choice]]:
    """The longest context below the model's own with which something fits safely, else at all."""
    lengths = shorter(context_wanted(facts, request))

    @cache
    def at(length: int) -> list[Choice]:
        cut = request.model_copy(update={"max_model_len": length})
        return choose(Ways(facts, cut, profiles), offers)[0]

    # What holds a context holds every shorter one: the lengths fall, so the answer turns to yes once.
    for does in (safe, bool):
        found = bisect_left(lengths, True, key=lambda length: does(at(length)))
        if found < len(lengths):
            return lengths[found], at(lengths[found])
    return 0, []


def safe(choices: list[Choice]) -> bool:
    return any(choice.fits_safely for choice in choices)


def shorter(length: int) -> list[int]:
    """Contexts below `length`, 3/4 and 1/2 of each power of two, down to the shortest."""
    power = 1 << (length.bit_length())
    steps: list[int] = []
    while power >= SHORTEST_CONTEXT:
        steps += [power, power * 3 // 4]
        power //= 2
    return [step for step in steps if SHORTEST_CONTEXT <= step < length]
