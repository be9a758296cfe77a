"""What a model needs of each GPU, term by term. Pure: no process, no file, no device is looked at.

All sizes are bytes of ONE GPU: the one that decides, which is the fullest rank.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from chutes.hardware.versions import EngineBehaviour
from chutes.model.facts import ModelFacts

GIB = 1 << 30

KvDtype = Literal["auto", "fp8"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Layout(_Frozen):
    """How one instance is spread over its GPUs: tensor_parallel x pipeline_parallel of them."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: bool = False

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel


class Setting(_Frozen):
    """How the engine is asked to run. None: the release's own default for the GPU."""

    max_model_len: int
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_dtype: KvDtype = "auto"
    gpu_memory_utilization: float | None = None
    block_size: int | None = None
    enforce_eager: bool = False


class Estimate(_Frozen):
    """Where one GPU's memory goes.

    usable + not used = total, and weights + kv_cache_expected + peak_activation + non_torch
    + (cuda_graph, where the release subtracts it) = usable. `kv_cache_expected` may be negative: what is missing.
    """

    total: int
    usable: int
    weights: int
    kv_cache_expected: int
    kv_cache_safe: int
    peak_activation: int
    non_torch: int
    cuda_graph: int
    kv_cache_needed: int
    """For one request of max_model_len tokens."""
    kv_cache_tokens: int
    """As the engine prints it, of the expected cache."""
    max_concurrency: float
    """Requests of max_model_len at once in the expected cache."""
    kv_cache_tokens_safe: int
    max_concurrency_safe: float
    estimated_max_model_len: int
    """The longest context for which one request fits in the safe cache; 0 when none does."""
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


def estimate(
    facts: ModelFacts,
    layout: Layout,
    setting: Setting,
    gpu_total_bytes: int,
    behaviour: EngineBehaviour,
    *,
    gpu_name: str = "",
) -> Estimate:
    """Where each GPU's memory goes.

    Args:
        gpu_total_bytes: as CUDA reports it (not the label, not nvidia-smi).
        gpu_name: the product name: releases choose their default batch by it.

    Raises:
        ModelError: the facts do not say enough; the message is `facts.problem` or names what is missing.
    """
    raise NotImplementedError


def cpu_kv_tokens(
    facts: ModelFacts,
    kv_space_bytes: int,
    block_size: int,
    max_model_len: int,
    max_num_batched_tokens: int,
    dtype: str,
    behaviour: EngineBehaviour,
) -> int:
    """What the CPU engine prints as "CPU KV cache size: N tokens"; dtype `float32|bfloat16|float16|fp8`."""
    raise NotImplementedError


def kv_bytes_per_token(facts: ModelFacts, layout: Layout = Layout(), kv_dtype: KvDtype = "auto") -> int:  # noqa: B008
    """Bytes on one GPU that each further token of a long request costs (the growing part only)."""
    raise NotImplementedError


def weights_per_gpu(facts: ModelFacts, layout: Layout = Layout()) -> int:  # noqa: B008
    """Bytes of loaded weights on the fullest GPU."""
    raise NotImplementedError


class Violations(_Frozen):
    """Why a layout cannot be, and what it would cost if it can."""

    problems: list[str] = []
    notes: list[str] = []
    """E.g. a format that the GPU has no instructions for: it runs, emulated."""


def violations(facts: ModelFacts, layout: Layout, capability: tuple[int, int], engine: str) -> Violations:
    """What divisibility and compute capability forbid; a layout with `problems` cannot start."""
    raise NotImplementedError
