"""What is known of one request when it is over: the raw material of every measure, kept whole."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, omit_defaults=True):
    """One request. Every time is in seconds since the start of its run, one clock for all clients."""

    number: int
    """Its place in the workload, from 0."""

    target: str
    """The name of the target that was asked, as runs may alternate between several."""

    scheduled: float
    """When the schedule wanted it sent. In a closed loop, when its turn came. Latencies count from here."""

    sent: float
    """When it was written, or its connection begun: how long the server takes to accept one is the server's.
    `sent - scheduled` is the client's own lag."""

    first: float | None = None
    """When the first token (content, thought or tool call, not an empty role) arrived; None if none did."""

    times: list[float] = msgspec.field(default_factory=list)
    """When each later event that carried tokens arrived; `first` is not among them."""

    last: float | None = None
    """When the last token arrived."""

    ended: float = 0.0
    """When the answer was complete, or given up."""

    status: int = 0
    """HTTP status; 0 when there was no answer."""

    error: str = ""
    """Empty when it went well, else its kind: refused, broken, timeout, http_429, truncated, …"""

    message: str = ""
    """What the server said of an error, shortened; never a prompt."""

    input_tokens: int | None = None
    """As the server counted them."""

    output_tokens: int | None = None
    cached_tokens: int | None = None

    wanted_input_tokens: int | None = None
    wanted_output_tokens: int | None = None
    """What the workload asked for, where it asked for an exact length."""

    images: int = 0
    """Images in the answer."""

    conversation: int | None = None
    """Of a workload of several turns: which conversation, and `turn` in it from 0."""

    turn: int = 0

    client: int = 0
    """Which client process asked."""
