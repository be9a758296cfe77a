"""Parameters of models whose layers are not all of one build: Nemotron-H and Gemma 4.

Counted from vLLM's nemotron_h.py and gemma4.py (0.32), and equal to what transformers 5.19 builds from the
published configs of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chutes.model.attention import Unknown, kv_geometry, layer_kinds, whole
from chutes.model.pieces import Part, Piece, gated, norm, within


def nemotron_h(text: Mapping[str, Any], hidden: int, vocabulary: int) -> list[Piece]:
    """One build a letter: M Mamba-2, * attention, - feed-forward without a gate, E experts, some in a latent
    space."""
    pattern = text.get("hybrid_override_pattern") or text.get("layers_block_type")
    if not pattern:
        raise Unknown("hybrid_override_pattern is missing")
    made = [
        Piece("embedding", vocabulary, hidden, linear=False),
        Piece("head", vocabulary, hidden, linear=False),
        norm(hidden),
    ]
    for index, mark in enumerate(pattern):
        layer = [norm(hidden), *within("mixer", _nemotron_layer(text, hidden, str(mark)))]
        made += within(f"model.layers.{index}", layer)
    return made + _nemotron_mtp(text, hidden)


def _nemotron_mtp(text: Mapping[str, Any], hidden: int) -> list[Piece]:
    """vLLM nemotron_h_mtp.py: a pattern of layers, a join with two norms before and a norm behind."""
    pattern = text.get("mtp_hybrid_override_pattern") or text.get("mtp_layers_block_type") or ""
    extra = whole(text, "num_nextn_predict_layers") or 0
    if not pattern or not extra:
        return []
    made = [Piece("dense", hidden, 2 * hidden, quantised=False), norm(hidden, 3)]
    for index, mark in enumerate(pattern):
        layer = [norm(hidden), *within("mixer", _nemotron_layer(text, hidden, str(mark)))]
        made += within(f"layers.{index}", layer)
    return within("mtp", made * extra, mtp=True)


def _nemotron_layer(text: Mapping[str, Any], hidden: int, mark: str) -> list[Piece]:
    inner = whole(text, "intermediate_size") or 0
    if mark in ("M", "mamba"):
        return _mamba2(text, hidden)
    if mark in ("*", "attention"):
        heads, groups, keys, values = kv_geometry(text)
        return [
            Piece("attention", heads * keys, hidden, modules=("q_proj",)),
            Piece("attention", groups * keys, hidden, modules=("k_proj",)),
            Piece("attention", groups * values, hidden, modules=("v_proj",)),
            Piece("attention", hidden, heads * values, modules=("o_proj",)),
        ]
    if mark in ("-", "mlp"):
        return _plain("dense", inner, hidden, "")
    if mark not in ("E", "moe"):
        raise Unknown(f"its layer pattern names {mark}, which is not known here")
    count = whole(text, "n_routed_experts") or 0
    width = whole(text, "moe_intermediate_size") or inner
    latent = whole(text, "moe_latent_size")
    shared = (whole(text, "moe_shared_expert_intermediate_size") or 0) * (
        whole(text, "n_shared_experts") or 1
    )
    made = [
        Piece("router", count, hidden, linear=False, split=False),
        Piece("router", count, 1, linear=False, split=False, wide=True),
        *_plain("expert", width, latent or hidden, "experts.0.", count),
        *_plain("shared", shared, hidden, "shared_experts."),
    ]
    if latent:
        made += [
            Piece("dense", latent, hidden, split=False, modules=("fc1_latent_proj",)),
            Piece("dense", hidden, latent, split=False, modules=("fc2_latent_proj",)),
        ]
    return made


def _plain(part: Part, inner: int, hidden: int, prefix: str, copies: int = 1) -> list[Piece]:
    """A feed-forward layer without a gate."""
    return [
        Piece(part, inner, hidden, copies, modules=(f"{prefix}up_proj",)),
        Piece(part, hidden, inner, copies, modules=(f"{prefix}down_proj",)),
    ]


def _mamba2(text: Mapping[str, Any], hidden: int) -> list[Piece]:
    heads, dim = whole(text, "mamba_num_heads"), whole(text, "mamba_head_dim")
    state, groups = whole(text, "ssm_state_size"), whole(text, "n_groups") or 1
    if not heads or not dim or not state:
        raise Unknown("the sizes of its Mamba layers are missing")
    inner, convolved = heads * dim, heads * dim + 2 * groups * state
    bias = 1 if text.get("use_conv_bias") else 0
    return [
        Piece("attention", inner + convolved + heads, hidden, modules=("in_proj",)),
        Piece("attention", convolved, (whole(text, "conv_kernel") or 4) + bias, linear=False),
        Piece("attention", 3 * heads, 1, linear=False),
        norm(inner),
        Piece("attention", hidden, inner, modules=("out_proj",)),
    ]


def gemma4(text: Mapping[str, Any], hidden: int, vocabulary: int, count: int) -> list[Piece]:
    """Global layers have wider heads, fewer of them, and with `attention_k_eq_v` no value projection."""
    heads, groups, keys, _ = kv_geometry(text)
    if whole(text, "hidden_size_per_layer_input") or whole(text, "num_kv_shared_layers"):
        raise Unknown("its per-layer inputs are not modelled here")
    made = [Piece("embedding", vocabulary, hidden, linear=False), norm(hidden)]
    inner, experts = whole(text, "intermediate_size") or 0, whole(text, "num_experts") or 0
    width = whole(text, "moe_intermediate_size", "expert_intermediate_size") or 0
    for index, kind in enumerate(layer_kinds(text, count)):
        full = kind == "full"
        dim = (whole(text, "global_head_dim") or keys) if full else keys
        mine = (whole(text, "num_global_key_value_heads") or groups) if full else groups
        copies = 1 if full and text.get("attention_k_eq_v") else 2
        layer = [
            Piece("attention", heads * dim, hidden, modules=("self_attn.q_proj",)),
            Piece("attention", mine * dim, hidden, copies, modules=("self_attn.k_proj", "self_attn.v_proj")),
            Piece("attention", hidden, heads * dim, modules=("self_attn.o_proj",)),
            norm(2 * dim),
            norm(hidden, 4),
            norm(1),
            *gated("dense", inner, hidden, "mlp"),
        ]
        if text.get("enable_moe_block") and experts:
            layer += [
                Piece("router", experts, hidden, linear=False, split=False),
                norm(hidden, 4),
                norm(experts),
                *gated("expert", width, hidden, "experts.0", "moe.experts.0", copies=experts),
            ]
        made += within(f"model.layers.{index}", layer)
    return made
