"""Facts from config.json and from safetensors headers, good and damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from chutes.exception import ModelError
from chutes.model.facts import ModelFacts, safetensors_header

TENSORS = {
    "__metadata__": {"format": "pt"},
    "embed": {"dtype": "BF16", "shape": [10, 4], "data_offsets": [0, 80]},
    "norm": {"dtype": "F32", "shape": [4], "data_offsets": [80, 96]},
}


def write(path: Path, header: Any, data: int = 96, length: int | None = None) -> Path:
    """A safetensors file with `data` bytes of data, claiming a header of `length` bytes."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * data)
    return path


def test_a_plain_config():
    facts = ModelFacts.from_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float16",
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 100,
            "max_position_embeddings": 2048,
        }
    )
    assert facts.architecture == "LlamaForCausalLM"
    assert (facts.layers, facts.attention_heads, facts.kv_heads, facts.head_dim) == (2, 4, 2, 16)
    assert (facts.dtype, facts.max_model_len, facts.vocab_size) == ("float16", 2048, 100)
    assert facts.parameters is None
    assert facts.weights_bytes is None


def test_a_config_with_the_language_model_one_level_down():
    facts = ModelFacts.from_config(
        {
            "architectures": ["SomethingForConditionalGeneration"],
            "model_type": "something",
            "text_config": {
                "num_hidden_layers": 3,
                "hidden_size": 8,
                "num_attention_heads": 2,
                "head_dim": 16,
            },
            "vision_config": {"num_hidden_layers": 99},
        }
    )
    assert facts.architecture == "SomethingForConditionalGeneration"
    assert (facts.layers, facts.head_dim, facts.kv_heads) == (3, 16, 2)


def test_a_hybrid_that_names_its_layers_instead_of_counting_them():
    assert ModelFacts.from_config({"layers_block_type": ["mamba", "moe", "attention"]}).layers == 3


def test_a_config_that_says_nothing_gives_no_facts_and_no_error():
    assert ModelFacts.from_config({}) == ModelFacts()
    assert ModelFacts.from_config({"architectures": None, "num_hidden_layers": "many"}).layers is None


def test_a_config_that_is_a_list_is_refused():
    with pytest.raises(ModelError, match="does not hold an object"):
        ModelFacts.from_config([])  # type: ignore[arg-type]


def test_headers_complete_the_facts(tmp_path: Path):
    header = safetensors_header(write(tmp_path / "model.safetensors", TENSORS))
    facts = ModelFacts(dtype="float32").with_headers([header, header])
    assert (facts.parameters, facts.weights_bytes, facts.dtype) == (88, 192, "bfloat16")
    assert ModelFacts(dtype="float32").with_headers([]) == ModelFacts(dtype="float32")


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        pytest.param(TENSORS, 95, None, "cut off", id="data cut off"),
        pytest.param(TENSORS, 96, 10_000, "claims a header of 10000 bytes", id="header cut off"),
        pytest.param(TENSORS, 96, 2**63, "claims a header of", id="absurd length"),
        pytest.param(TENSORS, 96, 7, "is not JSON", id="length too short"),
        pytest.param([1, 2], 0, None, "does not describe tensors", id="a list"),
        pytest.param({"a": {"dtype": "F32"}}, 0, None, "does not describe tensors", id="no shape"),
        pytest.param(
            {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, 4, None, "tensors", id="negative"
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, header: Any, data: int, length: int | None, message: str):
    path = write(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(ModelError, match=message) as caught:
        safetensors_header(path)
    assert str(path) in caught.value.message
    assert caught.value.fix


def test_a_file_of_three_bytes_and_a_missing_one(tmp_path: Path):
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(ModelError, match="has 3 bytes"):
        safetensors_header(tmp_path / "short")
    with pytest.raises(ModelError, match="No such file"):
        safetensors_header(tmp_path / "missing")
