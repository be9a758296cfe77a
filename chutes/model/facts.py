"""Facts of a model that decide where it fits and how it is served: from config.json and safetensors headers.

A safetensors file begins with the length of its header (8 bytes, little endian), then that many bytes of
JSON: {tensor name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the data. A few kilobytes tell the
size of any model. Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from chutes.exception import ModelError
from chutes.model.attention import LayerAttention

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation; real headers are below 10 MB

_AGAIN = "The file is damaged or incomplete: fetch it again."

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


class Experts(BaseModel):
    """Mixture-of-experts layers."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    count: int
    per_token: int
    intermediate: int
    shared: int = 0
    """Experts that every token passes."""
    layers: int = 0
    """Layers that have experts."""


class Quantization(BaseModel):
    """How the stored weights are packed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    method: str
    """fp8, mxfp4, nvfp4, int4, awq, gptq, ... in one word."""
    bits: float
    """Of the quantised tensors, scales not counted."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale, where that forbids some ways of cutting a matrix."""
    covers: str = "linear"
    """linear: all linear layers but head, router and what config.json excludes; experts: only routed experts."""


class ModelFacts(BaseModel):
    """What is known of a model. None where its files do not say.

    `parameters` counts the elements that are stored: of 4-bit formats that pack two values or more into
    one integer it sees the integers. `weights_bytes` is exact for every format.
    """

    model_config = ConfigDict(extra="ignore")

    architecture: str = ""
    """As engines know it, e.g. `LlamaForCausalLM`."""
    model_type: str = ""
    parameters: int | None = None
    weights_bytes: int | None = None
    """Bytes of tensor data on disk, without headers."""
    dtype: str = ""
    """Of most bytes of the weights when headers were read, else what config.json says."""
    layers: int | None = None
    hidden_size: int | None = None
    attention_heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    max_model_len: int | None = None
    """Positions that the model was made for, in tokens."""
    intermediate_size: int | None = None
    """Of the dense feed-forward layers."""
    tied_embeddings: bool = False
    """Whether the output head is the embedding, stored once."""
    attention: str = ""
    """In one word: mha, gqa, mqa, mla, sliding, chunked, linear, hybrid-sliding, hybrid-chunked, hybrid-linear, encoder, none."""
    layers_attention: tuple[LayerAttention, ...] = ()
    """One entry for every layer that keeps something of a request; empty where there is no KV cache."""
    experts: Experts | None = None
    quantization: Quantization | None = None
    loaded_parameters: int | None = None
    """What an engine loads: layers for speculative decoding (MTP) are stored and not loaded."""
    loaded_bytes: int | None = None
    replicated_bytes: int | None = None
    """Of the loaded bytes, those that every tensor-parallel rank holds whole (norms, routers, MLA down projections)."""
    expert_bytes: int | None = None
    """Of the loaded bytes, those of routed experts."""
    embedding_bytes: int | None = None
    """Bytes of the embedding alone; the head has as many unless `tied_embeddings`."""
    active_parameters: int | None = None
    """Parameters that one token passes through (all of them in a dense model; the embedding is not counted)."""
    vision: bool = False
    audio: bool = False
    bytes_source: str = ""
    """Where parameters and bytes come from: `safetensors headers`, `catalogue`, `config.json` (arithmetic)."""
    problem: str = ""
    """Why the KV cache of this model cannot be planned; empty when it can."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelFacts:
        """The facts in a parsed config.json.

        Raises:
            ModelError: it is not a configuration of a model.
        """
        if not isinstance(config, Mapping):
            raise ModelError("config.json does not hold an object.", _AGAIN)
        # Models with vision or audio keep the language model's numbers one level down.
        nested = next((config[key] for key in ("text_config", "llm_config") if config.get(key)), {})
        text = {**config, **{k: v for k, v in nested.items() if v is not None}}

        def number(*names: str) -> int | None:
            values = (text.get(name) for name in names)
            return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)

        hidden = number("hidden_size", "n_embd", "d_model")
        heads = number("num_attention_heads", "n_head")
        # Hybrids may name each layer's kind instead of counting them: a list, or one letter a layer.
        kinds = text.get("layers_block_type") or text.get("hybrid_override_pattern") or ""
        architectures = config.get("architectures") or nested.get("architectures") or [""]
        return cls(
            architecture=str(architectures[0]),
            model_type=str(config.get("model_type") or ""),
            dtype=str(text.get("dtype") or text.get("torch_dtype") or "").removeprefix("torch."),
            layers=number("num_hidden_layers", "n_layer") or len(kinds) or None,
            hidden_size=hidden,
            attention_heads=heads,
            # Absent means one key-value head for every attention head.
            kv_heads=number("num_key_value_heads") or heads,
            head_dim=number("head_dim") or (hidden // heads if hidden and heads else None),
            vocab_size=number("vocab_size"),
            max_model_len=number("max_position_embeddings", "n_positions", "max_sequence_length"),
        )

    def with_headers(self, headers: Iterable[Mapping[str, Any]]) -> ModelFacts:
        """These facts, completed from the headers of all safetensors files of the model.

        Without any header the facts come back as they are.
        """
        parameters, size = 0, Counter[str]()
        for header in headers:
            for name, tensor in header.items():
                if name == "__metadata__":
                    continue
                begin, end = tensor["data_offsets"]
                parameters += prod(tensor["shape"])
                size[tensor["dtype"]] += end - begin
        if not size:
            return self
        most = size.most_common(1)[0][0]
        update = {
            "parameters": parameters,
            "weights_bytes": size.total(),
            "dtype": _DTYPES.get(most, most.lower()),
        }
        return self.model_copy(update=update)


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of one safetensors file; the data is not read.

    Raises:
        ModelError: the file is shorter than its header says, or is not a safetensors file.
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
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}.", "Check the path and its rights."
        ) from None
    except ValueError:  # not JSON, or not even UTF-8
        raise ModelError(f"The header of {path} is not JSON.", _AGAIN) from None
    check_header(header, str(path))
    if (end := data_end(header)) > size - 8 - length:
        raise ModelError(
            f"{path} is cut off: its tensors need {end} bytes and {size - 8 - length} follow the header.",
            _AGAIN,
        )
    return header


def check_header(header: Any, where: str) -> None:
    """Raise ModelError unless `header` has the shape of a safetensors header."""
    good = isinstance(header, dict) and all(
        isinstance(tensor, dict)
        and isinstance(tensor.get("dtype"), str)
        and _whole_numbers(tensor.get("shape"))
        and _whole_numbers(tensor.get("data_offsets"))
        and len(tensor["data_offsets"]) == 2
        for name, tensor in header.items()
        if name != "__metadata__"
    )
    if not good:
        raise ModelError(f"The header of {where} does not describe tensors.", _AGAIN)


def data_end(header: Mapping[str, Any]) -> int:
    """Bytes of tensor data that `header` describes."""
    return max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) and v >= 0 for v in value)
