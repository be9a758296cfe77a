"""Bounds on everything that a stranger, or a sick engine, could otherwise use up.

Times are seconds and are checked by one sweep a second over all connections: a timer per request would
cost more than parsing one. They are therefore exact to about a second.
"""

HEAD_BYTES = 32 * 1024
"""A request or response head. Others allow 8 to 64 KiB; a key and some trace headers need under 4."""
HEADER_COUNT = 100
"""Lines in a head; the default of Apache and of Python's http.client."""
CHUNK_LINE_BYTES = 256
"""A chunk's size line with its extensions, which no client of ours has ever sent."""
TRAILER_BYTES = 8 * 1024
"""What may follow the last chunk."""
PIPELINE_BYTES = 64 * 1024
"""Of requests that a client sends ahead of its answers; beyond it we stop reading, and TCP tells it."""
HELD_CHUNK_BYTES = 64 * 1024
"""Of an SSE chunk kept back until whole (see relay.py). Engines send some 300 bytes a chunk."""

HEAD_SECONDS = 10
"""From a head's first byte to its last: a slowloris gets no more."""
IDLE_SECONDS = 75
"""Before the first request and between requests. Above the 60 s of common load balancers, which must be
the ones to close."""
BODY_STALL_SECONDS = 20
"""Without one byte of an announced body."""
BODY_SECONDS = 600
"""For a whole body: 32 MiB at half a megabit a second."""
LINGER_SECONDS = 2
"""Reading on after a refusal, so that the kernel does not reset the connection under our answer."""
READER_STALL_SECONDS = 120
"""A client that takes nothing while we have an answer for it; its engine is held up that long."""
ANSWER_SECONDS = 1800
"""An engine's silence: a long non-streamed answer is one silence, and the published platform's bound."""
CONNECT_SECONDS = 5
"""For a TCP connection to an instance; across a data centre it takes 1 ms."""
UPSTREAM_IDLE_SECONDS = 4
"""Of a pooled connection. uvicorn (so vLLM and SGLang) closes at 5, and we want to be first."""
DRAIN_SECONDS = 10
"""For requests in flight when control has gone without saying how long they may take."""

CONNECTIONS = 16_384
"""Per worker: some 3 KB each when idle, so 50 MB at worst."""
BACKLOG = 4096
"""Connections that the kernel holds for us; it trims this to net.core.somaxconn."""
RETRY_AFTER_SECONDS = 5
"""Told to clients of a chute that is starting: often enough to be prompt, seldom enough to be no load."""

RECORDS_HELD = 512
"""Requests that ended, before control is told at once: some 100 KB in one message."""
FLUSH_SECONDS = 0.25
"""Between two messages to control: what a killed worker loses of the metering at most."""
NAME_CHARACTERS = 200
"""Of a path or model name as it was asked for, in a record."""
