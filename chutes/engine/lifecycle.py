"""The phases of one instance, from the decision to start it to its end.

preparing → fetching → loading → warming → ready → draining → stopped
     └──────────┴─────────┴─────────┴────────┴─────────┴────→ failed
"""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where an instance is. Each says what may not be done in it."""

    PREPARING = "preparing"
    """The engine's environment is being made. No process exists yet."""
    FETCHING = "fetching"
    """Model files are being brought here. No process exists yet."""
    LOADING = "loading"
    """The engine's process runs and does not answer. No request may be sent to it."""
    WARMING = "warming"
    """The engine answers and is asked one known thing. No client's request may be sent to it."""
    READY = "ready"
    """In the route table. The only phase in which clients are served."""
    DRAINING = "draining"
    """Out of the route table, finishing what it has. No new request may be sent to it."""
    STOPPED = "stopped"
    """Ended because it was told to. Nothing of it runs."""
    FAILED = "failed"
    """Ended by itself or never came up; a reason says why. Nothing of it runs."""

    @property
    def over(self) -> bool:
        """Nothing of the instance runs, nor will."""
        return self in (Phase.STOPPED, Phase.FAILED)

    @property
    def starting(self) -> bool:
        return self in (Phase.PREPARING, Phase.FETCHING, Phase.LOADING, Phase.WARMING)


_ORDER = list(Phase)


def may_follow(before: Phase, after: Phase) -> bool:
    """Whether an instance in `before` can next be in `after`.

    Phases only go forward. FAILED follows anything that is not over, and so does STOPPED, because a
    stop may come before there is anything to drain.
    """
    if before.over:
        return False
    return after.over or _ORDER.index(after) >= _ORDER.index(before)
