"""What a person asks of a plan and must be told rightly: bounds, one's own GPUs, odd models, odd names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chutes.exception import InvalidSpec, ModelError
from chutes.hardware import gpu_names, planner, profiles
from chutes.hardware.choice import Choice, PlanResult, Request
from chutes.hardware.compare import compare
from chutes.hardware.devices import Machine
from chutes.model import catalogue, known, source, variants
from chutes.model.facts import ModelFacts

SHELF = profiles.load()
GIB = 1 << 30


def facts_of(name: str) -> ModelFacts:
    found = catalogue.find(name)
    assert found is not None
    return found


def plan(name: str, **request: object) -> PlanResult:
    return planner.plan_catalogue(name, facts_of(name), Request(**request), SHELF)  # pyright: ignore


def best(found: PlanResult) -> Choice:
    assert found.choice is not None
    return found.choice


def laptop(gib: float) -> Machine:
    return Machine(cpus=2, memory_total=24 * GIB, memory_available=int(gib * GIB))


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "zai-org/GLM-4.6", "black-forest-labs/FLUX.1-dev"])
def test_a_model_too_large_for_the_processors_is_an_answer(name: str) -> None:
    found = planner.plan_here(name, facts_of(name), Request(shorten=True), laptop(20), SHELF)
    assert not best(found).fits
    assert "too little" in best(found).reason
    assert "GPU" in found.fix


def test_processors_say_what_cuts_the_context() -> None:
    name = "meta-llama/Llama-3.2-1B-Instruct"
    found = planner.plan_here(name, facts_of(name), Request(shorten=True), laptop(23), SHELF)
    assert best(found).max_model_len == 65_536
    said = " ".join(found.reasons)
    assert "131,072 tokens are cut to the 65,536" in said
    assert "kv_cache_max_gib" in said
    assert "not estimated" in said


def test_the_same_hardware_gets_the_same_answer_however_it_is_named() -> None:
    free, pinned = (best(plan("openai/gpt-oss-120b", gpu="h100", gpu_count=count)) for count in (None, 1))
    assert free == pinned
    assert pinned.fits_safely
    # Two batches in flight, of 8,192 tokens each, would take the room of one request.
    tight = {"gpu": "h200", "gpu_count": 8, "max_model_len": 32_768}
    assert any("lowered to" in one for one in plan("moonshotai/Kimi-K2-Instruct-0905", **tight).reasons)
    given = best(plan("moonshotai/Kimi-K2-Instruct-0905", max_num_seqs=1024, **tight))
    assert not given.fits_safely
    assert given.max_num_seqs == 1024


@pytest.mark.parametrize(
    ("name", "gpu", "count"),
    [("moonshotai/Kimi-K2-Instruct-0905", "h200", 8), ("Qwen/Qwen3-8B", "4090", 1)],
)
def test_one_longest_context_and_it_is_safe(name: str, gpu: str, count: int) -> None:
    found = plan(name, gpu=gpu, gpu_count=count)
    assert not best(found).fits_safely
    safe, most = found.longest_context, found.longest_context_expected
    assert safe is not None
    assert most is not None
    assert f"{safe:,} tokens fit safely, at most {most:,}" in best(found).reason
    assert f"--max-model-len {safe}" in found.fix
    assert best(plan(name, gpu=gpu, gpu_count=count, max_model_len=safe)).fits_safely
    tight = best(plan(name, gpu=gpu, gpu_count=count, max_model_len=most))
    assert tight.fits
    assert not tight.fits_safely


def test_the_longest_context_is_for_as_many_requests_as_were_asked() -> None:
    one = plan("Qwen/Qwen3-8B", gpu="h100", gpu_count=1, max_model_len=8192).longest_context
    many = plan("Qwen/Qwen3-8B", gpu="h100", gpu_count=1, max_model_len=8192, concurrency=20).longest_context
    assert one is not None
    assert many is not None
    assert 8192 <= many < one
    again = plan("Qwen/Qwen3-8B", gpu="h100", gpu_count=1, max_model_len=many, concurrency=20)
    assert best(again).fits_safely


@pytest.mark.parametrize("request_", [{}, {"gpu": "4090"}, {"max_model_len": 32_768}])
def test_the_card_most_people_have_is_among_the_alternatives(request_: dict) -> None:
    found = plan("Qwen/Qwen3-8B", **request_)
    ways = [one for one in found.alternatives if one.gpu_count == 1 and one.notes]
    told = {one.notes[0] for one in ways if one.gpu == request_.get("gpu", "a5000")}
    assert "with --kv-cache-dtype fp8" in told
    assert any(words.startswith("with --max-model-len") for words in told)
    if request_.get("max_model_len"):
        assert "only just fits" in told


def test_a_bound_that_nothing_meets_is_named_with_the_nearest() -> None:
    dear = plan("Qwen/Qwen3-8B", max_price=0.1)
    assert not best(dear).fits
    assert "nothing meets --max-price 0.1: the cheapest that fits is 2 × a4000 at $0.40/h" in dear.unmet
    slow = plan("Qwen/Qwen3-32B", max_tpot_ms=1.0)
    assert "nothing meets --max-tpot 1: the fastest that fits is" in slow.unmet
    assert best(slow).price_per_hour is not None
    assert not plan("Qwen/Qwen3-8B", max_price=5).unmet


def test_more_than_the_model_was_made_for_does_not_fit() -> None:
    found = plan("Qwen/Qwen3-8B", max_model_len=1_000_000)
    assert not best(found).fits
    assert "made for 40,960" in best(found).reason
    assert "--max-model-len 40960" in found.fix


def test_no_room_for_the_cuda_context_is_not_safe() -> None:
    found = best(plan("Qwen/Qwen3-8B", gpu="h100", gpu_count=1, gpu_memory_utilization=1.0))
    assert not found.fits_safely
    assert any("CUDA context" in note for note in found.notes)


def test_an_unknown_quantisation_and_an_unknown_release_are_said() -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
        "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 3072, "vocab_size": 151_936, "max_position_embeddings": 40_960,
        "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "foo9"},
    }  # fmt: skip
    facts = ModelFacts.from_config(config)
    with pytest.raises(ModelError, match="'foo9' is not known"):
        planner.plan_catalogue("x", facts, Request(), SHELF)
    size = 2 * (facts.parameters or 0)  # as the headers of its files would tell
    measured = facts.model_copy(update={"problem": "", "weights_bytes": size, "loaded_bytes": size})
    odd = planner.plan_catalogue("x", measured, Request(), SHELF)
    assert any("'foo9' is not known" in note for note in best(odd).notes)
    for engine, version, word in (("vllm", "0.99.0", "newer"), ("vllm", "0.6.0", "older"),
                                  ("sglang", "0.32.0", "rules of")):  # fmt: skip
        said = plan("Qwen/Qwen3-8B", engine=engine, engine_version=version).reasons
        assert any(version in one and word in one for one in said)
    assert not any("rules of" in one for one in plan("Qwen/Qwen3-8B", engine="sglang").reasons)


def test_models_that_make_images_get_no_engine_and_no_tokens() -> None:
    for name in ("stabilityai/stable-diffusion-xl-base-1.0", "black-forest-labs/FLUX.1-schnell"):
        found = plan(name)
        assert best(found).engine_args == []
        assert best(found).speed is None
        assert (best(found).max_model_len, best(found).kv_cache_tokens) == (0, 0)
        assert any("makes images" in reason for reason in found.reasons)
    rows = {row.model: row for row in compare(Request(), SHELF, "FLUX.1-dev")}
    (row,) = rows.values()
    assert row.plan is not None
    assert best(row.plan).max_model_len == 0
    idle = best(plan("black-forest-labs/FLUX.1-dev", gpu="a100", gpu_count=8))
    assert (idle.gpu_count, idle.tensor_parallel_size) == (8, 1)
    assert "one of the 8 GPUs is used" in idle.reason


def test_an_encoder_has_no_cache_and_more_gpus_serve_more_instances() -> None:
    found = plan("BAAI/bge-large-en-v1.5", gpu="a100", gpu_count=8)
    assert found.fits_at == []
    assert found.longest_context is None
    assert any("1 × a100 is enough" in reason for reason in found.reasons)
    speed = best(found).speed
    assert speed is not None
    assert speed.tokens_per_second == speed.prefill_tokens_per_second


def test_hardware_that_is_too_small_is_told_of_an_fp8_checkpoint() -> None:
    found = plan("zai-org/GLM-4.6", gpu="h100", gpu_count=8)
    assert "FP8 checkpoint" in found.fix
    assert [(one.gpu, one.gpu_count) for one in found.rejected] == [("h100", 8)]
    assert found.rejected[0].reason == best(found).reason
    derived = variants.find("zai-org/GLM-4.6-FP8")
    assert derived is not None
    whole = facts_of("zai-org/GLM-4.6").loaded_bytes or 0
    assert derived[0].loaded_bytes == pytest.approx(whole / 2, rel=0.02)
    assert planner.plan_catalogue("x", derived[0], Request(gpu="h100", gpu_count=8), SHELF).fix == ""
    assert variants.find("openai/gpt-oss-20b-AWQ") is None  # packed already


def test_gpus_that_one_owns() -> None:
    found = plan("Qwen/Qwen3-32B", gpu=("4090", "l40s"))
    assert {best(found).gpu, *(one.gpu for one in found.alternatives)} <= {"4090", "l40s"}
    assert {one.gpu for one in found.rejected} <= {"4090", "l40s"}


def test_what_has_a_price_comes_first_among_equally_fast_ones() -> None:
    found = plan("Qwen/Qwen3-32B", optimize="latency")
    assert best(found).price_per_hour is not None


def test_a_layout_that_no_number_of_gpus_can_have_names_the_cause() -> None:
    found = best(plan("Qwen/Qwen3-8B", tensor_parallel=3))
    assert not found.fits
    assert "32 attention heads" in found.reason
    assert found.gpu_count == 3


def test_contradictory_batches_and_full_contexts_are_said() -> None:
    few = best(plan("Qwen/Qwen3-8B", concurrency=20, max_num_seqs=5, max_model_len=2048))
    assert not few.fits
    assert few.reason == "the engine runs 5 requests at once, and 20 are wanted"
    full = plan("meta-llama/Llama-3.1-70B-Instruct", concurrency=20).reasons
    assert any("20 × the model's full 131,072" in one for one in full)


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("A100-80GB", "a100"), ("h100-80gb", "h100"), ("A100 40GB", "a100_40gb"), ("rtx 4090", "4090"),
        ("RTX4090", "4090"), ("GeForce RTX 3090", "3090"), ("RTX PRO 6000", "pro_6000"), ("A6000", "a6000"),
        ("RTX A6000", "a6000"), ("H200 141GB", "h200"), ("H100 SXM 80GB", "h100_sxm"), ("Tesla T4", "t4"),
    ],
)  # fmt: skip
def test_gpus_by_the_names_people_write(text: str, id_: str) -> None:
    assert gpu_names.find(text, SHELF) == id_


def test_unknown_gpus_propose_a_few_and_no_list() -> None:
    with pytest.raises(InvalidSpec) as caught:
        gpu_names.find("h10", SHELF)
    assert "Did you mean 'h100'" in caught.value.message
    assert len(caught.value.message + caught.value.fix) < 250
    assert "--gpu h100_sxm" in gpu_names.sibling("h100", SHELF)
    assert gpu_names.sibling("l4", SHELF) == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("llama-3.1-70b", "meta-llama/Llama-3.1-70B-Instruct"), ("Qwen3", "Qwen/Qwen3-8B"),
        ("llama3", "meta-llama/Llama-3.1-8B-Instruct"), ("deepseek", "deepseek-ai/DeepSeek-V3.2"),
        ("Qwen/Qwen3-8", "Qwen/Qwen3-8B"),
    ],
)  # fmt: skip
def test_half_a_name_is_answered_with_whole_ones(typed: str, meant: str) -> None:
    assert meant in known.suggest(typed)


def test_tee_says_how_and_not_what() -> None:
    found = known.know("chutes/zai-org/GLM-4.6-TEE", None, Path("/nowhere"))
    assert found.facts.parameters == facts_of("zai-org/GLM-4.6").parameters
    assert "zai-org/GLM-4.6 (-TEE says how" in found.origin
    assert source.base_name("zai-org/GLM-4.6-tee") == "zai-org/GLM-4.6"
    assert source.base_name("./my-TEE") == "./my-TEE"
    packaged = source.resolve("HuggingFaceTB/SmolLM2-135M-Instruct-TEE")
    assert packaged.location == source.resolve("HuggingFaceTB/SmolLM2-135M-Instruct").location


def test_what_is_here_never_becomes_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    def refusal(name: str) -> ModelError:
        with pytest.raises(ModelError) as caught:
            known.know(name, None, tmp_path)
        return caught.value

    for name in ("lora", "gguf", "q8"):
        (tmp_path / "d" / name).mkdir(parents=True)
    (tmp_path / "d/lora/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "a/Base"}))
    (tmp_path / "d/gguf/model.gguf").touch()
    (tmp_path / "d/q8/config.json").write_text("{}")
    assert "adapter" in refusal("d/lora").message
    assert "a/Base" in refusal("d/lora").fix
    assert "GGUF" in refusal("d/gguf").message
    assert "safetensors" in refusal("d/gguf/model.gguf").fix
    assert refusal("d/q8/config.json").fix.endswith(str(tmp_path / "d/q8"))


def test_compare_takes_one_model() -> None:
    assert [row.model for row in compare(Request(), SHELF, "qwen3-8b")] == ["Qwen/Qwen3-8B"]
    with pytest.raises(ModelError, match="not in the catalogue"):
        list(compare(Request(), SHELF, "nobody/nothing"))
