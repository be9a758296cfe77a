"""Real processes for integration tests: synthetic engines, and gateway workers on a socket pair."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chutes import wire
from chutes.board import INSTANCE_SLOTS, Board
from chutes.control.workers import listen

ENGINE = Path(__file__).parent / "synthetic_engine.py"
ADMIN, USER, CONFINED, OLD = "cpk_admin", "cpk_user", "cpk_confined", "cpk_old"
KEYS = [
    wire.Key("1", wire.key_digest(ADMIN), admin=True),
    wire.Key("2", wire.key_digest(USER)),
    wire.Key("3", wire.key_digest(CONFINED), chute_ids=["chute-other"]),
    wire.Key("4", wire.key_digest(OLD), expires=1.0),
]
PATHS = {path: path for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")}
MODEL = "org/Model-X"


class SyntheticEngine:
    """A synthetic engine that runs; `port` and `api_key` are how to reach it."""

    def __init__(self, *arguments: str, api_key: str = "sk-engine", port: int = 0) -> None:
        self.api_key = api_key
        command = [sys.executable, str(ENGINE), "--port", str(port), "--api-key", api_key, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split()[-1])

    def upstream(self, instance_id: str = "") -> wire.Upstream:
        slot = self.port % INSTANCE_SLOTS
        return wire.Upstream(
            instance_id or f"instance-{self.port}", "127.0.0.1", self.port, self.api_key, slot
        )

    def seen(self) -> dict[str, Any]:
        return json.loads(exchange(self.port, "GET", "/seen")[2])

    def reset(self, **fake: Any) -> None:
        """Forget what was seen; with arguments, how it answers from now on."""
        exchange(self.port, "POST", "/reset", json.dumps(fake).encode() if fake else b"")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class GatewayWorker:
    """A gateway worker as control sees it: a process and the other end of its channel."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        max_body: int = 1 << 20,
        board: Board | None = None,
        row: int = 0,
        **bounds: float,
    ) -> None:
        """`bounds`: other values for some of `gateway.limits`, as nobody waits minutes for a test."""
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(60)
        self._arrived = b""
        self.records: list[wire.Record] = []
        (listener,) = listen(host, port, slots=1, shared=port != 0)
        fds = [theirs.fileno(), listener.fileno()]
        changed = "".join(f"limits.{name} = {value}\n" for name, value in bounds.items())
        program = (
            f"from chutes.gateway import limits\n{changed}from chutes.gateway.__main__ import main\nmain()"
        )
        command = [sys.executable, *(["-c", program] if bounds else ["-m", "chutes.gateway"])]
        command += ["--channel", str(fds[0]), "--listen", str(fds[1])]
        command += ["--max-body", str(max_body)]
        if board is not None:
            command += ["--board", str(board.fd), "--row", str(row)]
            fds.append(board.fd)
        self.process = subprocess.Popen(command, pass_fds=fds, stderr=subprocess.PIPE, text=True)
        theirs.close()
        self.port = listener.getsockname()[1]
        listener.close()

    def publish(self, table: wire.Table) -> None:
        self._send(wire.Publish(table))

    def drain(self, seconds: float) -> None:
        self._send(wire.Drain(seconds))

    def listening(self) -> GatewayWorker:
        event = self.event()
        assert isinstance(event, wire.Listening)
        assert event.pid == self.process.pid
        return self

    def event(self, timeout: float = 30) -> wire.FromWorker:
        """The next message from the worker that is no `Usage`; those are collected. Raises TimeoutError."""
        while isinstance(event := self._message(timeout), wire.Usage):
            self.records += event.records
        return event

    def record(self, timeout: float = 30) -> wire.Record:
        """The next request that ended, as it was metered. Raises TimeoutError."""
        while not self.records:
            event = self._message(timeout)
            assert isinstance(event, wire.Usage), event
            self.records += event.records
        return self.records.pop(0)

    def _message(self, timeout: float) -> wire.FromWorker:
        self.channel.settimeout(timeout)
        while b"\n" not in self._arrived:
            part = self.channel.recv(1 << 20)
            assert part, "the worker has ended"
            self._arrived += part
        line, _, self._arrived = self._arrived.partition(b"\n")
        return msgspec.json.decode(line, type=wire.FromWorker)

    def hang_up(self) -> None:
        """Close control's end of the channel."""
        self.channel.close()

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096

    def stop(self) -> str:
        """Kill it; what it had written to stderr."""
        self.process.kill()
        text = self.process.communicate()[1]
        self.hang_up()
        return text

    def _send(self, message: wire.ToWorker) -> None:
        self.channel.sendall(msgspec.json.encode(message) + b"\n")


def exchange(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own: status, headers (lower-case names), body."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def route(
    *upstreams: wire.Upstream,
    name: str = MODEL,
    chute_id: str = "chute-x",
    phase: str = "ready",
    detail: str = "",
    paths: dict[str, str] | None = None,
    **more: Any,
) -> wire.Route:
    return wire.Route(
        chute_id=chute_id,
        name=name,
        paths=PATHS if paths is None else paths,
        upstreams=list(upstreams),
        phase=phase,
        detail=detail,
        created=1700000000,
        engine="vllm",
        max_model_len=4096,
        **more,
    )


def eventually(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """The first true value of `condition` within the time, or its last value."""
    until = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return value


@pytest.fixture
def start_engine() -> Iterator[Callable[..., SyntheticEngine]]:
    """Starts synthetic engines; they end with the test."""
    started: list[SyntheticEngine] = []

    def start(*arguments: str, **settings: Any) -> SyntheticEngine:
        started.append(SyntheticEngine(*arguments, **settings))
        return started[-1]

    yield start
    for engine in started:
        engine.stop()


@pytest.fixture
def start_worker() -> Iterator[Callable[..., GatewayWorker]]:
    """Starts gateway workers; they end with the test, and must not have complained."""
    started: list[GatewayWorker] = []

    def start(table: wire.Table | None = None, **settings: Any) -> GatewayWorker:
        worker = GatewayWorker(**settings)
        started.append(worker)
        if table is not None:
            worker.publish(table)
            worker.listening()
        return worker

    yield start
    complaints = [worker.stop() for worker in started]
    assert not any("Traceback" in text for text in complaints), complaints


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[SyntheticEngine]:
    """One engine for tests that do not harm it."""
    engine = SyntheticEngine("--served-model-name", MODEL)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def shared_worker(shared_engine: SyntheticEngine) -> Iterator[GatewayWorker]:
    """One worker in front of the shared engine, which also plays the control API."""
    worker = GatewayWorker()
    worker.publish(
        wire.Table(
            routes=[
                route(shared_engine.upstream()),
                route(name="org/Other", chute_id="chute-other", paths={"/v1/completions": "/v1/completions"}),
                route(name="org/Loading", chute_id="chute-loading", phase="loading", detail="Loading: 40 %."),
                route(name="org/Failed", chute_id="chute-failed", phase="failed", detail="Out of memory."),
            ],
            keys=KEYS,
            control=shared_engine.upstream("control"),
        )
    )
    worker.listening()
    yield worker
    assert "Traceback" not in worker.stop()
