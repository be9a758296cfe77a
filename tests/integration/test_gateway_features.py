"""What the gateway reads, rewrites, hides and counts, through a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from chutes import wire
from tests.integration.conftest import KEYS, MODEL, USER, GatewayWorker, SyntheticEngine, exchange, route

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
AUTH = {"Authorization": f"Bearer {USER}", "Content-Type": "application/json"}
PATHS = {path: path for path in (CHAT, COMPLETIONS)} | {"/generate": "/inner/generate"}


@pytest.fixture(scope="module")
def engine() -> Iterator[SyntheticEngine]:
    made = SyntheticEngine("--served-model-name", MODEL)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared(engine: SyntheticEngine) -> Iterator[GatewayWorker]:
    made = GatewayWorker()
    able = ["chat", "completions", "reasoning"]
    thing = route(
        engine.upstream(), paths=PATHS, aliases=["nick"], slug="me-model", capabilities=able, concurrency=64
    )
    made.publish(wire.Table([thing], KEYS))
    made.listening()
    yield made
    assert "Traceback" not in made.stop()


@pytest.fixture
def worker(shared: GatewayWorker) -> GatewayWorker:
    """Without records of earlier tests."""
    try:
        while True:
            shared.record(0.3)
    except TimeoutError:
        return shared


def ask(
    worker: GatewayWorker, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any
) -> tuple[int, bytes]:
    body = json.dumps({"model": MODEL, **fields}).encode()
    status, _, answer = exchange(worker.port, "POST", path, body, AUTH | (headers or {}))
    return status, answer


def events(answer: bytes) -> list[Any]:
    lines = [line[6:] for line in answer.split(b"\n\n") if line]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (None, False),
        ({"include_usage": True}, True),
        ({"include_usage": False}, False),
        ({"include_usage": False, "continuous_usage_stats": True}, False),
    ],
)
@pytest.mark.parametrize("split", [0, 7])
def test_usage_of_streams_is_counted_always_and_shown_if_asked_for(
    worker: GatewayWorker,
    engine: SyntheticEngine,
    path: str,
    options: dict[str, bool] | None,
    shown: bool,
    split: int,
) -> None:
    more: dict[str, Any] = {} if options is None else {"stream_options": options}
    fake = {"usage": [11, 7, 5], "chunks": 3, "split": split}
    status, answer = ask(worker, path, stream=True, fake=fake, **more)
    found = events(answer)
    assert status == 200
    assert [bool(event["choices"]) for event in found] == [True] * 3 + [False] * shown
    assert ("usage" in found[-1]) is shown
    record = worker.record()
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (11, 7, 5)
    assert record.stream
    assert json.loads(engine.seen()["body"])["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("split", [0, 1])
def test_usage_of_an_answer_in_one_piece(worker: GatewayWorker, path: str, split: int) -> None:
    for size in (8, 40_000 if not split else 80):
        answer = ask(worker, path, fake={"usage": [9, 4, 2], "size": size, "split": split})[1]
        assert json.loads(answer)["usage"]["total_tokens"] == 13
        record = worker.record()
        assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (9, 4, 2)
        assert not record.stream


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("split", [0, 5])
def test_thoughts_are_given_under_both_names(worker: GatewayWorker, name: str, split: int) -> None:
    fake = {"thought": name, "split": split, "chunks": 3}
    message = json.loads(ask(worker, fake=fake)[1])["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == 'thinks "so"'
    assert message["content"].startswith("0 ")
    found = events(ask(worker, stream=True, fake=fake)[1])
    assert len(found) == 3
    for event in found:
        delta = event["choices"][0]["delta"]
        assert delta["reasoning"] == delta["reasoning_content"] == 'thinks "so"'


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("sent", "headers", "seen"),
    [
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            {},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "response", "schema": SCHEMA, "strict": True},
                }
            },
        ),
        ({"thinking": {"type": "enabled"}}, {}, {"chat_template_kwargs": [True, True]}),
        ({"thinking": False}, {}, {"chat_template_kwargs": [False, False]}),
        ({"reasoning_effort": "none"}, {}, {"chat_template_kwargs": [False, False]}),
        ({"reasoning_effort": "high"}, {}, {"chat_template_kwargs": [True, True]}),
        ({}, {"X-Enable-Thinking": "true"}, {"chat_template_kwargs": [True, True]}),
        ({"thinking": False}, {"X-Enable-Thinking": "true"}, {"chat_template_kwargs": [False, False]}),
        ({"model": f"{MODEL}:THINKING"}, {}, {"chat_template_kwargs": [True, True]}),
        ({"model": "nick"}, {}, {}),
        ({"model": f"chutes/{MODEL}-TEE"}, {}, {}),
        ({"model": MODEL.upper()}, {}, {}),
    ],
)
def test_what_the_engine_gets(
    worker: GatewayWorker,
    engine: SyntheticEngine,
    sent: dict[str, Any],
    headers: dict[str, str],
    seen: dict[str, Any],
) -> None:
    for _ in range(2):  # the second time under a head that is known
        status, _ = ask(worker, headers=headers, messages=[{"role": "user", "content": "{é}"}], **sent)
        assert status == 200
        got = json.loads(engine.seen()["body"].encode("latin-1"))
        assert got["model"] == MODEL
        assert got["messages"] == [{"role": "user", "content": "{é}"}]
        assert "thinking" not in got
        wanted = dict(seen)
        if both := wanted.pop("chat_template_kwargs", None):
            wanted["chat_template_kwargs"] = {"enable_thinking": both[0], "thinking": both[1]}
        assert {key: got[key] for key in wanted} == wanted
    assert worker.record().model == sent.get("model", MODEL)


@pytest.mark.parametrize(
    ("path", "host", "target"),
    [
        ("/me-model/v1/chat/completions", "x", CHAT),
        ("/me-model/generate", "x", "/inner/generate"),
        (CHAT, "me-model.example.com:8000", CHAT),
        ("/generate", "me-model.example.com", "/inner/generate"),
        ("/chat/completions", "x", CHAT),
    ],
)
def test_addresses(worker: GatewayWorker, engine: SyntheticEngine, path: str, host: str, target: str) -> None:
    for _ in range(2):
        assert ask(worker, path, {"Host": host}, prompt="hi")[0] == 200
        assert engine.seen()["target"] == target
        record = worker.record()
        assert (record.path, record.chute_id, record.status) == (path, "chute-x", 200)
