"""What to do next, given what should run and what does. Pure: `(world, event, now) → (world, effects)`.

Everything that the platform knows of deployments and instances is one `World`, changed here and nowhere
else. The loop in `platform.py` feeds events in and carries effects out; tests do the same with no
process, clock or socket.

One instance per deployment, started on deploy, stopped by `chutes sleep` and started again by the first
request: the loop that acts on `max_instances`, `scaling_threshold` and `shutdown_after_seconds` is not here
yet. A new version replaces the old one by stopping it first, because two of them rarely fit on the devices
at once. One that fails for good and was never ready is undone: the one before it is started again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import BaseModel

from chutes.chute.spec import ChuteSpec
from chutes.engine.contract import Endpoint
from chutes.engine.diagnosis import Reason
from chutes.engine.lifecycle import Phase, may_follow
from chutes.fleet.base import Report
from chutes.hardware.plan import Plan
from chutes.model.source import ModelSource

T = TypeVar("T")

# A crash is followed by a restart after 1, 2, 4, 8, 16 s: an engine that died of one bad request is back at
# once, and one that cannot live does not burn the machine.
BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
# An instance that has served this long has shown that the chute can live: earlier failures are forgiven.
# Not simply after a time: an engine that loads for minutes and then dies would be started for ever.
FORGIVEN_AFTER_SECONDS = 600.0
# How many ended instances of a chute stay visible (`chutes ps --all`, `chutes logs` after a crash).
KEPT_ENDED = 5


class Deployment(BaseModel, frozen=True):
    """One version of a chute that should run."""

    spec: ChuteSpec
    source: ModelSource | None
    """None for a chute without a model."""
    plan: Plan
    version: str
    created: float
    """Unix seconds of the first deploy of this chute."""
    capabilities: list[str] = []
    """See `wire.Route.capabilities`."""

    @property
    def chute_id(self) -> str:
        return self.spec.uid


@dataclass(frozen=True)
class Instance:
    """One instance, alive or ended."""

    id: str
    chute_id: str
    version: str
    phase: Phase
    started: float
    """Unix seconds."""
    changed: float
    """Unix seconds of the last change of phase."""
    detail: str = ""
    done: int = 0
    total: int = 0
    endpoint: Endpoint | None = None
    reason: Reason | None = None
    pid: int | None = None
    ready_after: float | None = None
    """Seconds from start to READY."""
    max_model_len: int | None = None
    stopping: bool = False
    """A stop was asked for; until it is over, nothing of it may be counted on."""


@dataclass(frozen=True)
class World:
    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    """By chute id."""
    instances: Mapping[str, Instance] = field(default_factory=dict)
    """By instance id, oldest first."""
    failures: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Times of failures by chute id, since the last instance that had proven itself."""
    given_up: frozenset[str] = frozenset()
    """Chutes whose last failure would come back, or came back too often. A new deploy tries again."""
    proven: Mapping[str, Deployment] = field(default_factory=dict)
    """By chute id, the last version that has been ready, while the one that replaced it has not."""
    undone: Mapping[str, str] = field(default_factory=dict)
    """By chute id, the version that was deployed last and gave its place back to the one before it."""
    asleep: frozenset[str] = frozenset()
    """Chutes that hold no device until somebody asks for them."""
    closing: bool = False

    def of(self, chute_id: str) -> list[Instance]:
        """Instances of one chute, oldest first."""
        return [instance for instance in self.instances.values() if instance.chute_id == chute_id]


@dataclass(frozen=True)
class Deployed:
    deployment: Deployment


@dataclass(frozen=True)
class Deleted:
    chute_id: str


@dataclass(frozen=True)
class Slept:
    """A chute is to give its devices back until somebody asks for it."""

    chute_id: str


@dataclass(frozen=True)
class Woken:
    """Somebody asks for a chute."""

    chute_id: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Closing:
    """The platform is going down."""


Event = Deployed | Deleted | Slept | Woken | Report | Tick | Closing


@dataclass(frozen=True)
class Start:
    instance_id: str
    deployment: Deployment


@dataclass(frozen=True)
class Stop:
    instance_id: str


Effect = Start | Stop


def step(world: World, event: Event, now: float, new_id: Callable[[], str]) -> tuple[World, list[Effect]]:
    """Take one event in.

    Args:
        now: Unix seconds.
        new_id: gives the id of an instance that is to be started.
    """
    match event:
        case Deployed(deployment):
            id_ = deployment.chute_id
            world = replace(
                world,
                deployments={**world.deployments, id_: deployment},
                proven=_proven(world, deployment),
                undone=_without(world.undone, id_),
                failures=_without(world.failures, id_),
                given_up=world.given_up - {id_},
                asleep=world.asleep - {id_},
            )
        case Deleted(chute_id):
            world = replace(
                world,
                deployments=_without(world.deployments, chute_id),
                proven=_without(world.proven, chute_id),
                undone=_without(world.undone, chute_id),
                failures=_without(world.failures, chute_id),
                given_up=world.given_up - {chute_id},
                asleep=world.asleep - {chute_id},
            )
        case Slept(chute_id):
            if chute_id in world.deployments:
                world = replace(world, asleep=world.asleep | {chute_id})
        case Woken(chute_id):
            world = replace(world, asleep=world.asleep - {chute_id})
        case Report():
            world = _reported(world, event, now)
        case Closing():
            world = replace(world, closing=True)
        case Tick():
            pass
    return _converge(world, now, new_id)


def _reported(world: World, report: Report, now: float) -> World:
    before = world.instances.get(report.instance_id)
    # A report may come late: a thread's progress after the stop, say. Phases only go forward.
    if before is None or not may_follow(before.phase, report.phase):
        return world
    after = replace(
        before,
        phase=report.phase,
        changed=now if report.phase != before.phase else before.changed,
        detail=report.detail,
        done=report.done,
        total=report.total,
        endpoint=report.endpoint if report.phase == Phase.READY else None,
        reason=report.reason,
        pid=None if report.phase.over else report.pid or before.pid,
        ready_after=now - before.started if report.phase == Phase.READY else before.ready_after,
        max_model_len=report.max_model_len or before.max_model_len,
    )
    world = replace(world, instances={**world.instances, after.id: after})
    deployment = world.deployments.get(after.chute_id)
    if deployment is None or deployment.version != after.version or before.stopping:
        return world
    if after.phase == Phase.READY:
        world = replace(world, proven=_without(world.proven, after.chute_id))
    if after.phase == Phase.FAILED:
        proven = before.phase == Phase.READY and now - before.changed >= FORGIVEN_AFTER_SECONDS
        recent = () if proven else world.failures.get(after.chute_id, ())
        recent = (*recent, now)
        hopeless = len(recent) > len(BACKOFF_SECONDS) or (after.reason is not None and after.reason.fatal)
        world = replace(
            world,
            failures={**world.failures, after.chute_id: recent},
            given_up=world.given_up | {after.chute_id} if hopeless else world.given_up,
        )
        if hopeless and after.chute_id in world.proven:
            return _undo(world, deployment)
    return world


def _proven(world: World, deployment: Deployment) -> Mapping[str, Deployment]:
    """With what is replaced by this deployment, if that is worth coming back to."""
    id_ = deployment.chute_id
    before, kept = world.deployments.get(id_), world.proven.get(id_)
    ready = {i.version for i in world.of(id_) if i.ready_after is not None}
    if before is not None and before.version in ready and id_ not in world.given_up:
        kept = before
    others = _without(world.proven, id_)
    return others if kept is None or kept.version == deployment.version else {**others, id_: kept}


def _undo(world: World, failed: Deployment) -> World:
    """The version before it is the one that should run; it is not given up for what the other did."""
    id_ = failed.chute_id
    return replace(
        world,
        deployments={**world.deployments, id_: world.proven[id_]},
        proven=_without(world.proven, id_),
        undone={**world.undone, id_: failed.version},
        failures=_without(world.failures, id_),
        given_up=world.given_up - {id_},
    )


def _converge(world: World, now: float, new_id: Callable[[], str]) -> tuple[World, list[Effect]]:
    instances = dict(world.instances)
    effects: list[Effect] = []
    for instance in world.instances.values():
        deployment = world.deployments.get(instance.chute_id)
        wanted = deployment is not None and deployment.version == instance.version and not world.closing
        wanted = wanted and instance.chute_id not in world.asleep
        if not wanted and not instance.stopping and not instance.phase.over:
            instances[instance.id] = replace(instance, stopping=True)
            effects.append(Stop(instance.id))
    for id_, deployment in world.deployments.items():
        alive = any(i.chute_id == id_ and not i.phase.over for i in instances.values())
        if alive or world.closing or id_ in world.given_up | world.asleep or now < retry_at(world, id_):
            continue
        instance = Instance(new_id(), id_, deployment.version, Phase.PREPARING, started=now, changed=now)
        instances[instance.id] = instance
        effects.append(Start(instance.id, deployment))
    return replace(world, instances=_forget_old(instances)), effects


def retry_at(world: World, chute_id: str) -> float:
    """Unix seconds before which a failed chute is not started again; 0 when it may start now."""
    failures = world.failures.get(chute_id, ())
    if not failures:
        return 0.0
    return failures[-1] + BACKOFF_SECONDS[min(len(failures), len(BACKOFF_SECONDS)) - 1]


def _forget_old(instances: dict[str, Instance]) -> dict[str, Instance]:
    ended: dict[str, list[str]] = {}
    for instance in instances.values():
        if instance.phase.over:
            ended.setdefault(instance.chute_id, []).append(instance.id)
    dropped = {id_ for ids in ended.values() for id_ in ids[:-KEPT_ENDED]}
    return {id_: instance for id_, instance in instances.items() if id_ not in dropped}


def _without(mapping: Mapping[str, T], key: str) -> dict[str, T]:
    return {k: v for k, v in mapping.items() if k != key}
