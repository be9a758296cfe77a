"""What deploy is told: what the author fixed is kept, the rest is planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from chutes import config as settings
from chutes.chute.node_selector import NodeSelector
from chutes.chute.spec import ChuteSpec, EngineSpec
from chutes.control.deploying import draft
from chutes.exception import InvalidSpec, ModelError
from chutes.hardware import profiles
from chutes.hardware.devices import Gpu, Machine
from chutes.hardware.plan import Plan, plan
from chutes.model import catalogue

GIB = 1 << 30
SHELF = profiles.load()


def h100s(count: int) -> Machine:
    cards = tuple(
        Gpu(i, "NVIDIA H100 80GB HBM3", 81_559 << 20, 81_000 << 20, (9, 0), f"GPU-{i}") for i in range(count)
    )
    return Machine(cpus=64, memory_total=512 * GIB, memory_available=500 * GIB, gpus=cards)


def planned(model: str, machine: Machine, args: list[str] | None = None, **selector: object) -> Plan:
    facts = catalogue.find(model)
    chosen = NodeSelector(**selector)
    return plan("vllm", chosen, facts, machine, SHELF, args=args or [], concurrency=32)


def value(args: list[str], flag: str) -> str | None:
    return args[args.index(flag) + 1] if flag in args else None


def test_an_open_selector_lets_the_planner_count() -> None:
    assert planned("Qwen/Qwen3-8B", h100s(8)).tensor_parallel_size == 1
    large = planned("meta-llama/Llama-3.1-70B-Instruct", h100s(8))
    assert large.fits
    assert large.tensor_parallel_size == len(large.gpus) == 4
    assert value(large.engine_args, "--max-num-seqs") == "32"
    assert value(large.engine_args, "--max-model-len") == "131072"


def test_a_selector_that_is_too_small_says_what_would_fit() -> None:
    small = planned("meta-llama/Llama-3.1-70B-Instruct", h100s(8), gpu_count=1)
    assert not small.fits
    assert "131.45 GiB of weights" in small.problem
    assert "too little" in small.problem
    assert "set gpu_count=4" in small.fix
    alone = planned("meta-llama/Llama-3.1-70B-Instruct", h100s(1), gpu_count=1)
    assert "would do at" in alone.fix
    assert "$" in alone.fix


def test_the_authors_arguments_win() -> None:
    found = planned(
        "Qwen/Qwen3-8B", h100s(4), ["--max-model-len", "8192", "-tp", "2", "--gpu-memory-utilization=0.8"]
    )
    assert found.tensor_parallel_size == len(found.gpus) == 2
    assert not {"--max-model-len", "--tensor-parallel-size", "--gpu-memory-utilization"} & {
        *found.engine_args
    }
    assert found.choice is not None
    assert (found.choice.max_model_len, found.choice.gpu_memory_utilization) == (8192, 0.8)


def test_what_the_arithmetic_does_not_see_is_said() -> None:
    found = planned("Qwen/Qwen3-8B", h100s(1), ["--speculative-config", "{}"])
    assert any("--speculative-config" in reason for reason in found.reasons)


def test_a_context_nobody_asked_for_is_cut_to_what_fits() -> None:
    found = planned("Qwen/Qwen3-32B", h100s(1))
    assert found.fits
    length = int(value(found.engine_args, "--max-model-len") or 0)
    assert 8192 <= length <= 40_960
    cpu = Machine(cpus=8, memory_total=32 * GIB, memory_available=14 * GIB)
    small = planned("meta-llama/Llama-3.2-1B-Instruct", cpu)
    assert small.fits
    assert small.engine_args[0] == "--max-model-len"
    assert any("is cut from 131,072" in reason for reason in small.reasons)


def test_what_the_author_left_open_stays_open_on_its_way() -> None:
    def sent(selector: NodeSelector) -> NodeSelector:
        spec = ChuteSpec(uid="u", username="me", name="x", node_selector=selector)
        return ChuteSpec.model_validate_json(spec.model_dump_json()).node_selector

    assert sent(NodeSelector()).model_fields_set == set()
    assert sent(NodeSelector(gpu_count=1)).model_fields_set == {"gpu_count"}


CPU = Machine(cpus=2, memory_total=32 * GIB, memory_available=24 * GIB)


def test_a_selector_that_is_too_small_is_said_where_there_is_no_gpu_too() -> None:
    small = planned("Qwen/Qwen3-32B", CPU, gpu_count=1, min_vram_gb_per_gpu=24)
    assert not small.fits
    said = " ".join(small.reasons)
    assert "of 24 GB be chosen, which would not hold the model" in said
    assert "too little" in said
    assert "would do" in small.fix
    assert "min_vram_gb_per_gpu=48" in small.fix
    assert "would not hold" not in " ".join(planned("Qwen/Qwen3-32B", CPU).reasons)
    roomy = planned("Qwen/Qwen3-32B", CPU, gpu_count=4, min_vram_gb_per_gpu=80)
    assert "would not hold" not in " ".join(roomy.reasons)


def test_the_processors_are_told_what_was_counted() -> None:
    found = planned("HuggingFaceTB/SmolLM2-135M-Instruct", CPU)
    assert value(found.engine_args, "--max-num-seqs") == "32"
    assert value(found.engine_args, "--max-num-batched-tokens") == "2048"
    fixed = planned("HuggingFaceTB/SmolLM2-135M-Instruct", CPU, ["--max-num-seqs", "4"])
    assert "--max-num-seqs" not in fixed.engine_args


def spec(model: str, **selector: object) -> ChuteSpec:
    engine = EngineSpec(name="vllm", model=model, args=[])
    return ChuteSpec(
        uid="u", username="you", name=model, node_selector=NodeSelector(**selector), engine=engine
    )


def test_a_dry_run_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("CHUTES_HOME", str(tmp_path))
    config = settings.load()
    found = draft(spec("zai-org/GLM-4.6-TEE"), config, offline=True)
    assert found.facts is not None
    assert found.source is not None
    assert "zai-org/GLM-4.6 (-TEE" in found.source.note
    assert "catalogue" in found.source.note
    with pytest.raises(ModelError, match="cannot be reached"):
        draft(spec("Qwen/Qwen3-32B"), config)
    with pytest.raises(ModelError) as caught:
        draft(spec("Qwen/Qwen3-8"), config, offline=True)
    assert "Qwen/Qwen3-8B" in caught.value.fix
    with pytest.raises(InvalidSpec, match="Did you mean 'h100'"):
        draft(spec("Qwen/Qwen3-8", include=["h10"]), config, offline=True)
