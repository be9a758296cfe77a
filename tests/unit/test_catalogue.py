"""The shipped catalogue, and the arithmetic on config.json against its exact counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chutes.hardware.memory import kv_bytes_per_token
from chutes.model import catalogue
from chutes.model.facts import ModelFacts
from chutes.model.known import know

ENTRIES = json.loads((Path(catalogue.__file__).with_name("catalogue.json")).read_text())

# Stored parameters that config.json alone does not tell: a second embedding and head in the MTP layer
# (GLM-4.7), and a vision part whose config is not shipped. Loaded ones agree but for the vision part.
NOT_IN_CONFIG = {
    "zai-org/GLM-4.7": 2 * 151552 * 5120,
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": 108_641_793_536 - 107_769_861_120,
    "google/gemma-3-27b-it": 27_432_406_640 - 27_009_346_304,
}


def counted() -> list[str]:
    return [
        name
        for name, entry in ENTRIES.items()
        if entry.get("config") and entry["config"].get("model_type") != "bert"
    ]


@pytest.mark.parametrize("name", counted())
def test_parameters_by_arithmetic_are_the_exact_ones(name: str):
    entry = ENTRIES[name]
    facts = ModelFacts.from_config(entry["config"])
    assert facts.parameters == entry["parameters"] - NOT_IN_CONFIG.get(name, 0)


@pytest.mark.parametrize("name", [name for name in counted() if name not in NOT_IN_CONFIG])
def test_bytes_by_arithmetic_are_within_a_millionth(name: str):
    entry = ENTRIES[name]
    facts = ModelFacts.from_config(entry["config"])
    assert facts.weights_bytes == pytest.approx(entry["weights_bytes"], rel=1e-6)
    assert facts.loaded_bytes == pytest.approx(entry["loaded_bytes"], rel=1e-6)


@pytest.mark.parametrize("name", catalogue.names())
def test_every_entry_can_be_planned(name: str):
    facts = catalogue.find(name)
    assert facts is not None
    assert not facts.problem
    assert facts.loaded_bytes
    assert facts.attention
    assert bool(facts.layers_attention) == (facts.attention not in ("none", "encoder"))


@pytest.mark.parametrize(
    ("name", "attention", "growing"),
    [
        ("Qwen/Qwen3-32B", "gqa", 262_144),
        ("Qwen/Qwen3-14B", "gqa", 163_840),
        ("meta-llama/Llama-3.1-405B-Instruct", "gqa", 516_096),
        ("zai-org/GLM-4.6", "gqa", 376_832),
        ("MiniMaxAI/MiniMax-M2.1", "gqa", 253_952),
        ("deepseek-ai/DeepSeek-V3.1", "mla", 70_272),
        ("moonshotai/Kimi-K2-Thinking", "mla", 70_272),
        ("XiaomiMiMo/MiMo-V2-Flash", "hybrid-sliding", 23_040),
        ("openai/gpt-oss-20b", "hybrid-sliding", 24_576),
        ("openai/gpt-oss-120b", "hybrid-sliding", 36_864),
        ("google/gemma-3-27b-it", "hybrid-sliding", 81_920),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "hybrid-chunked", 49_152),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "hybrid-linear", 24_576),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "gqa", 23_040),
        ("BAAI/bge-large-en-v1.5", "encoder", 0),
    ],
)
def test_kv_bytes_of_a_token(name: str, attention: str, growing: int):
    facts = catalogue.find(name)
    assert facts is not None
    assert facts.attention == attention
    assert kv_bytes_per_token(facts) == growing


@pytest.mark.parametrize(
    "spelling",
    ["Qwen/Qwen3-32B", "qwen/qwen3-32b", "Qwen3-32B", "Qwen/Qwen3-32B-TEE", " qwen3-32b-tee "],
)
def test_a_model_is_found_however_it_is_spelt(spelling: str):
    facts = catalogue.find(spelling)
    assert facts is not None
    assert facts.parameters == 32_762_123_264


def test_an_unknown_model_is_not_found():
    assert catalogue.find("nobody/nothing") is None
    assert catalogue.find("") is None


def test_loaded_is_less_than_stored_where_there_is_an_mtp_layer():
    facts = catalogue.find("deepseek-ai/DeepSeek-V3.1")
    assert facts is not None
    assert (facts.weights_bytes, facts.loaded_bytes) == (688_574_839_360, 673_150_611_808)


def test_what_a_plan_leaves_out_is_said_beside_where_its_facts_come_from(tmp_path: Path):
    assert "vision encoder works in is not counted" in know("google/gemma-3-27b-it", None, tmp_path).origin
    assert "encoder" not in know("Qwen/Qwen3-8B", None, tmp_path).origin
