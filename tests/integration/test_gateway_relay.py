"""A real worker in front of real engines: what a client gets when all goes well, and when an engine fails."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from chutes import wire
from tests.integration.conftest import (
    ADMIN,
    CONFINED,
    KEYS,
    MODEL,
    OLD,
    USER,
    GatewayWorker,
    SyntheticEngine,
    eventually,
    exchange,
    route,
)

AUTH = {"Authorization": f"Bearer {USER}", "Content-Type": "application/json"}


def body(model: str = MODEL, **fields: Any) -> bytes:
    return json.dumps({"model": model, **fields}).encode()


def chat(port: int, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    return exchange(port, "POST", "/v1/chat/completions", body(**fields), AUTH)


def raw(data: bytes = b"", *, framing: str = "") -> bytes:
    """A request as bytes, for tests that keep the socket in their own hands."""
    framing = framing or f"Content-Length: {len(data)}"
    return (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {USER}\r\n{framing}\r\n\r\n".encode() + data
    )


def error_of(data: bytes) -> dict[str, Any]:
    return json.loads(data)["error"]


def test_an_answer_comes_through(shared_worker: GatewayWorker, shared_engine: SyntheticEngine) -> None:
    status, headers, data = exchange(
        shared_worker.port,
        "POST",
        "/chat/completions?a=b",
        body(messages=[]),
        AUTH | {"X-Request-Id": "mine-1", "Cookie": "secret", "X-API-Key": "secret", "User-Agent": "me"},
    )
    assert status == 200
    assert json.loads(data)["choices"][0]["message"]["content"].startswith("0 x")
    assert headers["x-request-id"] == "mine-1"
    assert headers["server"] == "synthetic"
    assert "keep-alive" not in headers
    seen = shared_engine.seen()
    assert seen["target"] == "/v1/chat/completions?a=b"
    assert seen["headers"] == {
        "host": f"127.0.0.1:{shared_engine.port}",
        "authorization": "Bearer sk-engine",
        "content-type": "application/json",
        "user-agent": "me",
        "content-length": str(len(body(messages=[]))),
        "x-request-id": "mine-1",
    }


def test_a_stream_comes_through_event_by_event(shared_worker: GatewayWorker) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared_worker.port, timeout=30)
    connection.request(
        "POST", "/v1/chat/completions", body(stream=True, fake={"chunks": 3, "gap": 0.1}), AUTH
    )
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    times = []
    lines = []
    while line := response.readline():
        if line.strip():
            times.append(time.monotonic())
            lines.append(line)
    connection.close()
    assert len(lines) == 4
    assert lines[-1] == b"data: [DONE]\n"
    assert times[2] - times[0] > 0.15, "events must not arrive in one burst"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "missing_api_key"),
        ({"Authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ({"X-API-Key": OLD}, 401, "expired_api_key"),
        ({"X-API-Key": CONFINED}, 403, "model_not_allowed"),
        ({"X-API-Key": USER}, 200, None),
        ({"Authorization": f"Basic {USER}"}, 200, None),
        ({"Authorization": USER}, 200, None),
    ],
)
def test_keys(shared_worker: GatewayWorker, headers: dict[str, str], status: int, code: str | None) -> None:
    got, _, data = exchange(shared_worker.port, "POST", "/v1/completions", body(), headers)
    assert got == status
    if code:
        assert error_of(data)["code"] == code


@pytest.mark.parametrize(
    ("path", "data", "status", "code"),
    [
        ("/v1/chat/completions", body("org/Model-Y"), 404, "model_not_found"),
        ("/v1/chat/completions", b"{", 400, "invalid_json"),
        ("/v1/chat/completions", b"{}", 400, "invalid_model"),
        ("/v1/chat/completions", b'{"model": 1}', 400, "invalid_model"),
        ("/v1/chat/completions", body("org/Failed"), 503, "chute_not_ready"),
        ("/v1/embeddings", body(), 404, "path_not_found"),
        ("/chutes/", b"", 403, "admin_key_needed"),
    ],
)
def test_refusals(shared_worker: GatewayWorker, path: str, data: bytes, status: int, code: str) -> None:
    got, headers, answer = exchange(shared_worker.port, "POST", path, data, AUTH)
    assert (got, error_of(answer)["code"]) == (status, code)
    assert headers["x-request-id"]
    assert (headers.get("x-should-retry") == "false") is (status == 503), (
        "it will not answer for being asked again"
    )
    assert "retry-after" not in headers, "asking again would not help"


def test_answers_from_memory(shared_worker: GatewayWorker) -> None:
    port = shared_worker.port
    assert exchange(port, "GET", "/ping")[2] == b'{"message":"pong"}'
    assert exchange(port, "GET", "/health")[0] == 200
    assert json.loads(exchange(port, "GET", "/")[2])["models"] == "/v1/models"
    models = json.loads(exchange(port, "GET", "/v1/models", headers=AUTH)[2])["data"]
    assert [(entry["id"], entry["state"]) for entry in models][::2] == [
        (MODEL, "ready"),
        ("org/Loading", "loading"),
    ]
    assert exchange(port, "GET", "/models", headers={"X-API-Key": CONFINED})[2].count(b'"id"') == 1
    assert json.loads(exchange(port, "GET", f"/v1/models/{MODEL}", headers=AUTH)[2])["id"] == MODEL
    status, headers, data = exchange(port, "HEAD", "/ping")
    assert (status, headers["content-length"], data) == (200, "18", b"")
    assert exchange(port, "GET", "/v1/chat/completions")[1]["allow"] == "POST"


def test_the_rest_goes_to_control(shared_worker: GatewayWorker, shared_engine: SyntheticEngine) -> None:
    headers = {
        "Authorization": f"Bearer {ADMIN}",
        "Content-Type": "text/x",
        "User-Agent": "no",
        "Accept": "a/b",
    }
    answer = exchange(shared_worker.port, "PUT", "/chutes/x", b'{"fake": {"do": "echo"}}', headers)
    assert (answer[0], answer[2]) == (200, b'{"fake": {"do": "echo"}}')
    seen = shared_engine.seen()["headers"]
    assert set(seen) == {"host", "authorization", "content-type", "accept", "content-length", "x-request-id"}
    assert seen["authorization"] == "Bearer sk-engine"
    status, headers, data = exchange(shared_worker.port, "HEAD", "/chutes/x", headers=headers)
    assert (status, data) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_errors_of_an_engine_pass_unchanged(shared_worker: GatewayWorker) -> None:
    for status in (400, 429, 500, 503):
        got, _, data = chat(shared_worker.port, fake={"do": "status", "status": status})
        assert (got, error_of(data)["message"]) == (status, "as you wished")


def test_bodies_are_identical_for_random_splits_both_ways(shared_worker: GatewayWorker) -> None:
    chance = random.Random(4)
    with socket.create_connection(("127.0.0.1", shared_worker.port), timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        file = client.makefile("rb")
        for number in range(60):
            text = "".join(chance.choices("ab\r\n0é", k=chance.randrange(300)))
            data = body(text=text, fake={"do": "echo", "split": chance.choice([0, 1, 7, 50])})
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {USER}\r\n".encode()
            if number % 2:
                request = head + b"Content-Length: %d\r\n\r\n" % len(data) + data
            else:
                pieces = [data[at : at + 37] for at in range(0, len(data), 37)]
                chunks = b"".join(b"%x;e\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
                request = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nT: t\r\n\r\n"
            at = 0
            while at < len(request):
                step = chance.choice([1, 3, 20, 1000])
                client.sendall(request[at : at + step])
                at += step
            assert read_answer(file) == (200, data)


def read_answer(file: Any) -> tuple[int, bytes]:
    """One answer with Content-Length from a connection that stays open."""
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, file.read(length)


# An engine that fails


@pytest.fixture
def pair(
    start_engine: Callable[..., SyntheticEngine], start_worker: Callable[..., GatewayWorker]
) -> tuple[GatewayWorker, SyntheticEngine]:
    """A worker with one engine of its own."""
    engine = start_engine("--served-model-name", MODEL)
    return start_worker(wire.Table([route(engine.upstream())], KEYS)), engine


# The connection of the last request is used again, and that it closes without a word is no engine's fault.
@pytest.mark.parametrize(("do", "tries"), [("die_before_head", 3), ("die_in_head", 2), ("garbage", 2)])
def test_an_engine_that_breaks_off_early_is_tried_once_more(
    pair: tuple[GatewayWorker, SyntheticEngine], do: str, tries: int
) -> None:
    worker, engine = pair
    assert chat(worker.port, fake={"do": do, "once": "a"})[0] == 200
    assert engine.seen()["requests"] == 2
    event = worker.event()
    assert isinstance(event, wire.UpstreamLost)
    assert (event.chute_id, event.instance_id) == ("chute-x", f"instance-{engine.port}")
    status, _, data = chat(worker.port, fake={"do": do})
    assert (status, error_of(data)["code"]) == (502, "upstream_broke_off")
    assert engine.seen()["requests"] == 2 + tries


def test_another_instance_answers_for_one_that_breaks_off(
    start_engine: Callable[..., SyntheticEngine], start_worker: Callable[..., GatewayWorker]
) -> None:
    bad = start_engine("--fake", '{"do": "die_before_head"}')
    good = start_engine()
    worker = start_worker(wire.Table([route(bad.upstream(), good.upstream())], KEYS))
    assert [chat(worker.port)[0] for _ in range(6)] == [200] * 6
    assert good.seen()["requests"] == 6


def test_a_refused_connection_costs_no_request(
    start_engine: Callable[..., SyntheticEngine], start_worker: Callable[..., GatewayWorker]
) -> None:
    engine = start_engine()
    nobody = wire.Upstream("nobody", "127.0.0.1", 1, "k")
    worker = start_worker(wire.Table([route(nobody, engine.upstream(), nobody)], KEYS))
    assert [chat(worker.port)[0] for _ in range(6)] == [200] * 6
    event = worker.event()
    assert isinstance(event, wire.UpstreamLost)
    assert event.instance_id == "nobody"


def test_a_restarted_engine_is_met_on_a_fresh_connection(
    start_engine: Callable[..., SyntheticEngine], start_worker: Callable[..., GatewayWorker]
) -> None:
    engine = start_engine()
    worker = start_worker(wire.Table([route(engine.upstream())], KEYS))
    for _ in range(3):
        assert chat(worker.port)[0] == 200
        engine.stop()
        engine = start_engine(port=engine.port)
    assert chat(worker.port)[0] == 200


@pytest.mark.parametrize("do", ["die_mid_stream", "half_chunk"])
def test_a_stream_that_breaks_ends_in_an_error_event(
    pair: tuple[GatewayWorker, SyntheticEngine], do: str
) -> None:
    status, _, data = chat(pair[0].port, stream=True, fake={"do": do, "chunks": 3})
    assert status == 200
    events = data.split(b"\n\n")
    assert len(events) == 5
    assert events[4] == b""
    assert all("choices" in json.loads(event.removeprefix(b"data: ")) for event in events[:3])
    assert error_of(events[3].removeprefix(b"data: "))["code"] == "upstream_broke_off"
    assert b"[DONE]" not in data
    assert isinstance(pair[0].event(), wire.UpstreamLost)


def test_a_short_body_never_looks_whole(pair: tuple[GatewayWorker, SyntheticEngine]) -> None:
    with pytest.raises(http.client.IncompleteRead):
        chat(pair[0].port, fake={"do": "short_body"})


def test_a_long_body_is_cut_where_it_said(pair: tuple[GatewayWorker, SyntheticEngine]) -> None:
    assert chat(pair[0].port, fake={"do": "long_body"})[2] == b"x" * 100
    assert chat(pair[0].port)[0] == 200


def test_a_body_that_ends_with_its_connection(pair: tuple[GatewayWorker, SyntheticEngine]) -> None:
    status, headers, data = chat(pair[0].port, fake={"do": "close_delimited", "chunks": 3, "split": 5})
    assert (status, headers["connection"], data) == (200, "close", b"0 xxxxxx1 xxxxxx2 xxxxxx")


def test_a_client_that_leaves_stops_its_engine(pair: tuple[GatewayWorker, SyntheticEngine]) -> None:
    worker, engine = pair
    for fake in ({"do": "endless"}, {"do": "hang"}):
        engine.reset()
        client = socket.create_connection(("127.0.0.1", worker.port), timeout=30)
        client.sendall(raw(body(fake=fake)))
        assert eventually(lambda: engine.seen()["in_flight"] == 1)
        if fake["do"] == "endless":
            assert client.recv(1000)
        client.close()
        assert eventually(lambda: engine.seen()["aborted"] == 1, 10), "the engine must hear of it at once"


def test_a_slow_reader_holds_up_its_engine_not_our_memory(
    pair: tuple[GatewayWorker, SyntheticEngine],
) -> None:
    worker, engine = pair
    chat(worker.port)
    before = worker.memory()
    fake = {"chunks": 100, "size": 1 << 20}
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        client.connect(("127.0.0.1", worker.port))
        client.sendall(raw(body(stream=True, fake=fake)))
        time.sleep(1.5)
        assert engine.seen()["in_flight"] == 1
        assert worker.memory() - before < 4 << 20
        client.settimeout(60)
        total = 0
        tail = b""
        while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            part = client.recv(1 << 20)
            assert part
            total += len(part)
            tail = (tail + part)[-40:]
        assert total > 100 << 20
        assert worker.memory() - before < 8 << 20


def test_a_large_body_passes_and_a_larger_is_refused_unread(
    start_engine: Callable[..., SyntheticEngine], start_worker: Callable[..., GatewayWorker]
) -> None:
    engine = start_engine()
    worker = start_worker(wire.Table([route(engine.upstream())], KEYS), max_body=5_000_000)
    data = body(text="x" * 4_900_000, fake={"do": "echo"})
    status, _, answer = exchange(worker.port, "POST", "/v1/completions", data, AUTH)
    assert (status, answer == data) == (200, True)
    with socket.create_connection(("127.0.0.1", worker.port), timeout=30) as client:
        client.sendall(raw(framing="Content-Length: 5000001"))
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", worker.port), timeout=30) as client:
        client.sendall(raw(framing="Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sender = threading.Thread(target=lambda: client.sendall(chunk * 90), daemon=True)
        sender.start()
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
        sender.join(60)
    assert exchange(worker.port, "GET", "/ping")[0] == 200
