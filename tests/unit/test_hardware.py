"""Profiles and the first plan, on machines that are only described."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chutes.chute.node_selector import NodeSelector
from chutes.exception import InvalidSpec
from chutes.hardware import devices, profiles
from chutes.hardware.devices import Gpu, Machine
from chutes.hardware.offers import of_machine
from chutes.hardware.plan import GIB, plan
from chutes.hardware.versions import behaviour
from chutes.model.facts import ModelFacts

SHELF = profiles.load()
LAPTOP = Machine(cpus=8, memory_total=16 * GIB, memory_available=12 * GIB)


def gpu(index: int, name: str = "NVIDIA H100 80GB HBM3", gib: float = 79.6, free: float = 79.0) -> Gpu:
    return Gpu(index, name, int(gib * GIB), int(free * GIB), (9, 0), f"GPU-{index}")


def box(*gpus: Gpu) -> Machine:
    return Machine(cpus=64, memory_total=512 * GIB, memory_available=500 * GIB, gpus=gpus)


def facts(billions: float) -> ModelFacts:
    return ModelFacts(parameters=int(billions * 1e9), weights_bytes=int(billions * 2e9))


@pytest.mark.parametrize(
    ("billions", "tier", "count", "vram"),
    [
        (7, "small", 1, 24),
        (13, "small", 1, 24),
        (30, "medium", 4, 80),
        (70, "medium", 4, 80),
        (100, "large", 8, 140),
    ],
)
def test_the_tiers(billions: float, tier: str, count: int, vram: int) -> None:
    found = SHELF.tier(int(billions * 1e9))
    assert (found.name, found.gpu_count, found.min_vram_gb_per_gpu) == (tier, count, vram)


def test_devices_are_known_by_the_name_their_driver_prints() -> None:
    assert SHELF.gpu_id("NVIDIA H100 80GB HBM3") == "h100_sxm"
    assert SHELF.gpu_id("NVIDIA H200") == "h200"
    assert SHELF.gpu_id("NVIDIA H200 NVL") == "h200_nvl"
    assert SHELF.gpu_id("NVIDIA L40S") == "l40s"
    assert SHELF.gpu_id("Some Other Card") is None


def test_a_laptop_runs_a_small_model_in_float32() -> None:
    chosen = plan("vllm", NodeSelector(), facts(0.135), LAPTOP, SHELF)
    assert chosen.accelerator == "cpu"
    assert chosen.weights_bytes == int(0.135e9) * 4
    assert chosen.kv_cache_bytes is not None
    assert 1 * GIB < chosen.kv_cache_bytes <= 4 * GIB
    assert chosen.tier == "small"
    assert any("float32" in reason for reason in chosen.reasons)


def test_a_laptop_refuses_a_large_model_and_says_by_how_much() -> None:
    chosen = plan("vllm", NodeSelector(), facts(8), LAPTOP, SHELF)
    assert not chosen.fits
    assert "weights 29.80 GiB" in chosen.problem
    assert "19.80 GiB too little" in chosen.problem
    assert chosen.fix


def test_a_laptop_does_not_fetch_a_model_of_unknown_size_that_asks_for_a_gpu_box() -> None:
    chosen = plan("vllm", NodeSelector(gpu_count=8, min_vram_gb_per_gpu=140), None, LAPTOP, SHELF)
    assert "asks for 8 × 140 GB" in chosen.problem


def test_gpus_are_taken_emptiest_first() -> None:
    machine = box(gpu(0, free=10), gpu(1), gpu(2, free=50))
    chosen = plan("vllm", NodeSelector(gpu_count=2), facts(8), machine, SHELF)
    assert chosen.accelerator == "cuda"
    assert chosen.gpus == [1, 2]
    assert chosen.tensor_parallel_size == 2


def test_too_few_gpus_names_each_refusal() -> None:
    machine = box(gpu(0), gpu(1, "NVIDIA L4", 22.5, 22))
    chosen = plan("vllm", NodeSelector(gpu_count=2, min_vram_gb_per_gpu=80), facts(8), machine, SHELF)
    assert "GPU 1 (NVIDIA L4): 24 GB, and min_vram_gb_per_gpu=80" in chosen.problem


def test_include_and_exclude() -> None:
    machine = box(gpu(0), gpu(1, "NVIDIA L4", 22.5, 22))
    assert plan("vllm", NodeSelector(include=["l4"]), None, machine, SHELF).gpus == [1]
    assert plan("vllm", NodeSelector(exclude=["H100_SXM"]), None, machine, SHELF).gpus == [1]
    with pytest.raises(InvalidSpec, match=r"'h10'.*Did you mean 'h100'"):
        plan("vllm", NodeSelector(include=["h10"]), None, machine, SHELF)


def test_weights_that_do_not_fit_the_gpus() -> None:
    selector = NodeSelector(gpu_count=1, min_vram_gb_per_gpu=80)
    assert "too little" in plan("vllm", selector, facts(70), box(gpu(0)), SHELF).problem
    assert plan("vllm", selector, facts(30), box(gpu(0)), SHELF).fits


def test_a_label_of_24_gb_admits_every_card_sold_as_24_gb() -> None:
    for name, mib in (("NVIDIA L4", 23034), ("NVIDIA A10", 23028), ("NVIDIA GeForce RTX 4090", 24564)):
        card = Gpu(0, name, mib << 20, mib << 20, (8, 9), "GPU-0")
        assert plan("vllm", NodeSelector(min_vram_gb_per_gpu=24), None, box(card), SHELF).gpus == [0]


def test_unknown_size_is_said_not_guessed() -> None:
    chosen = plan("vllm", NodeSelector(), None, LAPTOP, SHELF)
    assert chosen.weights_bytes is None
    assert "not known" in chosen.reasons[0]


def test_this_machine_is_seen() -> None:
    machine = devices.detect()
    assert machine.cpus >= 1
    assert 0 < machine.memory_available <= machine.memory_total
    assert devices.has_gpu() == bool(machine.gpus)


def test_a_broken_file_names_itself_and_the_field(tmp_path: Path) -> None:
    broken = tmp_path / "hardware_profiles.yaml"
    broken.write_text(profiles.SHIPPED.read_text().replace("memory_gib: 23.56", "memory_gib: lots"))
    with pytest.raises(InvalidSpec, match=r"gpus\.3090\.memory_gib.*'lots'"):
        profiles.load(broken)
    broken.write_text("a: [")
    with pytest.raises(InvalidSpec, match="not valid YAML"):
        profiles.load(broken)
    with pytest.raises(InvalidSpec, match="cannot be read"):
        profiles.load(tmp_path / "absent.yaml")


def edited(tmp_path: Path, old: str, new: str) -> Path:
    """The shipped profiles with one change, and where it is."""
    text = profiles.SHIPPED.read_text()
    assert old in text
    path = tmp_path / "hardware_profiles.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "default_utilization: 0.92",
            "default_utilization: 92",
            "default_utilization: .*less than or equal to 1",
        ),
        ("token_count: concurrency", "token_count: tokens", "token_count: .*'blocks' or 'concurrency'"),
        ("null_block: true", "nul_block: true", "nul_block: there is no such field"),
        ('since: "0.20.1"', 'since: "0.19.0"', "ordered by `since`"),
        ('since: "0.20.1"', 'since: "next"', "not a version"),
        ("prefill_checkpoints: false", "", "it lacks prefill_checkpoints"),
    ],
)
def test_a_wrong_release_names_its_line(tmp_path: Path, old: str, new: str, words: str):
    path = edited(tmp_path, old, new)
    with pytest.raises(InvalidSpec, match=words) as caught:
        profiles.load(path)
    line = int(re.findall(r", line (\d+):", str(caught.value))[0])
    lines = path.read_text().splitlines()
    if new and "ordered" not in words:
        assert new.partition(":")[0].strip() in lines[line - 1]
    else:
        assert "vllm" in lines[line - 1]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  a4000:\n", '  "3090":\n', r"'3090' is there twice, first in line \d+"),
        (
            "memory_gib: 47.40, nvml_mib: 49140",
            "memory_gib: 480, nvml_mib: 49140",
            r"a6000: .*nvml_mib 49140",
        ),
        ("usd_per_hour: 0.25}", "usd_per_hour: .inf}", r"3090\.usd_per_hour: .*finite"),
        ("bandwidth_gbps: 936", "bandwidth_gbps: true", r"3090\.bandwidth_gbps: .*valid number.*True"),
        ('capability: "8.6"', 'capability: "8.6.1"', r"3090\.capability: .*as in '9.0'"),
        ("up_to_billion: 13,", "up_to_billion: 90,", "tiers: .*ordered"),
        ("up_to_billion: null", "up_to_billion: 700", "tiers: .*last tier"),
        ("  sglang:\n    cuda:", "  foo:\n    cuda:", "foo is not an engine"),
        ('    cuda:\n      version: "0.32.0"\n', "", "vllm lacks cuda"),
        ('cuda:\n      version: "0.32.0"', "cuda:\n      version: banana", r"cuda\.version: .*banana"),
        ("memory_gib: 23.56", "memory_gb: 23.56", r"3090\.memory_gb: there is no such field"),
        ("memory_gib: 23.56, ", "", r"3090\.memory_gib: Field required\."),
    ],
)
def test_what_the_profiles_may_not_say(tmp_path: Path, old: str, new: str, words: str):
    with pytest.raises(InvalidSpec, match=rf"hardware_profiles\.yaml.*{words}|(?s:{words})"):
        profiles.load(edited(tmp_path, old, new))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"hardware_profiles\.yaml is empty"),
        (b"- 1\n", "does not hold fields"),
        (b"tiers: 1\nname: \xff\n", "line 2: that is not text in UTF-8"),
    ],
)
def test_files_that_are_no_profiles(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "hardware_profiles.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidSpec, match=words):
        profiles.load(path)


def test_a_slice_of_a_gpu_is_not_the_gpu():
    name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert SHELF.gpu_id(name, 10 * GIB) is None
    assert SHELF.gpu_id("NVIDIA H100 80GB HBM3", 81_559 << 20) == "h100_sxm"
    slices = box(Gpu(0, name, int(9.75 * GIB), int(9.75 * GIB), (9, 0), "MIG-0"))
    (offer,) = of_machine(slices, SHELF)
    assert (offer.gpu, offer.type) == (name, None)
    assert offer.memory < 9.75 * GIB


def test_a_user_edits_what_a_release_does(tmp_path: Path):
    own = profiles.load(edited(tmp_path, "default_utilization: 0.92", "default_utilization: 0.85"))
    assert behaviour("vllm", "0.32.0", own).default_utilization == 0.85
    assert behaviour("vllm", "0.32.0").default_utilization == 0.92
    assert behaviour("vllm", "0.32.0", own.model_copy(update={"releases": {}})).default_utilization == 0.92
