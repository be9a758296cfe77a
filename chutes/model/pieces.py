"""One kind of tensor of a model: its shape, how many there are, and what an engine may do with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
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
    modules: tuple[str, ...] = ()
    """Names that checkpoints have for it, by which lists of what is not quantised call it: one for each
    matrix counted here together, or one for each spelling. Of experts the first stands for all."""

    @property
    def parameters(self) -> int:
        return self.rows * self.columns * self.copies


def norm(size: int, copies: int = 1, *, mtp: bool = False) -> Piece:
    return Piece("norm", size, 1, copies, linear=False, split=False, mtp=mtp)


def within(prefix: str, pieces: Iterable[Piece], *, mtp: bool = False) -> list[Piece]:
    """The pieces of one layer, their names completed with the layer's."""
    return [
        replace(piece, modules=tuple([f"{prefix}.{name}" for name in piece.modules]), mtp=mtp)
        if piece.modules or piece.mtp != mtp
        else piece
        for piece in pieces
    ]


def gated(part: Part, inner: int, hidden: int, *names: str, copies: int = 1) -> list[Piece]:
    """A feed-forward layer with a gate: two matrices in, one out."""
    return [
        Piece(part, inner, hidden, 2 * copies, modules=_each(names, "gate_proj", "up_proj")),
        Piece(part, hidden, inner, copies, modules=_each(names, "down_proj")),
    ]


def _each(parents: tuple[str, ...], *names: str) -> tuple[str, ...]:
    return tuple(f"{parent}.{name}" for parent in parents for name in names)
