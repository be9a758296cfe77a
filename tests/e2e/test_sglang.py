"""SGLang with real weights on the CPU: `chutes deploy templates.sglang_chute:chute`, as a user types it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from chutes.engine import families, sglang
from chutes.engine.environment import INSIDE, is_installed
from chutes.engine.release import find
from tests.e2e.conftest import DEPLOY_SECONDS, MODEL
from tests.integration.platform_kit import PlatformKit, platform, samples, until
from tests.story import Story

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."

pytestmark = pytest.mark.timeout(DEPLOY_SECONDS + 600)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[PlatformKit]:
    with platform(tmp_path_factory.mktemp("sglang"), cache=cache_dir) as kit:
        kit.run("deploy", "templates.sglang_chute:chute", timeout=DEPLOY_SECONDS)
        yield kit


@pytest.fixture(scope="module")
def key(kit: PlatformKit) -> str:
    return kit.key("e2e")


@pytest.fixture(scope="module")
def client(kit: PlatformKit, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{kit.url}/v1", api_key=key)


@pytest.fixture(scope="module")
def admin(kit: PlatformKit) -> str:
    return kit.run("keys", "create", "--admin", "--name", "scraper").stdout.strip()


def of_the_engine(kit: PlatformKit, admin: str) -> dict[str, float]:
    """The engine's own metrics under their common names, without `chutes_engine_`."""
    status, page = kit.ask(admin, "/metrics")
    assert status == 200, page
    found = samples(page.decode()).items()
    return {
        series.partition("{")[0].removeprefix("chutes_engine_"): value
        for series, value in found
        if 'engine="sglang"' in series
    }


def test_the_capital_of_france(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert whole.choices[0].message.content == ANSWER
    assert whole.model == MODEL
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (37, 8)

    *chunks, last = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert last.usage is not None
    assert last.usage.completion_tokens == 8
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens  # the same prompt a second time


def test_json_by_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Tokyo"]}, "capital": {"type": "boolean"}},
        "required": ["city", "capital"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )
    said = json.loads(answer.choices[0].message.content or "")
    assert said["city"] in ("Paris", "Tokyo")
    assert isinstance(said["capital"], bool)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_it_stops_when_its_client_goes(
    kit: PlatformKit, key: str, admin: str, stream: bool, story: Story
) -> None:
    """The request would keep this machine busy for minutes."""
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": stream}
    connection = http.client.HTTPConnection("127.0.0.1", kit.port, timeout=120)
    connection.request(
        "POST", "/v1/completions", json.dumps(body),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )  # fmt: skip
    until(lambda: of_the_engine(kit, admin)["running_requests"] == 1, 60)
    connection.close()
    if connection.sock is not None:
        connection.sock.close()
    until(lambda: of_the_engine(kit, admin)["running_requests"] == 0, 30)
    generated = of_the_engine(kit, admin)["generation_tokens_total"]
    assert generated < 3000
    story.tell("SGLang", "its client goes", "stream" if stream else "whole", f"{generated:.0f} tokens in all")


def test_its_metrics_have_the_common_names(kit: PlatformKit, admin: str, client: openai.OpenAI) -> None:
    before = of_the_engine(kit, admin)
    client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    until(lambda: of_the_engine(kit, admin)["prompt_tokens_total"] == before["prompt_tokens_total"] + 37, 30)
    after = of_the_engine(kit, admin)
    assert after["up"] == 1
    assert after["generation_tokens_total"] == before["generation_tokens_total"] + 8
    assert after["prefix_cache_hits_total"] > before["prefix_cache_hits_total"]
    assert {"running_requests", "waiting_requests", "kv_cache_usage_ratio"} <= after.keys()


def test_its_key_is_neither_on_a_command_line_nor_in_its_log(kit: PlatformKit) -> None:
    tree = kit.engine_tree()
    server = next(p for p in tree if "serve_sglang.py" in " ".join(p.cmdline()) and p.parent() in tree)
    secret = server.environ()["SGLANG_API_KEY"]
    assert len(secret) == 32
    assert not [line for p in tree if secret in (line := " ".join(p.cmdline()))]
    (log,) = (kit.home / "logs" / "instances").glob("*.log")
    assert "server_args=" in log.read_text()
    assert secret not in log.read_text()


def test_what_its_parser_refuses_is_not_started(kit: PlatformKit) -> None:
    done = kit.run(
        "deploy", "templates.sglang_chute:chute",
        code=2, timeout=300, ENGINE_ARGS="--max-runing-requests 4",
    )  # fmt: skip
    assert "unrecognized arguments: --max-runing-requests 4" in done.stderr
    assert "Did you mean --max-running-requests" in done.stderr
    assert kit.instance(MODEL)["phase"] == "ready"  # the one before


def test_every_familys_parsers_are_known_to_it(cache_dir: Path) -> None:
    release = find("sglang", "cpu")
    environment = is_installed(release, cache_dir / "engines")
    assert environment is not None
    script = (
        "import json, check_sglang_arguments as check\n"
        "known = check.build_parser()._option_string_actions\n"
        "print(json.dumps([known['--tool-call-parser'].choices, known['--reasoning-parser'].choices]))"
    )
    done = subprocess.run(
        [environment.python, "-c", script],
        cwd=INSIDE, env={**os.environ, **sglang.variables("cpu", "")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tools, reasoning = json.loads(done.stdout.splitlines()[-1])
    assert {family.sglang.tools for family in families.FAMILIES} - {""} <= set(tools)
    assert {family.sglang.reasoning for family in families.FAMILIES} - {""} <= set(reasoning)
