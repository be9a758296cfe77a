"""How many parameters a config.json means, tensor by tensor, for the layouts that are known.

Counted from the models' own code; checked against published sizes in tests/unit/test_catalogue.py, and
against what transformers builds in tests/unit/test_model_counts.py. Where safetensors headers can be read
they are better: a checkpoint may hold what its config does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chutes.model import parameters_hybrid
from chutes.model.attention import Unknown, kv_geometry, layer_kinds, whole
from chutes.model.pieces import Piece, gated, norm, within


def pieces(text: Mapping[str, Any]) -> list[Piece]:
    """Every tensor of the language model.

    Raises:
        Unknown: the layout of this architecture is not known here.
    """
    kind = str(text.get("model_type") or "")
    hidden, vocabulary = whole(text, "hidden_size"), whole(text, "vocab_size")
    count = whole(text, "num_hidden_layers") or len(text.get("layers_block_type") or "")
    if not hidden or not vocabulary or not count:
        raise Unknown("hidden_size, vocab_size or num_hidden_layers is missing")
    if kind == "nemotron_h":
        return parameters_hybrid.nemotron_h(text, hidden, vocabulary)
    if kind == "gemma4_text":
        return parameters_hybrid.gemma4(text, hidden, vocabulary, count)
    if kind in _BERTS:
        return _bert(text, hidden, vocabulary, count)
    family = _FAMILIES.get(kind)
    if family is None:
        raise Unknown(f"the tensors of model_type {kind or '(none)'} are not known here")
    made = [Piece("embedding", vocabulary, hidden, linear=False), norm(hidden)]
    if not text.get("tie_word_embeddings", family.tied):
        made.append(Piece("head", vocabulary, hidden, linear=False))
    kinds = layer_kinds(text, count) if not text.get("kv_lora_rank") else ["mla"] * count
    for index in range(count):
        made += within(f"model.layers.{index}", _layer(text, family, hidden, kinds[index], index))
    made += _mtp(text, family, hidden, vocabulary, count)
    return made


@dataclass(frozen=True)
class _Family:
    """How one model_type differs from Llama."""

    query_key_norm: Literal["", "head", "all"] = ""
    """A norm on queries and keys: over one head, or over all of them."""
    bias: Literal["", "qkv", "qkvo"] = ""
    norms: int = 2
    tied: bool = False
    sinks: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    shared_gate: bool = False
    gated_query: bool = False
    first_dense: int = 0
    mtp: Literal["", "deepseek", "glm", "qwen_next"] = ""
    """Which extra layer is stored for speculative decoding."""
    feed_forward: str = "mlp"
    """What checkpoints call it."""


_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(),
    "mixtral": _Family(feed_forward="block_sparse_moe"),
    "phi3": _Family(),  # its fused matrices have the same elements
    "qwen2": _Family(bias="qkv"),
    "qwen3": _Family(query_key_norm="head"),
    "qwen3_moe": _Family(query_key_norm="head"),
    "gemma3_text": _Family(query_key_norm="head", norms=4, tied=True),
    "gpt_oss": _Family(bias="qkvo", sinks=True, router_bias=True, expert_bias=True),
    "minimax_m2": _Family(query_key_norm="all", router_bias=True, feed_forward="block_sparse_moe"),
    "glm4_moe": _Family(query_key_norm="head", router_bias=True, mtp="glm"),
    "deepseek_v3": _Family(router_bias=True, mtp="deepseek"),
    "deepseek_v32": _Family(router_bias=True, mtp="deepseek"),
    "kimi_k2": _Family(router_bias=True, mtp="deepseek"),
    "mimo_v2_flash": _Family(router_bias=True, sinks=True, first_dense=1),
    "llama4_text": _Family(feed_forward="feed_forward"),
    "qwen3_next": _Family(query_key_norm="head", gated_query=True, shared_gate=True, mtp="qwen_next"),
    # The language models of these have the layers of the ones above.
    "qwen3_vl_text": _Family(query_key_norm="head"),
    "qwen3_vl_moe_text": _Family(query_key_norm="head"),
    "qwen3_5_text": _Family(query_key_norm="head", gated_query=True, mtp="qwen_next"),
    "qwen3_5_moe_text": _Family(query_key_norm="head", gated_query=True, shared_gate=True, mtp="qwen_next"),
    "glm_moe_dsa": _Family(router_bias=True, mtp="glm"),
    "mimo": _Family(bias="qkv", mtp="glm"),
}


KNOWN = frozenset(_FAMILIES)
"""model_type of every layout that is counted here."""


_BERTS = {"bert", "roberta", "xlm-roberta"}


def _bert(text: Mapping[str, Any], hidden: int, vocabulary: int, count: int) -> list[Piece]:
    """Google's BERT and what has its layers: biases everywhere, no gate, a pooler on top; transformers'
    `modeling_bert.py`."""
    inner = whole(text, "intermediate_size") or 4 * hidden
    rows = vocabulary + (whole(text, "max_position_embeddings") or 0) + (whole(text, "type_vocab_size") or 2)
    made = [Piece("embedding", rows, hidden, linear=False), norm(hidden, 2)]
    for _ in range(count):
        made += [
            Piece("attention", 4 * hidden, hidden),
            Piece("dense", 2 * inner, hidden),
            Piece("norm", 5 * hidden + inner, 1, linear=False, split=False),  # the biases of these six
            norm(hidden, 4),
        ]
    return [*made, Piece("dense", hidden, hidden), norm(hidden)]


def _layer(text: Mapping[str, Any], family: _Family, hidden: int, kind: str, index: int) -> list[Piece]:
    if kind == "mla":
        attention = _mla(text, hidden, index)
    elif kind == "linear":
        attention = within("linear_attn", _delta_net(text, hidden))
    else:
        attention = _attention(text, family, hidden, kind)
    return [*attention, *_feed_forward(text, family, hidden, index), norm(hidden, family.norms)]


def _attention(text: Mapping[str, Any], family: _Family, hidden: int, kind: str) -> list[Piece]:
    heads, groups, keys, values = kv_geometry(text)
    if kind == "sliding":
        heads = whole(text, "swa_num_attention_heads") or heads
        groups = whole(text, "swa_num_key_value_heads") or groups
        keys = whole(text, "swa_head_dim") or keys
        values = whole(text, "swa_v_head_dim") or values
    queries = heads * keys * (2 if family.gated_query else 1)
    # MiMo V2's own config excludes the output projection from quantisation (assumed of its checkpoint).
    plain_output = str(text.get("model_type")) == "mimo_v2_flash"
    made = [
        Piece("attention", queries, hidden, modules=("self_attn.q_proj",)),
        Piece("attention", groups * keys, hidden, modules=("self_attn.k_proj",)),
        Piece("attention", groups * values, hidden, modules=("self_attn.v_proj",)),
        Piece("attention", hidden, heads * values, quantised=not plain_output, modules=("self_attn.o_proj",)),
    ]
    bias = family.bias or ("qkv" if text.get("attention_bias") else "")
    if bias:
        made.append(Piece("attention", queries + groups * (keys + values), 1, linear=False))
    if bias == "qkvo":
        made.append(Piece("attention", hidden, 1, linear=False, split=False))
    if family.query_key_norm == "head":
        made.append(norm(2 * keys))
    elif family.query_key_norm == "all":
        made.append(norm((heads + groups) * keys))
    if family.sinks and (kind == "sliding" or str(text.get("model_type")) == "gpt_oss"):
        made.append(Piece("attention", heads, 1, linear=False))
    return made


def _mla(text: Mapping[str, Any], hidden: int, index: int) -> list[Piece]:
    """Multi-head latent attention: DeepSeek V2 paper, section 2.1; vLLM deepseek_v2.py."""
    names = ("num_attention_heads", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    fields = [whole(text, name) for name in names]
    if any(field is None for field in fields):
        raise Unknown(f"MLA needs all of {', '.join(names)}")
    heads, latent, rope, nope, value = (field or 0 for field in fields)
    query = whole(text, "q_lora_rank")
    made = [
        Piece("attention", latent + rope, hidden, split=False, modules=("kv_a_proj_with_mqa",)),
        norm(latent),
        Piece("attention", heads * (nope + value), latent, modules=("kv_b_proj",)),
        Piece("attention", hidden, heads * value, modules=("o_proj",)),
    ]
    if query:
        made += [
            Piece("attention", query, hidden, split=False, modules=("q_a_proj",)),
            norm(query),
            Piece("attention", heads * (nope + rope), query, modules=("q_b_proj",)),
        ]
    else:
        made.append(Piece("attention", heads * (nope + rope), hidden, modules=("q_proj",)))
    # GLM-5.2: "shared" layers reuse an earlier layer's choice and have no indexer; its MTP layer has one.
    owners = text.get("indexer_types") or []
    if index >= len(owners) or owners[index] == "full":
        made += _indexer(text, hidden, query or hidden)
    return within("self_attn", made)


def _indexer(text: Mapping[str, Any], hidden: int, query: int) -> list[Piece]:
    """The sparse indexer of DeepSeek V3.2, whole on every rank."""
    dim, count = whole(text, "index_head_dim"), whole(text, "index_n_heads")
    if not dim or not count:
        return []
    return [
        Piece("attention", count * dim, query, split=False, modules=("indexer.wq_b",)),
        Piece("attention", dim, hidden, split=False, modules=("indexer.wk",)),
        Piece("attention", count, hidden, split=False, quantised=False),
        Piece("norm", 2 * dim, 1, linear=False, split=False, wide=True),
    ]


def _delta_net(text: Mapping[str, Any], hidden: int) -> list[Piece]:
    """Gated delta net: transformers qwen3_next, `Qwen3NextGatedDeltaNet`."""
    k_heads, v_heads = text["linear_num_key_heads"], text["linear_num_value_heads"]
    keys, values = k_heads * text["linear_key_head_dim"], v_heads * text["linear_value_head_dim"]
    convolved = 2 * keys + values
    return [
        Piece("attention", convolved + values, hidden, modules=("in_proj_qkvz", "in_proj_qkv", "in_proj_z")),
        Piece("attention", 2 * v_heads, hidden, modules=("in_proj_ba", "in_proj_b", "in_proj_a")),
        Piece("attention", convolved, text["linear_conv_kernel_dim"], linear=False),
        Piece("attention", 2 * v_heads, 1, linear=False),
        norm(text["linear_value_head_dim"]),
        Piece("attention", hidden, values, modules=("out_proj",)),
    ]


def _feed_forward(text: Mapping[str, Any], family: _Family, hidden: int, index: int) -> list[Piece]:
    count = expert_count(text)
    dense = whole(text, "intermediate_size_mlp" if "intermediate_size_mlp" in text else "intermediate_size")
    # Llama 4 Maverick: experts in every second layer.
    skipped = (index + 1) % (whole(text, "interleave_moe_layer_step") or 1)
    if not count or skipped or index < (whole(text, "first_k_dense_replace") or family.first_dense):
        if not dense:
            raise Unknown("intermediate_size is missing")
        return gated("dense", dense, hidden, family.feed_forward)
    inner = whole(text, "moe_intermediate_size") or whole(text, "intermediate_size")
    if not inner:
        raise Unknown("moe_intermediate_size is missing")
    made = [
        Piece("router", count, hidden, linear=False, split=False),
        *gated("expert", inner, hidden, f"{family.feed_forward}.experts.0", copies=count),
    ]
    if family.router_bias:
        made.append(Piece("router", count, 1, linear=False, split=False, wide=not family.expert_bias))
    if family.expert_bias:
        made.append(Piece("expert", 2 * inner + hidden, 1, count, linear=False))
    if shared := shared_width(text, inner):
        names = ("shared_experts", "shared_expert")
        made += gated("shared", shared, hidden, *(f"{family.feed_forward}.{name}" for name in names))
        if family.shared_gate:
            made.append(Piece("router", hidden, 1, linear=False, split=False))
    return made


def _mtp(text: Mapping[str, Any], family: _Family, hidden: int, vocabulary: int, count: int) -> list[Piece]:
    """The layers that only speculative decoding uses; vLLM deepseek_mtp.py, qwen3_5_mtp.py, mimo_mtp.py."""
    if not family.mtp:
        return []
    kind = "mla" if text.get("kv_lora_rank") else "full"
    # Joins the last hidden state and the next token's embedding, both with a norm; a third one at the end.
    join = [Piece("dense", hidden, 2 * hidden, mtp=True, quantised=False), norm(hidden, 3, mtp=True)]
    made: list[Piece] = []
    if family.mtp == "qwen_next":
        extra = text.get("mtp_num_hidden_layers", 1)
        for index in range(extra if isinstance(extra, int) else 0):
            made += within(f"mtp.layers.{index}", _layer(text, family, hidden, kind, count), mtp=True)
        if text.get("mtp_use_dedicated_embeddings"):
            join.append(Piece("embedding", vocabulary, hidden, linear=False, mtp=True))
        return [*made, *join] if made else []
    for index in range(count, count + (whole(text, "num_nextn_predict_layers") or 0)):
        layer = _layer(text, family, hidden, kind, index)
        made += [*within(f"model.layers.{index}", layer, mtp=True), *join]
        if family.mtp == "deepseek":
            made.append(Piece("embedding", vocabulary, hidden, 2, linear=False, mtp=True))
    return made


def expert_count(text: Mapping[str, Any]) -> int:
    return whole(text, "num_experts", "n_routed_experts", "num_local_experts") or 0


def shared_width(text: Mapping[str, Any], inner: int) -> int:
    """Intermediate size of the experts that every token passes; 0 where there are none."""
    if str(text.get("model_type")) == "llama4_text":
        return inner  # one shared expert in every layer
    if own := whole(text, "moe_shared_expert_intermediate_size"):  # Nemotron-H
        return own * (whole(text, "n_shared_experts") or 1)
    return whole(text, "shared_expert_intermediate_size") or inner * (whole(text, "n_shared_experts") or 0)
