"""Which instance of a chute gets a request. Pure: loads in, an index out."""

from __future__ import annotations

from collections.abc import Sequence


def least_loaded(loads: Sequence[int], turn: int) -> int:
    """Index of the smallest of `loads` (not empty); among equals, the one whose `turn` it is.

    Without the rotation an idle chute would send everything to its first instance, whose KV cache
    would thrash while the others' stayed cold.
    """
    least = min(loads)
    equals = [index for index, load in enumerate(loads) if load == least]
    return equals[turn % len(equals)]
