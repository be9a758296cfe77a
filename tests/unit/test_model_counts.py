"""Parameters by arithmetic, held against what transformers 5.19 builds from the same configs without weights.

Buffers that checkpoints store (a router's correction bias, Gemma 4's scalars) are added to its parameters.
"""

from __future__ import annotations

from typing import Any

import pytest

from chutes.model import vision
from chutes.model.facts import ModelFacts

NANO = {
    "model_type": "nemotron_h", "hidden_size": 2688, "num_attention_heads": 32, "num_key_value_heads": 2,
    "head_dim": 128, "intermediate_size": 1856, "vocab_size": 131072, "num_hidden_layers": 52,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4,
    "use_conv_bias": True, "n_routed_experts": 128, "num_experts_per_tok": 6, "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712, "n_shared_experts": 1, "torch_dtype": "bfloat16",
}  # fmt: skip
SUPER = {
    **NANO, "hidden_size": 4096, "intermediate_size": 2688, "num_hidden_layers": 88,
    "hybrid_override_pattern": "MEMEMEM*EMEMEMEM*EMEMEMEM*" + "EMEMEMEMEM*" * 4 + "EMEMEMEM*EMEMEMEME",
    "mamba_num_heads": 128, "n_routed_experts": 512, "num_experts_per_tok": 22,
    "moe_intermediate_size": 2688, "moe_latent_size": 1024, "moe_shared_expert_intermediate_size": 5376,
    "num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E",
}  # fmt: skip
GLM_5_2 = {
    "model_type": "glm_moe_dsa", "hidden_size": 6144, "num_hidden_layers": 78, "num_attention_heads": 64,
    "num_key_value_heads": 64, "intermediate_size": 12288, "vocab_size": 154880, "first_k_dense_replace": 3,
    "index_head_dim": 128, "index_n_heads": 32, "kv_lora_rank": 512, "q_lora_rank": 2048,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 192, "v_head_dim": 256, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1,
    "num_nextn_predict_layers": 1,
    "indexer_types": ["full", "full", *["full", "shared", "shared", "shared"] * 19],
}  # fmt: skip
QWEN_3_5 = {
    "model_type": "qwen3_5_text", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 24,
    "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 17408, "vocab_size": 248320,
    "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 48,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
    "mtp_num_hidden_layers": 1,
}  # fmt: skip
QWEN_3_5_MOE = {
    **QWEN_3_5, "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "num_hidden_layers": 40,
    "num_attention_heads": 16, "num_key_value_heads": 2, "linear_num_value_heads": 32, "num_experts": 256,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts_per_tok": 8,
}  # fmt: skip
MIMO = {
    "model_type": "mimo", "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 11008, "vocab_size": 151680,
    "num_nextn_predict_layers": 1,
}  # fmt: skip
GEMMA_4 = {
    "model_type": "gemma4_text", "hidden_size": 2816, "num_hidden_layers": 30, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 256, "intermediate_size": 2112, "vocab_size": 262144,
    "tie_word_embeddings": True, "global_head_dim": 512, "num_global_key_value_heads": 2,
    "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 128, "top_k_experts": 8,
    "moe_intermediate_size": 704, "sliding_window": 1024,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
}  # fmt: skip


BGE_LARGE = {
    "model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
MINILM = {
    **BGE_LARGE, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "loaded", "stored"),
    [
        pytest.param(NANO, 31_577_937_344 + 2944, 31_577_937_344 + 2944, id="Nemotron 3 Nano"),
        pytest.param(SUPER, 120_668_687_360 + 20_480, 123_611_033_088, id="Nemotron 3 Super"),
        pytest.param(GLM_5_2, 743_377_000_704 + 19_200, 753_329_940_480, id="GLM-5.2"),
        pytest.param(GEMMA_4, 25_233_141_760 + 30, None, id="Gemma 4 26B-A4B, text"),
        pytest.param(QWEN_3_5, 26_895_998_464, 26_895_998_464 + 424_699_392, id="Qwen3.5-27B, text"),
        pytest.param(QWEN_3_5_MOE, 34_660_610_688, 34_660_610_688 + 844_640_768, id="Qwen3.5-35B, text"),
        pytest.param(MIMO, 7_622_619_136, 7_833_409_536, id="MiMo-7B"),
        pytest.param(BGE_LARGE, 335_141_888, None, id="bge-large-en-v1.5"),
        pytest.param(MINILM, 22_713_216, None, id="all-MiniLM-L6-v2"),
    ],
)
def test_parameters_are_those_that_the_code_makes(config: dict[str, Any], loaded: int, stored: int | None):
    facts = ModelFacts.from_config(config)
    assert facts.loaded_parameters == loaded
    assert facts.parameters == (stored or loaded)


def qwen3_vl(depth: int, hidden: int, inner: int, out: int, deep: int = 3) -> dict[str, Any]:
    return {
        "model_type": "qwen3_vl", "depth": depth, "hidden_size": hidden, "intermediate_size": inner,
        "out_hidden_size": out, "num_position_embeddings": 2304, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "in_channels": 3, "deepstack_visual_indexes": [8] * deep,
    }  # fmt: skip


SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
    "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
}  # fmt: skip
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 1024, "head_dim": 64, "intermediate_size": 4096,
    "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
}  # fmt: skip
LLAMA_4 = {
    "model_type": "llama4_vision_model", "hidden_size": 1408, "image_size": 336, "intermediate_size": 5632,
    "num_hidden_layers": 34, "patch_size": 14, "pixel_shuffle_ratio": 0.5, "projector_input_dim": 4096,
    "projector_output_dim": 4096, "vision_output_dim": 4096,
}  # fmt: skip
GEMMA_4_VISION = {
    "model_type": "gemma4_vision", "hidden_size": 1152, "head_dim": 72, "intermediate_size": 4304,
    "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 27, "patch_size": 16,
    "position_embedding_size": 10240, "standardize": True, "use_clipped_linears": False,
}  # fmt: skip
QWEN_2_5_VL = {
    "model_type": "qwen2_5_vl", "depth": 32, "hidden_size": 1280, "intermediate_size": 3420,
    "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
QWEN_2_VL = {
    "model_type": "qwen2_vl", "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
INTERNVL = {
    "model_type": "internvl_vision", "hidden_size": 1024, "num_hidden_layers": 24, "attention_bias": True,
    "intermediate_size": 4096, "image_size": [448, 448], "patch_size": [14, 14],
}  # fmt: skip
MOONVIT = {
    "vt_hidden_size": 1152, "vt_intermediate_size": 4304, "vt_num_hidden_layers": 27, "patch_size": 14,
    "init_pos_emb_height": 64, "init_pos_emb_width": 64, "merge_kernel_size": [2, 2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "tower", "hidden", "expected"),
    [
        pytest.param("qwen3_vl", qwen3_vl(24, 1024, 4096, 2048), 2048, 406_957_056, id="Qwen3-VL-2B"),
        pytest.param("qwen3_vl", qwen3_vl(24, 1024, 4096, 2560), 2560, 415_347_712, id="Qwen3-VL-4B"),
        pytest.param("qwen3_vl", qwen3_vl(27, 1152, 4304, 4096), 4096, 576_388_336, id="Qwen3-VL-8B"),
        pytest.param("qwen3_vl", qwen3_vl(27, 1152, 4304, 2048), 2048, 538_631_408, id="Qwen3-VL-30B-A3B"),
        pytest.param("qwen3_5", qwen3_vl(27, 1152, 4304, 5120, 0), 5120, 460_730_096, id="Qwen3.5-27B"),
        pytest.param("qwen2_5_vl", QWEN_2_5_VL, 3584, 676_550_144, id="Qwen2.5-VL-7B"),
        pytest.param("qwen2_vl", QWEN_2_VL, 3584, 675_759_104, id="Qwen2-VL-7B"),
        pytest.param("gemma3", SIGLIP, 5376, 27_432_406_640 - 27_009_346_304, id="Gemma 3 27B"),
        pytest.param("gemma4", GEMMA_4_VISION, 2816, 572_792_112 + 2304, id="Gemma 4 26B-A4B"),
        pytest.param("llama4", LLAMA_4, 5120, 108_641_793_536 - 107_769_861_120, id="Llama 4 Scout"),
        pytest.param("mistral3", PIXTRAL, 5120, 438_958_080, id="Mistral Small 3.2"),
        pytest.param("llava", PIXTRAL, 5120, 434_772_992, id="Pixtral 12B"),
        pytest.param("internvl", {**INTERNVL}, 3584, 331_552_768, id="InternVL3 8B"),
        pytest.param("kimi_k25", MOONVIT, 7168, 471_143_920, id="Kimi K2.5"),
    ],
)
def test_vision_encoders_are_counted_exactly(kind: str, tower: dict[str, Any], hidden: int, expected: int):
    config = {"model_type": kind, "vision_config": tower, "downsample_ratio": 0.5}
    assert vision.parameters(config, hidden) == (expected, True)


@pytest.mark.parametrize(
    "tower",
    [
        {"model_type": "new", "hidden_size": 1152, "num_hidden_layers": 27},
        {**SIGLIP, "image_size": None},
        {**GEMMA_4_VISION, "use_clipped_linears": True},
        {**qwen3_vl(27, 1152, 4304, 4096), "patch_size": "16"},
    ],
)
def test_other_encoders_are_estimated_and_say_so(tower: dict[str, Any]):
    count, exact = vision.parameters({"model_type": "gemma3", "vision_config": tower}, 4096)
    assert count > 0
    assert not exact
    facts = ModelFacts.from_config({**MIMO, "vision_config": tower})
    assert "vision part estimated" in facts.bytes_source


def test_a_model_that_sees_says_what_is_not_counted():
    assert ModelFacts.from_config(MIMO).notes == ()
    seeing = ModelFacts.from_config({**MIMO, "vision_config": SIGLIP})
    assert seeing.notes == ("the memory that its vision encoder works in is not counted",)
