"""What each layer of a model keeps of the tokens it has seen, as an engine's KV cache counts it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["full", "mla", "sliding", "chunked", "linear"]


class LayerAttention(BaseModel):
    """One layer's memory of a request. Sizes are of the whole model, before any parallelism."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Kind
    kv_heads: int = 0
    """Key-value heads; 1 for MLA, whose latent is shared by all heads; 0 for linear attention."""
    head_dim_k: int = 0
    """Elements a token and head of keys; for MLA the latent with its rotary part."""
    head_dim_v: int = 0
    """The same of values; 0 for MLA, which keeps no values beside the latent."""
    window: int = 0
    """Tokens that a sliding layer sees, or tokens of one chunk; 0 for the other kinds."""
    index_dim: int = 0
    """Elements a token of a sparse-attention indexer's key (DeepSeek V3.2), kept in 8 bits."""
    conv_elements: int = 0
    """Linear attention: elements of the convolution's state of one request, in the model's dtype."""
    state_elements: int = 0
    """Linear attention: elements of the recurrent state of one request."""
    state_bytes: int = 0
    """Linear attention: bytes an element of the recurrent state; 0: as in the model's dtype."""
