"""The templates for text: arguments, cords, and the chute files that people have."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from chutes.chute import NodeSelector
from chutes.chute.loader import load
from chutes.chute.template import build_sglang_chute, build_vllm_chute
from chutes.chute.template import sglang as published_sglang
from chutes.chute.template import vllm as published
from chutes.chute.template.engine_args import split
from chutes.exception import InvalidSpec
from chutes.image.standard.sglang import SGLANG
from chutes.image.standard.vllm import VLLM

PUBLISHED_FILES = Path(__file__).parents[1] / "fixtures" / "published"


@pytest.mark.parametrize(("build", "image"), [(build_vllm_chute, VLLM), (build_sglang_chute, SGLANG)])
def test_the_signature_is_the_published_one(build, image):
    found = inspect.signature(build).parameters
    assert list(found)[:3] == ["username", "model_name", "node_selector"]
    assert {n: p.default for n, p in found.items() if p.default is not p.empty} == {
        "node_selector": None,  # required in the published one
        "image": image,
        "tagline": "",
        "readme": "",
        "concurrency": 32,
        "engine_args": None,
        "revision": None,
        "max_instances": 1,
        "scaling_threshold": 0.75,
        "shutdown_after_seconds": 300,
        "allow_external_egress": False,
        "tee": False,
    }


def test_it_returns_a_pack_with_handles_on_the_cords():
    pack = build_vllm_chute("someone", "org/model", NodeSelector())
    assert isinstance(pack, published.VLLMChute)
    assert pack.chute.name == "org/model"
    assert pack.chute.standard_template == "vllm"
    for handle in ("chat", "chat_stream", "completion", "completion_stream", "models"):
        assert callable(getattr(pack, handle))


def test_an_sglang_chute_is_a_vllm_chute_without_tokenize():
    pack = build_sglang_chute(
        "someone", "org/model", NodeSelector(), engine_args={"enable_mixed_chunk": False}
    )
    assert isinstance(pack, published_sglang.SGLangChute)
    spec, other = pack.chute.to_spec(), build_vllm_chute("someone", "org/model").chute.to_spec()
    assert spec.standard_template == "vllm"  # sic
    assert spec.engine is not None
    assert (spec.engine.name, spec.engine.args) == ("sglang", [])
    assert spec.cords == [cord for cord in other.cords if "tokenize" not in cord.function]
    for handle in ("chat", "chat_stream", "completion", "completion_stream", "models"):
        assert callable(getattr(pack, handle))
    with pytest.raises(InvalidSpec, match="build_sglang_chute"):
        build_sglang_chute("someone", "org/model", engine_args="--revision main")


def test_every_published_model_is_there():
    requests = {"BaseRequest", "ChatCompletionRequest", "CompletionRequest", "TokenizeRequest"}
    responses = {"ChatCompletionResponse", "CompletionResponse", "TokenizeResponse", "DetokenizeResponse"}
    streams = {"ChatCompletionStreamResponse", "CompletionStreamResponse"}
    others = {"ChatMessage", "DetokenizeRequest", "UsageInfo", "DefaultRole"}
    assert requests | responses | streams | others <= set(dir(published))


def test_the_cords_are_the_published_ones():
    spec = build_vllm_chute("someone", "org/model").chute.to_spec()
    assert {
        c.function: (c.method, c.passthrough_path, c.public_api_method, c.public_api_path, c.stream)
        for c in spec.cords
    } == {
        "chat_stream": ("POST", "/v1/chat/completions", "POST", "/v1/chat/completions", True),
        "chat": ("POST", "/v1/chat/completions", "POST", "/v1/chat/completions", False),
        "completion_stream": ("POST", "/v1/completions", "POST", "/v1/completions", True),
        "completion": ("POST", "/v1/completions", "POST", "/v1/completions", False),
        "do_tokenize": ("POST", "/tokenize", "POST", "/tokenize", False),
        "do_detokenize": ("POST", "/detokenize", "POST", "/detokenize", False),
        "get_models": ("GET", "/v1/models", "GET", "/v1/models", False),
    }
    assert all(c.passthrough for c in spec.cords)
    chat = next(c for c in spec.cords if c.function == "chat")
    assert chat.minimal_input_schema is not None
    assert chat.minimal_input_schema["properties"]["max_tokens"]["default"] == 1024


def test_a_local_directory_is_named_after_its_last_part(tmp_path):
    pack = build_vllm_chute("someone", str(tmp_path / "my-model"))
    spec = pack.chute.to_spec()
    assert spec.name == "my-model"
    assert spec.engine is not None
    assert spec.engine.model == str(tmp_path / "my-model")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, []),
        ("", []),
        ("--a 1  --b", ["--a", "1", "--b"]),
        ("--a 1 \\\n  --b\n", ["--a", "1", "--b"]),
        ("--x '{\"image\": 4}'", ["--x", '{"image": 4}']),
        ('--x {"image":4}', ["--x", '{"image":4}']),
        ('--x={"a":{"b":[1, 2]}} --y', ["--x", '{"a":{"b":[1, 2]}}', "--y"]),
        ('--x \'{"a": {"b": 1}}\' --y', ["--x", '{"a": {"b": 1}}', "--y"]),
        ('--x {\\"image\\":4}', ["--x", '{"image":4}']),
        ("--x [1,2] --stop '['", ["--x", "[1,2]", "--stop", "["]),
        (["--a", "b c"], ["--a", "b c"]),
        (
            {"max_model_len": 8192, "tensor-parallel-size": 2},
            ["--max-model-len", "8192", "--tensor-parallel-size", "2"],
        ),
        (
            {"enable_prefix_caching": True, "async_scheduling": False, "seed": None},
            ["--enable-prefix-caching", "--no-async-scheduling"],
        ),
        ({"limit": {"image": 4}, "sizes": [1, 2]}, ["--limit", '{"image": 4}', "--sizes", "[1, 2]"]),
        ({"--max-model-len": 1, "-O": 3}, ["--max-model-len", "1", "-O", "3"]),
        ("--tp 2", ["--tensor-parallel-size", "2"]),
        ("-tp=2", ["--tensor-parallel-size=2"]),
        ("--seed -1", ["--seed", "-1"]),
    ],
)
def test_engine_args_in_each_form(given, words):
    found = split(given)
    # `--x={...}` may stay one word.
    assert found == words or [p for w in found for p in w.split("=", 1)] == words


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--served-model-name x", "You may not override served model name"),
        ("--served_model_name=x", "You may not override served model name"),
        ({"api_key": "k"}, "--api-key"),
        ("--tp 2 --tensor-parallel-size 2", "--tensor-parallel-size"),
        ("-tp 2 --tensor_parallel_size=2", "--tensor-parallel-size"),
        ("--revision main", "Revision is now a top-level argument"),
        (["--revision=main"], "Revision is now a top-level argument"),
        ("--port 1", "--port"),
        ("--host 0.0.0.0", "--host"),
        ("--uds /x", "--uds"),
        ("--model x", "--model"),
        ("org/model --a", "org/model"),
        ("--x 'open", "quotes"),
    ],
)
def test_what_the_platform_owns_is_refused(given, says):
    with pytest.raises(InvalidSpec) as caught:
        build_vllm_chute("someone", "org/model", engine_args=given)
    assert says in f"{caught.value} {caught.value.fix}"
    assert caught.value.fix


def test_neighbours_of_owned_options_are_allowed():
    words = ["--tokenizer-revision", "x", "--model-impl", "auto", "--max-model-len", "1"]
    assert split(words) == words


@pytest.mark.filterwarnings("ignore::chutes.chute.NotEnforcedWarning")
@pytest.mark.parametrize("path", sorted(PUBLISHED_FILES.glob("vllm*.py")), ids=lambda p: p.stem)
def test_published_chute_files_deploy_unchanged(path):
    loaded = load(f"{path.name}:chute", cwd=path.parent)
    spec = loaded.chute.to_spec(loaded.ref, loaded.code)
    assert spec.username == "someone"
    assert spec.code == path.read_text()
    json.loads(spec.model_dump_json())
    assert spec.engine is not None
    assert spec.engine.revision == spec.revision
    assert len(spec.revision or "") == 40


@pytest.mark.filterwarnings("ignore::chutes.chute.NotEnforcedWarning")
def test_their_engine_arguments_arrive_as_meant():
    def args(name: str) -> list[str]:
        engine = load(f"{name}:chute", cwd=PUBLISHED_FILES).chute.to_spec().engine
        assert engine is not None
        return engine.args

    assert args("vllm_args_dict") == [
        "--max-model-len",
        "8192",
        "--enable-prefix-caching",
        "--no-enable-chunked-prefill",
        "--tensor-parallel-size",
        "2",
        "--limit-mm-per-prompt",
        '{"image": 4}',
    ]
    assert args("vllm_args_fstring") == [
        "--max-model-len",
        "131072",
        "--speculative-config",
        '{"method":"mtp","num_speculative_tokens":1}',
        "--limit-mm-per-prompt",
        '{"image": 4}',
        "--trust-remote-code",
    ]
    assert args("vllm_args_string")[-2:] == ["--tool-call-parser", "hermes"]
    assert args("vllm_no_args") == []


def test_our_template_reads_its_environment(monkeypatch):
    for name, value in {
        "MODEL": "org/other",
        "REVISION": "b" * 40,
        "ENGINE_ARGS": "--max-model-len 4096",
        "CONCURRENCY": "7",
        "GPU_COUNT": "2",
        "MIN_VRAM_GB": "40",
    }.items():
        monkeypatch.setenv(name, value)
    spec = load("templates.vllm_chute:chute", cwd=Path(__file__).parents[2]).chute.to_spec()
    assert spec.engine is not None
    assert spec.engine.model_dump() == {
        "name": "vllm",
        "task": "generate",
        "options": {},
        "model": "org/other",
        "revision": "b" * 40,
        "args": ["--max-model-len", "4096"],
    }
    assert (spec.concurrency, spec.node_selector.gpu_count, spec.node_selector.min_vram_gb_per_gpu) == (
        7,
        2,
        40,
    )
