"""One kind of tensor of a model: its shape, how many there are, and what an engine may do with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["embedding", "head", "attention", "dense", "expert", "shared", "router", "norm"]


@dataclass(frozen=True)
class Piece:
    """`copies` equal tensors."""

    part: Part
    rows: int
    columns: int
    copies: int = 1
    linear: bool = True
    """A matrix of a linear layer: what quantisation covers."""
    split: bool = True
    """Tensor parallelism cuts it; otherwise every rank holds it whole."""
    mtp: bool = False
    """Of a layer for speculative decoding: stored, and not loaded by default."""
    quantised: bool = True
    wide: bool = False
    """Kept in float32 whatever the model's dtype."""

    @property
    def parameters(self) -> int:
        return self.rows * self.columns * self.copies


def norm(size: int, copies: int = 1, *, mtp: bool = False) -> Piece:
    return Piece("norm", size, 1, copies, linear=False, split=False, mtp=mtp)
