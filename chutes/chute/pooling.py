"""How an embedding model makes one vector of a text, guessed from its name."""

from __future__ import annotations

import re

_BY_NAME = (
    # Decoders: the last token has seen all of the text. Model cards of e5-mistral-7b-instruct,
    # bge-multilingual-gemma2, bge-en-icl, gte-Qwen2 and Qwen3-Embedding.
    (r"e5-mistral|bge-multilingual-gemma|bge-en-icl|qwen.*embedding|gte-qwen", "LAST"),
    # Alibaba-NLP/gte-{base,large}-en-v1.5, gte-multilingual-base, gte-modernbert-base.
    (r"gte-.*-v1\.5|gte-multilingual|gte-modernbert", "CLS"),
    (r"bge-", "CLS"),
)


def get_optimal_pooling_type(model_name: str) -> str:
    """`CLS`, `LAST` or `MEAN`, as the makers of a family say; `MEAN` of one that is not known.

    Only a guess: a model's own `1_Pooling/config.json`, where it ships one, is better and counts. The
    published table is the same but for `gte-` (all LAST there), e5-mistral (MEAN) and the bge models made
    of a decoder (CLS), which it has wrong.
    """
    name = model_name.lower()
    return next((kind for pattern, kind in _BY_NAME if re.search(pattern, name)), "MEAN")
