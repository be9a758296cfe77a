"""Facts of a model that decide where it fits and how it is served: from config.json and safetensors headers.

A safetensors file begins with the length of its header (8 bytes, little endian), then that many bytes of
JSON: {tensor name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the data. A few kilobytes tell the
size of any model. Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from chutes.exception import ModelError
from chutes.model import attention, parameters, quantization, sanity
from chutes.model.attention import LayerAttention, Unknown, whole
from chutes.model.pieces import Piece
from chutes.model.quantization import DTYPE_BYTES, Quantization
from chutes.model.tensors import FROM_HEADERS, Tensors

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation; real headers are below 10 MB

_AGAIN = "The file is damaged or incomplete: fetch it again."

__all__ = [
    "FROM_CONFIG",
    "FROM_HEADERS",
    "QUANTIZATION_FILE",
    "Experts",
    "ModelFacts",
    "Quantization",
    "safetensors_header",
]

QUANTIZATION_FILE = "hf_quant_config.json"
"""Where some checkpoints alone say that they are quantised (NVIDIA's modelopt)."""

FROM_CONFIG = "config.json (arithmetic)"

# Models that embed or rank: nothing of a request outlives its one pass.
_ENCODERS = {
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "modernbert",
    "deberta-v2",
    "nomic_bert",
    "mpnet",
}

# model_type whose layers attention.py reads rightly. What is not here may still look familiar and differ.
_KNOWN = {
    *parameters.KNOWN,
    *("gemma", "gemma2", "gemma4_text", "deepseek_v2", "deepseek_v4", "deepseek_ref", "kimi_linear"),
    *("nemotron_h", "nemotron-nas", "step3p7", "minimax_m3", "glm", "glm4", "phi", "olmo", "olmo2"),
    *("granite", "starcoder2", "stablelm", "cohere", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen2_vl_text"),
    *("qwen2_5_vl_text", "gpt2", "gpt_neox", "opt", "internlm2", "internlm3", "baichuan", "exaone", "llama4"),
}


# What reading a field of an unexpected type raises: a list where a number was meant, and the like.
_ODD = (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError)


class Experts(BaseModel):
    """Mixture-of-experts layers."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    count: int
    per_token: int
    intermediate: int
    shared: int = 0
    """Intermediate size of the experts that every token passes, together."""
    layers: int = 0
    """Layers that have experts."""


class ModelFacts(BaseModel):
    """What is known of a model. None where its files do not say.

    `weights_bytes` is exact for every format once headers were read. `parameters` then counts the stored
    elements without scales, or what config.json means where a format packs several into one integer.
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
    """mha, gqa, mqa, mla, sliding, chunked, linear, hybrid-sliding, hybrid-chunked, hybrid-linear,
    encoder (no KV cache), none; empty when not known."""
    layers_attention: tuple[LayerAttention, ...] = ()
    """One entry for every layer that keeps something of a request; empty where there is no KV cache."""
    experts: Experts | None = None
    quantization: Quantization | None = None
    kv_cache_fp8: bool = False
    """The checkpoint asks for 8-bit keys and values: what `auto` then means."""
    loaded_parameters: int | None = None
    """What an engine loads: layers for speculative decoding (MTP) are stored and not loaded."""
    loaded_bytes: int | None = None
    replicated_bytes: int | None = None
    """Of the loaded bytes, those that every tensor-parallel rank holds whole (norms, routers, MLA's
    down projections)."""
    expert_bytes: int | None = None
    """Of the loaded bytes, those of routed experts."""
    embedding_bytes: int | None = None
    """Bytes of the embedding alone; the head has as many unless `tied_embeddings`."""
    active_parameters: int | None = None
    """Parameters that one token passes through; the embedding, of which it reads one row, is not counted."""
    vision: bool = False
    audio: bool = False
    bytes_source: str = ""
    """Where parameters and bytes come from: FROM_HEADERS, FROM_CONFIG, ..."""
    problem: str = ""
    """Why the memory of this model's requests cannot be planned; empty when it can."""

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], quantization_file: Mapping[str, Any] | None = None
    ) -> ModelFacts:
        """The facts in a parsed config.json.

        Args:
            quantization_file: a parsed QUANTIZATION_FILE, where the model has one.

        Raises:
            ModelError: it is not a configuration of a model.
        """
        if not isinstance(config, Mapping):
            raise ModelError("config.json does not hold an object.", _AGAIN)
        try:
            return cls._read(config, quantization_file)
        except _ODD:
            raise ModelError(
                "config.json holds fields of types that no model's have.", "Mend the file, or fetch it again."
            ) from None

    @classmethod
    def _read(cls, config: Mapping[str, Any], quantization_file: Mapping[str, Any] | None) -> ModelFacts:
        text, nested = _language_model(config)
        sanity.check(text)
        inner = quantization_file.get("quantization") if isinstance(quantization_file, Mapping) else None
        if isinstance(inner, Mapping) and not text.get("quantization_config"):
            text["quantization_config"] = inner
        hidden = whole(text, "hidden_size", "n_embd", "d_model")
        heads = whole(text, "num_attention_heads", "n_head")
        # Hybrids may name each layer's kind instead of counting them: a list, or one letter a layer.
        kinds = text.get("layers_block_type") or text.get("hybrid_override_pattern") or ""
        architectures = config.get("architectures") or nested.get("architectures") or [""]
        facts = cls(
            architecture=str(architectures[0]),
            model_type=str(config.get("model_type") or ""),
            dtype=str(text.get("dtype") or text.get("torch_dtype") or "").removeprefix("torch."),
            layers=whole(text, "num_hidden_layers", "n_layer") or len(kinds) or None,
            hidden_size=hidden,
            attention_heads=heads,
            # Absent means one key-value head for every attention head.
            kv_heads=whole(text, "num_key_value_heads") or heads,
            head_dim=whole(text, "head_dim") or (hidden // heads if hidden and heads else None),
            vocab_size=whole(text, "vocab_size"),
            max_model_len=whole(text, "max_position_embeddings", "n_positions", "max_sequence_length"),
            intermediate_size=whole(text, "intermediate_size_mlp", "intermediate_size", "n_inner"),
            tied_embeddings=bool(text.get("tie_word_embeddings")),
            experts=_experts(text),
            quantization=quantization.read(text),
            kv_cache_fp8=_kv_cache_fp8(text),
            vision=bool(config.get("vision_config")),
            audio=bool(config.get("audio_config")),
        )
        if not config:
            return facts
        return facts.model_copy(update={**facts._kept(text), **facts._counted(text, config)})

    def _kept(self, text: Mapping[str, Any]) -> dict[str, Any]:
        """Of what a request leaves behind in each layer."""
        kind = str(text.get("model_type") or "")
        if kind in _ENCODERS:
            return {"attention": "encoder"}
        try:
            if "quantization" in text and not kind and not self.architecture:
                raise Unknown(f"this is a quantisation file ({QUANTIZATION_FILE}), not a config.json")
            if kind not in _KNOWN:
                raise Unknown(f"model_type {kind or '(none)'} is not known here")
            kept = attention.layers(text)
        except Unknown as error:
            return {"problem": f"cannot plan its KV cache, because {error}"}
        except _ODD:
            return {"problem": "cannot plan its KV cache, because fields of config.json have unusual types"}
        return {"attention": attention.summary(kept, self.attention_heads), "layers_attention": kept}

    def _counted(self, text: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters and bytes by arithmetic; nothing where the layout is not known."""
        try:
            made = parameters.pieces(text)
        except (Unknown, *_ODD):
            return {}
        loaded = [piece for piece in made if not piece.mtp]
        width = DTYPE_BYTES.get(self.dtype, 2.0)

        def size(of: Iterable[Piece]) -> int:
            return quantization.total_bytes(of, self.quantization, width)

        vision = _vision_parameters(config)
        if self.quantization is not None and self.quantization.covers == "mixed":
            return {"parameters": sum(piece.parameters for piece in made) + vision}
        count = sum(piece.parameters for piece in loaded) + vision
        routed = sum(piece.parameters for piece in loaded if piece.part == "expert")
        tied = not any(piece.part == "head" for piece in loaded)
        embedding = next(piece for piece in loaded if piece.part == "embedding")
        share = self.experts.per_token / self.experts.count if self.experts else 0.0
        extra = round(vision * width)
        return {
            "parameters": sum(piece.parameters for piece in made) + vision,
            "weights_bytes": size(made) + extra,
            "loaded_parameters": count,
            "loaded_bytes": size(loaded) + extra,
            "replicated_bytes": size(piece for piece in loaded if not piece.split),
            "expert_bytes": size(piece for piece in loaded if piece.part == "expert"),
            "embedding_bytes": size([embedding]),
            "tied_embeddings": tied,
            "active_parameters": round(
                count - vision - (0 if tied else embedding.parameters) - routed * (1 - share)
            ),
            "bytes_source": FROM_CONFIG + (", its vision part estimated" if vision else ""),
        }

    def with_headers(self, headers: Iterable[Mapping[str, Any]]) -> ModelFacts:
        """These facts, completed from the headers of all safetensors files of the model.

        Without any header the facts come back as they are.
        """
        found = Tensors(self.layers or 0)
        for header in headers:
            found.add(header)
        return self.model_copy(update=found.update(self))


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


def _language_model(config: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(config.json with the language model's part laid over it, that part alone).

    Models with vision or audio keep the language model's numbers one level down.
    """
    nested = next(
        (config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), Mapping)), {}
    )
    return {**config, **{k: v for k, v in nested.items() if v is not None}}, nested


def _experts(text: Mapping[str, Any]) -> Experts | None:
    count = parameters.expert_count(text)
    per_token = whole(text, "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk")
    inner = whole(text, "moe_intermediate_size", "intermediate_size")
    if count < 2 or not per_token or not inner:
        return None
    layers = whole(text, "num_hidden_layers") or 0
    dense = whole(text, "first_k_dense_replace") or 0
    return Experts(
        count=count,
        per_token=min(per_token, count),
        intermediate=inner,
        shared=parameters.shared_width(text, inner),
        layers=max(layers - dense, 0),
    )


def _kv_cache_fp8(text: Mapping[str, Any]) -> bool:
    found = text.get("quantization_config")
    if not isinstance(found, Mapping):
        return False
    scheme = found.get("kv_cache_scheme")
    return found.get("kv_cache_quant_algo") == "FP8" or (
        isinstance(scheme, Mapping) and scheme.get("num_bits") == 8
    )


def _vision_parameters(config: Mapping[str, Any]) -> int:
    """A vision transformer by rule of thumb: four square matrices and two of the feed-forward a layer (three
    in Pixtral), and a projector of two matrices."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return 0
    depth = whole(vision, "num_hidden_layers", "depth", "vt_num_hidden_layers") or 0
    hidden = whole(vision, "hidden_size", "vt_hidden_size") or 0
    inner = whole(vision, "intermediate_size", "vt_intermediate_size") or 4 * hidden
    matrices = 3 if vision.get("model_type") == "pixtral" else 2
    text = whole(_language_model(config)[0], "hidden_size") or 0
    return depth * (4 * hidden * hidden + matrices * hidden * inner) + text * (hidden + text)
