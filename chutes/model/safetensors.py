"""Reading the header of a safetensors file, and refusing one that the reference implementation would refuse.

Such a file begins with the length of its header (8 bytes, little endian), then that many bytes of JSON:
{tensor name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the data. A few kilobytes tell the size
of any model. Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from chutes.exception import ModelError

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation; real headers are below 10 MB

_AGAIN = "The file is damaged or incomplete: fetch it again."

# Bits of one element: safetensors 0.8, `Dtype::bitsize`.
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of one safetensors file; the data is not read.

    Raises:
        ModelError: the file has another length than its header says, or is not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ModelError(f"{path} has {size} bytes: no safetensors file is that short.", _AGAIN)
            (length,) = struct.unpack("<Q", prefix)
            # Checked before reading: eight wrong bytes would otherwise ask for exabytes of memory.
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ModelError(
                    f"{path} claims a header of {length} bytes and has {size} bytes in all.", _AGAIN
                )
            header = json.loads(file.read(length), object_pairs_hook=_without_repetition)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}.", "Check the path and its rights."
        ) from None
    except _Repeated as error:
        raise ModelError(f"The header of {path} names {error} twice.", _AGAIN) from None
    except ValueError:  # not JSON, or not even UTF-8
        raise ModelError(f"The header of {path} is not JSON.", _AGAIN) from None
    except RecursionError:
        raise ModelError(
            f"The header of {path} is nested deeper than any description of tensors.", _AGAIN
        ) from None
    check_header(header, str(path))
    end, follows = data_end(header), size - 8 - length
    if end != follows:
        wrong = "is cut off" if end > follows else "has data that no tensor describes"
        raise ModelError(
            f"{path} {wrong}: its tensors need {end} bytes and {follows} follow the header.", _AGAIN
        )
    return header


def check_header(header: Any, where: str) -> None:
    """Raise ModelError unless `header` describes tensors that fill the data without a gap."""
    if not isinstance(header, dict):
        raise ModelError(f"The header of {where} does not describe tensors.", _AGAIN)
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    for name, tensor in tensors.items():
        if wrong := _wrong(tensor):
            raise ModelError(f"The header of {where} does not describe tensors: {name!r} {wrong}.", _AGAIN)
    expected = 0
    for name in sorted(tensors, key=lambda name: tensors[name]["data_offsets"]):
        begin, end = tensors[name]["data_offsets"]
        if begin != expected:
            raise ModelError(
                f"The header of {where} leaves a gap or an overlap: {name!r} begins at byte {begin}, and the "
                f"tensor before it ends at {expected}.",
                _AGAIN,
            )
        expected = end


def data_end(header: Mapping[str, Any]) -> int:
    """Bytes of tensor data that `header` describes."""
    return max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)


def _wrong(tensor: Any) -> str:
    """What no tensor can be, as a clause; empty when nothing is wrong."""
    if not isinstance(tensor, dict):
        return "is not an object"
    dtype, shape, offsets = tensor.get("dtype"), tensor.get("shape"), tensor.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        return f"has dtype {_short(dtype)}, which safetensors does not know"
    if not _whole_numbers(shape):
        return f"has shape {_short(shape)}"
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"has data_offsets {_short(offsets)}"
    size = -(-prod(shape) * _BITS[dtype] // 8)
    if offsets[1] - offsets[0] != size:
        return f"of {dtype} {_short(shape)} needs {_short(size)} bytes and has {offsets[1] - offsets[0]}"
    return ""


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**63 for one in value)


def _short(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, int) and value > 10**15 else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class _Repeated(Exception):
    pass


def _without_repetition(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Repeated(repr(name))
        found[name] = value
    return found
