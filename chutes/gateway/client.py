"""One connection from a client: bytes in, whole requests out, answers back in order.

It is in one of five states, told apart by its fields:

    idle       no head begun, nothing in flight
    head       `_buffer` holds a part of a head
    body       `_request` and `_body` are set: a body is coming
    busy       `_exchange` is set: an instance is answering; bytes of later requests wait in `_buffer`
    lingering  refused and half closed; what still comes is thrown away until the client closes
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from chutes.gateway import answers, limits
from chutes.gateway.answers import Answer, Refusal
from chutes.gateway.bodies import IncomingBody
from chutes.gateway.exchange import Exchange
from chutes.gateway.heads import Remembered
from chutes.gateway.http import RequestHead, bad
from chutes.gateway.relay import AnswerRelay
from chutes.gateway.surroundings import Client

if TYPE_CHECKING:
    from chutes.gateway.clients import Clients

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def _no_body() -> Refusal:
    """Whether the body came in the same read as its head or after it."""
    return bad("This path takes no request body.")


class ClientConnection(Client):
    """One client's connection.

    Called by the event loop as an `asyncio.Protocol`, which a compiled class cannot derive from.
    """

    __slots__ = (
        "_blocked",
        "_body",
        "_buffer",
        "_clients",
        "_ending",
        "_exchange",
        "_known",
        "_lingering",
        "_reading_paused",
        "_request",
        "_request_id",
        "_request_started",
        "_since",
        "_transport",
    )

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._transport: asyncio.Transport
        self._buffer = b""
        self._request: RequestHead | None = None
        """The request whose body is coming, or that is being answered."""
        self._request_id = b""
        self._body: IncomingBody | None = None
        self._exchange: Exchange | None = None
        self._known: Remembered[RequestHead] | None = None
        """The last head that came, if it is likely to come again."""
        self._lingering = False
        self._ending = False
        """It ends with what has been said; nothing more is read."""
        self._blocked = False
        """The client does not read: our write buffer is over its high-water mark."""
        self._reading_paused = False
        self._since = clients.tick
        """Tick of the last progress in the present state."""
        self._request_started = clients.tick

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derives from nothing of asyncio
        connections = self._clients.connections
        connections.add(self)
        if len(connections) > limits.CONNECTIONS:
            self.refuse(Refusal(503, "too_many_connections", "Too many connections.", close=True))

    def data_received(self, data: bytes) -> None:
        known = self._known
        if self._exchange is not None:
            self._buffer += data
            if len(self._buffer) > limits.PIPELINE_BYTES:
                self._pause_reading()
        elif (
            # What most reads are: the whole of a next request, under the head of the last one.
            known is not None
            and self._request is None
            and not self._buffer
            and not self._blocked
            and not self._lingering
            and not self._ending
            and (body := known.body(data)) is not None
        ):
            self._since = self._clients.tick
            self._dispatch(known.head, body)
        elif not self._lingering and not self._ending:
            self._advance(data)

    def eof_received(self) -> bool:
        return False  # a client that will send no more is taken as gone, as nginx and uvicorn do

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
        self._clients.left(self)

    def pause_writing(self) -> None:
        self._blocked = True
        self._since = self._clients.tick
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._blocked = False
        self._since = self._clients.tick
        if self._exchange is not None:
            self._exchange.resume()
        else:
            self._next()

    # What the exchange calls

    def pass_on(self, data: bytes) -> None:
        self._clients.outbox.write(self._transport, data)

    def complete(self, data: bytes, keep_alive: bool) -> None:
        self._exchange = None
        self._request = None
        if data:
            self._clients.outbox.write(self._transport, data)
        self._end_answer(keep_alive)

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error, and end the connection if it cannot be read on."""
        request = self._request
        if self._exchange is None:  # it was never let in; an exchange is recorded by itself
            self._clients.meter.refused(refusal.status, refusal.code)
        self._exchange = None
        self._request = None
        close = refusal.close or request is None or not request.keep_alive or self._clients.draining
        head_only = request is not None and request.method == b"HEAD"
        request_id = self._request_id or self._clients.request_id(request)
        self.pass_on(answers.serialise(refusal.answer(), request_id, close=close, head_only=head_only))
        if refusal.close or request is None:
            self._linger()
        else:
            self._end_answer(not close)

    def break_off(self) -> None:
        self._exchange = None
        self._request = None
        self._ending = True
        self._buffer = b""
        self._clients.outbox.then(self._transport.abort)  # what came before it goes out before it

    # What the worker calls

    def abort(self) -> None:
        self._transport.abort()  # an exchange hears of it when the connection is lost

    def close_if_idle(self) -> None:
        if self._exchange is None and self._request is None and not self._buffer and not self._lingering:
            self._end()

    def sweep(self, tick: int) -> None:
        """Enforce the bounds on time; called once a second."""
        waited = tick - self._since
        if self._blocked or self._ending:  # ending: the last bytes of an answer are unread
            if waited >= limits.READER_STALL_SECONDS:
                self.abort()
        elif self._exchange is not None:
            self._exchange.sweep(tick)
        elif self._lingering:
            if waited >= limits.LINGER_SECONDS:
                self.abort()
        elif self._request is not None:
            if waited >= limits.BODY_STALL_SECONDS or tick - self._request_started >= limits.BODY_SECONDS:
                self.refuse(bad("The request body did not arrive in time.", 408, "request_timeout"))
        elif self._buffer:
            if waited >= limits.HEAD_SECONDS:
                self.refuse(bad("The request head did not arrive in time.", 408, "request_timeout"))
        elif waited >= limits.IDLE_SECONDS:
            self._end()

    # From bytes to requests

    def _advance(self, data: bytes) -> None:
        """Serve what can be served of these bytes; keep the rest."""
        try:
            if self._request is None:
                if self._buffer:
                    data = self._buffer + data
                    self._buffer = b""
                else:  # a head begins: its time runs from here, however slowly it drips
                    self._since = self._clients.tick
            while data:
                if self._blocked and self._request is None:
                    # Answers pile up unread: serve no more of them until the client has taken some.
                    self._buffer = data
                    self._pause_reading()
                    return
                request, body = self._request, self._body
                if request is None or body is None:
                    data = self._read_head(data)
                else:
                    data = self._read_body(request, body, data)
                if self._exchange is not None:
                    self._buffer = data
                    return
                if self._lingering or self._ending:
                    return
        except Refusal as refusal:
            refusal.close = True  # its request was not read to the end, so nothing after it can be
            self.refuse(refusal)

    def _read_head(self, data: bytes) -> bytes:
        """Take one head from the front of `data`, and its request if that is whole; return the rest.

        Data without a whole head goes to `_buffer`, and nothing is returned.
        """
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > limits.HEAD_BYTES:
            return self._keep_partial_head(data, end)
        if end == 0:  # old clients end a body with a CRLF that belongs to nothing; two are no accident
            raise bad("The request begins with empty lines.")
        if data.startswith(b"\r\n"):
            return data[2:]
        request, length, self._known = self._clients.service.heads.read(data, end)
        self._request = request
        self._request_id = b""
        data = data[end + 4 :]
        if not request.chunked and length <= len(data):
            if length == len(data):
                self._dispatch(request, data)
                return b""
            self._dispatch(request, data[:length])
            return data[length:]
        if isinstance(self._clients.service.admit(request, length, time.time()), Answer):
            # Such paths ask for no key, so a stranger could have us buffer bodies for nothing.
            raise _no_body()
        self._body = IncomingBody(None if request.chunked else length)
        self._since = self._request_started = self._clients.tick
        if request.expects_continue and not data:
            self.pass_on(CONTINUE)
        return data

    def _keep_partial_head(self, data: bytes, end: int) -> bytes:
        if len(data) > limits.HEAD_BYTES:
            raise bad(f"The request head is over {limits.HEAD_BYTES} bytes.", 431, "head_too_large")
        if end < 0 and data.count(b"\n") != data.count(b"\r\n"):
            raise bad("A line of the head ends in a bare LF.")  # at once: its end would never come
        self._buffer = data
        return b""

    def _read_body(self, request: RequestHead, body: IncomingBody, data: bytes) -> bytes:
        """Take this request's body from the front of `data`; serve it when whole; return the rest."""
        self._since = self._clients.tick
        rest = body.take(data)
        if len(body) > self._clients.service.max_body:
            raise self._clients.service.too_large()
        if body.whole:
            self._body = None
            self._dispatch(request, body.content())
        return rest

    def _dispatch(self, request: RequestHead, body: bytes) -> None:
        clients = self._clients
        self._request = request
        self._request_id = request_id = clients.request_id(request)
        try:
            outcome = clients.service.serve(request, body, time.time())
            if isinstance(outcome, Answer):
                if body:
                    raise _no_body()
                self._answer(request, outcome)
                return
            relay = AnswerRelay(clients.no_heads, request_id)
            if clients.draining or not request.keep_alive:
                relay.lasting = relay.keep_alive = False
            if request.http_1_0:
                relay.http_1_0 = True
            if request.method == b"HEAD":
                relay.head_only = True
            if not outcome.shows_usage:
                relay.hides_usage = True
            if outcome.twins:
                relay.twins = True
            self._exchange = exchange = Exchange(self, clients, outcome, relay)
            exchange.start()
        except Refusal as refusal:  # caught here, as what follows on the connection can still be served
            self.refuse(refusal)
        except Exception as error:
            # A defect of ours must cost one connection, not its client's patience. The traceback goes to
            # the log; it names no request, header or key.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "request failed", "exception": error}
            )
            if self._exchange is not None:
                self._exchange.cancel(500, "internal_error")
            self.refuse(Refusal(500, "internal_error", "The gateway failed on this request.", close=True))

    def _answer(self, request: RequestHead, answer: Answer) -> None:
        """Send an answer that needed no engine."""
        self._request = None
        close = self._clients.draining or not request.keep_alive
        head_only = request.method == b"HEAD"
        self.pass_on(answers.serialise(answer, self._request_id, close=close, head_only=head_only))
        self._end_answer(not close)

    # Ends

    def _end_answer(self, keep_alive: bool) -> None:
        self._since = self._clients.tick
        if keep_alive and not self._clients.draining:
            if self._buffer:
                self._next()
            elif self._reading_paused:
                self._resume_reading()
        else:
            self._end()

    def _end(self) -> None:
        self._ending = True
        self._buffer = b""
        self._clients.outbox.then(self._transport.close)

    def _next(self) -> None:
        """Go on with what came while we could not."""
        self._resume_reading()
        if self._buffer and not self._lingering:
            data, self._buffer = self._buffer, b""
            self._advance(data)

    def _linger(self) -> None:
        """Half close, and read on for a while.

        Closing with unread bytes in the socket makes the kernel send a reset, which may overtake the
        answer: the client would report a broken connection instead of what it did wrong.
        """
        self._lingering = True
        self._since = self._clients.tick
        self._buffer = b""
        self._body = None
        self._resume_reading()
        if self._transport.can_write_eof():
            self._clients.outbox.then(self._transport.write_eof)

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if not self._ending:
                self._transport.resume_reading()
