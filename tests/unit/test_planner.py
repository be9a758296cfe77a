"""The planner over the shipped catalogue: what is chosen, what is refused and why, what always holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes.exception import DoesNotFit, InvalidSpec, ModelError
from chutes.hardware import engine_args, planner, profiles
from chutes.hardware.choice import Choice, PlanResult, Request, layout_of
from chutes.hardware.devices import Gpu, Machine
from chutes.hardware.memory import Layout, violations
from chutes.hardware.offers import of_catalogue, of_machine
from chutes.hardware.versions import behaviour
from chutes.hardware.ways import Ways, layouts
from chutes.model import catalogue
from chutes.model.facts import ModelFacts

SHELF = profiles.load()
GIB = 1 << 30
RULES = behaviour("vllm", "0.32.0")
GPUS = [id_ for id_, gpu in SHELF.gpus.items() if gpu.compute_capability]
MODELS = catalogue.names()


def facts_of(name: str) -> ModelFacts:
    found = catalogue.find(name)
    assert found is not None
    return found


def plan(name: str, **request: object) -> PlanResult:
    return planner.plan_catalogue(name, facts_of(name), Request(**request), SHELF)  # pyright: ignore


def chosen(name: str, **request: object) -> Choice:
    choice = plan(name, **request).choice
    assert choice is not None
    return choice


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_catalogue_is_planned(name: str) -> None:
    best = chosen(name)
    assert best.fits
    assert best.fits_safely
    memory = best.per_gpu_bytes
    inside = memory.weights + memory.kv_cache_expected + memory.peak_activation + memory.non_torch
    assert inside in (memory.usable, memory.usable - memory.cuda_graph)


def test_the_cheapest_that_fits_is_chosen_and_cheaper_ones_say_why_not() -> None:
    found = plan("Qwen/Qwen3-32B")
    best = found.choice
    assert best is not None
    assert best.price_per_hour is not None
    cheaper = [one for one in found.rejected if (one.price_per_hour or 99) < best.price_per_hour]
    assert any(one.gpu == "l40s" and "of weights on each GPU" in one.reason for one in cheaper)
    prices = [one.price_per_hour for one in found.alternatives if one.price_per_hour is not None]
    assert prices == sorted(prices)
    assert all(price >= best.price_per_hour for price in prices)


def test_equal_prices_are_settled_by_fewer_gpus() -> None:
    found = plan("Qwen/Qwen3-32B", max_model_len=8192)
    assert found.choice is not None
    same = [one for one in found.alternatives if one.price_per_hour == found.choice.price_per_hour]
    assert all(one.gpu_count >= found.choice.gpu_count for one in same)


def test_a_published_refusal() -> None:
    """Qwen3-32B on one H100, vLLM 0.11: refused at 32,000 tokens with 4.45 GiB left, runs at 16,000."""
    pinned = {"gpu": "h100_sxm", "gpu_count": 1, "engine_version": "0.11.0", "gpu_memory_utilization": 0.9,
              "max_num_seqs": 1024}  # fmt: skip
    found = plan("Qwen/Qwen3-32B", max_model_len=32_000, **pinned)
    best = found.choice
    assert best is not None
    assert not best.fits
    assert (best.gpu, best.gpu_count, best.max_num_seqs) == ("h100_sxm", 1, 1024)
    assert best.per_gpu_bytes.kv_cache_expected / GIB == pytest.approx(4.45, abs=0.05)
    assert found.kv_cache_needed_bytes_per_gpu is not None
    assert found.kv_cache_needed_bytes_per_gpu / GIB == pytest.approx(7.81, abs=0.01)
    assert "at most 18," in best.reason
    # Where nothing was said of the batch, that very hardware is planned with a smaller one.
    open_ = chosen("Qwen/Qwen3-32B", max_model_len=32_000, **{**pinned, "max_num_seqs": None})
    assert (open_.gpu, open_.gpu_count, open_.fits_safely) == ("h100_sxm", 1, True)
    assert open_.max_num_seqs < 1024
    # The same card does it with a smaller batch, and that is offered first.
    lever = found.alternatives[0]
    assert (lever.gpu, lever.gpu_count, lever.fits_safely) == ("h100_sxm", 1, True)
    assert lever.max_num_seqs < 1024
    assert "a smaller batch" in lever.notes[0]
    assert chosen("Qwen/Qwen3-32B", max_model_len=16_000, **pinned).fits


def test_the_tier_is_shown_and_overruled_both_ways() -> None:
    small = plan("microsoft/phi-4", max_model_len=16_384).tier
    assert small is not None
    assert small.name == "medium"
    assert not small.agrees
    large = plan("moonshotai/Kimi-K2-Instruct-0905").tier
    assert large is not None
    assert not large.agrees
    assert "8 × 140 GB" in large.verdict
    assert "too little" in large.verdict
    assert any("overrides the tier" in reason for reason in plan("openai/gpt-oss-120b").reasons)


def test_capability_and_divisibility_are_reasons() -> None:
    old = chosen("openai/gpt-oss-20b", gpu="v100_32", gpu_count=1)
    assert not old.fits
    assert "7.0" in old.reason
    minimax = chosen("MiniMaxAI/MiniMax-M2.1", gpu="h100_sxm", gpu_count=8)
    assert minimax.fits
    assert minimax.expert_parallel
    assert any("128" in note for note in minimax.notes)
    with pytest.raises(DoesNotFit, match="no CUDA"):
        plan("Qwen/Qwen3-8B", gpu="mi300x", gpu_count=1)
    with pytest.raises(InvalidSpec, match="Did you mean 'h100'"):
        plan("Qwen/Qwen3-8B", gpu="h10")
    with pytest.raises(DoesNotFit, match="cannot be tensor parallel 3"):
        plan("Qwen/Qwen3-8B", gpu="l4", gpu_count=4, tensor_parallel=3)


def test_bounds_and_other_goals() -> None:
    dear = plan("Qwen/Qwen3-32B", max_price=0.6)
    assert dear.choice is not None
    assert not dear.choice.fits
    assert "nothing meets --max-price 0.6" in dear.unmet
    bound = [one for one in dear.rejected if one.kind == "bound"]
    assert bound
    assert all(one.price_per_hour is None or one.price_per_hour > 0.6 for one in bound)
    # What is named instead is the cheapest without the bound.
    assert dear.choice.label == chosen("Qwen/Qwen3-32B").label
    cheap, fast = chosen("Qwen/Qwen3-32B"), chosen("Qwen/Qwen3-32B", optimize="latency")
    assert cheap.speed is not None
    assert fast.speed is not None
    assert fast.speed.tokens_per_second > cheap.speed.tokens_per_second
    quick = chosen("Qwen/Qwen3-32B", max_tpot_ms=20.0)
    assert quick.speed is not None
    assert quick.speed.tpot_ms <= 20


def test_concurrency_is_room_for_so_many_full_requests() -> None:
    best = chosen("Qwen/Qwen3-8B", max_model_len=16_384, concurrency=16, max_num_seqs=16)
    assert best.max_concurrency_safe >= 16
    assert best.max_num_seqs == 16


def test_what_cannot_be_planned_says_so() -> None:
    odd = ModelFacts(parameters=10**9, weights_bytes=2 * 10**9, problem="model_type foo is not known here")
    with pytest.raises(ModelError, match=r"foo is not known here.*2\.0 GB"):
        planner.plan_catalogue("x", odd, Request(), SHELF)


def box(*gpus: Gpu) -> Machine:
    return Machine(cpus=32, memory_total=256 * GIB, memory_available=200 * GIB, gpus=gpus)


def card(index: int, used: float = 0.5, name: str = "NVIDIA L4", mib: int = 23_034) -> Gpu:
    return Gpu(index, name, mib << 20, (mib << 20) - int(used * GIB), (8, 9), f"GPU-{index}")


def test_here_counts_what_is_used() -> None:
    name = "Qwen/Qwen3-8B"
    found = planner.plan_here(
        name, facts_of(name), Request(max_model_len=8192), box(card(0, 20), card(1)), SHELF
    )
    assert found.choice is not None
    assert found.choice.gpus == [1]
    assert found.choice.price_per_hour is None
    busy = planner.plan_here(name, facts_of(name), Request(), box(card(0, 20), card(1, 20)), SHELF).choice
    assert busy is not None
    assert not busy.fits
    with pytest.raises(DoesNotFit, match="it has 0: NVIDIA L4"):
        planner.plan_here(name, facts_of(name), Request(gpu="h100"), box(card(0)), SHELF)


def test_here_cuts_a_context_that_was_not_asked_for() -> None:
    name = "Qwen/Qwen3-8B"
    found = planner.plan_here(name, facts_of(name), Request(shorten=True), box(card(0)), SHELF)
    assert found.choice is not None
    assert found.choice.fits_safely
    assert found.choice.max_model_len < 40_960
    assert any("context is cut" in reason for reason in found.reasons)


def test_a_cpu_is_hardware_too() -> None:
    laptop = Machine(cpus=8, memory_total=16 * GIB, memory_available=12 * GIB)
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    best = planner.plan_here(name, facts_of(name), Request(), laptop, SHELF).choice
    assert best is not None
    assert best.fits
    assert (best.gpu, best.gpu_count) == ("cpu", 0)
    assert best.environment == {"VLLM_CPU_KVCACHE_SPACE": "2"}
    assert best.kv_cache_tokens == 2 * GIB // (128 * 30 * 2 * 3 * 64 * 4) * 128  # float32, blocks of 128
    large = planner.plan_here("x", facts_of("Qwen/Qwen3-32B"), Request(), laptop, SHELF).choice
    assert large is not None
    assert not large.fits
    assert "too little" in large.reason


# ---- what must hold of every plan ----

requests = st.builds(
    Request,
    max_model_len=st.sampled_from([1024, 4096, 8192, 16_384]),
    concurrency=st.sampled_from([1, 2, 8]),
    max_num_seqs=st.sampled_from([None, 16, 64]),
    kv_cache_dtype=st.sampled_from(["auto", "fp8"]),
    gpu_memory_utilization=st.sampled_from([None, 0.8, 0.9, 0.95]),
    gpu=st.sampled_from(GPUS),
    gpu_count=st.sampled_from([1, 2, 4, 8]),
    engine=st.sampled_from(["vllm", "sglang"]),
)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(MODELS), request=requests)
def test_plan_to_engine_arguments_and_back(name: str, request: Request) -> None:
    facts = facts_of(name)
    first = planner.plan_catalogue(name, facts, request, SHELF).choice
    assert first is not None
    fixed = engine_args.parse(request.engine, first.engine_args)
    assert fixed.uncounted == ()
    again = Request(
        engine=request.engine,
        gpu=request.gpu,
        gpu_count=request.gpu_count,
        concurrency=request.concurrency,
        max_model_len=fixed.max_model_len,
        max_num_seqs=fixed.max_num_seqs,
        max_num_batched_tokens=fixed.max_num_batched_tokens,
        kv_cache_dtype="fp8" if fixed.kv_cache_dtype == "fp8" else "auto",
        gpu_memory_utilization=fixed.gpu_memory_utilization,
        tensor_parallel=fixed.tensor_parallel,
        pipeline_parallel=fixed.pipeline_parallel or 1,
        expert_parallel=fixed.expert_parallel or False,
    )
    if facts.attention == "none":
        assert first.engine_args == []  # no engine for text serves it
        return
    second = planner.plan_catalogue(name, facts, again, SHELF).choice
    assert second is not None
    told = {"notes", "reason"}  # a second run has nothing to say of the layouts that the first one tried
    assert second.model_dump(exclude=told) == first.model_dump(exclude=told)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(MODELS), request=requests, data=st.data())
def test_more_asked_never_makes_it_fit(name: str, request: Request, data: st.DataObject) -> None:
    facts = facts_of(name)
    more = request.model_copy(
        update={
            "max_model_len": (request.max_model_len or 1) * data.draw(st.sampled_from([1, 2, 4])),
            "concurrency": request.concurrency * data.draw(st.sampled_from([1, 2, 4])),
        }
    )
    (offer,), _ = of_catalogue(SHELF, request.gpu, request.gpu_count)
    less, lots = (Ways(facts, asked, SHELF).consider(offer) for asked in (request, more))
    if isinstance(lots, Choice) and lots.fits:
        assert isinstance(less, Choice)
        assert less.fits


# By hand from each config.json: tensor parallel sizes up to 8 that divide the attention heads, divide or are
# divided by the key-value heads, and cut the feed-forward layers, or experts that are not spread, into whole
# blocks of the quantisation.
MAY_BE_CUT = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": {1, 3},  # 9 heads, 3 of keys and values
    "microsoft/phi-4": {1, 2, 5},  # 40 heads, 10 of keys and values; 17920 wide
    "Qwen/Qwen3-32B": {1, 2, 4, 8},  # 64, 8
    "google/gemma-3-27b-it": {1, 2, 4, 8},  # 32, 16
    "google/gemma-3-1b-it": {1, 2, 4},  # 4, 1
    "openai/gpt-oss-20b": {1, 2, 4, 8},  # 64, 8; experts of 2880
    "Qwen/Qwen3-Next-80B-A3B-Instruct": {1, 2, 4, 8},  # 16, 2; 16 linear key heads; experts of 512
    "MiniMaxAI/MiniMax-M2.1": {1, 2, 4},  # 48, 8; experts of 1536 in blocks of 128
    "XiaomiMiMo/MiMo-V2-Flash": {1, 2, 4, 8},  # 64, 4 and 8; experts of 2048 in blocks of 128
}


@pytest.mark.parametrize("name", MAY_BE_CUT)
def test_no_layout_is_chosen_that_may_not_be(name: str) -> None:
    facts = facts_of(name)
    sizes = [Layout(tensor_parallel=size) for size in range(1, 9)]
    allowed = [one for one in sizes if not violations(facts, one, (9, 0), RULES).problems]
    assert {one.tensor_parallel for one in allowed} == MAY_BE_CUT[name]
    for count in (2, 3, 4, 6, 8):
        (offer,), _ = of_catalogue(SHELF, "b300", count)
        found = Ways(facts, Request(max_model_len=1024), SHELF).consider(offer)
        assert isinstance(found, Choice)
        assert layout_of(found).gpus == count
        assert found.expert_parallel or found.tensor_parallel_size in MAY_BE_CUT[name]


@given(count=st.integers(1, 16), experts=st.booleans())
def test_layouts_use_every_gpu(count: int, experts: bool) -> None:
    facts = facts_of("openai/gpt-oss-20b" if experts else "Qwen/Qwen3-8B")
    found = layouts(facts, Request(), count)
    assert found
    assert all(layout.gpus == count for layout in found)
    assert found[0].tensor_parallel == count


def test_machine_offers_mix_no_kinds() -> None:
    mixed = box(card(0), card(1), card(2, name="NVIDIA H100 80GB HBM3", mib=81_559))
    offers = of_machine(mixed, SHELF)
    assert {(offer.gpu, offer.count) for offer in offers} == {("l4", 1), ("l4", 2), ("h100_sxm", 1)}
    free = next(offer for offer in offers if offer.gpu == "l4")
    assert free.free is not None
    assert free.free <= free.memory
