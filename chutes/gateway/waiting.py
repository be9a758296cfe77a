"""The line of requests that wait for one chute: for a free place on an instance, or until it starts.

Keys take turns, and the requests of one key keep their order: a key that sends a thousand at once holds up
itself, not the others (fair queuing, Nagle, RFC 970). The line is bounded, and so is what one key can take
of it; each request has a deadline.

Each worker has its own line of a chute; how long all of them are together stands on the board. A place that
becomes free goes to whoever looks first: a worker looks when one of its own requests ends, and,
while it has a line, every now and then for what the others have freed.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import Generic, TypeVar

from chutes.board import Board
from chutes.gateway import limits
from chutes.gateway.answers import Refusal

Item = TypeVar("Item")


class Why(Enum):
    """What a request waits for when it joins, and for how many seconds at most. One that waits for a start
    keeps its longer time if the chute is busy once it has started."""

    BUSY = limits.QUEUE_SECONDS
    STARTING = limits.WAKE_SECONDS


class Ticket(Generic[Item]):
    """A request's place in the line."""

    __slots__ = ("item", "key_id", "since", "waiting", "why")

    def __init__(self, item: Item, key_id: str, why: Why, since: float) -> None:
        self.item = item
        self.key_id = key_id
        self.why = why
        self.since = since
        self.waiting = True
        """Not popped, expired or cancelled yet."""


class Waiting(Generic[Item]):
    """The line of one chute in one worker. Every operation takes the same time however long it is.

    Args:
        name: of the chute, for messages.
        board, column: where this worker counts its line, and reads those of all.
    """

    __slots__ = ("_board", "_by_key", "_by_why", "_column", "_count", "name")

    def __init__(self, name: str, board: Board | None = None, column: int = 0) -> None:
        self.name = name
        self._board = board
        self._column = column
        self._count = 0
        self._by_key: OrderedDict[str, OrderedDict[Ticket[Item], None]] = OrderedDict()
        """The line of each key, the one whose turn it is first. Linked lists with an index: a client may go
        away from anywhere in it."""
        self._by_why: dict[Why, OrderedDict[Ticket[Item], None]] = {why: OrderedDict() for why in Why}
        """The same tickets by arrival, which for each kind is the order of their deadlines."""

    def __len__(self) -> int:
        return self._count

    def total(self) -> int:
        """How many wait in all workers."""
        return self._board.total(self._column) if self._board is not None else self._count

    def add(self, item: Item, key_id: str, why: Why, now: float) -> Ticket[Item]:
        """Join the line.

        Raises:
            Refusal: 429 `queue_full`.
        """
        line = self._by_key.get(key_id)
        if self._full(len(line) if line is not None else 0):
            raise self._queue_full()
        ticket = Ticket(item, key_id, why, now)
        if line is None:
            line = self._by_key[key_id] = OrderedDict()
        line[ticket] = None
        self._by_why[why][ticket] = None
        self._changed(1)
        return ticket

    def first(self) -> Ticket[Item] | None:
        """Whose turn it is. It stays in the line, as there may be no place for it yet."""
        return next(iter(next(iter(self._by_key.values())))) if self._count else None

    def pop(self) -> Ticket[Item] | None:
        """The first, out of the line; its key has the next turn after all others."""
        ticket = self.first()
        if ticket is not None:
            self._by_key.move_to_end(ticket.key_id)
            self._remove(ticket)
        return ticket

    def cancel(self, ticket: Ticket[Item]) -> None:
        """Leave the line, as the client has gone. Too late does no harm."""
        if ticket.waiting:
            self._remove(ticket)

    def expired(self, now: float) -> list[Ticket[Item]]:
        """Those whose deadline has come; they are out of the line."""
        gone: list[Ticket[Item]] = []
        for why, line in self._by_why.items():
            while line:
                ticket = next(iter(line))
                if now - ticket.since < why.value:
                    break
                self._remove(ticket)
                gone.append(ticket)
        return gone

    def clear(self) -> list[Ticket[Item]]:
        """All, in the order of their turns; they are out of the line. For a chute that failed or went."""
        gone: list[Ticket[Item]] = []
        while (ticket := self.pop()) is not None:
            gone.append(ticket)
        return gone

    def timeout(self, ticket: Ticket[Item]) -> Refusal:
        """The refusal for one whose deadline has come."""
        if ticket.why is Why.STARTING:
            return Refusal(
                503,
                "queue_timeout",
                f"{self.name!r} has not started within {limits.WAKE_SECONDS} s.",
                "`chutes logs` says what it is doing; ask again when it is ready.",
                headers=_RETRY,
            )
        return Refusal(
            429,
            "queue_timeout",
            f"All instances of {self.name!r} were busy for {limits.QUEUE_SECONDS} s.",
            "Send fewer requests at once, or give the chute more instances or more concurrency.",
            headers=_RETRY,
        )

    def failed(self, detail: str) -> Refusal:
        """The refusal for all who wait for a chute that failed; asking again would not help."""
        return Refusal(
            503,
            "chute_not_ready",
            f"{self.name!r} failed to start: {detail}",
            "`chutes logs` has the whole story; deploy it again when that is mended.",
            headers=b"x-should-retry: false\r\n",
        )

    def _full(self, of_key: int) -> bool:
        total = self.total()
        if total >= limits.QUEUE_LENGTH:
            return True
        reserved = limits.QUEUE_LENGTH * (1 - limits.QUEUE_OTHERS_SHARE)
        return total >= reserved and 2 * of_key > self._count

    def _queue_full(self) -> Refusal:
        return Refusal(
            429,
            "queue_full",
            f"{self.total()} requests wait for {self.name!r} already.",
            "Try again later, send fewer at once, or give the chute more instances.",
            headers=_RETRY,
        )

    def _remove(self, ticket: Ticket[Item]) -> None:
        ticket.waiting = False
        del self._by_why[ticket.why][ticket]
        line = self._by_key[ticket.key_id]
        del line[ticket]
        if not line:
            del self._by_key[ticket.key_id]
        self._changed(-1)

    def _changed(self, by: int) -> None:
        self._count += by
        if self._board is not None:
            self._board.mine[self._column] += by


_RETRY = b"Retry-After: %d\r\n" % limits.RETRY_AFTER_SECONDS
