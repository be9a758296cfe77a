"""What an exchange sees of the rest of its worker: its client, and what all exchanges share.

Bases, not protocols: compiled code finds a method of a base by its place, and not by its name.
"""

from __future__ import annotations

from collections.abc import Callable

from chutes import wire
from chutes.gateway.answers import Refusal
from chutes.gateway.meter import Meter
from chutes.gateway.outbox import Outbox
from chutes.gateway.quota import Quota


class Client:
    """What an exchange asks of the connection that it serves."""

    __slots__ = ()

    def pass_on(self, data: bytes) -> None:
        """Send a part of the answer."""
        raise NotImplementedError

    def complete(self, data: bytes, keep_alive: bool) -> None:
        """Send the last part; the exchange is over."""
        raise NotImplementedError

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error; the exchange is over and the client has got no byte of it."""
        raise NotImplementedError

    def break_off(self) -> None:
        """Break the connection; the exchange is over."""
        raise NotImplementedError


class Surroundings:
    """What an exchange shares with all others of the worker."""

    def __init__(self, quota: Quota, send: Callable[[wire.FromWorker], None]) -> None:
        self.quota = quota
        self.meter = Meter(send)
        self.report: Callable[[wire.UpstreamLost | wire.Wake], None] = send
        self.outbox = Outbox()
        self.tick = 0
        """Seconds since the start, as the sweep counts them; what bounds on time are measured in."""
