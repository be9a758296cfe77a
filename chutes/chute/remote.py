"""Calling a cord from the author's machine: the platform runs it and the result comes back.

JSON both ways. A cold chute answers 503 until an instance is ready, so that is retried. A cord of a
template chute is called at its public path, as any client would; an author's own at
`/chutes/{uid}{path}`. CHUTES_DEV_URL has a `chutes run --dev` called instead.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from chutes import config
from chutes.chute.runtime import TIME_LIMIT_S
from chutes.exception import (
    AuthenticationRequired,
    ChutesError,
    NotFound,
    PlatformUnreachable,
    StillProvisioning,
)

if TYPE_CHECKING:
    import httpx2

    from chutes.chute.cord import Cord

_RETRY_S = 1.0  # published pause between two tries on a cold chute


async def call(cord: Cord, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a plain cord on the platform.

    Returns:
        The JSON answer (an instance of the function's return model, where it declares one), text for a
        text answer, bytes for any other.

    Raises:
        StillProvisioning: no instance became ready within the cord's `provision_timeout`.
        AuthenticationRequired, NotFound, PlatformUnreachable: as they say.
        ChutesError: the cord failed; the message carries status and answer.
    """
    async with _answer(cord, args, kwargs) as response:
        content = await response.aread()
        kind = response.headers.get("content-type", "")
    if "json" in kind:
        result = json.loads(content)
        if cord.output_model is not None and not cord.passthrough:
            result = cord.output_model.model_validate(result)
    else:
        result = content.decode() if kind.startswith("text/") else content
    return await cord.post_process(result)


async def stream(cord: Cord, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
    """Run a streaming cord on the platform and yield its items.

    Server-sent events are yielded as their data, parsed where it is JSON; other media as bytes.

    Raises:
        As `call`; besides, ChutesError for an error in the middle of the stream.
    """
    async with _answer(cord, args, kwargs) as response:
        if "event-stream" not in response.headers.get("content-type", ""):
            async for chunk in response.aiter_bytes():
                yield await cord.post_process(chunk)
            return
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            try:
                item = json.loads(data)
            except ValueError:
                item = data
            if isinstance(item, dict) and isinstance(item.get("error"), dict):
                raise ChutesError(f"{cord.name} failed while streaming: {item['error'].get('message', item)}")
            yield await cord.post_process(item)


@asynccontextmanager
async def _answer(
    cord: Cord, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AsyncIterator[httpx2.Response]:
    import httpx2  # here, so that importing a chute file does not pay for a client it may never use

    method, url, headers = _target(cord)
    body = _body(cord.bind_local(args, kwargs))
    if cord._app.engine_spec is not None and isinstance(body, dict):
        body = {"model": cord._app.name, "stream": cord.stream, **body}
    own = cord.session_kwargs
    limit = own.get("timeout") if isinstance(own.get("timeout"), (int, float)) else TIME_LIMIT_S
    if isinstance(own.get("headers"), dict):
        headers |= own["headers"]
    deadline = time.monotonic() + cord.provision_timeout
    async with httpx2.AsyncClient(timeout=httpx2.Timeout(limit, connect=10.0)) as client:
        while True:
            request = client.build_request(method, url, json=body, headers=headers)
            try:
                response = await client.send(request, stream=True)
            except httpx2.TransportError as error:
                raise PlatformUnreachable(
                    f"No platform answers at {url}: {error}",
                    "Start one with `chutes serve`, or set CHUTES_API_URL.",
                ) from None
            try:
                if response.status_code != 503 or time.monotonic() + _RETRY_S > deadline:
                    await _check(cord, response)
                    yield response
                    return
            finally:
                await response.aclose()
            await asyncio.sleep(_RETRY_S)


async def _check(cord: Cord, response: httpx2.Response) -> None:
    status = response.status_code
    if 200 <= status < 300:
        return
    text = (await response.aread()).decode(errors="replace")[:2000]
    name = f"{cord.name} of chute {cord._app.name!r}"
    if status == 503:
        raise StillProvisioning(
            f"{name}: no instance became ready within {cord.provision_timeout} seconds.",
            "See `chutes ps` for what it is doing, or raise the cord's provision_timeout.",
        )
    if status == 401:
        make = "`chutes keys create --name NAME` makes one; set CHUTES_API_KEY in the environment to it."
        if "Authorization" not in response.request.headers:
            raise AuthenticationRequired(f"{name}: the platform wants a key, and none is set.", make)
        raise AuthenticationRequired(f"{name}: the platform does not know the key in CHUTES_API_KEY.", make)
    # What is no function of a deployed chute belongs to the control API, which wants an admin's key.
    if status == 404 or (status == 403 and "admin_key_needed" in text):
        raise NotFound(f"{name} is not known to the platform: {text}", "Deploy it with `chutes deploy`.")
    raise ChutesError(f"Error invoking {name} [status={status}]: {text}")


def _target(cord: Cord) -> tuple[str, str, dict[str, str]]:
    """(method, URL, headers) of a call."""
    dev = os.environ.get("CHUTES_DEV_URL")
    if dev:
        return "POST", dev.rstrip("/") + cord.path, {}
    settings = config.load()
    base = settings.api_url or f"http://{settings.host}:{settings.port}"
    headers = {"X-Chutes-ChuteID": cord._app.uid, "X-Chutes-Function": cord.name}
    if settings.api_key:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    if cord._app.engine_spec is not None and cord.public_api_path:
        return cord.public_api_method, base + cord.public_api_path, headers
    return "POST", f"{base}/chutes/{cord._app.uid}{cord.path}", headers


def _body(arguments: dict[str, Any]) -> Any:
    """The body that `Binder` reads back: one model or object as itself, everything else by name."""
    values = list(arguments.values())
    if len(values) == 1 and isinstance(values[0], BaseModel):
        # Unset fields stay out: an engine takes an explicit null less kindly than an absent field.
        return values[0].model_dump(mode="json", exclude_unset=True)
    if len(values) == 1 and isinstance(values[0], dict):
        return to_jsonable_python(values[0])
    return to_jsonable_python(arguments)
