"""Heads and chunked bodies: what is taken, what is refused, and that splits do not matter."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes.gateway import limits
from chutes.gateway.answers import Refusal
from chutes.gateway.chunked import BadChunk, ChunkScanner
from chutes.gateway.heads import RequestHeads
from chutes.gateway.http import BadAnswer, parse_request_head, parse_response_head

START = b"POST /v1/completions?a=b HTTP/1.1\r\nHost: x"


def refused(head: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse_request_head(head)
    assert caught.value.close, "nothing after an unreadable request can be read"
    return caught.value


def test_a_head_becomes_facts() -> None:
    head = parse_request_head(START + b"\r\nContent-Length: 12\r\nX-A: 1\r\nx-a:\t2 \r\nAccept:")
    assert (head.method, head.path, head.query) == (b"POST", b"/v1/completions", b"?a=b")
    assert head.headers[b"x-a"] == b"1, 2"
    assert head.headers[b"accept"] == b""
    assert (head.length, head.chunked, head.keep_alive, head.http_1_0) == (12, False, True, False)


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (START + b"\r\nConnection: close", False),
        (START + b"\r\nConnection: TE, Close", False),
        (START + b"\r\nConnection: keep-alive", True),
        (b"GET / HTTP/1.0", False),
    ],
)
def test_keep_alive(head: bytes, keep_alive: bool) -> None:
    assert parse_request_head(head).keep_alive is keep_alive


def test_the_form_for_proxies_is_taken() -> None:
    assert parse_request_head(b"GET http://host:1/a?b HTTP/1.1\r\nHost: x").path == b"/a"
    assert parse_request_head(b"GET http://host HTTP/1.1\r\nHost: x").path == b"/"


@pytest.mark.parametrize(
    "lines",
    [
        b"\r\nContent-Length: 1\r\nContent-Length: 2",
        b"\r\nContent-Length: 1\r\nContent-Length: 1",
        b"\r\nContent-Length: 1, 1",
        b"\r\nContent-Length: +1",
        b"\r\nContent-Length: 0x1",
        b"\r\nContent-Length: -1",
        b"\r\nContent-Length: 1_0",
        b"\r\nContent-Length:",
        b"\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"\r\nTransfer-Encoding: gzip, chunked",
        b"\r\nTransfer-Encoding: chunked, identity",
        b"\r\nTransfer-Encoding: xchunked",
        b"\r\nTransfer-Encoding : chunked",
        b"\r\nTransfer-Encoding\t: chunked",
        b"\r\n Transfer-Encoding: chunked",
        b"\r\nX: a\r\n b",
        b"\r\nX: a\r\n\tb",
        b"\r\nX: a\nY: b",
        b"\r\nX: a\rY: b",
        b"\r\nX: a\x00b",
        b"\r\nX: a\x0bb",
        b"\r\nX: a\x7fb",
        b"\r\nX",
        b"\r\n: a",
        b"\r\n",
        b"\r\nX(: a",
        b"\r\nHost: y",
        b"\r\nAuthorization: a\r\nAuthorization: b",
    ],
)
def test_two_opinions_about_a_request_are_refused(lines: bytes) -> None:
    assert refused(START + lines).status == 400


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1\r\nHost: x", 400),
        (b"GET /a b HTTP/1.1\r\nHost: x", 400),
        (b"G@T / HTTP/1.1\r\nHost: x", 400),
        (b"GET / HTTP/2.0\r\nHost: x", 505),
        (b"GET / http/1.1\r\nHost: x", 505),
        (b"GET \xc3\xa4/ HTTP/1.1\r\nHost: x", 400),
        (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: x", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: x", 400),
        (b"GET / HTTP/1.1", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked", 400),
        (START + b"\r\nExpect: a miracle", 417),
        (START + b"\r\nA: b" * (limits.HEADER_COUNT + 1), 431),
    ],
)
def test_what_is_not_a_request_is_refused(head: bytes, status: int) -> None:
    assert refused(head).status == status


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_refused(head: bytes) -> None:
    for start in (b"", START + b"\r\n"):
        with contextlib.suppress(Refusal):
            parse_request_head(start + head)
        with contextlib.suppress(BadAnswer):
            parse_response_head(start + head)


def test_a_response_head_loses_what_concerns_one_connection_only() -> None:
    head = parse_response_head(
        b"HTTP/1.1 200 OK\r\nDate: d\r\nConnection: X-Own, keep-alive\r\nX-Own: 1\r\nKeep-Alive: 5\r\n"
        b"Upgrade: h2c\r\nX-Request-ID: theirs\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n"
        b"Transfer-Encoding: Chunked"
    )
    assert head.start == b"HTTP/1.1 200 OK\r\nDate: d\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n"
    assert (head.status, head.chunked, head.event_stream, head.keep_alive) == (200, True, True, True)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200",
        b"HTTP/1.1 99 Low",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1",
        b"HTTP/1.1 200 OK\r\nContent-Length: x",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nA : b",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d",
    ],
)
def test_a_response_that_is_not_http_is_refused(head: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_response_head(head)


def chunked(pieces: list[bytes], *, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces if piece)
    return body + b"0\r\n" + trailer + b"\r\n"


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(0, 1000), max_size=20),
    st.sampled_from([b"", b";a=b", b" ; x"]),
    st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]),
    st.sampled_from([b"", b"GET / HTTP/1.1"]),
)
def test_splits_do_not_change_a_chunked_body(
    pieces: list[bytes], cuts: list[int], extension: bytes, trailer: bytes, following: bytes
) -> None:
    whole = chunked(pieces, extension=extension, trailer=trailer)
    scanner, payload, taken, boundaries, position = ChunkScanner(), [], 0, set(), 0
    for part in split(whole + following, cuts):
        if scanner.ended:
            break
        used = scanner.feed(part, payload)
        if scanner.boundary:
            boundaries.add(position + scanner.boundary)
        taken += used
        position += len(part)
    assert scanner.ended
    assert taken == len(whole)
    assert b"".join(payload) == b"".join(pieces)
    true_boundaries, offset = {len(whole)}, 0
    for piece in pieces:
        offset += len(b"%x" % len(piece)) + len(extension) + len(piece) + 4
        true_boundaries.add(offset)
    assert boundaries <= true_boundaries


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_any_bytes_are_a_chunked_body_or_refused(data: bytes, cuts: list[int]) -> None:
    scanner = ChunkScanner()
    try:
        for part in split(data, cuts):
            if scanner.ended:
                break
            assert 0 <= scanner.feed(part, []) <= len(part)
    except BadChunk:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n",
        b"-1\r\n",
        b"5\nhello\r\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhelloX",
        b"5\r\nhello\rX",
        b"\r\n5\r\nhello\r\n",
        b"5;" + b"a" * 300,
        b"1" * 16 + b"\r\n",
        b"0\r\nA: b\n\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 2000,
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_broken_chunked_body_is_noticed(data: bytes, step: int) -> None:
    with pytest.raises(BadChunk):
        scan(data, step)


def scan(data: bytes, step: int) -> None:
    scanner = ChunkScanner()
    for start in range(0, len(data), step):
        scanner.feed(data[start : start + step])


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length:5",
        b"Content-Length:  5",
        b"Content-Length: 5 ",
        b"CONTENT-LENGTH: 5",
        b"content-Length:\t5",
    ],
)
def test_a_length_counts_however_it_is_spelled(line: bytes) -> None:
    """One that was read as none would make the body the next request."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % line
    request, length, _ = RequestHeads().read(head + b"12345", len(head) - 4)
    assert (length, request.length) == (5, 5)
