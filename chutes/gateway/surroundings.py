"""What an exchange sees of the rest of its worker: its client, and what all exchanges share.

Bases, not protocols: compiled code finds a method of a base by its place, and not by its name. `ABCMeta`, not
`ABC`: a base that is not compiled would give every instance a `__dict__`.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from typing import Any

from chutes import wire
from chutes.gateway.answers import Refusal
from chutes.gateway.meter import Meter
from chutes.gateway.outbox import Outbox
from chutes.gateway.quota import Quota
from chutes.gateway.upstream import Group, Instance


class Client(metaclass=ABCMeta):
    """What an exchange asks of the connection that it serves."""

    __slots__ = ()

    @abstractmethod
    def pass_on(self, data: bytes) -> None:
        """Send a part of the answer."""

    @abstractmethod
    def complete(self, data: bytes, keep_alive: bool) -> None:
        """Send the last part; the exchange is over."""

    @abstractmethod
    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error; the exchange is over and the client has got no byte of it."""

    @abstractmethod
    def break_off(self) -> None:
        """Break the connection; the exchange is over."""


class Surroundings:
    """What an exchange shares with all others of the worker."""

    def __init__(self, quota: Quota, send: Callable[[wire.FromWorker], None]) -> None:
        self.quota = quota
        self.meter = Meter(send)
        self._send: Callable[[wire.UpstreamLost | wire.Wake], None] = send
        self.outbox = Outbox()
        self.tick = 0
        """Seconds since the start, as the sweep counts them; what bounds on time are measured in."""

    def wake(self, group: Group[Any]) -> None:
        """Have its chute started if it sleeps: it may have been put to sleep while a request waited."""
        if group.route is not None and group.route.asleep and group.woken != self.tick:
            group.woken = self.tick
            self._send(wire.Wake(group.route.chute_id))

    def report(self, instance: Instance, error: str) -> None:
        """Tell control, at most once a second and instance: a thousand requests may break at once."""
        if instance.chute_id is not None and instance.last_report != self.tick:
            instance.last_report = self.tick
            self._send(wire.UpstreamLost(instance.chute_id, instance.upstream.instance_id, error))
