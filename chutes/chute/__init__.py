"""What an author writes: `Chute`, its cords and jobs, and the hardware it wants.

Names are resolved on first use: the platform reads chutes as data (`chutes.chute.spec`,
`NodeSelector`) and should not pay for FastAPI, by far the most of what `Chute` costs, to do so.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chutes.chute.base import Chute, NotEnforcedWarning
    from chutes.chute.cord import Cord
    from chutes.chute.job import Job, Port
    from chutes.chute.node_selector import NodeSelector
    from chutes.chute.pack import ChutePack

__all__ = ["Chute", "ChutePack", "Cord", "Job", "NodeSelector", "NotEnforcedWarning", "Port"]

_HOMES = {
    "Chute": "base",
    "ChutePack": "pack",
    "Cord": "cord",
    "Job": "job",
    "NodeSelector": "node_selector",
    "NotEnforcedWarning": "base",
    "Port": "job",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
