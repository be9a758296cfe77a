"""The roofline: limits that a person can work out with a pencil, and directions that must hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes.hardware import profiles, roofline
from chutes.hardware.memory import Layout
from chutes.model import catalogue
from chutes.model.facts import ModelFacts

SHELF = profiles.load()
H100 = SHELF.gpus["h100_sxm"]


def facts_of(name: str) -> ModelFacts:
    found = catalogue.find(name)
    assert found is not None
    return found


def test_one_request_is_bound_by_reading_the_weights() -> None:
    """Qwen3-8B in bfloat16: some 15 GB a token over 3350 GB/s x 0.8 are 5.7 ms."""
    step = roofline.decode_step(facts_of("Qwen/Qwen3-8B"), Layout(), H100, 1, 128)
    assert step.memory == pytest.approx(5.7e-3, rel=0.05)
    assert step.memory > step.compute
    assert step.communication == 0


def test_experts_are_read_as_they_wake() -> None:
    assert roofline.distinct_experts(128, 8, 1) == pytest.approx(8 / 128)
    assert roofline.distinct_experts(128, 8, 1000) == pytest.approx(1, abs=1e-6)
    sparse = facts_of("Qwen/Qwen3-30B-A3B")
    assert roofline.weights_read(sparse, 1) < 0.2 * (sparse.loaded_bytes or 0)
    assert roofline.weights_read(sparse, 4096) > 0.9 * (sparse.loaded_bytes or 0)


def test_a_link_that_is_slow_shows() -> None:
    large = facts_of("meta-llama/Llama-3.1-70B-Instruct")
    layout = Layout(tensor_parallel=4)
    bridge = roofline.decode_step(large, layout, SHELF.gpus["l40s"], 1, 128).communication
    switch = roofline.decode_step(large, layout, H100, 1, 128).communication
    assert bridge > 2 * switch > 0


@given(
    name=st.sampled_from(["Qwen/Qwen3-32B", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-V3.2"]),
    gpu=st.sampled_from(list(SHELF.gpus)),
    batch=st.integers(1, 512),
    context=st.integers(1, 32_768),
)
def test_more_work_takes_longer(name: str, gpu: str, batch: int, context: int) -> None:
    facts, kind = facts_of(name), SHELF.gpus[gpu]

    def seconds(tp: int, requests: int, tokens: int) -> float:
        return roofline.decode_step(facts, Layout(tensor_parallel=tp), kind, requests, tokens).seconds

    assert seconds(1, batch, context) <= seconds(1, batch + 1, context)
    assert seconds(1, batch, context) <= seconds(1, batch, context + 1024)


def test_the_figures_are_labelled_an_estimate() -> None:
    found = roofline.speed(
        facts_of("Qwen/Qwen3-8B"), Layout(), H100, max_model_len=8192, max_num_seqs=64, kv_cache_tokens=40_960
    )
    assert found.estimate is True
    assert (found.context, found.batch) == (2048, 20)
    assert found.tokens_per_second_batch > found.tokens_per_second
    assert found.tpot_ms == pytest.approx(1000 / found.tokens_per_second)
