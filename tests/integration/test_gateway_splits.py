"""Random requests in random pieces to engines that answer in random pieces: a client gets every byte that it
should and no other, whatever shares its connection and whichever way its head was read."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes import wire
from tests.integration.conftest import KEYS, MODEL, USER, GatewayWorker, SyntheticEngine, route

EXAMPLES = 250
"""Of up to six requests each."""
HEAD = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {USER}\r\n"


@dataclass(frozen=True)
class Ask:
    """One request, drawn at random."""

    kind: str
    framing: str
    text: str
    split: int
    chunks: int
    cut: int
    varying: bool
    shown: bool

    def sent(self, number: int) -> tuple[bytes, str]:
        """Its bytes, and the id that its answer must carry ("" for the gateway's own)."""
        if self.kind == "ping":
            return f"GET /ping HTTP/1.1\r\nHost: x\r\nX-Request-Id: {number}\r\n\r\n".encode(), str(number)
        body = self.body()
        head = HEAD + (f"X-Request-Id: {number}\r\n" if self.varying else "")
        if self.framing == "chunked":
            at = self.cut % (len(body) + 1)
            pieces = b"".join(b"%X;x=y\r\n%b\r\n" % (len(p), p) for p in (body[:at], body[at:]) if p)
            framed = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + pieces + b"0\r\nT: t\r\n\r\n"
        else:
            framed = f"{head}{self.framing}{len(body)}\r\nAccept: */*\r\n\r\n".encode() + body
        return framed, str(number) if self.varying else ""

    def body(self) -> bytes:
        fake = {"split": self.split, "chunks": self.chunks, "usage": [11, 7, 0]}
        if self.kind == "echo":
            return json.dumps({"model": MODEL, "text": self.text, "fake": fake | {"do": "echo"}}).encode()
        options = {"stream_options": {"include_usage": True}} if self.shown else {}
        return json.dumps({"model": MODEL, "stream": True, **options, "fake": fake}).encode()

    def expected(self) -> bytes:
        if self.kind == "ping":
            return b'{"message":"pong"}'
        if self.kind == "echo":
            return self.body()
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
        events = []
        for index in range(self.chunks):
            delta = {"role": "assistant", "content": f"{index} ".ljust(8, "x")}
            events.append(chunk | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        if self.shown:
            usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
            usage["prompt_tokens_details"] = {"cached_tokens": 0}  # type: ignore[assignment]
            events.append(chunk | {"choices": [], "usage": usage})
        lines = [json.dumps(event, separators=(",", ":")) for event in events]
        return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()


asks = st.builds(
    Ask,
    kind=st.sampled_from(["echo", "echo", "stream", "ping"]),
    framing=st.sampled_from(["Content-Length: "] * 4 + ["content-length:", "Content-Length: 00", "chunked"]),
    text=st.text('ab\r\n0é"\\', max_size=60) | st.just("é" * 5000),
    split=st.sampled_from([0, 0, 1, 7, 50]),
    chunks=st.integers(0, 4),
    cut=st.integers(0, 500),
    varying=st.booleans(),
    shown=st.booleans(),
)


@pytest.fixture(scope="module")
def worker() -> Iterator[GatewayWorker]:
    engine, worker = SyntheticEngine("--served-model-name", MODEL), GatewayWorker()
    worker.publish(wire.Table([route(engine.upstream())], KEYS))
    worker.listening()
    yield worker
    engine.stop()
    assert "Traceback" not in worker.stop()


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(asks, min_size=1, max_size=6), st.lists(st.integers(0, 3000), max_size=8))
def test_bytes_are_identical(worker: GatewayWorker, many: list[Ask], cuts: list[int]) -> None:
    sent = [ask.sent(number) for number, ask in enumerate(many)]
    data = b"".join(bytes_ for bytes_, _ in sent)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    with socket.create_connection(("127.0.0.1", worker.port), timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in itertools.pairwise(places):
            client.sendall(data[start:end])
        file = client.makefile("rb")
        for ask, (_, request_id) in zip(many, sent, strict=True):
            assert file.readline() in (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 Synthetic\r\n")
            fields = {}
            while (line := file.readline().strip()) != b"":
                name, _, value = line.partition(b": ")
                assert name not in fields
                fields[name] = value
            if request_id:
                assert fields[b"X-Request-Id"] == request_id.encode()
            if b"Content-Length" in fields:
                body = file.read(int(fields[b"Content-Length"]))
            else:
                assert fields[b"Transfer-Encoding"] == b"chunked"
                body = b""
                while size := int(file.readline(), 16):
                    body += file.read(size)
                    assert file.read(2) == b"\r\n"
                assert file.read(2) == b"\r\n"
            assert body == ask.expected()
        client.shutdown(socket.SHUT_WR)
        assert file.read() == b""
