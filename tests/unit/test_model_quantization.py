"""What quantisation covers and how many bytes that leaves, and what is refused or left to the headers."""

from __future__ import annotations

from typing import Any

import pytest

from chutes.exception import ModelError
from chutes.model.facts import ModelFacts
from tests.unit.test_model_counts import NANO

LLAMA = {
    "model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": 2, "hidden_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 1000,
}  # fmt: skip
QUERY, KEY, GATE = 256 * 256, 256 * 128, 256 * 512
NVFP4 = {"quant_algo": "NVFP4", "group_size": 16, "quant_method": "modelopt"}


def size(**found: Any) -> int:
    """Bytes of the small Llama with this quantisation."""
    facts = ModelFacts.from_config({**LLAMA, "quantization_config": found})
    assert facts.weights_bytes is not None
    return facts.weights_bytes


def nvfp4(count: int) -> float:
    """Bytes saved by four bits and a scale of eight for every sixteen."""
    return count * (2 - 0.5 - 1 / 16)


@pytest.mark.parametrize(
    ("ignored", "plain"),
    [
        ([], 0),
        (["lm_head"], 0),
        (["model.layers.0.self_attn.q_proj"], QUERY),
        (["model.layers.*.self_attn.q_proj"], 2 * QUERY),
        (["model.layers.1*"], 2 * QUERY + 2 * KEY + 3 * GATE),
        (["model.layers.1.*"], 2 * QUERY + 2 * KEY + 3 * GATE),
        (["language_model.model.layers.0.self_attn*"], 2 * QUERY + 2 * KEY),
        (["model.language_model.layers.0.mlp"], 3 * GATE),
        (["re:.*self_attn.*"], 2 * (2 * QUERY + 2 * KEY)),
        (["re:model\\.language_model\\.layers\\.0\\.mlp.*"], 3 * GATE),
        (["*.mlp.*"], 6 * GATE),
        (["o_proj"], 2 * QUERY),
        (["model.layers.10.mlp", "vision_tower"], 0),
    ],
)
@pytest.mark.parametrize("key", ["ignore", "exclude_modules", "modules_to_not_convert"])
def test_lists_of_what_is_not_quantised_go_by_name(key: str, ignored: list[str], plain: int):
    assert size(**NVFP4, **{key: ignored}) == size(**NVFP4) + nvfp4(plain)


def test_a_wrong_regular_expression_leaves_the_size_to_the_headers():
    facts = ModelFacts.from_config({**LLAMA, "quantization_config": {**NVFP4, "ignore": ["re:("]}})
    assert facts.weights_bytes is None
    assert "regular expression" in facts.unsized


def test_nemotron_nano_leaves_out_attention_and_some_mamba_layers():
    """The list of the published NVFP4 checkpoint: every attention layer and the Mamba layer before it."""
    listed = ["lm_head"]
    for layer in (5, 12, 19, 26, 33, 42):
        listed += [f"backbone.layers.{layer - 1}.mixer.{name}" for name in ("in_proj", "out_proj")]
        listed += [f"backbone.layers.{layer}.mixer.{name}_proj" for name in "qkvo"]
    all_of_it = ModelFacts.from_config(NANO, {"quantization": NVFP4})
    published = ModelFacts.from_config(NANO, {"quantization": {**NVFP4, "exclude_modules": listed}})
    attention = 2 * 4096 * 2688 + 2 * 256 * 2688
    mamba = (2 * 4096 + 2 * 8 * 128 + 64) * 2688 + 4096 * 2688
    assert all_of_it.weights_bytes
    assert published.weights_bytes == all_of_it.weights_bytes + nvfp4(6 * (attention + mamba))


@pytest.mark.parametrize(
    "found",
    [
        {"quant_method": "zzz"},
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
        {"quant_method": "aqlm", "nbits_per_codebook": 16},
        {"quant_method": "quark"},
        {"quant_method": "torchao", "quant_type": "int4_weight_only"},
        {"quant_method": "bitnet"},
        {"quant_method": "modelopt", "quant_algo": "TERNARY"},
    ],
)
def test_an_unknown_quantisation_has_no_bytes_without_headers(found: dict[str, Any]):
    facts = ModelFacts.from_config({**LLAMA, "quantization_config": found})
    assert facts.weights_bytes is None
    assert facts.loaded_bytes is None
    assert facts.parameters
    assert facts.problem.startswith("cannot say how many bytes its weights have, because")
    header = {"w": {"dtype": "U8", "shape": [100], "data_offsets": [0, 100]}}
    read = facts.with_headers([header])
    assert (read.weights_bytes, read.problem, read.unsized) == (100, "", "")
    assert read.parameters == facts.parameters  # a byte may hold several


@pytest.mark.parametrize(
    ("found", "bits"),
    [("W4A16_AWQ", 4), ("INT4_AWQ", 4), ("W8A8_SQ_PER_CHANNEL", 8), ("FP8", 8), ("NVFP4_AWQ", 4)],
)
def test_modelopt_algorithms(found: str, bits: int):
    config = {"quantization_config": {"quant_method": "modelopt", "quant_algo": found}}
    said = ModelFacts.from_config(config).quantization
    assert said is not None
    assert said.bits == bits


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ({"quant_method": "gptq", "bits": 99_999_999}, "bits=99999999"),
        ({"quant_method": "gptq", "bits": "4"}, "bits='4'"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -2}, "group_size=-2"),
        ({"quant_method": "fp8", "weight_block_size": [-128, -128]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "weight_block_size"),
        ({"quant_method": "compressed-tensors", "num_bits": 0}, "num_bits=0"),
    ],
)
def test_numbers_that_no_quantisation_has(found: dict[str, Any], named: str):
    with pytest.raises(ModelError) as caught:
        ModelFacts.from_config({**LLAMA, "quantization_config": found})
    assert named in caught.value.message
    assert caught.value.fix


def test_one_scale_for_a_whole_row():
    rows = size(quant_method="gptq", bits=4, group_size=-1)
    assert rows < size(quant_method="gptq", bits=4, group_size=128)
    assert size(quant_method="gptq", bits=4) == size(quant_method="gptq", bits=4, group_size=128)
