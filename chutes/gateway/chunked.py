"""Chunked bodies: where one ends, where its chunks end, and what is in them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from chutes.exception import ChutesError
from chutes.gateway import limits

_SIZE = rb"([0-9a-fA-F]{1,15})[ \t]{0,8}(?:;[^\r\n]{0,%d})?" % (limits.CHUNK_LINE_BYTES - 26)
SIZE_LINE: Final = re.compile(_SIZE + rb"\r\n")
START_OF_SIZE_LINE: Final = re.compile(_SIZE + rb"\r?")
"""What they take does not depend on how reads split the line: neither is ever over CHUNK_LINE_BYTES."""


SHORT_LINE: Final = 8
REMEMBERED_BYTES: Final = 4096
"""Of chunks whose size lines are remembered: events are some 300 bytes."""
REMEMBERED: Final = 8192
"""Lines: one size can be spelled in several ways."""

_SIZES: Final[dict[bytes, int]] = {}
"""Size lines that were judged before, and how long their chunks are with them."""


class BadChunk(ChutesError):
    """The bytes are not a chunked body."""


class ChunkScanner:
    """Follows a chunked body through reads that may split it anywhere.

    `feed` is called with each read in turn. Bytes are not copied unless `payload` is given, or a size line
    or trailer is split between two reads.
    """

    __slots__ = ("_carry", "_left", "boundary", "ended")

    def __init__(self) -> None:
        self.ended = False
        """The last chunk and its trailer have been seen."""
        self.boundary = 0
        """End of the last whole chunk, as an index into the bytes just fed; 0 if none ended there."""
        self._left = 0
        """Bytes still to come of the open chunk, its final CRLF included."""
        self._carry = b""
        """A size line or trailer of which only the start has come."""

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        """Take the next bytes; add what the chunks hold to `payload`.

        Returns: how many of them belong to this body: all, unless it `ended`.
        Raises: BadChunk.
        """
        if payload is None and not self._left and not self._carry and _is_known(data):
            self.boundary = len(data)
            return self.boundary
        carried = len(self._carry)
        if carried:
            data = self._carry + data
            self._carry = b""
        size = len(data)
        position = boundary = 0
        left = self._left
        while position < size:
            if left:
                position, left = self._inside(data, position, left, payload)
                if left:
                    break
                boundary = position
                continue
            line = SIZE_LINE.match(data, position)
            if line is None:
                self._carry = _unfinished(data, position)
                position = size
                break
            length = int(line[1], 16)
            if position == 0 and 0 < length <= REMEMBERED_BYTES and line.end() <= SHORT_LINE:
                _remember(data[: line.end()], length)
            if length == 0:
                # From the size line's own CRLF, so that an empty trailer is found as well.
                end = data.find(b"\r\n\r\n", line.end() - 2)
                if end < 0:
                    if size - position > limits.TRAILER_BYTES + 3:  # all of its end but one byte
                        raise BadChunk("The trailer is too long.")
                    self._carry = data[position:]
                    position = size
                    break
                if end - position > limits.TRAILER_BYTES:
                    raise BadChunk("The trailer is too long.")
                if data.count(b"\n", position, end) != data.count(b"\r\n", position, end):
                    raise BadChunk("A line of the trailer ends in a bare LF.")
                position = boundary = end + 4
                self.ended = True
                break
            position = line.end()
            left = length + 2
        self._left = left
        self.boundary = max(0, boundary - carried)
        return position - carried

    def _inside(self, data: bytes, position: int, left: int, payload: list[bytes] | None) -> tuple[int, int]:
        """Move through the open chunk; its last two bytes must be CRLF."""
        end = min(position + left, len(data))
        rest = left - (end - position)
        if rest < 2:  # we have reached its CRLF, or the half of it
            crlf = data[max(position, end - 2 + rest) : end]
            expected = b"\r\n"[2 - min(left, 2) : 2 - rest]
            if crlf != expected:
                raise BadChunk("A chunk is longer than it said.")
        if payload is not None and left > 2:
            payload.append(data[position : position + min(left - 2, end - position)])
        return end, rest


def _is_known(data: bytes) -> bool:
    """Whether these are one whole chunk, under a size line that came before: what a read brings while an
    engine streams."""
    size, at = len(data), 1
    if size < SHORT_LINE:
        return False
    while at < SHORT_LINE and data[at] != 0x0A:
        at += 1
    return _SIZES.get(data[: at + 1]) == size and data.endswith(b"\r\n")


def _remember(line: bytes, length: int) -> None:
    if len(_SIZES) >= REMEMBERED:
        _SIZES.clear()
    _SIZES[line] = len(line) + length + 2


def edit_chunks(data: bytes, edit: Callable[[bytes], bytes]) -> bytes:
    """Whole chunks as one, whose payload went through `edit`; none at all if that left nothing."""
    scanner = ChunkScanner()
    payload: list[bytes] = []
    scanner.feed(data, payload)
    text = edit(b"".join(payload))
    chunk = b"%x\r\n%b\r\n" % (len(text), text) if text else b""
    return chunk + b"0\r\n\r\n" if scanner.ended else chunk


def _unfinished(data: bytes, position: int) -> bytes:
    """The start of a size line that is still to be completed, unless it can no longer become one."""
    rest = data[position : position + limits.CHUNK_LINE_BYTES + 1]
    if len(rest) > limits.CHUNK_LINE_BYTES or not START_OF_SIZE_LINE.fullmatch(rest):
        raise BadChunk("A chunk does not start with its size.")
    return rest
