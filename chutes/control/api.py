"""The control API: what the command line and others ask of the platform, over HTTP.

It listens on a loopback port of its own and wants the platform's token, which only the owner of
`CHUTES_HOME` can read. The gateway relays requests of admin keys here, with that token.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

import chutes
from chutes.chute.spec import ChuteSpec, require_uid
from chutes.control import api_own, api_usage, usage_query
from chutes.control.deploying import Draft, check_arguments, draft
from chutes.control.keys import Limits
from chutes.control.listing import Listing
from chutes.control.platform import Platform
from chutes.control.reconcile import Deployment, Instance
from chutes.control.views import (
    ChuteView,
    DeployRequest,
    DeployView,
    InstanceView,
    KeyRequest,
    KeyView,
    PlanView,
)
from chutes.engine.process import tail
from chutes.exception import AuthenticationRequired, ChutesError, DoesNotFit, NotFound

BACKFILL_BYTES = 1 << 20
FOLLOW_SECONDS = 0.3


def error_body(error: ChutesError, status: int | None = None) -> dict[str, object]:
    """An error as it travels: the OpenAI shape, with the fix beside the message."""
    kind, code = type(error).__name__, status or error.status
    return {"error": {"message": error.message, "fix": error.fix, "type": kind, "param": None, "code": code}}


def make(platform: Platform, token: str, shut_down: Callable[[], None]) -> FastAPI:
    """The API of one platform.

    Args:
        token: what `Authorization: Bearer` must carry.
        shut_down: called by POST /shutdown; returns at once.
    """
    app = FastAPI(title="chutes", version=chutes.__version__, docs_url=None, redoc_url=None, openapi_url=None)
    expected = f"Bearer {token}".encode()
    one_at_a_time = asyncio.Lock()

    @app.middleware("http")
    async def authenticate(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, expected):
            error = AuthenticationRequired(
                "The control API wants the platform's token, or an admin key at the gateway."
            )
            return JSONResponse(error_body(error), 401)
        return await call_next(request)

    @app.exception_handler(ChutesError)
    async def chutes_error(_: Request, error: ChutesError) -> Response:
        return JSONResponse(error_body(error), error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse(error_body(ChutesError(f"{where}: {first['msg']}"), 400), 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}."
        return JSONResponse(error_body(ChutesError(message), error.status_code), error.status_code)

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> Response:
        fault = ChutesError(f"The platform failed: {type(error).__name__}.", "See platform.log in its home.")
        return JSONResponse(error_body(fault), 500)

    @app.get("/ping")
    async def ping() -> dict[str, object]:
        return {"message": "pong", "version": chutes.__version__, "workers": platform.workers.pids()}

    @app.post("/shutdown", status_code=202)
    async def shutdown() -> dict[str, str]:
        shut_down()
        return {"message": "going down"}

    @app.post("/chutes/")
    async def deploy(request: DeployRequest, dry_run: bool = False) -> DeployView:
        if dry_run:
            return DeployView(draft=await work_out(request.spec))
        async with one_at_a_time:  # two at once would be given the same memory
            worked_out = await work_out(request.spec)
            if not worked_out.plan.fits:
                raise DoesNotFit(worked_out.plan.problem, worked_out.plan.fix)
            known = platform.world.deployments.get(request.spec.uid)
            unchanged = known is not None and known.version == worked_out.version
            deployment = await platform.deploy(worked_out)
        return DeployView(draft=worked_out, chute=view(deployment), unchanged=unchanged)

    async def work_out(spec: ChuteSpec) -> Draft:
        require_uid(spec)
        others = platform.gpus_of_others(spec.uid)
        promised = await asyncio.to_thread(platform.memory_promised, spec.uid)
        worked_out = await asyncio.to_thread(draft, spec, platform.config, others, promised)
        await check_arguments(worked_out, platform.config)
        return worked_out

    @app.get("/chutes/")
    async def chutes_list() -> list[ChuteView]:
        return [view(deployment) for deployment in platform.world.deployments.values()]

    def view(deployment: Deployment) -> ChuteView:
        listing = platform.listings.get(deployment.chute_id, Listing())
        return ChuteView.of(deployment, platform.world, listing)

    def logs_of(instance: Instance, follow: bool, backfill: int) -> Response:
        def over() -> bool:
            now = platform.world.instances.get(instance.id)
            return now is None or now.phase.over

        path = platform.fleet.log_path(instance.id)
        if not path.exists() and not follow:
            return PlainTextResponse(f"No log yet: {instance.phase} ({instance.detail}).\n")
        return _logs(path, follow, backfill, over)

    api_own.add(app, platform, _logs)  # before the routes that take any name

    # Names hold slashes, so `{name:path}` swallows the rest of the URL: longer routes come first.
    @app.get("/chutes/{name:path}/logs")
    async def chute_logs(name: str, follow: bool = False, backfill: int = 200) -> Response:
        deployment = platform.find(name)
        instance = platform.current(deployment)
        if instance is None:
            raise NotFound(f"{deployment.spec.name!r} has had no instance yet.")
        return logs_of(instance, follow, backfill)

    @app.get("/instances/{instance_id}/logs")
    async def instance_logs(instance_id: str, follow: bool = False, backfill: int = 200) -> Response:
        instance = platform.world.instances.get(instance_id)
        if instance is None:
            raise NotFound(f"There is no instance {instance_id!r}.", "`chutes ps --json` shows them.")
        return logs_of(instance, follow, backfill)

    @app.get("/instances/")
    async def instances() -> list[InstanceView]:
        return [InstanceView.of(instance) for instance in platform.world.instances.values()]

    @app.post("/chutes/{name:path}/sleep")
    async def sleep(name: str) -> ChuteView:
        return view(await platform.sleep(name))

    @app.post("/chutes/{name:path}/wake")
    async def wake(name: str) -> ChuteView:
        return view(await platform.wake_up(name))

    @app.get("/chutes/{name:path}/plan")
    async def chute_plan(name: str) -> PlanView:
        return PlanView.of(platform.find(name))

    @app.get("/chutes/{name:path}")
    async def chute(name: str) -> ChuteView:
        return view(platform.find(name))

    @app.delete("/chutes/{name:path}")
    async def delete(name: str) -> dict[str, object]:
        deployment = await platform.delete(name)
        return {"chute_id": deployment.chute_id, "name": deployment.spec.name, "deleted": True}

    @app.post("/api_keys/")
    async def create_key(request: KeyRequest) -> KeyView:
        limits = Limits(**request.model_dump(include=set(Limits.model_fields)))
        key, text = platform.create_key(request.name, request.admin, request.chutes, limits)
        return KeyView.of(key, secret_key=text)

    @app.get("/api_keys/")
    async def list_keys() -> list[KeyView]:
        used = await asyncio.to_thread(usage_query.last_use, platform.config.usage_database)
        return [KeyView.of(key, used.get(key.api_key_id)) for key in platform.store.api_keys()]

    @app.delete("/api_keys/{name:path}")
    async def delete_key(name: str) -> dict[str, object]:
        return {"api_key_id": platform.delete_key(name).api_key_id, "deleted": True}

    api_usage.add(app, platform)
    return app


def _logs(path: Path, follow: bool, backfill: int, over: Callable[[], bool]) -> Response:
    """The last `backfill` lines of a log as plain text, then, when following, what is added."""
    if not follow:
        lines = tail(path, BACKFILL_BYTES).splitlines(keepends=True)
        return Response("".join(lines[-backfill:] if backfill else []), media_type="text/plain")
    return StreamingResponse(_follow(path, backfill, over), media_type="text/plain")


async def _follow(path: Path, backfill: int, over: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yields whatever is appended, across rotation, until the reader leaves or nobody can write any more."""
    file = None
    try:
        while file is None:
            if path.exists():
                file = path.open("rb")
            elif over():
                return
            else:
                await asyncio.sleep(FOLLOW_SECONDS)
        file.seek(max(0, path.stat().st_size - BACKFILL_BYTES))
        lines = file.read().splitlines(keepends=True)
        yield b"".join(lines[-backfill:] if backfill else [])
        while True:
            ended = over()  # asked before reading: what was written until then is read below
            if data := file.read(BACKFILL_BYTES):
                yield data
                continue
            if ended:
                return
            # Nothing more in this one: if its name has gone to a new file, that is where it goes on.
            if path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                file.close()
                file = path.open("rb")
            await asyncio.sleep(FOLLOW_SECONDS)
    finally:
        if file is not None:
            file.close()
