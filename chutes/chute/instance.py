"""One instance of a chute that is its author's own code: `python -m chutes.chute.instance`.

Run by the platform in the chute's environment, with the unpacked snapshot as working directory. Two threads:

- the main one is the author's. It loads the module, runs the hooks and keeps their event loop running to the
  end, so that what a hook started in it goes on; some libraries work in the main thread only.
- the other one serves HTTP. It answers `/health` while the author's code blocks, and hands a request to the
  chute, whose cords run in threads of their own, once the startup is over.

What the platform reads of the log are lines that begin with `chutes: `; see `engine/diagnosis`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NoReturn

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from chutes.chute import docs, openapi
from chutes.chute.agreed import CALLS, KEY, PAGES
from chutes.chute.base import Chute
from chutes.chute.loader import load
from chutes.exception import ChutesError

DRAIN_SECONDS = 20  # less than the grace that a stop gives the process before it is killed

# A model that is read takes minutes, a denoising or a transcription seconds, a plain function nothing.
_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

# What another try may mend. Any other exception of a hook would be raised again.
_PASSING = ("Connect", "Timeout", "HTTP", "Network", "Transport", "Unreachable")

log = logging.getLogger("chutes.instance")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ref", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--startup-seconds", type=float, required=True)
    parser.add_argument("--note", action="append", default=[])
    options = parser.parse_args()
    # Taken out, so that what the author starts does not inherit it.
    key = os.environ.pop(KEY)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for note in options.note:
        log.info("note: %s", note)
    try:
        listener = socket.create_server(("127.0.0.1", options.port), backlog=2048)
    except OSError as error:
        give_up(f"port {options.port}: {error.strerror} (address already in use)", final=False)
    front = Front(key)
    server = _serve(front, listener)
    try:
        asyncio.run(_live(options.ref, front, server, options.startup_seconds))
    finally:
        server.stop()


def give_up(why: str, final: bool) -> NoReturn:
    """End the process with a line from which the platform knows why. At once: threads may hang."""
    print(f"chutes: {'fatal' if final else 'failed'}: {why}", file=sys.stderr, flush=True)  # noqa: T201
    sys.stdout.flush()
    os._exit(1)


async def _live(ref: str, front: Front, server: _Serving, limit: float) -> None:
    stop = asyncio.Event()
    async with started(ref, limit, front.chute_loaded) as chute:
        front.open(chute)
        # Only now: before, there is nothing to finish, and the default (to end) is right.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        log.info("serving %s", chute.name)
        await stop.wait()
        log.info("told to stop: finishing what it has")
        await asyncio.to_thread(server.drain, chute)
    log.info("stopped")


@contextlib.asynccontextmanager
async def started(
    ref: str, limit: float, loaded: Callable[[Chute], None] = lambda chute: None
) -> AsyncIterator[Chute]:
    """The chute that `ref` names, between its startup and its shutdown hooks.

    Whatever goes wrong before it is started ends the process, with a line that says what.

    Args:
        limit: seconds that loading and startup hooks may take.
        loaded: called with the chute before its hooks run.
    """
    guard = _Guard(limit, asyncio.get_running_loop())
    chute: Chute | None = None
    try:
        with guard:
            chute = load(ref).chute
            loaded(chute)
            guard.chute = chute
            lifespan = chute.router.lifespan_context(chute)
            await lifespan.__aenter__()
    except ChutesError as error:
        traceback.print_exception(error.__cause__ or error)
        give_up(f"{error.message} {error.fix}".strip(), final=True)
    except Exception as error:
        traceback.print_exc()
        if chute is not None:
            with contextlib.suppress(Exception):
                await chute.shutdown()
        said = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        give_up(f"{guard.stage or 'the startup'} raised {said}", final=not _may_pass(error))
    assert chute is not None
    try:
        yield chute
    finally:
        await lifespan.__aexit__(None, None, None)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError):  # what was not sent does not come by itself
        return False
    return isinstance(error, (OSError, EOFError)) or any(
        word in kind.__name__ for kind in type(error).__mro__ for word in _PASSING
    )


class _Guard:
    """Ends a process whose startup does not end, from a thread: the author's may be blocked for good."""

    def __init__(self, limit: float, loop: asyncio.AbstractEventLoop) -> None:
        self.chute: Chute | None = None
        self._limit, self._loop = limit, loop
        self._main = threading.get_ident()
        self._timer = threading.Timer(limit, self._late)
        self._timer.daemon = True

    @property
    def stage(self) -> str:
        return self.chute.stage if self.chute is not None else "loading the module"

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _late(self) -> None:
        if (frame := sys._current_frames().get(self._main)) is not None:
            traceback.print_stack(frame)
        with contextlib.suppress(RuntimeError):  # the set changes while it is looked at
            for task in asyncio.all_tasks(self._loop):
                task.print_stack()
        stage = self.stage or "the startup"
        give_up(f"{stage} did not end within {self._limit:g} s (CHUTES_STARTUP_SECONDS)", final=True)


class Front:
    """What stands before the chute's own app: the key, `/health`, `/metrics` and the pages.

    The chute's app sees no request before its startup is over, so that a hook may still add middleware.
    """

    def __init__(self, key: str) -> None:
        self._expected = f"Bearer {key}".encode()
        self._chute: Chute | None = None
        self._pages: dict[str, tuple[str, bytes]] = {}
        self._metrics = _Metrics()

    def chute_loaded(self, chute: Chute) -> None:
        self._metrics.chute_id = chute.uid
        chute.serve_as_instance(CALLS, self._metrics.observe)

    def open(self, chute: Chute) -> None:
        taken = {(cord.public_api_method, cord.public_api_path) for cord in chute.cords}
        pages = (
            ("text/html; charset=utf-8", docs.page()),
            ("application/json", json.dumps(openapi.document(chute)).encode()),
        )
        self._pages = {
            path: page for path, page in zip(PAGES, pages, strict=True) if ("GET", path) not in taken
        }
        self._chute = chute

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # the gateway relays none
                await send({"type": "websocket.close", "code": 1008})
            return
        path, chute = scope["path"], self._chute
        if path == "/health":
            return await _answer(send, 200 if chute is not None else 503, "text/plain", b"")
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not hmac.compare_digest(given, self._expected):
            return await _answer(send, 401, *_error("This instance wants its own key."))
        if path == "/metrics":
            return await _answer(send, 200, "text/plain; version=0.0.4", self._metrics.page())
        if chute is None:
            return await _answer(send, 503, *_error("The chute is starting."))
        if scope["method"] == "GET" and (page := self._pages.get(path)):
            return await _answer(send, 200, *page)
        await chute(scope, receive, send)


def _error(message: str) -> tuple[str, bytes]:
    return "application/json", json.dumps({"error": {"message": message, "type": "server_error"}}).encode()


async def _answer(send: Any, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Metrics:
    """The published three, of this process alone."""

    def __init__(self) -> None:
        self.chute_id = ""
        self._registry = CollectorRegistry()
        labels = ["chute_id", "function", "status"]
        self._total = Counter("invocation_total", "Calls of cords.", labels, registry=self._registry)
        self._duration = Histogram(
            "invocation_duration", "Seconds of a call, to the end of its stream.", labels,
            buckets=_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._last = Gauge(
            "invocation_last_timestamp", "Unix seconds of the last call's end.", labels[:2],
            registry=self._registry,
        )  # fmt: skip

    def observe(self, function: str, status: int, seconds: float) -> None:
        self._total.labels(self.chute_id, function, status).inc()
        self._duration.labels(self.chute_id, function, status).observe(seconds)
        self._last.labels(self.chute_id, function).set(time.time())

    def page(self) -> bytes:
        return generate_latest(self._registry)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are the main thread's


class _Serving:
    """The HTTP thread."""

    def __init__(self, server: _Server, listener: socket.socket) -> None:
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, args=(listener,), name="http", daemon=True)
        self._chute: Chute | None = None
        self._thread.start()

    def _run(self, listener: socket.socket) -> None:
        async def serve() -> None:
            await self._server.serve(sockets=[listener])
            if self._chute is not None:  # its connections belong to this loop
                await self._chute._relay.close()

        asyncio.run(serve())

    def drain(self, chute: Chute) -> None:
        """Take no more requests; returns when those in flight are over, or DRAIN_SECONDS later."""
        self._chute = chute
        self.stop()
        self._thread.join(DRAIN_SECONDS + 2)

    def stop(self) -> None:
        self._server.should_exit = True


def _serve(front: Front, listener: socket.socket) -> _Serving:
    config = uvicorn.Config(
        front,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=3600,  # the gateway decides how long it keeps a connection
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return _Serving(_Server(config), listener)


if __name__ == "__main__":
    main()
