"""Main memory that other chutes were given: counted until they have taken it, and while they want it."""

from __future__ import annotations

from collections.abc import Mapping

from chutes.control.memory import promised
from chutes.control.reconcile import Deployed, Deployment, Slept, World, step
from chutes.engine.diagnosis import Reason
from chutes.engine.lifecycle import Phase
from chutes.fleet.base import Report
from chutes.hardware.cpu import ENGINE_BYTES
from tests.unit.test_reconcile import deployment

GIB = 1 << 30
EACH = ENGINE_BYTES + 2 * GIB


def chute(id_: str, accelerator: str = "cpu") -> Deployment:
    made = deployment()
    spec = made.spec.model_copy(update={"uid": id_, "name": id_})
    plan = made.plan.model_copy(
        update={"accelerator": accelerator, "weights_bytes": GIB, "kv_cache_bytes": GIB, "choice": None}
    )
    return made.model_copy(update={"spec": spec, "plan": plan})


def world(*deployments: Deployment) -> World:
    """Each with one instance, `i-NAME`."""
    found = World()
    for one in deployments:
        found, _ = step(found, Deployed(one), 0.0, lambda id_=f"i-{one.chute_id}": id_)
    return found


def asked(found: World, held: Mapping[str, int], chute_id: str = "new") -> int:
    return promised(found, chute_id, lambda instance: held.get(instance, 0))


def test_what_still_loads_is_counted_by_what_it_lacks() -> None:
    found = world(chute("a"), chute("b"))
    assert asked(found, {}) == 2 * EACH
    assert asked(found, {"i-a": GIB}) == 2 * EACH - GIB
    assert asked(found, {"i-a": EACH, "i-b": EACH}) == 0
    assert asked(found, {"i-a": 3 * EACH, "i-b": EACH}) == 0, "what one takes too much is not another's"


def test_what_a_new_version_replaces_comes_back() -> None:
    found = world(chute("a"), chute("b"))
    assert asked(found, {"i-a": 3 * GIB, "i-b": EACH}, "a") == -3 * GIB


def test_a_chute_on_gpus_takes_none_that_is_counted() -> None:
    assert asked(world(chute("a", "cuda")), {}) == 0


def test_a_chute_that_sleeps_or_was_given_up_wants_none() -> None:
    asleep, _ = step(world(chute("a")), Slept("a"), 1.0, lambda: "unused")
    assert asked(asleep, {}) == 0
    failed = Report("i-b", Phase.FAILED, reason=Reason("No.", fatal=True))
    given_up, _ = step(world(chute("b")), failed, 1.0, lambda: "unused")
    assert asked(given_up, {}) == 0


def test_a_chute_between_two_tries_keeps_its_place() -> None:
    failed = Report("i-a", Phase.FAILED, reason=Reason("It crashed.", fatal=False))
    waiting, _ = step(world(chute("a")), failed, 1.0, lambda: "unused")
    assert asked(waiting, {"i-a": GIB}) == EACH, "the dead instance holds nothing"
