"""Main memory that is free now and spoken for all the same. Pure."""

from __future__ import annotations

from collections.abc import Callable

from chutes.control.reconcile import World


def promised(world: World, chute_id: str, held: Callable[[str], int]) -> int:
    """Bytes that chutes other than this one were given and have not taken yet, less what this one's instances
    will give back, as a new version stops them first.

    An instance takes what it was given while it loads, or later still: pages of a cache are taken when they
    are first written to. A chute that sleeps or was given up holds nothing.

    Args:
        held: what an instance holds by now, by its id.
    """
    bytes_ = 0
    for id_, deployment in world.deployments.items():
        has = sum(held(instance.id) for instance in world.of(id_) if not instance.phase.over)
        if id_ == chute_id:
            bytes_ -= has
        elif id_ not in world.asleep | world.given_up:
            bytes_ += max(0, deployment.plan.main_memory_bytes - has)
    return bytes_
