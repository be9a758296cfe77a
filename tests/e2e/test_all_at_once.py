"""Every template and an author's own code on one machine at once: one platform, one endpoint, one key."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.harness import result as results
from chutes.model.packaged import MODELS
from tests.e2e.conftest import DEPLOY_SECONDS, MODEL
from tests.integration.platform_kit import PlatformKit, platform

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
OWN = """
from chutes.chute import Chute, NodeSelector

chute = Chute("tester", "shout", image="python:3.12", node_selector=NodeSelector(), concurrency=4)

@chute.cord(public_api_path="/shout")
def shout(self, text: str) -> str:
    return text.upper()
"""

pytestmark = pytest.mark.timeout(3 * DEPLOY_SECONDS)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[PlatformKit]:
    with platform(tmp_path_factory.mktemp("all"), cache=cache_dir) as kit:
        (kit.directory / "own.py").write_text(OWN)
        kit.run("deploy", "templates.vllm_chute:chute", timeout=DEPLOY_SECONDS)
        # The same weights once more, in a directory of another name: a chute is called after its model.
        packaged = cache_dir / "models" / "packages" / MODELS[MODEL].requirement / "converted"
        shutil.copytree(packaged, kit.directory / "smol-on-sglang", copy_function=os.link)
        kit.run(
            *("deploy", "templates.sglang_chute:chute"), timeout=DEPLOY_SECONDS,
            MODEL=str(kit.directory / "smol-on-sglang"),
        )  # fmt: skip
        kit.run("deploy", "templates.embedding_chute:chute", timeout=DEPLOY_SECONDS)
        kit.run("deploy", "templates.diffusion_chute:chute", timeout=DEPLOY_SECONDS)
        kit.run("deploy", "own:chute", timeout=DEPLOY_SECONDS)
        yield kit


@pytest.fixture(scope="module")
def key(kit: PlatformKit) -> str:
    return kit.key("all")


@pytest.fixture(scope="module")
def client(kit: PlatformKit, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{kit.url}/v1", api_key=key, timeout=300)


def test_all_of_them_are_ready(kit: PlatformKit, client: openai.OpenAI) -> None:
    assert {chute["phase"] for chute in kit.json("ps")} == {"ready"}
    names = {model.id for model in client.models.list()}
    assert names == {
        MODEL, "smol-on-sglang", "sentence-transformers/all-MiniLM-L6-v2", "digits", "shout"
    }  # fmt: skip


@pytest.mark.parametrize("model", [MODEL, "smol-on-sglang"])
def test_two_engines_say_the_same(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=32)
    assert answer.choices[0].message.content == ANSWER


def test_vectors(client: openai.OpenAI) -> None:
    texts = ["the capital of France", "Paris", "a sleeping cat"]
    found = client.embeddings.create(model="sentence-transformers/all-MiniLM-L6-v2", input=texts)
    asked, right, wrong = (item.embedding for item in found.data)
    assert sum(a * b for a, b in zip(asked, right, strict=True)) > sum(
        a * b for a, b in zip(asked, wrong, strict=True)
    )


def test_a_picture(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model="digits", prompt="the digit seven", extra_body={"num_inference_steps": 10, "seed": 1}
    )
    assert answer.data
    assert base64.b64decode(answer.data[0].b64_json or "")[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")


def test_a_function(kit: PlatformKit, key: str) -> None:
    slug = next(chute["slug"] for chute in kit.json("ps") if chute["name"] == "shout")
    status, body = kit.ask(key, f"/{slug}/shout", {"text": "paris"})
    assert (status, body) == (200, b'"PARIS"')


@pytest.mark.parametrize(
    ("model", "workload"),
    [
        (MODEL, ["random", "--input-tokens", "16", "--output-tokens", "8"]),
        ("smol-on-sglang", ["random", "--input-tokens", "16", "--output-tokens", "8"]),
        ("sentence-transformers/all-MiniLM-L6-v2", ["embeddings", "--input-tokens", "16"]),
        ("digits", ["images", "--size", "128x128", "--steps", "4"]),
    ],
)
def test_how_fast_each_is_can_be_measured(kit: PlatformKit, model: str, workload: list[str]) -> None:
    """With and without the gateway, of every kind of work that there is."""
    file = kit.directory / f"{model.rpartition('/')[2]}.json"
    both = ["-t", "engine", "-t", "gateway", "--interleave", "rounds", "-c", "2", "-n", "4"]
    done = kit.run("bench", "run", "-m", model, "-w", *workload, *both, "-o", str(file), timeout=600)
    assert "FAILED" not in done.stdout
    phases = results.read(file).phases
    assert {phase.target for phase in phases} == {"engine", "gateway"}
    for phase in phases:
        assert [record.error for record in phase.records] == [""] * 4
        if workload[0] == "random":
            assert {record.output_tokens for record in phase.records} == {8}
        if workload[0] == "embeddings":
            assert {record.input_tokens for record in phase.records} == {16}
        if workload[0] == "images":
            assert {record.images for record in phase.records} == {1}
    assert file.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_none_of_them_answers_for_another(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not serve"):
        client.chat.completions.create(model="digits", messages=QUESTION)
    with pytest.raises(openai.NotFoundError, match="does not serve"):
        client.embeddings.create(model=MODEL, input="x")
