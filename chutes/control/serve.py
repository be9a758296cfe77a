"""`chutes serve`: the platform process from its first lock to its last child."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import logging.handlers
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import uvicorn
import uvloop
from fastapi import FastAPI

import chutes
from chutes.config import Config
from chutes.control import api, api_usage
from chutes.control.platform import Platform
from chutes.control.running import Running, document, find_running, make_home, write_private
from chutes.engine.process import place_of, sweep
from chutes.exception import AlreadyExists, PortTaken
from chutes.wire import Upstream

log = logging.getLogger(__name__)

LOG_KEPT_SECONDS = 7 * 24 * 3600  # instance logs of last week are history
SHUTDOWN_SECONDS = 3


def serve(config: Config, announce: Callable[[str], None], to_terminal: bool = False) -> None:
    """Run the platform until SIGTERM, SIGINT or POST /shutdown.

    Args:
        announce: called with the gateway's URL once it answers.
        to_terminal: log to standard error too.

    Raises:
        AlreadyExists: a platform of this home runs.
        PortTaken: the gateway's port is not free.
    """
    make_home(config)
    _log_to(config, to_terminal)
    with _locked(config):
        uvloop.run(_serve(config, announce))


async def _serve(config: Config, announce: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    # A platform that was killed may have left an engine that is still ending.
    if killed := await asyncio.to_thread(sweep, place_of(config.home)):
        log.warning("ended what an earlier platform had left: pids %s", killed)
    _drop_old_logs(config.logs / "instances")

    token = secrets.token_urlsafe(32)
    listener = socket.create_server(("127.0.0.1", 0))
    control = Upstream("control", "127.0.0.1", listener.getsockname()[1], token)
    metrics_listener = _metrics_listener(config.metrics_port)
    platform = Platform(config, control)
    server = _server(api.make(platform, token, stop.set))
    serving = [asyncio.create_task(server.serve([listener]))]
    servers = [server]
    if metrics_listener is not None:
        servers.append(_server(api_usage.metrics_only(platform)))
        serving.append(asyncio.create_task(servers[-1].serve([metrics_listener])))
    try:
        await platform.start()
        url = f"http://{_shown(config.host)}:{platform.workers.port}"
        running = Running(
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            url=url,
            control_url=f"http://127.0.0.1:{control.port}",
            token=token,
            version=chutes.__version__,
        )
        write_private(document(config), running.model_dump_json(indent=2))
        log.info("serving on %s, pid %s", url, os.getpid())
        announce(url)
        await stop.wait()
        log.info("going down")
    finally:
        await platform.close()
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*serving)
        document(config).unlink(missing_ok=True)  # last: until then we can be found and waited for
        log.info("down")


def _server(app: FastAPI) -> Server:
    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,  # a `logs -f` would otherwise hold us for ever
        )
    )


def _metrics_listener(port: int) -> socket.socket | None:
    """For scrapers without a key, which is why it is of this machine alone. Raises PortTaken."""
    if not port:
        return None
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise PortTaken(
            f"127.0.0.1:{port} cannot be listened on for metrics: {error.strerror}.",
            "Set CHUTES_METRICS_PORT to another port, or to 0 for none.",
        ) from None


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: who may stop the platform is decided in one place."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _shown(host: str) -> str:
    """A host that a client on this machine can use for a listening address."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


@contextlib.contextmanager
def _locked(config: Config) -> Iterator[None]:
    """Hold this home for ourselves. The lock goes with the process, however it ends."""
    with (config.run / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            running = find_running(config)
            where = f" at {running.url} (pid {running.pid})" if running else ""
            raise AlreadyExists(
                f"A platform of {config.home} runs already{where}.",
                "`chutes down` stops it; CHUTES_HOME=/elsewhere keeps a second one apart.",
            ) from None
        yield


def _drop_old_logs(directory: Path) -> None:
    limit = time.time() - LOG_KEPT_SECONDS
    for path in directory.glob("*.log*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < limit:
                path.unlink()


def _log_to(config: Config, to_terminal: bool) -> None:
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(config.logs / "platform.log", maxBytes=8 << 20, backupCount=2)
    ]
    if to_terminal:
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(
        level=logging.INFO,
        handlers=handlers,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    # Their INFO lines name URLs and would fill the log.
    for noisy in ("httpx", "httpx2", "huggingface_hub", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
