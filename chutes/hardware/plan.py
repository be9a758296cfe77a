"""Which devices of this machine one instance of a chute is given, and why. Pure.

What the author fixed (fields of the NodeSelector that were set, engine arguments) is kept and checked; the
planner decides the rest. The reasons are kept beside the result: a choice that cannot say why is a guess.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from pydantic import BaseModel

from chutes.chute.node_selector import NodeSelector
from chutes.exception import ChutesError
from chutes.hardware import cpu, engine_args, gpu_names, planner, selected
from chutes.hardware.choice import Choice, Request, layout_of, setting_of
from chutes.hardware.cpu import ENGINE_BYTES, TOTAL_TOKENS
from chutes.hardware.devices import Gpu, Machine
from chutes.hardware.engine_args import FLAGS, Fixed
from chutes.hardware.memory import weights_per_gpu
from chutes.hardware.offers import COUNTS, Offer, of_machine
from chutes.hardware.profiles import Profiles
from chutes.hardware.ranking import rank
from chutes.hardware.terms import gib
from chutes.hardware.ways import Ways
from chutes.hardware.weights import Layout
from chutes.model.facts import ModelFacts

GIB = 1 << 30

# vLLM's own default share of a GPU before 0.21, the smaller one: used only where nothing finer is known.
GPU_SHARE = 0.90


class Plan(BaseModel):
    """What one instance gets. Byte counts are totals over its devices."""

    accelerator: str
    """`cuda` or `cpu`."""
    engine: str
    engine_version: str
    gpus: list[int] = []
    """Indices of the GPUs on this machine."""
    tensor_parallel_size: int = 1
    weights_bytes: int | None = None
    """As loaded, in the dtype used; None when the model's facts are not known."""
    kv_cache_bytes: int | None = None
    """Set for the CPU engine only; on a GPU the engine measures what is left."""
    engine_args: list[str] = []
    """What the planner adds to the author's arguments: only flags that the author left open."""
    choice: Choice | None = None
    """The arithmetic behind it; None where the model's facts do not allow any."""
    tier: str = ""
    reasons: list[str] = []
    problem: str = ""
    """Why it cannot run on this machine, and by how much; empty when it can."""
    fix: str = ""

    @property
    def fits(self) -> bool:
        return not self.problem

    @property
    def main_memory_bytes(self) -> int:
        """Of this machine's main memory that an instance takes when all of it is loaded; 0 on GPUs."""
        if self.accelerator != "cpu":
            return 0
        if self.choice is not None:
            return self.choice.per_gpu_bytes.usable
        return (self.weights_bytes or 0) + ENGINE_BYTES + (self.kv_cache_bytes or 0)


def plan(
    engine: str,
    selector: NodeSelector,
    facts: ModelFacts | None,
    machine: Machine,
    profiles: Profiles,
    *,
    task: str = "generate",
    args: Sequence[str] = (),
    concurrency: int | None = None,
    taken: Collection[int] = (),
) -> Plan:
    """Choose devices of `machine` for one instance; `problem` is set when they will not do.

    Args:
        task: as `EngineSpec.task`.
        args: the author's engine arguments: what they fix is kept.
        concurrency: requests that reach one instance at once; the engine needs no room for more.
        taken: GPUs that other chutes were given, which may not have filled them yet; used only if the
            others will not do.

    Raises:
        InvalidSpec: the selector names GPU types that do not exist, or an argument is no number.
    """
    free = tuple(gpu for gpu in machine.gpus if gpu.index not in taken)
    if taken and free:
        alone = plan(
            engine,
            selector,
            facts,
            replace(machine, gpus=free),
            profiles,
            task=task,
            args=args,
            concurrency=concurrency,
        )
        if alone.fits:
            return alone
    gpu_names.check_ids(selector.include or [], "include", profiles)
    gpu_names.check_ids(selector.exclude or [], "exclude", profiles)
    fixed = engine_args.parse(engine, args)
    reasons: list[str] = []
    tier = ""
    if facts is not None and facts.parameters:
        size = profiles.tier(facts.parameters)
        tier = size.name
        reasons.append(
            f"{facts.parameters / 1e9:.2f} B parameters: tier {size.name} "
            f"({size.gpu_count} × {size.min_vram_gb_per_gpu} GB as a starting point)"
        )
    else:
        reasons.append("the model's size is not known here, so nothing was checked against it")
    # One request for vectors holds many texts, each of them a sequence: the engine's own number is better.
    request = _request(engine, fixed, concurrency if task != "embed" else None)
    if machine.gpus:
        chosen = _on_gpus(request, selector, facts, machine, profiles, args, reasons)
    else:
        chosen = _on_cpu(request, selector, facts, machine, profiles, fixed, reasons)
        _elsewhere(chosen, request, selector, facts, profiles, reasons)
    if task == "embed":
        context, kind = (facts.max_model_len, facts.attention) if facts else (None, "")
        chosen.engine_args = engine_args.for_vectors(chosen.engine_args, context, encoder=kind == "encoder")
    if fixed.uncounted:
        reasons.append(f"not in this arithmetic: {', '.join(fixed.uncounted)}")
    return chosen.model_copy(update={"tier": tier, "reasons": reasons})


def _request(engine: str, fixed: Fixed, concurrency: int | None) -> Request:
    return Request(
        engine=engine,
        max_model_len=fixed.max_model_len,
        max_num_seqs=fixed.max_num_seqs or concurrency,
        max_num_batched_tokens=fixed.max_num_batched_tokens,
        kv_cache_dtype="fp8" if fixed.kv_cache_dtype == "fp8" else "auto",
        gpu_memory_utilization=fixed.gpu_memory_utilization,
        block_size=fixed.block_size,
        enforce_eager=bool(fixed.enforce_eager),
        tensor_parallel=fixed.tensor_parallel,
        pipeline_parallel=fixed.pipeline_parallel,
        expert_parallel=fixed.expert_parallel,
        shorten=True,
    )


def _on_cpu(
    request: Request,
    selector: NodeSelector,
    facts: ModelFacts | None,
    machine: Machine,
    profiles: Profiles,
    fixed: Fixed,
    reasons: list[str],
) -> Plan:
    defaults = profiles.engines[request.engine]["cpu"]
    why = f" ({machine.gpu_problem})" if machine.gpu_problem else ""
    asked = f", and the chute asks for {selector.gpu_count}" if selector.gpu_count > 1 else ""
    reasons.append(f"no GPU here{why}{asked}: {request.engine} runs on {machine.cpus} CPU cores in float32")
    weights = cpu.weights_in_memory(facts) if facts is not None else None
    chosen = Plan(
        accelerator="cpu", engine=request.engine, engine_version=defaults.version, weights_bytes=weights
    )
    small = profiles.tiers[0]
    asks_for_more = (
        selector.gpu_count > small.gpu_count or selector.min_vram_gb_per_gpu > small.min_vram_gb_per_gpu
    )
    if weights is None and asks_for_more:
        # Hundreds of gigabytes would be fetched only to find that out.
        chosen.problem = (
            f"The chute asks for {selector.gpu_count} × {selector.min_vram_gb_per_gpu} GB of GPU memory, "
            "there is no GPU here, and the model's size could not be read to see if main memory would do."
        )
        chosen.fix = "Deploy it on a machine with GPUs."
        return chosen
    room = machine.memory_available - ENGINE_BYTES - (weights or 0)
    if room <= 0:
        chosen.problem = f"{cpu.too_little(weights or 0, machine.memory_available, -room)}."
        chosen.fix = "Take a smaller model, free memory, or deploy on a machine with a GPU."
        return chosen
    encoder = facts is not None and facts.attention == "encoder"
    chosen.kv_cache_bytes = 0 if encoder else cpu.kv_space(room, defaults)
    choice = None
    counted = facts is not None and not facts.problem and weights is not None
    if facts is not None and counted and (facts.layers_attention or encoder):
        choice = chosen.choice = cpu.choose(facts, request, machine, profiles)
        if choice.fits:
            chosen.kv_cache_bytes = choice.per_gpu_bytes.kv_cache_expected
    if weights is not None:
        cache = f"{gib(chosen.kv_cache_bytes)} for the KV cache"
        if choice is not None and encoder:
            cache = f"{gib(choice.per_gpu_bytes.peak_activation)} for activations, no KV cache"
        reasons.append(
            f"weights {gib(weights)} + engine {gib(ENGINE_BYTES)} of {gib(machine.memory_available)} "
            f"free memory; {cache}"
        )
    if choice is None or facts is None:
        if request.engine == "sglang" and fixed.gpu_memory_utilization is None:
            # Without a word it takes most of what is free.
            share = min(0.9, ((weights or 0) + chosen.kv_cache_bytes) / machine.memory_available)
            chosen.engine_args = [FLAGS["sglang"]["gpu_memory_utilization"], f"{share:.3f}"]
        return chosen
    flags = FLAGS[request.engine]
    if not choice.fits:
        chosen.problem = f"{choice.reason}."
        longest = choice.estimated_max_model_len
        shorter = (
            f"Set {flags['max_model_len']} {longest} in engine_args" if longest else "Take a smaller model"
        )
        chosen.fix = f"{shorter}, or free memory."
        return chosen
    if facts.layers_attention:
        reasons.append(
            f"{choice.kv_cache_tokens:,} tokens of cache: {choice.max_concurrency:.1f} requests of "
            f"{choice.max_model_len:,} at once"
        )
    own = facts.max_model_len
    if fixed.max_model_len is None and own is not None and choice.max_model_len < own:
        chosen.engine_args = [flags["max_model_len"], str(choice.max_model_len)]
        reasons.append(f"the context is cut from {own:,} to {choice.max_model_len:,} tokens, which fit")
    # What was counted is what the engine is told.
    if fixed.max_num_seqs is None:
        chosen.engine_args += [flags["max_num_seqs"], str(choice.max_num_seqs)]
    if fixed.max_num_batched_tokens is None:
        chosen.engine_args += [flags["max_num_batched_tokens"], str(choice.max_num_batched_tokens)]
    if request.engine == "sglang" and TOTAL_TOKENS not in fixed.uncounted:
        chosen.engine_args += [TOTAL_TOKENS, str(choice.kv_cache_tokens)]
    return chosen


def _elsewhere(
    chosen: Plan,
    request: Request,
    selector: NodeSelector,
    facts: ModelFacts | None,
    profiles: Profiles,
    reasons: list[str],
) -> None:
    """Where there is no GPU the selector is held against the catalogue: it is for a machine that has some."""
    if facts is None or facts.problem or not facts.layers_attention:
        return
    found = selected.judge(selector, facts, request, profiles)
    if found.shortage:
        reasons.append(f"on a machine with GPUs: {found.shortage}")
    if chosen.problem:
        chosen.fix = " ".join(part for part in (chosen.fix, found.would_do) if part)
    elif found.shortage:
        reasons.append(found.would_do)


def _on_gpus(
    request: Request,
    selector: NodeSelector,
    facts: ModelFacts | None,
    machine: Machine,
    profiles: Profiles,
    args: Sequence[str],
    reasons: list[str],
) -> Plan:
    suitable: list[Gpu] = []
    refused: list[str] = []
    for gpu in machine.gpus:
        problem = selected.refusal(gpu, selector, profiles)
        if problem:
            refused.append(f"GPU {gpu.index} ({gpu.name}): {problem}")
        else:
            suitable.append(gpu)
    result = Plan(
        accelerator="cuda",
        engine=request.engine,
        engine_version=profiles.engines[request.engine]["cuda"].version,
        tensor_parallel_size=selector.gpu_count,
        weights_bytes=(facts.loaded_bytes or facts.weights_bytes) if facts is not None else None,
    )
    # The author's number of GPUs, set in the selector or implied by the arguments; else the planner's.
    asked = selector.gpu_count if "gpu_count" in selector.model_fields_set else None
    implied = (request.tensor_parallel or 1) * (request.pipeline_parallel or 1)
    if asked is None and implied > 1:
        asked = implied
    if len(suitable) < (asked or 1):
        count = asked or 1
        result.problem = (
            f"The chute asks for {count} GPU{'s' if count > 1 else ''} and {len(suitable)} here will do. "
            + " ".join(f"{line}." for line in refused)
        )
        result.fix = (
            "Lower gpu_count or min_vram_gb_per_gpu in its NodeSelector, or deploy on another machine."
        )
        return result
    offers = _offers(suitable, machine, profiles, asked)
    sized = facts is not None and (facts.loaded_bytes or facts.weights_bytes)
    if not offers or facts is None or facts.problem or not facts.layers or not sized:
        return _by_weights(result, suitable, asked or 1, facts, reasons)
    choices, rejected = planner.choose(Ways(facts, request, profiles), offers)
    if request.max_model_len is None and not any(choice.fits_safely for choice in choices):
        length, cut = planner.best_shorter(facts, request, profiles, offers)
        if cut and (not choices or any(choice.fits_safely for choice in cut)):
            choices = cut
            reasons.append(
                f"the model's own {facts.max_model_len or 0:,} tokens do not fit here: the context is cut "
                f"to {length:,}; --max-model-len in engine_args asks for another"
            )
    if not choices:
        # The count asked for, or the most there is: its shortage is the one to report.
        result.problem = f"{rejected[-1].gpu_count} × {rejected[-1].gpu}: {rejected[-1].reason}."
        result.fix = _what_would_fit(facts, request, machine, profiles, asked)
        result.gpus = list(offers[-1].indices)
        return result
    # Fewest first: on one's own machine every GPU left over serves another model.
    choice = min(rank(choices, request), key=lambda one: (not one.fits_safely, one.gpu_count))
    result.choice = choice
    result.gpus = choice.gpus
    result.tensor_parallel_size = choice.tensor_parallel_size
    result.engine_args = engine_args.added(request.engine, layout_of(choice), setting_of(choice), args)
    reasons.append(
        f"{choice.gpu_count} × {choice.gpu_name} (GPU {', '.join(map(str, choice.gpus))}), "
        f"tensor parallel size {choice.tensor_parallel_size}"
        + (f", pipeline {choice.pipeline_parallel_size}" if choice.pipeline_parallel_size > 1 else "")
        + (", experts spread" if choice.expert_parallel else "")
    )
    reasons += [choice.reason, *choice.notes]
    # Total, not free, was planned with: what is taken now may be the instance that this one replaces.
    for gpu in suitable:
        if gpu.index in choice.gpus and gpu.memory_free < choice.per_gpu_bytes.usable:
            reasons.append(
                f"GPU {gpu.index} has {gib(gpu.memory_free)} free now and {gib(choice.per_gpu_bytes.usable)} "
                "are wanted: it starts when the rest is given back"
            )
    return result


def _offers(suitable: list[Gpu], machine: Machine, profiles: Profiles, asked: int | None) -> list[Offer]:
    """What of `suitable` one instance may take; GPUs of one kind only, as one layout spans them."""
    some = replace(machine, gpus=tuple(suitable))
    offers = of_machine(some, profiles, COUNTS if asked is None else (asked,))
    return [replace(offer, free=None) for offer in offers]


def _by_weights(
    result: Plan, suitable: list[Gpu], count: int, facts: ModelFacts | None, reasons: list[str]
) -> Plan:
    """The little that can be said without the model's layers, or of GPUs of several kinds."""
    # The emptiest first, so that a second chute does not land on the first one's GPU.
    chosen = sorted(suitable, key=lambda gpu: (-gpu.memory_free, gpu.index))[:count]
    result.gpus = sorted(gpu.index for gpu in chosen)
    result.tensor_parallel_size = count
    smallest = min(gpu.memory_total for gpu in chosen)
    if facts is not None and (facts.loaded_bytes or facts.weights_bytes):
        each = weights_per_gpu(facts, Layout(tensor_parallel=count))
        if each > smallest * GPU_SHARE:
            result.problem = (
                f"Weights of {gib(result.weights_bytes or 0)} over {count} GPU{'s' if count > 1 else ''} are "
                f"{gib(each)} each; the smallest has {gib(smallest)}, "
                f"of which {GPU_SHARE:.0%} may be used: {gib(each - smallest * GPU_SHARE)} too little."
            )
            result.fix = "Raise gpu_count, or take a smaller or quantised model."
        if facts.problem:
            reasons.append(f"the KV cache was not planned: {facts.problem}")
    reasons.append(
        f"{count} × {chosen[0].name} (GPU {', '.join(map(str, result.gpus))}), tensor parallel size {count}"
    )
    return result


def _what_would_fit(
    facts: ModelFacts, request: Request, machine: Machine, profiles: Profiles, asked: int | None
) -> str:
    """Here with more GPUs, or elsewhere."""
    open_ = request.model_copy(
        update={"tensor_parallel": None, "pipeline_parallel": None, "expert_parallel": None}
    )
    if asked is not None:
        here = _offers(list(machine.gpus), machine, profiles, None)
        choices, _ = planner.choose(Ways(facts, open_, profiles), here)
        more = [one for one in rank(choices, open_) if one.gpu_count > asked]
        if more:
            return f"{more[0].label} of this machine would do: set gpu_count={more[0].gpu_count}."
    try:
        elsewhere = planner.plan_catalogue("", facts, open_, profiles).choice
    except ChutesError:
        elsewhere = None
    if elsewhere is None or not elsewhere.fits:
        return "Take a smaller or quantised model, or a shorter --max-model-len."
    price = f" (${elsewhere.price_per_hour:.2f}/h)" if elsewhere.price_per_hour else ""
    return (
        f"{elsewhere.label}{price} would do at {elsewhere.max_model_len:,} tokens; "
        "`chutes plan` shows more, and what a shorter --max-model-len saves."
    )
