"""`chutes plan` as a person and a script run it: offline, in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "torch_dtype": "bfloat16",
}


def chutes(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # A port where nothing listens: whoever asks the hub finds out at once.
    around = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "COLUMNS": "100", **environment}
    return subprocess.run(
        [sys.executable, "-m", "chutes", "plan", *words],
        capture_output=True,
        text=True,
        env=around,
        timeout=60,
    )


def document(*words: str) -> dict[str, Any]:
    done = chutes(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_json_has_what_scripts_rely_on() -> None:
    found = document("Qwen/Qwen3-32B", "--gpu", "h100_sxm", "--gpu-count", "2", "--max-model-len", "16000")
    assert {
        "model", "revision", "parameters", "weights_bytes", "loaded_weights_bytes", "kv_bytes_per_token",
        "attention", "tier", "engine", "engine_version", "choice", "kv_cache_needed_bytes_per_gpu",
        "estimated_max_model_len", "alternatives", "rejected",
    } <= found.keys()  # fmt: skip
    choice = found["choice"]
    assert {
        "gpu", "gpu_count", "tensor_parallel_size", "pipeline_parallel_size", "fits", "price_per_hour",
        "gpu_memory_utilization", "max_model_len", "max_num_seqs", "kv_cache_tokens", "max_concurrency",
        "engine_args", "per_gpu_bytes",
    } <= choice.keys()  # fmt: skip
    assert choice["per_gpu_bytes"].keys() == {
        "total", "usable", "weights", "kv_cache_expected", "kv_cache_safe", "peak_activation", "non_torch",
        "cuda_graph",
    }  # fmt: skip
    assert (choice["gpu"], choice["gpu_count"], choice["fits"]) == ("h100_sxm", 2, True)
    assert found["kv_bytes_per_token"] == 262_144
    for other in document("Qwen/Qwen3-32B")["alternatives"]:
        assert other.keys() == choice.keys()
    for one in document("Qwen/Qwen3-32B")["rejected"]:
        assert {"gpu", "gpu_count", "reason"} <= one.keys()


def test_the_screen_says_everything_once() -> None:
    done = chutes("deepseek-ai/DeepSeek-V3.2")
    assert done.returncode == 0
    for label in (
        "tier",
        "choice",
        "each GPU",
        "holds",
        "estimate",
        "price",
        "vllm",
        "chute",
        "next best",
        "rejected",
    ):
        assert label in done.stdout
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) <= 44  # one screen
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_hardware_that_is_too_small_is_an_answer_not_an_error() -> None:
    done = chutes("Qwen/Qwen3-32B", "--gpu", "l4", "--gpu-count", "1")
    assert done.returncode == 0
    assert "does not fit" in done.stdout
    assert "too little" in done.stdout


def test_scripts_can_tell_a_no_by_the_exit_code() -> None:
    small = ("Qwen/Qwen3-32B", "--gpu", "l4", "--gpu-count", "1", "--check")
    assert chutes(*small).returncode == 3
    assert chutes(*small, "--json").returncode == 3
    assert chutes("Qwen/Qwen3-8B", "--check").returncode == 0
    failed = chutes("Qwen/Qwen3-8B", "--gpu", "foo", "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stderr)["error"].startswith("There is no GPU type 'foo'")


def test_an_ascii_terminal_is_written_to() -> None:
    done = chutes("Qwen/Qwen3-8B", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert "2 x a4000" in done.stdout
    assert "###" in done.stdout
    assert "Traceback" not in chutes("--compare", PYTHONIOENCODING="ascii", LC_ALL="C").stderr


def test_a_catalogue_model_is_planned_within_a_second() -> None:
    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    taken = []
    for _ in range(3):
        began = spent()
        assert chutes("openai/gpt-oss-120b").returncode == 0
        taken.append(spent() - began)
    # Of the processor, which is all that it waits for: 0.5 s here, whatever else runs beside it.
    assert min(taken) < 1


def test_here() -> None:
    found = document("SmolLM2-135M-Instruct", "--here")
    assert found["choice"]["fits"]
    assert found["choice"]["engine_args"]


def test_compare_lists_the_catalogue() -> None:
    done = chutes("--compare")
    assert done.returncode == 0
    assert "8 × 140 GB" in done.stdout
    assert "more than needed" in done.stdout
    rows = json.loads(chutes("--compare", "--json").stdout)
    assert len(rows) > 30


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": -7}, "hidden_size=-7"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"torch_dtype": "banana9"}, "'banana9'"),
        ({"architectures": ["FooForBar"], "model_type": "foo"}, "foo is not known here"),
    ],
)
def test_configurations_that_cannot_be(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))
    refused(chutes(str(tmp_path)), said)


def test_files_cut_short(tmp_path: Path) -> None:
    whole = json.dumps(CONFIG)
    (tmp_path / "config.json").write_text(whole[:100])
    refused(chutes(str(tmp_path)), "config.json cannot be read")
    (tmp_path / "config.json").write_text(whole)
    assert chutes(str(tmp_path)).returncode == 0  # weights are optional
    (tmp_path / "model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0" + b'{"a": {"dtype"')
    refused(chutes(str(tmp_path)), "claims a header of 64 bytes")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["Qwen/Qwen3-32B", "--max-model-len", "-5"], "--max-model-len -5 cannot be meant"),
        (["Qwen/Qwen3-32B", "--max-model-len", "lots"], "is not a number of tokens"),
        (["Qwen/Qwen3-32B", "--concurrency", "0"], "--concurrency 0 cannot be meant"),
        (["Qwen/Qwen3-32B", "--gpu-count", "100000"], "--gpu-count 100000 cannot be meant"),
        (["Qwen/Qwen3-32B", "--gpu-memory-utilization", "90"], "is not a share"),
        (["Qwen/Qwen3-32B", "--kv-cache-dtype", "int3"], "'int3' is not known"),
        (["Qwen/Qwen3-32B", "--gpu", "h10"], "Did you mean 'h100'"),
        (["Qwen/Qwen3-32B", "--engine", "vlm"], "'vlm' is not known"),
        (["/nowhere/at/all"], "no directory"),
        ([], "No model was named"),
    ],
)
def test_bad_questions(words: list[str], said: str) -> None:
    refused(chutes(*words), said)


def test_without_a_hub() -> None:
    """What the catalogue has is planned, and the absence said; anything else is refused, with near names."""
    pinned = chutes("Qwen/Qwen3-32B", "--revision", "main")
    assert pinned.returncode == 0
    assert "the hub cannot be reached" in " ".join(pinned.stdout.split())
    unknown = chutes("nobody/Qwen3-32C")
    refused(unknown, "cannot be reached")
    assert "The catalogue has Qwen/Qwen3-32B" in unknown.stderr


def test_a_gated_repository_without_a_token() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        hub = f"http://127.0.0.1:{server.server_port}"
        done = chutes("somebody/Gated-7B", HF_ENDPOINT=hub, HF_TOKEN="", HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
        refused(done, "somebody/Gated-7B")
        assert "token" in done.stderr.lower()
    finally:
        server.shutdown()


class Gated(BaseHTTPRequestHandler):
    """A hub that lets nobody in."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to model somebody/Gated-7B is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


def refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
