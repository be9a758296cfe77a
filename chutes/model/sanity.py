"""Numbers and words in a config.json that no model can mean: said before anything is computed with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chutes.exception import ModelError

# Key, the least and the most that is believed; the most is some hundred times the largest model's. A slip
# beyond would otherwise become a list of a billion layers. The least is 0 where files write 0 for "none".
_RANGES = {
    "num_hidden_layers": (1, 10_000),
    "hidden_size": (1, 1_000_000),
    "num_attention_heads": (1, 100_000),
    "num_key_value_heads": (1, 100_000),
    "head_dim": (1, 100_000),
    "vocab_size": (1, 100_000_000),
    "max_position_embeddings": (1, 1_000_000_000),
    # The same in older files.
    "n_layer": (1, 10_000),
    "n_head": (1, 100_000),
    "n_embd": (1, 1_000_000),
    "d_model": (1, 1_000_000),
    "n_positions": (1, 1_000_000_000),
    "max_sequence_length": (1, 1_000_000_000),
    "num_kv_heads": (1, 100_000),
    "num_query_groups": (1, 100_000),
    "multi_query_group_num": (1, 100_000),
    "intermediate_size": (0, 10_000_000),
    "moe_intermediate_size": (0, 10_000_000),
    "num_experts": (0, 100_000),
    "num_local_experts": (0, 100_000),
    "n_routed_experts": (0, 100_000),
    "num_experts_per_tok": (0, 100_000),
    "n_shared_experts": (0, 100_000),
    "shared_expert_intermediate_size": (0, 10_000_000),
    "first_k_dense_replace": (0, 10_000),
    "sliding_window": (0, 1_000_000_000),
    "attention_chunk_size": (0, 1_000_000_000),
    "kv_lora_rank": (0, 1_000_000),
    "q_lora_rank": (0, 1_000_000),
    "qk_rope_head_dim": (0, 100_000),
    "qk_nope_head_dim": (0, 100_000),
    "v_head_dim": (0, 100_000),
    "num_nextn_predict_layers": (0, 100),
    "mtp_num_hidden_layers": (0, 100),
}
# Others may be a list, with one number a layer.
_NEVER_A_LIST = {"num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings"}

_DTYPES = {
    *("auto", "half", "float", "double", "bfloat16", "float16", "float32", "float64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int8", "uint8"),
}

_MEND = "Mend the file, or fetch it again."


def check(config: Mapping[str, Any]) -> None:
    """Look at one level of a config.json.

    Raises:
        ModelError: naming the key and its value.
    """
    for key, (least, most) in _RANGES.items():
        _check_number(key, config.get(key), least, most)
    _check_heads(config.get("num_attention_heads"), config.get("num_key_value_heads"))
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        known = isinstance(value, str) and value.lower().removeprefix("torch.") in _DTYPES
        if value is not None and value != "" and not known:
            raise ModelError(
                f"config.json says {key}={_short(value)}, a number format that is not known.",
                f"Formats are {', '.join(sorted(_DTYPES))}.",
            )


def _check_number(key: str, value: object, least: int, most: int) -> None:
    if value is None or (isinstance(value, list) and key not in _NEVER_A_LIST):
        return
    if type(value) is not int:
        raise ModelError(
            f"config.json says {key}={_short(value)}, {_KINDS.get(type(value), 'no number')}; "
            "it must be a whole number.",
            _MEND,
        )
    if not least <= value <= most:
        raise ModelError(
            f"config.json says {key}={_short(value)}, which no model has.",
            f"It must be from {least} to {most}. {_MEND}",
        )


_KINDS = {
    str: "a text",
    float: "a number with a decimal point",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _check_heads(heads: object, groups: object) -> None:
    """Every key-value head serves as many attention heads."""
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise ModelError(
            f"config.json says num_attention_heads={heads} and num_key_value_heads={groups}, which does not "
            "divide it.",
            _MEND,
        )


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
