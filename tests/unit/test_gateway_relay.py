"""Answers on their way through: verbatim for any split, and never whole-looking when broken."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes.gateway import limits
from chutes.gateway.chunked import ChunkScanner
from chutes.gateway.heads import AnswerHeads
from chutes.gateway.http import BadAnswer
from chutes.gateway.relay import AnswerRelay

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ERROR = b'{"error":{"message":"broken"}}'


def relay(*, http_1_0: bool = False, head_only: bool = False, close: bool = False) -> AnswerRelay:
    made = AnswerRelay(AnswerHeads(), b"id-1")
    made.http_1_0, made.head_only, made.keep_alive = http_1_0, head_only, not close
    return made


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(
    st.lists(st.binary(min_size=1, max_size=50), max_size=6),
    st.sampled_from(["length", "chunked", "sse"]),
    st.lists(st.integers(0, 2000), max_size=20),
    st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nA: b\r\n\r\n"]),
)
def test_bodies_are_verbatim_for_every_split(
    pieces: list[bytes], kind: str, cuts: list[int], before: bytes
) -> None:
    content_type = b"text/event-stream" if kind == "sse" else b"application/json"
    if kind == "length":
        body = b"".join(pieces)
        framing = b"Content-Length: %d" % len(body)
    else:
        body = b"".join(map(chunk, pieces)) + b"0\r\n\r\n"
        framing = b"Transfer-Encoding: chunked"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n\r\n" % (content_type, framing)
    answer = relay()
    out = b""
    for part in split(before + head + body, cuts):
        assert not answer.done
        out += answer.feed(part)
    assert answer.done
    assert answer.reusable
    assert answer.keep_alive
    got_head, _, got_body = out.partition(b"\r\n\r\n")
    assert got_body == body
    assert got_head.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    assert b"X-Request-Id: id-1" in got_head
    assert framing in got_head


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.lists(st.integers(0, 2000), max_size=20))
def test_an_old_client_gets_the_payload_alone(pieces: list[bytes], cuts: list[int]) -> None:
    answer = relay(http_1_0=True, close=True)
    out = b"".join(
        answer.feed(part) for part in split(SSE + b"".join(map(chunk, pieces)) + b"0\r\n\r\n", cuts)
    )
    head, _, body = out.partition(b"\r\n\r\n")
    assert body == b"".join(pieces)
    assert b"Transfer-Encoding" not in head
    assert b"Connection: close" in head
    assert answer.done
    assert not answer.keep_alive


@given(st.integers(0, 400))
def test_a_stream_cut_anywhere_ends_in_an_error_event(cut: int) -> None:
    events = [b"data: %d\n\n" % number for number in range(20)]
    whole = SSE + b"".join(map(chunk, events))
    answer = relay()
    out = answer.feed(whole[: max(len(SSE), min(cut + len(SSE), len(whole)))])
    out += answer.error_event(ERROR) or pytest.fail("a stream at a chunk's end can be told")
    text = b""
    rest = out.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        text, rest = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    *whole_events, last, end = text.split(b"\n\n")
    assert end == b""
    assert whole_events == [event[:-2] for event in events[: len(whole_events)]]
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "broken"


def test_an_event_cut_between_chunks_is_ended_first() -> None:
    answer = relay()
    answer.feed(SSE + chunk(b"data: half"))
    event = answer.error_event(ERROR)
    assert event is not None
    assert b"\r\n\n\ndata: {" in event


def test_a_chunk_too_long_to_hold_passes_and_then_nothing_can_be_added() -> None:
    answer = relay()
    answer.feed(SSE)
    half = b"%x\r\n" % (10 * limits.HELD_CHUNK_BYTES) + b"x" * (limits.HELD_CHUNK_BYTES + 1)
    assert answer.feed(half) == half
    assert answer.feed(b"yy") == b"yy", "memory does not grow"
    assert answer.error_event(ERROR) is None


@pytest.mark.parametrize("framing", [b"Content-Length: 10", b"Transfer-Encoding: chunked"])
def test_a_broken_answer_that_is_no_stream_has_no_clean_end(framing: bytes) -> None:
    answer = relay()
    answer.feed(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%b\r\n\r\n" % framing)
    assert answer.error_event(ERROR) is None
    assert not answer.ends_by_close()


def test_an_answer_that_ends_with_its_connection() -> None:
    answer = relay()
    out = answer.feed(b"HTTP/1.0 200 OK\r\n\r\nabc")
    assert out.startswith(b"HTTP/1.1 200 OK\r\n")
    assert out.endswith(b"Connection: close\r\n\r\nabc")
    assert answer.ends_by_close()
    assert not answer.keep_alive
    assert not answer.reusable


@pytest.mark.parametrize(
    ("head_only", "head"),
    [
        (True, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (False, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (False, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        (False, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
def test_answers_without_a_body(head_only: bool, head: bytes) -> None:
    answer = relay(head_only=head_only)
    answer.feed(head)
    assert answer.done
    assert answer.reusable
    answer = relay(head_only=head_only)
    assert answer.feed(head + b"surprise").endswith(b"\r\n\r\n")
    assert not answer.reusable


def test_a_body_longer_than_announced_is_cut_and_its_connection_dropped() -> None:
    answer = relay()
    assert answer.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef").endswith(b"\r\n\r\nabc")
    assert answer.done
    assert not answer.reusable


@pytest.mark.parametrize(
    "data", [b"nonsense\r\n\r\n", b"HTTP/1.1 101 Switch\r\n\r\n", SSE + b"zz\r\n", b"x" * 40000]
)
def test_what_is_not_an_answer(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        relay().feed(data)


@given(st.lists(st.integers(0, 2000), max_size=20))
def test_an_old_client_does_not_see_the_usage_either(cuts: list[int]) -> None:
    answer = relay(http_1_0=True, close=True)
    answer.hides_usage = True
    text, usage = b'data: {"choices":[{}]}\n\n', b'data: {"choices":[],"usage":{"prompt_tokens":3}}\n\n'
    stream = SSE + chunk(text) + chunk(usage) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    out = b"".join(answer.feed(part) for part in split(stream, cuts))
    assert out.partition(b"\r\n\r\n")[2] == text + b"data: [DONE]\n\n"
    assert answer.usage == (3, 0, 0)


def payload(data: bytes) -> bytes:
    """What a client reads after the head."""
    scanner, pieces = ChunkScanner(), list[bytes]()
    body = data.partition(b"\r\n\r\n")[2]
    assert scanner.feed(body, pieces) == len(body)
    assert scanner.ended
    return b"".join(pieces)


def waited() -> tuple[AnswerRelay, bytes]:
    """A client that has seen two comments."""
    made = relay()
    return made, made.comment() + made.comment()


def test_a_stream_that_was_waited_for_goes_on_under_the_same_head() -> None:
    made, seen = waited()
    out = made.feed(SSE + chunk(b"data: 1\n\n") + b"0\r\n\r\n")
    assert payload(seen + out) == b": waiting\n\n: waiting\n\ndata: 1\n\n"
    assert made.done
    assert made.keep_alive


@pytest.mark.parametrize("cut", [10, 60, 74])
def test_an_error_after_comments_is_an_event(cut: int) -> None:
    made, seen = waited()
    body = b'{"error":\n {"message":"m"}}'
    data = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    seen += made.feed(data[:cut]) + made.feed(data[cut:])
    assert payload(seen) == b': waiting\n\n: waiting\n\ndata: {"error":  {"message":"m"}}\n\n'
    assert (made.status, made.done) == (400, True)


def test_a_refusal_after_comments_is_an_event() -> None:
    made, seen = waited()
    event = made.error_event(ERROR)
    assert event is not None
    assert payload(seen + event).endswith(b"data: " + ERROR + b"\n\n")
