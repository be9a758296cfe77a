"""What can only be seen on a machine with an NVIDIA GPU."""

from __future__ import annotations

import pytest

from chutes.chute.node_selector import NodeSelector
from chutes.hardware import devices, profiles
from chutes.hardware.plan import plan

MACHINE = devices.detect()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not MACHINE.gpus, reason=f"no NVIDIA GPU here {MACHINE.gpu_problem}".strip()),
]


def test_every_gpu_is_known_to_the_profiles() -> None:
    shelf = profiles.load()
    for gpu in MACHINE.gpus:
        id_ = shelf.gpu_id(gpu.name, gpu.memory_total)
        assert id_ is not None, f"{gpu.name} is not in hardware_profiles.yaml"
        # CUDA hands out a little less than NVML counts.
        assert shelf.gpus[id_].memory_gib * (1 << 30) == pytest.approx(gpu.memory_total, rel=0.03)


def test_a_plan_uses_a_gpu() -> None:
    chosen = plan("vllm", NodeSelector(), None, MACHINE, profiles.load())
    assert chosen.accelerator == "cuda"
    assert chosen.gpus
