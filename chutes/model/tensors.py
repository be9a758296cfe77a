"""Counting the tensors of safetensors headers, sorted by what an engine does with them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chutes.model.facts import ModelFacts

FROM_HEADERS = "safetensors headers"

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
}

# Names as the checkpoints on the hub use them.
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_MTP = re.compile(r"(?:^|\.)(?:mtp|mtp_layers|nextn)(?:\.|_)")
_SCALE = re.compile(r"(?:_scale|_scale_inv|_scales|_scale_2|scales|qzeros|g_idx|weight_shape)$")
_EXPERT = re.compile(r"\.experts\.")
_EMBEDDING = re.compile(r"(?:embed_tokens|wte|word_embeddings|tok_embeddings)\.weight$")
_HEAD = re.compile(r"(?:lm_head|output)\.weight$")
_WHOLE = re.compile(r"(?:\.gate\.|router|q_a_proj|kv_a_proj|indexer|layernorm|norm\.)")
"""What every tensor-parallel rank holds whole."""


class Tensors:
    """Sums over all files of a model. `layers`: how many its config.json counts, 0 if it does not say."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.elements = self.loaded_elements = 0
        self.loaded = self.replicated = self.expert = self.embedding = self.expert_elements = 0
        self.embedding_elements = 0
        self.head = False
        self.size = Counter[str]()

    def add(self, header: Mapping[str, Any]) -> None:
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                self._one(name, tensor["dtype"], tensor["shape"], end - begin)

    def _one(self, name: str, dtype: str, shape: list[int], size: int) -> None:
        self.size[dtype] += size
        count = 0 if _SCALE.search(name) else prod(shape)
        self.elements += count
        if self._only_for_speculation(name):
            return
        self.loaded += size
        self.loaded_elements += count
        if _EXPERT.search(name):
            self.expert += size
            self.expert_elements += count
        elif _EMBEDDING.search(name):
            self.embedding += size
            self.embedding_elements += count
        elif _HEAD.search(name):
            self.head = True
        elif len(shape) < 2 or _WHOLE.search(name):
            self.replicated += size

    def _only_for_speculation(self, name: str) -> bool:
        """MTP layers follow the counted ones (DeepSeek, GLM) or have a name of their own (Qwen, MiMo)."""
        if "vision" in name or "visual" in name or "audio" in name:
            return False
        found = _LAYER.search(name)
        return bool(_MTP.search(name) or (self.layers and found and int(found[1]) >= self.layers))

    def update(self, facts: ModelFacts) -> dict[str, Any]:
        """The fields of `facts` that the headers settle; none when there was no tensor."""
        if not self.size:
            return {}
        # Two values or more in one stored integer: config.json knows better how many they are.
        how = facts.quantization
        packed = how is not None and (how.bits < 8 or how.covers == "unknown") and facts.parameters
        share = facts.experts.per_token / facts.experts.count if facts.experts else 0.0
        read_once = 0 if not self.head else self.embedding_elements
        most = self.size.most_common(1)[0][0]
        update: dict[str, Any] = {
            "weights_bytes": self.size.total(),
            "dtype": _DTYPES.get(most, most.lower()),
            "loaded_bytes": self.loaded,
            "replicated_bytes": self.replicated,
            "expert_bytes": self.expert,
            "embedding_bytes": self.embedding,
            "tied_embeddings": not self.head,
            "bytes_source": FROM_HEADERS,
        }
        if not packed:
            update |= {
                "parameters": self.elements,
                "loaded_parameters": self.loaded_elements,
                "active_parameters": round(
                    self.loaded_elements - read_once - self.expert_elements * (1 - share)
                ),
            }
        return update
