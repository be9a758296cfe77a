"""What each layer of a model keeps of the tokens it has seen, as an engine's KV cache counts it.

The rules by which a config.json names its layers' kinds are those of the models' own code in transformers
and of vLLM's `model_executor/models/*.py` (0.32).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["full", "mla", "sliding", "chunked", "linear"]


class LayerAttention(BaseModel):
    """One layer's memory of a request. Sizes are of the whole model, before any parallelism."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Kind
    place: int = 0
    """Which layer of the model it is, from 0: layers that keep nothing are not listed, and count where a
    pipeline is cut."""
    kv_heads: int = 0
    """Key-value heads; 1 for MLA, whose latent is shared by all heads; 0 for linear attention."""
    head_dim_k: int = 0
    """Elements a token and head of keys; for MLA the latent with its rotary part."""
    head_dim_v: int = 0
    """The same of values; 0 for MLA, which keeps no values beside the latent."""
    window: int = 0
    """Tokens that a sliding layer sees, or tokens of one chunk; 0 for the other kinds."""
    sparse: bool = False
    """MLA that reads only the tokens that an indexer picks (DeepSeek V3.2): it has kernels of its own."""
    index_dim: int = 0
    """Elements a token of that indexer's key, kept in 8 bits; 0 where a layer uses another's choice."""
    key_heads: int = 0
    """Linear attention: heads of keys, or groups that share them; each is on one rank."""
    value_heads: int = 0
    """Linear attention: heads of the recurrent state; each is on one rank."""
    conv_elements: int = 0
    """Linear attention: elements of the convolution's state of one request, in the model's dtype."""
    state_elements: int = 0
    """Linear attention: elements of the recurrent state of one request."""
    state_bytes: int = 0
    """Linear attention: bytes an element of the recurrent state; 0: as in the model's dtype."""
    checkpoints: int = 0
    """Linear attention: states kept beside the running one while a prefill may be cached, one more than for
    any such layer (Mamba-2, vLLM mamba_mixer2.py; KDA on GPUs with its own kernel, kda.py)."""

    def __hash__(self) -> int:
        # A plan looks up what was worked out for these layers thousands of times: all fields take too long.
        return hash((self.kind, self.place))


class Unknown(Exception):
    """This config.json does not say how its layers keep the past, or says it in a way not known here."""


def layers(text: Mapping[str, Any]) -> tuple[LayerAttention, ...]:
    """One entry for each layer that keeps something of a request, in order.

    Args:
        text: the language model's part of config.json.

    Raises:
        Unknown: the layout is not known here; the message says why.
    """
    return tuple(
        layer.model_copy(update={"place": place})
        for place, layer in enumerate(_every(text))
        if layer is not None
    )


def _every(text: Mapping[str, Any]) -> Sequence[LayerAttention | None]:
    """One entry for each layer of the model; None for one that keeps nothing."""
    kind = str(text.get("model_type") or "")
    if kind in ("deepseek_v4", "deepseek_ref") or text.get("compress_ratios"):
        raise Unknown("its layers keep compressed keys at several ratios (DeepSeek V4), not modelled here")
    if kind == "nemotron_h" or text.get("hybrid_override_pattern"):
        return _nemotron_h(text)
    if text.get("block_configs"):
        return _nas(text)
    if text.get("linear_attn_config"):
        return _kimi_linear(text)
    count = whole(text, "num_hidden_layers", "n_layer")
    if not count:
        raise Unknown("config.json does not say how many layers there are")
    if text.get("kv_lora_rank"):
        return _mla(text, count)
    return _per_layer(text, count)


def summary(kept: Sequence[LayerAttention], heads: int | None) -> str:
    """In one word, as `ModelFacts.attention` has it."""
    kinds = {layer.kind for layer in kept}
    if not kinds:
        return "none"
    for special in ("linear", "chunked", "sliding"):
        if special in kinds:
            return special if len(kinds) == 1 else f"hybrid-{special}"
    if kinds == {"mla"}:
        return "mla"
    most = Counter(layer.kv_heads for layer in kept).most_common(1)[0][0]
    if most == heads:
        return "mha"
    return "mqa" if most == 1 else "gqa"


def whole(text: Mapping[str, Any], *names: str) -> int | None:
    """The first of the fields that is a positive whole number."""
    values = (text.get(name) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)


def kv_geometry(text: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(attention heads, key-value heads, elements of a key head, of a value head).

    Raises:
        Unknown: the fields are not there.
    """
    heads = whole(text, "num_attention_heads", "n_head")
    hidden = whole(text, "hidden_size", "n_embd", "d_model")
    keys = whole(text, "head_dim", "attention_head_dim") or (hidden // heads if hidden and heads else None)
    if not heads or not keys:
        raise Unknown("config.json does not say how many attention heads there are, or how wide they are")
    groups = whole(text, "num_key_value_heads", "num_kv_heads", "num_query_groups", "multi_query_group_num")
    return heads, groups or heads, keys, whole(text, "v_head_dim") or keys


def layer_kinds(text: Mapping[str, Any], count: int) -> list[str]:
    """Of each layer: `full`, `sliding`, `chunked` or `linear`.

    Raises:
        Unknown: a kind that is not known here.
    """
    kind = str(text.get("model_type") or "")
    if listed := text.get("layer_types"):
        known = {
            "full_attention": "full",
            "attention": "full",
            "sliding_attention": "sliding",
            "sliding_window": "sliding",
            "chunked_attention": "chunked",
            "linear_attention": "linear",
        }
        if unknown := sorted({str(name) for name in listed} - set(known)):
            raise Unknown(f"layer_types names {', '.join(unknown)}, which is not known here")
        if len(listed) < count:
            raise Unknown(f"layer_types names {len(listed)} layers of {count}")
        return [known[name] for name in listed[:count]]
    if pattern := text.get("hybrid_layer_pattern"):  # MiMo V2: 1 is a sliding layer
        return ["sliding" if mark else "full" for mark in pattern[:count]]
    if interval := whole(text, "full_attention_interval"):  # Qwen3-Next: the last of every `interval`
        return ["linear" if (i + 1) % interval else "full" for i in range(count)]
    if kind.startswith("llama4"):
        # Llama 4: layers without rotary embedding see everything, the others one chunk.
        step = whole(text, "no_rope_layer_interval") or 4
        marks = text.get("no_rope_layers") or [(i + 1) % step for i in range(count)]
        return ["chunked" if mark else "full" for mark in marks[:count]]
    if not whole(text, "sliding_window"):
        return ["full"] * count
    if kind.startswith("gemma3"):
        step = whole(text, "sliding_window_pattern") or 6  # transformers' default: five local, one global
        return ["sliding" if (i + 1) % step else "full" for i in range(count)]
    if kind.startswith(("gemma2", "gpt_oss")):
        return ["full" if i % 2 else "sliding" for i in range(count)]
    if kind.startswith("qwen2") or text.get("use_sliding_window") is not None:
        if not text.get("use_sliding_window"):
            return ["full"] * count  # the window is written there and not used
        first = text.get("max_window_layers") or 0
        return ["sliding" if i >= first else "full" for i in range(count)]
    return ["sliding"] * count


def _per_layer(text: Mapping[str, Any], count: int) -> list[LayerAttention | None]:
    _, kv_heads, keys, values = kv_geometry(text)
    shared = (
        whole(text, "num_kv_shared_layers") or 0
    )  # Gemma 3n and 4: the last layers read earlier ones' cache
    chunk = whole(text, "attention_chunk_size") or 8192  # transformers' default for Llama 4
    window = whole(text, "sliding_window") or 0
    full = LayerAttention(
        kind="full",
        kv_heads=whole(text, "num_global_key_value_heads") or kv_heads,  # Gemma 4: of its global layers
        head_dim_k=whole(text, "global_head_dim") or keys,
        head_dim_v=whole(text, "global_head_dim") or values,
        index_dim=_sparse_index(text),
    )
    sliding = LayerAttention(
        kind="sliding",
        kv_heads=whole(text, "swa_num_key_value_heads") or kv_heads,  # MiMo V2: of its sliding layers
        head_dim_k=whole(text, "swa_head_dim") or keys,
        head_dim_v=whole(text, "swa_v_head_dim") or values,
        window=window,
    )
    made = {
        "full": full,
        "sliding": sliding,
        "chunked": LayerAttention(
            kind="chunked", kv_heads=kv_heads, head_dim_k=keys, head_dim_v=values, window=chunk
        ),
    }
    kinds = layer_kinds(text, count)[: count - shared]
    if "linear" in kinds:
        made["linear"] = _delta_net(text)
    if "sliding" in kinds and not window:
        raise Unknown("it has sliding layers and no sliding_window")
    return [*(made[kind] for kind in kinds), *[None] * shared]


def _sparse_index(text: Mapping[str, Any]) -> int:
    sparse = text.get("sparse_attention_config")
    if isinstance(sparse, Mapping) and sparse.get("use_sparse_attention"):
        raise Unknown("its layers keep block-sparse index keys (MiniMax M3), not modelled here")
    return 0


def _mla(text: Mapping[str, Any], count: int) -> tuple[LayerAttention, ...]:
    latent = (whole(text, "kv_lora_rank") or 0) + (whole(text, "qk_rope_head_dim") or 0)
    index = whole(text, "index_head_dim") or 0
    # GLM-5.2: "shared" layers reuse an earlier layer's choice and keep no index keys.
    owners = text.get("indexer_types") or ["full"] * count
    return tuple(
        LayerAttention(
            kind="mla",
            kv_heads=1,
            head_dim_k=latent,
            sparse=index > 0,
            index_dim=index if owners[i] == "full" else 0,
        )
        for i in range(count)
    )


def _delta_net(text: Mapping[str, Any]) -> LayerAttention:
    """Gated delta net (Qwen3-Next, Qwen3.5); vLLM mamba_utils.py `gated_delta_net_state_shape`."""
    fields = [
        whole(text, name)
        for name in (
            "linear_num_key_heads",
            "linear_num_value_heads",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_conv_kernel_dim",
        )
    ]
    if any(field is None for field in fields):
        raise Unknown("it has linear layers, and config.json does not say how wide they are")
    k_heads, v_heads, k_dim, v_dim, kernel = (field or 0 for field in fields)
    return LayerAttention(
        kind="linear",
        conv_elements=(2 * k_dim * k_heads + v_dim * v_heads) * (kernel - 1),
        state_elements=v_heads * v_dim * k_dim,
        key_heads=k_heads,
        value_heads=v_heads,
        state_bytes=_bytes_of(text.get("mamba_ssm_dtype")),
    )


def _kimi_linear(text: Mapping[str, Any]) -> tuple[LayerAttention, ...]:
    """Kimi Delta Attention and MLA; mamba_utils.py `kda_state_shape`: recurrent state in float32."""
    linear = text["linear_attn_config"]
    heads, dim = whole(linear, "num_heads"), whole(linear, "head_dim")
    if not heads or not dim or not linear.get("full_attn_layers"):
        raise Unknown("linear_attn_config is incomplete")
    kernel = whole(linear, "short_conv_kernel_size") or 4
    state = LayerAttention(
        kind="linear",
        conv_elements=3 * heads * dim * (kernel - 1),
        state_elements=heads * dim * dim,
        key_heads=heads,
        value_heads=heads,
        state_bytes=4,
        checkpoints=1,
    )
    full = set(linear["full_attn_layers"])  # counted from 1
    count = whole(text, "num_hidden_layers") or 0
    latent = _mla(text, count)
    return tuple(latent[i] if i + 1 in full else state for i in range(count))


def _nemotron_h(text: Mapping[str, Any]) -> list[LayerAttention | None]:
    """Mamba-2 (M), attention (*), feed-forward (-) and expert (E) layers; `mamba2_state_shape`."""
    pattern = text.get("hybrid_override_pattern") or text.get("layers_block_type") or ""
    _, kv_heads, keys, values = kv_geometry(text)
    heads, dim, state = (whole(text, n) for n in ("mamba_num_heads", "mamba_head_dim", "ssm_state_size"))
    kernel, groups = whole(text, "conv_kernel") or 4, whole(text, "n_groups") or 1
    if not pattern or not heads or not dim or not state:
        raise Unknown("hybrid_override_pattern or the Mamba layers' sizes are missing")
    mamba = LayerAttention(
        kind="linear",
        conv_elements=(heads * dim + 2 * groups * state) * (kernel - 1),
        state_elements=heads * dim * state,
        # A single group is copied to every rank (mamba_mixer2.py); more must be divided like heads.
        key_heads=groups if groups > 1 else heads,
        value_heads=heads,
        state_bytes=_bytes_of(text.get("mamba_ssm_cache_dtype")) or 4,  # vLLM's default for Nemotron-H
        checkpoints=1,
    )
    full = LayerAttention(kind="full", kv_heads=kv_heads, head_dim_k=keys, head_dim_v=values)
    named = {
        "M": mamba,
        "mamba": mamba,
        "*": full,
        "attention": full,
        "-": None,
        "mlp": None,
        "E": None,
        "moe": None,
    }
    if unknown := sorted({str(mark) for mark in pattern} - set(named)):
        raise Unknown(f"its layer pattern names {', '.join(unknown)}, which is not known here")
    return [named[mark] for mark in pattern]


def _nas(text: Mapping[str, Any]) -> list[LayerAttention | None]:
    """Nemotron-NAS: every block may have its own grouping, or no attention at all."""
    heads = whole(text, "num_attention_heads")
    hidden = whole(text, "hidden_size")
    if not heads or not hidden:
        raise Unknown("config.json does not say how many attention heads there are")
    dim = whole(text, "head_dim") or hidden // heads
    kept: list[LayerAttention | None] = []
    for block in text["block_configs"]:
        attention = block.get("attention") or {}
        if attention.get("no_op") or attention.get("replace_with_linear"):
            kept.append(None)
            continue
        per_group = whole(attention, "n_heads_in_group")
        if not per_group:
            raise Unknown("a block of block_configs does not say how its heads are grouped")
        kept.append(LayerAttention(kind="full", kv_heads=heads // per_group, head_dim_k=dim, head_dim_v=dim))
    return kept


def _bytes_of(dtype: object) -> int:
    return {"float32": 4, "float16": 2, "bfloat16": 2}.get(str(dtype or "").removeprefix("torch."), 0)
