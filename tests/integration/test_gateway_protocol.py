"""HTTP/1.1 as clients speak it and as attackers bend it, byte by byte through a real worker."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from chutes.gateway import limits
from tests.integration.conftest import MODEL, USER, GatewayWorker, SyntheticEngine, eventually, exchange

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"


def request(fields: str = "", *, length: bool = True, version: str = "1.1", **body: Any) -> bytes:
    data = json.dumps({"model": MODEL, **body}).encode()
    head = f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nX-API-Key: {USER}\r\n{fields}"
    if length:
        head += f"Content-Length: {len(data)}\r\n"
    return head.encode() + b"\r\n" + data


@contextmanager
def connected(worker: GatewayWorker) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", worker.port), timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


def everything(client: socket.socket) -> bytes:
    """What comes until the worker closes."""
    data = b""
    while part := client.recv(65536):
        data += part
    return data


def answers(data: bytes) -> list[tuple[int, bytes]]:
    """Statuses and bodies of answers with Content-Length, one after another."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lengths = [
            line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        ]
        length = int(lengths[0])
        found.append((int(head.split()[1]), data[:length]))
        data = data[length:]
    return found


def test_pipelined_requests_are_answered_in_order(shared_worker: GatewayWorker) -> None:
    texts = [f"number {index}" for index in range(20)]
    many = b"".join(
        request(text=text, fake={"do": "echo", "first": 0.05 if index == 3 else 0}) + PING
        for index, text in enumerate(texts)
    )
    with connected(shared_worker) as client:
        client.sendall(many + b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        found = answers(everything(client))
    assert [status for status, _ in found] == [200] * 41
    assert [json.loads(data).get("text", "pong") for _, data in found] == [
        word for text in texts for word in (text, "pong")
    ] + ["pong"]


def test_a_refusal_does_not_swallow_the_requests_behind_it(shared_worker: GatewayWorker) -> None:
    wrong = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    with connected(shared_worker) as client:
        client.sendall(
            wrong + request() + wrong + b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert [status for status, _ in answers(everything(client))] == [401, 200, 401, 200]


def test_more_than_fits_ahead_waits_in_the_kernel(
    shared_worker: GatewayWorker, shared_engine: SyntheticEngine
) -> None:
    before = shared_worker.memory()
    padding = "x" * 500_000
    with connected(shared_worker) as client:
        client.settimeout(60)
        client.sendall(request(fake={"first": 0.5}))
        client.setblocking(False)
        sent = 0
        bulk = b"".join(request(text=padding, fake={"do": "status", "status": 418}) for _ in range(40))
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            try:
                sent += client.send(bulk[sent:])
            except BlockingIOError:
                time.sleep(0.01)
        assert shared_worker.memory() - before < 4 << 20
        client.settimeout(60)
        client.sendall(bulk[sent:])
        data = b""
        while data.count(b"HTTP/1.1 418") < 40:
            data += client.recv(65536)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_connection_close(shared_worker: GatewayWorker, version: str) -> None:
    with connected(shared_worker) as client:
        client.sendall(request("Connection: close\r\n" if version == "1.1" else "", version=version))
        data = everything(client)
    assert b"\r\nConnection: close\r\n" in data
    assert answers(data)[0][0] == 200


def test_an_old_client_gets_a_stream_without_chunks(shared_worker: GatewayWorker) -> None:
    with connected(shared_worker) as client:
        client.sendall(request(version="1.0", stream=True, fake={"chunks": 2, "split": 3}))
        head, _, data = everything(client).partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert [event[:6] for event in data.split(b"\n\n")] == [b"data: "] * 3 + [b""]
    assert data.endswith(b"data: [DONE]\n\n")


def test_expect_continue(shared_worker: GatewayWorker) -> None:
    whole = request("Expect: 100-continue\r\n", fake={"do": "echo"})
    head, _, data = whole.partition(b"\r\n\r\n")
    with connected(shared_worker) as client:
        client.sendall(head + b"\r\n\r\n")
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(data)
        assert answers(client.recv(65536)) == [(200, data)]
    with connected(shared_worker) as client:
        client.sendall(head.replace(USER.encode(), b"wrong") + b"\r\n\r\n")
        assert everything(client).startswith(b"HTTP/1.1 401 "), "no invitation to send what will not be read"


def test_a_refused_upload_still_gets_its_answer(shared_worker: GatewayWorker) -> None:
    with connected(shared_worker) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + b"x" * 500_000
        )
        client.sendall(b"x" * 400_000)
        assert everything(client).startswith(b"HTTP/1.1 401 ")


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        request("Content-Length: 3\r\n") + SMUGGLED,
        request("Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n" + SMUGGLED,
        request("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", length=False) + SMUGGLED,
        request("Transfer-Encoding: x\r\n", length=False) + SMUGGLED,
        request("Transfer-Encoding : chunked\r\n", length=False) + SMUGGLED,
        request("X: a\r\n Transfer-Encoding: chunked\r\n") + SMUGGLED,
        request("X: a\nTransfer-Encoding: chunked\r\n") + SMUGGLED,
        request("X: a\x00b\r\n") + SMUGGLED,
        request("Content-Length: +5\r\n", length=False) + SMUGGLED,
        b"GET /ping HTTP/1.1\nHost: x\n\n",
        b"GET /ping HTTP/1.1\r\nHost: x\r\n\n",
        b"GET /ping HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\n\r\n\r\n",
        request("Transfer-Encoding: chunked\r\n", length=False),
        b"GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_what_two_servers_could_read_differently_ends_the_connection(
    shared_worker: GatewayWorker, shared_engine: SyntheticEngine, data: bytes
) -> None:
    shared_engine.reset()
    with connected(shared_worker) as client:
        client.sendall(data)
        found = answers(everything(client))
    assert [status for status, _ in found] == [400]
    assert json.loads(found[0][1])["error"]["type"] == "invalid_request_error"
    assert shared_engine.seen()["requests"] == 0


def test_a_head_has_bounds(shared_worker: GatewayWorker) -> None:
    with connected(shared_worker) as client:
        client.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nA: " + b"a" * limits.HEAD_BYTES)
        assert everything(client).startswith(b"HTTP/1.1 431 ")
    with connected(shared_worker) as client:
        client.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * 200 + b"\r\n")
        assert everything(client).startswith(b"HTTP/1.1 431 ")


def test_a_head_that_drips_is_given_up_and_idle_connections_are_not(shared_worker: GatewayWorker) -> None:
    with connected(shared_worker) as idle, connected(shared_worker) as dripping:
        dripping.settimeout(0.5)
        started = time.monotonic()
        data = b""
        while not data and time.monotonic() - started < limits.HEAD_SECONDS + 5:
            dripping.sendall(b"G")
            try:
                data = dripping.recv(1000)
            except TimeoutError:
                continue
        assert data.startswith(b"HTTP/1.1 408 ")
        assert limits.HEAD_SECONDS - 1.5 < time.monotonic() - started < limits.HEAD_SECONDS + 10
        idle.sendall(PING)
        assert idle.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_garbage_harms_nobody(shared_worker: GatewayWorker) -> None:
    chance = random.Random(7)
    good = [PING, request(), request(stream=True), request("Expect: 100-continue\r\n")]
    for _ in range(300):
        data = bytearray(chance.choice(good) + chance.choice(good))
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(20)]
                case _:
                    data[at:at] = chance.randbytes(chance.randrange(20))
        with connected(shared_worker) as client:
            client.sendall(data)
            client.settimeout(0.01)
            with_answer = True
            while with_answer:
                try:
                    with_answer = bool(client.recv(65536))
                except (TimeoutError, ConnectionError):
                    with_answer = False
    assert exchange(shared_worker.port, "GET", "/ping")[0] == 200
    assert shared_worker.process.poll() is None


def test_many_idle_connections(shared_worker: GatewayWorker) -> None:
    before = shared_worker.memory()
    clients = [socket.create_connection(("127.0.0.1", shared_worker.port)) for _ in range(400)]
    try:
        assert exchange(shared_worker.port, "GET", "/ping")[0] == 200
        assert (shared_worker.memory() - before) / 400 < 8192
    finally:
        for client in clients:
            client.close()
    assert eventually(lambda: exchange(shared_worker.port, "GET", "/ping")[0] == 200)
