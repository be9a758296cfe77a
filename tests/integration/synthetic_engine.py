"""A model server without a model: OpenAI-like, quick to start, and able to fail in every known way.

    python tests/integration/synthetic_engine.py --port 9000 --api-key sk-1 --served-model-name org/M

It takes vLLM's command line (flags it does not know are ignored) and some of its own, so that it can stand
in for an engine process:

    --fake-startup-seconds S   listens only after S seconds
    --fake-fail-start TEXT     prints TEXT to stderr and exits with 1, after those seconds
    --fake-exit-after S        exits with 7, S seconds after it began to listen
    --fake-children N          forks N idle children, as engines do
    --fake JSON                behaviour for requests that do not say theirs

A request says how it wants to be answered in its body's `fake` object, every field optional:

    do        answer (default; SSE when `stream` is true) | echo | die_before_head | die_in_head |
              die_mid_stream | half_chunk | short_body | long_body | endless | close_delimited | garbage |
              status | hang | raw
    status    for `status`: its code, with an OpenAI error object
    parts     for `raw`: texts that are written one by one as they stand, and then the end of the connection
    keep      for `raw`: the connection stays open after them
    thought   the field of a message or delta that gets a thought: reasoning | reasoning_content
    usage     [prompt, completion, cached] tokens, instead of [1, number of chunks, 0]
    first     seconds before the first byte
    chunks    events of a stream, or pieces of a body
    gap       seconds between them
    size      bytes of text in each
    split     writes cut into this many bytes each, to meet a reader at every boundary
    once      a token: only the first request that carries it behaves so; later ones are answered normally

A stream tells its usage at its end if `stream_options` ask for it.

GET /metrics is a little of vLLM's page. GET /seen tells what happened: requests, aborted (clients that went
away early), in_flight, the most that were in flight at once, connections, and the last request: head, body
length, and the body if it is short.
POST /reset forgets it; with a body, that becomes the behaviour for requests that do not say theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any


class Gone(Exception):
    """The client went away."""


class Death(Exception):
    """The engine was told to break its connection here."""


class Request:
    """One request, as read from a client."""

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes, version: str) -> None:
        self.method = method
        self.path = target.partition("?")[0]
        self.target = target
        self.headers = headers
        self.body = body
        self.version = version


class Engine:
    """All state of one synthetic engine."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.default: dict[str, Any] = json.loads(options.fake)
        self.once: set[str] = set()
        self.connections = 0
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        self.requests = 0
        self.aborted = 0
        self.most = 0
        self.last: dict[str, Any] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests one after another until either side ends it."""
        self.connections += 1
        try:
            while (request := await self._read(reader)) is not None:
                answer = Answering(self, request, reader, writer)
                await answer.run()
                if request.headers.get("connection") == "close" or answer.closes:
                    break
        except (Death, Gone, ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            self.connections -= 1
            with suppress(ConnectionError):
                writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Request | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, version = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int((await reader.readline()).split(b";")[0], 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Request(method, target, headers, body, version)

    def seen(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "aborted": self.aborted,
            "in_flight": self.in_flight,
            "most": self.most,
            "connections": self.connections,
            "pid": os.getpid(),
            **self.last,
        }


class Answering:
    """The answer to one request."""

    def __init__(
        self, engine: Engine, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.engine = engine
        self.request = request
        self.reader = reader
        self.writer = writer
        self.closes = False
        self.fake = dict(engine.default)
        self.stream = False
        self.tells_usage = False
        self.split = 0

    async def run(self) -> None:
        engine, request = self.engine, self.request
        quiet = {
            "/seen": self._seen,
            "/reset": self._reset,
            "/health": self._health,
            "/ping": self._health,
            "/metrics": self._metrics,
        }
        if request.path in quiet:
            await quiet[request.path]()
            return
        key = engine.options.api_key
        if key and request.headers.get("authorization") != f"Bearer {key}":
            await self._json({"error": {"message": "Unauthorized", "type": "invalid_request_error"}}, 401)
            return
        engine.requests += 1
        engine.last = {"headers": request.headers, "target": request.target, "body_bytes": len(request.body)}
        if len(request.body) < 10_000:
            engine.last["body"] = request.body.decode("latin-1")
        engine.in_flight += 1
        engine.most = max(engine.most, engine.in_flight)
        try:
            await self._inference()
        except (Gone, ConnectionError):
            engine.aborted += 1
            raise
        finally:
            engine.in_flight -= 1

    async def _inference(self) -> None:
        engine, request = self.engine, self.request
        if request.path == "/v1/models":
            names = engine.options.served_model_name
            data = [
                {"id": name, "object": "model", "owned_by": "synthetic", "max_model_len": 4096}
                for name in names
            ]
            await self._json({"object": "list", "data": data})
            return
        body = self._body()
        if request.path.endswith("/detokenize"):
            await self._json({"prompt": "".join(map(chr, body.get("tokens", [])))})
        elif request.path.endswith("/tokenize"):
            tokens = [ord(letter) for letter in str(body.get("prompt", ""))]
            await self._json({"count": len(tokens), "max_model_len": 4096, "tokens": tokens})
        else:
            await self._pause(self.fake.get("first", 0))
            await self._behave(str(self.fake.get("do", "answer")))

    def _body(self) -> dict[str, Any]:
        """The body as JSON, with its wishes taken out."""
        try:
            body = json.loads(self.request.body or b"{}")
        except ValueError:
            body = {}
        if not isinstance(body, dict):
            body = {}
        self.fake |= body.get("fake") or {}
        token = self.fake.get("once")
        if token in self.engine.once:
            self.fake = {}
        elif token is not None:
            self.engine.once.add(token)
        self.split = int(self.fake.get("split", 0))
        self.stream = body.get("stream") is True
        options = body.get("stream_options")
        self.tells_usage = isinstance(options, dict) and options.get("include_usage") is True
        return body

    async def _behave(self, do: str) -> None:
        match do:
            case "answer" if self.stream:
                await self._events()
            case "answer":
                await self._json(self._completion())
            case "echo":
                content_type = self.request.headers.get("content-type", "")
                await self._whole(self.request.body, content_type=content_type)
            case "status":
                error = {"message": "as you wished", "type": "server_error", "param": None, "code": None}
                await self._json({"error": error}, int(self.fake["status"]))
            case "hang":
                await self._pause(3600)
            case "raw":
                for part in self.fake["parts"]:
                    await self._write(part.encode("latin-1"))
                    await asyncio.sleep(0.02)
                if not self.fake.get("keep"):
                    raise Death
            case "die_before_head":
                raise Death
            case "die_in_head":
                await self._write(b"HTTP/1.1 200 OK\r\nContent-Ty")
                raise Death
            case "garbage":
                await self._write(b"this is not HTTP\r\n\r\n")
                self.closes = True
            case "die_mid_stream":
                await self._events(end=False)
                raise Death
            case "half_chunk":
                await self._events(end=False)
                await self._write(b'40\r\ndata: {"choices": [{"delta"')
                raise Death
            case "short_body":
                await self._whole(b"x" * 100, length=200)
                raise Death
            case "long_body":
                await self._whole(b"x" * 200, length=100)
                self.closes = True
            case "close_delimited":
                await self._head({"Content-Type": "text/plain", "Connection": "close"})
                for piece in self._pieces():
                    await self._write(piece)
                self.closes = True
            case "endless":
                await self._head({"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
                while True:
                    await self._chunk(self._event("again "))
                    await self._pause(self.fake.get("gap", 0.01))
            case _:
                await self._json({"error": {"message": f"no such behaviour: {do}"}}, 400)

    async def _events(self, *, end: bool = True) -> None:
        await self._head({"Content-Type": "text/event-stream; charset=utf-8", "Transfer-Encoding": "chunked"})
        pieces = self._pieces()
        for number, piece in enumerate(pieces, 1):
            last = end and number == len(pieces)
            await self._chunk(self._event(piece.decode(), self.fake.get("finish") if last else None))
            await self._pause(self.fake.get("gap", 0))
        if end:
            if self.tells_usage:
                await self._chunk(self._event(None))
            await self._chunk(b"data: [DONE]\n\n")
            await self._write(b"0\r\n\r\n")

    def _pieces(self) -> list[bytes]:
        size = int(self.fake.get("size", 8))
        return [f"{index} ".encode().ljust(size, b"x") for index in range(int(self.fake.get("chunks", 5)))]

    def _event(self, text: str | None, finish: str | None = None) -> bytes:
        """An event with a text, or the one that only tells the usage."""
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self._model()}
        if text is None:
            chunk |= {"choices": [], "usage": self._usage()}
        else:
            delta = {"role": "assistant", "content": text, **self._thought()}
            chunk |= {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"

    def _thought(self) -> dict[str, str]:
        return {self.fake["thought"]: 'thinks "so"'} if "thought" in self.fake else {}

    def _usage(self) -> dict[str, Any]:
        prompt, completion, cached = self.fake.get("usage", [1, int(self.fake.get("chunks", 5)), 0])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _completion(self) -> dict[str, Any]:
        text = b"".join(self._pieces()).decode()
        chat = self.request.path.endswith("/chat/completions")
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= (
            {"message": {"role": "assistant", "content": text, **self._thought()}} if chat else {"text": text}
        )
        return {
            "id": "chatcmpl-1" if chat else "cmpl-1",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": self._model(),
            "choices": [choice],
            "usage": self._usage(),
        }

    def _model(self) -> str:
        return self.engine.options.served_model_name[0]

    async def _seen(self) -> None:
        await self._json(self.engine.seen())

    async def _reset(self) -> None:
        self.engine.reset()
        if self.request.body:
            self.engine.default = json.loads(self.request.body)
        await self._json({})

    async def _health(self) -> None:
        await self._whole(b"")

    async def _metrics(self) -> None:
        page = (
            "# TYPE vllm:num_requests_running gauge\n"
            f'vllm:num_requests_running{{engine="0",model_name="m"}} {self.engine.in_flight}.0\n'
            "# TYPE vllm:generation_tokens counter\n"
            'vllm:generation_tokens_total{engine="0",model_name="m"} 12.0\n'
        )
        await self._whole(page.encode(), content_type="text/plain; version=0.0.4")

    async def _json(self, value: object, status: int = 200) -> None:
        await self._whole(json.dumps(value).encode(), status=status)

    async def _whole(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        length: int | None = None,
    ) -> None:
        length = len(body) if length is None else length
        await self._head({"Content-Type": content_type, "Content-Length": str(length)}, status, body)

    async def _head(self, headers: dict[str, str], status: int = 200, body: bytes = b"") -> None:
        headers = {
            "Date": "Thu, 01 Jan 1970 00:00:00 GMT",
            "Server": "synthetic",
            "Keep-Alive": "timeout=5",
            **headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        # A body of length zero and one that HEAD asked about look alike here.
        body = b"" if self.request.method == "HEAD" else body
        await self._write(f"HTTP/1.1 {status} Synthetic\r\n{lines}\r\n".encode() + body)

    async def _chunk(self, data: bytes) -> None:
        await self._write(b"%x\r\n%b\r\n" % (len(data), data))

    async def _write(self, data: bytes) -> None:
        step = self.split or len(data) or 1
        for start in range(0, len(data), step):
            if self.writer.transport.is_closing():
                raise Gone
            self.writer.write(data[start : start + step])
            await self.writer.drain()
            if self.split:
                await asyncio.sleep(0)

    async def _pause(self, seconds: float) -> None:
        """Wait, but notice a client that leaves, as uvicorn does."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.reader.at_eof() or self.writer.transport.is_closing():
                raise Gone
            await asyncio.sleep(min(left, 0.02))


async def serve(options: argparse.Namespace) -> int:
    """Listen until told to end; the exit status."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    loop.add_signal_handler(signal.SIGTERM, end, 0)
    loop.add_signal_handler(signal.SIGINT, end, 0)
    if options.fake_startup_seconds:
        await asyncio.wait([ended], timeout=options.fake_startup_seconds)
    if not ended.done():
        server = await asyncio.start_server(Engine(options).serve, options.host, options.port, backlog=1024)
        port = server.sockets[0].getsockname()[1]
        print(f"listening on {port}", flush=True)
        print("INFO:     Application startup complete.", flush=True)
        if options.fake_exit_after is not None:
            loop.call_later(options.fake_exit_after, end, 7)
    return await ended


def idle_children(count: int) -> list[int]:
    """Fork children that do nothing until they are killed."""
    children = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            while True:
                signal.pause()
        children.append(pid)
    return children


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY", ""))
    parser.add_argument("--served-model-name", nargs="+", default=["synthetic"])
    parser.add_argument("--fake-startup-seconds", "--startup-seconds", type=float, default=0)
    parser.add_argument("--fake-fail-start", "--fail-start", default="")
    parser.add_argument("--fake-exit-after", "--exit-after", type=float, default=None)
    parser.add_argument("--fake-children", "--children", type=int, default=0)
    parser.add_argument("--fake", default="{}", metavar="JSON")
    options, _ = parser.parse_known_args()
    if options.fake_fail_start:
        time.sleep(options.fake_startup_seconds)
        print(options.fake_fail_start, file=sys.stderr, flush=True)
        return 1
    children = idle_children(options.fake_children)
    status = asyncio.run(serve(options))
    if status == 0:  # an orderly end; an engine that crashes leaves its children behind
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    # Connections still being served must not hold up the end: a model server has a second.
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
