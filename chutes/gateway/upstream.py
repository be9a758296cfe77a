"""Instances and the connections to them.

An `Instance` outlives the table that named it for as long as requests are on it; a `Group` outlives every
table that names its chute, so a retry chooses among the instances of now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from chutes import wire
from chutes.board import QUEUED_AT, Board
from chutes.gateway import answers, balance, breaker, limits
from chutes.gateway.answers import Refusal
from chutes.gateway.breaker import HEALTHY
from chutes.gateway.heads import AnswerHeads
from chutes.gateway.scores import UNSCORED, Room
from chutes.gateway.waiting import Waiting

if TYPE_CHECKING:
    from chutes.gateway.exchange import Exchange


class Waits(Protocol):
    """What a group asks of a request that waits in its line."""

    @property
    def prefix(self) -> int | None:
        """`balance.prefix_key`, if it matters."""

    @property
    def avoid(self) -> Sequence[Instance]:
        """Instances that have failed it."""
        ...

    def proceed(self, instance: Instance) -> None:
        """There is a place; go on."""

    def give_up(self, refusal: Refusal) -> None:
        """There will be none in time."""


Waiter = TypeVar("Waiter", bound=Waits)


class UpstreamConnection:
    """One connection to an instance; it belongs to one exchange, or is idle in the instance's pool.

    Called by the event loop as an `asyncio.Protocol`, which a compiled class cannot derive from.
    """

    __slots__ = ("exchange", "idle_since", "instance", "reused", "transport")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.exchange: Exchange | None = None
        self.reused = False
        self.idle_since = 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's derives from nothing of asyncio

    def data_received(self, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.received(data)
        else:  # an answer to no question; the next question must not get it
            self.transport.abort()

    def eof_received(self) -> bool:
        return False  # whoever answers no more gets no more

    def pause_writing(self) -> None:
        """A body that the engine does not read yet: it is in memory already, and `max_body` bounds it."""

    def resume_writing(self) -> None:
        pass

    def connection_lost(self, exc: Exception | None) -> None:
        if self.exchange is not None:
            self.exchange.lost(exc)
        else:
            self.instance.forget(self)


class Instance:
    """One upstream of the table: how loaded it is, and its idle connections."""

    __slots__ = (
        "_board",
        "_idle",
        "_mine",
        "chute_id",
        "fields",
        "heads",
        "health",
        "instance_id",
        "last_report",
        "retired",
        "seed",
        "since",
        "slot",
        "upstream",
    )

    def __init__(self, chute_id: str | None, upstream: wire.Upstream, board: Board, since: float) -> None:
        self.chute_id = chute_id
        """None for the control API."""
        self.upstream = upstream
        self.instance_id = upstream.instance_id
        host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
        self.fields = f"Host: {host}:{upstream.port}\r\nAuthorization: Bearer {upstream.api_key}\r\n".encode(
            "latin-1"
        )
        """Header lines that every request to it carries."""
        self.heads = AnswerHeads()
        self.health = HEALTHY
        self.seed = balance.seed(upstream.instance_id)
        self.since = since
        """Monotonic seconds at which this worker heard of it."""
        self.last_report = -1
        """Tick of the last `UpstreamLost` about it."""
        self.retired = False
        """No table names it any more."""
        self._idle: list[UpstreamConnection] = []
        self._board = board
        self._mine = board.mine
        self.slot = upstream.slot

    @property
    def in_flight(self) -> int:
        """Requests on it, of all workers."""
        return self._board.total(self.slot)

    def begin(self) -> None:
        self._mine[self.slot] += 1

    def end(self) -> None:
        self._mine[self.slot] -= 1

    def take(self) -> UpstreamConnection | None:
        """An idle connection: the one used last, as the others are nearer to being closed by the engine."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                connection.reused = True
                return connection
        return None

    def give_back(self, connection: UpstreamConnection, tick: int) -> None:
        connection.exchange = None
        if self.retired:
            connection.transport.close()
            return
        connection.idle_since = tick
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    async def connect(self) -> UpstreamConnection:
        """A new connection. Raises OSError, of which TimeoutError is one."""
        loop = asyncio.get_running_loop()
        protocol: Callable[[], Any] = lambda: UpstreamConnection(self)  # noqa: E731
        async with asyncio.timeout(limits.CONNECT_SECONDS):
            host, port = self.upstream.host, self.upstream.port
            _, connection = await loop.create_connection(protocol, host, port)
        return connection

    def sweep(self, tick: int) -> None:
        stale = [c for c in self._idle if tick - c.idle_since >= limits.UPSTREAM_IDLE_SECONDS]
        for connection in stale:
            self._idle.remove(connection)
            connection.transport.close()

    def retire(self) -> None:
        self.retired = True
        while self._idle:
            self._idle.pop().transport.close()


class Group(Generic[Waiter]):
    """The instances of one chute, and the line of those that wait for one of them.

    Args:
        chute_id: None for the control API.
        line: where requests wait; `serve` takes them out of it.
    """

    __slots__ = (
        "_alone",
        "_board",
        "_mine",
        "_ramped",
        "_seeds",
        "_slots",
        "_turn",
        "capacity",
        "chute_id",
        "instances",
        "line",
        "route",
        "score",
        "woken",
    )

    def __init__(self, chute_id: str | None, line: Waiting[Waiter], board: Board) -> None:
        self.chute_id = chute_id
        self.line = line
        self.instances: list[Instance] = []
        self.route: wire.Route | None = None
        """As the last table had it."""
        self.score = UNSCORED
        self.woken = -1
        """Tick of the last `Wake` for it."""
        self._turn = 0
        self.capacity: int | None = None
        """Requests that one instance takes at once."""
        self._board = board
        self._mine = board.mine
        self._alone = board.alone
        self._slots: list[int] = []
        self._seeds: list[int] = []
        """Of the instances."""
        self._ramped = -1e9
        """When the newest of them will have come to its full share."""

    def choose(
        self, now: float, prefix: int | None = None, avoid: Sequence[Instance] = ()
    ) -> Instance | None:
        """The instance for a request; None when there is none, or all are full.

        Args:
            now: monotonic seconds.
            prefix: `balance.prefix_key` of the request.
            avoid: instances that have failed it.
        """
        instances, slots, seeds = self.instances, self._slots, self._seeds
        for instance in instances:
            if avoid or instance.health is not HEALTHY:
                instances = self._usable(now, avoid)
                slots = [instance.slot for instance in instances]
                seeds = [instance.seed for instance in instances]
                break
        if not instances:
            return None
        self._turn += 1
        weights = None
        if now < self._ramped:
            weights = [balance.weight(now - instance.since) for instance in instances]
        loads = self._loads(slots)
        index = balance.choose(loads, seeds, prefix, self._turn, self.capacity, weights)
        return instances[index] if index is not None else None

    def _loads(self, slots: list[int]) -> list[int]:
        if not self._alone:
            return self._board.totals(slots)
        mine = self._mine
        return [mine[slot] for slot in slots]

    def _usable(self, now: float, avoid: Sequence[Instance]) -> list[Instance]:
        left = [instance for instance in self.instances if instance not in avoid]
        usable = breaker.usable([instance.health for instance in left], now)
        if usable is None or (not usable and self.chute_id is None):  # nobody waits for the control API
            return left
        return [left[index] for index in usable]

    def present(self) -> bool:
        """Whether there is an instance, and not just in the table."""
        return any(not instance.health.absent for instance in self.instances)

    def room(self, now: float) -> Room:
        if not self.instances:
            return Room.NONE
        return Room.FREE if not len(self.line) and self.choose(now) is not None else Room.FULL

    def serve(self, now: float) -> None:
        """Give free places to those who wait; called whenever one may have become free."""
        while (ticket := self.line.first()) is not None:
            instance = self.choose(now, ticket.item.prefix, ticket.item.avoid)
            if instance is None and ticket.item.avoid:  # rather one that failed it than all behind it wait
                instance = self.choose(now, ticket.item.prefix)
            if instance is None:
                return
            self.line.pop()
            ticket.item.proceed(instance)

    def swap(self, route: wire.Route | None, upstreams: list[wire.Upstream], now: float) -> None:
        """Take over what a table says: instances that stay keep their connections, the rest retire."""
        # Those of a worker's first table have been there before the worker.
        since = now if self.instances or self.route is not None else -limits.RAMP_SECONDS
        self.route = route
        self.capacity = route.concurrency if route is not None else None
        known = {instance.upstream: instance for instance in self.instances}
        self.instances = []
        for upstream in upstreams:
            instance = known.pop(upstream, None)
            if instance is None:
                instance = Instance(self.chute_id, upstream, self._board, since)
                self._ramped = since + limits.RAMP_SECONDS
            self.instances.append(instance)
        self._slots = [instance.slot for instance in self.instances]
        self._seeds = [instance.seed for instance in self.instances]
        for instance in known.values():
            instance.retire()

    def settle(self, now: float) -> None:
        """After a swap: go on with those who wait, or tell them that it is in vain."""
        if len(self.line):
            if self.instances:
                self.serve(now)
            elif refusal := hopeless(self.route):
                for ticket in self.line.clear():
                    ticket.item.give_up(refusal)

    def sweep(self, tick: int, now: float) -> None:
        for instance in self.instances:
            instance.sweep(tick)
        for ticket in self.line.expired(now):
            ticket.item.give_up(self.line.timeout(ticket))


def hopeless(route: wire.Route | None) -> Refusal | None:
    """The refusal for a chute that will not become ready by waiting; None if it may."""
    if route is None:
        return Refusal(404, "model_not_found", "The chute has been deleted.", param="model")
    if route.phase in ("failed", "stopped") and not route.asleep:
        return answers.not_ready(route)
    return None


class Upstreams(Generic[Waiter]):
    """Every instance that the current table names, by chute."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._groups: dict[str | None, Group[Waiter]] = {}
        self._unsettled: list[Group[Waiter]] = []
        """Groups whose waiting requests have not heard of the last swap, those it took away included."""

    def group(self, chute_id: str | None) -> Group[Waiter]:
        """The instances of a chute; of the control API for None."""
        return self._groups[chute_id]

    def swap(self, table: wire.Table, now: float) -> None:
        """Take over a table; `settle` comes after it, once all else has changed too.

        Args:
            now: monotonic seconds.
        """
        gone = self._groups
        self._groups = {}
        control = [table.control] if table.control else []
        wanted: list[tuple[str | None, str, wire.Route | None, list[wire.Upstream]]] = [
            (None, "the control API", None, control)
        ]
        wanted += [(route.chute_id, route.name, route, route.upstreams) for route in table.routes]
        for chute_id, name, route, upstreams in wanted:
            group = gone.pop(chute_id, None) or Group(
                chute_id, Waiting[Waiter](name, self._board, _column(route)), self._board
            )
            self._groups[chute_id] = group
            group.swap(route, upstreams, now)
        for group in gone.values():
            group.swap(None, [], now)
        self._unsettled = [*self._groups.values(), *gone.values()]

    def settle(self, now: float) -> None:
        for group in self._unsettled:
            group.settle(now)
        self._unsettled = []

    def serve(self, now: float) -> None:
        """Look for places that other workers have freed; called often, and cheap while nobody waits."""
        for group in self._groups.values():
            if len(group.line):
                group.serve(now)

    def sweep(self, tick: int, now: float) -> None:
        for group in list(self._groups.values()):
            group.sweep(tick, now)

    def close(self) -> None:
        for group in self._groups.values():
            for instance in group.instances:
                instance.retire()


def _column(route: wire.Route | None) -> int:
    """Where the line of a chute is counted. That of the control API, where nobody waits, has none."""
    return QUEUED_AT + (route.slot if route is not None else 0)
