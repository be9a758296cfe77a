"""Bounds on everything that a stranger, or a sick engine, could otherwise use up.

Times are seconds and are checked by one sweep a second over all connections: a timer per request would
cost more than parsing one. They are therefore exact to about a second.

A compiled core has what is `Final` built in. The few that are not are set to less by tests, as nobody waits
minutes for one.
"""

from typing import Final

HEAD_BYTES: Final = 32 * 1024
"""A request or response head. Others allow 8 to 64 KiB; a key and some trace headers need under 4."""
HEADER_COUNT: Final = 100
"""Lines in a head; the default of Apache and of Python's http.client."""
CHUNK_LINE_BYTES: Final = 256
"""A chunk's size line with its extensions, which no client of ours has ever sent."""
CHUNK_OVERHEAD_BYTES: Final = 16 * 1024
"""Of size lines and line ends in a request's body, beyond half of its content: reading a chunk takes some
3 µs however small it is, so 32 MiB in chunks of two bytes would take most of a minute (Go's net/http has
such a bound since CVE-2023-39326)."""
TRAILER_BYTES: Final = 8 * 1024
"""What may follow the last chunk."""
PIPELINE_BYTES: Final = 64 * 1024
"""Of requests that a client sends ahead of its answers; beyond it we stop reading, and TCP tells it."""
HELD_CHUNK_BYTES: Final = 64 * 1024
"""Of an SSE chunk kept back until whole (see relay.py). Engines send some 300 bytes a chunk."""

GATHERED_BYTES: Final = 1024 * 1024
"""Of an answer that is held until whole because its length will change. Longer ones keep one name for
thoughts; a million characters are some 250,000 tokens."""

HEAD_SECONDS: Final = 10
"""From a head's first byte to its last: a slowloris gets no more."""
IDLE_SECONDS: Final = 75
"""Before the first request and between requests. Above the 60 s of common load balancers, which must be
the ones to close."""
BODY_STALL_SECONDS: Final = 20
"""Without one byte of an announced body."""
BODY_SECONDS: Final = 600
"""For a whole body: 32 MiB at half a megabit a second."""
LINGER_SECONDS: Final = 2
"""Reading on after a refusal, so that the kernel does not reset the connection under our answer."""
READER_STALL_SECONDS: Final = 120
"""A client that takes nothing while we have an answer for it; its engine is held up that long."""
ANSWER_SECONDS: Final = 1800
"""An engine's silence: a long non-streamed answer is one silence, and the published platform's bound."""
KEPT_AT_ONCE: Final = 64
"""Pictures that one instance is asked for at once, beyond its own concurrency: their URLs need no key."""
CONNECT_SECONDS: Final = 5
"""For a TCP connection to an instance; across a data centre it takes 1 ms."""
UPSTREAM_IDLE_SECONDS: Final = 4
"""Of a pooled connection. uvicorn (so vLLM and SGLang) closes at 5, and we want to be first."""
DRAIN_SECONDS: Final = 10
"""For requests in flight when control has gone without saying how long they may take."""

CONNECTIONS: Final = 16_384
"""Per worker: some 3 KB each when idle, so 50 MB at worst."""
BACKLOG: Final = 4096
"""Connections that the kernel holds for us; it trims this to net.core.somaxconn."""
RETRY_AFTER_SECONDS: Final = 5
"""Told to clients of a chute that is starting: often enough to be prompt, seldom enough to be no load."""

RECORDS_HELD: Final = 512
"""Requests that ended, before control is told at once: some 100 KB in one message."""
FLUSH_SECONDS: Final = 0.25
"""Between two messages to control: what a killed worker loses of the metering at most."""
NAME_CHARACTERS: Final = 200
"""Of a path or model name as it was asked for, in a record."""

QUEUE_LENGTH = 1000
"""Requests that wait for one chute, over all workers. Each holds its body and a connection; and whoever
would be the thousandth in line for an engine that answers ten a second is better off told at once."""
QUEUE_OTHERS_SHARE: Final = 0.25
"""Of that length, what a key cannot take that already holds more than half of the line."""
QUEUE_SECONDS = 50
"""Waiting for a busy chute. A proxy in front of us commonly gives up after 60 s without a byte (nginx's
proxy_read_timeout), and its 504 says less than our 429."""
WAKE_SECONDS = 540
"""Waiting for a chute that starts or wakes: below the 600 s after which the OpenAI SDK gives up, so that
it still hears why."""

BREAKER_FAILURES: Final = 5
"""Different requests in a row that an instance answered with a 5xx or broke off (Envoy's consecutive_5xx
is 5, the published platform's bound 7). Above 3, the tries that the OpenAI SDK gives one request."""
BREAKER_SECONDS: Final = 1
"""An instance that is left out for the first time is tried again after this long; then doubled …"""
BREAKER_MOST_SECONDS: Final = 30
"""… up to this (Envoy's base_ejection_time): control finds a dead engine long before."""
BREAKER_MEMORY_SECONDS: Final = 60
"""Left out again this soon after it came back, the doubling goes on where it was."""
MISSED_SECONDS: float = 50.0
"""For a request that reached no instance to go on trying: one that ended is started again, and control hears
of it at about the same time. With WAKE_SECONDS below the 600 s of the OpenAI SDK."""
PROBE_SECONDS: Final = 10
"""For the one request that tries an instance again to say how it went; then another one may try."""

RAMP_SECONDS: Final = 30
"""In which a new instance comes to its full share: it compiles and warms caches on its first requests."""
RAMP_LEAST: Final = 0.1
"""Of a full share, what the newest gets at once (Envoy's min_weight_percent)."""
BOUND_FACTOR: Final = 1.25
"""Times the mean load, up to which an instance keeps its prefixes (brpc's default; see balance.py).
1.1 costs cache hits, 1.5 evenness."""
BOUND_SLACK: Final = 2
"""Requests above that: at a mean of one or two, a quarter more is nothing, and in a small batch two more
requests cost an engine less than computing one prompt again."""
PREFIX_SEARCH_BYTES: Final = 32 * 1024
"""Of a request's messages, looked through for where the first answer begins: 14 µs at worst, on
a request whose prompt costs an engine 100 ms."""
PREFIX_HASH_BYTES: Final = 256
"""Before that place, hashed."""
LINE_SECONDS: Final = 0.03
"""Between two looks for a place that another worker has freed, while somebody waits for one."""
COMMENT_SECONDS: Final = 10
"""Between two comments to a client that waits and wants to see life; idle bounds of proxies start at 30."""
OUTBOX_BYTES: Final = 256 * 1024
"""Of what a turn of the loop has to send before some is sent: a transport can only say that its client does
not read when it is given something."""
CHANNEL_SECONDS: Final = 2
"""For control to take the last records of a worker that ends."""
