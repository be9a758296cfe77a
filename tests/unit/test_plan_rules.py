"""What an engine refuses or does unasked: plans against its own rules, and numbers worked out by hand."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chutes.cli.plan import Asked, request_of
from chutes.hardware import planner, profiles
from chutes.hardware.choice import Choice, PlanResult, Request
from chutes.hardware.constraints import violations
from chutes.hardware.devices import Gpu, Machine
from chutes.hardware.memory import GIB, Layout, Setting, estimate, kv_bytes_per_token
from chutes.hardware.versions import behaviour
from chutes.hardware.weights import stages_of
from chutes.model import catalogue
from chutes.model.attention import LayerAttention
from chutes.model.facts import ModelFacts

SHELF = profiles.load()
RULES = behaviour("vllm", "0.32.0")
GPUS = [id_ for id_, gpu in SHELF.gpus.items() if gpu.compute_capability]


def known(name: str) -> ModelFacts:
    facts = catalogue.find(name)
    assert facts is not None
    return facts


def plan(name: str, **request: object) -> PlanResult:
    return planner.plan_catalogue(name, known(name), Request(**request), SHELF)  # pyright: ignore


def best(found: PlanResult) -> Choice:
    assert found.choice is not None
    return found.choice


def glm(**fields: object) -> ModelFacts:
    config = {
        "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "num_hidden_layers": 78,
        "num_attention_heads": 64, "hidden_size": 6144, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 192, "v_head_dim": 256, "index_head_dim": 128, "vocab_size": 154_880,
    }  # fmt: skip
    return ModelFacts.from_config(config | fields)


# ---- batches: vLLM config/scheduler.py refuses max_num_batched_tokens < max_num_seqs ----


@settings(max_examples=60, deadline=None)
@example("MiniMaxAI/MiniMax-M2.1", "a6000", 8, None, None, 1, 128)  # experts spread: a switch among its flags
@given(
    name=st.sampled_from(catalogue.names()),
    gpu=st.sampled_from(GPUS),
    count=st.sampled_from([1, 2, 4, 8]),
    seqs=st.none() | st.integers(1, 6000),
    tokens=st.none() | st.integers(1, 40_000),
    concurrency=st.sampled_from([1, 3, 300, 5000]),
    length=st.sampled_from([128, 4096, 16_384]),
)
def test_no_plan_is_refused_for_its_batch(
    name: str, gpu: str, count: int, seqs: int, tokens: int, concurrency: int, length: int
):
    found = best(
        plan(
            name, gpu=gpu, gpu_count=count, max_num_seqs=seqs, max_num_batched_tokens=tokens,
            concurrency=concurrency, max_model_len=length,
        )
    )  # fmt: skip
    if found.fits and found.engine_args:
        assert found.max_num_batched_tokens >= found.max_num_seqs >= concurrency
        args = dict(pairwise(found.engine_args))  # switches among them take no value
        assert int(args["--max-num-batched-tokens"]) >= int(args["--max-num-seqs"])


def test_a_small_batch_lowers_the_requests_and_many_requests_raise_the_batch():
    few = best(plan("Qwen/Qwen3-32B", gpu="h100_sxm", gpu_count=1, max_num_batched_tokens=512,
                    max_model_len=8192))  # fmt: skip
    assert (few.fits, few.max_num_seqs, few.max_num_batched_tokens) == (True, 512, 512)
    many = best(plan("BAAI/bge-large-en-v1.5", concurrency=5000))
    assert (many.fits, many.max_num_seqs, many.max_num_batched_tokens) == (True, 5000, 5000)
    both = best(
        plan("Qwen/Qwen3-8B", gpu="h100_sxm", gpu_count=1, max_num_seqs=64, max_num_batched_tokens=32)
    )
    assert not both.fits
    assert "--max-num-batched-tokens 32 must not be below --max-num-seqs 64" in both.reason


def test_an_encoder_takes_a_prompt_whole():
    encoder = known("BAAI/bge-large-en-v1.5").model_copy(update={"max_model_len": 8192})
    setting = Setting(max_model_len=8192)
    assert RULES.batch(encoder, setting, 24 * GIB) == (8192, 256)
    assert RULES.batch(known("Qwen/Qwen3-8B"), setting, 24 * GIB) == (2048, 256)
    small = setting.model_copy(update={"max_num_batched_tokens": 2048})
    assert "takes whole" in violations(encoder, Layout(), (9, 0), RULES, small).problems[0]


def test_one_video_must_be_in_one_batch():
    """Gemma 4: 32 frames of 70 tokens and 8 around them."""
    sees = ModelFacts(architecture="Gemma4ForConditionalGeneration", vision=True)
    setting = Setting(max_model_len=32_768)
    assert RULES.batch(sees, setting, 24 * GIB)[0] == 32 * 78
    assert behaviour("vllm", "0.21.0").batch(sees, setting, 24 * GIB)[0] == 2048
    assert RULES.batch(sees, setting, 80 * GIB)[0] == 8192


def test_concurrency_does_not_lower_what_runs_at_once():
    assert request_of(Asked(concurrency=1), SHELF).max_num_seqs is None
    name = "Qwen/Qwen3-8B"
    assert best(plan(name, concurrency=1)) == best(plan(name))
    assert (
        best(plan(name, max_model_len=1024, concurrency=2000, gpu="b300", gpu_count=8)).max_num_seqs >= 2000
    )
    few = best(plan("Qwen/Qwen3-32B", gpu="h200", gpu_count=8, max_num_seqs=4, concurrency=64))
    assert not few.fits
    assert "runs 4 requests at once, and 64 are wanted" in few.reason


# ---- sparse MLA and 8-bit caches: kernels by compute capability ----


@pytest.mark.parametrize(
    ("version", "asked", "capability", "each"),
    [
        ("0.32.0", "auto", (9, 0), 576 * 2),
        ("0.32.0", "fp8", (9, 0), 656),  # FlashMLA's blobs
        ("0.32.0", "auto", (10, 0), 576),  # fp8 unasked, FlashInfer keeps it plain
        ("0.32.0", "auto", (10, 3), 576),
        ("0.31.0", "auto", (10, 0), 576 * 2),
        ("0.16.0", "fp8", (10, 0), 656),
        ("0.32.0", "auto", (12, 0), 656),  # the only kernel there has only blobs
    ],
)
def test_bytes_of_a_token_of_glm_5(version: str, asked: str, capability: tuple[int, int], each: int):
    """Beside the latent 132 bytes of index keys in each of 78 layers."""
    found = kv_bytes_per_token(
        glm(),
        Layout(tensor_parallel=8),
        asked,  # pyright: ignore[reportArgumentType]
        behaviour=behaviour("vllm", version),
        capability=capability,
    )
    assert found == 78 * (each + 132)


def test_layers_that_share_an_index_are_sparse_too():
    shared = glm(indexer_types=["full", *["shared"] * 77])
    assert [layer.index_dim for layer in shared.layers_attention[:3]] == [128, 0, 0]
    assert kv_bytes_per_token(shared, kv_dtype="fp8") == 78 * 656 + 132
    assert violations(shared, Layout(), (8, 0), RULES).problems


@pytest.mark.parametrize(
    ("gpu", "version", "runs"),
    [
        ("a100_sxm", "0.32.0", False),
        ("l40s", "0.32.0", False),
        ("h200", "0.32.0", True),
        ("b200", "0.32.0", True),
        ("pro_6000", "0.32.0", True),
        ("pro_6000", "0.22.0", False),
        ("h200", "0.10.2", False),
    ],
)
def test_sparse_mla_needs_a_kernel(gpu: str, version: str, runs: bool):
    kind = SHELF.gpus[gpu].compute_capability
    assert kind is not None
    sparse = known("deepseek-ai/DeepSeek-V3.2")
    problems = violations(sparse, Layout(tensor_parallel=8), kind, behaviour("vllm", version)).problems
    assert any("sparse attention" in one for one in problems) is not runs
    if not runs:
        asked = {"gpu": gpu, "gpu_count": 8, "engine_version": version, "max_model_len": 1024}
        assert not best(plan("deepseek-ai/DeepSeek-V3.2", **asked)).fits


def test_an_fp8_cache_needs_a_kernel():
    dense, latent = known("Qwen/Qwen3-32B"), known("deepseek-ai/DeepSeek-V3.1")
    fp8 = Setting(max_model_len=1024, kv_cache_dtype="fp8")

    def found(facts: ModelFacts, capability: tuple[int, int]):
        return violations(facts, Layout(tensor_parallel=8), capability, RULES, fp8)

    assert "an fp8 cache needs compute capability 8.0" in found(dense, (7, 5)).problems[0]
    assert "an fp8 cache needs compute capability 8.9" in found(latent, (8, 0)).problems[0]
    assert any("FlashInfer" in note for note in found(dense, (8, 6)).notes)
    assert not any("FlashInfer" in note for note in found(dense, (8, 9)).notes)
    assert not best(plan("Qwen/Qwen3-32B", gpu="t4", gpu_count=8, kv_cache_dtype="fp8")).fits


# ---- what older releases keep ----


@pytest.mark.parametrize(
    ("version", "everything"),
    [("0.9.2", True), ("0.10.0", False), ("0.11.0", True), ("0.13.0", True), ("0.14.0", False)],
)
def test_chunked_layers_of_older_releases(version: str, everything: bool):
    """Scout over 8 GPUs, as vLLM 0.11 printed it: 240.00 GiB at 10,485,760 tokens."""
    found = estimate(
        known("meta-llama/Llama-4-Scout-17B-16E-Instruct"),
        Layout(tensor_parallel=8),
        Setting(max_model_len=10_485_760),
        int(139.72 * GIB),
        behaviour("vllm", version),
    )
    assert (found.kv_cache_needed == 240 * GIB) is everything
    assert everything or found.kv_cache_needed < 70 * GIB


# ---- pipelines and heads ----

# Nemotron-3-Nano-30B-A3B: M Mamba, E experts, * attention.
NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"


def test_a_pipeline_is_cut_over_layers_that_keep_nothing_too():
    facts = ModelFacts.from_config(
        {
            "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "num_hidden_layers": 52,
            "hybrid_override_pattern": NANO, "num_attention_heads": 32, "num_key_value_heads": 2,
            "head_dim": 128, "hidden_size": 2688, "mamba_num_heads": 64, "mamba_head_dim": 64,
            "ssm_state_size": 128, "n_groups": 8, "vocab_size": 131_072,
        }
    )  # fmt: skip
    cut = [
        tuple(
            sum(layer.kind == kind for layer in facts.layers_attention if layer.place in stage)
            for kind in ("full", "linear")
        )
        for stage in stages_of(facts, 4)
    ]
    by_hand = [NANO[begin : begin + 13] for begin in (0, 13, 26, 39)]
    assert cut == [(part.count("*"), part.count("M")) for part in by_hand] == [(2, 6), (1, 6), (2, 5), (1, 6)]
    # 52 stages: every other one has experts only.
    assert "would hold no layer" in violations(facts, Layout(pipeline_parallel=52), (9, 0), RULES).problems[0]
    wide = ModelFacts.from_config(
        {"model_type": "nemotron_h", "num_hidden_layers": 52, "n_routed_experts": 128, "n_shared_experts": 1,
         "num_experts_per_tok": 6, "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712}
    ).experts  # fmt: skip
    assert wide is not None
    assert (wide.intermediate, wide.shared) == (1856, 3712)
    # 8 groups of Mamba states are neither cut in 16 nor copied.
    problems = violations(facts, Layout(tensor_parallel=16), (9, 0), RULES).problems
    assert problems == ["8 heads of linear attention cannot be split over tensor parallel size 16"]


def test_heads_of_linear_attention_are_whole():
    """Qwen3.5-27B: the elements of its states are a multiple of 12, its 16 key heads are not."""
    delta = LayerAttention(kind="linear", key_heads=16, value_heads=48, conv_elements=30_720,
                           state_elements=786_432)  # fmt: skip
    full = LayerAttention(kind="full", place=1, kv_heads=4, head_dim_k=256, head_dim_v=256)
    facts = ModelFacts(layers=2, attention_heads=24, layers_attention=(delta, full), intermediate_size=17_424)
    assert violations(facts, Layout(tensor_parallel=8), (9, 0), RULES).problems == []
    assert violations(facts, Layout(tensor_parallel=12), (9, 0), RULES).problems == [
        "16 heads of linear attention cannot be split over tensor parallel size 12"
    ]


def test_feed_forward_layers_are_cut_evenly():
    facts = known("HuggingFaceTB/SmolLM2-135M-Instruct")  # 9 heads, 3 of keys; 1536 wide
    assert violations(facts, Layout(tensor_parallel=3), (9, 0), RULES).problems == []
    odd = facts.model_copy(update={"intermediate_size": 1537})
    assert violations(odd, Layout(tensor_parallel=3), (9, 0), RULES).problems == [
        "feed-forward layers of 1537 cannot be cut over tensor parallel size 3"
    ]


# ---- shares, bounds, machines ----


@pytest.mark.parametrize(("asked", "told"), [(0.987654321, 0.9876), (0.99999, 0.9999), (0.57, 0.57), (1, 1)])
def test_a_share_is_counted_as_it_is_told(asked: float, told: float):
    found = best(plan("Qwen/Qwen3-8B", gpu="h200", gpu_count=1, gpu_memory_utilization=asked))
    assert found.gpu_memory_utilization == told
    assert found.per_gpu_bytes.usable == ceil(SHELF.gpus["h200"].memory_bytes * told)
    assert f"{told:g}" in found.engine_args


def h100(used_gib: float) -> Machine:
    total = int(79.65 * GIB)
    card = Gpu(0, "NVIDIA H100 80GB HBM3", total, total - int(used_gib * GIB), (9, 0), "GPU-0")
    return Machine(cpus=32, memory_total=256 * GIB, memory_available=200 * GIB, gpus=(card,))


def test_a_gpu_that_others_fill_says_so():
    facts = known("Qwen/Qwen3-8B")
    found = best(planner.plan_here("m", facts, Request(shorten=True), h100(79.6), SHELF))
    assert not found.fits
    assert found.reason == "0.05 GiB of 79.18 GiB are free: others use the rest"
    assert found.gpu_memory_utilization == 0


def test_what_stands_here_costs_nothing():
    facts = known("Qwen/Qwen3-8B")
    found = best(planner.plan_here("m", facts, Request(max_price=5), h100(0.5), SHELF))
    assert found.fits_safely
    assert found.price_per_hour is None


def test_more_gpus_than_the_platform_rents_are_said():
    assert any("up to 8 GPUs" in one for one in plan("Qwen/Qwen3-32B", gpu="h100", gpu_count=16).reasons)
    assert not any("up to 8 GPUs" in one for one in plan("Qwen/Qwen3-32B", gpu="h100", gpu_count=8).reasons)


# ---- processors ----


def smol(**request: object) -> Choice:
    machine = Machine(cpus=8, memory_total=16 * GIB, memory_available=12 * GIB)
    asked = Request(**request)  # pyright: ignore[reportArgumentType]
    return best(planner.plan_here("m", known("HuggingFaceTB/SmolLM2-135M-Instruct"), asked, machine, SHELF))


@pytest.mark.parametrize(
    ("request_", "gib"),
    [
        # A token: 30 layers x 2 x 3 heads x 64 x 4 bytes. A request of 8192: 360 MiB.
        ({}, 2),
        ({"concurrency": 4}, 2),
        ({"concurrency": 16}, 6),
        ({"concurrency": 16, "kv_cache_dtype": "fp8"}, 2),
        ({"concurrency": 24}, 9),
    ],
)
def test_the_space_of_a_cpu_is_made_for_what_is_asked(request_: dict, gib: int):
    found = smol(**request_)
    assert found.fits
    assert found.environment == {"VLLM_CPU_KVCACHE_SPACE": str(gib)}
    assert found.per_gpu_bytes.kv_cache_expected == gib * GIB
    assert ("--kv-cache-dtype" in found.engine_args) is ("kv_cache_dtype" in request_)


def test_a_cpu_that_is_too_small_reports_the_space_that_it_counted():
    found = smol(concurrency=100)
    assert not found.fits
    space = int(found.environment["VLLM_CPU_KVCACHE_SPACE"])
    assert found.per_gpu_bytes.kv_cache_expected == space * GIB == 9 * GIB
    assert found.kv_cache_tokens == 9 * GIB // (46_080 * 128) * 128
    cut = smol(concurrency=100, shorten=True)
    assert cut.fits
    assert cut.max_model_len < 8192 / 3
    assert cut.max_concurrency >= 100


def test_what_means_nothing_on_a_cpu_is_said():
    machine = Machine(cpus=8, memory_total=16 * GIB, memory_available=12 * GIB)
    asked = Request(gpu_memory_utilization=0.9, max_tpot_ms=20)
    said = planner.plan_here("m", known("HuggingFaceTB/SmolLM2-135M-Instruct"), asked, machine, SHELF).reasons
    assert any("--gpu-memory-utilization was not used" in one for one in said)
    assert any("--max-tpot was not checked" in one for one in said)
