"""Whether an instance that failed is tried again. Pure: a state, what happened and a time in; a state out.

A worker keeps one state for each instance; workers do not share them, as each finds out within a few
requests. The phases (Nygard, "Release It!"; Envoy's outlier detection):

    closed      requests go there; HEALTHY is the closed state without a past
    open        left out until a time: for 1 s, then 2, 4, … 30
    half-open   that time came, and one request tries; the others stay away until it has ended

What opens it is judged by how much it says. A connection that is refused says that nobody is there: open at
once, and nothing is lost by it, as such a request goes elsewhere. A 5xx or an answer that broke off may
be the request's own fault, and clients repeat a failed request: only failures of *different* requests in
a row count, and any success forgets them.

When more than half of a chute's instances are left out, all are tried (Envoy's panic threshold): the fault is
then more likely everybody's, or ours, and the last one standing must not be taken out as well. Those where
nobody is there are not among them: each request would hear at once what the last one heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from chutes.gateway import limits


class Phase(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Health(NamedTuple):
    """What a worker thinks of one instance."""

    phase: Phase = Phase.CLOSED
    failed: frozenset[int] = frozenset()
    """The different requests that failed since the last success, each as a number."""
    openings: int = 0
    """How often in a row it was left out."""
    until: float = 0.0
    """Open: when it may be tried again. Half-open: when another one may try. Closed: since when."""
    absent: bool = False
    """The last connection to it could not be made."""


HEALTHY: Final = Health()


def is_failure(status: int) -> bool:
    """Whether an answer speaks against its instance. 501 is said of what was asked for."""
    return status >= 500 and status != 501


def unreachable(health: Health, now: float) -> Health:
    """After a connection that could not be made."""
    if health.phase is Phase.OPEN and health.absent:
        return health
    return (health if health.phase is Phase.OPEN else _opened(health, now))._replace(absent=True)


def reached(health: Health) -> Health:
    """After a connection to one that was absent."""
    return health._replace(absent=False)


def failed(health: Health, request: int, now: float) -> Health:
    """After a 5xx, or an answer that broke off.

    Args:
        request: a number that is the same when the same thing is asked again, such as its body's CRC.
    """
    if health.phase is Phase.OPEN:  # news of a request that was sent before
        return health
    streak = health.failed | {request}
    if health.phase is Phase.CLOSED and len(streak) < limits.BREAKER_FAILURES:
        return health._replace(failed=streak)
    return _opened(health, now)


def succeeded(health: Health, now: float) -> Health:
    """After an answer that speaks for its instance; need not be called for one that is `HEALTHY`."""
    if health.phase is Phase.OPEN:  # a stream that began before it fell ill proves nothing of now
        return health
    if health.phase is Phase.HALF_OPEN:
        return Health(openings=health.openings, until=now)
    if health.openings and now - health.until < limits.BREAKER_MEMORY_SECONDS:
        return health._replace(failed=HEALTHY.failed)
    return HEALTHY


def tried(health: Health, now: float) -> Health:
    """When a request is sent there: the first one after its time has come is the one that tries.

    One that never tells how it went (its client has gone) blocks the next only for PROBE_SECONDS.
    """
    if health.phase is Phase.CLOSED or now < health.until:
        return health
    return health._replace(phase=Phase.HALF_OPEN, until=now + limits.PROBE_SECONDS)


def usable(healths: Sequence[Health], now: float) -> list[int] | None:
    """Which of a chute's instances may get a request, if any; None for all of them, which costs nearly
    nothing."""
    if healths.count(HEALTHY) == len(healths):
        return None
    indexes = [
        index for index, health in enumerate(healths) if health.phase is Phase.CLOSED or now >= health.until
    ]
    left_out = len(healths) - len(indexes)
    if 2 * left_out > len(healths):
        indexes = [index for index, health in enumerate(healths) if not health.absent or now >= health.until]
    return None if len(indexes) == len(healths) else indexes


def _opened(health: Health, now: float) -> Health:
    recent = health.phase is Phase.HALF_OPEN or now - health.until < limits.BREAKER_MEMORY_SECONDS
    openings = health.openings if recent else 0
    seconds = min(limits.BREAKER_SECONDS * 2.0**openings, limits.BREAKER_MOST_SECONDS)
    return Health(Phase.OPEN, HEALTHY.failed, min(openings + 1, 10), now + seconds)
