"""Engine arguments as what they fix of a plan, in every spelling that authors use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes.exception import InvalidSpec
from chutes.hardware.engine_args import parse, render
from chutes.hardware.memory import Layout, Setting


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--max-model-len", "8192"], "max_model_len", 8192),
        (["--max_model_len=8k"], "max_model_len", 8000),
        (["--max-model-len", "8K"], "max_model_len", 8192),
        (["--max-model-len", "1.5K"], "max_model_len", 1536),
        (["--max-model-len", "auto"], "max_model_len", None),
        (["-tp", "2"], "tensor_parallel", 2),
        (["--gpu-memory-utilization=0.95"], "gpu_memory_utilization", 0.95),
        (["--kv-cache-dtype", "fp8_e5m2"], "kv_cache_dtype", "fp8"),
        (["--enable-expert-parallel"], "expert_parallel", True),
        (["--no-enable-expert-parallel"], "expert_parallel", False),
        (["--enforce-eager", "--max-num-seqs", "7"], "enforce_eager", True),
        (["--max-num-seqs", "7", "--max-num-seqs", "9"], "max_num_seqs", 9),
        (["--speculative-config", "{}"], "uncounted", ("--speculative-config",)),
        (["--speculative_config.model", "x"], "uncounted", ("--speculative-config",)),
    ],
)
def test_spellings(words: list[str], field: str, value: object) -> None:
    assert getattr(parse("vllm", words), field) == value


def test_sglang_has_its_own_words() -> None:
    fixed = parse(
        "sglang", ["--tp", "8", "--ep-size", "8", "--context-length=4096", "--mem-fraction-static", "0.8"]
    )
    assert (fixed.tensor_parallel, fixed.expert_parallel, fixed.max_model_len) == (8, True, 4096)
    assert fixed.gpu_memory_utilization == 0.8


@pytest.mark.parametrize(
    "words",
    [
        ["--max-model-len", "many"],
        ["--gpu-memory-utilization", "90"],
        ["--kv-cache-dtype", "int3"],
        ["--max-num-seqs"],
    ],
)
def test_nonsense_is_named(words: list[str]) -> None:
    with pytest.raises(InvalidSpec, match=words[0]):
        parse("vllm", words)


@given(
    engine=st.sampled_from(["vllm", "sglang"]),
    layout=st.builds(
        Layout,
        tensor_parallel=st.sampled_from([2, 4, 8]),
        pipeline_parallel=st.integers(1, 4),
        expert_parallel=st.booleans(),
    ),
    setting=st.builds(
        Setting,
        max_model_len=st.integers(1, 10**7),
        max_num_seqs=st.none() | st.integers(1, 4096),
        max_num_batched_tokens=st.none() | st.integers(1, 10**6),
        kv_cache_dtype=st.sampled_from(["auto", "fp8"]),
        gpu_memory_utilization=st.none() | st.integers(1, 100).map(lambda share: share / 100),
        block_size=st.none() | st.sampled_from([16, 32, 128]),
        enforce_eager=st.booleans(),
    ),
)
def test_what_is_rendered_is_read_back(engine: str, layout: Layout, setting: Setting) -> None:
    fixed = parse(engine, render(engine, layout, setting))
    assert fixed.tensor_parallel == layout.tensor_parallel
    assert (fixed.pipeline_parallel or 1) == layout.pipeline_parallel
    assert bool(fixed.expert_parallel) == layout.expert_parallel
    for field in (
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "gpu_memory_utilization",
        "block_size",
    ):
        assert getattr(fixed, field) == getattr(setting, field)
    assert (fixed.kv_cache_dtype or "auto") == setting.kv_cache_dtype
    assert bool(fixed.enforce_eager) == setting.enforce_eager
