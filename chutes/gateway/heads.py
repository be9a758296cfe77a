"""Heads that have been read before: a client, or an engine, says the same every time but for a length.

Reading the head of an `openai` request takes ten microseconds, as much as all the rest that Python does for a
request here; seeing that it is the same again takes half of one. It is the same if every byte is but the
digits of its one Content-Length, so nothing is served that has not been judged strictly once.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final, Generic, TypeVar

from chutes.gateway.http import (
    LENGTH_DIGITS,
    RequestHead,
    ResponseHead,
    parse_request_head,
    parse_response_head,
)

LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,%d})\r\n" % LENGTH_DIGITS)

EVERY_TIME_ANOTHER: Final = (b"x-request-id", b"traceparent", b"idempotency-key")
"""Fields whose heads are not worth remembering: they do not come again."""

KNOWN_REQUESTS: Final = 1024
"""What was found out of a head takes some 2 KB."""

Head = TypeVar("Head", RequestHead, ResponseHead)


class Remembered(Generic[Head]):
    """A head as its bytes around the digits of its length."""

    __slots__ = ("after", "before", "head")

    def __init__(self, head: Head, before: bytes, after: bytes) -> None:
        self.head = head
        self.before = before
        self.after = after
        """With the blank line."""

    def body(self, data: bytes) -> bytes | None:
        """The body, if `data` is this head again and exactly one whole body."""
        before, after = self.before, self.after
        if not data.startswith(before):
            return None
        # Byte by byte: four digits are read sooner so than `find`, `isdigit` and `int` are called.
        size, start, length = len(data), len(before), 0
        stop = start
        while stop < size and stop - start < LENGTH_DIGITS:
            digit = data[stop] - 48
            if digit < 0 or digit > 9:
                break
            length = length * 10 + digit
            stop += 1
        end = stop + len(after)
        if stop == start or end + length != size or data[stop:end] != after:
            return None
        return data[end:]


class RequestHeads:
    """Reads the heads of requests and remembers some, for all connections of a worker.

    They are kept by a digest, as they hold keys: what is kept gives none away. Only heads for which
    `remember` was called are: those with a good key, so a stranger cannot wash the others out.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, RequestHead] = {}

    def read(self, data: bytes, end: int) -> tuple[RequestHead, int, Remembered[RequestHead] | None]:
        """The head that is `data[:end]` (without its blank line), its body's length, and how the
        connection that it came on knows it again.

        Raises: Refusal.
        """
        found = LENGTH.search(data, 0, end + 2)
        if found is None:
            request = parse_request_head(data[:end])
            return request, request.length, None  # a length may be spelled in ways that are not remembered
        start, stop = found.span(1)
        shape = sha256(data[:start] + data[stop:end]).digest()
        known = self._known.get(shape)
        if known is not None:
            return known, int(found[1]), Remembered(known, data[:start], data[stop : end + 4])
        # Should it hold a second length, it is refused here.
        request = parse_request_head(data[:end])
        request.shape = shape
        return request, request.length, None

    def remember(self, request: RequestHead) -> None:
        """Find this head again when it comes again."""
        shape = request.shape
        if shape is None or any(name in request.headers for name in EVERY_TIME_ANOTHER):
            return
        request.shape = None
        if len(self._known) >= KNOWN_REQUESTS:
            self._known.clear()
        self._known[shape] = request


class AnswerHeads:
    """Reads the heads of one engine's answers; remembers the last one, which holds until its date changes."""

    def __init__(self) -> None:
        self._last: Remembered[ResponseHead] | None = None
        self._last_stream: tuple[bytes, ResponseHead] | None = None

    def whole(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """Head and body, if this is a known head with one whole body that is not empty."""
        last = self._last
        if last is not None:
            body = last.body(data)
            if body:
                return last.head, body
        return None

    def read(self, data: bytes, end: int) -> tuple[ResponseHead, int | None]:
        """The head that is `data[:end]`, and the length of the body as it says.

        Raises: BadAnswer.
        """
        found = LENGTH.search(data, 0, end + 2)
        if found is None:
            if self._last_stream is None or self._last_stream[0] != data[:end]:
                self._last_stream = data[:end], parse_response_head(data[:end])
            head = self._last_stream[1]
            return head, head.length
        head = parse_response_head(data[:end])
        if head.status >= 200 and head.status not in (204, 304):
            start, stop = found.span(1)
            self._last = Remembered(head, data[:start], data[stop : end + 4])
        return head, head.length
