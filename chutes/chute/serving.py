"""Cords as HTTP endpoints of the chute's own FastAPI app."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi.encoders import jsonable_encoder
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from chutes.chute.binding import MISSING, Binder, InvalidInputError
from chutes.chute.passthrough import Passthrough
from chutes.chute.runtime import TimeLimitError, UserCode

if TYPE_CHECKING:
    from chutes.chute.base import Chute
    from chutes.chute.cord import Cord

log = logging.getLogger(__name__)

CLIENT_GONE = 499  # nginx's code, and the published one; nobody reads it but the access log

_NOTHING: Any = object()

_OF_ANOTHER_LOOP = (
    *("attached to a different loop", "bound to a different event loop", "Event loop is closed"),
    "Timeout context manager should be used inside a task",  # aiohttp
)
ANOTHER_LOOP = (
    "It used something of asyncio (a lock, a queue, a session) that was made in a hook or in another call. "
    "Each call of a cord has an event loop of its own: make it inside the cord, or use it in the loop of the "
    "hooks, as docs/own-chutes.md shows."
)

Endpoint = Callable[[Request], Awaitable[Response]]

Observe = Callable[[str, int, float], None]
"""Told of each call of a cord when it is over: (function, status, seconds). A stream that broke is a 500."""

_ID = re.compile(r"[\w.-]{1,80}")


def endpoints(
    chute: Chute,
    cords: list[Cord],
    public: bool,
    code: UserCode,
    relay: Passthrough,
    calls_at: str = "",
    observe: Observe | None = None,
) -> list[tuple[str, str, Endpoint]]:
    """Every route of a chute as (method, path, endpoint).

    A cord answers at its internal path, always by POST, and at its public path with its public method.
    Where the two sets collide, `public` says which wins; with `calls_at` the internal paths are below it and
    nothing collides. Cords that share a public path (the streaming
    and the plain half of one operation) are told apart by the body's `stream`.
    """
    serve = {id(cord): _Server(chute, cord, code, relay, observe) for cord in cords}
    inner: dict[tuple[str, str], Endpoint] = {("POST", calls_at + c.path): serve[id(c)] for c in cords}
    groups: dict[tuple[str, str], list[Cord]] = {}
    for cord in cords:
        if cord.public_api_path:
            groups.setdefault((cord.public_api_method, cord.public_api_path), []).append(cord)
    outer: dict[tuple[str, str], Endpoint] = {}
    for where, sharing in groups.items():
        outer[where] = serve[id(sharing[0])] if len(sharing) == 1 else _pair(sharing, serve)
    routes = {**inner, **outer} if public else {**outer, **inner}
    return [(method, path, endpoint) for (method, path), endpoint in routes.items()]


def _pair(cords: list[Cord], serve: dict[int, _Server]) -> Endpoint:
    streaming = next((c for c in cords if c.stream), None)
    plain = next((c for c in cords if not c.stream), None)
    # Two of one kind: the first registered answers, as published.
    yes, no = serve[id(streaming or cords[0])], serve[id(plain or cords[0])]

    async def by_stream(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except ValueError:
            body = None  # whichever answers will say what is wrong with it
        wanted = bool(body.get("stream")) if isinstance(body, dict) else False
        return await (yes if wanted else no)(request)

    return by_stream


class _Server:
    """Answers requests for one cord."""

    def __init__(
        self, chute: Chute, cord: Cord, code: UserCode, relay: Passthrough, observe: Observe | None
    ) -> None:
        self._chute, self._cord, self._code, self._relay = chute, cord, code, relay
        self._observe = observe
        self._binder = Binder(cord.func, cord.takes_chute, cord.input_model)

    async def __call__(self, request: Request) -> Response:
        await request.body()  # read to its end: from here on the only message left is a disconnect
        call = _Call(self._cord.name, request, self._observe)
        work = asyncio.ensure_future(self._answer(request, call))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            response = work.result() if work.done() else Response(status_code=CLIENT_GONE)
        except BaseException as error:
            call.over(error.status_code if isinstance(error, HTTPException) else 500)
            raise
        finally:
            await _cancel(gone, work)
        if isinstance(response, StreamingResponse):
            response.body_iterator = call.counted(response.body_iterator, response.status_code)
        else:
            call.over(response.status_code)
        return response

    async def _answer(self, request: Request, call: _Call) -> Response:
        cord = self._cord
        if cord.passthrough:
            return await self._relay.relay(self._chute, cord, request)
        try:
            arguments = self._binder.bind(await _body(request))
        except InvalidInputError as error:
            return _invalid(error)
        first = (self._chute,) if cord.takes_chute else ()
        try:
            if cord.stream:
                return await self._stream(first, arguments, call)
            return self._plain(await self._code.call(cord.func, *first, **arguments))
        except HTTPException:
            raise  # the author's own choice of status
        except TimeLimitError as error:
            return JSONResponse(_error(f"Cord {cord.name!r}: {error}", "timeout"), 504)
        except Exception as error:
            log.exception("cord %r failed (id %s)", cord.name, call.id)
            return JSONResponse(call.failure(error), 500)

    def _plain(self, result: Any) -> Response:
        cord = self._cord
        if isinstance(result, Response):
            return result
        if isinstance(result, (bytes, bytearray, memoryview)):
            return Response(
                bytes(result), media_type=cord.declared_content_type or "application/octet-stream"
            )
        declared = cord.declared_content_type
        if isinstance(result, str) and declared and "json" not in declared:
            return Response(result, media_type=declared)
        media_type = declared if declared and "json" in declared else None
        return JSONResponse(jsonable_encoder(result), media_type=media_type)

    async def _stream(self, first: tuple[Any, ...], arguments: dict[str, Any], call: _Call) -> Response:
        media_type = self._cord.declared_content_type or "text/event-stream"
        items = self._code.stream(self._cord.func, *first, **arguments)
        try:
            # The first item before the status line: what fails at once can still be a proper error.
            head = await anext(items, _NOTHING)
        except BaseException:
            await items.aclose()
            raise

        async def chunks() -> AsyncIterator[bytes]:
            try:
                if head is not _NOTHING:
                    yield _event(head, media_type)
                async for item in items:
                    yield _event(item, media_type)
            except Exception as error:
                call.broken = True
                if isinstance(error, TimeLimitError):
                    said = _error(f"Cord {self._cord.name!r}: {error}", "timeout")
                else:
                    log.exception("cord %r failed while streaming (id %s)", self._cord.name, call.id)
                    said = call.failure(error)
                if not _holds_json(media_type):
                    raise  # in audio or text an error would be taken for data: the connection breaks off
                yield _event(said, media_type)
            finally:
                await items.aclose()

        return StreamingResponse(chunks(), media_type=media_type, headers={"Cache-Control": "no-cache"})


class _Call:
    """One call of a cord: its id, under which its traceback is logged, and its end."""

    def __init__(self, function: str, request: Request, observe: Observe | None) -> None:
        given = request.headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else uuid.uuid4().hex[:16]
        self.function = function
        self.broken = False
        self._observe: Observe | None = observe
        self._began = time.monotonic()

    def failure(self, error: Exception) -> dict[str, Any]:
        """What a client hears of an author's exception: nothing of it but where it is told."""
        message = f"Cord {self.function!r} failed. The chute's log has the traceback under id {self.id}."
        if isinstance(error, RuntimeError) and any(said in str(error) for said in _OF_ANOTHER_LOOP):
            log.error("cord %r: %s", self.function, ANOTHER_LOOP)
            message += f" {ANOTHER_LOOP}"
        return _error(message, "cord_failed")

    def over(self, status: int) -> None:
        observe, self._observe = self._observe, None
        if observe is not None:
            observe(self.function, status, time.monotonic() - self._began)

    async def counted(self, chunks: Any, whole: int) -> AsyncIterator[Any]:
        """The stream's parts as they are; at its end it is counted, as `whole` if nothing broke it."""
        status = CLIENT_GONE
        try:
            async for chunk in chunks:
                yield chunk
            status = 500 if self.broken else whole
        except Exception:
            status = 500
            raise
        finally:
            if hasattr(chunks, "aclose"):
                await chunks.aclose()
            self.over(status)


async def _body(request: Request) -> Any:
    raw = await request.body()
    if not raw:
        return dict(request.query_params) or MISSING  # how a GET passes parameters
    try:
        return json.loads(raw)
    except ValueError as error:
        raise InvalidInputError(
            [{"loc": [], "msg": f"the body is not JSON: {error}", "type": "json_invalid"}]
        ) from None


def _event(item: Any, media_type: str = "text/event-stream") -> bytes:
    """Text and bytes as the author framed them; anything else as one line of JSON where the stream is of
    such lines, and as one server-sent event where not."""
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    text = json.dumps(jsonable_encoder(item), ensure_ascii=False).encode()
    return text + b"\n" if _is_lines(media_type) else b"data: " + text + b"\n\n"


def _is_lines(media_type: str) -> bool:
    return any(kind in media_type for kind in ("ndjson", "jsonl", "jsonlines", "json-seq"))


def _holds_json(media_type: str) -> bool:
    return "event-stream" in media_type or _is_lines(media_type)


def _error(message: str, code: str) -> dict[str, Any]:
    return {
        "error": {"message": message, "type": "server_error", "param": None, "code": code},
        "detail": message,
    }


def _invalid(error: InvalidInputError) -> Response:
    body = {
        "error": {
            "message": str(error),
            "type": "invalid_request_error",
            "param": error.field,
            "code": "invalid_input",
        },
        "detail": error.errors,
    }
    return JSONResponse(body, 400)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    # Gathered so that what a task raised while being cancelled is not reported as never retrieved.
    await asyncio.gather(*tasks, return_exceptions=True)
