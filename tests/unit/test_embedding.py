"""Embedding chutes: the builder, the engine's command line, its first question, and what is planned."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from chutes import config as settings
from chutes.chute.loader import load
from chutes.chute.node_selector import NodeSelector
from chutes.chute.spec import ChuteSpec
from chutes.chute.template import build_embedding_chute
from chutes.chute.template import embedding as published
from chutes.chute.template.embedding import get_optimal_pooling_type
from chutes.control.deploying import draft
from chutes.engine import embedding
from chutes.engine.contract import Endpoint, Start
from chutes.engine.vllm import Vllm
from chutes.exception import EngineFailed, InvalidSpec
from chutes.hardware import profiles
from chutes.hardware.devices import Gpu, Machine
from chutes.hardware.plan import Plan, plan
from chutes.image.standard.vllm import VLLM
from chutes.model import catalogue, packaged
from chutes.model.facts import ModelFacts

GIB = 1 << 30
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
FACTS = packaged.MODELS[MINILM].facts
SHELF = profiles.load()
CPU = Machine(cpus=2, memory_total=24 * GIB, memory_available=20 * GIB)


def spec_of(model: str, **options: Any) -> ChuteSpec:
    return build_embedding_chute("someone", model, **options).chute.to_spec()


# The builder


def test_the_signature_is_the_published_one() -> None:
    found = inspect.signature(build_embedding_chute).parameters
    assert list(found)[:3] == ["username", "model_name", "node_selector"]
    assert {n: p.default for n, p in found.items() if p.default is not p.empty} == {
        "node_selector": None,  # required in the published one
        "image": VLLM,
        "tagline": "",
        "readme": "",
        "concurrency": 32,
        "engine_args": None,
        "revision": None,
        "max_instances": 1,
        "scaling_threshold": 0.75,
        "shutdown_after_seconds": 300,
        "pooling_type": "auto",
        "max_embed_len": 3_072_000,
        "enable_chunked_processing": True,
        "allow_external_egress": False,
        "tee": False,
    }


def test_it_returns_a_pack_with_one_cord_to_call() -> None:
    pack = build_embedding_chute("someone", "org/model", NodeSelector())
    assert isinstance(pack, published.EmbeddingChutePack)
    assert callable(pack.embed)
    spec = pack.chute.to_spec()
    assert (spec.name, spec.standard_template) == ("org/model", "embedding")
    assert spec.engine is not None
    assert (spec.engine.name, spec.engine.task) == ("vllm", "embed")
    assert {c.function: (c.public_api_method, c.public_api_path) for c in spec.cords} == {
        "embed": ("POST", "/v1/embeddings"),
        "get_models": ("GET", "/v1/models"),
    }


def test_every_published_model_is_there() -> None:
    names = {"Request", "Response", "Data", "Usage"}
    assert {f"Embedding{name}" for name in names} | {"MinifiedEmbeddingRequest"} <= set(dir(published))
    asked = published.EmbeddingRequest.model_validate({"input": [[1, 2]], "dimensions": 8, "x": 1})
    assert (asked.input, asked.encoding_format) == ([[1, 2]], "float")


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="pooling_type='max'"):
        build_embedding_chute("someone", "org/model", pooling_type="max")
    with pytest.raises(InvalidSpec, match="max_embed_len=0"):
        build_embedding_chute("someone", "org/model", max_embed_len=0)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("intfloat/multilingual-e5-large", "MEAN"),
        ("intfloat/e5-mistral-7b-instruct", "LAST"),
        ("BAAI/bge-large-en-v1.5", "CLS"),
        ("BAAI/bge-multilingual-gemma2", "LAST"),
        ("BAAI/bge-en-icl", "LAST"),
        ("thenlper/gte-base", "MEAN"),
        ("Alibaba-NLP/gte-large-en-v1.5", "CLS"),
        ("Alibaba-NLP/gte-Qwen2-7B-instruct", "LAST"),
        ("Qwen/Qwen3-Embedding-8B", "LAST"),
        ("jinaai/jina-embeddings-v2-base-en", "MEAN"),
        ("sentence-transformers/sentence-t5-base", "MEAN"),
        ("org/unheard-of", "MEAN"),
    ],
)
def test_a_pooling_guessed_from_a_name(model: str, kind: str) -> None:
    assert get_optimal_pooling_type(model) == kind


def test_our_template_reads_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "BAAI/bge-m3")
    monkeypatch.setenv("POOLING_TYPE", "cls")
    spec = load("templates.embedding_chute:chute", cwd=Path(__file__).parents[2]).chute.to_spec()
    assert spec.engine is not None
    assert (spec.engine.model, spec.engine.options["pooling_type"]) == ("BAAI/bge-m3", "CLS")


# The engine's command line


def command(spec: ChuteSpec, directory: Path, *planned: str) -> list[str]:
    chosen = Plan(accelerator="cpu", engine="vllm", engine_version="0.32.0", engine_args=list(planned))
    endpoint = Endpoint("127.0.0.1", 9, "key")
    return Vllm().command(Start(spec, chosen, Path("python"), directory, ("m",), endpoint, directory))


def pooler(words: list[str]) -> dict[str, Any]:
    assert words[words.index("--runner") + 1] == "pooling"
    return json.loads(words[words.index("--pooler-config") + 1])


def test_the_models_own_files_say_how_it_pools(tmp_path: Path) -> None:
    long = {"enable_chunked_processing": True, "max_embed_len": 3_072_000}
    spec = spec_of("BAAI/bge-base-en-v1.5")
    assert pooler(command(spec, tmp_path)) == {"pooling_type": "CLS", **long}
    (tmp_path / "modules.json").write_text("[]")
    assert pooler(command(spec, tmp_path)) == long
    forced = spec_of("BAAI/bge-base-en-v1.5", pooling_type="last", max_embed_len=9)
    assert pooler(command(forced, tmp_path)) == {**long, "pooling_type": "LAST", "max_embed_len": 9}


@pytest.mark.parametrize(
    "args", [["--pooler-config", '{"pooling_type":"CLS"}'], ["--pooler_config.pooling_type=CLS"]]
)
def test_the_authors_pooler_counts(tmp_path: Path, args: list[str]) -> None:
    words = command(spec_of("org/model", engine_args=args), tmp_path)
    assert sum(word.replace("_", "-").startswith("--pooler-config") for word in words) == 1
    assert "--runner" in words


def test_nothing_is_added_that_the_author_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    spec = spec_of("org/model", enable_chunked_processing=False, engine_args="--runner auto")
    words = command(spec, tmp_path)
    assert words.count("--runner") == 1
    assert "--pooler-config" not in words


def test_a_context_that_the_models_files_do_not_allow_is_not_asked_for(tmp_path: Path) -> None:
    spec, planned = spec_of("org/model"), ("--max-model-len", "512", "--max-num-seqs", "128")
    assert "512" in command(spec, tmp_path, *planned)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    words = command(spec, tmp_path, *planned)
    assert "--max-model-len" not in words
    assert "512" not in words
    assert words[words.index("--max-num-seqs") + 1] == "128"


# Its first question


@contextmanager
def engine_that_says(status: int, answer: Any) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Endpoint("127.0.0.1", server.server_address[1], "key")
    finally:
        server.shutdown()
        server.server_close()


def data(*found: list[Any]) -> dict[str, Any]:
    return {"data": [{"embedding": vector} for vector in found]}


async def test_sane_vectors_are_enough() -> None:
    with engine_that_says(200, data([0.6, 0.8], [1.0, 0.0])) as endpoint:
        await embedding.warm(endpoint, "m", 10)


@pytest.mark.parametrize(
    ("status", "answer", "says"),
    [
        (404, {"detail": "Not Found"}, "makes no vectors"),
        (500, {"error": "boom"}, "first answer was 500"),
        (200, {"choices": []}, "cannot be read"),
        (200, data([0.6, float("nan")], [1.0, 0.0]), "no number"),
        (200, data([0.6, 0.8]), "1 of lengths"),
        (200, data([], []), "2 of lengths"),
        (200, data([0.6, 0.8], [0.6, 0.8]), "the same"),
    ],
)
async def test_what_is_no_vector_keeps_an_instance_out(status: int, answer: Any, says: str) -> None:
    with engine_that_says(status, answer) as endpoint, pytest.raises(EngineFailed, match=says) as caught:
        await embedding.warm(endpoint, "m", 10)
    assert status != 404 or "--convert embed" in caught.value.fix


# What is planned


def planned(facts: ModelFacts | None, machine: Machine, *args: str) -> Plan:
    return plan("vllm", NodeSelector(), facts, machine, SHELF, task="embed", args=args, concurrency=32)


def test_an_encoder_on_a_cpu_takes_weights_and_activations() -> None:
    found = planned(FACTS, CPU)
    assert found.fits
    assert found.choice is not None
    work = found.choice.per_gpu_bytes.peak_activation
    assert 0 < work < GIB // 8
    assert found.kv_cache_bytes == 0
    assert found.main_memory_bytes == 22_713_728 * 4 + 2 * GIB + work
    assert "no KV cache" in " ".join(found.reasons)
    assert "tokens of cache" not in " ".join(found.reasons)
    # Not the 32 requests of the chute: each holds many texts. Nor a context: other files know it better.
    assert found.engine_args == ["--max-num-seqs", "128", "--max-num-batched-tokens", "2048"]
    assert (
        Vllm().variables(Start(spec_of(MINILM), found, Path(), Path(), (), Endpoint("", 0, ""), Path()))[
            "VLLM_CPU_KVCACHE_SPACE"
        ]
        == "1"
    ), "without it vLLM wants most of the memory to be free"


def test_an_encoder_needs_no_room_for_a_cache() -> None:
    narrow = Machine(cpus=2, memory_total=24 * GIB, memory_available=int(2.3 * GIB))
    assert planned(FACTS, narrow).fits
    short = planned(FACTS, Machine(cpus=2, memory_total=24 * GIB, memory_available=int(2.05 * GIB)))
    assert "too little" in short.problem


def test_an_encoder_that_reads_long_texts_works_on_them_whole() -> None:
    long = FACTS.model_copy(update={"max_model_len": 8192})
    found, short = planned(long, CPU), planned(FACTS, CPU)
    assert found.choice is not None
    assert short.choice is not None
    assert "8192" in found.engine_args
    assert found.choice.per_gpu_bytes.peak_activation == 4 * short.choice.per_gpu_bytes.peak_activation


def test_on_a_gpu_an_encoder_is_given_no_context_of_ours() -> None:
    gpu = Gpu(0, "NVIDIA L4", 23_034 << 20, 22_000 << 20, (8, 9), "GPU-0")
    found = planned(FACTS, Machine(8, 64 * GIB, 60 * GIB, (gpu,)))
    assert found.fits
    assert found.gpus == [0]
    assert "--max-model-len" not in found.engine_args
    assert found.main_memory_bytes == 0
    assert planned(FACTS, Machine(8, 64 * GIB, 60 * GIB, (gpu,)), "--max-model-len", "128").fits


@pytest.mark.parametrize("gpus", [(), (Gpu(0, "NVIDIA L4", 23_034 << 20, 22_000 << 20, (8, 9), "GPU-0"),)])
def test_an_encoder_of_unknown_size_is_served_all_the_same(gpus: tuple[Gpu, ...]) -> None:
    unknown = FACTS.model_copy(
        update={"parameters": None, "weights_bytes": None, "loaded_parameters": None, "loaded_bytes": None}
    )
    found = planned(unknown, Machine(8, 64 * GIB, 60 * GIB, gpus))
    assert found.fits
    assert "not known here" in found.reasons[0]
    assert not found.kv_cache_bytes


def test_a_decoder_that_makes_vectors_batches_as_vllm_sees_fit() -> None:
    found = planned(catalogue.find("meta-llama/Llama-3.2-1B-Instruct"), CPU)
    assert found.fits
    assert "--max-num-batched-tokens" not in found.engine_args
    assert "--max-model-len" in found.engine_args, "its own was cut to what fits"
    assert found.kv_cache_bytes


def test_a_name_that_sounds_of_chat_gets_no_parsers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "Qwen3-4B"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    (directory / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = draft(spec_of(str(directory)), settings.load({"CHUTES_HOME": str(tmp_path)}))
    assert found.capabilities == ["embeddings"]
    assert not [word for word in found.plan.engine_args if "parser" in word]
