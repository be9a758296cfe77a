"""Which of several chutes a comma list tries first. Pure: what was measured in, an order out.

    a,b,c               in the given order, but those with a free place first
    a,b,c:latency       by the time to the first token
    a,b,c:throughput    by the tokens per second of one stream

The scores are moving averages of what this worker's own requests met, waiting included, so a busy chute
falls behind by itself. As on the published platform, one that was never measured comes after those that were.
Unlike there, one without an instance is kept, as the very last: it can be woken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, TypeVar

NEWEST = 0.1
"""Weight of the newest request: a score is about what the last twenty met."""


class Preference(Enum):
    FAILOVER = ""
    LATENCY = "latency"
    THROUGHPUT = "throughput"


class Room(Enum):
    """Whether a chute could take a request now."""

    FREE = 0
    FULL = 1
    NONE = 2
    """No instance runs."""


class Score(NamedTuple):
    """What requests to one chute met lately; 0 for what was not measured."""

    first: float = 0.0
    """Seconds to the first token."""
    rate: float = 0.0
    """Tokens per second of one stream, once it had begun."""


UNSCORED = Score()
Destination = TypeVar("Destination")


def scored(score: Score, first: float, duration: float, tokens: int) -> Score:
    """After a streamed answer.

    Args:
        first: seconds until its first token.
        duration: seconds until its end, counted from the same start.
        tokens: how many it had. Of a single one no rate can be told.
    """
    rate = score.rate
    if tokens > 1 and duration > first:
        rate = _average(rate, (tokens - 1) / (duration - first))
    return Score(_average(score.first, first), rate)


def rank(
    destinations: Sequence[tuple[Destination, str, Room]],
    preference: Preference,
    scores: Mapping[str, Score],
) -> list[Destination]:
    """The order in which to try them.

    Args:
        destinations: each with its chute's id and room, in the order in which they were asked for.
        scores: by chute id.
    """
    keys: dict[Preference, Callable[[Score, Room], tuple[float, ...]]] = {
        Preference.FAILOVER: lambda score, room: (room.value,),
        Preference.LATENCY: lambda score, room: (room is Room.NONE, not score.first, score.first),
        Preference.THROUGHPUT: lambda score, room: (room is Room.NONE, -score.rate),
    }
    key = keys[preference]
    ranked = sorted(destinations, key=lambda each: key(scores.get(each[1], UNSCORED), each[2]))
    return [destination for destination, _, _ in ranked]


def _average(before: float, newest: float) -> float:
    return before + NEWEST * (newest - before) if before else newest
