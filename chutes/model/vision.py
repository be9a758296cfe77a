"""How many parameters a model's vision encoder and its projector have.

Counted tensor by tensor from transformers 5.19 and vLLM 0.32 (`qwen3_vl.py`, `siglip.py`, `mllama4.py`,
`pixtral.py`, ...); the tests hold each against the models' own code. Other encoders are estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from chutes.model.attention import Unknown, whole

Config = Mapping[str, Any]


def parameters(config: Config, hidden: int) -> tuple[int, bool]:
    """(parameters, whether that is exact); nothing where the model has no vision encoder.

    Args:
        config: the whole config.json.
        hidden: width of the language model.
    """
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping) or not vision:
        return 0, True
    count = _TOWERS.get(str(vision.get("model_type") or "")) or _TOWERS.get(str(config.get("model_type")))
    if count is not None:
        try:
            return count(vision, config, hidden), True
        except Unknown:  # fields that its code has defaults for
            pass
    return _estimate(vision, hidden), False


def _estimate(vision: Config, hidden: int) -> int:
    """By rule of thumb: four square matrices and two of the feed-forward a layer, and a projector of two."""
    depth = whole(vision, "num_hidden_layers", "depth", "vt_num_hidden_layers") or 0
    width = whole(vision, "hidden_size", "vt_hidden_size") or 0
    inner = whole(vision, "intermediate_size", "vt_intermediate_size") or 4 * width
    return depth * (4 * width * width + 2 * width * inner) + hidden * (width + hidden)


def _need(vision: Config, *names: str) -> tuple[int, ...]:
    """These fields, all of them."""
    found = [whole(vision, name) for name in names]
    if None in found:
        raise Unknown(f"vision_config needs {', '.join(names)}")
    return tuple(one or 0 for one in found)


def _size(vision: Config, name: str) -> tuple[int, int]:
    """A field that may be one number for both directions."""
    value = vision.get(name)
    match value if isinstance(value, list) else [value, value]:
        case [int() as high, int() as wide] if high > 0 and wide > 0:
            return high, wide
        case _:
            raise Unknown(f"vision_config needs {name}")


def _linear(rows: int, columns: int) -> int:
    """With its bias."""
    return rows * columns + rows


def _block(width: int, inner: int) -> int:
    """One layer of a plain transformer: two layer norms, four projections, two matrices, all with biases."""
    return 4 * width + 4 * _linear(width, width) + _linear(inner, width) + _linear(width, inner)


def _merger(width: int, merged: int, out: int) -> int:
    """A layer norm over `width`, then two matrices over several patches at once."""
    return 2 * width + _linear(merged, merged) + _linear(out, merged)


def _qwen3(vision: Config, config: Config, hidden: int) -> int:
    """Qwen3-VL and Qwen3.5: deepstack feeds the output of some layers to the language model too."""
    depth, width, inner, merge = _need(
        vision, "depth", "hidden_size", "intermediate_size", "spatial_merge_size"
    )
    patch, frames, positions, out = _need(
        vision, "patch_size", "temporal_patch_size", "num_position_embeddings", "out_hidden_size"
    )
    merged, deep = width * merge**2, len(vision.get("deepstack_visual_indexes") or [])
    patches = _linear(width, (whole(vision, "in_channels") or 3) * frames * patch**2)
    mergers = _merger(width, merged, out) + deep * _merger(merged, merged, out)
    return patches + positions * width + depth * _block(width, inner) + mergers


def _qwen2_5(vision: Config, config: Config, hidden: int) -> int:
    """Qwen2.5-VL: RMS norms, a gated feed-forward, no position embedding."""
    depth, width, inner, out = _need(vision, "depth", "hidden_size", "intermediate_size", "out_hidden_size")
    patch, merge = _need(vision, "patch_size", "spatial_merge_size")
    frames = whole(vision, "temporal_patch_size") or 2
    merged = width * merge**2
    layer = 2 * width + 4 * _linear(width, width) + 2 * _linear(inner, width) + _linear(width, inner)
    return depth * layer + 3 * frames * patch**2 * width + _merger(width, merged, out) - width


def _qwen2(vision: Config, config: Config, hidden: int) -> int:
    depth, width, patch, merge = _need(vision, "depth", "embed_dim", "patch_size", "spatial_merge_size")
    frames, out = whole(vision, "temporal_patch_size") or 2, whole(vision, "hidden_size") or hidden
    inner = width * (whole(vision, "mlp_ratio") or 4)
    patches = 3 * frames * patch**2 * width
    return depth * _block(width, inner) + patches + _merger(width, width * merge**2, out)


def _siglip(vision: Config, config: Config, hidden: int) -> int:
    """As Gemma 3 has it: without the pooling head, one projection behind it."""
    if config.get("model_type") != "gemma3":
        raise Unknown("its projector is not known here")
    depth, width, inner = _need(vision, "num_hidden_layers", "hidden_size", "intermediate_size")
    image, patch = _need(vision, "image_size", "patch_size")
    embedding = _linear(width, 3 * patch**2) + (image // patch) ** 2 * width
    return embedding + depth * _block(width, inner) + 2 * width + width * hidden + width


def _gemma4(vision: Config, config: Config, hidden: int) -> int:
    if vision.get("use_clipped_linears"):
        raise Unknown("its clipped layers' limits are not counted here")
    depth, width, inner, patch = _need(
        vision, "num_hidden_layers", "hidden_size", "intermediate_size", "patch_size"
    )
    heads, keys, dim, positions = _need(
        vision, "num_attention_heads", "num_key_value_heads", "head_dim", "position_embedding_size"
    )
    attention = 2 * width * dim * (heads + keys) + 2 * dim
    layer = attention + 3 * width * inner + 4 * width
    scale = 2 * width if vision.get("standardize") else 0
    return 2 * positions * width + 3 * patch**2 * width + depth * layer + scale + width * hidden


def _llama4(vision: Config, config: Config, hidden: int) -> int:
    depth, width, inner, image = _need(
        vision, "num_hidden_layers", "hidden_size", "intermediate_size", "image_size"
    )
    patch, middle, out, given = _need(
        vision, "patch_size", "projector_input_dim", "projector_output_dim", "vision_output_dim"
    )
    ratio = vision.get("pixel_shuffle_ratio")
    if not isinstance(ratio, float) or not 0 < ratio <= 1:
        raise Unknown("vision_config needs pixel_shuffle_ratio")
    shuffled = round(width / ratio**2)
    positions = (image // patch) ** 2 + 1
    embedding = width + positions * width + 3 * patch**2 * width + 4 * width
    return embedding + depth * _block(width, inner) + shuffled * middle + middle * out + given * hidden


def _pixtral(vision: Config, config: Config, hidden: int) -> int:
    """Mistral 3 merges patches before projecting them; Pixtral itself, as a LLaVA, does not."""
    kind = config.get("model_type")
    if kind not in ("mistral3", "llava"):
        raise Unknown("its projector is not known here")
    depth, width, inner, patch = _need(
        vision, "num_hidden_layers", "hidden_size", "intermediate_size", "patch_size"
    )
    heads = whole(vision, "num_attention_heads") or 1
    attention = 4 * width * (whole(vision, "head_dim") or width // heads) * heads
    tower = 3 * patch**2 * width + width + depth * (attention + 3 * width * inner + 2 * width)
    merged = width * (whole(config, "spatial_merge_size") or 2) ** 2
    bias = 2 * hidden if config.get("multimodal_projector_bias", kind == "llava") else 0
    merger = width + width * merged if kind == "mistral3" else 0
    return tower + merger + hidden * width + hidden**2 + bias


def _internvl(vision: Config, config: Config, hidden: int) -> int:
    depth, width, inner = _need(vision, "num_hidden_layers", "hidden_size", "intermediate_size")
    image, patch = _size(vision, "image_size"), _size(vision, "patch_size")
    if vision.get("use_qk_norm") or vision.get("use_mean_pooling") is False:
        raise Unknown("its norms are not counted here")
    ratio = config.get("downsample_ratio")
    shuffled = round(width / ratio**2) if isinstance(ratio, float) and 0 < ratio <= 1 else 4 * width
    positions = prod(image) // prod(patch) + 1
    layer = _block(width, inner) + 2 * width - (0 if vision.get("attention_bias") else 3 * width)
    embedding = width + positions * width + _linear(width, 3 * prod(patch))
    return embedding + depth * layer + 2 * shuffled + _linear(hidden, shuffled) + _linear(hidden, hidden)


def _kimi(vision: Config, config: Config, hidden: int) -> int:
    """MoonViT of Kimi K2.5."""
    depth, width, inner, patch = _need(
        vision, "vt_num_hidden_layers", "vt_hidden_size", "vt_intermediate_size", "patch_size"
    )
    high, wide = _need(vision, "init_pos_emb_height", "init_pos_emb_width")
    merged = width * prod(_size(vision, "merge_kernel_size"))
    embedding = _linear(width, 3 * patch**2) + high * wide * width
    return embedding + depth * _block(width, inner) + 2 * width + _merger(width, merged, hidden)


_TOWERS: dict[str, Callable[[Config, Config, int], int]] = {
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), _qwen3),
    "qwen2_5_vl": _qwen2_5,
    "qwen2_vl": _qwen2,
    "siglip_vision_model": _siglip,
    "gemma4_vision": _gemma4,
    "llama4_vision_model": _llama4,
    "pixtral": _pixtral,
    "internvl_vision": _internvl,
    **dict.fromkeys(("kimi_k25", "kimi_k2_5"), _kimi),
}
