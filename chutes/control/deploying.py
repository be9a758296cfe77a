"""From what a chute file declares to a deployment: facts, plan, version. Nothing is started here."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from chutes.chute.spec import ChuteSpec, EngineSpec
from chutes.config import Config
from chutes.control import own_code
from chutes.control.reconcile import Deployment
from chutes.engine import families, registry, release
from chutes.exception import ModelError
from chutes.hardware import devices, gpu_names, pipeline, plan, profiles
from chutes.hardware.terms import gib
from chutes.image.standard.diffusion import DIFFUSION
from chutes.image.standard.sglang import SGLANG
from chutes.image.standard.vllm import VLLM
from chutes.model import catalogue, known, pipelines, variants
from chutes.model import source as model
from chutes.model.facts import ModelFacts
from chutes.model.hub import HubUnreachable
from chutes.model.source import ModelSource


class Draft(BaseModel):
    """A deployment worked out and not yet made: what `deploy` prints before it asks."""

    spec: ChuteSpec
    source: ModelSource | None
    """None for a chute without a model."""
    facts: ModelFacts | None = None
    plan: plan.Plan
    version: str
    notes: list[str] = []
    """What the platform will not do although the chute asks for it."""
    capabilities: list[str] = []
    """See `wire.Route.capabilities`."""

    def deployment(self, created: float) -> Deployment:
        return Deployment(
            spec=self.spec,
            source=self.source,
            plan=self.plan,
            version=self.version,
            created=created,
            capabilities=self.capabilities,
        )


def draft(
    spec: ChuteSpec,
    config: Config,
    taken: Collection[int] = (),
    promised: int = 0,
    *,
    offline: bool = False,
) -> Draft:
    """Work out a deployment for this machine. Blocking: may ask the hub for a commit and for headers.

    Args:
        taken: GPUs of other chutes.
        promised: bytes of main memory that are free now and that other chutes were given, less those that an
            instance of this chute will give back.
        offline: where the hub is out of reach take what the catalogue knows: enough to look at, not to start.

    Raises:
        ModelError: the model cannot be found.
        InvalidSpec: the chute cannot be served here.
    """
    if spec.engine is None:
        return _of_own_code(spec, own_code.plan(spec, config, taken), config)
    machine = devices.detect()
    machine = replace(machine, memory_available=max(0, machine.memory_available - promised))
    shelf = profiles.load(profiles.find(config.home, config.profiles))
    # A slip in a GPU's name is said before anybody is asked about a model.
    gpu_names.check_ids(spec.node_selector.include or [], "include", shelf)
    gpu_names.check_ids(spec.node_selector.exclude or [], "exclude", shelf)
    if spec.engine.task == "image":
        return _pipeline(spec, spec.engine, config, machine, shelf, taken, promised)
    try:
        source = model.resolve(spec.engine.model, spec.engine.revision)
    except HubUnreachable as error:
        source = _unseen(spec.engine.model, spec.engine.revision, error, offline)
    try:
        # Without a commit the hub was not reached a moment ago: it is not asked again.
        facts = (
            None if source.kind == "hub" and not source.revision else model.read_facts(source, config.models)
        )
    except ModelError:
        facts = None  # a model without safetensors headers can still be served
    if facts is None or not facts.layers_attention:
        # What a package or a hub without headers does not tell, the catalogue may know.
        base = model.base_name(spec.engine.model)
        facts = catalogue.find(base) or (variants.find(base) or (facts, ""))[0]
    chosen = plan.plan(
        spec.engine.name,
        spec.node_selector,
        facts,
        machine,
        shelf,
        task=spec.engine.task,
        args=spec.engine.args,
        concurrency=spec.concurrency,
        taken=taken,
    )
    _say_promised(chosen, promised)
    family = _family(spec, facts)
    chosen = _with_parsers(chosen, family, spec.engine.args)
    return Draft(
        spec=spec,
        source=source,
        facts=facts,
        plan=chosen,
        version=version_of(spec, source, chosen),
        notes=_notes(spec, chosen),
        capabilities=families.capabilities(
            chosen.engine,
            family,
            [*chosen.engine_args, *spec.engine.args],
            {cord.public_api_path for cord in spec.cords if cord.public_api_path},
            vision=facts is not None and facts.vision,
        ),
    )


def _say_promised(chosen: plan.Plan, promised: int) -> None:
    """Where there is too little memory, tell what of it is kept for others."""
    if chosen.problem and chosen.accelerator == "cpu" and promised > 0:
        chosen.problem += f" {gib(promised)} more are free and kept for chutes that were deployed before."
        chosen.fix += " `chutes sleep NAME` or `chutes delete NAME` gives another chute's memory back."


def _pipeline(
    spec: ChuteSpec,
    engine: EngineSpec,
    config: Config,
    machine: devices.Machine,
    shelf: profiles.Profiles,
    taken: Collection[int],
    promised: int,
) -> Draft:
    """A draft of a chute that draws: several models in one, of which a language model's facts say nothing."""
    arguments = engine.options.get("pipeline_args") or {}
    source = pipelines.resolve(engine.model, engine.revision, str(arguments.get("variant") or ""))
    try:
        sizes = pipelines.read_facts(source, config.models)
    except HubUnreachable:
        sizes = None  # its files may be here already
    chosen = pipeline.plan(
        sizes,
        spec.node_selector,
        machine,
        shelf,
        version=release.find(engine.name, "cuda" if machine.gpus else "cpu").version,
        options=engine.options,
        taken=taken,
    )
    _say_promised(chosen, promised)
    paths = {cord.public_api_path for cord in spec.cords if cord.public_api_path}
    return Draft(
        spec=spec,
        source=source,
        plan=chosen,
        version=version_of(spec, source, chosen),
        notes=_notes(spec, chosen),
        capabilities=families.capabilities(chosen.engine, None, [], paths),
    )


def _of_own_code(spec: ChuteSpec, chosen: plan.Plan, config: Config) -> Draft:
    paths = {cord.public_api_path for cord in spec.cords if cord.public_api_path}
    return Draft(
        spec=spec,
        source=None,
        plan=chosen,
        version=version_of(spec, None, chosen),
        notes=[*_ALWAYS, *own_code.notes(spec, config)],
        capabilities=families.capabilities(chosen.engine, None, [], paths),
    )


def _family(spec: ChuteSpec, facts: ModelFacts | None) -> families.Family | None:
    assert spec.engine is not None
    if spec.engine.task != "generate":  # nothing of it talks, whatever its name says
        return None
    if facts is None:
        return families.find(spec.engine.model)
    return families.find(spec.engine.model, facts.model_type, facts.architecture)


def _with_parsers(chosen: plan.Plan, family: families.Family | None, args: list[str]) -> plan.Plan:
    """The plan with what reads the model's tool calls and thoughts, where its author left that open."""
    added = families.arguments(chosen.engine, family, args)
    if not added:
        return chosen
    known = f"of the family {family.name}" if family else "with a parser of its author's choice"
    return chosen.model_copy(
        update={
            "engine_args": [*chosen.engine_args, *added],
            "reasons": [*chosen.reasons, f"a model {known}: {' '.join(added)}"],
        }
    )


def _unseen(name: str, revision: str | None, error: ModelError, offline: bool) -> ModelSource:
    """A source that a dry run may do with: the catalogue knows the model, its files were not looked at.

    Raises:
        ModelError: it is to be started, or the catalogue does not know it either.
    """
    base = model.base_name(name)
    known_here = catalogue.find(base) is not None or variants.find(base) is not None
    if not (offline and known_here):
        fix = f"{error.fix} {known.suggest(base)}" if not known_here else error.fix
        raise ModelError(error.message, fix) from None
    return ModelSource(
        kind="hub",
        name=name,
        revision=revision,
        location=base,
        note=f"{base if base == name else model.tee_note(base)}: the hub cannot be reached, so the plan is "
        "made from the catalogue shipped with chutes; a deployment asks the hub again",
    )


async def check_arguments(worked_out: Draft, config: Config) -> None:
    """Have the engine's own parser judge the arguments, if its environment is here already.

    Otherwise the instance does so as soon as it has made the environment, before it fetches anything.

    Raises:
        InvalidSpec: in the engine's own words.
    """
    await registry.of(worked_out.plan.engine).judge(worked_out.spec, worked_out.plan, config)


# Where it was loaded from, what is said about it, and how it scales: none of it is in a running instance, so
# that changing it must not cost a restart.
_NOT_IN_AN_INSTANCE = {
    "ref",
    "code",
    "tagline",
    "readme",
    "max_instances",
    "scaling_threshold",
    "shutdown_after_seconds",
}


def version_of(spec: ChuteSpec, source: ModelSource | None, chosen: plan.Plan) -> str:
    """A UUID that changes with anything that a running instance was made from.

    The published platform counts only code and image, so that a changed node selector alone is refused
    there as "already exists"; here every field that matters counts.
    """
    made_of: dict[str, Any] = {
        "spec": spec.model_dump(mode="json", exclude=_NOT_IN_AN_INSTANCE),
        "source": source.model_dump(mode="json") if source else None,
        "plan": chosen.model_dump(mode="json", include={"accelerator", "engine", "engine_version"}),
    }
    if chosen.accelerator == "cuda":  # on a CPU they follow the memory that is free just now
        made_of["engine_args"] = chosen.engine_args
    return str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(made_of, sort_keys=True)))


_ALWAYS = ["one instance is started now and kept; max_instances and its like are stored, not acted on yet"]


def _notes(spec: ChuteSpec, chosen: plan.Plan) -> list[str]:
    notes = list(_ALWAYS)
    args = spec.engine.args if spec.engine else []
    if chosen.accelerator == "cpu" and any("bfloat16" in arg for arg in args):
        notes.append("engine_args ask for bfloat16, in which this engine gives wrong text on a CPU")
    if spec.image not in ("", VLLM, SGLANG, DIFFUSION):
        notes.append(f"image {spec.image!r} is not used: the engine runs in an environment of its own")
    own = [cord.function for cord in spec.cords if not cord.passthrough]
    own += [job.name for job in spec.jobs] + spec.hooks
    if own:
        notes.append(f"code of the author's own beside an engine is not run yet: {', '.join(own)}")
    return notes
