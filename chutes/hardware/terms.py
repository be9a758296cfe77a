"""What is asked of an engine and where one GPU's memory then goes: the same for every engine. Data only."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

GIB = 1 << 30

KvDtype = Literal["auto", "fp8"]

MODEL_BYTES = 2  # engines compute in 16 bits on a GPU, whatever the weights are packed in

# What `safe` keeps back. Over 14 published measurements of vLLM 0.9 to 0.28 the arithmetic gave at most
# 1.18 GiB of KV cache too much, and was chosen after seeing them: a margin, not a bound.
RESERVE = int(1.25 * GIB)


class Asked(BaseModel):
    """What may be left to the engine's own default, which is None."""

    model_config = ConfigDict(frozen=True)

    max_num_seqs: int | None = None
    """Requests that the engine may run at once, however short they are."""
    max_num_batched_tokens: int | None = None
    kv_cache_dtype: KvDtype = "auto"
    gpu_memory_utilization: float | None = None
    block_size: int | None = None
    enforce_eager: bool = False


class Setting(Asked):
    """How the engine is asked to run."""

    max_model_len: int


class PerGpuBytes(BaseModel):
    """Where the memory of one GPU (the fullest) goes."""

    model_config = ConfigDict(frozen=True)

    total: int
    usable: int
    weights: int
    kv_cache_expected: int
    """What the engine should report; negative: so much is missing."""
    kv_cache_safe: int
    """The expected one less RESERVE, for what the arithmetic does not see."""
    peak_activation: int
    non_torch: int
    cuda_graph: int


class Estimate(PerGpuBytes):
    """Where one GPU's memory goes.

    weights + kv_cache_expected + peak_activation + non_torch, and cuda_graph where the release subtracts it,
    are exactly `usable`. `kv_cache_expected` may be negative: that much is missing.
    """

    cuda_graph_subtracted: bool
    """False: the graphs take theirs from total - usable, after the KV cache was sized."""
    kv_cache_needed: int
    """For one request of max_model_len tokens, with the block that the pool holds back."""
    kv_cache_tokens: int
    """As the engine prints it, of the expected cache."""
    max_concurrency: float
    """Requests of max_model_len at once in the expected cache; without a KV cache, max_num_seqs."""
    kv_cache_tokens_safe: int
    max_concurrency_safe: float
    estimated_max_model_len: int
    """The longest context for which one request fits in the expected cache: what the engine names when it
    refuses to start. 0 when none does."""
    estimated_max_model_len_safe: int
    """The same in the safe cache."""
    fits: bool
    """With the reserve."""
    fits_expected: bool
    reason: str
    """By how much it fits or does not."""
    # What the release decided where the setting left it open:
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    block_size: int


def why(usable: int, weights: int, left: int, needed: int, length: int, graphs: int) -> str:
    if weights > usable:
        short = weights - usable
        return f"weights of {gib(weights)} a GPU exceed the {gib(usable)} usable: {gib(short)} too little"
    if left < 0:
        return f"weights and working memory exceed the {gib(usable)} usable by {gib(-left)}"
    one = f"one request of {length:,} tokens needs {gib(needed)} of KV cache"
    if left < needed:
        return f"{one} and {gib(left)} are left: {gib(needed - left)} too little"
    if graphs:
        return f"CUDA graphs of about {gib(graphs)} have no room outside the {gib(usable)} usable"
    if left - RESERVE < needed:
        return (
            f"{one} and {gib(left)} are expected to be left, but not with a reserve of {gib(RESERVE)}: "
            f"{gib(needed - left + RESERVE)} too little to be sure"
        )
    return f"{one}; {gib(left - RESERVE)} are left with the reserve, {gib(left)} expected"


def gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"
