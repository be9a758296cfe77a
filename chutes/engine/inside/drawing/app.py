"""HTTP: the published `/generate`, OpenAI's `/v1/images/generations`, and what the platform asks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import io
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from . import asked
from .asked import Asked, Invalid, Skill
from .shelf import Shelf
from .studio import Drawn, Failed, Full, Job, Step, Studio

IMAGES_HEADER = "x-chutes-images"
"""In which a gateway says under which URL clients find `/images/`; without it there are no URLs."""

OPEN_PATHS = {"/health"}
RETRY_SECONDS = 5  # some pictures are done by then


class Draws(Protocol):
    """What this file asks of an artist beside drawing."""

    skill: Skill

    def tokens(self, text: str) -> int: ...


class Refused(Exception):
    """An answer that is an error, as OpenAI writes it."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = (
            "invalid_request_error"
            if status < 429
            else "rate_limit_error"
            if status == 429
            else "server_error"
        )
        self.body = {"error": {"message": message, "type": kind, "param": field, "code": code}}


class Guard:
    """Lets nobody pass without the key, by a comparison whose time tells nothing of it."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self._expected = f"Bearer {key}".encode()
        self._open = not key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._open:
            sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(sent, self._expected):
                refusal = Refused(401, "invalid_api_key", "This server asks for a key.")
                await JSONResponse(refusal.body, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Server:
    """The endpoints.

    Args:
        names: that the model goes by; the first is its own.
    """

    def __init__(self, studio: Studio, artist: Draws, names: Sequence[str], shelf: Shelf) -> None:
        self.studio = studio
        self.artist = artist
        self.names = names
        self.shelf = shelf
        self.created = int(time.time())
        self.requests: Counter[tuple[str, int]] = Counter()
        """Answered, by path and status."""

    def app(self, key: str) -> ASGIApp:
        routes = [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/images/{id}", self.image),
            Route("/generate", self._answering(self.generate), methods=["POST"]),
            Route("/v1/images/generations", self._answering(self.generations), methods=["POST"]),
        ]
        return Guard(Starlette(routes=routes), key)

    async def health(self, _request: Request) -> Response:
        return Response("ok") if self.studio.alive else Response("the drawing thread has ended", 503)

    async def models(self, _request: Request) -> Response:
        data = [
            {"id": name, "object": "model", "created": self.created, "owned_by": "diffusers"}
            for name in self.names
        ]
        return JSONResponse({"object": "list", "data": data})

    async def image(self, request: Request) -> Response:
        found = self.shelf.get(request.path_params["id"], time.time())
        if found is None:
            refusal = Refused(404, "no_such_image", "There is no such picture here (any more).")
            return JSONResponse(refusal.body, 404)
        return Response(found[1], media_type=found[0], headers={"Cache-Control": "private, max-age=3600"})

    async def metrics(self, _request: Request) -> Response:
        counts = self.studio.counts
        rows: list[tuple[str, str, float]] = [
            ("diffusers:images_waiting", "gauge", self.studio.waiting),
            ("diffusers:images_running", "gauge", counts.drawing),
            ("diffusers:images_total", "counter", counts.pictures),
            ("diffusers:batches_total", "counter", counts.batches),
            ("diffusers:failures_total", "counter", counts.failures),
            ("diffusers:draw_seconds_total", "counter", round(counts.seconds, 3)),
        ]
        lines = [
            line for name, kind, value in rows for line in (f"# TYPE {name} {kind}", f"{name} {value:g}")
        ]
        lines.append("# TYPE diffusers:requests_total counter")
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'diffusers:requests_total{{path="{path}",status="{status}"}} {count}')
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    def _answering(self, endpoint: Callable[[Request, Any], Any]) -> Callable[[Request], Any]:
        """An endpoint that is given its parsed body, and whose errors become answers."""

        async def answer(request: Request) -> Response:
            headers = {}
            try:
                try:
                    body = json.loads(await request.body())
                except (ValueError, RecursionError):
                    raise Refused(400, "invalid_json", "The body is not valid JSON.") from None
                response = await endpoint(request, body)
            except Invalid as error:
                response = JSONResponse(Refused(400, error.code, error.message, error.field).body, 400)
            except Full:
                text = f"{self.studio.waiting} pictures are waiting already. Try again in a moment."
                headers = {"Retry-After": str(RETRY_SECONDS)}
                response = JSONResponse(Refused(429, "queue_full", text).body, 429, headers)
            except Failed as error:
                response = JSONResponse(Refused(500, "generation_failed", str(error)).body, 500)
            except Refused as error:
                response = JSONResponse(error.body, error.status)
            self.requests[request.url.path, response.status_code] += 1
            return response

        return answer

    async def generate(self, request: Request, body: Any) -> Response:
        """The published endpoint: the bytes of one JPEG."""
        wanted = asked.published(body, self.artist.skill)
        async with self._drawing(wanted) as sitting:
            (drawn,) = await _or_gone(request, sitting.finished())
        data = await _encoded(drawn, wanted)
        headers = {
            "Content-Disposition": f'attachment; filename="{uuid.uuid4()}.jpg"',
            "X-Seed": str(wanted.pictures[0].seed),
        }
        return Response(data, media_type="image/jpeg", headers=headers)

    async def generations(self, request: Request, body: Any) -> Response:
        """OpenAI's endpoint: JSON, or events as they come."""
        wanted = asked.openai(body, self.artist.skill)
        base = request.headers.get(IMAGES_HEADER, "")
        if wanted.by_url and not base:
            raise Invalid("response_format", "'response_format': there are no URLs here, ask for b64_json.")
        usage = self._usage(wanted)
        if wanted.stream:
            sitting = self._drawing(wanted)
            sitting.begin()  # a full line is said before there is a stream
            return StreamingResponse(self._events(sitting, wanted, usage), media_type="text/event-stream")
        async with self._drawing(wanted) as sitting:
            drawn = await _or_gone(request, sitting.finished())
        media_type = f"image/{wanted.format}"
        data: list[dict[str, Any]] = []
        for one, picture in zip(drawn, wanted.pictures, strict=True):
            encoded = await _encoded(one, wanted)
            if wanted.by_url:
                item = {"url": base + self.shelf.put(encoded, media_type, time.time())}
            else:
                item = {"b64_json": base64.b64encode(encoded).decode()}
            data.append({**item, "seed": picture.seed})
        answer = {"created": int(time.time()), "data": data, **_shown(wanted), "usage": usage}
        # Not starlette's own: it checks every character for what JSON has to escape.
        return Response(json.dumps(answer), media_type="application/json")

    def _usage(self, wanted: Asked) -> dict[str, Any]:
        """The prompt's tokens, once for each picture. Pictures are not counted in tokens here."""
        tokens = self.artist.tokens(wanted.pictures[0].prompt) * len(wanted.pictures)
        return {
            "input_tokens": tokens,
            "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
            "output_tokens": 0,
            "total_tokens": tokens,
        }

    def _drawing(self, wanted: Asked) -> Sitting:
        return Sitting(self.studio, wanted)

    async def _events(self, sitting: Sitting, wanted: Asked, usage: dict[str, Any]) -> AsyncIterator[bytes]:
        """The stream of a request. Starlette closes it when the client goes, which cancels what is left."""
        shown = [0] * len(wanted.pictures)
        left = len(wanted.pictures)
        try:
            while left:
                index, told = await sitting.told.get()
                common = {"created_at": int(time.time()), **_shown(wanted), "image_index": index}
                if isinstance(told, Exception):
                    raise told
                if isinstance(told, Drawn):
                    left -= 1
                    encoded = base64.b64encode(await _encoded(told, wanted)).decode()
                    whole = {"b64_json": encoded, "seed": wanted.pictures[index].seed}
                    yield _event("image_generation.completed", {**whole, **common, "usage": usage})
                    continue
                if wanted.progress:
                    yield _event(
                        "image_generation.progress", {"step": told.done, "steps": told.total, **common}
                    )
                if told.preview is not None:
                    encoded = base64.b64encode(await _encoded(Drawn(told.preview), wanted)).decode()
                    part = {"b64_json": encoded, "partial_image_index": shown[index]}
                    yield _event("image_generation.partial_image", {**part, **common})
                    shown[index] += 1
        except (Failed, Refused) as error:
            refusal = error if isinstance(error, Refused) else Refused(500, "generation_failed", str(error))
            yield b"event: error\ndata: " + json.dumps({"type": "error", **refusal.body}).encode() + b"\n\n"
        finally:
            sitting.end()


class Sitting:
    """One request's pictures in the studio, and what is told of them."""

    def __init__(self, studio: Studio, wanted: Asked) -> None:
        self._studio = studio
        self.told: asyncio.Queue[tuple[int, Step | Drawn | Exception]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def teller(index: int) -> Callable[[Step | Drawn | Exception], None]:
            def tell(what: Step | Drawn | Exception) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended, and the server with it
                    loop.call_soon_threadsafe(self.told.put_nowait, (index, what))

            return tell

        self.jobs = [
            Job(picture, teller(index), wanted.partial_images)
            for index, picture in enumerate(wanted.pictures)
        ]

    def begin(self) -> None:
        self._studio.add(self.jobs)

    def end(self) -> None:
        """Nobody waits any more for what is not done."""
        for job in self.jobs:
            job.cancelled = True

    async def __aenter__(self) -> Sitting:
        self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()

    async def finished(self) -> list[Drawn]:
        """All pictures. Raises Failed for the first that fails."""
        drawn: dict[int, Drawn] = {}
        while len(drawn) < len(self.jobs):
            index, told = await self.told.get()
            if isinstance(told, Exception):
                raise told
            if isinstance(told, Drawn):
                drawn[index] = told
        return [drawn[index] for index in range(len(self.jobs))]


async def _or_gone(request: Request, work: Any) -> list[Drawn]:
    """The result of `work`, given up when the client goes. Raises Refused: 499, which nobody reads."""
    working = asyncio.ensure_future(work)
    going = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, going}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(499, "client_gone", "The client has gone.")
        return working.result()
    finally:
        working.cancel()
        going.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _encoded(drawn: Drawn, wanted: Asked) -> bytes:
    """The bytes of a picture. In a thread: a PNG takes half a second."""
    if drawn.unsafe:
        raise Refused(
            400, "content_policy_violation", "The pipeline's safety checker refuses this picture.", "prompt"
        )

    def encode() -> bytes:
        out = io.BytesIO()
        how = {} if wanted.format == "png" else {"quality": wanted.compression}
        drawn.image.save(out, wanted.format.upper(), **how)
        return out.getvalue()

    return await asyncio.to_thread(encode)


def _shown(wanted: Asked) -> dict[str, Any]:
    first = wanted.pictures[0]
    return {
        "background": "opaque",
        "output_format": wanted.format,
        "quality": "auto",
        "size": f"{first.width}x{first.height}",
    }


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()
