"""What SGLang does with one GPU's memory. Pure; read in SGLang 0.5.23, each function names its file there.

It measures nothing before it sizes its pools. One fraction of the memory that was free at the start is
static, weights and pools; what is left over must do for activations and CUDA graphs:

    pools = free at start x mem_fraction_static - weights

No published measurement stands behind these numbers.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import ceil, inf

from chutes.hardware.kv_cache import Format, ceil_div, gpu_format, state_bytes, token_bytes
from chutes.hardware.terms import GIB, RESERVE, Estimate, Setting, why
from chutes.hardware.weights import Layout, stage_weights, stages_of
from chutes.model.attention import LayerAttention
from chutes.model.facts import ModelFacts

READ = "0.5.23"

MIB = 1 << 20

# arg_groups/memory_hook.py `handle_gpu_memory_settings`: (below so many GiB, chunked_prefill_size, largest
# batch of the decode graphs with tp < 4, and with more). It counts as nvidia-smi does; CUDA's figure, which
# is used here, is up to 2 % less and of the same class for every GPU in the profiles.
CLASSES: tuple[tuple[float, int, int, int], ...] = (
    (20, 2048, 8, 8),
    (35, 4096, 48, 160),
    (60, 4096, 32, 160),
    (160, 8192, 256, 512),
    (inf, 16_384, 512, 512),
)

SWA_RATIO = 0.8  # fields/schedule.py swa_full_tokens_ratio: tokens of a sliding layer to those of a full one
STATE_RATIO = 0.9  # fields/schedule.py mamba_full_memory_ratio: bytes of states to bytes of keys and values

# kv_cache_configurator.py `_calculate_mamba_ratio`: 3 states a request, and 2 more that are written in turn,
# which is the default with overlapped scheduling (overrides.py: strategy `auto` becomes `extra_buffer`).
STATES_OF_REQUEST = 5

EVICTION = 128  # environ.py SGLANG_SWA_EVICTION_INTERVAL: tokens by which a window may lag behind

VISION_CACHE = 100 * MIB  # environ.py SGLANG_VLM_CACHE_SIZE_MB, taken out of the pools
VISION_FACTOR = 0.95  # memory_hook.py `adjust_mem_fraction_for_vlm` for an encoder like ViT-L/14

# configs/model_config.py `is_hybrid_swa_model`: only these have a pool of their own for sliding and chunked
# layers. In every other architecture such a layer is kept as if it saw everything.
SWA_ARCHITECTURES = frozenset(
    {
        "GptOssForCausalLM",
        "GraniteSWAForCausalLM",
        "GraniteMoeSWAForCausalLM",
        "MiMoV2ForCausalLM",
        "MiMoV2FlashForCausalLM",
        "Llama4ForConditionalGeneration",
        "Step3p5ForCausalLM",
        "Step3p7ForConditionalGeneration",
        "Gemma4ForCausalLM",
        "Gemma4ForConditionalGeneration",
        "LagunaForCausalLM",
        "MellumForCausalLM",
    }
)


def note(version: str) -> str:
    """What a reader of any SGLang plan must know."""
    said = (
        "SGLang measures nothing before it sizes its cache: activations and CUDA graphs live in what the "
        "static share leaves over, and no published measurements stand behind this estimate"
    )
    return said if version == READ else f"{said}; SGLang {version} is counted by the rules of {READ}"


def notes(facts: ModelFacts) -> list[str]:
    """What of this model is not modelled, or differs from what its config.json leads one to expect."""
    said: list[str] = []
    windows = any(layer.kind in ("sliding", "chunked") for layer in facts.layers_attention)
    if windows and not _own_window_pool(facts):
        said.append("SGLang keeps the windowed layers of this architecture as if they saw everything")
    if facts.vision:
        said.append(
            "the size of its vision encoder lowers SGLang's default static share by a further 0 to 20 %: "
            "taken as for ViT-L/14"
        )
    if any(layer.kind == "linear" for layer in facts.layers_attention):
        said.append(
            f"SGLang keeps {STATES_OF_REQUEST} states a request where the architecture takes its extra "
            "buffer, which was assumed, and 3 where not"
        )
    if any(layer.index_dim for layer in facts.layers_attention):
        said.append(
            "sparse attention: layers that reuse another's index are counted as if they had their own"
        )
    return said


def batch_class(total: int, tensor_parallel: int) -> tuple[int, int]:
    """(chunked_prefill_size, largest batch of the decode graphs) by default; `handle_gpu_memory_settings`."""
    chunk, few, many = next(rest for below, *rest in CLASSES if total < below * GIB)
    return chunk, few if tensor_parallel < 4 else many


def default_fraction(facts: ModelFacts, layout: Layout, setting: Setting, total: int) -> float:
    """mem_fraction_static when it is not given; arg_groups/memory_hook.py `handle_gpu_memory_settings`.

    Its own units are MiB: 512, 1.5 for each token of a prefill chunk, 1024 for each eight GPUs, and the
    graphs (`reserve_for_graph_mb`): 2 for each sequence of the decode graphs; of the prefill graphs 8 for
    each size captured, or 1536 with MLA. Beyond 60 GiB 10 GiB at least.
    """
    chunk, largest = batch_class(total, layout.tensor_parallel)
    chunk = chunk if setting.max_num_batched_tokens is None else setting.max_num_batched_tokens
    reserved = 512 + 1.5 * max(chunk, 2048) + layout.gpus / 8 * 1024
    if not setting.enforce_eager:
        reserved += 2 * min(largest, setting.max_num_seqs or largest)
        reserved += 1536 if facts.attention == "mla" else 8 * prefill_graphs(chunk)
    memory = total / MIB
    if memory > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    fraction = round((memory - reserved) / memory, 3)
    # To as many digits as the plan then tells the engine.
    return round(fraction * VISION_FACTOR, 4) if facts.vision else fraction


def prefill_graphs(chunk: int) -> int:
    """How many sizes are captured; cuda_graph_hook.py `generate_prefill_cuda_graph_batch_sizes`."""
    steps = ((4, 33, 4), (48, 257, 16), (288, 513, 32), (576, 1025, 64), (1280, 4097, 256))
    sizes = [size for step in steps for size in range(*step)]
    return sum(size <= chunk for size in [*sizes, *range(4608, chunk + 1, 512)])


@dataclass(frozen=True)
class Pools:
    """The pools of one GPU of one pipeline stage; model_executor/pool_configurator.py. Bytes."""

    full: int
    """A token of every layer that sees everything."""
    windowed: int
    """A token of every layer that has a window's pool."""
    window: int
    """Tokens that those layers see."""
    state: int
    """A request in the linear layers, once."""
    page: int

    @property
    def cell(self) -> float:
        """Of one token of max_total_num_tokens; `HybridSWAPoolConfigurator._recompute_cell_size`."""
        return self.full + SWA_RATIO * self.windowed if self.full else float(self.windowed)

    def slots(self, room: int) -> int:
        """States that are kept; kv_cache_configurator.py `_handle_max_mamba_cache`."""
        if not self.state:
            return 0
        return max(0, int((room * STATE_RATIO / (1 + STATE_RATIO) - self.state) // self.state))

    def tokens(self, room: int) -> int:
        """max_total_num_tokens; `calculate_pool_sizes`, after one more state than `slots` for padding."""
        left = room - (self.slots(room) + 1) * self.state if self.state else room
        return int(max(left, 0) // self.cell) // self.page * self.page if self.cell else 0

    def requests(self, room: int, length: int) -> float:
        """Requests of `length` tokens at once.

        Every pool bounds them. In a window's pool a running request keeps its window, what eviction lags
        behind and two pages (`compute_swa_request_cap`); during prefill a chunk more, which is not counted.
        """
        tokens = self.tokens(room)
        found = [tokens / length]
        if self.windowed and self.full:
            found.append(tokens * SWA_RATIO / min(length, self.window + EVICTION + 2 * self.page))
        if self.state:
            found.append(self.slots(room) // STATES_OF_REQUEST)
        return min(found)

    def needed(self, length: int) -> int:
        """The least room in which one request of `length` tokens runs."""
        tokens = length
        if self.windowed and self.full:  # `validate_swa_pool_size`
            tokens = max(tokens, ceil((self.window + self.page + 1) / SWA_RATIO))
        room = ceil(ceil_div(tokens, self.page) * self.page * self.cell)
        if not self.state:
            return room
        states = ceil((STATES_OF_REQUEST + 1) * self.state / STATE_RATIO * (1 + STATE_RATIO))
        return max(ceil(room * (1 + STATE_RATIO)), states)


def estimate(facts: ModelFacts, layout: Layout, setting: Setting, total: int, non_torch: int) -> Estimate:
    """Where each GPU's memory goes; kv_cache_configurator.py `_profile_available_bytes`.

    Activations and graphs are in no term: they live in `total - usable`.

    Args:
        total: bytes of the GPU, as CUDA counts.
        non_torch: bytes that are gone before weights are loaded: context, NCCL.
    """
    fraction = setting.gpu_memory_utilization
    if fraction is None:
        fraction = default_fraction(facts, layout, setting, total)
    slack = ceil((total - non_torch) * (1 - fraction))
    beside = non_torch + (VISION_CACHE if facts.vision else 0)
    length = setting.max_model_len
    found: list[tuple[int, int, Pools]] = []
    for stage, pools in enumerate(_pools(facts, layout, setting)):
        weights = stage_weights(facts, layout, stage)
        found.append((weights, total - slack - beside - weights, pools))
    # The stage with the least to spare is the one to tell of; the smallest pool is every stage's.
    weights, left, worst = min(found, key=lambda one: one[1] - one[2].needed(length))
    needed = worst.needed(length)
    tokens, tokens_safe = (
        min(pools.tokens(room - kept) for _, room, pools in found) for kept in (0, RESERVE)
    )
    at_once, at_once_safe = (
        min(pools.requests(room - kept, length) for _, room, pools in found) for kept in (0, RESERVE)
    )

    def longest(kept: int) -> int:
        limit = max(length, facts.max_model_len or 0)
        for _, room, pools in found:
            limit = bisect_right(range(1, limit + 1), room - kept, key=pools.needed)
        return limit

    chunk, _ = batch_class(total, layout.tensor_parallel)
    return Estimate(
        total=total,
        usable=total - slack,
        weights=weights,
        kv_cache_expected=left,
        kv_cache_safe=left - RESERVE,
        peak_activation=0,
        non_torch=beside,
        cuda_graph=0,
        cuda_graph_subtracted=False,
        kv_cache_needed=needed,
        kv_cache_tokens=tokens,
        max_concurrency=at_once,
        kv_cache_tokens_safe=tokens_safe,
        max_concurrency_safe=at_once_safe,
        estimated_max_model_len=longest(0),
        estimated_max_model_len_safe=longest(RESERVE),
        fits=left - RESERVE >= needed,
        fits_expected=left >= needed,
        reason=why(total - slack, weights, left, needed, length, 0),
        max_num_seqs=running_requests(setting, tokens, min(one.slots(room) for _, room, one in found), worst),
        max_num_batched_tokens=setting.max_num_batched_tokens or chunk,
        gpu_memory_utilization=fraction,
        block_size=worst.page,
    )


def cpu_tokens(facts: ModelFacts, space: int) -> int:
    """Tokens that `space` bytes hold on a CPU, in float32; told to the engine as --max-total-tokens.

    With SmolLM2-135M 20,000 tokens took 0.858 GiB by the engine's own metric: these bytes.
    """
    form = Format(element_bytes=4, model_bytes=4, block_size=1)
    layers = list(facts.layers_attention)
    state = sum(state_bytes(layer, form) for layer in layers)
    return _pools_of(layers, form, state, 1, _own_window_pool(facts)).tokens(space)


def running_requests(setting: Setting, tokens: int, slots: int, pools: Pools) -> int:
    """max_running_requests as it is settled; kv_cache_configurator.py `resolve_max_num_reqs`."""
    usual = max(min(int(tokens / setting.max_model_len * 512), 4096), 2048)
    most = min(setting.max_num_seqs or usual, tokens // 2)
    return max(1, min(most, slots // STATES_OF_REQUEST) if pools.state else most)


def _own_window_pool(facts: ModelFacts) -> bool:
    return facts.architecture in SWA_ARCHITECTURES


def _pools(facts: ModelFacts, layout: Layout, setting: Setting) -> list[Pools]:
    """Of each pipeline stage. States are charged as on the stage with the most of them."""
    form = gpu_format(facts, layout, setting)
    kept = facts.layers_attention
    apart = _own_window_pool(facts)
    cut = stages_of(facts, layout.pipeline_parallel)
    parts = [[layer for layer in kept if layer.place in stage] for stage in cut]
    state = max(sum(state_bytes(layer, form) for layer in part) for part in parts)
    return [_pools_of(part, form, state, setting.block_size or 1, apart) for part in parts]


def _pools_of(layers: list[LayerAttention], form: Format, state: int, page: int, apart: bool) -> Pools:
    windowed = [layer for layer in layers if apart and layer.kind in ("sliding", "chunked")]
    return Pools(
        full=sum(token_bytes(layer, form) for layer in layers if layer not in windowed),
        windowed=sum(token_bytes(layer, form) for layer in windowed),
        window=max((layer.window for layer in windowed), default=0),
        state=state,
        page=page,
    )
