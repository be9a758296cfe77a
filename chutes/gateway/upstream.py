"""Instances and the connections to them.

An `Instance` outlives the table that named it for as long as requests are on it; a `Group` outlives every
table that names its chute, so a retry chooses among the instances of now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from chutes import wire
from chutes.board import Board
from chutes.gateway import limits
from chutes.gateway.balance import least_loaded
from chutes.gateway.heads import AnswerHeads

if TYPE_CHECKING:
    from chutes.gateway.exchange import Exchange

PENALTY = 1 << 20
"""Load that a just failed instance seems to have, until the next sweep. Without it, a dead instance would
be the least loaded of all and be tried first by every request."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to an instance; it belongs to one exchange, or is idle in the instance's pool."""

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
        "_slot",
        "chute_id",
        "fields",
        "heads",
        "last_report",
        "penalty",
        "retired",
        "upstream",
    )

    def __init__(self, chute_id: str | None, upstream: wire.Upstream, board: Board) -> None:
        self.chute_id = chute_id
        """None for the control API."""
        self.upstream = upstream
        host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
        self.fields = f"Host: {host}:{upstream.port}\r\nAuthorization: Bearer {upstream.api_key}\r\n".encode(
            "latin-1"
        )
        """Header lines that every request to it carries."""
        self.heads = AnswerHeads()
        self.penalty = 0
        self.last_report = -1
        """Tick of the last `UpstreamLost` about it."""
        self.retired = False
        """No table names it any more."""
        self._idle: list[UpstreamConnection] = []
        self._board = board
        self._mine = board.mine
        self._slot = upstream.slot

    @property
    def in_flight(self) -> int:
        """Requests on it, of all workers."""
        return self._board.total(self._slot)

    @property
    def load(self) -> int:
        return self.in_flight + self.penalty

    def begin(self) -> None:
        self._mine[self._slot] += 1

    def end(self) -> None:
        self._mine[self._slot] -= 1

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
        async with asyncio.timeout(limits.CONNECT_SECONDS):
            host, port = self.upstream.host, self.upstream.port
            _, connection = await loop.create_connection(lambda: UpstreamConnection(self), host, port)
        return connection

    def sweep(self, tick: int) -> None:
        self.penalty = 0
        stale = [c for c in self._idle if tick - c.idle_since >= limits.UPSTREAM_IDLE_SECONDS]
        for connection in stale:
            self._idle.remove(connection)
            connection.transport.close()

    def retire(self) -> None:
        self.retired = True
        while self._idle:
            self._idle.pop().transport.close()


class Group:
    """The instances of one chute, and whose turn it is among equals."""

    __slots__ = ("_turn", "chute_id", "instances")

    def __init__(self, chute_id: str | None) -> None:
        self.chute_id = chute_id
        self.instances: list[Instance] = []
        self._turn = 0

    def choose(self, avoid: Sequence[Instance] = ()) -> Instance | None:
        candidates = [i for i in self.instances if i not in avoid] if avoid else self.instances
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        self._turn += 1
        return candidates[least_loaded([instance.load for instance in candidates], self._turn)]


class Upstreams:
    """Every instance that the current table names, by chute."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._groups: dict[str | None, Group] = {}

    def group(self, chute_id: str | None) -> Group:
        """The instances of a chute; of the control API for None."""
        return self._groups[chute_id]

    def swap(self, table: wire.Table) -> None:
        """Take over a table: keep the instances that stay, with their connections; retire the rest."""
        wanted: dict[str | None, list[wire.Upstream]] = {
            route.chute_id: route.upstreams for route in table.routes
        }
        wanted[None] = [table.control] if table.control else []
        groups: dict[str | None, Group] = {}
        for chute_id, upstreams in wanted.items():
            group = groups[chute_id] = self._groups.get(chute_id) or Group(chute_id)
            known = {instance.upstream: instance for instance in group.instances}
            group.instances = [
                known.pop(upstream, None) or Instance(chute_id, upstream, self._board)
                for upstream in upstreams
            ]
            for instance in known.values():
                instance.retire()
        for chute_id, group in self._groups.items():
            if chute_id not in wanted:
                self._retire_all(group)
        self._groups = groups

    def sweep(self, tick: int) -> None:
        self._each(lambda instance: instance.sweep(tick))

    def close(self) -> None:
        self._each(Instance.retire)

    def _each(self, action: Callable[[Instance], None]) -> None:
        for group in self._groups.values():
            for instance in group.instances:
                action(instance)

    def _retire_all(self, group: Group) -> None:
        for instance in group.instances:
            instance.retire()
        group.instances = []
