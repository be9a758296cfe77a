"""An answer of HTTP/1.1, read as its bytes come. Pure: bytes in, bytes of the body out.

Written for this client and no other: one request at a time on a connection, nothing about it is guessed, and
what a server can make us hold is bounded.
"""

from __future__ import annotations

MAX_HEAD = 1 << 16
"""Bytes of a head. Proxies add some; 64 KiB is what Node and nginx refuse at the latest."""
MAX_CHUNK_HEAD = 256
"""Bytes of the line before a chunk: sixteen hex digits and whatever extension somebody finds useful."""


class BadAnswer(Exception):
    """It is not HTTP, or not what a server may answer a POST with."""


class Response:
    """One answer. `feed` it what came; `complete` tells when it is over."""

    __slots__ = ("_buffer", "_left", "_state", "complete", "content_type", "keep_alive", "status")

    def __init__(self) -> None:
        self.status = 0
        self.content_type = b""
        self.keep_alive = True
        self.complete = False
        self._buffer = b""
        self._left = 0
        """Bytes of the body, or of the chunk, that are still to come."""
        self._state = _HEAD

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that are in `data`, without the marks of its chunks.

        Raises:
            BadAnswer: it cannot be read, or bytes came after its end.
        """
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if self._state == _HEAD:
            data = self._head(data)
            if self._state == _HEAD:
                return b""
        if self._state == _CHUNKED:
            return self._chunks(data)
        if self._state == _LENGTH:
            body, rest = data[: self._left], data[self._left :]
            self._left -= len(body)
            if rest:
                raise BadAnswer("more bytes than Content-Length says")
            self.complete = not self._left
            return body
        if self._state == _OVER and data:
            raise BadAnswer("bytes after the end of the answer")
        return data

    @property
    def empty(self) -> bool:
        """Not a byte of it has come."""
        return self._state == _HEAD and not self._buffer

    def eof(self) -> bool:
        """The server closed the connection. True: the answer is whole, as one without a length may be."""
        if self._state == _UNTIL_CLOSE:
            self.complete = True
        return self.complete

    def _head(self, data: bytes) -> bytes:
        """What follows the head. While that is not all there, nothing, and what there is of it is kept."""
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head, data = data[:end], data[end + 4 :]
            self._read_head(head)
            if self._state != _HEAD:
                return data
        if len(data) > MAX_HEAD:
            raise BadAnswer(f"a head of more than {MAX_HEAD} bytes")
        if not b"HTTP/1.".startswith(data[:7]):
            raise BadAnswer("it does not begin with HTTP/1.")
        self._buffer = data
        return b""

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        code = rest[:3]
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not code.isdigit():
            raise BadAnswer("it does not begin with a status line")
        self.status = int(code)
        if 100 <= self.status < 200:  # 100 Continue, 103 Early Hints: the answer is yet to come
            return
        length: int | None = None
        chunked, self.keep_alive = False, version == b"HTTP/1.1"
        for line in lines:
            name, colon, value = line.partition(b":")
            name, value = name.lower(), value.strip()
            if not colon:
                raise BadAnswer("a header line without a colon")
            if name == b"content-length":
                if not value.isdigit() or (length is not None and length != int(value)):
                    raise BadAnswer("Content-Length is not a number")
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = value.lower() == b"chunked"
                if not chunked:
                    raise BadAnswer("a Transfer-Encoding other than chunked")
            elif name == b"connection":
                self.keep_alive = b"close" not in value.lower() and self.keep_alive
            elif name == b"content-type":
                self.content_type = value.lower()
            elif name == b"content-encoding" and value.lower() != b"identity":
                raise BadAnswer("a Content-Encoding that nobody asked for")
        if chunked:
            self._state = _CHUNKED
        elif length is not None or self.status in (204, 304):
            self._state, self._left = _LENGTH, length or 0
            self.complete = not self._left
        else:
            self._state, self.keep_alive = _UNTIL_CLOSE, False

    def _chunks(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        at = 0
        while True:
            if self._left:  # inside a chunk; its line end counts as two bytes of it
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if self._left >= 2:
                    pieces.append(piece)
                    return b"".join(pieces)
                # What is here of the line end is not the body's.
                pieces.append(piece[: max(0, len(piece) - (2 - self._left))])
                if self._left:
                    return b"".join(pieces)
            line = data.find(b"\r\n", at)
            if line < 0:
                self._buffer = data[at:]
                if len(self._buffer) > MAX_CHUNK_HEAD:
                    raise BadAnswer("a chunk without a length")
                return b"".join(pieces)
            try:
                size = int(data[at:line].partition(b";")[0], 16)
            except ValueError:
                raise BadAnswer("a chunk's length is not hexadecimal") from None
            if size < 0:
                raise BadAnswer("a chunk's length is negative")
            if size == 0:
                self._trailer(data, at, line)
                return b"".join(pieces)
            at, self._left = line + 2, size + 2

    def _trailer(self, data: bytes, at: int, line: int) -> None:
        """The last chunk: over when an empty line has come, with or without lines before it."""
        end = data.find(b"\r\n\r\n", line)
        if end < 0:
            self._buffer = data[at:]
            if len(self._buffer) > MAX_HEAD:
                raise BadAnswer("a trailer without an end")
            return
        if len(data) > end + 4:
            raise BadAnswer("bytes after the end of the answer")
        self.complete, self._state = True, _OVER


_HEAD, _LENGTH, _CHUNKED, _UNTIL_CLOSE, _OVER = range(5)
