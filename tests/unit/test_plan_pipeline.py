"""The plan for pipelines that draw: CPU or GPU, offloading, and what is too large."""

from __future__ import annotations

import pytest

from chutes.chute.node_selector import NodeSelector
from chutes.exception import InvalidSpec
from chutes.hardware import pipeline
from chutes.hardware.devices import Gpu, Machine
from chutes.hardware.plan import Plan
from chutes.hardware.profiles import load
from chutes.model.pipelines import PartFacts, PipelineFacts

GIB = 1 << 30
PROFILES = load()


def facts(**parts: float) -> PipelineFacts:
    """Parts with their parameters in billions."""
    made = {n: PartFacts(parameters=int(b * 1e9), file_bytes=int(b * 2e9)) for n, b in parts.items()}
    return PipelineFacts(pipeline="SomePipeline", parts=made)


SDXL = facts(unet=2.567, text_encoder_2=0.695, text_encoder=0.123, vae=0.084)
FLUX = facts(transformer=11.9, text_encoder_2=4.76, text_encoder=0.123, vae=0.084)


def gpu(index: int, gib: int, free: int | None = None, name: str = "NVIDIA L40S") -> Gpu:
    return Gpu(index, name, gib * GIB, (gib if free is None else free) * GIB, (8, 9), f"GPU-{index}")


def machine(*gpus: Gpu, memory: int = 64) -> Machine:
    return Machine(8, memory * GIB, memory * GIB, gpus)


def plan(
    found: PipelineFacts | None, where: Machine, taken: tuple[int, ...] = (), **selector: object
) -> Plan:
    return pipeline.plan(
        found,
        NodeSelector.model_validate(selector),
        where,
        PROFILES,
        version="1.2",
        options={"batch": 4},
        taken=taken,
    )


def test_on_a_cpu_weights_are_float32():
    found = plan(SDXL, machine(memory=32))
    assert (found.accelerator, found.engine, found.engine_version, found.fits) == (
        "cpu",
        "diffusers",
        "1.2",
        True,
    )
    assert found.weights_bytes == 4 * SDXL.parameters
    assert any("estimate" in reason for reason in found.reasons)
    short = plan(SDXL, machine(memory=8))
    assert "missing" in short.problem
    assert short.fix


def test_on_a_gpu_they_are_halved_and_the_emptiest_is_taken():
    found = plan(SDXL, machine(gpu(0, 24, free=10), gpu(1, 24)))
    assert (found.accelerator, found.gpus, found.engine_args) == ("cuda", [1], [])
    assert found.weights_bytes == 2 * SDXL.parameters
    assert plan(SDXL, machine(gpu(0, 24), gpu(1, 24, free=10)), taken=(0,)).gpus == [1]
    assert plan(SDXL, machine(gpu(0, 24)), taken=(0,)).gpus == [0]  # better than not at all


def test_what_does_not_fit_at_once_is_loaded_part_by_part():
    assert plan(FLUX, machine(gpu(0, 80))).engine_args == []
    found = plan(FLUX, machine(gpu(0, 32)))
    assert (found.engine_args, found.fits) == (["--offload", "model"], True)
    small = plan(FLUX, machine(gpu(0, 24)))
    assert "too little" in small.problem
    one_file = plan(facts(checkpoint=11.9), machine(gpu(0, 24)))
    assert not one_file.fits


def test_what_the_author_asks_of_the_gpu_is_kept():
    where = machine(gpu(0, 24), gpu(1, 48))
    assert plan(SDXL, where, min_vram_gb_per_gpu=40).gpus == [1]
    assert "No GPU here will do" in plan(SDXL, where, min_vram_gb_per_gpu=80).problem
    assert any("one GPU" in reason for reason in plan(SDXL, where, gpu_count=2).reasons)
    with pytest.raises(InvalidSpec):
        plan(SDXL, where, include=["no-such-gpu"])


def test_without_sizes_it_is_said():
    found = plan(None, machine(gpu(0, 24)))
    assert found.fits
    assert "nothing was checked" in found.reasons[0]
    assert not plan(None, machine(), min_vram_gb_per_gpu=80).fits
