"""The reconciler against a fake fleet: no process, no clock, no socket."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from chutes.chute.spec import ChuteSpec, EngineSpec
from chutes.control.reconcile import (
    BACKOFF_SECONDS,
    KEPT_ENDED,
    Closing,
    Deleted,
    Deployed,
    Deployment,
    Effect,
    Event,
    Start,
    Stop,
    Tick,
    World,
    step,
)
from chutes.engine.contract import Endpoint
from chutes.engine.diagnosis import Reason
from chutes.engine.lifecycle import Phase
from chutes.fleet.base import Report
from chutes.hardware.plan import Plan
from chutes.model.source import ModelSource


def deployment(name: str = "m", version: str = "v1") -> Deployment:
    return Deployment(
        spec=ChuteSpec(
            uid=f"id-{name}", username="me", name=name, engine=EngineSpec(name="vllm", model=name)
        ),
        source=ModelSource(kind="directory", name=name, revision=None, location=f"/{name}", note=name),
        plan=Plan(accelerator="cpu", engine="vllm", engine_version="0"),
        version=version,
        created=1.0,
    )


class House:
    """A world with a clock that only moves when told, and ids that count."""

    def __init__(self) -> None:
        self.world = World()
        self.now = 1000.0
        numbers = itertools.count(1)
        self.new_id: Callable[[], str] = lambda: f"i{next(numbers)}"

    def take(self, event: Event) -> list[Effect]:
        self.world, effects = step(self.world, event, self.now, self.new_id)
        return effects

    def report(self, instance: str, phase: Phase, **more: object) -> list[Effect]:
        return self.take(Report(instance, phase, **more))  # type: ignore[arg-type]

    def make_ready(self, instance: str) -> None:
        self.report(instance, Phase.READY, endpoint=Endpoint("127.0.0.1", 20000, "key"))


def test_a_deploy_starts_one_instance() -> None:
    house = House()
    effects = house.take(Deployed(deployment()))
    assert [type(effect) for effect in effects] == [Start]
    assert house.world.instances["i1"].phase == Phase.PREPARING
    assert house.take(Tick()) == []


def test_the_same_version_again_changes_nothing() -> None:
    house = House()
    house.take(Deployed(deployment()))
    house.make_ready("i1")
    assert house.take(Deployed(deployment())) == []


def test_a_new_version_stops_the_old_one_and_then_starts() -> None:
    house = House()
    house.take(Deployed(deployment()))
    house.make_ready("i1")
    assert house.take(Deployed(deployment(version="v2"))) == [Stop("i1")]
    house.report("i1", Phase.DRAINING)
    effects = house.report("i1", Phase.STOPPED)
    assert isinstance(effects[0], Start)
    assert effects[0].deployment.version == "v2"


def replaced() -> House:
    """v1 was ready, v2 has taken its place and starts as i2."""
    house = House()
    house.take(Deployed(deployment()))
    house.make_ready("i1")
    house.take(Deployed(deployment(version="v2")))
    house.report("i1", Phase.STOPPED)
    return house


def test_a_new_version_that_fails_for_good_gives_its_place_back() -> None:
    house = replaced()
    effects = house.report("i2", Phase.FAILED, reason=Reason("no weights", fatal=True))
    assert [effect.deployment.version for effect in effects if isinstance(effect, Start)] == ["v1"]
    assert house.world.deployments["id-m"].version == "v1"
    assert house.world.undone == {"id-m": "v2"}
    assert not house.world.given_up
    assert not house.world.proven
    house.take(Deployed(deployment(version="v3")))
    assert not house.world.undone


def test_one_that_may_yet_start_is_tried_until_it_is_given_up() -> None:
    house = replaced()
    for number in range(2, 2 + len(BACKOFF_SECONDS)):
        assert house.report(f"i{number}", Phase.FAILED, reason=Reason("crash")) == []
        house.now += 60
        house.take(Tick())
    assert house.world.deployments["id-m"].version == "v2"
    house.report(f"i{2 + len(BACKOFF_SECONDS)}", Phase.FAILED, reason=Reason("crash"))
    assert house.world.deployments["id-m"].version == "v1"


def test_what_once_was_ready_is_not_undone() -> None:
    house = replaced()
    house.make_ready("i2")
    house.report("i2", Phase.FAILED, reason=Reason("broken", fatal=True))
    assert house.world.deployments["id-m"].version == "v2"
    assert "id-m" in house.world.given_up


def test_nothing_goes_back_to_a_version_that_never_served() -> None:
    house = House()
    house.take(Deployed(deployment()))
    house.take(Deployed(deployment(version="v2")))
    house.report("i1", Phase.STOPPED)
    house.report("i2", Phase.FAILED, reason=Reason("no weights", fatal=True))
    assert house.world.deployments["id-m"].version == "v2"
    assert "id-m" in house.world.given_up


def test_the_last_good_version_outlives_several_bad_ones_and_does_not_replace_itself() -> None:
    house = replaced()
    house.take(Deployed(deployment(version="v3")))
    assert house.world.proven["id-m"].version == "v1"
    house.take(Deployed(deployment(version="v1")))
    assert not house.world.proven


def test_delete_stops_and_starts_nothing_more() -> None:
    house = House()
    house.take(Deployed(deployment()))
    assert house.take(Deleted("id-m")) == [Stop("i1")]
    assert house.report("i1", Phase.STOPPED) == []
    assert house.take(Tick()) == []


def test_a_stop_is_asked_for_once() -> None:
    house = House()
    house.take(Deployed(deployment()))
    house.take(Deleted("id-m"))
    assert house.take(Tick()) == []
    assert house.take(Closing()) == []


def test_a_crash_is_followed_by_restarts_further_and_further_apart() -> None:
    house = House()
    house.take(Deployed(deployment()))
    for number, delay in enumerate(BACKOFF_SECONDS, 1):
        assert house.report(f"i{number}", Phase.FAILED, reason=Reason("crash")) == []
        house.now += delay - 0.01
        assert house.take(Tick()) == []
        house.now += 0.01
        assert [type(effect) for effect in house.take(Tick())] == [Start]
    house.report(f"i{len(BACKOFF_SECONDS) + 1}", Phase.FAILED, reason=Reason("crash"))
    house.now += 3600
    assert house.take(Tick()) == []
    assert "id-m" in house.world.given_up
    assert [type(effect) for effect in house.take(Deployed(deployment()))] == [Start], "a deploy tries again"


def test_a_fatal_reason_is_not_tried_again() -> None:
    house = House()
    house.take(Deployed(deployment()))
    house.report("i1", Phase.FAILED, reason=Reason("bad argument", fatal=True))
    house.now += 3600
    assert house.take(Tick()) == []


def test_failures_are_forgiven_once_an_instance_has_served_for_a_while() -> None:
    house = House()
    house.take(Deployed(deployment()))
    for number in range(1, 20):
        house.make_ready(f"i{number}")
        house.now += 700
        house.report(f"i{number}", Phase.FAILED, reason=Reason("crash"))
        house.now += 1
        assert [type(effect) for effect in house.take(Tick())] == [Start]


def test_a_slow_crash_loop_ends_too() -> None:
    house = House()
    house.take(Deployed(deployment()))
    for number in range(1, 20):
        house.now += 700  # loading
        house.report(f"i{number}", Phase.FAILED, reason=Reason("crash"))
        house.now += 100
        house.take(Tick())
    assert "id-m" in house.world.given_up
    assert len(house.world.instances) <= KEPT_ENDED


def test_late_reports_do_not_bring_an_instance_back() -> None:
    house = House()
    house.take(Deployed(deployment()))
    house.report("i1", Phase.FAILED, reason=Reason("crash", fatal=True))
    house.report("i1", Phase.LOADING)
    assert house.world.instances["i1"].phase == Phase.FAILED
    house.report("nobody", Phase.READY)
    assert "nobody" not in house.world.instances


def test_an_endpoint_lasts_only_while_ready() -> None:
    house = House()
    house.take(Deployed(deployment()))
    house.make_ready("i1")
    assert house.world.instances["i1"].endpoint is not None
    assert house.world.instances["i1"].ready_after == 0.0
    house.report("i1", Phase.FAILED, reason=Reason("crash"))
    assert house.world.instances["i1"].endpoint is None


def test_ended_instances_are_kept_for_a_while_only() -> None:
    house = House()
    house.take(Deployed(deployment()))
    for number in range(1, 40):
        house.make_ready(f"i{number}")
        house.now += 700
        house.report(f"i{number}", Phase.FAILED, reason=Reason("crash"))
        house.now += 1
        house.take(Tick())
    ended = [instance for instance in house.world.instances.values() if instance.phase.over]
    assert len(ended) == KEPT_ENDED


def test_closing_stops_all_and_starts_nothing() -> None:
    house = House()
    house.take(Deployed(deployment("a")))
    house.take(Deployed(deployment("b")))
    assert house.take(Closing()) == [Stop("i1"), Stop("i2")]
    house.report("i1", Phase.STOPPED)
    assert house.take(Tick()) == []


reports = st.builds(
    Report,
    instance_id=st.sampled_from(["i1", "i2", "i3", "i4"]),
    phase=st.sampled_from(list(Phase)),
    reason=st.sampled_from([None, Reason("crash"), Reason("bad", fatal=True)]),
)
events = st.one_of(
    reports,
    st.builds(Deployed, st.builds(deployment, st.sampled_from("ab"), st.sampled_from(["v1", "v2"]))),
    st.builds(Deleted, st.sampled_from(["id-a", "id-b"])),
    st.just(Tick()),
)


@given(st.lists(st.tuples(events, st.floats(0, 30)), max_size=60))
def test_never_two_at_once_and_never_one_unwanted(history: list[tuple[Event, float]]) -> None:
    house = House()
    started: set[str] = set()
    for event, pause in history:
        house.now += pause
        for effect in house.take(event):
            if isinstance(effect, Start):
                assert effect.instance_id not in started
                started.add(effect.instance_id)
        for id_ in ("id-a", "id-b"):
            alive = [i for i in house.world.of(id_) if not i.phase.over and not i.stopping]
            assert len(alive) <= 1
            if alive:
                assert house.world.deployments[id_].version == alive[0].version
