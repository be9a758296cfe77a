"""The part of the control API about what clients see and use: prices, aliases, usage, metrics."""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from chutes.control import listing, usage_query
from chutes.control.metrics import Metrics
from chutes.control.platform import Platform
from chutes.control.views import AliasRequest, AliasView, PriceRequest, PriceView
from chutes.exception import InvalidSpec


def add(app: FastAPI, platform: Platform) -> None:
    """Add these routes to the control API."""
    metrics = Metrics(platform)

    # A question about a year may take seconds, and the threads that it waits in are few on a small machine.
    asking = asyncio.Semaphore(2)

    @app.get("/usage")
    async def usage(
        since: str = "24h",
        by: str = "chute",
        chute: str | None = None,
        key: str | None = None,
        page: int = 0,
        limit: int = 100,
    ) -> usage_query.UsageView:
        async with asking:
            return await asyncio.to_thread(
                usage_query.query,
                platform.config.usage_database, time.time(), since, by, chute, key, page, limit,
            )  # fmt: skip

    @app.get("/metrics")
    async def prometheus(request: Request) -> Response:
        page, content_type = await metrics.page(request.headers.get("accept", ""))
        return Response(page, headers={"Content-Type": content_type})

    @app.get("/prices/{name:path}")
    async def get_price(name: str) -> PriceView:
        return _price(name)

    @app.put("/prices/{name:path}")
    async def set_price(name: str, request: PriceRequest) -> PriceView:
        platform.set_price(name, listing.price(request.prompt, request.completion, request.cached))
        return _price(name)

    @app.delete("/prices/{name:path}")
    async def delete_price(name: str) -> PriceView:
        platform.set_price(name, None)
        return _price(name)

    def _price(name: str) -> PriceView:
        deployment = platform.find(name)
        return PriceView.of(deployment, platform.listings[deployment.chute_id].price)

    # The published routes and documents, so far as one chute an alias goes.
    @app.get("/model_aliases/")
    async def aliases() -> list[AliasView]:
        return [_alias(alias, chute_id) for alias, chute_id in platform.store.aliases().items()]

    @app.post("/model_aliases/", status_code=201)
    async def set_alias(request: AliasRequest) -> AliasView:
        if len(request.chute_ids) != 1:
            raise InvalidSpec(
                f"An alias means one chute here, not {len(request.chute_ids)}.",
                "For failover a request may say several models: `a,b`.",
            )
        alias, deployment = platform.set_alias(request.alias, request.chute_ids[0])
        return _alias(alias, deployment.chute_id)

    @app.delete("/model_aliases/{alias:path}")
    async def delete_alias(alias: str) -> dict[str, object]:
        platform.delete_alias(alias)
        return {"alias": alias.lower(), "deleted": True}

    def _alias(alias: str, chute_id: str) -> AliasView:
        deployment = platform.world.deployments.get(chute_id)
        return AliasView(
            alias=alias, chute_ids=[chute_id], chute_names=[deployment.spec.name] if deployment else []
        )


def metrics_only(platform: Platform) -> FastAPI:
    """An API that anybody on this machine may read: the metrics, and nothing else."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    metrics = Metrics(platform)

    @app.get("/metrics")
    async def prometheus(request: Request) -> Response:
        page, content_type = await metrics.page(request.headers.get("accept", ""))
        return Response(page, headers={"Content-Type": content_type})

    @app.exception_handler(404)
    async def elsewhere(_: Request, __: Exception) -> Response:
        return PlainTextResponse("Only GET /metrics is here.\n", 404)

    return app
