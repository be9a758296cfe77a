"""A known model with its weights packed smaller: what an FP8, AWQ or GPTQ checkpoint of it would take.

Arithmetic, not a look at such a checkpoint: linear layers shrink, embedding, head and what is not split stay
as they are. Published checkpoints differ by a few per cent in what they leave alone.
"""

from __future__ import annotations

import re

from chutes.model import catalogue
from chutes.model.facts import ModelFacts
from chutes.model.quantization import Quantization

_WAYS = {
    "fp8": Quantization(method="fp8", bits=8, block=(128, 128)),
    "awq": Quantization(method="awq", bits=4, group=128),
    "gptq": Quantization(method="gptq", bits=4, group=128),
    "gptq-int4": Quantization(method="gptq", bits=4, group=128),
    "gptq-int8": Quantization(method="gptq", bits=8, group=128),
}
# Of one element, scales and zero points included.
_BITS = {"fp8": 8 + 32 / 128**2, "awq": 4 + 20 / 128, "gptq-int8": 8 + 24 / 128}
_SUFFIX = re.compile(r"-(fp8|awq|gptq(?:-int[48])?)$", re.IGNORECASE)

_PLAIN_BITS = 16


def find(name: str) -> tuple[ModelFacts, str] | None:
    """(Facts, the model they were derived from) for a name like `Qwen/Qwen3-8B-FP8`."""
    suffix = _SUFFIX.search(name)
    base = catalogue.canonical(name[: suffix.start()]) if suffix else None
    facts = catalogue.find(base) if base else None
    if suffix is None or base is None or facts is None:
        return None
    packed = narrowed(facts, suffix[1].lower())
    return (packed, base) if packed is not None else None


def narrowed(facts: ModelFacts, way: str) -> ModelFacts | None:
    """The same model packed; None where it is packed already, or its parts are not known."""
    loaded, embedding = facts.loaded_bytes, facts.embedding_bytes
    if facts.quantization is not None or not loaded or not facts.layers_attention:
        return None
    if facts.dtype not in ("bfloat16", "float16") or embedding is None:
        return None
    packed = _WAYS[way]
    share = _BITS.get(way, _BITS["awq"]) / _PLAIN_BITS
    kept = (facts.replicated_bytes or 0) + embedding * (1 if facts.tied_embeddings else 2)
    now = round(kept + max(0, loaded - kept) * share)
    return facts.model_copy(
        update={
            "quantization": packed,
            "loaded_bytes": now,
            "weights_bytes": now,
            "expert_bytes": round((facts.expert_bytes or 0) * share),
            "bytes_source": f"{facts.bytes_source}, packed by arithmetic",
        }
    )
