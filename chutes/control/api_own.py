"""The part of the control API for authors' own code: snapshots, secrets, jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from chutes.chute.bundle import MAX_BYTES
from chutes.control import bundles, kept_secrets
from chutes.control.jobs import Run
from chutes.control.platform import Platform
from chutes.control.secrets import Secret
from chutes.exception import DoesNotFit, NotFound

Logs = Callable[[Path, bool, int, Callable[[], bool]], Response]

# Of the archive of MAX_BYTES of files, should not one of them get any smaller.
MAX_ARCHIVE = MAX_BYTES + (1 << 20)


class SecretRequest(BaseModel):
    purpose: str = ""
    """Name or id of a chute; empty: for all."""
    key: str
    value: str
    replace: bool = False


class SecretView(BaseModel):
    secret_id: str
    purpose: str
    chute: str = ""
    """Name of the deployed chute that it is for."""
    key: str
    created_at: float
    restart: list[str] = []
    """Chutes that run as they were before the change."""


def add(app: FastAPI, platform: Platform, logs: Logs) -> None:
    """Add these routes to the control API.

    Args:
        logs: shows a log file: its path, whether to follow it, lines from before, whether it is over.
    """

    @app.post("/bundles")
    async def save_bundle(request: Request, digest: str) -> dict[str, Any]:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MAX_ARCHIVE:
                raise DoesNotFit(f"The snapshot is over {MAX_ARCHIVE >> 20} MiB.", "See .chutesignore.")
        await asyncio.to_thread(bundles.save, platform.config, bytes(data), digest)
        return {"digest": digest, "bytes": len(data)}

    def shown(secret: Secret, restart: list[str] | None = None) -> SecretView:
        deployments = platform.world.deployments.values() if secret.purpose else []
        deployment = next((d for d in deployments if secret.is_for(d.chute_id, d.spec.name)), None)
        return SecretView(
            secret_id=secret.secret_id,
            purpose=secret.purpose,
            chute=deployment.spec.name if deployment else "",
            key=secret.key,
            created_at=secret.created_at,
            restart=restart or [],
        )

    @app.post("/secrets/")
    async def create_secret(request: SecretRequest) -> SecretView:
        return shown(
            *kept_secrets.save(platform, request.purpose, request.key, request.value, request.replace)
        )

    @app.get("/secrets/")
    async def list_secrets() -> list[SecretView]:
        return [shown(secret) for secret in platform.store.secrets()]

    @app.delete("/secrets/{name}")
    async def delete_secret(name: str) -> SecretView:
        return shown(*kept_secrets.delete(platform, name))

    @app.post("/chutes/{name:path}/jobs/{method}", status_code=202)
    @app.post("/jobs/{name:path}/{method}", status_code=202)
    async def run_job(name: str, method: str, args: dict[str, Any] = Body(default={})) -> Run:  # noqa: B008
        return platform.jobs.submit(platform.find(name), method, args)

    @app.get("/jobs/")
    async def list_jobs(chute: str | None = None) -> list[Run]:
        wanted = platform.find(chute).chute_id if chute else None
        runs = [run for run in platform.jobs.runs.values() if wanted in (None, run.chute_id)]
        # What went in and came out may be a megabyte each: `/jobs/{job_id}` tells.
        short = [run.model_copy(update={"args": {}, "result": None}) for run in runs]
        return sorted(short, key=lambda run: run.created_at)

    @app.get("/jobs/{job_id}")
    async def job(job_id: str) -> Run:
        return platform.jobs.find(job_id)

    @app.delete("/jobs/{job_id}")
    async def cancel_job(job_id: str) -> Run:
        return platform.jobs.cancel(job_id)

    @app.get("/jobs/{job_id}/logs")
    async def job_logs(job_id: str, follow: bool = False, backfill: int = 200) -> Response:
        run = platform.jobs.find(job_id)

        def over() -> bool:
            now = platform.jobs.runs.get(run.job_id)
            return now is None or now.status.over

        return logs(platform.jobs.directory(run.job_id) / "log", follow, backfill, over)

    @app.get("/jobs/{job_id}/download/{path:path}")
    async def download(job_id: str, path: str) -> Response:
        run = platform.jobs.find(job_id)
        # Only what was found in the directory when the run ended: no path is made of what a client says.
        if path not in {file.path for file in run.files}:
            raise NotFound(
                f"Run {job_id} left no file {path!r}.", f"`chutes jobs files {job_id}` shows them."
            )
        return FileResponse(
            platform.jobs.work(job_id) / "output" / path, media_type="application/octet-stream"
        )
