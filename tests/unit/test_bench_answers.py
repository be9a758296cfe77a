"""However the bytes of an answer are cut, the record is the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks.harness import answers, http1
from benchmarks.harness.records import Record


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return data({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def data(document: Any) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 8},
}
DONE = b"data: [DONE]\n\n"
CHAT = [
    event({"role": "assistant", "content": ""}),
    b": a comment\n\n",
    event({"reasoning": "hm"}),
    event({"reasoning_content": "ah"}),
    event({"content": ""}),
    event({"content": "é ☃"}),
    event({"tool_calls": [{"index": 0}]}, "tool_calls"),
    data({"choices": [], "usage": USAGE}),
    DONE,
]
TOKENS = 5


def chunked(pieces: list[bytes], trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + body + b"0\r\n" + trailer + b"\r\n"


def whole(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def read(parts: list[bytes]) -> tuple[http1.Response, Record]:
    """Parts as they arrive, a second apart, into a record."""
    response, record = http1.Response(), Record(0, "t", 0, 0)
    reader: answers.Stream | answers.Whole | None = None
    for now, part in enumerate(parts, 1):
        body = response.feed(part)
        if reader is None and response.status >= 200:
            record.status = response.status
            reader = answers.reader(response, record)
        if reader is not None and body:
            reader.feed(body, float(now))
        if response.complete:
            assert reader is not None
            reader.end()
    return response, record


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(text) for place in places} - {0}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def without_times(record: Record) -> dict[str, Any]:
    document = msgspec.to_builtins(record)
    events = len(document.pop("times", [])) + (document.pop("first", None) is not None)
    document.pop("last", None)
    return {**document, "events": events}


@given(
    places=some.lists(some.integers(0, 5000), max_size=60), grain=some.integers(1, 400), crlf=some.booleans()
)
def test_any_split_of_a_stream_gives_the_same_record(places: list[int], grain: int, crlf: bool) -> None:
    body = b"".join(CHAT)
    if crlf:
        body = body.replace(b"\n", b"\r\n")
    # Chunks of HTTP need not be events.
    text = chunked([body[at : at + grain] for at in range(0, len(body), grain)], b"x-trailer: 1\r\n" * crlf)
    response, record = read(cut(text, places))
    assert response.complete
    assert response.keep_alive
    assert without_times(record) == {
        **{"number": 0, "target": "t", "scheduled": 0.0, "sent": 0.0, "status": 200, "events": TOKENS},
        **{"input_tokens": 11, "output_tokens": 5, "cached_tokens": 8},
    }


@given(places=some.lists(some.integers(0, 5000), max_size=30), status=some.sampled_from([200, 429, 500]))
def test_any_split_of_a_document_gives_the_same_record(places: list[int], status: int) -> None:
    said = {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": USAGE}
    body = msgspec.json.encode(said if status == 200 else {"error": {"message": "too  many\nrequests"}})
    response, record = read(cut(b"HTTP/1.1 100 Continue\r\n\r\n" + whole(body, status), places))
    assert response.complete
    if status == 200:
        assert (record.error, record.output_tokens, record.first) == ("", 5, None)
    else:
        assert (record.error, record.message) == (f"http_{status}", "too many requests")


def test_each_event_has_its_time() -> None:
    """One event a read: the role counts for nothing, thoughts, tool calls and empty text do."""
    head, *_ = chunked([]).partition(b"0\r\n")
    parts = [head, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in CHAT), b"0\r\n\r\n"]
    _, record = read(parts)
    assert record.first == 4  # 1: head, 2: role, 3: comment, 4: the first thought
    assert record.times == [5, 6, 7, 8]
    assert record.last == 8


@pytest.mark.parametrize(
    ("pieces", "lacks"),
    [([*CHAT[:-1]], "DONE"), ([event({"content": "a"}), DONE], "finish_reason"), ([DONE], "finish_reason")],
)
def test_a_stream_without_its_end_is_truncated(pieces: list[bytes], lacks: str) -> None:
    _, record = read([chunked(pieces)])
    assert record.error == "truncated"
    assert lacks in record.message


def test_an_error_within_a_stream_is_one() -> None:
    _, record = read(
        [chunked([event({"content": "a"}), data({"error": {"message": "out of memory"}}), DONE])]
    )
    assert (record.error, record.message) == ("stream_error", "out of memory")


def test_a_completion_of_text_counts_every_choice() -> None:
    """As vLLM's own benchmark does: a token may be half a character, and empty so far."""
    pieces = [
        data({"choices": [{"text": text, "finish_reason": end}]}) for text, end in (("", None), ("é", "stop"))
    ]
    _, record = read([chunked([*pieces, DONE])])
    assert (record.error, record.first, len(record.times)) == ("", 1, 1)


def test_images_are_counted() -> None:
    _, record = read([whole(b'{"created":1,"data":[{"b64_json":"AAAA"},{"url":"x"},{}]}')])
    assert (record.error, record.images) == ("", 2)


@pytest.mark.parametrize(
    "text",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nmore",
        b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * http1.MAX_HEAD,
        chunked([b"data: {nonsense}\n\n"]),
        chunked([b'data: {"choices":[{"text":"\xff"}]}\n\n']),
        chunked([b"data: " + b'{"choices":' + b"[" * 100_000 + b"\n\n"]),
        whole(b'{"choices":[{"text":"\xff"}]}'),
        chunked([b"data: " + b"x" * (answers.MAX_EVENT + 1)]),
    ],
)
def test_nonsense_is_refused(text: bytes) -> None:
    with pytest.raises(http1.BadAnswer):
        read([text])


def test_thousands_of_interim_answers_are_passed_over() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    _, record = read([5000 * interim + whole(b'{"choices":[{"text":"a","finish_reason":"stop"}]}')])
    assert (record.status, record.error) == (200, "")


def streamed(piece: str) -> bytes:
    return event({"content": piece}, "stop")


def in_one(piece: str) -> bytes:
    return msgspec.json.encode({"choices": [{"message": {"content": piece}, "finish_reason": "stop"}]})


@pytest.mark.parametrize(("kind", "body"), [(answers.Stream, streamed), (answers.Whole, in_one)])
def test_text_is_kept_up_to_a_bound(
    kind: type[answers.Stream | answers.Whole], body: Callable[[str], bytes]
) -> None:
    def kept(length: int, keep_text: bool = True) -> str:
        reader = kind(Record(0, "t", 0, 0, status=200), keep_text)
        reader.feed(body("é" * length), 1.0)
        reader.end()
        return str(reader.text)

    assert kept(answers.MAX_TEXT) == "é" * answers.MAX_TEXT
    with pytest.raises(http1.BadAnswer, match="characters"):
        kept(answers.MAX_TEXT + 1)
    kept(answers.MAX_TEXT + 1, keep_text=False)  # what is not kept may be as long as it likes


def test_an_answer_may_end_with_its_connection() -> None:
    response, record = http1.Response(), Record(0, "t", 0, 0, status=200)
    reader = answers.Stream(record)
    reader.feed(response.feed(b"HTTP/1.0 200 OK\r\n\r\n" + b"".join(CHAT)), 1.0)
    assert not response.complete
    assert not response.keep_alive
    assert response.eof()
    reader.end()
    assert record.error == ""
