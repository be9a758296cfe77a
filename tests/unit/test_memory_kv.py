"""Pages, groups and blocks of the KV cache, against numbers that vLLM printed and against its rules."""

from __future__ import annotations

import pytest

from chutes.hardware import kv_cache
from chutes.hardware.kv_cache import Demand, Format
from chutes.hardware.memory import GIB, Layout, cpu_kv_tokens, kv_bytes_per_token
from chutes.hardware.versions import behaviour
from chutes.model import catalogue
from chutes.model.attention import LayerAttention
from chutes.model.facts import ModelFacts

NEW = behaviour("vllm", "0.32.0")
FULL = LayerAttention(kind="full", kv_heads=8, head_dim_k=128, head_dim_v=128)
SLIDING = LayerAttention(kind="sliding", kv_heads=8, head_dim_k=128, head_dim_v=128, window=1024)


def known(name: str) -> ModelFacts:
    facts = catalogue.find(name)
    assert facts is not None
    return facts


def form(tp: int = 1, block_size: int = 16) -> Format:
    return Format(element_bytes=2, model_bytes=2, block_size=block_size, tensor_parallel=tp)


def test_the_default_model_on_a_cpu_as_it_was_logged():
    facts = known("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert cpu_kv_tokens(facts, 4 * GIB, 128, 8192, 2048, "float32", NEW) == 93_184


def test_kimi_k2_thinking_on_eight_h200_as_it_was_logged():
    """46.80 GiB for 715,072 tokens: the latent is on every rank, whatever the tensor parallel size."""
    facts = known("moonshotai/Kimi-K2-Thinking")
    pool = kv_cache.pool(facts.layers_attention, form(8))
    demand = Demand(262_144, 8192)
    assert pool.tokens(round(46.80 * GIB), demand, "blocks") == pytest.approx(715_072, rel=2e-4)


def test_mistral_small_on_one_h100_as_it_was_logged():
    """28.20 GiB for 184,832 tokens of 163,840 bytes, 11.55 requests of 16,000."""
    pool = kv_cache.pool([FULL] * 40, form(block_size=128))
    demand = Demand(16_000, 8192)
    assert pool.tokens(round(28.2 * GIB), demand, "blocks") == pytest.approx(184_832, abs=128)
    assert pool.concurrency(round(28.2 * GIB), demand) == pytest.approx(11.55, abs=0.01)


def test_scout_without_the_hybrid_manager_as_it_was_logged():
    """240.00 GiB a GPU at 10,485,760 tokens over 8 GPUs: every layer as if it saw everything."""
    facts = known("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    pool = kv_cache.pool(facts.layers_attention, form(8), hybrid=False)
    assert pool.bytes_needed(Demand(10_485_760, 8192)) == 240 * GIB


def test_fp8_halves_and_heads_are_split_then_copied():
    facts = known("Qwen/Qwen3-235B-A22B")  # 4 key-value heads, 94 layers
    whole = kv_bytes_per_token(facts)
    assert kv_bytes_per_token(facts, kv_dtype="fp8") == whole // 2
    assert kv_bytes_per_token(facts, Layout(tensor_parallel=4)) == whole // 4
    assert kv_bytes_per_token(facts, Layout(tensor_parallel=8)) == whole // 4
    assert kv_bytes_per_token(facts, Layout(pipeline_parallel=2)) == whole // 2


def test_mla_is_not_divided_and_its_indexer_counts():
    plain, sparse = known("deepseek-ai/DeepSeek-V3.1"), known("deepseek-ai/DeepSeek-V3.2")
    assert kv_bytes_per_token(plain, Layout(tensor_parallel=8)) == 70_272
    assert kv_bytes_per_token(sparse) == 70_272 + 61 * 132
    assert kv_bytes_per_token(sparse, kv_dtype="fp8") == 61 * (656 + 132)


def test_keys_and_values_of_different_width():
    assert kv_bytes_per_token(known("XiaomiMiMo/MiMo-V2-Flash")) == 9 * 4 * (192 + 128) * 2


@pytest.mark.parametrize(
    ("full", "sliding", "sizes"),
    [
        (4, 20, [4] * 6),
        (3, 11, [3, 3, 3, 3, 2]),
        (12, 13, [13, 12]),  # 13 < 1.5 × 12: one padded group each
        (2, 0, [2]),
    ],
)
def test_layers_are_grouped_evenly(full: int, sliding: int, sizes: list[int]):
    found = kv_cache.groups(kv_cache.pages([FULL] * full + [SLIDING] * sliding, form()))
    assert sorted((len(group.layers) for group in found), reverse=True) == sizes
    assert sorted(index for group in found for index in group.layers) == list(range(full + sliding))


def test_blocks_of_a_window_hold_the_batches_in_flight():
    (group,) = kv_cache.groups(kv_cache.pages([SLIDING], form()))
    assert kv_cache.blocks_of_request(group, Demand(100_000, 2048)) == -(-(1023 + 2048) // 16) + 1
    assert kv_cache.blocks_of_request(group, Demand(512, 2048)) == 512 // 16 + 1
    assert NEW.in_flight_tokens(2048) == 4096
    assert behaviour("vllm", "0.23.0").in_flight_tokens(2048) == 2048


def test_attention_blocks_grow_until_they_hold_a_state():
    facts = known("Qwen/Qwen3-Next-80B-A3B-Instruct")
    size = kv_cache.aligned_block_size(facts.layers_attention, form())
    linear = next(layer for layer in facts.layers_attention if layer.kind == "linear")
    page = kv_cache.token_bytes(facts.layers_attention[3], form()) * size
    assert page >= kv_cache.state_bytes(linear, form()) > page - 16 * 2048
    assert {one.bytes for one in kv_cache.pages(facts.layers_attention, form())} == {page}


def test_a_model_without_kv_cache_has_no_blocks():
    pool = kv_cache.pool((), form())
    assert (pool.block_bytes, pool.blocks(GIB), pool.tokens(GIB, Demand(512, 512), "blocks")) == (0, 0, 0)
