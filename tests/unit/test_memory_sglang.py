"""SGLang's memory rule against numbers worked out by hand from its formulas."""

from __future__ import annotations

import pytest

from chutes.hardware import engine_args, planner, profiles, sglang
from chutes.hardware.choice import Request
from chutes.hardware.memory import GIB, RESERVE, Estimate, Layout, Setting, estimate
from chutes.hardware.sglang import Pools, batch_class, default_fraction, prefill_graphs
from chutes.hardware.versions import behaviour
from chutes.model import catalogue
from chutes.model.facts import ModelFacts

H100 = int(79.18 * GIB)
RULES = behaviour("sglang", "0.5.23")


def known(name: str) -> ModelFacts:
    facts = catalogue.find(name)
    assert facts is not None
    return facts


def test_classes_of_gpus():
    assert batch_class(int(14.56 * GIB), 1) == (2048, 8)
    assert batch_class(22 * GIB, 1) == (4096, 48)
    assert batch_class(44 * GIB, 2) == (4096, 32)
    assert batch_class(H100, 1) == (8192, 256)
    assert batch_class(140 * GIB, 4) == (8192, 512)
    assert batch_class(178 * GIB, 1) == (16_384, 512)


def test_sizes_of_prefill_graphs():
    assert prefill_graphs(2048) == 8 + 14 + 8 + 8 + 4
    assert prefill_graphs(4096) == 8 + 14 + 8 + 8 + 12
    assert prefill_graphs(8192) == 50 + 8


@pytest.mark.parametrize(
    ("name", "layout", "gib", "eager", "fraction"),
    [
        # 512 + 1.5 x 8192 + 128 + 2 x 256 + 8 x 58 = 13904 of 81080 MiB
        ("Qwen/Qwen3-8B", Layout(), 79.18, False, 0.829),
        # 512 + 12288 + 1024 + 2 x 512 + 464 = 15312
        ("Qwen/Qwen3-8B", Layout(tensor_parallel=8), 79.18, False, 0.811),
        # MLA: 1536 instead of 464
        ("deepseek-ai/DeepSeek-V3.1", Layout(tensor_parallel=8), 79.18, False, 0.798),
        # 512 + 12288 + 128 = 12928
        ("Qwen/Qwen3-8B", Layout(), 79.18, True, 0.841),
        # 512 + 1.5 x 4096 + 128 + 2 x 48 + 8 x 50 = 7280 of 22559 MiB
        ("Qwen/Qwen3-8B", Layout(), 22.03, False, 0.677),
    ],
)
def test_the_default_share(name: str, layout: Layout, gib: float, eager: bool, fraction: float):
    setting = Setting(max_model_len=4096, enforce_eager=eager)
    assert default_fraction(known(name), layout, setting, int(gib * GIB)) == fraction


def test_at_least_ten_gib_are_kept_back_on_large_gpus():
    small = Setting(max_model_len=4096, max_num_batched_tokens=2048, enforce_eager=True)
    # 512 + 1.5 x 2048 + 128 = 3712 < 10240 of 81080
    assert default_fraction(known("Qwen/Qwen3-8B"), Layout(), small, H100) == 0.874


def test_tokens_of_a_plain_model():
    facts = known("meta-llama/Llama-3.1-8B-Instruct")
    found = estimate(facts, Layout(), Setting(max_model_len=8192), H100, RULES)
    assert found.gpu_memory_utilization == 0.829
    assert found.usable == found.weights + found.kv_cache_expected + found.non_torch
    assert found.kv_cache_tokens == found.kv_cache_expected // 131_072
    assert found.max_concurrency == found.kv_cache_tokens / 8192
    assert found.kv_cache_needed == 8192 * 131_072
    assert found.kv_cache_safe == found.kv_cache_expected - RESERVE
    assert found.max_num_batched_tokens == 8192
    assert found.max_num_seqs == 4096  # tokens / 8192 x 512 is more
    paged = Setting(max_model_len=8192, block_size=64)
    assert estimate(facts, Layout(), paged, H100, RULES).kv_cache_tokens % 64 == 0


def test_a_window_has_its_own_pool_only_in_some_architectures():
    oss, gemma = known("openai/gpt-oss-20b"), known("google/gemma-3-27b-it")
    assert sglang.notes(oss) == []
    assert "as if they saw everything" in sglang.notes(gemma)[0]
    found = estimate(oss, Layout(), Setting(max_model_len=8192), H100, RULES)
    # 12 full and 12 sliding layers of 2 x 8 x 64 x 2 bytes a token: 24576 x (1 + 0.8)
    assert found.kv_cache_tokens == int(found.kv_cache_expected / (24_576 * 1.8))
    one = estimate(gemma, Layout(), Setting(max_model_len=8192), H100, RULES)
    assert one.kv_cache_needed == 8192 * 507_904  # all 62 layers


def test_pools_of_windows():
    pools = Pools(full=36_864, windowed=36_864, window=128, state=0, page=1)
    assert pools.cell == pytest.approx(66_355.2)
    assert pools.tokens(10 * GIB) == 161_817
    assert pools.requests(10 * GIB, 32_768) == 161_817 / 32_768
    assert pools.requests(10 * GIB, 256) == 161_817 * 0.8 / 256
    assert pools.needed(32_768) == 2_174_327_194
    assert pools.needed(1) == -(-163 * 663_552 // 10)  # the window's pool must hold 130 tokens: 163 x 0.8
    only = Pools(full=0, windowed=1000, window=128, state=0, page=1)
    assert only.tokens(1_000_000) == 1000


def test_pools_of_states():
    pools = Pools(full=24_576, windowed=0, window=0, state=1_000_000, page=1)
    assert pools.slots(100_000_000) == 46  # 0.9 / 1.9 of it, less one
    assert pools.tokens(100_000_000) == 2156  # what 47 states leave, / 24576
    assert pools.requests(100_000_000, 1000) == 2.156
    assert pools.requests(100_000_000, 100) == 9  # 46 // 5
    assert pools.tokens(pools.needed(5000)) >= 5000
    assert pools.slots(pools.needed(1)) >= 5


def test_latents_are_not_divided():
    facts = known("deepseek-ai/DeepSeek-V3.1")
    found = estimate(facts, Layout(tensor_parallel=8), Setting(max_model_len=4096), 140 * GIB, RULES)
    assert found.kv_cache_needed == 4096 * 70_272


def again(choice: planner.Choice, name: str) -> Estimate:
    """What the plan's arguments, read back, give."""
    fixed = engine_args.parse("sglang", choice.engine_args)
    layout = Layout(
        tensor_parallel=fixed.tensor_parallel or 1,
        pipeline_parallel=fixed.pipeline_parallel or 1,
        expert_parallel=bool(fixed.expert_parallel),
    )
    setting = Setting(
        max_model_len=fixed.max_model_len or 0,
        max_num_seqs=fixed.max_num_seqs,
        max_num_batched_tokens=fixed.max_num_batched_tokens,
        kv_cache_dtype="fp8" if fixed.kv_cache_dtype == "fp8" else "auto",
        gpu_memory_utilization=fixed.gpu_memory_utilization,
        block_size=fixed.block_size,
        enforce_eager=bool(fixed.enforce_eager),
    )
    return estimate(known(name), layout, setting, choice.per_gpu_bytes.total, RULES, gpu_name=choice.gpu_name)


@pytest.mark.parametrize("dtype", ["auto", "fp8"])
@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen3-32B",
        "openai/gpt-oss-120b",
        "deepseek-ai/DeepSeek-V3.1",
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
    ],
)
def test_a_plan_parsed_back_is_the_same(name: str, dtype: str):
    request = Request(engine="sglang", max_model_len=16_384, kv_cache_dtype=dtype)  # type: ignore[arg-type]
    choice = planner.plan_catalogue(name, known(name), request, profiles.load()).choice
    assert choice is not None
    assert choice.fits_safely
    found = again(choice, name)
    assert found.kv_cache_tokens == choice.kv_cache_tokens
    assert found.max_num_seqs == choice.max_num_seqs
    assert found.kv_cache_needed == choice.kv_cache_needed_bytes_per_gpu


def test_older_releases_are_counted_by_the_rules_that_were_read():
    assert behaviour("sglang", "").version == "0.5.23"
    assert "SGLang 0.5.9 is counted by the rules of 0.5.23" in behaviour("sglang", "0.5.9").note
