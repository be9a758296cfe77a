"""The budget of a GPU: its terms sum, and it is monotonic in what a person would expect it to be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from chutes.exception import InvalidSpec, ModelError
from chutes.hardware.constraints import violations
from chutes.hardware.memory import (
    GIB,
    RESERVE,
    Estimate,
    Layout,
    Setting,
    estimate,
    kv_bytes_per_token,
    weights_per_gpu,
)
from chutes.hardware.versions import behaviour, newest, parse
from chutes.hardware.weights import stages
from chutes.model import catalogue
from chutes.model.facts import ModelFacts

MODELS = [
    "Qwen/Qwen3-32B",
    "deepseek-ai/DeepSeek-V3.1",
    "deepseek-ai/DeepSeek-V3.2",
    "openai/gpt-oss-20b",
    "google/gemma-3-27b-it",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "XiaomiMiMo/MiMo-V2-Flash",
    "BAAI/bge-large-en-v1.5",
]
VERSIONS = ["0.11.0", "0.20.1", "0.23.0", "0.32.0"]
SIZES = [1, 2, 4, 8]
RULES = behaviour("vllm", "0.32.0")

names = st.sampled_from(MODELS)
versions = st.sampled_from(VERSIONS)
layouts = st.builds(
    Layout,
    tensor_parallel=st.sampled_from(SIZES),
    pipeline_parallel=st.sampled_from([1, 2, 4]),
    expert_parallel=st.booleans(),
)
gigabytes = st.floats(min_value=4, max_value=300)
# Given, not the release's own: it doubles its batch at 70 GiB, and then a larger GPU may fit less.
batches = st.sampled_from([256, 2048, 8192])
lengths = st.integers(min_value=1, max_value=2_000_000)
sequences = st.integers(min_value=1, max_value=2048)


def known(name: str) -> ModelFacts:
    facts = catalogue.find(name)
    assert facts is not None
    return facts


def plan(
    name: str,
    layout: Layout,
    version: str,
    gib: float,
    batch: int,
    length: int,
    seqs: int = 256,
    utilization: float | None = None,
) -> Estimate:
    setting = Setting(
        max_model_len=length,
        max_num_seqs=seqs,
        max_num_batched_tokens=batch,
        gpu_memory_utilization=utilization,
    )
    return estimate(known(name), layout, setting, int(gib * GIB), behaviour("vllm", version))


@given(names, layouts, versions, gigabytes, batches, lengths, st.booleans())
def test_the_terms_sum(
    name: str, layout: Layout, version: str, gib: float, batch: int, length: int, eager: bool
):
    setting = Setting(max_model_len=length, max_num_batched_tokens=batch, enforce_eager=eager)
    found = estimate(known(name), layout, setting, int(gib * GIB), behaviour("vllm", version))
    parts = found.weights + found.kv_cache_expected + found.peak_activation + found.non_torch
    assert parts + (found.cuda_graph if found.cuda_graph_subtracted else 0) == found.usable <= found.total
    assert found.kv_cache_safe == found.kv_cache_expected - RESERVE
    assert found.fits <= found.fits_expected
    assert found.fits_expected == (found.kv_cache_expected >= max(found.kv_cache_needed, 0))
    assert found.max_concurrency_safe <= found.max_concurrency
    assert found.reason
    assert eager <= (found.cuda_graph == 0)


@given(names, layouts, versions, gigabytes, st.floats(min_value=0, max_value=200), batches, lengths)
def test_more_memory_never_makes_a_fit_fail(
    name: str, layout: Layout, version: str, gib: float, more: float, batch: int, length: int
):
    small, large = (plan(name, layout, version, size, batch, length) for size in (gib, gib + more))
    assert small.fits <= large.fits
    assert small.fits_expected <= large.fits_expected
    assert small.kv_cache_expected <= large.kv_cache_expected
    assert small.max_concurrency <= large.max_concurrency
    assert small.estimated_max_model_len <= large.estimated_max_model_len


@given(names, layouts, versions, gigabytes, batches, lengths, st.integers(0, 100_000), sequences, sequences)
def test_longer_or_more_at_once_never_needs_less(
    name: str,
    layout: Layout,
    version: str,
    gib: float,
    batch: int,
    length: int,
    more: int,
    few: int,
    extra: int,
):
    one = plan(name, layout, version, gib, batch, length, few)
    longer = plan(name, layout, version, gib, batch, length + more, few)
    assert one.kv_cache_needed <= longer.kv_cache_needed
    assert one.fits >= longer.fits
    crowded = plan(name, layout, version, gib, batch, length, few + extra)
    assert one.peak_activation <= crowded.peak_activation
    assert one.kv_cache_expected >= crowded.kv_cache_expected
    assert one.fits >= crowded.fits


@given(names, st.sampled_from(SIZES), st.sampled_from(SIZES))
def test_tensor_parallelism_divides_only_what_it_may(name: str, one: int, other: int):
    facts, (fewer, more) = known(name), sorted((one, other))
    few, many = Layout(tensor_parallel=fewer), Layout(tensor_parallel=more)
    ratio = more / fewer
    assert weights_per_gpu(facts, few) >= weights_per_gpu(facts, many) >= (facts.replicated_bytes or 0)
    assert weights_per_gpu(facts, many) * ratio >= weights_per_gpu(facts, few)
    assert kv_bytes_per_token(facts, few) >= kv_bytes_per_token(facts, many)
    assert kv_bytes_per_token(facts, many) * ratio >= kv_bytes_per_token(facts, few)
    if facts.attention == "mla":
        assert kv_bytes_per_token(facts, few) == kv_bytes_per_token(facts, many)


@hypothesis_settings(deadline=None, max_examples=30)
@given(names, layouts, versions, st.floats(min_value=20, max_value=300), batches)
def test_the_longest_context_fits_and_one_more_does_not(
    name: str, layout: Layout, version: str, gib: float, batch: int
):
    limit = known(name).max_model_len or 1
    longest = plan(name, layout, version, gib, batch, limit).estimated_max_model_len
    if longest:
        assert plan(name, layout, version, gib, batch, longest).fits_expected
    if longest < limit and known(name).layers_attention:
        assert not plan(name, layout, version, gib, batch, longest + 1).fits_expected


@given(st.integers(1, 200), st.integers(1, 16))
def test_every_layer_is_in_one_stage(layers: int, count: int):
    found = stages(layers, count)
    assert [index for stage in found for index in stage] == list(range(layers))
    assert len(found) == count
    assert max(len(stage) for stage in found) - min(len(stage) for stage in found) <= 1


@pytest.mark.parametrize(
    ("name", "tp", "length", "fits"),
    [
        ("Qwen/Qwen3-32B", 1, 16_000, True),  # [log] 4.45 GiB of KV cache on one H100
        ("Qwen/Qwen3-32B", 1, 32_000, False),  # [log] refused
        ("Qwen/Qwen3-32B", 2, 32_000, True),
    ],
)
def test_what_was_logged_to_fit_on_an_h100(name: str, tp: int, length: int, fits: bool):
    found = estimate(
        known(name),
        Layout(tensor_parallel=tp),
        Setting(max_model_len=length, gpu_memory_utilization=0.9),
        int(79.18 * GIB),
        behaviour("vllm", "0.11.0"),
        gpu_name="NVIDIA H100 80GB HBM3",
    )
    assert found.fits_expected is fits
    assert ("too little" in found.reason) is not found.fits


def test_by_how_much_it_does_not_fit_is_said():
    found = plan("Qwen/Qwen3-32B", Layout(), "0.32.0", 44.39, 2048, 8192)
    assert not found.fits_expected
    assert "weights of 61.05 GiB a GPU exceed the 40.84 GiB usable: 20.22 GiB too little" in found.reason
    assert found.estimated_max_model_len == 0


def test_releases_differ():
    old, new, newer = (behaviour("vllm", version) for version in ("0.19.1", "0.20.0", "0.20.1"))
    assert (old.default_utilization, new.default_utilization) == (0.90, 0.92)
    assert (old.cuda_graphs_subtracted, new.cuda_graphs_subtracted) == (False, True)
    assert (new.token_count, newer.token_count) == ("blocks", "concurrency")
    assert behaviour("vllm", "").version == newest("vllm") == "0.33.0"
    assert parse("0.11.1rc2") == (0, 11, 1)
    assert not behaviour("vllm", "0.33.0").note
    assert "newer than 0.33.0" in behaviour("vllm", "0.40.0").note
    assert behaviour("vllm", "0.8.5").sampler_bytes == behaviour("vllm", "0.9.0").sampler_bytes


def test_batch_classes():
    new, old = behaviour("vllm", "0.33.0"), behaviour("vllm", "0.27.1")
    for rules in (new, old):
        assert rules.default_batch(79 * GIB, "NVIDIA H100 80GB HBM3") == (8192, 1024)
        assert rules.default_batch(79 * GIB, "NVIDIA A100-SXM4-80GB") == (2048, 256)
        assert rules.default_batch(79 * GIB, "NVIDIA A800-SXM4-80GB") == (8192, 1024)
        assert rules.default_batch(44 * GIB, "NVIDIA L40S") == (2048, 256)
    assert old.default_batch(178 * GIB, "NVIDIA B200") == (8192, 1024)
    assert new.default_batch(178 * GIB, "NVIDIA B200") == (16_384, 1024)
    assert new.default_batch(119 * GIB, "NVIDIA GB10") == (2048, 256)
    assert behaviour("vllm", "0.32.0").default_batch(119 * GIB, "NVIDIA GB10") == (8192, 1024)


@pytest.mark.parametrize(
    ("version", "name", "second", "sampler", "subtracted"),
    [
        ("0.16.0", "Qwen/Qwen3-8B", False, 38.35, False),
        ("0.17.0", "Qwen/Qwen3-8B", False, 14, False),
        ("0.21.0", "Qwen/Qwen3-8B", False, 14, True),
        ("0.22.0", "Qwen/Qwen3-8B", True, 6, False),
        ("0.22.0", "meta-llama/Llama-3.1-8B-Instruct", False, 14, True),
        ("0.23.0", "meta-llama/Llama-3.1-8B-Instruct", True, 6, False),
        ("0.24.0", "google/gemma-3-27b-it", False, 14, True),
        ("0.25.0", "google/gemma-3-27b-it", True, 6, False),
        ("0.26.0", "google/gemma-3-27b-it", True, 2, False),
        ("0.28.0", "MiniMaxAI/MiniMax-M2.1", False, 14, True),
        ("0.29.0", "MiniMaxAI/MiniMax-M2.1", True, 2, True),
        ("0.33.0", "MiniMaxAI/MiniMax-M2.1", True, 14, True),
    ],
)
def test_which_runner_has_a_model(version: str, name: str, second: bool, sampler: float, subtracted: bool):
    found = behaviour("vllm", version).running(known(name))
    assert found.on_second_runner is second
    assert found.sampler_bytes == sampler
    assert found.cuda_graphs_subtracted is subtracted


def test_tokens_in_flight():
    dense = known("Qwen/Qwen3-8B")
    before, since = behaviour("vllm", "0.25.1"), behaviour("vllm", "0.26.0")
    assert before.in_flight_tokens(2048) == before.in_flight_tokens(2048, 4) == 2048
    assert since.in_flight_tokens(2048) == 4096
    assert since.in_flight_tokens(2048, 4) == 4 * 2048  # the first runner does not overlap in a pipeline
    assert since.running(dense).in_flight_tokens(2048, 4) == 5 * 2048


@pytest.mark.parametrize(
    ("engine", "version", "words"), [("vllm", "latest", "not a version"), ("tgi", "1.0", "not known")]
)
def test_what_is_no_release_is_refused(engine: str, version: str, words: str):
    with pytest.raises(InvalidSpec, match=words):
        behaviour(engine, version)


def test_unknown_models_cannot_be_estimated():
    unknown = ModelFacts.from_config({"architectures": ["NewForCausalLM"], "model_type": "new"})
    assert "model_type new is not known" in unknown.problem
    rules = behaviour("vllm", "0.32.0")
    with pytest.raises(ModelError, match="NewForCausalLM: cannot plan"):
        estimate(unknown, Layout(), Setting(max_model_len=1), GIB, rules)
    no_size = known("Qwen/Qwen3-32B").model_copy(update={"loaded_bytes": None, "weights_bytes": None})
    with pytest.raises(ModelError, match="size of the weights"):
        estimate(no_size, Layout(), Setting(max_model_len=1), GIB, rules)


@pytest.mark.parametrize(
    ("name", "layout", "words"),
    [
        ("microsoft/phi-4", Layout(tensor_parallel=4), "10 key-value heads can be neither split nor copied"),
        ("microsoft/phi-4", Layout(tensor_parallel=2), ""),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", Layout(tensor_parallel=2), "9 attention heads"),
        ("MiniMaxAI/MiniMax-M2.1", Layout(tensor_parallel=8), "expert parallelism or tensor parallel size 4"),
        ("MiniMaxAI/MiniMax-M2.1", Layout(tensor_parallel=8, expert_parallel=True), ""),
        ("MiniMaxAI/MiniMax-M2.1", Layout(tensor_parallel=4), ""),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8", Layout(tensor_parallel=8), "experts of 2560"),
        ("deepseek-ai/DeepSeek-V3.1", Layout(tensor_parallel=8), ""),
        ("moonshotai/Kimi-K2-Instruct-0905", Layout(tensor_parallel=8), ""),
        ("XiaomiMiMo/MiMo-V2-Flash", Layout(tensor_parallel=8), ""),
        ("Qwen/Qwen3-32B", Layout(pipeline_parallel=65), "65 pipeline stages"),
    ],
)
def test_what_cannot_be_divided(name: str, layout: Layout, words: str):
    found = violations(known(name), layout, (9, 0), RULES).problems
    assert words in " ".join(found)
    assert bool(found) == bool(words)


def test_formats_below_their_capability_are_emulated_or_refused():
    fp8, mxfp4 = known("deepseek-ai/DeepSeek-V3.1"), known("openai/gpt-oss-20b")
    assert violations(fp8, Layout(), (9, 0), RULES).notes == []
    assert "emulated" in violations(fp8, Layout(), (8, 0), RULES).notes[0]
    assert "widen" in violations(fp8, Layout(), (8, 0), behaviour("sglang", "")).notes[0]
    assert "need compute capability 8.0" in violations(mxfp4, Layout(), (7, 5), RULES).problems[0]
    assert "float16" in violations(known("Qwen/Qwen3-8B"), Layout(), (7, 5), RULES).notes[0]
