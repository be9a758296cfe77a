"""All client connections of a worker: what they share, and what is done with all of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from chutes import wire
from chutes.gateway.client import ClientConnection
from chutes.gateway.heads import AnswerHeads
from chutes.gateway.http import REQUEST_ID, RequestHead
from chutes.gateway.meter import monotonic
from chutes.gateway.quota import Quota
from chutes.gateway.service import Service
from chutes.gateway.surroundings import Surroundings


class Clients(Surroundings):
    """The set of them."""

    def __init__(self, service: Service, send: Callable[[wire.FromWorker], None]) -> None:
        super().__init__(Quota(service.board), send)
        self.service = service
        self.no_heads = AnswerHeads()
        """What an answer is read with until its engine is chosen."""
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self.emptied: Callable[[], None] | None = None
        """Called when the last connection of a draining worker has gone."""
        self._prefix = f"req-{os.urandom(6).hex()}-".encode()
        self._answered = 0

    def accept(self) -> Any:
        """A new connection's protocol."""
        return ClientConnection(self)

    def left(self, connection: ClientConnection) -> None:
        """It has ended."""
        self.connections.discard(connection)
        self._tell_if_empty()

    def request_id(self, request: RequestHead | None) -> bytes:
        """The client's own, if it can stand in a log line; else one that no other worker will give."""
        own = request.headers.get(b"x-request-id") if request is not None else None
        if (
            own is not None and REQUEST_ID.fullmatch(own) and b"cpk_" not in own
        ):  # ids go to logs, keys may not
            return own
        self._answered += 1
        return b"%b%d" % (self._prefix, self._answered)

    def sweep(self) -> None:
        """Enforce the bounds on time; called once a second."""
        self.tick += 1
        for connection in list(self.connections):
            connection.sweep(self.tick)
        self.service.upstreams.sweep(self.tick, monotonic())

    def drain(self) -> None:
        """Close what is idle now, and every other connection after the answer that it waits for."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()
        self._tell_if_empty()

    def abort(self) -> None:
        for connection in list(self.connections):
            connection.abort()

    def _tell_if_empty(self) -> None:
        if self.draining and not self.connections and self.emptied is not None:
            self.emptied()
