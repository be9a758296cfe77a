"""Tokens per second from bytes, operations and the data sheet. An estimate, for ranking only.

One decode step reads every weight that it uses once, and the cache of every request:

    step = max((weights read + cache read) / (bandwidth x 0.8), operations / peak) + launches + all-reduces

(the form of NVIDIA's aiconfigurator, whose empirical factors are the constants below). Nothing here was
fitted to a measurement; between two GPUs of one generation the ratio is worth more than the figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from chutes.hardware.choice import Speed
from chutes.hardware.memory import KvDtype, Layout, kv_bytes_per_token
from chutes.hardware.profiles import GpuType
from chutes.model.facts import ModelFacts

BANDWIDTH_SHARE = 0.8  # of the data sheet's bandwidth that kernels reach (aiconfigurator's empirical factor)
COMPUTE_SHARE = 0.5  # of the dense peak that whole prefill steps reach: good kernels 0.7, the rest in between
SECONDS_PER_OP = 3e-6  # a kernel's share of a CUDA graph's replay (aiconfigurator)
OPS_PER_LAYER = 10  # norm, qkv, rope, cache write, attention, out, norm, up, activation, down
# One all-reduce of a few kilobytes: NVLink switches answer in some 10 us, PCIe through the host in some 30.
ALL_REDUCE_SECONDS = 10e-6
ALL_REDUCE_SECONDS_PCIE = 30e-6
NVLINK_FROM_GBPS = 200  # every NVLink since the V100's is above, every PCIe up to 5.0 below
ALL_REDUCES_PER_LAYER = 2  # after attention and after the feed-forward
BYTES_ACTIVATION = 2  # bfloat16 between the layers
ASSUMED_CONTEXT = 2048  # tokens a request has in the cache: a conversation of some turns


@dataclass(frozen=True)
class Step:
    """Seconds of one decode step and what they go into."""

    memory: float
    compute: float
    overhead: float
    communication: float

    @property
    def seconds(self) -> float:
        return max(self.memory, self.compute) + self.overhead + self.communication


def distinct_experts(count: int, per_token: int, tokens: int) -> float:
    """Expected share of a layer's experts that `tokens` tokens wake: 1 - (1 - k/E)^B, for even routing."""
    return 1 - (1 - per_token / count) ** tokens


def weights_read(facts: ModelFacts, tokens: int) -> float:
    """Bytes of weights that one step over `tokens` tokens reads, on all GPUs together."""
    loaded = facts.loaded_bytes or facts.weights_bytes or 0
    routed = facts.expert_bytes or 0
    # A lookup reads one row; only where the head is the same matrix is the embedding read whole.
    looked_up = 0 if facts.tied_embeddings else facts.embedding_bytes or 0
    dense = max(0, loaded - routed - looked_up)
    if facts.experts is None or not routed:
        return dense + routed
    return dense + routed * distinct_experts(facts.experts.count, facts.experts.per_token, tokens)


def decode_step(
    facts: ModelFacts, layout: Layout, gpu: GpuType, batch: int, context: int, kv_dtype: KvDtype = "auto"
) -> Step:
    """One step in which each of `batch` requests with `context` tokens in the cache gets one more.

    Stages of a pipeline work one after the other for one token, so their times add up.
    """
    bandwidth = gpu.bandwidth_gbps * 1e9 * BANDWIDTH_SHARE
    replicated = facts.replicated_bytes or 0
    weights = max(0.0, weights_read(facts, batch) - replicated) / layout.tensor_parallel + replicated
    cache = batch * context * kv_bytes_per_token(facts, layout, kv_dtype) * layout.pipeline_parallel
    layers = facts.layers or 0
    return Step(
        memory=(weights + cache) / bandwidth,
        compute=_operations(facts, batch) / (_peak(facts, gpu) * layout.tensor_parallel),
        overhead=layers * OPS_PER_LAYER * SECONDS_PER_OP,
        communication=_all_reduces(facts, layout, gpu, batch),
    )


def prefill_seconds(facts: ModelFacts, layout: Layout, gpu: GpuType, tokens: int) -> float:
    """Seconds to read a prompt, compute-bound; attention itself, small below some 10 k tokens, is not in."""
    compute = _operations(facts, tokens) / (_peak(facts, gpu) * layout.tensor_parallel)
    return compute + _all_reduces(facts, layout, gpu, tokens)


def speed(
    facts: ModelFacts,
    layout: Layout,
    gpu: GpuType,
    *,
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_tokens: int,
    kv_dtype: KvDtype = "auto",
) -> Speed:
    """The three figures that a person compares."""
    context = max(1, min(ASSUMED_CONTEXT, max_model_len))
    batch = max(1, min(max_num_seqs, kv_cache_tokens // context))
    alone = decode_step(facts, layout, gpu, 1, context, kv_dtype).seconds
    together = decode_step(facts, layout, gpu, batch, context, kv_dtype).seconds
    return Speed(
        context=context,
        tokens_per_second=round(1 / alone, 2),
        batch=batch,
        tokens_per_second_batch=round(batch / together, 2),
        prefill_tokens_per_second=round(context / prefill_seconds(facts, layout, gpu, context), 1),
    )


def _operations(facts: ModelFacts, tokens: int) -> float:
    """A multiplication and an addition for each active parameter and token."""
    active = facts.active_parameters or facts.loaded_parameters or facts.parameters or 0
    return 2.0 * active * tokens


def _peak(facts: ModelFacts, gpu: GpuType) -> float:
    """Operations per second in the format that the multiplications run in.

    Weight-only formats (int4, GPTQ, AWQ) are unpacked to 16 bits first; fp8 and fp4 run natively only where
    the chip has them.
    """
    method = facts.quantization.method.lower() if facts.quantization else ""
    tflops = gpu.bf16_tflops
    if "fp8" in method:
        tflops = gpu.fp8_tflops or tflops
    elif "nvfp4" in method or "mxfp4" in method:
        tflops = gpu.fp4_tflops or tflops
    return tflops * 1e12 * COMPUTE_SHARE


def _all_reduces(facts: ModelFacts, layout: Layout, gpu: GpuType, tokens: int) -> float:
    """Ring all-reduce: 2 (n-1)/n of the message crosses each GPU's link, in one direction at a time."""
    ranks = layout.tensor_parallel
    if ranks == 1:
        return 0.0
    link = gpu.link_gbps or 0.0
    latency = ALL_REDUCE_SECONDS if link >= NVLINK_FROM_GBPS else ALL_REDUCE_SECONDS_PCIE
    message = tokens * (facts.hidden_size or 0) * BYTES_ACTIVATION
    transfer = 2 * (ranks - 1) / ranks * message / (link / 2 * 1e9) if link else 0.0
    return (facts.layers or 0) * ALL_REDUCES_PER_LAYER * (latency + transfer)
