"""A remembered head must never be answered differently from one that is read strictly, and never worse than
the strict reading of all its bytes at once."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chutes import wire
from chutes.board import Board
from chutes.gateway.clients import Clients
from chutes.gateway.service import Service
from chutes.gateway.upstream import UpstreamConnection

MAX_BODY = 300
BOARD = Board(Board.create(rows=1).fd, row=0)
PATHS = {"/v1/completions": "/v1/completions", "/v1/chat/completions": "/v1/chat/completions"}
UPSTREAM = wire.Upstream("i", "127.0.0.1", 1, "k")
TABLE = wire.Table(
    [
        wire.Route(
            "m", "org/M", PATHS, [UPSTREAM], "ready", "", 1, "vllm", slug="m-slug", capabilities=["chat"]
        )
    ],
    [
        wire.Key("one", wire.key_digest("cpk_one")),
        wire.Key("two", wire.key_digest("cpk_two"), chute_ids=["other"]),
        wire.Key("old", wire.key_digest("cpk_old"), expires=1.0),
    ],
)
LOOP = asyncio.new_event_loop()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n<answer>"
BODY = b'{"model":"org/M","stream":true}'
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer cpk_one\r\nUser-Agent: a\r\n"
    b"Content-Length: %d\r\nAccept: */*\r\n\r\n"
)
WARM = HEAD % len(BODY) + BODY
REQUEST_ID = re.compile(rb"req-[0-9a-f]+-[0-9]+")


class Transport:
    """Takes what is written; nothing is ever blocked."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Engine(Transport):
    """Takes orders on a connection, and answers each at once."""

    def __init__(self, connection: UpstreamConnection) -> None:
        super().__init__()
        self._connection = connection
        self.orders: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.orders.append(REQUEST_ID.sub(b"req", data))
        self._connection.data_received(ANSWER)


Outcome = tuple[bytes, list[tuple[Any, ...]], bool]


def outcome(data: bytes, cuts: list[int], *, warm: bool) -> Outcome:
    """What comes back for these bytes, what engines get and is metered, and whether the connection ended."""
    return LOOP.run_until_complete(_outcome(data, cuts, warm=warm))


async def _outcome(data: bytes, cuts: list[int], *, warm: bool) -> Outcome:
    service = Service(MAX_BODY, BOARD)
    service.swap(TABLE)
    told: list[Any] = []
    clients = Clients(service, told.append)
    upstream = UpstreamConnection(service.upstreams.group("m").instances[0])
    engine = Engine(upstream)
    upstream.connection_made(cast(asyncio.Transport, engine))
    upstream.instance.give_back(upstream, 0)
    connection, transport = clients.accept(), Transport()
    connection.connection_made(cast(asyncio.Transport, transport))

    async def feed(part: bytes) -> None:
        connection.data_received(part)
        while clients.outbox.waits:
            await asyncio.sleep(0)

    if warm:
        for _ in range(3):
            await feed(WARM)
        assert connection._known is not None
        clients.meter.flush()
        transport.written = b""
        engine.orders.clear()
        told.clear()
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        if not transport.closing:
            await feed(data[start:end])
    clients.meter.flush()
    metered = [(r.key_id, r.path, r.model, r.status, r.stream) for usage in told for r in usage.records]
    orders = list(zip(engine.orders, metered, strict=True))
    return REQUEST_ID.sub(b"req", transport.written), orders, transport.closing


def headed(line: bytes, body: bytes = BODY) -> bytes:
    """The warm request with another line for its Content-Length."""
    return WARM.replace(b"Content-Length: %d" % len(BODY), line, 1).replace(BODY, body)


def with_line(line: bytes) -> bytes:
    return WARM.replace(b"Accept: */*\r\n", b"Accept: */*\r\n" + line + b"\r\n")


N = len(BODY)
NEAR = [
    WARM,
    *(
        headed(b"Content-Length: " + digits)
        for digits in (
            b"007",
            b"0%d" % N,
            b"00000000000000%d" % N,
            b"+%d" % N,
            b"-%d" % N,
            b" %d" % N,
            b"%d " % N,
            b"\t%d" % N,
            b"%d,%d" % (N, N),
            b"%d, %d" % (N, N),
            b"%d\x00" % N,
            b"%d\n" % N,
            b"%d\r" % N,
            b"0x1f",
            b"",
            b" ",
            b"1e1",
            b"%d" % (N - 1),
            b"%d" % (N + 1),
            b"0",
            b"9" * 15,
            b"9" * 16,
            b"9" * 40,
            b"\xd9\xa3",
            b"3_1",
            b"%d.0" % N,
        )
    ),
    *(
        headed(line % N)
        for line in (
            b"content-length: %d",
            b"Content-length: %d",
            b"CONTENT-LENGTH: %d",
            b"Content-Length:%d",
            b"Content-Length : %d",
            b" Content-Length: %d",
            b"Content-Length: %d\r\nContent-Length: 0",
            b"Content-Length: %d\r\ncontent-length: 1",
            b"Content-Length:0\r\nContent-Length: %d",
            b"Content_Length: %d",
            b"Content-Length: %d\r\n Content-Length: 2",
            b"X: \r\nContent-Length: %d",
            b"Content-Length: %d\r\nExpect: 100-continue",
            b"Transfer-Encoding: chunked\r\nContent-Length: %d",
            b"Content-Length: %d\r\nTransfer-Encoding: chunked",
            b"Content-Length: %d\nX: y",
            b"Content-Length: %d\r\r\nX: y",
        )
    ),
    with_line(b"Transfer-Encoding: chunked"),
    with_line(b"Content-Length: %d" % N),
    with_line(b"CONTENT-LENGTH: %d" % N),
    with_line(b"Connection: close"),
    with_line(b"X-Enable-Thinking: true"),
    with_line(b"X-Request-Id: mine"),
    with_line(b"X-API-Key: cpk_two"),
    with_line(b"Authorization: Bearer cpk_two"),
    WARM.replace(b"cpk_one", b"cpk_two"),
    WARM.replace(b"cpk_one", b"cpk_old"),
    WARM.replace(b"cpk_one", b"cpk_onE"),
    WARM.replace(b"/v1/completions", b"/v1/chat/completions"),
    WARM.replace(b"/v1/completions", b"/v1/completions?x=1"),
    WARM.replace(b"/v1/completions", b"/m-slug/v1/completions"),
    WARM.replace(b"POST", b"GET"),
    WARM.replace(b"HTTP/1.1", b"HTTP/1.0"),
    WARM.replace(b"Host: x", b"Host: m-slug.x"),
    WARM.replace(b"\r\n", b"\n"),
    WARM.replace(b"\r\nUser-Agent", b"\nUser-Agent"),
    WARM.replace(b"\r\n\r\n", b"\r\n\n"),
    WARM.replace(b"\r\n\r\n", b"\n\r\n"),
    b"\r\n" + WARM,
    b"\r\n\r\n" + WARM,
    b"\n" + WARM,
    b" " + WARM,
    WARM + WARM,
    WARM + b"\r\n",
    WARM + b"\r\n" + WARM,
    HEAD % 0,
    (HEAD % 0) + WARM,
    HEAD % (MAX_BODY + 1) + b"x" * (MAX_BODY + 1),
    HEAD % MAX_BODY + b"x" * MAX_BODY,
    b"GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" + WARM,
]


@pytest.mark.parametrize("data", NEAR)
def test_near_misses(data: bytes) -> None:
    strict = outcome(data, [], warm=False)
    assert outcome(data, [], warm=True) == strict
    for cut in range(1, len(data), 3):
        assert no_more_than(outcome(data, [cut], warm=True), strict), f"cut at {cut}"


def no_more_than(got: Outcome, strict: Outcome) -> bool:
    """Whether the same requests were served in the same way. A refusal that the head alone decides ends the
    connection if the body had not come yet; so what follows it may be missing, and nothing else differ."""
    answers, strictly = statuses(got), statuses(strict)
    return (
        answers == strictly[: len(answers)]
        and got[1] == strict[1][: len(got[1])]
        and (len(answers) == len(strictly) or got[2])
    )


def statuses(got: Outcome) -> list[bytes]:
    return [found for found in re.findall(rb"HTTP/1.1 (\d+)|<answer>", got[0]) if found != b"100"]


edits = st.tuples(
    st.integers(0, 10_000),
    st.integers(0, 4),
    st.sampled_from(
        [b"", b"0", b"1", b"\r", b"\n", b"\r\n", b" ", b":", b"\x00", b"C", b"\xff", b"+", b"\r\n\r\n"]
    )
    | st.binary(max_size=3),
)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(NEAR), st.lists(edits, max_size=3), st.lists(st.integers(0, 10_000), max_size=4))
@example(WARM, [(0, 0, b"\r\n\r\n")], [1])
def test_random_edits(data: bytes, changes: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    for at, gone, new in changes:
        place = at % (len(data) + 1)
        data = data[:place] + new + data[place + gone :]
    strict = outcome(data, [], warm=False)
    assert outcome(data, [], warm=True) == strict
    assert no_more_than(outcome(data, cuts, warm=True), strict)
