"""What an answer says, filled into the record of its request as it comes. Pure: bytes and their time in.

An event counts as tokens when it carries text, a thought or a part of a tool call. Empty text counts too: a
token may be half a character. But not the chunk that opens a chat with a role and no text.
"""

from __future__ import annotations

import msgspec

from benchmarks.harness.http1 import BadAnswer, Response
from benchmarks.harness.records import Record

MAX_EVENT = 1 << 22
"""Bytes of one event: the usage of a whole batch fits, an endless line does not."""
MAX_EVENTS = 1 << 20
"""Times kept of one answer: more tokens than any model's context."""
MAX_TEXT = 8 * MAX_EVENTS
"""Characters kept of one answer, for the conversation it is a part of; a token has four or so."""
MAX_BODY = 1 << 28
"""Bytes of an answer that is no stream. Four images of 2048² in base64 are a tenth of it."""
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises of JSON that is none, is not in UTF-8, or is nested without end."""
MAX_ERROR = 300
"""Characters kept of what a server says of an error."""


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None

    def counts(self) -> bool:
        if self.content or self.reasoning or self.reasoning_content or self.tool_calls:
            return True
        return self.role is None and self.content is not None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


_NOTHING = msgspec.Raw()


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = _NOTHING
    data: list[msgspec.Raw] = []
    """Of embeddings and images."""


_decode = msgspec.json.Decoder(_Event).decode


class Text:
    """What an answer says, kept for the conversation it is a part of."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0

    def add(self, piece: str) -> None:
        """Raises BadAnswer: it is longer than any should be."""
        self._size += len(piece)
        if self._size > MAX_TEXT:
            raise BadAnswer(f"an answer of more than {MAX_TEXT} characters")
        self._pieces.append(piece)

    def __str__(self) -> str:
        return "".join(self._pieces)


class Stream:
    """An answer of server-sent events."""

    __slots__ = ("_data", "_done", "_finish", "_rest", "record", "text")

    def __init__(self, record: Record, keep_text: bool = False) -> None:
        self.record = record
        self.text = Text() if keep_text else None
        self._rest = b""
        self._data = b""
        self._done = False
        self._finish = ""

    def feed(self, body: bytes, now: float) -> None:
        """Raises BadAnswer: an event cannot be read, or something is longer than any should be."""
        lines = (self._rest + body).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) + len(self._data) > MAX_EVENT:
            raise BadAnswer(f"an event of more than {MAX_EVENT} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                # Several data lines are one event, joined by line ends.
                self._data = self._data + b"\n" + line[5:] if self._data else line[5:]
            elif self._data and line in (b"", b"\r"):
                data, self._data = self._data.strip(), b""
                self._event(data, now)

    def end(self) -> None:
        """The answer is over: what it lacks is its error."""
        if not self.record.error and not (self._done and self._finish):
            lacks = "[DONE]" if self._finish else "a finish_reason"
            self.record.error, self.record.message = "truncated", f"the stream ended without {lacks}"

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        try:
            event = _decode(data)
        except UNREADABLE as error:
            raise BadAnswer(f"an event is not what it should be: {error}") from None
        record = self.record
        _note_error(record, event)
        counted = False
        for choice in event.choices:
            counted |= choice.text is not None or (choice.delta is not None and choice.delta.counts())
            self._finish = choice.finish_reason or self._finish
            if self.text is not None and choice.delta is not None and choice.delta.content:
                self.text.add(choice.delta.content)
        if event.usage is not None:
            _count(record, event.usage)
        if counted:
            if record.first is None:
                record.first = now
            elif len(record.times) < MAX_EVENTS:
                record.times.append(now)
            else:
                raise BadAnswer(f"more than {MAX_EVENTS} events")
            record.last = now


class Whole:
    """An answer of one JSON document: not streamed, embeddings, images, or an error."""

    __slots__ = ("_pieces", "_size", "record", "text")

    def __init__(self, record: Record, keep_text: bool = False) -> None:
        self.record = record
        self.text = Text() if keep_text else None
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, body: bytes, now: float) -> None:
        """Raises BadAnswer: it is longer than any should be."""
        del now
        self._size += len(body)
        if self._size > MAX_BODY:
            raise BadAnswer(f"an answer of more than {MAX_BODY} bytes")
        self._pieces.append(body)

    def end(self) -> None:
        """Read it. Raises BadAnswer: it is not JSON of this kind, or what it says is too long."""
        body, record = b"".join(self._pieces), self.record
        if record.status != 200:
            record.error, record.message = f"http_{record.status}", shortened(body)
            return
        try:
            answer = _decode(body)
        except UNREADABLE as error:
            raise BadAnswer(f"the answer is not what it should be: {error}") from None
        _note_error(record, answer)
        if answer.usage is not None:
            _count(record, answer.usage)
        record.images = sum(b'"b64_json"' in bytes(item) or b'"url"' in bytes(item) for item in answer.data)
        if answer.choices and not all(choice.finish_reason for choice in answer.choices):
            record.error, record.message = "truncated", "the answer has no finish_reason"
        if not answer.choices and not answer.data and not record.error:
            record.error, record.message = "truncated", "the answer is empty"
        if self.text is not None:
            for choice in answer.choices:
                if choice.message and choice.message.content:
                    self.text.add(choice.message.content)


def reader(response: Response, record: Record, keep_text: bool = False) -> Stream | Whole:
    """What reads the body of this answer, by its head."""
    if response.status == 200 and response.content_type.startswith(b"text/event-stream"):
        return Stream(record, keep_text)
    return Whole(record, keep_text)


def _note_error(record: Record, event: _Event) -> None:
    if event.error is not _NOTHING and (said := bytes(event.error)) != b"null":
        record.error, record.message = "stream_error", shortened(said)


def _count(record: Record, usage: _Usage) -> None:
    """The last usage counts: some servers send one with every event."""
    record.input_tokens = usage.prompt_tokens
    record.output_tokens = usage.completion_tokens
    if usage.prompt_tokens_details is not None:
        record.cached_tokens = usage.prompt_tokens_details.cached_tokens


class _Said(msgspec.Struct):
    message: str = ""


class _SaidWithin(msgspec.Struct):
    error: _Said = msgspec.field(default_factory=_Said)


def shortened(body: bytes) -> str:
    """What a server says of an error, in one short line."""
    text = ""
    for kind in (_SaidWithin, _Said):
        try:
            said = msgspec.json.decode(body, type=kind)
        except UNREADABLE:
            continue
        text = text or (said.error.message if isinstance(said, _SaidWithin) else said.message)
    return " ".join((text or body[: 4 * MAX_ERROR].decode("utf-8", "replace")).split())[:MAX_ERROR]
