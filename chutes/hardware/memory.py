"""What a model needs of each GPU, term by term. Pure: no process, no file, no device is looked at.

All sizes are bytes of ONE GPU: the one that decides. The budget is that of vLLM v1/worker/gpu_worker.py
`determine_available_memory`:

    KV cache = ceil(total x utilization) - weights - non-torch - peak of activations - CUDA graphs

[fit]: a constant fitted to published measurements of vLLM 0.11 on an H100 (benchmarks/memory_calibration.py
prints them beside what is computed here), [src]: read in vLLM's source, [log]: read in published logs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

from chutes.exception import ModelError
from chutes.hardware import kv_cache, sglang
from chutes.hardware.constraints import Violations, violations
from chutes.hardware.kv_cache import Demand, Format, Pool, gpu_format
from chutes.hardware.terms import GIB, MODEL_BYTES, RESERVE, Estimate, KvDtype, Setting, why
from chutes.hardware.versions import EngineBehaviour
from chutes.hardware.weights import SINGLE, Layout, loaded_bytes, stage_weights, stages_of, weights_per_gpu
from chutes.model.facts import ModelFacts

__all__ = [
    "GIB",
    "RESERVE",
    "Estimate",
    "KvDtype",
    "Layout",
    "Setting",
    "Violations",
    "cpu_kv_tokens",
    "estimate",
    "kv_bytes_per_token",
    "loaded_bytes",
    "violations",
    "weights_per_gpu",
]

# CUDA context, NCCL and library workspaces by how many GPUs talk to each other [fit]; more than 2: as 4.
NON_TORCH = {1: 0.13, 2: 0.55}
NON_TORCH_MANY = 2.0


def estimate(
    facts: ModelFacts,
    layout: Layout,
    setting: Setting,
    gpu_total_bytes: int,
    behaviour: EngineBehaviour,
    *,
    gpu_name: str = "",
    capability: tuple[int, int] = (0, 0),
    longest: bool = True,
) -> Estimate:
    """Where each GPU's memory goes.

    Args:
        gpu_total_bytes: as CUDA reports it (not the label, not nvidia-smi).
        gpu_name: the product name: releases choose their default batch by it.
        capability: compute capability, by which kernels and the cache's format are chosen; (0, 0): not known.
        longest: whether the longest contexts are looked for, which takes most of the time; 0 where not.

    Raises:
        ModelError: the facts do not say enough; the message is `facts.problem` or names what is missing.
    """
    if facts.problem:
        raise ModelError(f"{facts.architecture or 'The model'}: {facts.problem}.", "Plan another model.")
    if not facts.layers_attention and facts.attention not in ("encoder", "none"):
        raise ModelError(
            "The model's facts do not say what its layers keep of a request.", "Give its config.json."
        )
    if behaviour.engine == "sglang":
        return sglang.estimate(facts, layout, setting, gpu_total_bytes, non_torch(layout))
    behaviour = behaviour.running(facts)
    batch, sequences = behaviour.batch(facts, setting, gpu_total_bytes, gpu_name)
    utilization = setting.gpu_memory_utilization
    if utilization is None:
        utilization = behaviour.default_utilization or 1.0
    form = format_of(facts, layout, setting, behaviour, capability)
    chunked = any(layer.kind == "chunked" for layer in facts.layers_attention)
    hybrid = behaviour.hybrid_with_chunks or not chunked
    demand = Demand(
        setting.max_model_len,
        behaviour.in_flight_tokens(batch, layout.pipeline_parallel),
        behaviour.hybrid_prefix_caching,
        behaviour.prefill_checkpoints,
    )
    usable = ceil(gpu_total_bytes * utilization)
    graphs = 0 if setting.enforce_eager else behaviour.cuda_graph_bytes
    other = non_torch(layout)
    cut = stages_of(facts, layout.pipeline_parallel)
    ranks: list[_Rank] = []
    for stage in range(layout.pipeline_parallel):
        weights = stage_weights(facts, layout, stage)
        last = stage == layout.pipeline_parallel - 1
        peak = peak_activation(facts, layout, sequences, batch, behaviour, samples=last)
        left = usable - weights - peak - other - (graphs if behaviour.cuda_graphs_subtracted else 0)
        pool = _pool(facts.layers_attention, form, cut[stage], hybrid=hybrid)
        held_back = pool.block_bytes if behaviour.null_block else 0
        ranks.append(_Rank(weights, peak, left, pool, held_back, pool.bytes_needed(demand) + held_back))
    # The stage with the least to spare is the one to tell of. That it is the same whatever the GPU's size
    # keeps every term monotonic in it.
    worst = min(ranks, key=lambda rank: rank.left - rank.needed)
    weights, peak, left, needed = worst.weights, worst.peak, worst.left, worst.needed
    safe = left - RESERVE
    spare = gpu_total_bytes - usable
    # Subtracted, more of them comes out of the reserve; else out of what the budget leaves over.
    most = 0 if setting.enforce_eager or behaviour.cuda_graphs_subtracted else behaviour.cuda_graph_most
    fits_expected = left >= needed and left >= 0
    least, least_safe = _least(ranks, 0), _least(ranks, RESERVE)
    limit = max(setting.max_model_len, facts.max_model_len or 0) if longest else 0
    most_tokens = _shortest_of(ranks, 0, demand, limit)
    return Estimate(
        total=gpu_total_bytes,
        usable=usable,
        weights=weights,
        kv_cache_expected=left,
        kv_cache_safe=safe,
        peak_activation=peak,
        non_torch=other,
        cuda_graph=graphs,
        cuda_graph_subtracted=behaviour.cuda_graphs_subtracted,
        kv_cache_needed=needed,
        kv_cache_tokens=least.tokens(demand, behaviour.token_count),
        max_concurrency=least.concurrency(demand, sequences),
        kv_cache_tokens_safe=least_safe.tokens(demand, behaviour.token_count),
        max_concurrency_safe=least_safe.concurrency(demand, sequences),
        estimated_max_model_len=most_tokens,
        estimated_max_model_len_safe=_shortest_of(ranks, RESERVE, demand, most_tokens),
        fits=safe >= needed and safe >= 0 and most <= spare,
        fits_expected=fits_expected,
        reason=why(usable, weights, left, needed, setting.max_model_len, most if most > spare else 0),
        max_num_seqs=sequences,
        max_num_batched_tokens=batch,
        gpu_memory_utilization=utilization,
        block_size=worst.pool.block_size,
    )


# A planner asks for hundreds of GPU sizes, on which the layers lie alike.
_pool = lru_cache(maxsize=512)(kv_cache.pool)


def non_torch(layout: Layout) -> int:
    """Bytes that are not PyTorch's: context, NCCL, libraries [fit: TP1, TP2; log: TP4 and TP8]."""
    return int(NON_TORCH.get(layout.gpus, NON_TORCH_MANY) * GIB)


def peak_activation(
    facts: ModelFacts,
    layout: Layout,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    behaviour: EngineBehaviour,
    *,
    samples: bool = True,
) -> int:
    """The highest transient of the profiling run, in bytes.

    Either the sampler's dummy run over (sequences x vocabulary), which tensor parallelism does not divide
    because logits are gathered, or the widest layer's activations over one batch of tokens, whichever is
    more; and the hidden states that are alive meanwhile. The form is a reading of
    v1/worker/gpu_model_runner.py `profile_run` [src], its constant is the release's. Of vision and audio
    parts nothing is known: their encoders' own peak comes on top.

    Args:
        samples: whether this pipeline stage has the head.
    """
    hidden, tokens = facts.hidden_size or 0, max_num_batched_tokens
    sampler = behaviour.sampler_bytes * min(max_num_seqs, tokens) * (facts.vocab_size or 0) if samples else 0
    layer = tokens * (_feed_forward(facts, layout) + 3 * hidden) * MODEL_BYTES
    return int(max(sampler, layer) + tokens * hidden * MODEL_BYTES)


def _feed_forward(facts: ModelFacts, layout: Layout) -> float:
    """Elements a token that are alive at once inside a feed-forward layer of one GPU.

    Dense: gate, up and their product. Experts: two buffers for every expert that a token goes to, each wide
    enough for what is kept in turn; fused_moe/experts/triton_moe.py `workspace_shapes` [src 0.32.0]. Kernels
    for other formats need as much or less. Experts that are spread over the GPUs are not cut.
    """
    experts = facts.experts
    if experts is None:
        return 3 * (facts.intermediate_size or 0) / layout.tensor_parallel
    hidden = facts.hidden_size or 0
    width = experts.intermediate / (1 if layout.expert_parallel else layout.tensor_parallel)
    return experts.per_token * (max(width, hidden) + max(2 * width, hidden))


def cpu_kv_tokens(
    facts: ModelFacts,
    kv_space_bytes: int,
    block_size: int,
    max_model_len: int,
    max_num_batched_tokens: int,
    dtype: str,
    behaviour: EngineBehaviour,
    *,
    kv_cache_dtype: KvDtype = "auto",
    state_bytes: int = 0,
) -> int:
    """What the CPU engine prints as "CPU KV cache size: N tokens".

    Args:
        block_size: 128 unless asked otherwise; with MLA on a CPU without AMX it is 16 whatever is asked
            (platforms/cpu.py [src]).
        dtype: the model's: `float32`, `bfloat16` or `float16`.
        state_bytes: of recurrent states; 4 on CPUs with AVX512-BF16, which keep them in float32.
    """
    model = 4 if dtype == "float32" else 2
    form = Format(
        element_bytes=1 if kv_cache_dtype == "fp8" else model,
        model_bytes=model,
        block_size=block_size,
        kernel_block=32,  # v1/attention/backends/cpu_attn.py [src]
        state_bytes=state_bytes,
    )
    # One batch at a time: asynchronous scheduling is off there (platforms/cpu.py [src]).
    demand = Demand(
        max_model_len, max_num_batched_tokens, behaviour.hybrid_prefix_caching, behaviour.prefill_checkpoints
    )
    return kv_cache.pool(facts.layers_attention, form).tokens(kv_space_bytes, demand, behaviour.token_count)


def format_of(
    facts: ModelFacts,
    layout: Layout,
    setting: Setting,
    behaviour: EngineBehaviour,
    capability: tuple[int, int] = (0, 0),
) -> Format:
    """How a release keeps the cache on a GPU of one compute capability."""
    cache = behaviour.cache_dtype(facts, setting.kv_cache_dtype, capability)
    form = gpu_format(facts, layout, setting.model_copy(update={"kv_cache_dtype": cache}))
    return replace(form, packed_latent=behaviour.packs_latent(cache, capability))


def kv_bytes_per_token(
    facts: ModelFacts,
    layout: Layout = SINGLE,
    kv_dtype: KvDtype = "auto",
    *,
    behaviour: EngineBehaviour | None = None,
    capability: tuple[int, int] = (0, 0),
) -> int:
    """Bytes on one GPU that each further token of a long request costs (the growing part only).

    Of a pipeline, on the stage with the most such layers. Without a release as most GPUs keep it.
    """
    setting = Setting(max_model_len=1, kv_cache_dtype=kv_dtype)
    form = gpu_format(facts, layout, setting)
    if behaviour is not None:
        form = format_of(facts, layout, setting, behaviour, capability)
    growing = [layer for layer in facts.layers_attention if layer.kind in ("full", "mla")]
    return max(
        sum(kv_cache.token_bytes(layer, form) for layer in growing if layer.place in stage)
        for stage in stages_of(facts, layout.pipeline_parallel)
    )


@dataclass(frozen=True)
class _Rank:
    """One GPU of one pipeline stage."""

    weights: int
    peak: int
    left: int
    """For the KV cache."""
    pool: Pool
    held_back: int
    """The block that the pool never hands out, where the release counts it."""
    needed: int

    def tokens(self, demand: Demand, count: str) -> int:
        return self.pool.tokens(self.left, demand, count)

    def concurrency(self, demand: Demand, sequences: int) -> float:
        if not self.pool.groups:  # nothing is kept of a request: only the batch bounds them
            return float(sequences) if self.left >= 0 else 0.0
        return self.pool.concurrency(self.left, demand)


def _least(ranks: Sequence[_Rank], reserve: int) -> _Rank:
    """The rank with the fewest blocks: all have as many as it (kv_cache_utils.py `get_kv_cache_configs`)."""
    holding = [rank for rank in ranks if rank.pool.block_bytes] or ranks
    found = min(holding, key=lambda rank: (rank.pool.blocks(rank.left - reserve), rank.left))
    return replace(found, left=found.left - reserve)


def _shortest_of(ranks: list[_Rank], reserve: int, demand: Demand, limit: int) -> int:
    """The longest context that every rank has room for; each search ends where the last one did."""
    for rank in ranks:
        limit = _longest(rank, rank.left - reserve, demand, limit) if limit else 0
    return limit


def _longest(rank: _Rank, available: int, demand: Demand, limit: int) -> int:
    """The longest context of which one request fits; kv_cache_utils.py `estimate_max_model_len`."""

    def needed(length: int) -> int:
        return rank.pool.bytes_needed(replace(demand, max_model_len=length))

    return bisect_right(range(1, limit + 1), available - rank.held_back, key=needed)
