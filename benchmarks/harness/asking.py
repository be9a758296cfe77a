"""One request at a time on each of many connections, with every time taken where the bytes pass.

Callbacks and no coroutines, on a loop that is made for it: at tens of thousands of events a second, waking a
task for each would be most of the cost, and its queue a delay that looks like the server's.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from benchmarks.harness.answers import Stream, Whole, reader
from benchmarks.harness.http1 import BadAnswer, Response
from benchmarks.harness.loop import IN, OUT, Limit, Loop, clock
from benchmarks.harness.messages import Address, Ask
from benchmarks.harness.records import Record

CONNECT_SECONDS = 30.0
"""A connection that is not there by then never will be; the kernel itself would try for two minutes."""
READ = 1 << 16
"""Bytes of one read: a stream's chunks are far below, an image takes several. It is more than a record of
TLS, so that nothing is left decrypted where the descriptor does not tell of it."""

UNFINISHED = "unfinished"
"""The error of a request that was given up because the run was over."""

# Not errors: there is nothing to read, or no room to write, at this moment.
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Place = tuple[int, int, int, str, Any]
"""An address, as `socket.getaddrinfo` gives it."""


class Exchange:
    """One request, from when it is sent until its record is complete."""

    __slots__ = ("answer", "ask", "body", "connection", "done", "pool", "record", "response")

    def __init__(self, pool: Pool, ask: Ask, body: bytes, record: Record, done: Callable[[Exchange], None]):
        self.pool, self.ask, self.body, self.record, self.done = pool, ask, body, record, done
        self.response = Response()
        self.answer: Stream | Whole | None = None
        self.connection: Connection | None = None

    def received(self, data: bytes, at: float) -> bool:
        """True: the answer is complete. Raises BadAnswer.

        Args:
            at: when it was read.
        """
        response = self.response
        body = response.feed(data)
        if self.answer is None and response.status >= 200:
            self.record.status = response.status
            # The text of an answer is kept only where the next turn of a conversation needs it.
            self.answer = reader(response, self.record, self.ask.conversation is not None)
        if body and self.answer is not None:
            self.answer.feed(body, at - self.pool.start)
        return response.complete

    def finish(self, at: float, error: str = "", message: str = "") -> None:
        """The one way in which it ends: `at` this time."""
        record = self.record
        record.ended = at - self.pool.start
        if not error and self.answer is not None:
            try:
                self.answer.end()
            except BadAnswer as bad:
                error, message = "protocol", str(bad)
        if error:
            record.error, record.message = error, message
        self.pool.flying.discard(self)
        self.done(self)

    @property
    def text(self) -> str:
        return str(self.answer.text or "") if self.answer is not None else ""


class Connection:
    """A connection to one target: opening, then idle or with one exchange, then closed."""

    __slots__ = (
        *("_at", "_came", "_error", "_loop", "_places", "_socket", "_unsent"),
        *("closed", "exchange", "pool", "used"),
    )

    def __init__(self, pool: Pool, exchange: Exchange | None) -> None:
        """Begin to open it, for `exchange` or beforehand."""
        self.pool, self.exchange, self._loop = pool, exchange, pool.loop
        self.closed = self.used = False
        self._socket: socket.socket | None = None
        self._places = iter(pool.places)
        self._unsent: bytes | memoryview = b""
        self._came, self._at = b"", 0.0
        """What was read and not looked at yet, and when it was."""
        self._error: OSError | None = None
        pool.opening.add(self, clock())
        self._try_next(pool.unresolved)

    def send(self, exchange: Exchange) -> None:
        self.exchange, exchange.connection = exchange, self
        self._unsent = exchange.body
        self._write()

    def close(self) -> None:
        self.closed, self.exchange = True, None
        self._let_go()

    # Opening: one address of the target after the other, then TLS where it is spoken.

    def _try_next(self, error: Exception | None) -> None:
        self._let_go()
        place = next(self._places, None)
        if place is None:
            self._fail(error or OSError("it has no address"))
            return
        family, kind, protocol, _, where = place
        try:
            opened = self._socket = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = opened.connect_ex(where)
        except OSError as unable:  # no descriptor is left, or there are no such addresses here
            self._try_next(unable)
            return
        if code in (0, errno.EINPROGRESS):
            self._loop.watch(opened.fileno(), self._connected, OUT)
        else:
            self._try_next(OSError(code, os.strerror(code)))

    def _connected(self) -> None:
        assert self._socket is not None
        if code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._try_next(OSError(code, os.strerror(code)))
        elif self.pool.tls is None:
            self._opened()
        else:
            plain = self._socket
            self._loop.forget(plain.fileno())  # it changes hands
            try:
                self._socket = self.pool.tls.wrap_socket(
                    plain, server_hostname=self.pool.address.host, do_handshake_on_connect=False
                )
            except (OSError, ValueError) as error:  # gone already, or a name that no certificate can have
                self._socket = None
                plain.close()
                self._fail(error)
            else:
                self._shake_hands()

    def _shake_hands(self) -> None:
        assert isinstance(self._socket, ssl.SSLSocket)
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.watch(self._socket.fileno(), self._shake_hands, IN)
        except ssl.SSLWantWriteError:
            self._loop.watch(self._socket.fileno(), self._shake_hands, OUT)
        except OSError as error:
            self._let_go()
            self._fail(error)
        else:
            self._opened()

    def _opened(self) -> None:
        assert self._socket is not None
        self.pool.opening.discard(self)
        self._loop.watch(self._socket.fileno(), self._read)
        if self.exchange is not None and self.exchange in self.pool.flying:
            self.send(self.exchange)
        else:  # opened beforehand, or for a request that was given up meanwhile
            self.exchange = None
            self.used = True  # as far as it matters: the server may tire of it before the first request
            self.pool.idle.append(self)

    def too_late(self) -> None:
        """It took longer than a connection may."""
        self._let_go()
        self._fail(TimeoutError(f"no connection within {CONNECT_SECONDS:g} s"))

    def _fail(self, error: Exception) -> None:
        self.closed = True
        self.pool.opening.discard(self)
        exchange, self.exchange = self.exchange, None
        # Not at once: a user who is told asks again, fails again, and nobody else would ever be heard. Of
        # times a turn calls so many and no more.
        self._loop.at(clock(), lambda _: self._tell(exchange, error))

    def _tell(self, exchange: Exchange | None, error: Exception) -> None:
        if exchange is not None and exchange in self.pool.flying:
            refused = isinstance(error, ConnectionRefusedError)
            exchange.finish(clock(), "refused" if refused else "unreachable", _reason(error))

    # Open: a request goes out, its answer comes in.

    def _write(self) -> None:
        assert self._socket is not None
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except _LATER:
                self._loop.watch(self._socket.fileno(), self._write_and_read, IN | OUT)
                return
            except OSError:  # it is broken; what may have come before that is still to be read
                self._unsent = b""
                return
            self._unsent = b"" if sent == len(self._unsent) else memoryview(self._unsent)[sent:]

    def _write_and_read(self) -> None:
        self._write()
        if not self._unsent and self._socket is not None:
            self._loop.watch(self._socket.fileno(), self._read)
        self._read()

    def _read(self) -> None:
        assert self._socket is not None
        try:
            came = self._socket.recv(READ)
        except _LATER:  # of TLS: something came, but not for us
            return
        except OSError as error:
            # Its traceback has this frame, which has us: a circle, and nobody collects them here.
            came, self._error = b"", error.with_traceback(None)
        if self.exchange is None:  # an idle one has ended, or a server speaks unasked
            self.close()
            return
        self._at, self._came = clock(), came
        self._loop.after.append(self._look)

    def _look(self) -> None:
        """At what was read."""
        exchange, came, self._came = self.exchange, self._came, b""
        if exchange is None:  # it was given up meanwhile
            return
        if not came:
            self._lost(exchange)
            return
        try:
            if not exchange.received(came, self._at):
                return
        except BadAnswer as bad:
            self.close()
            exchange.finish(self._at, "protocol", str(bad))
            return
        self.exchange, self.used = None, True
        if exchange.response.keep_alive and not self._unsent:
            self.pool.idle.append(self)
        else:  # after an answer that came before all was sent, the server still waits for the rest
            self.close()
        exchange.finish(self._at)

    def _lost(self, exchange: Exchange) -> None:
        self.close()
        if self.used and not exchange.response.status and exchange.response.empty:
            # It was closed for idleness while the request was on its way: nobody has read it.
            self.pool.connect(exchange)
        elif self._error is None and exchange.response.eof():
            exchange.finish(self._at)
        else:
            why = _reason(self._error) or "the connection was closed before the answer was whole"
            exchange.finish(self._at, "broken", why)

    def _let_go(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._loop.after.append(self._socket.close)
            self._socket = None


class Pool:
    """One target: where it is, its connections, and the heads of requests to it.

    Its name is looked up once: a name server must not delay a request, nor send half of them elsewhere.
    """

    def __init__(self, loop: Loop, address: Address, timeout: float = 600.0) -> None:
        self.loop, self.address, self.timeout = loop, address, timeout
        self.start = 0.0
        """The time of `clock` that is 0 in records."""
        self.idle: list[Connection] = []
        """Those that have closed meanwhile too."""
        self.opening = Limit[Connection](loop, CONNECT_SECONDS, Connection.too_late)
        self.flying = Limit[Exchange](loop, timeout, self._time_is_up)
        self.tls: ssl.SSLContext | None = None
        if address.tls:
            self.tls = ssl.create_default_context()
            if not address.verify:
                self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE
        self.unresolved: Exception | None = None
        """Why it has no places."""
        self.places: Sequence[Place] = []
        try:
            self.places = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            self.unresolved = error
        self._heads: dict[str, bytes] = {}
        self._model = b'{"model":' + msgspec.json.encode(address.model)

    def prepare(self, count: int) -> None:
        """Begin to open connections beforehand. That it fails is seen by whoever asks first."""
        for _ in range(count):
            self.connect(None)

    def ask(
        self, ask: Ask, record: Record, done: Callable[[Exchange], None], body: bytes | None = None
    ) -> None:
        """Send it now. `done` is called once, and never from here, when `record` is complete.

        Args:
            body: another body than the ask's.
        """
        content = self.with_model(body or ask.body)
        message = b"%b%d\r\n\r\n%b" % (self._head(ask.path), len(content), content)
        exchange = Exchange(self, ask, message, record, done)
        now = clock()
        self.flying.add(exchange, now)
        record.sent = now - self.start
        while self.idle:
            connection = self.idle.pop()
            if not connection.closed:
                connection.send(exchange)
                return
        self.connect(exchange)

    def with_model(self, body: bytes) -> bytes:
        return self._model + (b"}" if body == b"{}" else b"," + body[1:])

    def connect(self, exchange: Exchange | None) -> None:
        Connection(self, exchange)

    def give_up(self) -> None:
        for exchange in list(self.flying):
            self._drop(exchange, UNFINISHED, "the run was over before the answer was")

    def _time_is_up(self, exchange: Exchange) -> None:
        self._drop(exchange, "timeout", f"no whole answer within {self.timeout:g} s")

    def _drop(self, exchange: Exchange, error: str, message: str) -> None:
        if exchange.connection is not None:
            exchange.connection.close()
        exchange.finish(clock(), error, message)

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
