"""A gateway worker to be attacked, and what an attacker needs: used by `gateway_abuse`."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

import psutil

from chutes import wire
from tests.integration.conftest import KEYS, MODEL, USER, GatewayWorker, SyntheticEngine, exchange, route

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
MAX_BODY = 32 << 20
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
MIB = 1 << 20


class Finding(NamedTuple):
    """One kind of abuse."""

    tried: str
    found: str
    good: bool


def post(fields: str = "", body: bytes = b"{}", *, length: bool = True, key: str = USER) -> bytes:
    size = f"Content-Length: {len(body)}\r\n" if length else ""
    return (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n{fields}{size}\r\n".encode() + body
    )


class Attack:
    """A worker to be attacked. `scale` makes every number of connections, bytes and tries smaller."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.chance = random.Random(1)
        self.engine = SyntheticEngine()
        self.worker = GatewayWorker(max_body=MAX_BODY)
        routes = [route(self.engine.upstream())]
        routes += [route(name=f"org/Some-Model-{n}", chute_id=f"chute-{n}") for n in range(50)]
        self.worker.publish(wire.Table(routes, KEYS))
        self.worker.listening()
        self.process = psutil.Process(self.worker.process.pid)
        wanted, key = b'{"model":"%b"}' % MODEL.encode(), {"X-API-Key": USER}
        for _ in range(300):  # what it needs anyway
            assert exchange(self.worker.port, "POST", "/v1/completions", wanted, key)[0] == 200

    def many(self, number: int) -> int:
        return max(3, int(number * self.scale))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.worker.port), timeout=20)

    def send(self, data: bytes) -> bytes:
        """What comes for these bytes until the worker closes, or says nothing for a while."""
        with closing(self.connect()) as client:
            with suppress(ConnectionError):  # refused before its end; the answer is there all the same
                client.sendall(data)
            client.settimeout(1.0)
            got = b""
            with suppress(TimeoutError, ConnectionError):
                while part := client.recv(65536):
                    got += part
            return got

    def statuses(self, data: bytes) -> list[int]:
        return [int(status) for status in STATUS.findall(self.send(data))]

    @contextmanager
    def neighbour(self) -> Iterator[list[float]]:
        """Somebody else's requests meanwhile: the milliseconds that each took."""
        times: list[float] = []
        over = threading.Event()

        def ask() -> None:
            with closing(self.connect()) as client:
                while not over.is_set():
                    began = time.perf_counter()
                    client.sendall(PING)
                    assert client.recv(1000).startswith(b"HTTP/1.1 200")
                    times.append((time.perf_counter() - began) * 1e3)
                    time.sleep(0.002)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield times
        finally:
            over.set()
            thread.join()

    def memory(self) -> float:
        return self.worker.memory() / MIB

    def cpu(self) -> float:
        used = self.process.cpu_times()
        return used.user + used.system

    def well(self) -> bool:
        return exchange(self.worker.port, "GET", "/ping")[0] == 200

    def close(self) -> str:
        """What the worker complained of."""
        self.engine.stop()
        return self.worker.stop()


def drained(worker: GatewayWorker) -> list[wire.Record]:
    try:
        while True:
            worker.event(1)
    except TimeoutError:
        found, worker.records = worker.records, []
        return found


CHUNKED = "Transfer-Encoding: chunked\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"


def hidden_ways() -> dict[str, bytes]:
    """Ways to hide `HIDDEN` behind a request; each is that request."""
    return {
        "two lengths": post("Content-Length: 3\r\n"),
        "two equal lengths": post("Content-Length: 2\r\n"),
        "a list of lengths": post("Content-Length: 2, 2\r\n", length=False),
        "a signed length": post("Content-Length: +2\r\n", length=False),
        "a hexadecimal length": post("Content-Length: 0x2\r\n", length=False),
        "an endless length": post(f"Content-Length: {'9' * 40}\r\n", length=False),
        "length and chunked": post(CHUNKED) + b"0\r\n\r\n",
        "chunked twice": post(CHUNKED * 2, b"0\r\n\r\n", length=False),
        "chunked, identity": post("Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n", length=False),
        "xchunked": post("Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n", length=False),
        "chunked after a tab in the name": post(
            "Transfer-Encoding\t: chunked\r\n", b"0\r\n\r\n", length=False
        ),
        "blank before the colon": post("Content-Length : 2\r\n", length=False),
        "a folded line": post("X: a\r\n Content-Length: 9\r\n"),
        "bare LF": post().replace(b"\r\n", b"\n"),
        "one bare LF": post("X: a\nContent-Length: 9\r\n"),
        "bare CR": post("X: a\rContent-Length: 9\r\n"),
        "NUL in a value": post("X: a\0b\r\n"),
        "NUL in a name": post("X\0: a\r\n"),
        "no name": post(": a\r\n"),
        "a chunk size with a sign": post(CHUNKED, b"+2\r\n{}\r\n0\r\n\r\n", length=False),
        "a chunk size with 0x": post(CHUNKED, b"0x2\r\n{}\r\n0\r\n\r\n", length=False),
        "a chunk size of 20 digits": post(CHUNKED, b"00000000000000000002\r\n{}\r\n0\r\n\r\n", length=False),
        "a chunk longer than it said": post(CHUNKED, b"1\r\n{}\r\n0\r\n\r\n", length=False),
        "a chunk that ends in LF": post(CHUNKED, b"2\r\n{}\n0\r\n\r\n", length=False),
        "a size line that ends in LF": post(CHUNKED, b"2\n{}\r\n0\r\n\r\n", length=False),
        "a trailer with a bare LF": post(CHUNKED, b"2\r\n{}\r\n0\r\nA: b\nC: d\r\n\r\n", length=False),
        "HTTP/1.0 with chunks": post(CHUNKED, b"0\r\n\r\n", length=False).replace(b"/1.1", b"/1.0"),
        "GET with a body": b"GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde",
        "two hosts": post("Host: y\r\n"),
    }
