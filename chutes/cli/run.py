"""run --dev: one chute in the foreground, its engine included, over plain HTTP and without keys."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from dataclasses import replace

from chutes import config as settings
from chutes.chute.base import Chute
from chutes.chute.loader import load
from chutes.cli import output
from chutes.config import Config
from chutes.control.deploying import draft
from chutes.engine.lifecycle import Phase
from chutes.exception import DoesNotFit, EngineFailed, UsageError
from chutes.fleet.base import Launch, Report
from chutes.fleet.local import LocalFleet


def run(ref: str, dev: bool, host: str, port: int) -> None:
    if not dev:
        raise UsageError(
            "`chutes run` alone is what the published platform does inside its containers.",
            "`chutes run --dev` serves the chute here in the foreground; `chutes deploy` on the platform.",
        )
    # Before the file is loaded: an author's module may ask is_remote() while it is imported.
    os.environ["CHUTES_EXECUTION_CONTEXT"] = "REMOTE"
    os.environ["CHUTES_DEV_MODE"] = "true"
    loaded = load(ref)
    asyncio.run(_serve(loaded.chute, loaded.ref, host, port))


async def _serve(chute: Chute, ref: str, host: str, port: int) -> None:
    import uvicorn

    from chutes.control.serve import Server
    from chutes.control.workers import listen

    sockets = listen(host, port, slots=1)  # before the engine: a taken port must not cost a minute
    config = settings.load()
    # A place of its own: neither the platform nor another such command may take this engine for theirs.
    fleet = DevFleet(replace(config, home=config.home / "dev" / str(os.getpid())))
    server = Server(uvicorn.Config(chute, host=host, port=port, log_level="info", lifespan="off"))
    main = asyncio.current_task()
    assert main is not None

    def stop() -> None:
        server.should_exit = True
        if not server.started:
            main.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        if chute.engine_spec is not None:
            await fleet.engine_for(chute, ref)
        await chute.initialize()
        output.note(f"Serving {chute.name} on http://{host}:{port} (Ctrl-C stops it).")
        await server.serve(sockets)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        await chute.shutdown()
        await fleet.close()


class DevFleet:
    """A local fleet with one instance, whose reports are shown and waited for."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._progress = output.progress()
        self._ready: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._fleet = LocalFleet(config, self._hear)

    async def engine_for(self, chute: Chute, ref: str) -> None:
        """Start the chute's engine, and point the chute's passthrough cords at it."""
        worked_out = await asyncio.to_thread(draft, chute.to_spec(ref=ref), self._config)
        if not worked_out.plan.fits:
            raise DoesNotFit(worked_out.plan.problem, worked_out.plan.fix)
        launch = Launch(
            f"dev-{secrets.token_hex(4)}", worked_out.spec, worked_out.source, worked_out.plan, (chute.name,)
        )
        self._fleet.start(launch)
        report = await self._ready
        self._progress.close()
        assert report.endpoint is not None
        chute.passthrough_port = report.endpoint.port
        chute.passthrough_headers["Authorization"] = f"Bearer {report.endpoint.api_key}"

    async def close(self) -> None:
        self._progress.close()
        await self._fleet.close()

    def _hear(self, report: Report) -> None:
        if report.phase == Phase.FAILED and report.reason is not None:
            log = self._fleet.log_path(report.instance_id)
            error = EngineFailed(report.reason.summary, report.reason.fix.replace("`chutes logs`", str(log)))
            if self._ready.done():
                output.failure(error)
            else:
                self._ready.set_exception(error)
        elif report.phase == Phase.READY:
            self._ready.set_result(report)
        else:
            self._progress.show(report.phase, report.detail, report.done, report.total)
