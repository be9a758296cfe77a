"""The benchmark's own programs: an engine that is right, and a load generator that notices what is not."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gateway import programs
from chutes.mortal import mortal

pytestmark = pytest.mark.skipif(
    not (shutil.which("cc") or shutil.which("gcc")), reason="needs a C compiler: `apt install gcc libc6-dev`"
)


@pytest.fixture(scope="module")
def load(cache_dir: Path) -> Path:
    return programs.compiled("load", cache_dir / "bench-gateway")


@pytest.fixture(scope="module")
def engine(cache_dir: Path) -> Iterator[int]:
    """Port of a synthetic engine on an inherited socket."""
    program = programs.compiled("engine", cache_dir / "bench-gateway")
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            mortal([program, "--listen", str(listener.fileno())]), pass_fds=[listener.fileno()]
        )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def run(load: Path, port: int, *arguments: str, connections: int = 8, seconds: str = "0.3") -> dict[str, Any]:
    command = [
        load,
        "--port",
        str(port),
        "--connections",
        str(connections),
        "--seconds",
        seconds,
        "--warmup",
        "0",
    ]
    done = subprocess.run([*map(str, command), *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Server:
    """Answers every request with what `answer` makes of its body, byte by byte; None: close."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.bodies: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as lines:
            while line := lines.readline():
                length = 0
                while line.strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                    line = lines.readline()
                body = lines.read(length)
                self.bodies.append(body)
                answer = self._answer(body)
                if answer is None:
                    return
                connection.sendall(answer)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[bytes], bytes | None]], Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[bytes], bytes | None]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def mark(body: bytes) -> str:
    found = re.search(rb"\[#(\d{10})", body)
    assert found
    return found[1].decode()


def in_one_piece(body: bytes, text: str | None = None) -> bytes:
    said = json.dumps(
        {"choices": [{"message": {"content": f"#{text or mark(body)} {'x' * 400}"}}], "usage": {}}
    )
    fields = f"Content-Type: application/json\r\nContent-Length: {len(said)}"
    return f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{said}".encode()


def events(body: bytes, count: int = 4) -> list[str]:
    """What a right stream of `count` chunks says."""
    said = ['data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n']
    for index in range(1, count):
        reason = '"stop"' if index == count - 1 else "null"
        text = f"#{mark(body)}.{index:05}"
        said.append(f'data: {{"choices":[{{"delta":{{"content":"{text}"}},"finish_reason":{reason}}}]}}\n\n')
    return [*said, "data: [DONE]\n\n"]


def streamed(said: list[str], end: str = "0\r\n\r\n", lie: int = 0) -> bytes:
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return (head + "".join(f"{len(e) + lie:x}\r\n{e}\r\n" for e in said) + end).encode()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--body-bytes", "16384"],
        ["--rate", "500"],
        ["--chunks", "16"],
        ["--chunks", "16", "--usage"],
        ["--chunks", "5", "--tick", "10000"],
    ],
)
def test_a_right_engine_has_no_bad_answers(load: Path, engine: int, arguments: list[str]) -> None:
    found = run(load, engine, *arguments)
    assert found["bad"] == 0, found["first_bad"]
    assert found["requests"] > 10
    if "--chunks" in arguments:
        assert found["chunks_all"] == found["requests_all"] * int(arguments[1])
    if "--rate" in arguments:
        assert found["requests"] == pytest.approx(150, abs=30)
    assert 0 < found["latency_us"]["p50"] <= found["latency_us"]["p99"] <= found["latency_us"]["max"] * 1.02


def test_the_engine_says_what_vllm_says(engine: int) -> None:
    def ask(body: str) -> tuple[bytes, bytes]:
        with socket.create_connection(("127.0.0.1", engine), timeout=30) as connection:
            fields = f"Connection: close\r\nContent-Length: {len(body)}"
            connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n\r\n{body}".encode())
            whole = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, answer = whole.partition(b"\r\n\r\n")
        return head, answer

    head, answer = ask('{"messages":[{"role":"user","content":"[#0000000042] hello"}]}')
    said = json.loads(answer)
    assert b"server: uvicorn" in head
    assert said["object"] == "chat.completion"
    assert said["choices"][0]["message"]["content"].startswith("#0000000042 ")
    assert (
        said["usage"]["total_tokens"] == said["usage"]["prompt_tokens"] + said["usage"]["completion_tokens"]
    )
    assert 600 < len(answer) < 800

    order = '{"messages":[{"role":"user","content":"[#0000000042 chunks=3 tick=1000]"}],"stream": true,'
    head, answer = ask(order + '"stream_options":{"include_usage":true}}')
    assert b"text/event-stream" in head
    chunks = [json.loads(event) for event in re.findall(rb"data: (\{.*\})\n\n", answer)]
    assert [len(chunk["choices"]) for chunk in chunks] == [1, 1, 1, 0]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[3]["usage"]["completion_tokens"] == 88
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_no_two_requests_are_equal(load: Path, serve: Any) -> None:
    server = serve(in_one_piece)
    found = run(load, server.port, "--keys", "a,b,c")
    assert found["bad"] == 0, found["first_bad"]
    bodies = [json.loads(body) for body in server.bodies]  # all are JSON
    assert len(set(server.bodies)) == len(bodies) > 20
    lengths = {len(body) for body in server.bodies}
    assert len(lengths) > 10
    assert all(abs(length - 1024) < 128 for length in lengths)


BROKEN: dict[str, tuple[Callable[[bytes], bytes | None], list[str], str]] = {
    "500": (lambda _: b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", [], "status"),
    "closes at once": (lambda _: None, [], "closed before its end"),
    "short body": (
        lambda _: in_one_piece(b"", "1")[:-300].replace(b"Content-Length: 4", b"Content-Length: 1"),
        [],
        "short",
    ),
    "another's answer": (lambda _: in_one_piece(b"", "9999999999"), [], "another request's"),
    "more than it says": (lambda body: in_one_piece(body) + b"x", [], "bytes"),
    "no framing": (lambda body: in_one_piece(body).replace(b"Content-Length", b"X-Length"), [], "framed"),
    "stream for none": (lambda body: streamed(events(body)), [], "stream for none"),
    "no [DONE]": (lambda body: streamed(events(body)[:-1]), ["--chunks", "4"], "no [DONE]"),
    "a chunk lost": (
        lambda body: streamed([*events(body)[:2], *events(body)[3:]]),
        ["--chunks", "4"],
        "wrong chunk",
    ),
    "a chunk twice": (
        lambda body: streamed([*events(body)[:2], *events(body)[1:]]),
        ["--chunks", "4"],
        "wrong chunk",
    ),
    "early [DONE]": (lambda body: streamed(events(body, 3)), ["--chunks", "4"], "before all chunks"),
    "no usage": (lambda body: streamed(events(body)), ["--chunks", "4", "--usage"], "no usage event"),
    "chunk size lies": (
        lambda body: streamed(events(body), lie=-1),
        ["--chunks", "4"],
        "longer than it says",
    ),
    "more after [DONE]": (
        lambda body: streamed([*events(body), "data: {}\n\n"]),
        ["--chunks", "4"],
        "after [DONE]",
    ),
    "wrong end": (lambda body: streamed(events(body), end="0\r\nxx\r\n"), ["--chunks", "4"], "last chunk"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken_answers_are_counted(load: Path, serve: Any, name: str) -> None:
    answer, arguments, why = BROKEN[name]
    found = run(load, serve(answer).port, *arguments, connections=2)
    assert found["bad"] > 0
    assert found["requests_all"] == 0
    assert why in found["first_bad"]


def test_a_right_stream_that_this_file_makes_is_taken_as_right(load: Path, serve: Any) -> None:
    """Otherwise the broken ones might be refused for another reason."""
    found = run(load, serve(lambda body: streamed(events(body))).port, "--chunks", "4")
    assert found["bad"] == 0, found["first_bad"]
    assert found["chunks_all"] == 4 * found["requests_all"] > 0


def test_without_a_compiler_the_message_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(programs.Unavailable, match="apt install gcc"):
        programs.compiled("engine", tmp_path)
