"""One answer's way through: an engine's bytes in, the client's bytes out. Pure; no socket, no clock.

Bodies pass verbatim, but for what `events.py` takes out or adds. What is followed is where the body ends,
because that decides whether an answer was whole, and both connections' next use depends on it; and what it
says of its usage.
"""

from __future__ import annotations

from typing import Final

from chutes.gateway import limits
from chutes.gateway.chunked import BadChunk, ChunkScanner, edit_chunks
from chutes.gateway.events import (
    USAGE_BYTES,
    hide_usage,
    read_usage,
    read_usage_event,
    twin_events,
    twin_reasoning,
)
from chutes.gateway.heads import AnswerHeads
from chutes.gateway.http import BadAnswer, ResponseHead
from chutes.gateway.shapes import Usage

# How a body ends.
HEAD: Final = 0
NOTHING: Final = 1
LENGTH: Final = 2
CHUNKS: Final = 3
CLOSE: Final = 4
GATHERED: Final = 5

USAGE: Final = b'"usage":{'
THOUGHT: Final = b'"reasoning'
"""What makes an event worth a look."""

STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
COMMENT: Final = b"b\r\n: waiting\n\n\r\n"


class AnswerRelay:
    """The answer to one request.

    Args:
        heads: of the engine that answers, as they have been read so far.
        request_id: goes out as `X-Request-Id`.
    """

    # Defaults stand here, as most answers change few of them: an answer in one piece sets three.
    keep_alive = True
    """Whether the client's connection may be used again after this answer."""
    reusable = True
    """Whether the engine's may."""
    silent = True
    """Not one byte has come."""
    begun = False
    """The head has been passed on: from here no other instance can answer instead."""
    done = False
    """The whole answer has been passed on."""
    status = 0
    """What the engine said; 0 until its head has come."""
    usage: Usage | None = None
    """What the engine has said of it so far."""
    event_stream = False
    http_1_0 = False
    """The client knows no chunks."""
    head_only = False
    """The request was HEAD, so whatever its head says, no body follows."""
    lasting = True
    """The client wants to use its connection again."""
    hides_usage = False
    """The client did not ask for the event at the end of a stream that tells its usage."""
    twins = False
    """Thoughts are to be given under both of their names."""
    headed = False
    """A head of ours has gone out, as the client was to see life while it waited."""
    fields = b""
    """Further header lines for the client, each ending in CRLF."""
    _framing = HEAD
    _scanner: ChunkScanner
    """Of a chunked body."""
    _gathered: tuple[ResponseHead, list[bytes]]
    """Of an answer that is held until whole: its head, and what has come of its body."""
    _left = 0
    _held = b""
    """Of a head, until whole. Of an SSE body, the open chunk: see `_chunks`."""
    _spilled = False
    """An SSE chunk too long to hold went out in part."""
    _tail = b""
    """The last body bytes that went out."""

    def __init__(self, heads: AnswerHeads, request_id: bytes) -> None:
        self.heads = heads
        self.request_id = request_id

    def again(self) -> AnswerRelay:
        """A new one for the same client, which has got nothing of this answer."""
        relay = AnswerRelay(self.heads, self.request_id)
        relay.lasting = relay.keep_alive = self.lasting
        relay.http_1_0, relay.head_only, relay.fields = self.http_1_0, self.head_only, self.fields
        relay.hides_usage, relay.twins, relay.headed = self.hides_usage, self.twins, self.headed
        return relay

    def comment(self) -> bytes:
        """A sign of life for a client that waits for a stream, which proxies on the way see as well.

        It goes out under a head of ours, so an error that comes later can only be an event.
        """
        if self.headed:
            return COMMENT
        self.headed = True
        end = b"\r\n" if self.keep_alive else b"Connection: close\r\n\r\n"
        return b"%bX-Request-Id: %b\r\n%b%b%b" % (STREAM_HEAD, self.request_id, self.fields, end, COMMENT)

    def feed(self, data: bytes) -> bytes:
        """Bytes for the client. Raises BadAnswer when the engine's are not HTTP."""
        if self.silent:
            self.silent = False
            whole = self.heads.whole(data)
            if whole is not None and not self.head_only:
                return self._whole(*whole)
        if self._framing == CHUNKS:
            return self._chunks(data)
        if self._framing == LENGTH:
            return self._counted(data)
        if self._framing == CLOSE:
            self._tail = data
            return data
        if self._framing == HEAD:
            return self._head(data)
        if self._framing == GATHERED:
            return self._gather(data)
        self.reusable = False  # a body where there must be none
        return b""

    @property
    def spoke(self) -> bool:
        """Something of a body has been passed on."""
        return bool(self._tail)

    @property
    def told_all(self) -> bool:
        """A stream has been passed on up to its last event, if not to the end of its body."""
        return self.event_stream and b"data: [DONE]" in self._tail[-32:]

    def ends_by_close(self) -> bool:
        """Whether the end of the engine's connection is this body's proper end."""
        return self._framing == CLOSE

    def error_event(self, error: bytes) -> bytes | None:
        """What ends a broken SSE answer so that its client understands: an event, then the end.

        None where nothing can: the client must see its connection break, or it would take the part that
        it has for the whole.
        """
        if self.headed and not self.begun:
            return _last_event(error)
        if not self.event_stream or self._spilled or self._framing not in (CHUNKS, CLOSE):
            return None
        raw = self._framing == CLOSE or self.http_1_0
        whole = (b"", b"\n\n", b"\r\n\r\n") if raw else (b"", b"\n\n\r\n", b"\r\n\r\n\r\n")
        at_boundary = not self._tail or self._tail.endswith(whole[1:])
        event = (b"" if at_boundary else b"\n\n") + b"data: " + error + b"\n\n"
        return event if raw else b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)

    def _head(self, data: bytes) -> bytes:
        if self._held:
            data = self._held + data
        while True:
            end = data.find(b"\r\n\r\n")
            if end > limits.HEAD_BYTES or (end < 0 and len(data) > limits.HEAD_BYTES):
                raise BadAnswer("Its head is too long.")
            if end < 0:
                self._held = data
                return b""
            head, length = self.heads.read(data, end)
            data = data[end + 4 :]
            if head.status == 101:
                raise BadAnswer("It switched protocols unasked.")
            if head.status >= 200:
                break
        self._held = b""
        out = self._begin(head, length)
        if self._framing == NOTHING:
            self.reusable = self.reusable and not data
            return out
        return out + self.feed(data) if data else out

    def _whole(self, head: ResponseHead, body: bytes) -> bytes:
        """An answer that came in one piece, as most do that are no stream."""
        self.begun = self.done = True
        self.status = head.status
        if not head.keep_alive:
            self.reusable = False
        self.usage = read_usage(body)
        if self.twins:
            body = twin_reasoning(body)
        if self.headed:
            return _last_event(body)
        return b"%bContent-Length: %d\r\nX-Request-Id: %b\r\n%b%b%b" % (
            head.start,
            len(body),
            self.request_id,
            self.fields,
            b"\r\n" if self.keep_alive else b"Connection: close\r\n\r\n",
            body,
        )

    def _begin(self, head: ResponseHead, length: int | None) -> bytes:
        """Decide how the body ends; the head as the client gets it, if it gets it now."""
        self.status = head.status
        if not head.keep_alive:
            self.reusable = False
        if head.event_stream:
            self.event_stream = True
        if self.headed:
            return self._begin_headed(head, length)
        framing = b""
        if length is not None:
            framing = b"Content-Length: %d\r\n" % length
        if self.head_only or head.status in (204, 304) or length == 0:
            self._framing = NOTHING
            self.done = True
        elif head.chunked:
            self._framing = CHUNKS
            self._scanner = ChunkScanner()
            if self.http_1_0:
                self.keep_alive = False
            else:
                framing = b"Transfer-Encoding: chunked\r\n"
        elif length is not None:
            self._left = length
            if self.twins and not head.event_stream and length <= limits.GATHERED_BYTES:
                self._framing = GATHERED  # its length will be another
                self._gathered = (head, [])
                return b""
            self._framing = LENGTH
        else:
            self._framing = CLOSE
            self.reusable = self.keep_alive = False
        self.begun = True
        return b"%b%bX-Request-Id: %b\r\n%b%b" % (
            head.start,
            framing,
            self.request_id,
            self.fields,
            b"\r\n" if self.keep_alive else b"Connection: close\r\n\r\n",
        )

    def _begin_headed(self, head: ResponseHead, length: int | None) -> bytes:
        """The client has a head already, of a stream: what is none becomes its only event."""
        if head.event_stream and head.chunked:
            self._framing = CHUNKS
            self._scanner = ChunkScanner()
            self.begun = True
        elif length is not None and length <= limits.GATHERED_BYTES:
            self._framing = GATHERED
            self._left = length
            self._gathered = (head, [])
        else:
            raise BadAnswer("It did not answer with a stream.")
        return b""

    def _gather(self, data: bytes) -> bytes:
        head, parts = self._gathered
        if len(data) > self._left:
            self.reusable = False
            data = data[: self._left]
        parts.append(data)
        self._left -= len(data)
        return b"" if self._left else self._whole(head, b"".join(parts))

    def _counted(self, data: bytes) -> bytes:
        left = self._left - len(data)
        if left < 0:  # more than it announced: nobody knows what the rest belongs to
            self.reusable = False
            data = data[:left]
        self._tail = data[-USAGE_BYTES:] if len(data) >= USAGE_BYTES else (self._tail + data)[-USAGE_BYTES:]
        if left > 0:
            self._left = left
        else:
            self.done = True
            self.usage = read_usage(self._tail)
        return data

    def _chunks(self, data: bytes) -> bytes:
        """Chunks, verbatim; of SSE only whole ones.

        A client that has got half a `data:` line cannot be told of a failure any more: whatever comes next
        would be read as the rest of that line. Engines write an event as one chunk, so holding back an
        open chunk costs nothing until one breaks off.
        """
        scanner = self._scanner
        payload: list[bytes] | None = [] if self.http_1_0 else None
        try:
            taken = scanner.feed(data, payload)
        except BadChunk as error:
            raise BadAnswer(str(error)) from None
        if scanner.ended:
            self.done = True
            if taken < len(data):
                self.reusable = False
                data = data[:taken]
        if payload is not None:
            return self._payload(b"".join(payload))
        if self.event_stream and not self.done and scanner.boundary < len(data):
            return self._hold(data, scanner.boundary)
        if self._held:
            data = self._held + data
            self._held = b""
        return self._whole_chunks(data)

    def _payload(self, data: bytes) -> bytes:
        """What chunks held, for a client that knows none; of SSE whole events only, as they may be edited."""
        if not self.event_stream:
            return data
        data = self._held + data
        end = data.rfind(b"\n\n") + 2
        if self.done or (end < 2 and len(data) > limits.HELD_CHUNK_BYTES):
            end = len(data)
        elif end < 2:
            end = 0
        data, self._held = data[:end], data[end:]
        return self._whole_chunks(data) if data else b""

    def _hold(self, data: bytes, boundary: int) -> bytes:
        """Pass on up to the end of the last whole chunk; keep the rest, unless that grows too long."""
        whole, rest = (
            (self._held + data[:boundary], data[boundary:]) if boundary else (b"", self._held + data)
        )
        self._held = rest
        if whole:
            whole = self._whole_chunks(whole)
        if len(self._held) <= limits.HELD_CHUNK_BYTES and not self._spilled:
            return whole
        rest, self._held = self._held, b""
        self._spilled = True
        self._tail = rest or whole
        return whole + rest

    def _whole_chunks(self, data: bytes) -> bytes:
        """What goes out of whole chunks, of which the first may have gone out in part."""
        if self.event_stream and not self._spilled and (USAGE in data or (self.twins and THOUGHT in data)):
            if self.http_1_0:
                data = self._edited(data)
            elif self.twins or self.hides_usage:
                data = edit_chunks(data, self._edited)
            else:
                self.usage = read_usage_event(data) or self.usage
        self._spilled = False
        self._tail = data
        return data

    def _edited(self, events: bytes) -> bytes:
        """Whole events as the client gets them."""
        usage = None
        if self.hides_usage:
            events, usage = hide_usage(events)
        self.usage = usage or read_usage_event(events) or self.usage
        return twin_events(events) if self.twins else events


def _last_event(data: bytes) -> bytes:
    """One event, and the end of the stream. Line ends in JSON are blanks, in an event they would end it."""
    event = b"data: %b\n\n" % data.replace(b"\r", b" ").replace(b"\n", b" ")
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
