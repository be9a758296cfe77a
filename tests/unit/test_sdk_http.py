"""Cords over HTTP, on real sockets: the chute is served by uvicorn and called by httpx2.

What a passthrough cord relays to is a second such server.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, StreamingResponse

from chutes.chute import Chute
from chutes.chute.loader import load
from chutes.chute.openapi import document
from chutes.chute.runtime import TimeLimitError, UserCode
from chutes.chute.template import build_vllm_chute
from chutes.exception import (
    AuthenticationRequired,
    ChutesError,
    NotFound,
    PlatformUnreachable,
    StillProvisioning,
)

PUBLISHED_FILES = Path(__file__).parents[1] / "fixtures" / "published"


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Base URL of `app` on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        assert thread.is_alive(), "the server died"
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def remote(monkeypatch):
    monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "REMOTE")
    monkeypatch.setenv("CHUTES_DEV_MODE", "true")


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Args(BaseModel):
    prompt: str
    size: Size = Size.SMALL
    steps: int = Field(default=2, ge=1, le=9)


class Empty(BaseModel):
    note: str = "nothing"


def functions() -> Chute:
    chute = Chute("someone", "functions", "i", concurrency=4)

    @chute.on_startup()
    def load(self):
        self.model = "model"

    @chute.cord(public_api_path="/one")
    async def one(self, args: Args) -> dict:
        return {"model": self.model, "prompt": args.prompt, "size": args.size, "steps": args.steps}

    @chute.cord(public_api_path="/empty")
    def empty(self, args: Empty) -> dict:
        return args.model_dump()

    @chute.cord(public_api_path="/several")
    def several(self, a: int, b: list[str], args: Args | None = None, c: float = 0.5):
        return [a, b, args.prompt if args else None, c]

    @chute.cord(public_api_path="/whole")
    def whole(self, data: dict):
        return data

    @chute.cord(public_api_path="/text")
    def text(self, text: str):
        return text.upper()

    @chute.cord(public_api_path="/explicit", input_schema=Args)
    def explicit(self, anything):
        return type(anything).__name__

    @chute.cord(public_api_path="/nothing", public_api_method="GET")
    def nothing(self):
        return {"model": self.model}

    @chute.cord(public_api_path="/query", public_api_method="GET")
    def query(self, n: int, word: str = "w"):
        return [n, word]

    @chute.cord(public_api_path="/image", output_content_type="image/png")
    def image(self):
        return b"\x89PNG"

    @chute.cord(public_api_path="/response")
    async def response(self):
        return Response("made by hand", 202, media_type="text/plain")

    @chute.cord(public_api_path="/refuses")
    def refuses(self):
        raise HTTPException(418, "I am a teapot")

    @chute.cord(public_api_path="/breaks")
    def breaks(self):
        raise ZeroDivisionError("by nothing")

    @chute.cord()
    def internal(self, n: int):
        return n + 1

    return chute


@pytest.fixture
def client(remote):
    with served(functions()) as url, httpx2.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/one", {"prompt": "p"}, {"model": "model", "prompt": "p", "size": "small", "steps": 2}),
        (
            "/one",
            {"args": {"prompt": "p", "steps": 3}},
            {"model": "model", "prompt": "p", "size": "small", "steps": 3},
        ),
        ("/empty", {}, {"note": "nothing"}),
        ("/empty", {"note": "x"}, {"note": "x"}),
        ("/several", {"a": 1, "b": ["x"]}, [1, ["x"], None, 0.5]),
        ("/several", {"a": "2", "b": [], "c": 1, "args": {"prompt": "p"}}, [2, [], "p", 1.0]),
        ("/whole", {}, {}),
        ("/whole", {"data": 1}, {"data": 1}),
        ("/whole", {"x": [1]}, {"x": [1]}),
        ("/text", {"text": "abc"}, "ABC"),
        ("/text", "abc", "ABC"),
        ("/explicit", {"prompt": "p"}, "Args"),
        ("/internal", {"n": 1}, 2),
        ("/internal", 4, 5),
    ],
)
def test_bodies_become_arguments(client, path, body, answer):
    response = client.post(path, json=body)
    assert (response.status_code, response.json()) == (200, answer)


def test_the_openapi_document_says_what_is_sent(remote):
    chute = Chute("me", "kinds", "i")
    kinds = {"text": str, "number": int, "several": list[str], "raw": bytes, "whatever": None, "object": dict}
    values: dict[str, Any] = {
        "text": "a", "number": 1, "several": ["a"], "raw": b"a", "whatever": [1], "object": {"a": 1}
    }  # fmt: skip

    def add(name: str, **options: Any) -> None:
        def function(self):
            return values[name]

        function.__name__ = name + "_declared" * bool(options)
        function.__annotations__ = {} if kinds[name] is None else {"return": kinds[name]}
        chute.cord(public_api_path=f"/{function.__name__}", **options)(function)

    for name in kinds:
        add(name)
    add("text", output_content_type="text/plain")
    add("raw", output_content_type="image/png")
    with served(chute) as url, httpx2.Client(base_url=url) as client:
        for path, operations in document(chute)["paths"].items():
            (kind,) = operations["post"]["responses"]["200"]["content"]
            assert client.post(path).headers["content-type"].partition(";")[0] == kind, path


def test_what_belongs_to_another_loop_is_told_so(remote, caplog):
    chute = Chute("me", "loops", "i")

    @chute.on_startup()
    async def load(self):
        self.ready = asyncio.get_running_loop().create_future()

    @chute.cord(public_api_path="/waits")
    async def waits(self):
        await self.ready

    with served(chute) as url:
        answer = httpx2.post(f"{url}/waits")
    assert answer.status_code == 500
    assert "Each call of a cord has an event loop of its own" in answer.json()["error"]["message"]
    assert "attached to a different loop" in caplog.text


def test_no_body_and_query_parameters(client):
    assert client.get("/nothing").json() == {"model": "model"}
    assert client.get("/query?n=3").json() == [3, "w"]
    assert client.post("/empty").json() == {"note": "nothing"}
    assert client.post("/one").status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/one", {}, [["prompt"]]),
        ("/one", {"prompt": 1, "steps": 10, "size": "huge"}, [["prompt"], ["size"], ["steps"]]),
        ("/several", {"b": "x"}, [["a"], ["b"]]),
        ("/several", {"a": 1, "b": [], "args": {}}, [["args", "prompt"]]),
        ("/several", [1], [[]]),
        ("/text", {"texts": "abc"}, [[]]),
        ("/explicit", {"steps": 1}, [["prompt"]]),
        ("/query", {}, [["n"]]),
    ],
)
def test_wrong_input_is_told_field_by_field(client, path, body, fields):
    response = client.get(path) if path == "/query" else client.post(path, json=body)
    assert response.status_code == 400
    answer = response.json()
    assert [e["loc"] for e in answer["detail"]] == fields
    assert all(e["msg"] for e in answer["detail"])
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"].startswith("Invalid input parameters: ")
    assert answer["error"]["param"] == (".".join(fields[0]) or None)


def test_a_body_that_is_not_json(client):
    response = client.post("/one", content=b"{not json")
    assert response.status_code == 400
    assert "not JSON" in response.json()["error"]["message"]


def test_kinds_of_answers(client):
    image = client.post("/image")
    assert (image.content, image.headers["content-type"]) == (b"\x89PNG", "image/png")
    made = client.post("/response")
    assert (made.status_code, made.text) == (202, "made by hand")
    refused = client.post("/refuses")
    assert (refused.status_code, refused.json()) == (418, {"detail": "I am a teapot"})
    broken = client.post("/breaks", headers={"X-Request-Id": "r-17"})
    assert broken.status_code == 500
    assert broken.json()["error"]["message"] == (
        "Cord 'breaks' failed. The chute's log has the traceback under id r-17."
    )
    assert "by nothing" not in broken.text


def test_outside_dev_mode_the_internal_path_wins_a_collision(monkeypatch):
    def crossed() -> Chute:
        chute = Chute("someone", "crossed", "i")

        @chute.cord(path="/x", public_api_path="/y")
        def first(self):
            return "first"

        @chute.cord(path="/y", public_api_path="/x")
        def second(self):
            return "second"

        return chute

    monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "REMOTE")
    for dev, answer in (("false", "first"), ("true", "second")):
        monkeypatch.setenv("CHUTES_DEV_MODE", dev)
        with served(crossed()) as url:
            assert httpx2.post(f"{url}/x").json() == answer


def test_a_published_custom_chute_runs_unchanged(remote):
    chute = load("custom:chute", cwd=PUBLISHED_FILES).chute
    with served(chute) as url, httpx2.Client(base_url=url) as client:
        body = {"lines": [{"text": "hello"}, {"text": "there", "voice": "emma"}]}
        said = client.post("/speak", json=body)
        assert (said.text, said.headers["content-type"]) == ("HEART: hello EMMA: there", "audio/wav")
        assert (
            client.post("/words", json=body).text == 'data: {"word": "hello"}\n\ndata: {"word": "there"}\n\n'
        )
        assert client.get("/health").json() == {"warm": True}
        wrong = client.post("/speak", json={"lines": [{"text": "x", "voice": "bob"}], "speed": 0})
        assert [e["loc"] for e in wrong.json()["detail"]] == [["lines", 0, "voice"], ["speed"]]
    wait_for(lambda: chute.voices is None)  # type: ignore[attr-defined]  # set by its shutdown hook


def streams(log: list[str]) -> Chute:
    chute = Chute("someone", "streams", "i", concurrency=4)

    @chute.cord(public_api_path="/generate", stream=True)
    async def generate_stream(self, prompt: str, stream: bool = True):
        for n in range(3):
            await asyncio.sleep(0)
            yield {"n": n}

    @chute.cord(public_api_path="/generate")
    async def generate(self, prompt: str, stream: bool | None = False):
        return {"all": 3}

    @chute.cord(public_api_path="/raw", stream=True)
    def raw(self, n: int):
        for i in range(n):
            yield f"data: {i}\n\n"

    @chute.cord(public_api_path="/audio", stream=True, output_content_type="audio/mpeg")
    def audio(self):
        yield b"\x00\x01"
        yield b"\x02"

    @chute.cord(public_api_path="/early", stream=True)
    async def early(self):
        raise HTTPException(409, "not now")
        yield

    @chute.cord(public_api_path="/late", stream=True)
    async def late(self):
        yield "data: 1\n\n"
        raise ValueError("half way")

    @chute.cord(public_api_path="/endless", stream=True)
    async def endless(self, kind: str):
        try:
            while True:
                yield "data: x\n\n"
                await asyncio.sleep(0.001)
        finally:
            log.append("async closed")

    @chute.cord(public_api_path="/endless_sync", stream=True)
    def endless_sync(self):
        try:
            while True:
                yield "data: x\n\n" * 100
        finally:
            log.append("sync closed")

    return chute


def test_streams(remote):
    with served(streams([])) as url, httpx2.Client(base_url=url) as client:
        raw = client.post("/raw", json={"n": 200})
        assert raw.headers["content-type"].startswith("text/event-stream")
        assert raw.text == "".join(f"data: {i}\n\n" for i in range(200))
        assert client.post("/raw", json={"n": 0}).text == ""
        audio = client.post("/audio")
        assert (audio.content, audio.headers["content-type"]) == (b"\x00\x01\x02", "audio/mpeg")
        assert client.post("/early").status_code == 409
        late = client.post("/late")
        assert late.status_code == 200
        assert late.text.startswith('data: 1\n\ndata: {"error": {"message": "Cord \'late\' failed. The')


@pytest.mark.parametrize(
    ("stream", "streamed"), [(True, True), (False, False), (None, False), ("absent", False)]
)
def test_a_pair_on_one_public_path_is_told_apart_by_stream(remote, stream, streamed):
    body = {"prompt": "p"} if stream == "absent" else {"prompt": "p", "stream": stream}
    with served(streams([])) as url:
        answer = httpx2.post(f"{url}/generate", json=body)
        if streamed:
            assert answer.text == 'data: {"n": 0}\n\ndata: {"n": 1}\n\ndata: {"n": 2}\n\n'
        else:
            assert answer.json() == {"all": 3}


def test_a_client_that_goes_away_stops_the_generator(remote):
    log: list[str] = []
    with served(streams(log)) as url, httpx2.Client(base_url=url) as client:
        for path, body in (("/endless", {"kind": "k"}), ("/endless_sync", None)):
            with client.stream("POST", path, json=body) as response:
                next(response.iter_bytes())
        wait_for(lambda: len(log) == 2)
    assert sorted(log) == ["async closed", "sync closed"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited 5 s in vain"
        time.sleep(0.01)


def test_blocking_code_blocks_no_other_request_and_a_gone_client_cancels_async_code(remote):
    release = threading.Event()
    log: list[str] = []
    chute = Chute("someone", "blocking", "i", concurrency=2)

    @chute.cord(public_api_path="/blocks")
    async def blocks(self):
        release.wait(10)  # blocking inside `async def`, as authors do
        return "released"

    @chute.cord(public_api_path="/quick", public_api_method="GET")
    def quick(self):
        return "quick"

    @chute.cord(public_api_path="/sleeps")
    async def sleeps(self):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    with served(chute) as url:
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(httpx2.post(f"{url}/blocks").json()))
        thread.start()
        start = time.monotonic()
        assert httpx2.get(f"{url}/quick").json() == "quick"
        assert time.monotonic() - start < 2
        assert not answers
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/sleeps", timeout=0.3)
        wait_for(lambda: log == ["cancelled"])
        release.set()
        thread.join(30)
        assert answers == ["released"]


async def test_the_time_limit():
    code = UserCode(1, limit_s=0.1)

    async def slow():
        await asyncio.sleep(5)

    async def items():
        yield 1
        await asyncio.sleep(5)

    with pytest.raises(TimeLimitError, match=r"0\.1 seconds"):
        await code.call(slow)
    stream = code.stream(items)
    assert await anext(stream) == 1
    with pytest.raises(TimeLimitError):
        await anext(stream)
    code.close()


async def test_an_authors_timeout_is_not_the_limit():
    code = UserCode(1)

    def slow():
        raise TimeoutError("the author's")

    with pytest.raises(TimeoutError, match="the author's"):
        await code.call(slow)
    code.close()


def engine(seen: list[dict[str, Any]]) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        body = await request.json()
        seen.append({"body": body, "raw": await request.body(), "key": request.headers.get("authorization")})
        if body.get("fail"):
            raise HTTPException(int(body["fail"]), {"error": {"message": "no room"}}, {"Retry-After": "3"})

        async def events():
            for n in range(3):
                yield f"data: {n}\n\n"
            if body.get("endless"):
                while True:
                    await asyncio.sleep(0.01)
                    yield "data: more\n\n"
            yield "data: [DONE]\n\n"

        if body.get("stream"):
            return StreamingResponse(events(), media_type="text/event-stream")
        return {"answer": body["n"]}

    @app.get("/v1/models")
    async def models():
        return {"data": ["m"]}

    @app.post("/abort_request")
    async def abort(request: Request):
        seen.append({"aborted": await request.json()})
        return {}

    return app


def test_passthrough(remote):
    seen: list[dict[str, Any]] = []
    pack = build_vllm_chute("someone", "org/model")
    with served(engine(seen)) as upstream, served(pack.chute) as url, httpx2.Client(base_url=url) as client:
        pack.chute.passthrough_port = int(upstream.rpartition(":")[2])
        pack.chute.passthrough_headers["Authorization"] = "Bearer inner"
        raw = b'{"n":  1, "unknown": {"kept": true}}'
        answer = client.post("/v1/chat/completions", content=raw, headers={"Authorization": "Bearer outer"})
        assert answer.json() == {"answer": 1}
        assert seen[0]["raw"] == raw
        assert seen[0]["key"] == "Bearer inner"
        streamed = client.post("/v1/chat/completions", json={"stream": True})
        assert streamed.text == "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert client.get("/v1/models").json() == {"data": ["m"]}
        for stream in (True, False):
            refused = client.post("/v1/chat/completions", json={"fail": 429, "stream": stream})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")
            assert refused.json()["detail"] == {"detail": {"error": {"message": "no room"}}}


def test_passthrough_without_a_server_says_so(remote):
    pack = build_vllm_chute("someone", "org/model")
    pack.chute.passthrough_port = 1  # nothing listens there
    with served(pack.chute) as url:
        answer = httpx2.post(f"{url}/v1/chat/completions", json={})
    assert answer.status_code == 502
    assert "port 1" in answer.json()["error"]["message"]


def test_sglang_is_told_to_abort(remote):
    seen: list[dict[str, Any]] = []
    chute = Chute("someone", "sglang", "i")

    @chute.cord(
        passthrough=True,
        sglang_passthrough=True,
        stream=True,
        passthrough_path="/v1/chat/completions",
        public_api_path="/v1/chat/completions",
    )
    async def chat_stream(data):
        return data

    with served(engine(seen)) as upstream, served(chute) as url, httpx2.Client(base_url=url) as client:
        chute.cords[0].passthrough_port = int(upstream.rpartition(":")[2])
        body = {"stream": True, "endless": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_bytes())
        wait_for(lambda: len(seen) == 2)
    assert len(seen[0]["body"]["rid"]) == 32
    assert seen[1] == {"aborted": {"rid": seen[0]["body"]["rid"]}}


class TestLocalCalls:
    """A cord called on the author's machine is run by the platform."""

    @pytest.fixture
    def dev(self, monkeypatch):
        """A chute served as an instance, in this process; the test itself is local again."""

        @contextmanager
        def start(chute: Chute) -> Iterator[None]:
            monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "REMOTE")
            with served(chute) as url:
                monkeypatch.delenv("CHUTES_EXECUTION_CONTEXT")
                monkeypatch.setenv("CHUTES_DEV_URL", url)
                yield

        return start

    async def test_arguments_and_results(self, dev):
        class Answer(BaseModel):
            said: str

        chute = Chute("someone", "local", "i")

        @chute.cord()
        async def say(self, args: Args) -> Answer:
            return Answer(said=f"{args.prompt} {args.size.value}")

        @chute.cord()
        def add(self, a: int, b: int = 2):
            return a + b

        @chute.cord(stream=True)
        def count(self, n: int):
            for i in range(n):
                yield {"i": i}

        @chute.cord()
        def breaks(self):
            raise ValueError("inside")

        with dev(chute):
            assert await say(Args(prompt="hi", size=Size.LARGE)) == Answer(said="hi large")
            assert await add(1) == 3
            assert await add(a=1, b=5) == 6
            assert [item async for item in count(3)] == [{"i": 0}, {"i": 1}, {"i": 2}]
            with pytest.raises(ChutesError, match=r"status=500.*traceback under id"):
                await breaks()
            with pytest.raises(TypeError):
                await add()

    @pytest.mark.parametrize(
        ("status", "error"),
        [(401, AuthenticationRequired), (404, NotFound), (503, StillProvisioning), (500, ChutesError)],
    )
    async def test_a_platform_that_refuses(self, monkeypatch, tmp_path, status, error):
        seen: list[Any] = []
        app = FastAPI()

        @app.post("/chutes/{path:path}")
        async def refuse(path: str, request: Request):
            seen.append((path, request.headers.get("authorization")))
            if status == 503 and len(seen) == 2:
                return {"warm": True}
            raise HTTPException(status)

        chute = Chute("someone", "local", "i")

        @chute.cord(provision_timeout=0)
        async def impatient(self): ...

        @chute.cord(provision_timeout=10)
        async def patient(self): ...

        monkeypatch.setenv("CHUTES_HOME", str(tmp_path))
        monkeypatch.setenv("CHUTES_API_KEY", "cpk_x")
        with served(app) as url:
            monkeypatch.setenv("CHUTES_API_URL", url)
            with pytest.raises(error):
                await impatient()
            assert seen == [(f"{chute.uid}/impatient", "Bearer cpk_x")]
            if status == 503:
                assert await patient() == {"warm": True}

    @pytest.mark.parametrize(
        ("key", "status", "body", "error", "said"),
        [
            ("", 401, {}, AuthenticationRequired, "wants a key, and none is set"),
            ("cpk_x", 401, {}, AuthenticationRequired, "does not know the key in CHUTES_API_KEY"),
            ("cpk_x", 403, {"error": {"code": "admin_key_needed"}}, NotFound, "not known to the platform"),
        ],
    )
    async def test_why_a_key_does_not_do(self, monkeypatch, tmp_path, key, status, body, error, said):
        app = FastAPI()

        @app.post("/chutes/{path:path}")
        async def refuse(path: str):
            return JSONResponse(body, status)

        chute = Chute("someone", "local", "i")

        @chute.cord()
        async def ask(self): ...

        monkeypatch.setenv("CHUTES_HOME", str(tmp_path))
        monkeypatch.setenv("CHUTES_API_KEY", key)
        with served(app) as url:
            monkeypatch.setenv("CHUTES_API_URL", url)
            with pytest.raises(error, match=said) as refused:
                await ask()
        assert ("chutes keys create" in refused.value.fix) is (status == 401)

    async def test_no_platform(self, monkeypatch):
        monkeypatch.setenv("CHUTES_DEV_URL", "http://127.0.0.1:1")
        chute = Chute("someone", "local", "i")

        @chute.cord()
        async def run(self): ...

        with pytest.raises(PlatformUnreachable) as caught:
            await run()
        assert "chutes serve" in caught.value.fix

    def test_inside_an_instance_the_name_is_the_function(self, remote):
        chute = Chute("someone", "local", "i")

        @chute.cord()
        def double(self, n: int):
            return 2 * n

        assert double(chute, 4) == 8
