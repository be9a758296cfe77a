"""Facts from tensors' names, from quantisation files, and from whatever config.json may hold."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes.exception import ModelError
from chutes.model import catalogue
from chutes.model.facts import FROM_HEADERS, ModelFacts

DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
}


def header(**tensors: tuple[str, list[int], int]) -> dict[str, Any]:
    """A header of tensors given as (dtype, shape, bytes), names with __ for a dot."""
    made: dict[str, Any] = {}
    for name, (dtype, shape, size) in tensors.items():
        made[name.replace("__", ".")] = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    return made


def test_tensors_are_sorted_by_what_an_engine_does_with_them():
    facts = ModelFacts.from_config(DEEPSEEK).with_headers(
        [
            header(
                model__embed_tokens__weight=("BF16", [10, 4], 80),
                lm_head__weight=("BF16", [10, 4], 80),
                model__layers__0__input_layernorm__weight=("BF16", [4], 8),
                model__layers__0__self_attn__q_a_proj__weight=("F8_E4M3", [4, 4], 16),
                model__layers__0__self_attn__o_proj__weight=("F8_E4M3", [4, 4], 16),
                model__layers__0__self_attn__o_proj__weight_scale_inv=("F32", [1, 1], 4),
                model__layers__1__mlp__experts__0__up_proj__weight=("F8_E4M3", [8, 4], 32),
                model__layers__1__mlp__gate__weight=("BF16", [4, 4], 32),
            ),
            header(
                model__layers__2__eh_proj__weight=("BF16", [4, 8], 64),
                mtp__fc__weight=("BF16", [4, 8], 64),
            ),
        ]
    )
    assert facts.weights_bytes == 80 + 80 + 8 + 16 + 16 + 4 + 32 + 32 + 64 + 64
    assert facts.loaded_bytes == facts.weights_bytes - 128
    assert facts.parameters == 40 + 40 + 4 + 16 + 16 + 32 + 16 + 64  # no scales
    assert facts.loaded_parameters == facts.parameters - 64
    assert facts.replicated_bytes == 8 + 16 + 32
    assert facts.expert_bytes == 32
    assert facts.embedding_bytes == 80
    assert not facts.tied_embeddings
    assert facts.active_parameters == facts.loaded_parameters - 40 - 32 * 3 // 4
    assert facts.bytes_source == FROM_HEADERS


def test_packed_values_are_counted_by_config_and_not_as_integers():
    known = catalogue.find("openai/gpt-oss-20b")
    assert known is not None
    facts = known.with_headers([header(blocks=("U8", [100], 100))])
    assert (facts.weights_bytes, facts.parameters) == (100, known.parameters)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8", 8, (128, 128), "linear")),
        ({"quant_method": "mxfp4"}, ("mxfp4", 4, None, "experts")),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, ("awq", 4, None, "linear")),
        (
            {
                "quant_method": "modelopt",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
                "ignore": ["lm_head", "model.layers.0.self_attn*"],
            },
            ("nvfp4", 4, None, "feed-forward"),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
                "ignore": ["re:.*self_attn.*", "re:.*shared_experts.*"],
            },
            ("int4", 4, None, "experts"),
        ),
        (
            {
                "quant_method": "modelopt",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 8, "type": "float"}},
                    "group_1": {"weights": {"num_bits": 4, "type": "float"}},
                },
            },
            ("mixed", 4, None, "mixed"),
        ),
    ],
)
def test_quantisation_as_checkpoints_write_it(found: dict[str, Any], expected: tuple[Any, ...]):
    said = ModelFacts.from_config({"quantization_config": found}).quantization
    assert said is not None
    assert (said.method, said.bits, said.block, said.covers) == expected


def test_quantisation_that_only_its_own_file_tells():
    config = {"model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": 2, "hidden_size": 64}
    config |= {"num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100}
    plain = ModelFacts.from_config(config)
    quantised = ModelFacts.from_config(
        config, {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    )
    assert quantised.quantization is not None
    assert quantised.quantization.method == "fp8"
    assert quantised.kv_cache_fp8
    assert (quantised.loaded_bytes or 0) < (plain.loaded_bytes or 0)
    assert quantised.parameters == plain.parameters


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "brand_new"}, "model_type brand_new is not known here"),
        ({"model_type": "llama"}, "how many layers"),
        ({"model_type": "llama", "num_hidden_layers": 2}, "how many attention heads"),
        ({"model_type": "deepseek_v4", "num_hidden_layers": 2}, "DeepSeek V4"),
        ({"quantization": {"quant_algo": "FP8"}}, "not a config.json"),
        (
            {
                "model_type": "qwen3",
                "num_hidden_layers": 1,
                "hidden_size": 8,
                "num_attention_heads": 2,
                "layer_types": ["telepathy"],
            },
            "telepathy",
        ),
    ],
)
def test_what_cannot_be_planned_says_why(config: dict[str, Any], words: str):
    facts = ModelFacts.from_config(config)
    assert facts.problem.startswith("cannot plan its KV cache, because ")
    assert words in facts.problem
    assert facts.layers_attention == ()


FIELDS = [
    *("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "layer_types", "sliding_window", "kv_lora_rank", "vocab_size", "quantization_config"),
    *("text_config", "vision_config", "architectures", "hybrid_layer_pattern", "linear_attn_config"),
    *("block_configs", "hybrid_override_pattern", "num_experts", "torch_dtype", "full_attention_interval"),
    *("index_head_dim", "indexer_types", "compress_ratios", "layers_block_type", "moe_intermediate_size"),
]
KINDS = ["llama", "qwen3_next", "deepseek_v3", "gemma4_text", "nemotron_h", "kimi_linear", "llama4_text", "x"]
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 300),
        st.floats(),
        st.sampled_from(KINDS),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from([*FIELDS, "group_0", "weights", "attention"]), inner, max_size=5),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=12), st.sampled_from(KINDS))
def test_any_config_gives_facts_or_a_clear_refusal(config: dict[str, Any], kind: str):
    with suppress(ModelError):
        facts = ModelFacts.from_config({"model_type": kind, **config})
        assert facts.problem or facts.attention
