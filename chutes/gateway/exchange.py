"""One order and the attempts to fulfil it.

An attempt may be repeated as long as the client has not got a single byte; after that the only honest ends
are the whole answer, an error event in a stream, or a broken connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from zlib import crc32

from chutes.gateway import breaker, limits
from chutes.gateway.account import Account
from chutes.gateway.answers import Refusal
from chutes.gateway.breaker import HEALTHY
from chutes.gateway.http import BadAnswer
from chutes.gateway.meter import monotonic
from chutes.gateway.orders import Order
from chutes.gateway.relay import AnswerRelay
from chutes.gateway.surroundings import Client, Surroundings
from chutes.gateway.upstream import Instance, UpstreamConnection, hopeless
from chutes.gateway.waiting import Ticket, Why

JOIN_BYTES: Final = 16 * 1024
"""Up to here one copy of the body is cheaper than a second entry in the socket's write queue."""

CLIENT_GONE: Final = 499
"""Status of a record, as in nginx's log, of a client that left before there was any."""

STALE_SECONDS: Final = 0.5
"""A connection that ends so soon after an order was written to it had been closed before."""

MOST_RETRIES: Final = 3
"""After so many an order that could not reach an instance does not wait for another one."""

_connecting: set[asyncio.Task[None]] = set()
"""Connections being made: the event loop itself keeps only weak references to tasks."""


@contextmanager
def _held(instance: Instance) -> Iterator[None]:
    """Keep a place on an instance while another is given back, which may let in whoever waits."""
    instance.begin()
    try:
        yield
    finally:
        instance.end()


class Exchange:
    """Created with an order, started once; ends by exactly one of the client's last three methods, or by
    `cancel` when the client has gone. However it ends, it is recorded once."""

    # Defaults stand here: most exchanges change few of them, and setting costs more than reading.
    _instance: Instance | None = None
    """The one being tried; None while waiting and when the exchange is over."""
    _connection: UpstreamConnection | None = None
    _ticket: Ticket[Exchange] | None = None
    """Its place in the line of its chute, while it waits there."""
    _avoid: tuple[Instance, ...] = ()
    """Instances that failed this order."""
    _broke = False
    """One has taken the order and broken off before it answered; it does not get a third chance."""
    _renewed = False
    """It has been sent again because an idle connection turned out to be closed."""
    _sent = 0.0
    """When the order was; monotonic, as all times here."""
    _missed = 0.0
    """When it found nobody there for the first time."""
    _paused = False
    _passed = False
    """The client has got a part of an answer."""

    def __init__(self, client: Client, worker: Surroundings, order: Order, relay: AnswerRelay) -> None:
        self._client = client
        self._worker = worker
        self._order = order
        self._relay = relay
        self._heard = worker.tick
        self._account = Account(worker)

    @property
    def prefix(self) -> int | None:
        return self._order.prefix

    @property
    def avoid(self) -> tuple[Instance, ...]:
        return self._avoid

    def start(self) -> None:
        """Go to an instance, or into the line. A refusal is answered, not raised."""
        order, now = self._order, self._account.started
        key = order.standing.key
        if key.slot is not None:
            try:
                self._relay.fields = self._worker.quota.begin(key, now)
            except Refusal as refusal:
                self.give_up(refusal)
                return
            self._account.counted = True
        group = order.group
        instance = order.only or (None if len(group.line) else group.choose(now, order.prefix))
        if instance is not None:
            self._try(instance)
        else:
            self._wait()

    def proceed(self, instance: Instance) -> None:
        """Its turn has come."""
        self._leave_line()
        self._heard = self._worker.tick
        self._try(instance)

    def give_up(self, refusal: Refusal) -> None:
        """Answer with an error; no instance has it."""
        self._leave_line()
        self._record(refusal.status, refusal.code)
        event = self._relay.error_event(refusal.body()) if self._relay.headed else None
        if event is not None:
            self._client.complete(event, self._relay.keep_alive)
        else:
            self._client.refuse(refusal)

    def received(self, data: bytes) -> None:
        """Bytes from the engine. The hot path: called for every chunk of every stream."""
        relay = self._relay
        self._heard = self._worker.tick
        try:
            out = relay.feed(data)
        except BadAnswer as error:
            # Of what was good in these bytes nothing has been passed on.
            relay.begun = self._passed
            self._break_off(f"it sent what is not HTTP: {error}")
            return
        if relay.status >= 500 and not self._passed and self._elsewhere():
            return
        if relay.done:
            instance = self._instance
            if instance is not None and (relay.status >= 500 or instance.health is not HEALTHY):
                self._judge(instance)
            self._release(reusable=relay.reusable)
            self._account.last_part()
            # First, as what follows may serve the next request of the connection.
            self._record(relay.status)
            self._client.complete(out, relay.keep_alive)
        elif out:
            self._passed = True
            if relay.spoke:  # a head alone is no first token
                self._account.part(relay.event_stream)
            self._client.pass_on(out)

    def lost(self, exc: Exception | None) -> None:
        """The engine's connection has ended before its answer did, unless that is how its answer ends."""
        relay = self._relay
        if exc is None and relay.ends_by_close():
            self._release(reusable=False)
            self._record(relay.status)
            self._client.complete(b"", False)
            return
        connection, instance = self._connection, self._instance
        stale = connection is not None and connection.reused and relay.silent and not self._renewed
        if stale and instance is not None and monotonic() - self._sent < STALE_SECONDS:
            # The engine closed an idle connection just as we wrote to it: nobody's fault, nothing was
            # read, and other pooled connections may be as stale. Only at once and only once: an engine that
            # dies of a request also says nothing, and its request must not go round all instances.
            self._renewed = True
            with _held(instance):
                self._release(reusable=False)
            self._try(instance, fresh=True)
            return
        self._break_off("it closed the connection" if exc is None else f"its connection broke: {exc}")

    def cancel(self, status: int = CLIENT_GONE, code: str = "client_gone") -> None:
        """The client has gone, or we have failed: break the engine's connection, which tells it to stop."""
        if self._ticket is not None:
            self._order.group.line.cancel(self._ticket)
            self._leave_line()
        self._release(reusable=False)
        if self._relay.told_all:  # some clients close at [DONE], before the end of the body is there
            status, code = self._relay.status, ""
        self._record(self._relay.status or status, code)

    def pause(self) -> None:
        """The client is slow: stop reading from the engine, so that TCP slows it down."""
        self._paused = True
        if self._connection is not None:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        self._paused = False
        self._heard = self._worker.tick
        if self._connection is not None:
            self._connection.transport.resume_reading()

    def sweep(self, tick: int) -> None:
        if self._ticket is not None:
            order = self._order
            found = order.placed(monotonic(), self._avoid) if order.otherwise is not None else None
            if found is not None:  # another chute of the list has room by now
                order.group.line.cancel(self._ticket)
                self._order = found[0]
                self.proceed(found[1])
                return
            self._worker.wake(self._order.group)
            if order.standing.comments and order.stream and tick % limits.COMMENT_SECONDS == 0:
                self._client.pass_on(self._relay.comment())
            return
        if tick - self._heard >= limits.ANSWER_SECONDS and not self._paused:
            self._fail(504, "upstream_timeout", f"has said nothing for {limits.ANSWER_SECONDS} s")

    def _wait(self) -> None:
        """Join the line of the chute: all of its instances are busy, or it has none yet."""
        order = self._order
        group = order.group
        why = Why.BUSY
        if not group.instances:
            refusal = hopeless(group.route)
            while refusal is not None and order.otherwise is not None:  # none of a list has instances
                order = order.otherwise
                if order.group.instances or hopeless(order.group.route) is None:
                    refusal = None
            if refusal is not None:
                self.give_up(refusal)
                return
            self._order, group = order, order.group
        if not group.present():
            why = Why.STARTING
            self._worker.wake(group)
        try:
            self._ticket = group.line.add(self, order.standing.key.key_id, why, monotonic())
        except Refusal as refusal:
            self.give_up(refusal)

    def _leave_line(self) -> None:
        if self._ticket is not None:
            self._account.queued += monotonic() - self._ticket.since
            self._ticket = None

    def _try(self, instance: Instance, *, fresh: bool = False) -> None:
        self._instance = self._account.tried = instance
        self._relay.heads = instance.heads
        instance.begin()
        if instance.health is not HEALTHY:
            instance.health = breaker.tried(instance.health, monotonic())
        connection = None if fresh else instance.take()
        if connection is not None:
            self._send(connection)
        else:
            task = asyncio.get_running_loop().create_task(self._connect(instance))
            _connecting.add(task)
            task.add_done_callback(_connecting.discard)

    async def _connect(self, instance: Instance) -> None:
        try:
            connection = await instance.connect()
        except Exception as error:  # besides OSError: a host name that cannot be one
            if self._instance is instance:
                self._unreachable(instance, error)
            return
        if instance.health.absent:
            instance.health = breaker.reached(instance.health)
        # Over, but not cancelled, as a connection half made would leak; the next request has it.
        if self._instance is not instance:
            instance.give_back(connection, self._worker.tick)
        else:
            self._send(connection)

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        connection.exchange = self
        self._sent = monotonic()
        order, outbox = self._order, self._worker.outbox
        body, fields, request_id = order.body, connection.instance.fields, self._relay.request_id
        joined = body if len(body) <= JOIN_BYTES else b""
        outbox.write(
            connection.transport,
            b"%b%bX-Request-Id: %b\r\n\r\n%b" % (order.head, fields, request_id, joined),
        )
        if joined is not body:
            outbox.write(connection.transport, body)

    def _release(self, *, reusable: bool) -> None:
        """Let go of instance and connection; break the connection if it cannot be used again."""
        instance, connection = self._instance, self._connection
        self._instance = self._connection = None
        if connection is not None:
            connection.exchange = None
            if reusable and instance is not None:
                instance.give_back(connection, self._worker.tick)
            else:
                connection.transport.abort()
        if instance is not None:
            instance.end()
            group = self._order.group
            if len(group.line):
                group.serve(monotonic())

    def _unreachable(self, instance: Instance, error: Exception) -> None:
        """No connection, so no harm done: any other instance will do, and the next one if there is none."""
        self._worker.report(instance, f"cannot connect: {error or type(error).__name__}")
        instance.health = breaker.unreachable(instance.health, monotonic())
        self._release(reusable=False)
        self._avoid = (*self._avoid, instance)
        order, now = self._order, monotonic()
        perhaps_done = self._renewed and not order.repeatable
        if not perhaps_done and self._another():
            return
        self._missed = self._missed or now
        late = now - self._missed >= limits.MISSED_SECONDS
        if perhaps_done or self._broke or late or order.only is not None or order.group.chute_id is None:
            self._fail(503, "upstream_unreachable", "cannot be reached")
        else:
            self._account.retries += 1
            self._avoid = ()  # nothing has failed it: whichever is there first may have it
            self._wait()

    def _break_off(self, error: str) -> None:
        """The engine failed after it had the order."""
        instance = self._instance
        assert instance is not None
        self._worker.report(instance, error)
        instance.health = breaker.failed(instance.health, crc32(self._order.body), monotonic())
        if self._relay.begun or self._broke or not self._order.repeatable:
            self._fail(502, "upstream_broke_off", "broke off before its answer was whole")
            return
        self._release(reusable=False)
        self._broke = True
        self._avoid = (*self._avoid, instance)
        self._relay = self._relay.again()
        if self._another():
            return
        if instance.retired:
            self._fail(502, "upstream_broke_off", "broke off before its answer was whole")
        else:
            self._account.retries += 1
            self._try(instance, fresh=True)

    def _elsewhere(self) -> bool:
        """After a 5xx of which nothing has been passed on: ask another instance, if there is one."""
        instance, order = self._instance, self._order
        if instance is None or not breaker.is_failure(self._relay.status):
            return False
        if self._broke or not order.repeatable:
            return False
        avoid = (*self._avoid, instance)
        found = order.placed(monotonic(), avoid)
        if found is None:
            return False
        self._judge(instance)
        with _held(found[1]):
            self._release(reusable=self._relay.done and self._relay.reusable)
        self._avoid = avoid
        self._broke = True
        self._relay = self._relay.again()
        self._account.retries += 1
        self._order = found[0]
        self._try(found[1])
        return True

    def _another(self) -> bool:
        """Try an instance that has not failed this order; of the next chute, if a list was asked for."""
        if self._order.only is not None:
            return False
        found = self._order.placed(monotonic(), self._avoid)
        if found is not None:
            self._account.retries += 1
            self._order = found[0]
            self._try(found[1])
            return True
        order = self._order
        if self._account.retries < MOST_RETRIES and any(i not in self._avoid for i in order.group.instances):
            self._account.retries += 1
            self._wait()  # those that have not failed it are full, or left out for a while
            return True
        return False

    def _judge(self, instance: Instance) -> None:
        """Take what an answer says of its instance into account."""
        now = monotonic()
        if breaker.is_failure(self._relay.status):
            instance.health = breaker.failed(instance.health, crc32(self._order.body), now)
        else:
            instance.health = breaker.succeeded(instance.health, now)

    def _fail(self, status: int, code: str, what: str) -> None:
        self._release(reusable=False)
        headers = b"Retry-After: 1\r\n" if status == 503 else b""
        refusal = Refusal(status, code, f"An instance of {self._order.name} {what}.", headers=headers)
        relay = self._relay
        if not relay.begun:
            self.give_up(refusal)
            return
        self._record(relay.status, code)
        event = relay.error_event(refusal.body())
        if event is None:
            self._client.break_off()
        else:
            self._client.complete(event, False)

    def _record(self, status: int, error: str = "") -> None:
        self._account.close(self._order, self._relay, status, error)
