"""What is kept of one exchange while it lasts, and told once when it has ended: to the meter, to its key's
quota, to the score of its chute."""

from __future__ import annotations

from chutes import wire
from chutes.gateway import limits
from chutes.gateway.meter import monotonic
from chutes.gateway.orders import Order
from chutes.gateway.relay import AnswerRelay
from chutes.gateway.scores import scored
from chutes.gateway.shapes import Usage
from chutes.gateway.surroundings import Surroundings
from chutes.gateway.upstream import Instance


class Account:
    """Times are monotonic, and told relative to the start."""

    # Defaults stand here: most exchanges change few of them, and setting costs more than reading.
    counted = False
    """Its key's quota has it in flight."""
    tried: Instance | None = None
    """The last instance that was."""
    retries = 0
    queued = 0.0
    """Seconds in the line."""
    _first = 0.0
    """When the first byte of the answer went out."""
    _last = 0.0
    """When the last part of a stream did."""
    _parts = 0
    """Parts with a body that the client has got."""
    _closed = False

    def __init__(self, worker: Surroundings) -> None:
        self._worker = worker
        self.started = monotonic()

    def part(self, event_stream: bool) -> None:
        """The client gets a part of the answer's body that is not the last one."""
        now = monotonic()
        if not self._first:
            self._first = now
        elif event_stream:
            self._worker.meter.gap(now - self._last)
        self._last = now
        self._parts += 1

    def last_part(self) -> None:
        self._parts += 1

    def close(self, order: Order, relay: AnswerRelay, status: int, error: str = "") -> None:
        """Count what has ended; whoever says so first is heard."""
        if self._closed:
            return
        self._closed = True
        worker, instance = self._worker, self.tried
        chunks = self._parts if relay.event_stream else 0
        standing = order.standing
        started, now = self.started, monotonic()
        first = (self._first or now) - started if relay.begun else 0.0
        # A stream that was cut has told nothing: engines send some one token a chunk.
        usage = relay.usage or Usage(0, 0 if order.draws else max(0, chunks - 1), 0)
        if self.counted:
            worker.quota.end(standing.key, usage[0] + usage[1], now)
        if chunks > 1 and usage[1]:
            order.group.score = scored(order.group.score, first, now - started, usage[1])
        worker.meter.add(
            wire.Record(
                relay.request_id.decode(),
                standing.key.key_id,
                order.group.chute_id or "",
                instance.instance_id if instance is not None else "",
                standing.method,
                standing.path,
                order.model[: limits.NAME_CHARACTERS],
                status,
                error,
                worker.meter.started(started),
                self.queued,
                first,
                now - started,
                usage[0],
                usage[1],
                usage[2],
                chunks,
                self.retries,
                order.stream,
            )
        )
