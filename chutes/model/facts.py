"""Facts of a model that decide where it fits and how it is served.

They come from config.json and from the headers of safetensors files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from chutes.exception import ModelError
from chutes.model import attention, exclusions, parameters, quantization, sanity, vision
from chutes.model.attention import LayerAttention, Unknown, whole
from chutes.model.pieces import Piece
from chutes.model.quantization import DTYPE_BYTES, Quantization
from chutes.model.tensors import FROM_HEADERS, Tensors

_AGAIN = "The file is damaged or incomplete: fetch it again."

__all__ = [
    "FROM_CONFIG",
    "FROM_HEADERS",
    "QUANTIZATION_FILE",
    "Experts",
    "ModelFacts",
    "Quantization",
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
    unsized: str = ""
    """Why the bytes of the weights are not known, as a clause; empty when they are."""
    problem: str = ""
    """Why the memory of this model cannot be planned; empty when it can."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a plan of this model leaves out, for a person."""
        parts = [name for name, there in (("vision", self.vision), ("audio", self.audio)) if there]
        return tuple(f"the memory that its {part} encoder works in is not counted" for part in parts)

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
            dtype=_dtype(text),
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
        known = {**facts._kept(text), **facts._counted(text, config)}
        if facts.quantization is not None and (why := facts.quantization.unsized):
            known["unsized"] = why
            known["problem"] = known.get("problem") or (
                f"cannot say how many bytes its weights have, because {why}; the headers of its safetensors "
                "files would tell"
            )
        return facts.model_copy(update=known)

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
            if self.quantization is not None:
                made = exclusions.marked(made, text, self.quantization)
        except (Unknown, *_ODD) as error:
            return {"unsized": str(error) if isinstance(error, Unknown) else "its fields have unusual types"}
        loaded = [piece for piece in made if not piece.mtp]
        width = DTYPE_BYTES.get(self.dtype, 2.0)

        def size(of: Iterable[Piece]) -> int:
            return quantization.total_bytes(of, self.quantization, width)

        seeing, exact = vision.parameters(config, self.hidden_size or 0)
        if self.quantization is not None and self.quantization.unsized:
            return {"parameters": sum(piece.parameters for piece in made) + seeing}
        count = sum(piece.parameters for piece in loaded) + seeing
        routed = sum(piece.parameters for piece in loaded if piece.part == "expert")
        tied = not any(piece.part == "head" for piece in loaded)
        embedding = next(piece for piece in loaded if piece.part == "embedding")
        share = self.experts.per_token / self.experts.count if self.experts else 0.0
        extra = round(seeing * width)
        return {
            "parameters": sum(piece.parameters for piece in made) + seeing,
            "weights_bytes": size(made) + extra,
            "loaded_parameters": count,
            "loaded_bytes": size(loaded) + extra,
            "replicated_bytes": size(piece for piece in loaded if not piece.split),
            "expert_bytes": size(piece for piece in loaded if piece.part == "expert"),
            "embedding_bytes": size([embedding]),
            "tied_embeddings": tied,
            "active_parameters": round(
                count - seeing - (0 if tied else embedding.parameters) - routed * (1 - share)
            ),
            "bytes_source": FROM_CONFIG + ("" if exact else ", its vision part estimated"),
        }

    def with_headers(self, headers: Iterable[Mapping[str, Any]]) -> ModelFacts:
        """These facts, completed from the headers of all safetensors files of the model.

        Without any header the facts come back as they are.
        """
        found = Tensors(self.layers or 0)
        for header in headers:
            found.add(header)
        update = found.update(self)
        if update and self.unsized:
            update |= {"unsized": "", "problem": "" if self.unsized in self.problem else self.problem}
        return self.model_copy(update=update)


def _language_model(config: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(config.json with the language model's part laid over it, that part alone).

    Models with vision or audio keep the language model's numbers one level down.
    """
    nested = next(
        (config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), Mapping)), {}
    )
    return {**config, **{k: v for k, v in nested.items() if v is not None}}, nested


def _dtype(text: Mapping[str, Any]) -> str:
    said = str(text.get("dtype") or text.get("torch_dtype") or "").lower().removeprefix("torch.")
    return {"half": "float16", "float": "float32", "double": "float64"}.get(said, said)


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
