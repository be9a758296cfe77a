"""How stored weights are packed, and how many bytes that makes of a model's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

from pydantic import BaseModel, ConfigDict

from chutes.model.attention import whole
from chutes.model.pieces import Piece

DTYPE_BYTES = {"float64": 8.0, "float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
_SCALE_BYTES = 4  # block and channel scales of FP8 checkpoints are float32


class Quantization(BaseModel):
    """How the stored weights are packed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    method: str
    """fp8, mxfp4, nvfp4, int4, int8, awq, gptq, bitsandbytes, ... in one word."""
    bits: float
    """Of the quantised tensors, scales not counted."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale, where that forbids some ways of cutting a matrix."""
    group: int = 0
    """Elements of a row that share a scale; 0: one scale for a row, or for all."""
    covers: str = "linear"
    """linear: every linear layer but head and router; feed-forward: those but attention's; experts: routed
    experts only; mixed: several formats, named tensor by tensor, so that only headers tell the size."""


def read(config: Mapping[str, Any]) -> Quantization | None:
    """What `quantization_config` says, or None when the weights are plain."""
    found = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(found, Mapping):
        return None
    method = str(found.get("quant_method") or found.get("quant_algo") or "").lower()
    if method in ("fp8", "fbgemm_fp8"):
        size = found.get("weight_block_size")
        block = (int(size[0]), int(size[1])) if isinstance(size, list) and len(size) == 2 else None
        return Quantization(method="fp8", bits=8, block=block)
    if method == "mxfp4":
        return Quantization(method="mxfp4", bits=4, group=32, covers="experts")
    if method in ("awq", "gptq", "auto-round", "awq_marlin", "gptq_marlin"):
        bits = whole(found, "bits", "w_bit") or 4
        return Quantization(method=method, bits=bits, group=whole(found, "group_size", "q_group_size") or 128)
    if method == "bitsandbytes":
        return Quantization(method=method, bits=4 if found.get("load_in_4bit") else 8, group=64)
    if method == "fp8_pb_wo":  # modelopt's name for DeepSeek's blocks
        return Quantization(method="fp8", bits=8, block=(128, 128))
    if method.startswith("modelopt") or method in ("nvfp4", "mixed_precision", "compressed-tensors"):
        return _by_groups(found)
    return Quantization(method=method or "unknown", bits=whole(found, "bits", "num_bits") or 8)


def _by_groups(found: Mapping[str, Any]) -> Quantization:
    """compressed-tensors and modelopt describe groups of layers, each with bits and group size."""
    groups = found.get("config_groups")
    every = [one.get("weights") or {} for one in groups.values()] if isinstance(groups, Mapping) else []
    if found.get("quantized_layers") or len({(one.get("num_bits"), one.get("type")) for one in every}) > 1:
        return Quantization(method="mixed", bits=4, covers="mixed")
    first = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = (first.get("weights") if isinstance(first, Mapping) else None) or found
    bits = whole(weights, "num_bits") or (4 if "FP4" in str(found.get("quant_algo")).upper() else 8)
    form = " ".join(
        str(v) for v in (found.get("format"), first.get("format"), found.get("quant_algo"))
    ).lower()
    floating = str(weights.get("type") or "").lower() == "float" or "fp" in form or "float" in form
    group = whole(weights, "group_size") or (16 if floating and bits == 4 else 0)
    covers = _covers(found)
    if floating and bits == 4:
        name = "mxfp4" if "mxfp4" in form or group == 32 else "nvfp4"
        return Quantization(method=name, bits=4, group=group, covers=covers)
    if floating:
        return Quantization(method="fp8", bits=8, covers=covers)
    return Quantization(method=f"int{bits}", bits=bits, group=group, covers=covers)


def _covers(found: Mapping[str, Any]) -> str:
    """From the names that are left out; exact only where whole kinds of layers are."""
    if found.get("targets") == "routed experts only":
        return "experts"
    ignored = " ".join(str(name) for name in found.get("ignore") or found.get("exclude_modules") or [])
    attention = "self_attn" in ignored or "attention" in ignored
    if attention and "shared_expert" in ignored:
        return "experts"
    return "feed-forward" if attention else "linear"


def is_quantised(piece: Piece, quantization: Quantization | None) -> bool:
    if quantization is None or not piece.linear or not piece.quantised:
        return False
    if quantization.covers == "experts":
        return piece.part == "expert"
    return quantization.covers != "feed-forward" or piece.part != "attention"


def piece_bytes(piece: Piece, quantization: Quantization | None, dtype_bytes: float) -> float:
    """Bytes of one piece as it is stored, with its scales."""
    count = piece.parameters
    if not is_quantised(piece, quantization):
        return count * (max(4.0, dtype_bytes) if piece.wide else dtype_bytes)
    assert quantization is not None
    data = count * quantization.bits / 8
    if quantization.block:
        return data + _scales(piece, quantization.block) * _SCALE_BYTES
    if quantization.group:
        return data + count / quantization.group * _group_scale_bytes(quantization)
    return data + piece.rows * piece.copies * _SCALE_BYTES


def _group_scale_bytes(quantization: Quantization) -> float:
    """One scale: 8 bits in the MX and NV formats, 16 in integer ones, and a zero point in AWQ and GPTQ."""
    if quantization.method in ("mxfp4", "nvfp4"):
        return 1.0
    zero = quantization.bits / 8 if quantization.method in ("awq", "gptq", "auto-round") else 0.0
    return 2.0 + zero


def total_bytes(pieces: Iterable[Piece], quantization: Quantization | None, dtype_bytes: float) -> int:
    return round(sum(piece_bytes(piece, quantization, dtype_bytes) for piece in pieces))


def _scales(piece: Piece, block: tuple[int, int]) -> int:
    """Scales of one block-quantised piece: one for every block, edges rounded up."""
    return ceil(piece.rows / block[0]) * ceil(piece.columns / block[1]) * piece.copies
