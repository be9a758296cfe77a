"""Cords as HTTP endpoints of the chute's own FastAPI app."""

from __future__ import annotations

import asyncio
import json
import logging
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

Endpoint = Callable[[Request], Awaitable[Response]]


def endpoints(
    chute: Chute, cords: list[Cord], public: bool, code: UserCode, relay: Passthrough
) -> list[tuple[str, str, Endpoint]]:
    """Every route of a chute as (method, path, endpoint).

    A cord answers at its internal path, always by POST, and at its public path with its public method.
    Where the two sets collide, `public` says which wins. Cords that share a public path (the streaming
    and the plain half of one operation) are told apart by the body's `stream`.
    """
    serve = {id(cord): _Server(chute, cord, code, relay) for cord in cords}
    inner: dict[tuple[str, str], Endpoint] = {("POST", c.path): serve[id(c)] for c in cords}
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

    def __init__(self, chute: Chute, cord: Cord, code: UserCode, relay: Passthrough) -> None:
        self._chute, self._cord, self._code, self._relay = chute, cord, code, relay
        self._binder = Binder(cord.func, cord.takes_chute, cord.input_model)

    async def __call__(self, request: Request) -> Response:
        await request.body()  # read to its end: from here on the only message left is a disconnect
        work = asyncio.ensure_future(self._answer(request))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=CLIENT_GONE)
            return work.result()
        finally:
            await _cancel(gone, work)

    async def _answer(self, request: Request) -> Response:
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
                return await self._stream(first, arguments)
            return self._plain(await self._code.call(cord.func, *first, **arguments))
        except HTTPException:
            raise  # the author's own choice of status
        except TimeLimitError as error:
            return JSONResponse(_error(f"Cord {cord.name!r}: {error}", "timeout"), 504)
        except Exception as error:
            log.exception("cord %r failed", cord.name)
            return JSONResponse(_error(self._said(error), "cord_failed"), 500)

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
        return JSONResponse(jsonable_encoder(result))

    async def _stream(self, first: tuple[Any, ...], arguments: dict[str, Any]) -> Response:
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
                    yield _event(head)
                async for item in items:
                    yield _event(item)
            except Exception as error:
                if not isinstance(error, TimeLimitError):
                    log.exception("cord %r failed while streaming", self._cord.name)
                yield _event(_error(self._said(error), "cord_failed"))
            finally:
                await items.aclose()

        media_type = self._cord.declared_content_type or "text/event-stream"
        return StreamingResponse(chunks(), media_type=media_type, headers={"Cache-Control": "no-cache"})

    def _said(self, error: Exception) -> str:
        return f"Cord {self._cord.name!r} failed: {type(error).__name__}: {error}"


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


def _event(item: Any) -> bytes:
    """Text and bytes as the author framed them; anything else as one server-sent event."""
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    return b"data: " + json.dumps(jsonable_encoder(item), ensure_ascii=False).encode() + b"\n\n"


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
