"""One request at a time on each of many connections, with every time taken where the bytes pass.

Callbacks and no coroutines: at tens of thousands of events a second, waking a task for each would be most of
the cost, and its queue a delay that looks like the server's.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec

from benchmarks.harness.answers import Stream, Whole, reader
from benchmarks.harness.http1 import BadAnswer, Response
from benchmarks.harness.messages import Address, Ask
from benchmarks.harness.records import Record

CONNECT_SECONDS = 30.0
"""A connection that is not there by then never will be; the kernel itself would try for two minutes."""

UNFINISHED = "unfinished"
"""The error of a request that was given up because the run was over."""

clock = time.monotonic


class Exchange:
    """One request, from when it is sent until its record is complete."""

    __slots__ = ("answer", "ask", "body", "connection", "done", "pool", "record", "response")

    def __init__(self, pool: Pool, ask: Ask, body: bytes, record: Record, done: Callable[[Exchange], None]):
        self.pool, self.ask, self.body, self.record, self.done = pool, ask, body, record, done
        self.response = Response()
        self.answer: Stream | Whole | None = None
        self.connection: Connection | None = None

    def received(self, data: bytes) -> bool:
        """True: the answer is complete. Raises BadAnswer."""
        now = clock() - self.pool.start
        response = self.response
        body = response.feed(data)
        if self.answer is None and response.status >= 200:
            self.record.status = response.status
            # The text of an answer is kept only where the next turn of a conversation needs it.
            self.answer = reader(response, self.record, self.ask.conversation is not None)
        if body and self.answer is not None:
            self.answer.feed(body, now)
        return response.complete

    def finish(self, error: str = "", message: str = "") -> None:
        """The one way in which it ends."""
        record = self.record
        record.ended = clock() - self.pool.start
        if not error and self.answer is not None:
            try:
                self.answer.end()
            except BadAnswer as bad:
                error, message = "protocol", str(bad)
        if error:
            record.error, record.message = error, message
        self.pool.flying.pop(self, None)
        self.done(self)

    @property
    def text(self) -> str:
        return str(self.answer.text or "") if self.answer is not None else ""


class Connection(asyncio.Protocol):
    """A connection to one target. It is idle, or has one exchange. uvloop has set TCP_NODELAY on it."""

    def __init__(self, pool: Pool, exchange: Exchange | None) -> None:
        self.pool, self.exchange = pool, exchange
        self.transport: asyncio.Transport | None = None
        self.used = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.exchange in self.pool.flying:
            self.send(self.exchange)
        else:  # opened beforehand, or for a request that was given up meanwhile
            self.exchange = None
            self.pool.idle.append(self)

    def send(self, exchange: Exchange | None) -> None:
        assert self.transport is not None
        assert exchange is not None
        self.exchange, exchange.connection = exchange, self
        self.transport.write(exchange.body)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:  # a server that speaks unasked
            self.close()
            return
        try:
            if not exchange.received(data):
                return
        except BadAnswer as bad:
            self.close()
            exchange.finish("protocol", str(bad))
            return
        self.exchange, self.used = None, True
        if exchange.response.keep_alive:
            self.pool.idle.append(self)
        else:
            self.close()
        exchange.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        if self in self.pool.idle:
            self.pool.idle.remove(self)
        if exchange is None:
            return
        if self.used and not exchange.response.status and exchange.response.empty:
            # It was closed for idleness while the request was on its way: nobody has read it.
            self.used = False
            self.pool.connect(exchange)
        elif exc is None and exchange.response.eof():
            exchange.finish()
        else:
            exchange.finish("broken", _reason(exc) or "the connection was closed before the answer was whole")

    def close(self) -> None:
        self.exchange = None
        if self.transport is not None:
            self.transport.abort()


class Pool:
    """One target: its idle connections, and the heads of requests to it."""

    def __init__(self, address: Address, start: float = 0.0, timeout: float = 600.0) -> None:
        self.address, self.start, self.timeout = address, start, timeout
        self.idle: list[Connection] = []
        self.flying: dict[Exchange, float] = {}
        """What is under way, and when its time is up. All have the same time, so the first is up first."""
        self._sweeper: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None
        if address.tls:
            self._tls = ssl.create_default_context()
            if not address.verify:
                self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self._heads: dict[str, bytes] = {}
        self._model = b'{"model":' + msgspec.json.encode(address.model)
        self._loop = asyncio.get_running_loop()

    def ask(
        self, ask: Ask, record: Record, done: Callable[[Exchange], None], body: bytes | None = None
    ) -> None:
        """Send it now. `done` is called once, when `record` is complete.

        Args:
            body: another body than the ask's.
        """
        content = self.with_model(body or ask.body)
        message = b"%b%d\r\n\r\n%b" % (self._head(ask.path), len(content), content)
        exchange = Exchange(self, ask, message, record, done)
        now = clock()
        self.flying[exchange] = now + self.timeout
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self.timeout, self._sweep)
        record.sent = now - self.start
        while self.idle:
            connection = self.idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                connection.send(exchange)
                return
        self.connect(exchange)

    def with_model(self, body: bytes) -> bytes:
        return self._model + (b"}" if body == b"{}" else b"," + body[1:])

    def connect(self, exchange: Exchange | None) -> None:
        task = self._loop.create_task(self._connect(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def prepare(self, count: int) -> None:
        """Open connections beforehand. That it fails is seen by whoever asks first."""
        await asyncio.gather(*(self._connect(None) for _ in range(count)))

    def give_up(self) -> None:
        for exchange in list(self.flying):
            self._drop(exchange, UNFINISHED, "the run was over before the answer was")

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.idle):
            connection.close()

    async def _connect(self, exchange: Exchange | None) -> None:
        address = self.address
        try:
            await asyncio.wait_for(
                self._loop.create_connection(
                    lambda: Connection(self, exchange),
                    address.host,
                    address.port,
                    ssl=self._tls,
                    server_hostname=address.host if self._tls else None,
                ),
                CONNECT_SECONDS,
            )
        except (OSError, TimeoutError) as error:
            if exchange in self.flying and exchange is not None:
                refused = isinstance(error, ConnectionRefusedError)
                exchange.finish("refused" if refused else "unreachable", _reason(error))

    def _sweep(self) -> None:
        """One timer for all: one for each request would be a tenth of what it costs."""
        now = clock()
        for exchange, due in list(self.flying.items()):
            if due > now:
                break
            self._drop(exchange, "timeout", f"no whole answer within {self.timeout:g} s")
        # Only now: whoever asks again at once finds that there is one, and starts no second.
        first = next(iter(self.flying.values()), None)
        again = None if first is None else self._loop.call_later(max(0.0, first - clock()), self._sweep)
        self._sweeper = again

    def _drop(self, exchange: Exchange, error: str, message: str) -> None:
        if exchange.connection is not None:
            exchange.connection.close()
        exchange.finish(error, message)

    def _head(self, path: str) -> bytes:
        head = self._heads.get(path)
        if head is None:
            address = self.address
            default = 443 if address.tls else 80
            host = f"[{address.host}]" if ":" in address.host else address.host
            lines = [
                f"POST {address.prefix}{path} HTTP/1.1",
                f"Host: {host}" + ("" if address.port == default else f":{address.port}"),
                "User-Agent: chutes-bench",
                "Accept: text/event-stream, application/json",
                "Content-Type: application/json",
                *([f"Authorization: Bearer {address.key}"] if address.key else []),
                "Content-Length: ",
            ]
            head = self._heads[path] = "\r\n".join(lines).encode()
        return head


def _reason(error: Any) -> str:
    return (str(error) or type(error).__name__) if error is not None else ""
