"""Relaying a cord to a server that the chute runs beside itself on 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from chutes.chute.runtime import TIME_LIMIT_S

if TYPE_CHECKING:
    import httpx2

    from chutes.chute.base import Chute
    from chutes.chute.cord import Cord

DEFAULT_PORT = 8000
_CONNECT_S = 5.0  # published; the server is on this machine and either listens or does not
_SGLANG_CONNECT_S = 30.0  # published; SGLang's accept loop stalls while it captures graphs
_ABORT_S = 15.0  # published total for telling SGLang to stop; 5 of it to connect


class Passthrough:
    """The connections of one chute to its local servers; made on the first relayed request."""

    def __init__(self) -> None:
        self._client: httpx2.AsyncClient | None = None

    def client(self, chute: Chute) -> httpx2.AsyncClient:
        import httpx2  # only chutes that relay need it

        if self._client is None:
            # Without a context of the chute's own the target speaks plain HTTP, and the system's
            # certificates need not be read.
            verify = chute.passthrough_ssl_context or False
            # No proxy (the target is this machine) and no limit on connections: admission is the gateway's.
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
            self._client = httpx2.AsyncClient(trust_env=False, limits=limits, verify=verify)
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def relay(self, chute: Chute, cord: Cord, request: Request) -> Response:
        """Forward one request unchanged and answer with what comes back.

        A status other than 2xx keeps its code; the body is `{"detail": ...}` as published, with the
        upstream's `error` object beside it for OpenAI clients.
        """
        import httpx2

        body = await request.body() if cord.method != "GET" else b""
        rid: str | None = None
        if cord.sglang_passthrough:
            body, rid = _with_rid(body)
        port = cord.passthrough_port or chute.passthrough_port or DEFAULT_PORT
        scheme = "https" if chute.passthrough_ssl_context else "http"
        base = f"{scheme}://127.0.0.1:{port}"
        headers = {"Content-Type": request.headers.get("content-type", "application/json")} if body else {}
        timeout = httpx2.Timeout(
            None if rid else TIME_LIMIT_S, connect=_SGLANG_CONNECT_S if rid else _CONNECT_S
        )
        query = f"?{request.url.query}" if request.url.query else ""
        client = self.client(chute)
        outgoing = client.build_request(
            cord.method,
            f"{base}{cord.passthrough_path}{query}",
            content=body or None,
            headers={**headers, **chute.passthrough_headers},
            timeout=timeout,
        )
        try:
            answer = await client.send(outgoing, stream=True)
        except httpx2.TimeoutException:
            return _failure(504, f"the server on port {port} did not answer in time")
        except httpx2.TransportError as error:
            return _failure(502, f"no answer from the server on port {port}: {error}")
        except BaseException:
            await self._abort(base, chute, rid)
            raise
        if not 200 <= answer.status_code < 300:
            return await _refused(answer)
        media_type = answer.headers.get("content-type") or cord.output_content_type
        if not cord.stream:
            try:
                content = await answer.aread()
            except BaseException:
                await self._abort(base, chute, rid)
                raise
            finally:
                await answer.aclose()
            return Response(content, answer.status_code, media_type=media_type)

        async def chunks() -> AsyncIterator[bytes]:
            complete = False
            try:
                async for chunk in answer.aiter_bytes():
                    yield chunk
                complete = True
            finally:
                await answer.aclose()
                if not complete:
                    await self._abort(base, chute, rid)

        return StreamingResponse(chunks(), answer.status_code, media_type=media_type or "text/event-stream")

    async def _abort(self, base: str, chute: Chute, rid: str | None) -> None:
        """Tell SGLang that nobody waits for this request; it does not notice by itself."""
        if rid is None:
            return
        import anyio
        import httpx2

        with anyio.CancelScope(shield=True):  # we are being cancelled ourselves
            # An error here means that the server is gone, and the request with it.
            with contextlib.suppress(httpx2.HTTPError):
                await self.client(chute).post(
                    f"{base}/abort_request",
                    json={"rid": rid},
                    headers=chute.passthrough_headers,
                    timeout=httpx2.Timeout(_ABORT_S, connect=_CONNECT_S),
                )


async def _refused(answer: httpx2.Response) -> Response:
    content = await answer.aread()
    await answer.aclose()
    try:
        detail: Any = json.loads(content)
    except ValueError:
        detail = content.decode(errors="replace")
    body: dict[str, Any] = {"detail": detail}
    if isinstance(detail, dict) and "error" in detail:
        body["error"] = detail["error"]
    kept = {k: v for k, v in answer.headers.items() if k.lower() == "retry-after"}
    return JSONResponse(body, answer.status_code, headers=kept)


def _failure(status: int, message: str) -> Response:
    error = {"message": message, "type": "server_error", "param": None, "code": "engine_unreachable"}
    return JSONResponse({"error": error, "detail": message}, status)


def _with_rid(body: bytes) -> tuple[bytes, str | None]:
    """Give the request an id by which it can be aborted; a client's own id is kept."""
    try:
        payload = json.loads(body)
    except ValueError:
        return body, None
    if not isinstance(payload, dict):
        return body, None
    rid = payload.setdefault("rid", uuid.uuid4().hex)
    return json.dumps(payload).encode(), rid if isinstance(rid, str) else None
