"""Facts from config.json and from safetensors headers, good and damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from chutes.exception import ModelError
from chutes.model.facts import FROM_CONFIG, ModelFacts
from chutes.model.safetensors import safetensors_header
from chutes.model.source import directory_facts

TENSORS = {
    "__metadata__": {"format": "pt"},
    "embed": {"dtype": "BF16", "shape": [10, 4], "data_offsets": [0, 80]},
    "norm": {"dtype": "F32", "shape": [4], "data_offsets": [80, 96]},
}


def one(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


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
    assert ModelFacts.from_config({"architectures": None, "num_hidden_layers": None}).layers is None


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
        pytest.param(TENSORS, 97, None, "data that no tensor describes", id="too much data"),
        pytest.param({"a": 1}, 0, None, "is not an object", id="a number for a tensor"),
        pytest.param(one("F32", [-1], 0, 4), 4, None, "has shape", id="negative"),
        pytest.param(one("F32", [True], 0, 4), 4, None, "has shape", id="true is no number"),
        pytest.param(one("F32", [2], 8, 0), 8, None, "has data_offsets", id="backwards"),
        pytest.param(one("F32", [10**15, 10**15], 0, 8), 8, None, "needs 4e\\+30 bytes", id="absurd shape"),
        pytest.param(one("BF16", [1000, 64], 0, 4), 4, None, "needs 128000 bytes and has 4", id="too few"),
        pytest.param(one("ZZ9", [4], 0, 4), 4, None, "dtype 'ZZ9'", id="unknown dtype"),
        pytest.param(one("F32", [1], 4, 8), 8, None, "gap or an overlap", id="a gap"),
        pytest.param(
            {**one("F32", [1], 0, 4), "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
            4,
            None,
            "gap or an overlap",
            id="two on one range",
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper"),
        ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', "names 'a' twice"),
    ],
)
def test_headers_that_json_itself_allows(tmp_path: Path, text: str, message: str):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + b"\0")
    with pytest.raises(ModelError, match=message) as caught:
        safetensors_header(path)
    assert str(path) in caught.value.message


def test_tensors_of_every_width_and_of_none(tmp_path: Path):
    header = {
        "empty": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "half a byte": {"dtype": "F4", "shape": [3], "data_offsets": [4, 6]},
    }
    assert safetensors_header(write(tmp_path / "model.safetensors", header, 6)) == header


LLAMA = {
    "model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": 2, "hidden_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 1000,
    "max_position_embeddings": 2048,
}  # fmt: skip


def model(directory: Path, config: Any, *shards: str, index: Any = None) -> Path:
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for shard in shards:
        write(directory / shard, TENSORS)
    if index is not None:
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_config_nested_without_end_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"config\.json cannot be read: it is nested deeper"):
        directory_facts(model(tmp_path, "[" * 100_000))


def test_a_directory_without_weights_is_what_its_config_means(tmp_path: Path):
    index = {"weight_map": {"embed": "model-00001-of-00002.safetensors"}}
    facts = directory_facts(model(tmp_path, LLAMA, index=index))
    assert facts.weights_bytes
    assert facts.bytes_source == FROM_CONFIG


@pytest.mark.parametrize(
    ("shards", "index", "message"),
    [
        (["model-00001-of-00017.safetensors"], None, "model-00002-of-00017.safetensors and 15 more are"),
        (
            ["model-00002-of-00002.safetensors"],
            None,
            "holds 1 weights file; model-00001-of-00002.safetensors is",
        ),
        (["model.safetensors"], {"weight_map": {"embed": "model-a.safetensors"}}, "model-a.safetensors is"),
        (["model.safetensors"], {"weight_map": []}, "has no weight_map"),
        (["model.safetensors"], None, "hold 96 bytes, and config.json means"),
    ],
)
def test_weights_files_that_are_missing(tmp_path: Path, shards: list[str], index: Any, message: str):
    with pytest.raises(ModelError) as caught:
        directory_facts(model(tmp_path, LLAMA, *shards, index=index))
    assert message in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert caught.value.fix


def test_all_weights_files_of_a_model(tmp_path: Path):
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"embed": shards[0], "norm": shards[1]}}
    facts = directory_facts(model(tmp_path, {"model_type": "llama"}, *shards, index=index))
    assert facts.weights_bytes == 192


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_key_value_heads": -8}, "num_key_value_heads=-8, which no model has"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3, which does not divide it"),
        ({"num_key_value_heads": 64}, "num_key_value_heads=64, which does not divide it"),
        ({"max_position_embeddings": -1}, "max_position_embeddings=-1"),
        ({"n_layer": 10**9}, "n_layer=1000000000"),
        ({"sliding_window": -5}, "sliding_window=-5"),
        ({"num_nextn_predict_layers": 10**9}, "num_nextn_predict_layers=1000000000"),
        ({"torch_dtype": "float7"}, "torch_dtype='float7'"),
        ({"torch_dtype": 5}, "torch_dtype=5"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers='32', a text; it must be a whole number"),
        ({"num_hidden_layers": 32.0}, "num_hidden_layers=32.0, a number with a decimal point"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True, true or false"),
        ({"vocab_size": float("nan")}, "vocab_size=nan, a number with a decimal point"),
        ({"vocab_size": {}}, "vocab_size={}, an object"),
        ({"vocab_size": [1, 2]}, "vocab_size=[1, 2], a list"),
        ({"hidden_size": 10**5000}, "hidden_size=a number of more than 20 digits"),
    ],
)
def test_values_that_no_model_has_are_named(change: dict[str, Any], said: str):
    with pytest.raises(ModelError) as caught:
        ModelFacts.from_config({**LLAMA, **change})
    assert said in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": None},
        {"num_key_value_heads": 1},
        {"sliding_window": None},
        {"n_routed_experts": 0},
        {"intermediate_size": [128, 128]},
        {"torch_dtype": "torch.bfloat16"},
        {"torch_dtype": None},
    ],
)
def test_values_that_some_models_have(change: dict[str, Any]):
    assert ModelFacts.from_config({**LLAMA, **change}).layers == 2


def test_numbers_named_after_their_c_types():
    assert ModelFacts.from_config({**LLAMA, "torch_dtype": "float"}).dtype == "float32"
