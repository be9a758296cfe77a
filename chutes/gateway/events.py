"""What the gateway reads in an engine's answer, and the two things that it changes there. Pure.

The usage that a client did not ask for is taken out of its stream, and thoughts are given under both of their
names: vLLM 0.32 says `reasoning`, older vLLM and SGLang say `reasoning_content`, clients know one or the
other.

All searches are for quoted keys. Inside a JSON string every quote has a backslash before it, so no text of a
model can look like one.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from chutes.gateway.shapes import Counts, Event, Told, Usage

USAGE_BYTES: Final = 4096
"""How far from the end of an answer its usage is looked for. Engines write it after choices and data, and
some hundred bytes of nulls after that."""
WHOLE_BYTES: Final = 256 * 1024
"""An answer up to this size is read whole (0.1 ms) when its end does not tell."""

RESPONSE_BYTES: Final = 256
"""Where an event of `/v1/responses` shows that the usage is one level deeper."""

NAMES: Final = ("reasoning", "reasoning_content")


_ANSWER: Final = msgspec.json.Decoder(Told)
_EVENT: Final = msgspec.json.Decoder(Event)
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_LIST: Final = msgspec.json.Decoder(list[Raw])
_encode: Final = msgspec.json.Encoder().encode


def read_usage(answer: bytes) -> Usage | None:
    """The usage of a JSON answer, or of the JSON of one event; None where there is none.

    Of a large answer its last part is enough: it may begin anywhere. What is found there parses, together
    with the brace that it leaves open, as an object: so it is not inside of anything.
    """
    at = answer.rfind(b'"usage"', max(0, len(answer) - USAGE_BYTES))
    if at >= 0 and not answer.endswith(b"\\", 0, at):
        found = _counts(b"{" + answer[at:])
        if found is None and b'"response":{' in answer[:RESPONSE_BYTES]:
            found = _counts(b'{"response":{' + answer[at:])
        if found is not None:
            return found.usage()
    found = _counts(answer) if len(answer) <= WHOLE_BYTES else None
    return found.usage() if found else None


def _counts(answer: bytes) -> Counts | None:
    try:
        found = _ANSWER.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found.usage or (found.response.usage if found.response else None)


def read_usage_event(data: bytes) -> Usage | None:
    """The usage in one or more whole server-sent events; of several, the last."""
    at = data.rfind(b'"usage":')
    if at < 0:
        return None
    begin = data.rfind(b"\ndata:", 0, at) + 1
    end = data.find(b"\n", at)
    payload = data[begin : end if end >= 0 else len(data)].removeprefix(b"data:")
    return read_usage(payload)


def hide_usage(data: bytes) -> tuple[bytes, Usage | None]:
    """Whole server-sent events without the one that only tells the usage, and that usage.

    Args:
        data: events, without the framing of HTTP chunks.
    """
    if b'"choices":[]' not in data and b'"choices": []' not in data:
        return data, None
    kept, usage, begin = [], None, 0
    for found in _DATA_LINE.finditer(data):
        told = _only_usage(found[1])
        if told is not None:
            kept.append(data[begin : found.start()])
            usage, begin = told, found.end()
    return (b"".join(kept) + data[begin:] if usage else data), usage


_DATA_LINE: Final = re.compile(rb"^data:(.*)[\r\n]*", re.MULTILINE)


def _only_usage(payload: bytes) -> Usage | None:
    try:
        event = _EVENT.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return event.usage.usage() if event.usage and not event.choices else None


# An event as vLLM and SGLang write it, up to the end of a thought. Possessive: a text of any length is passed
# over once.
_THOUGHT: Final = re.compile(
    rb'\s*\{(?:"[^"\\]*":(?:"[^"\\]*"|\d+|null),)*+"choices":\[\{"index":\d+,"delta":\{'
    rb'(?:"(?:role|content)":(?:"(?:[^"\\]++|\\.)*+"|null),)*+'
    rb'"(reasoning(?:_content)?)":("(?:[^"\\]++|\\.)*+"|null)',
    re.DOTALL,
)


def twin_reasoning(payload: bytes) -> bytes:
    """A JSON answer or event in which each message or delta has its thoughts under both names.

    Only what lies at `choices[].message` and `choices[].delta` is touched; values keep their bytes.
    """
    if b'"reasoning' not in payload:
        return payload
    found = _THOUGHT.match(payload)
    if found and payload.find(b'"reasoning', found.end()) < 0:
        name = b"reasoning_content" if found[1] == b"reasoning" else b"reasoning"
        end = found.end()
        return b'%b,"%b":%b%b' % (payload[:end], name, found[2], payload[end:])
    try:
        return _twin_answer(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return payload


def twin_events(data: bytes) -> bytes:
    """The same for one or more whole server-sent events."""
    if b'"reasoning' not in data:
        return data
    if data.startswith(b"data: ") and data.find(b"\n") == len(data) - 2:  # one event, as engines send them
        return b"data: %b\n\n" % twin_reasoning(data[6:-2])
    lines = data.split(b"\n")
    for number, line in enumerate(lines):
        if line.startswith(b"data:"):
            lines[number] = b"data:" + twin_reasoning(line[5:])
    return b"\n".join(lines)


def _twin_answer(payload: bytes) -> bytes:
    answer = _OBJECT.decode(payload)
    old = _LIST.decode(answer.get("choices", b"[]"))
    new = [_twin_choice(choice) for choice in old]
    if not any(new):
        return payload
    choices = [twin or bytes(raw) for twin, raw in zip(new, old, strict=True)]
    answer["choices"] = Raw(b"[%b]" % b",".join(choices))
    return _join(answer)


def _twin_choice(raw: Raw) -> bytes | None:
    """A choice with its thoughts twice; None when there is nothing to do."""
    try:
        choice = _OBJECT.decode(raw)
    except msgspec.ValidationError:
        return None
    changed = False
    for key in ("message", "delta"):
        twin = _twin_message(choice.get(key, UNSET))
        if twin is not None:
            choice[key] = Raw(twin)
            changed = True
    return _join(choice) if changed else None


def _twin_message(raw: Raw | UnsetType) -> bytes | None:
    if raw is UNSET:
        return None
    try:
        message = _OBJECT.decode(raw)
    except msgspec.ValidationError:
        return None
    have = [name for name in NAMES if name in message]
    if len(have) != 1:
        return None
    other = NAMES[1 - NAMES.index(have[0])]
    return _join(message | {other: message[have[0]]})


def _join(fields: dict[str, Raw]) -> bytes:
    return b"{%b}" % b",".join([b"%b:%b" % (_encode(key), bytes(value)) for key, value in fields.items()])
