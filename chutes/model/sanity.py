"""Numbers and words in a config.json that no model can mean: said before anything is computed with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from chutes.exception import ModelError

# Key and the most that is believed: some hundred times the largest model's. A slip beyond would otherwise
# become a list of a billion layers.
_MOST = {
    "num_hidden_layers": 10_000,
    "hidden_size": 1_000_000,
    "num_attention_heads": 100_000,
    "num_key_value_heads": 100_000,
    "head_dim": 100_000,
    "intermediate_size": 10_000_000,
    "moe_intermediate_size": 10_000_000,
    "vocab_size": 100_000_000,
    "num_experts": 100_000,
    "num_local_experts": 100_000,
    "n_routed_experts": 100_000,
    "num_experts_per_tok": 100_000,
    "kv_lora_rank": 1_000_000,
    "max_position_embeddings": 1_000_000_000,
}
# Without these there is no model; of the others some files have 0 or -1 for "none".
_ABOVE_ZERO = {"num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"}

_DTYPE = re.compile(
    r"(torch\.)?(auto|half|float|double|b?float\d+(_e\dm\d\w*)?|f(p|loat)?(4|8|16|32|64)(_\w+)?|bf16|u?int\d+|i\d+|u\d+)"
)


def check(config: Mapping[str, Any]) -> None:
    """Look at one level of a config.json.

    Raises:
        ModelError: naming the key and its value.
    """
    for key, most in _MOST.items():
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue  # absent, or a list with one number a layer
        if value > most or (key in _ABOVE_ZERO and value <= 0):
            raise ModelError(
                f"config.json says {key}={value}, which no model has.",
                "Mend the file, or fetch it again.",
            )
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        if isinstance(value, str) and value and not _DTYPE.fullmatch(value.lower()):
            raise ModelError(
                f"config.json says {key}={value!r}, a number format that is not known.",
                "Formats are bfloat16, float16, float32, float8_e4m3fn and the like.",
            )
