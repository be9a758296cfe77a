"""What the planner is asked and what it answers. Plain data: for a person, for `--json` and for deploy."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chutes.hardware.terms import Asked, PerGpuBytes, Setting
from chutes.hardware.weights import Layout

Optimize = Literal["price", "latency", "throughput"]

Refusal = Literal["memory", "context", "layout", "capability", "bound", "used"]
"""Why hardware will not do; `used`: others have its memory."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Request(Asked):
    """What is wanted of a model. None leaves the choice to the planner, or to the engine's own default."""

    engine: str = "vllm"
    engine_version: str = ""
    """Empty: the version in the profiles."""
    max_model_len: int | None = None
    """Tokens of the longest request; None: as many as the model was made for."""
    concurrency: int = 1
    """Requests of that length that the cache must hold at once."""
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    expert_parallel: bool | None = None
    gpu: str | tuple[str, ...] | None = None
    """A GPU type, or several of which any will do."""
    gpu_count: int | None = None
    optimize: Optimize = "price"
    max_price: float | None = None
    """US dollars an hour for the whole instance."""
    max_tpot_ms: float | None = None
    """Milliseconds per output token of a request that runs alone, by the roofline estimate."""
    shorten: bool = False
    """Whether a context that was not asked for may be cut to what fits: when there is no other hardware."""


class Speed(_Frozen):
    """A roofline estimate: bytes and operations over the data sheet's rates. For ranking, never a promise."""

    estimate: Literal[True] = True
    context: int
    """Tokens in the cache of each request that the figures assume."""
    tokens_per_second: float
    """Of one request that runs alone."""
    batch: int
    """Requests at once for the next figure: what fits, at most `max_num_seqs`."""
    tokens_per_second_batch: float
    """Of all of them together."""
    prefill_tokens_per_second: float

    @property
    def tpot_ms(self) -> float:
        """Milliseconds per output token of one request that runs alone."""
        return 1000 / self.tokens_per_second


class Choice(_Frozen):
    """One way to serve the model."""

    gpu: str
    """Short id in the profiles, the device's own name where they do not have it, or `cpu`."""
    gpu_name: str
    gpu_count: int
    """0 on a CPU."""
    capability: tuple[int, int] = (0, 0)
    """Compute capability of the GPUs."""
    gpus: list[int] = []
    """Indices of the devices here; empty for hardware of the catalogue."""
    tensor_parallel_size: int
    pipeline_parallel_size: int
    expert_parallel: bool = False
    fits: bool
    """Whether the engine starts and holds the requests asked for, by the expected figures."""
    fits_safely: bool
    """The same with the reserve."""
    reason: str
    notes: list[str] = []
    price_per_hour: float | None
    price_date: datetime.date | None = None
    gpu_memory_utilization: float
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_dtype: str
    block_size: int
    enforce_eager: bool = False
    kv_cache_tokens: int
    max_concurrency: float
    kv_cache_tokens_safe: int
    max_concurrency_safe: float
    engine_args: list[str]
    environment: dict[str, str] = {}
    node_selector: dict[str, Any] = {}
    per_gpu_bytes: PerGpuBytes
    kv_cache_needed_bytes_per_gpu: int
    estimated_max_model_len: int
    """The longest context that fits, by the expected figures: what the engine would say."""
    estimated_max_model_len_safe: int
    speed: Speed | None = None
    """None where the rates of the hardware are not known."""

    @property
    def label(self) -> str:
        return "cpu" if not self.gpu_count else f"{self.gpu_count} × {self.gpu}"


class Rejected(_Frozen):
    gpu: str
    gpu_count: int
    reason: str
    kind: Refusal = "memory"
    price_per_hour: float | None = None


class TierView(_Frozen):
    name: str
    gpu_count: int
    min_vram_gb_per_gpu: int
    verdict: str
    """What arithmetic says of it."""
    agrees: bool


class PlanResult(_Frozen):
    """The answer of `chutes plan`."""

    model: str
    revision: str | None = None
    facts_from: str = ""
    parameters: int | None
    active_parameters: int | None = None
    weights_bytes: int | None
    loaded_weights_bytes: int | None
    dtype: str = ""
    quantization: str | None = None
    kv_bytes_per_token: int
    """Of the whole model in the cache's own dtype, that each further token of a long request costs."""
    attention: str
    layers: int | None = None
    context_of_model: int | None = None
    tier: TierView | None
    engine: str
    engine_version: str
    choice: Choice | None
    kv_cache_needed_bytes_per_gpu: int | None = None
    estimated_max_model_len: int | None = None
    alternatives: list[Choice] = []
    rejected: list[Rejected] = []
    reasons: list[str] = []
    """Why the choice is what it is, one sentence each."""
    fits_at: list[ContextRoom] = Field(default_factory=list)
    longest_context: int | None = None
    """The longest context that the choice's hardware holds for sure as many times at once as was asked, with
    the choice's batch; `estimated_max_model_len` is what it holds once by the expected figures."""
    longest_context_expected: int | None = None
    optimize: Optimize = "price"
    """What the order of the alternatives comes from."""
    fix: str = ""
    """What to do where the choice does not fit; empty where it does."""
    unmet: str = ""
    """Where hardware would hold the model but none meets the bounds: which bound, and the nearest."""


class ContextRoom(_Frozen):
    """How many requests of one length the choice holds at once."""

    context: int
    requests: float
    requests_safe: float


PlanResult.model_rebuild()


def layout_of(choice: Choice) -> Layout:
    return Layout(
        tensor_parallel=choice.tensor_parallel_size,
        pipeline_parallel=choice.pipeline_parallel_size,
        expert_parallel=choice.expert_parallel,
    )


def setting_of(choice: Choice) -> Setting:
    """The setting that gives this choice again."""
    names = set(Setting.model_fields) - {"kv_cache_dtype"}
    fields = {name: getattr(choice, name) for name in names}
    return Setting(**fields, kv_cache_dtype="fp8" if choice.kv_cache_dtype == "fp8" else "auto")


WEIGHTS_ONLY: dict[str, Any] = {
    "max_model_len": 0,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 0,
    "kv_cache_dtype": "auto",
    "block_size": 0,
    "kv_cache_tokens": 0,
    "max_concurrency": 0.0,
    "kv_cache_tokens_safe": 0,
    "max_concurrency_safe": 0.0,
    "engine_args": [],
    "kv_cache_needed_bytes_per_gpu": 0,
    "estimated_max_model_len": 0,
    "estimated_max_model_len_safe": 0,
}
"""Of a choice for a model that makes images: no tokens, no cache, no arguments of an engine for text."""
