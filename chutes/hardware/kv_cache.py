"""The KV cache of one GPU as vLLM lays it out: pages, groups of layers, blocks of a request. Pure.

Written against vLLM 0.32, v1/kv_cache_interface.py (what a layer's page holds, what a request may take) and
v1/core/kv_cache_utils.py (how layers are grouped, how many blocks there are); every function names its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

from chutes.hardware.terms import MODEL_BYTES, Setting
from chutes.hardware.weights import Layout
from chutes.model.attention import LayerAttention
from chutes.model.facts import ModelFacts


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Format:
    """How keys and values are kept."""

    element_bytes: int
    """Of keys and values."""
    model_bytes: int
    """Of the model's own dtype: what convolution states are kept in."""
    block_size: int
    tensor_parallel: int = 1
    kernel_block: int = 16
    """Smallest block that the attention kernels take: 16 on a GPU, 32 on a CPU."""
    state_bytes: int = 0
    """Bytes an element of recurrent states whatever the model says; 0: as the model says."""
    packed_latent: bool = False
    """Whether sparse MLA is kept in blobs of 656 bytes: 512 of latent in 8 bits, 16 of scales, 128 of rotary
    part (`fp8_ds_mla`, mla_attention.py). Not every kernel for 8 bits has it so."""


@dataclass(frozen=True)
class Page:
    """One layer's part of one block."""

    kind: str
    bytes: int
    tokens: int
    """Tokens of a block; of linear layers, which keep no tokens, that of the attention beside them."""
    window: int = 0
    checkpoints: int = 0
    shape: tuple[int, ...] = ()
    """What must be equal for two layers to be of one type."""


@dataclass(frozen=True)
class Group:
    """Layers that share a block table; `layers` are indices into the pages."""

    pages: tuple[Page, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Demand:
    """What decides how many blocks one request takes."""

    max_model_len: int
    in_flight_tokens: int
    prefix_caching: bool = True
    """Linear layers then keep a second state, the one at the last block's boundary (`align`)."""
    checkpoints: bool = True
    """And those inside a prefill, where a layer has them."""


GPU_BLOCK = 16  # vLLM's default on GPUs [src]
PACKED_LATENT = 656


def gpu_format(facts: ModelFacts, layout: Layout, setting: Setting) -> Format:
    """As engines keep it on a GPU."""
    small = setting.kv_cache_dtype == "fp8" or facts.kv_cache_fp8
    return Format(
        element_bytes=1 if small else MODEL_BYTES,
        model_bytes=MODEL_BYTES,
        block_size=setting.block_size or GPU_BLOCK,
        tensor_parallel=layout.tensor_parallel,
        packed_latent=small,
    )


def token_bytes(layer: LayerAttention, form: Format) -> int:
    """Bytes that one token adds to one layer on one GPU, while nothing of it is dropped.

    Key-value heads are split while there are enough of them and then replicated (`max(1, heads // tp)`);
    the latent of MLA is on every rank. Index keys: 8 bits and a float32 scale for each 128 of them
    (sparse_attn_indexer.py).
    """
    if layer.kind == "linear":
        return 0
    index = layer.index_dim + 4 * ceil_div(layer.index_dim, 128)
    if layer.kind == "mla":
        if layer.sparse and form.packed_latent:
            return PACKED_LATENT + index
        return layer.head_dim_k * form.element_bytes + index
    heads = max(1, layer.kv_heads // form.tensor_parallel)
    return heads * (layer.head_dim_k + layer.head_dim_v) * form.element_bytes + index


def state_bytes(layer: LayerAttention, form: Format) -> int:
    """Bytes of one linear layer's state on one GPU; mamba_utils.py: heads are split over ranks."""
    if layer.kind != "linear":
        return 0
    conv = ceil_div(layer.conv_elements, form.tensor_parallel) * form.model_bytes
    wide = form.state_bytes or layer.state_bytes or form.model_bytes
    return conv + ceil_div(layer.state_elements, form.tensor_parallel) * wide


def aligned_block_size(layers: Sequence[LayerAttention], form: Format) -> int:
    """The block size in force: beside linear layers it grows until an attention page holds a state.

    platforms/interface.py, `_align_hybrid_block_size`: a multiple of the asked block size (of 128 for MLA).
    """
    state = max((state_bytes(layer, form) for layer in layers), default=0)
    one_token = next((token_bytes(layer, form) for layer in layers if layer.kind != "linear"), 0)
    if not state or not one_token:
        return form.block_size
    mla = any(layer.kind == "mla" for layer in layers)
    step = max(form.block_size, form.kernel_block, 128 if mla else 1)
    size = step * ceil_div(state, step * one_token)
    size = form.kernel_block * ceil_div(size, form.kernel_block)
    return max(form.block_size, size)


def pages(layers: Sequence[LayerAttention], form: Format) -> list[Page]:
    """Every layer's page; state pages are padded to the attention page beside them."""
    block = aligned_block_size(layers, form)
    attention = max((token_bytes(layer, form) * block for layer in layers), default=0)
    made: list[Page] = []
    for layer in layers:
        if layer.kind == "linear":
            size = max(state_bytes(layer, form), attention)
            made.append(Page("linear", size, block, checkpoints=layer.checkpoints))
            continue
        made.append(
            Page(
                kind="full" if layer.kind == "mla" else layer.kind,
                bytes=token_bytes(layer, form) * block,
                tokens=block,
                window=layer.window,
                shape=(layer.kv_heads, layer.head_dim_k, layer.head_dim_v, layer.index_dim),
            )
        )
    return made


def groups(found: Sequence[Page], *, hybrid: bool = True) -> list[Group]:
    """Layers by block table; kv_cache_utils.py `get_kv_cache_groups`.

    One group when all layers are of one kind and window, whatever their sizes. Otherwise pages are made
    equal (`unify_kv_cache_spec_page_size`: a smaller page holds more tokens, or is padded) and every kind is
    cut into groups of equally many layers (`_get_kv_cache_groups_uniform_page_size`): as many as the rarest
    kind has, or as the commonest when that has less than half as many again.

    Args:
        hybrid: False: the hybrid manager is off and every layer is kept as if it saw everything.
    """
    if not found:
        return []
    if not hybrid and any(page.kind == "full" for page in found):
        found = [replace(page, kind="full", window=0) for page in found]
    indices = tuple(range(len(found)))
    if len({(page.kind, page.window) for page in found}) == 1:
        return [Group(tuple(found), indices)]
    equal = _equal_pages(found)
    buckets: dict[Page, list[int]] = {}
    for index, page in enumerate(equal):
        buckets.setdefault(page, []).append(index)
    counts = [len(bucket) for bucket in buckets.values()]
    size = max(counts) if max(counts) < min(counts) * 1.5 else min(counts)
    made: list[Group] = []
    for page, bucket in buckets.items():
        parts = ceil_div(len(bucket), size)
        for part in range(parts):
            chosen = tuple(bucket[part::parts])
            made.append(Group((page,) * len(chosen), chosen))
    return made


def _equal_pages(found: Sequence[Page]) -> list[Page]:
    largest = max(page.bytes for page in found)
    made: list[Page] = []
    for page in found:
        if page.bytes == largest:
            made.append(page)
        elif page.kind != "linear" and largest % page.bytes == 0:
            made.append(replace(page, bytes=largest, tokens=page.tokens * (largest // page.bytes)))
        else:
            made.append(replace(page, bytes=largest))
    return made


def blocks_of_request(group: Group, demand: Demand) -> int:
    """Blocks that one request of the longest length takes of a group; kv_cache_interface.py.

    `FullAttentionSpec`, `SlidingWindowSpec.max_admission_blocks_per_request` (the window may begin inside
    a block: one more), `ChunkedLocalAttentionSpec`, `MambaSpec` (one state; with prefix caching two and its
    checkpoints).
    """
    page = group.pages[0]
    if page.kind == "linear":
        if not demand.prefix_caching:
            return 1
        return 2 + (page.checkpoints if demand.checkpoints else 0)
    if page.kind == "sliding":
        held = min(page.window - 1 + demand.in_flight_tokens, demand.max_model_len)
        return ceil_div(held, page.tokens) + 1
    if page.kind == "chunked":
        return ceil_div(min(page.window + demand.in_flight_tokens, demand.max_model_len), page.tokens)
    return ceil_div(demand.max_model_len, page.tokens)


@dataclass(frozen=True)
class Pool:
    """The blocks of one GPU. A request draws from every group; all groups draw from one pool."""

    groups: tuple[Group, ...]
    block_bytes: int
    """Of the widest group; kv_cache_utils.py `_get_kv_cache_bytes_per_block`."""
    block_size: int
    """Tokens, of the layers that see everything."""

    def blocks_needed(self, demand: Demand) -> int:
        return sum(blocks_of_request(group, demand) for group in self.groups)

    def bytes_needed(self, demand: Demand) -> int:
        """For one request; `_max_memory_usage_bytes_from_groups`."""
        return self.blocks_needed(demand) * self.block_bytes

    def blocks(self, available: int) -> int:
        return max(available, 0) // self.block_bytes if self.block_bytes else 0

    def concurrency(self, available: int, demand: Demand) -> float:
        """Requests of the longest length at once; `get_max_concurrency_for_kv_cache_config`."""
        needed = self.blocks_needed(demand)
        return self.blocks(available) / needed if needed else 0.0

    def tokens(self, available: int, demand: Demand, count: str) -> int:
        """What the engine prints as its size; never linear capacity for a hybrid.

        `concurrency`: int(concurrency x length), since 0.21. `blocks`: blocks // groups x block size.
        """
        if not self.groups:
            return 0
        if count == "concurrency":
            return int(self.concurrency(available, demand) * demand.max_model_len)
        smallest = min(group.pages[0].tokens for group in self.groups)
        return self.blocks(available) // len(self.groups) * smallest


def pool(
    layers: Sequence[LayerAttention], form: Format, stage: range | None = None, *, hybrid: bool = True
) -> Pool:
    """The pool of one GPU.

    Args:
        stage: the layers of this GPU's pipeline stage by their place in the model; grouping is by the whole.
    """
    grouped = groups(pages(layers, form), hybrid=hybrid)
    here = [
        [
            page
            for page, index in zip(group.pages, group.layers, strict=True)
            if stage is None or layers[index].place in stage
        ]
        for group in grouped
    ]
    full = [group.pages[0].tokens for group in grouped if group.pages[0].kind == "full"]
    every = [group.pages[0].tokens for group in grouped] or [form.block_size]
    return Pool(
        groups=tuple(grouped),
        block_bytes=max((sum(page.bytes for page in held) for held in here), default=0),
        block_size=full[0] if full else lcm(*every),
    )
