"""Several chutes on one machine without a GPU: each is given memory that no other one has or will have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chutes.hardware.devices import detect
from tests.integration.platform_kit import PlatformKit, platform

LAYER_BYTES = 4 * (4 * 4096**2 + 3 * 4096 * 11_008)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[PlatformKit]:
    with platform(tmp_path) as kit:
        yield kit


def sized(kit: PlatformKit, name: str, share: float) -> str:
    """A chute whose model, by its config.json, wants a share of the memory that is free now."""
    reference = kit.chute(name=name)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": round(share * detect().memory_available / LAYER_BYTES),
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_attention_heads": 32,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
    }
    (kit.directory / name / "config.json").write_text(json.dumps(config))
    return reference


def free(told: str) -> float:
    """GiB that a deploy said it had to spend."""
    found = re.search(r"of ([\d.]+) GiB\s+free", " ".join(told.split()))
    assert found is not None, told
    return float(found[1])


def test_one_right_after_another(kit: PlatformKit) -> None:
    first = free(kit.run("deploy", "--no-wait", sized(kit, "first", 0.1)).stderr)
    second = free(kit.run("deploy", "--no-wait", sized(kit, "second", 0.1)).stderr)
    # The synthetic engine takes next to nothing: what differs is what the first one was promised.
    taken = next(chute for chute in kit.json("ps") if chute["name"] == "first")
    assert taken["kind"] == "text"
    assert second < first - 2


def test_one_that_would_take_anothers_memory_is_refused(kit: PlatformKit) -> None:
    first, second = sized(kit, "first", 0.5), sized(kit, "second", 0.5)
    kit.run("deploy", first)
    refused = kit.run("deploy", second, code=1).stderr
    assert "kept for chutes that were deployed before" in " ".join(refused.split())
    assert "chutes sleep NAME" in refused
    assert [chute["name"] for chute in kit.json("ps")] == ["first"]
    # Its own memory it gives back before its next version starts.
    (kit.directory / "first.py").write_text(
        (kit.directory / "first.py").read_text().replace("engine_args=''", "engine_args='', concurrency=8")
    )
    kit.run("deploy", first)
    kit.run("sleep", "first")
    kit.run("deploy", second)
