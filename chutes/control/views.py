"""What the control API shows: documents for people and scripts, without secrets."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel

from chutes.chute.spec import ChuteSpec
from chutes.control.deploying import Draft
from chutes.control.keys import ApiKey, Limits
from chutes.control.listing import FREE, Listing
from chutes.control.reconcile import Deployment, Instance, World, retry_at
from chutes.control.routes import BETWEEN_TRIES, current
from chutes.engine.lifecycle import Phase
from chutes.hardware.plan import Plan
from chutes.wire import Price


class InstanceView(BaseModel):
    instance_id: str
    phase: Phase
    detail: str = ""
    done: int = 0
    total: int = 0
    version: str
    started_at: float
    changed_at: float
    ready_after_seconds: float | None = None
    port: int | None = None
    pid: int | None = None
    reason: str = ""
    fix: str = ""
    log_tail: list[str] = []
    stopping: bool = False

    @classmethod
    def of(cls, instance: Instance) -> InstanceView:
        reason = instance.reason
        return cls(
            instance_id=instance.id,
            phase=instance.phase,
            detail=instance.detail,
            done=instance.done,
            total=instance.total,
            version=instance.version,
            started_at=instance.started,
            changed_at=instance.changed,
            ready_after_seconds=instance.ready_after,
            port=instance.endpoint.port if instance.endpoint else None,
            pid=instance.pid,
            reason=reason.summary if reason else "",
            fix=reason.fix if reason else "",
            log_tail=list(reason.lines) if reason else [],
            stopping=instance.stopping,
        )


class PriceView(BaseModel):
    """US dollars per million tokens."""

    chute_id: str
    name: str
    prompt: float
    completion: float
    cached: float

    @classmethod
    def of(cls, deployment: Deployment, price: Price) -> PriceView:
        return cls(
            chute_id=deployment.chute_id,
            name=deployment.spec.name,
            prompt=price.prompt,
            completion=price.completion,
            cached=price.cached,
        )


KINDS = {"generate": "text", "embed": "embedding", "image": "image"}
"""A chute's kind by its engine's task; one without an engine is its author's `own`."""


class ChuteView(BaseModel):
    chute_id: str
    name: str
    kind: str = ""
    """`text`, `embedding`, `image` or `own`."""
    phase: str
    """Phase of the instance that speaks for it; `waiting` between a failure and the next try."""
    version: str
    model: str
    revision: str | None
    weights: str
    engine: str
    accelerator: str
    created_at: float
    retry_in_seconds: float | None = None
    given_up: bool = False
    undone: str = ""
    """The version that was deployed last, if it failed: this one was before it, and runs again."""
    instance: InstanceView | None = None
    instances: list[InstanceView] = []
    scaling: dict[str, Any] = {}
    public_paths: list[str] = []
    capabilities: list[str] = []
    """See `wire.Route.capabilities`."""
    slug: str = ""
    aliases: list[str] = []
    price: PriceView | None = None
    """None: requests cost nothing."""

    @classmethod
    def of(cls, deployment: Deployment, world: World, listing: Listing) -> ChuteView:
        spec = deployment.spec
        instances = world.of(spec.uid)
        newest = current(deployment, instances)
        given_up = spec.uid in world.given_up
        phase = str(newest.phase) if newest else str(Phase.PREPARING)
        wait = None
        if spec.uid in world.asleep:
            phase = "asleep" if newest is None or newest.phase.over else "falling asleep"
        elif newest and newest.phase == Phase.FAILED and not given_up:
            phase, wait = BETWEEN_TRIES, max(0.0, retry_at(world, spec.uid) - time.time())
        return cls(
            chute_id=spec.uid,
            name=spec.name,
            kind=KINDS[spec.engine.task] if spec.engine else "own",
            phase=phase,
            version=deployment.version,
            model=spec.engine.model if spec.engine else "",
            revision=deployment.source.revision if deployment.source else None,
            weights=deployment.source.note if deployment.source else "",
            engine=f"{deployment.plan.engine} {deployment.plan.engine_version}",
            accelerator=deployment.plan.accelerator,
            created_at=deployment.created,
            retry_in_seconds=wait,
            given_up=given_up,
            undone=world.undone.get(spec.uid, ""),
            instance=InstanceView.of(newest) if newest else None,
            instances=[InstanceView.of(instance) for instance in instances],
            scaling={
                "concurrency": spec.concurrency,
                "max_instances": spec.max_instances,
                "scaling_threshold": spec.scaling_threshold,
                "shutdown_after_seconds": spec.shutdown_after_seconds,
            },
            public_paths=sorted({cord.public_api_path for cord in spec.cords if cord.public_api_path}),
            capabilities=deployment.capabilities,
            slug=listing.slug,
            aliases=listing.aliases,
            price=PriceView.of(deployment, listing.price) if listing.price != FREE else None,
        )


class DeployRequest(BaseModel):
    spec: ChuteSpec


class DeployView(BaseModel):
    """Answer to a deploy: the plan, and the chute as it now stands (None after a dry run)."""

    draft: Draft
    chute: ChuteView | None = None
    unchanged: bool = False
    """The same version was running already."""


class PlanView(BaseModel):
    """How a deployed version was fitted to its devices, and what its engine was told."""

    plan: Plan
    engine_args: list[str]

    @classmethod
    def of(cls, deployment: Deployment) -> PlanView:
        engine = deployment.spec.engine
        return cls(
            plan=deployment.plan,
            engine_args=[*deployment.plan.engine_args, *(engine.args if engine else [])],
        )


class PriceRequest(BaseModel):
    """US dollars per million tokens."""

    prompt: float
    completion: float
    cached: float | None = None
    """Of prompt tokens that the engine had in its cache; None: as other prompt tokens."""


class AliasRequest(BaseModel):
    alias: str
    chute_ids: list[str]
    """Names or ids."""


class AliasView(BaseModel):
    alias: str
    chute_ids: list[str]
    chute_names: list[str]
    """Empty while the chute is not deployed."""


class KeyRequest(Limits):
    name: str
    admin: bool = False
    chutes: list[str] | None = None
    """Names or ids of the only chutes it may call."""


class KeyView(Limits):
    api_key_id: str
    name: str
    admin: bool
    chute_ids: list[str] | None
    created_at: float
    last_used_at: float | None = None
    """Unix seconds."""
    secret_key: str | None = None
    """The key itself: in the answer to its creation, and never again."""

    @classmethod
    def of(cls, key: ApiKey, last_used_at: float | None = None, secret_key: str | None = None) -> KeyView:
        return cls(**key.model_dump(), last_used_at=last_used_at, secret_key=secret_key)
