"""How stored weights are packed, and how many bytes that makes of a model's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

from pydantic import BaseModel, ConfigDict

from chutes.exception import ModelError
from chutes.model.pieces import Piece

DTYPE_BYTES = {"float64": 8.0, "float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
_SCALE_BYTES = 4  # block and channel scales of FP8 checkpoints are float32

_MOST_GROUP = 1_000_000  # elements; more than any matrix has in a row

_BITS = (2, 3, 4, 5, 6, 8, 16)


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
    """In one word; which tensors exactly, `exclusions.marked` says. linear: every linear layer but head and
    router; feed-forward: those but attention's; experts: routed experts only; mixed: several formats, named
    tensor by tensor; unknown: a method that is not known here. Of the last two only headers tell the size."""

    @property
    def unsized(self) -> str:
        """Why bytes cannot be worked out from config.json, as a clause; empty when they can."""
        if self.covers == "mixed":
            return "its quantisation mixes several formats, tensor by tensor"
        if self.covers == "unknown":
            return f"its quantisation {self.method!r} is not known here"
        return ""


def read(config: Mapping[str, Any]) -> Quantization | None:
    """What `quantization_config` says, or None when the weights are plain.

    Raises:
        ModelError: a number in it cannot be meant.
    """
    found = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(found, Mapping):
        return None
    method = str(found.get("quant_method") or found.get("quant_algo") or "").lower()
    if method in ("fp8", "fbgemm_fp8"):
        if found.get("quantized_layers"):
            return Quantization(method="mixed", bits=4, covers="mixed")
        return Quantization(method="fp8", bits=8, block=_block(found))
    if method == "mxfp4":
        return Quantization(method="mxfp4", bits=4, group=32, covers="experts")
    if method in ("awq", "gptq", "auto-round", "awq_marlin", "gptq_marlin"):
        bits = _bits(found, "bits", "w_bit") or 4
        return Quantization(method=method, bits=bits, group=_group(found, "group_size", "q_group_size", 128))
    if method == "bitsandbytes":
        return Quantization(method=method, bits=4 if found.get("load_in_4bit") else 8, group=64)
    if method == "compressed-tensors" or method.startswith("modelopt") or found.get("quant_algo"):
        return _by_groups(found)
    return Quantization(method=method or "without a name", bits=8, covers="unknown")


def _by_groups(found: Mapping[str, Any]) -> Quantization:
    """compressed-tensors and modelopt describe groups of layers, each with bits and group size."""
    groups = found.get("config_groups")
    every = [one.get("weights") or {} for one in groups.values()] if isinstance(groups, Mapping) else []
    if found.get("quantized_layers") or len({(one.get("num_bits"), one.get("type")) for one in every}) > 1:
        return Quantization(method="mixed", bits=4, covers="mixed")
    first = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = (first.get("weights") if isinstance(first, Mapping) else None) or found
    algorithm = str(found.get("quant_algo") or "").upper()
    if algorithm.startswith("FP8_PB"):  # modelopt's name for DeepSeek's blocks
        return Quantization(method="fp8", bits=8, block=(128, 128))
    bits = _bits(weights, "num_bits") or _bits_of_algorithm(algorithm)
    if bits is None:
        return Quantization(method=algorithm.lower() or "without bits", bits=8, covers="unknown")
    form = " ".join(str(v) for v in (found.get("format"), first.get("format"), algorithm)).lower()
    floating = str(weights.get("type") or "").lower() == "float" or "fp" in form or "float" in form
    group = _group(weights, "group_size", "group_size", 16 if floating and bits == 4 else 0)
    covers = _covers(found)
    if floating and bits == 4:
        name = "mxfp4" if "mxfp4" in form or group == 32 else "nvfp4"
        return Quantization(method=name, bits=4, group=group, covers=covers)
    if floating:
        return Quantization(method="fp8", bits=8, covers=covers)
    return Quantization(method=f"int{bits}", bits=bits, group=group, covers=covers)


def _bits_of_algorithm(name: str) -> int | None:
    """modelopt's `quant_algo`: NVFP4, FP8, W4A16_AWQ, W8A8_SQ_PER_CHANNEL, INT4_AWQ, ..."""
    if "FP4" in name or name.startswith(("W4", "INT4")):
        return 4
    return 8 if name.startswith(("FP8", "MXFP8", "W8", "INT8")) else None


def _covers(found: Mapping[str, Any]) -> str:
    """From the names that are left out, roughly."""
    if found.get("targets") == "routed experts only":
        return "experts"
    ignored = " ".join(str(name) for name in found.get("ignore") or found.get("exclude_modules") or [])
    attention = "self_attn" in ignored or "attention" in ignored
    if attention and "shared_expert" in ignored:
        return "experts"
    return "feed-forward" if attention else "linear"


def _bits(found: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        if (value := found.get(name)) is not None:
            if type(value) is not int or value not in _BITS:
                raise _absurd(name, value, f"one of {', '.join(map(str, _BITS))}")
            return value
    return None


def _group(found: Mapping[str, Any], name: str, other: str, default: int) -> int:
    """0 where there is one scale a row, which checkpoints write as -1."""
    name = name if found.get(name) is not None else other
    value = found.get(name)
    if value is None:
        return default
    if type(value) is not int or not (value == -1 or 0 <= value <= _MOST_GROUP):
        raise _absurd(name, value, "elements that share a scale, or -1 for a whole row")
    return max(value, 0)


def _block(found: Mapping[str, Any]) -> tuple[int, int] | None:
    size = found.get("weight_block_size")
    if size is None:
        return None
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(one) is int and 0 < one <= _MOST_GROUP for one in size)
    ):
        raise _absurd("weight_block_size", size, "two numbers above zero, such as [128, 128]")
    return size[0], size[1]


def _absurd(name: str, value: object, meant: str) -> ModelError:
    return ModelError(
        f"config.json says quantization_config.{name}={value!r}; it must be {meant}.",
        "Mend the file, or fetch it again.",
    )


def is_quantised(piece: Piece, quantization: Quantization | None) -> bool:
    return quantization is not None and piece.linear and piece.quantised


def piece_bytes(piece: Piece, quantization: Quantization | None, dtype_bytes: float) -> float:
    """Bytes of one piece as it is stored, with its scales."""
    count = piece.parameters
    if quantization is None or not is_quantised(piece, quantization):
        return count * (max(4.0, dtype_bytes) if piece.wide else dtype_bytes)
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
