"""The worker as a process: its channel, its port, its table, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from chutes import wire
from tests.integration.conftest import (
    KEYS,
    MODEL,
    USER,
    GatewayWorker,
    SyntheticEngine,
    eventually,
    exchange,
    route,
)

AUTH = {"Authorization": f"Bearer {USER}"}
Engines = Callable[..., SyntheticEngine]
Workers = Callable[..., GatewayWorker]


def ask(port: int, **fields: Any) -> tuple[int, bytes]:
    data = json.dumps({"model": MODEL, **fields}).encode()
    status, _, answer = exchange(port, "POST", "/v1/completions", data, AUTH)
    return status, answer


def test_it_listens_once_it_has_a_table(start_worker: Workers) -> None:
    worker = start_worker()
    with pytest.raises(TimeoutError):
        worker.event(0.5)
    worker = start_worker(wire.Table([], KEYS))
    assert exchange(worker.port, "GET", "/health")[0] == 200


def test_two_workers_share_a_port(start_engine: Engines, start_worker: Workers) -> None:
    engine = start_engine()
    table = wire.Table([route(engine.upstream())], KEYS)
    first = start_worker(table)
    second = start_worker(table, port=first.port)
    # Each worker numbers requests under a prefix of its own.
    prefixes = {exchange(first.port, "GET", "/ping")[1]["x-request-id"].rpartition("-")[0] for _ in range(60)}
    assert len(prefixes) == 2
    second.drain(1)
    assert second.process.wait(60) == 0
    assert [ask(first.port)[0] for _ in range(5)] == [200] * 5


@pytest.mark.parametrize("how", ["drain", "eof", "sigterm"])
def test_an_orderly_end_finishes_what_is_in_flight(
    start_engine: Engines, start_worker: Workers, how: str
) -> None:
    engine = start_engine()
    worker = start_worker(wire.Table([route(engine.upstream())], KEYS))
    found: list[tuple[int, bytes]] = []
    fake = {"chunks": 10, "gap": 0.1}
    asking = threading.Thread(target=lambda: found.append(ask(worker.port, stream=True, fake=fake)))
    asking.start()
    idle = socket.create_connection(("127.0.0.1", worker.port), timeout=30)
    assert eventually(lambda: engine.seen()["in_flight"] == 1)
    worker.process.send_signal(signal.SIGINT)  # for control to interpret, not for us
    match how:
        case "drain":
            worker.drain(5)
        case "eof":
            worker.hang_up()
        case _:
            worker.process.send_signal(signal.SIGTERM)
    assert idle.recv(10) == b"", "idle connections are closed at once"
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", worker.port))
    assert worker.process.poll() is None
    asking.join(60)
    assert found[0][0] == 200
    assert found[0][1].endswith(b"data: [DONE]\n\n")
    assert worker.process.wait(60) == 0


def test_draining_is_bounded(start_engine: Engines, start_worker: Workers) -> None:
    engine = start_engine()
    worker = start_worker(wire.Table([route(engine.upstream())], KEYS))
    data = json.dumps({"model": MODEL, "fake": {"do": "endless"}}).encode()
    with socket.create_connection(("127.0.0.1", worker.port), timeout=30) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {USER}\r\n"
        client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert client.recv(100)
        worker.drain(0.5)
        assert worker.process.wait(60) == 0
    assert eventually(lambda: engine.seen()["aborted"] == 1)


def test_it_ends_with_its_parent(start_engine: Engines) -> None:
    """Even when another process still holds control's end of the channel."""
    parent = (
        "import os, socket, subprocess, sys\n"
        "ours, theirs = socket.socketpair()\n"
        "os.set_inheritable(ours.fileno(), True)\n"
        "port = socket.create_server(('127.0.0.1', 0))\n"
        "command = [sys.executable, '-m', 'chutes.gateway', '--channel', str(theirs.fileno()),\n"
        "           '--listen', str(port.fileno()), '--max-body', '1000']\n"
        "fds = [theirs.fileno(), port.fileno()]\n"
        "worker = subprocess.Popen(command, pass_fds=fds, stdout=subprocess.DEVNULL)\n"
        "holder = subprocess.Popen(['sleep', '20'], close_fds=False, stdout=subprocess.DEVNULL)\n"
        'ours.sendall(b\'{"type":"table","table":{"routes":[],"keys":[]}}\\n\')\n'
        "ours.recv(1000)\n"
        "print(worker.pid, holder.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    # stderr is not captured: the holder has it open, and the pipe would not end before it does.
    printed = subprocess.check_output([sys.executable, "-c", parent], text=True, timeout=15)
    worker, holder = map(int, printed.split())
    try:
        assert eventually(lambda: not alive(worker), 30)
    finally:
        os.kill(holder, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_revoked_key_is_refused_from_the_next_request_on(
    start_engine: Engines, start_worker: Workers
) -> None:
    engine = start_engine()
    worker = start_worker(wire.Table([route(engine.upstream())], KEYS))
    assert ask(worker.port)[0] == 200
    worker.publish(wire.Table([route(engine.upstream())], KEYS[:1]))
    assert eventually(lambda: ask(worker.port)[0] == 401)


def test_swapping_tables_under_load_loses_nothing(start_engine: Engines, start_worker: Workers) -> None:
    engines = [start_engine() for _ in range(2)]
    tables = [
        wire.Table([route(*(engine.upstream() for engine in chosen))], KEYS)
        for chosen in (engines, engines[:1], engines[1:])
    ]
    worker = start_worker(tables[0])
    results: list[tuple[int, bool]] = []
    stop = threading.Event()

    def load(stream: bool) -> None:
        while not stop.is_set():
            status, data = ask(worker.port, stream=stream, fake={"chunks": 5, "gap": 0.005 if stream else 0})
            results.append((status, data.endswith(b"data: [DONE]\n\n") or not stream))

    threads = [threading.Thread(target=load, args=(index % 2 == 0,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for index in range(100):
        worker.publish(tables[index % 3])
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert len(results) > 50
    assert set(results) == {(200, True)}
    assert eventually(lambda: all(engine.seen()["in_flight"] == 0 for engine in engines))


def test_instances_share_the_load(start_engine: Engines, start_worker: Workers) -> None:
    engines = [start_engine() for _ in range(3)]
    worker = start_worker(wire.Table([route(*(engine.upstream() for engine in engines))], KEYS))
    for _ in range(30):
        assert ask(worker.port)[0] == 200
    assert [engine.seen()["requests"] for engine in engines] == [10, 10, 10]


def test_a_large_table_arrives(start_worker: Workers) -> None:
    routes = [
        route(name=f"org/Model-{index}", chute_id=f"id-{index}", detail="x" * 300) for index in range(3000)
    ]
    worker = start_worker(wire.Table(routes, KEYS))
    data = json.loads(exchange(worker.port, "GET", "/v1/models", headers=AUTH)[2])
    assert len(data["data"]) == 3000
    assert json.loads(ask(worker.port)[1])["error"]["message"].count("org/Model-") == 4
