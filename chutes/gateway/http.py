"""HTTP/1.1 heads: from bytes to facts, strictly. Pure; no socket, no clock.

Every leniency here would be a disagreement with the next server about where a request ends, which is all
that request smuggling needs. So a bare line feed, a folded line, a blank before a colon, a control
character or two opinions about a length end the connection.
"""

from __future__ import annotations

import base64
import contextlib
import re
from typing import TYPE_CHECKING, Final

from chutes.exception import ChutesError
from chutes.gateway import limits
from chutes.gateway.answers import Refusal
from chutes.wire import key_digest

if TYPE_CHECKING:
    from chutes.gateway.orders import Standing

TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")

LENGTH_DIGITS: Final = 15
"""Of a Content-Length: a petabyte; int() of more digits than that is work that a stranger would choose."""

CONTROLS: Final = bytes((set(range(32)) | {127}) - set(b"\t"))
"""What no line of a head may hold."""

COMMON_NAMES: Final = {
    spelling: name.lower()
    for name in (
        b"Host Accept Accept-Encoding Accept-Language Authorization Connection Content-Length Content-Type "
        b"Transfer-Encoding User-Agent X-API-Key X-Api-Key X-Request-ID X-Request-Id Date Server Traceparent "
        b"X-Stainless-Lang X-Stainless-Package-Version X-Stainless-OS X-Stainless-Arch X-Stainless-Runtime "
        b"X-Stainless-Runtime-Version X-Stainless-Async X-Stainless-Retry-Count X-Stainless-Read-Timeout"
    ).split()
    for spelling in (name, name.lower())
}
"""Spellings that need no check and no lower(): a third of the cost of a head otherwise."""

ONCE: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"expect")
)
"""Said twice, these are two opinions; other fields said twice are a list."""

METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
"""Need no check of their letters."""

# What a line of a response's head means to us.
PLAIN, LENGTH, CODING, TYPE, CONNECTION, DROPPED = range(6)
RESPONSE_NAMES = {
    b"Content-Length": LENGTH,
    b"Transfer-Encoding": CODING,
    b"Content-Type": TYPE,
    b"Connection": CONNECTION,
    # About one connection, so not for the next.
    b"Keep-Alive": DROPPED,
    b"Proxy-Authenticate": DROPPED,
    b"Proxy-Connection": DROPPED,
    b"TE": DROPPED,
    b"Trailer": DROPPED,
    b"Upgrade": DROPPED,
    # Ours to set: the client's own, whatever the engine thinks.
    b"X-Request-ID": DROPPED,
    b"X-Request-Id": DROPPED,
    b"Date": PLAIN,
    b"Server": PLAIN,
}
RESPONSE_NAMES |= {name.lower(): meaning for name, meaning in RESPONSE_NAMES.items()}


class RequestHead:
    """What the head of a request says. `headers` has lower-case names; repeated ones are joined.

    The key that came with it is not in there, only its digest.
    """

    __slots__ = (
        "chunked",
        "credential",
        "expects_continue",
        "headers",
        "http_1_0",
        "keep_alive",
        "length",
        "method",
        "path",
        "query",
        "shape",
        "standing",
    )

    def __init__(
        self, method: bytes, path: bytes, query: bytes, http_1_0: bool, headers: dict[bytes, bytes]
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        """With its `?`, or empty."""
        self.http_1_0 = http_1_0
        self.headers = headers
        self.keep_alive = not http_1_0
        self.chunked = False
        self.length = 0
        """Of the body; 0 when chunked."""
        self.expects_continue = False
        self.credential: str | None = None
        """`wire.key_digest` of the key that was sent."""
        self.shape: bytes | None = None
        """What `heads.py` may remember it by."""
        self.standing: Standing | None = None
        """What `service.py` found out about it, for when it comes again."""


def bad(message: str, status: int = 400, code: str = "bad_http") -> Refusal:
    """A request whose end cannot be trusted, so neither can anything after it on the connection."""
    return Refusal(status, code, message, close=True)


def parse_request_head(head: bytes) -> RequestHead:
    """Read a head, given without its final blank line.

    Raises:
        Refusal: 400 (or 431, 505, 417) with `close` set.
    """
    lines = _lines(head)
    parts = lines[0].split(b" ")
    if len(parts) != 3:
        raise bad("The request line is not METHOD TARGET VERSION.")
    method, target, version = parts
    if version != b"HTTP/1.1" and version != b"HTTP/1.0":
        raise bad("Only HTTP/1.1 and HTTP/1.0 are spoken here.", 505, "http_version")
    if method not in METHODS and not TOKEN.fullmatch(method):
        raise bad("The method is not a token.")
    if target[:1] != b"/":
        target = _origin_form(target)
    if not target.isascii():
        raise bad("The request target holds bytes that should be percent-encoded.")
    path, mark, query = target.partition(b"?")
    headers = _fields(lines)
    request = RequestHead(method, path, mark + query, version == b"HTTP/1.0", headers)
    if b"host" not in headers and not request.http_1_0:
        raise bad("An HTTP/1.1 request needs a Host header.")
    _frame(request)
    request.credential = _credential(headers)
    connection = headers.get(b"connection")
    if connection is not None and b"close" in connection.lower():
        request.keep_alive = False
    return request


def _credential(headers: dict[bytes, bytes]) -> str | None:
    """Take the key out of the headers; its digest.

    `Authorization` may say `Bearer KEY`, `Basic` as in RFC 7617 with the key as either half, or just `KEY`
    (the published platform takes the last word, whatever comes before it); without it, `X-API-Key` counts.
    """
    bearer, plain = headers.pop(b"authorization", b""), headers.pop(b"x-api-key", b"")
    text = bearer or plain
    if not text:
        return None
    key = text[text.rfind(b" ") + 1 :]
    if text[:6].lower() == b"basic " and not key.startswith(b"cpk_"):
        with contextlib.suppress(ValueError):
            user, _, password = base64.b64decode(key, validate=True).partition(b":")
            key = password or user
    return key_digest(key)


def _frame(request: RequestHead) -> None:
    """Where the body ends, or a refusal if there is any doubt."""
    headers = request.headers
    length = headers.get(b"content-length")
    if length is not None:
        if not length.isdigit() or len(length) > LENGTH_DIGITS:
            raise bad("Content-Length is not a number.")
        request.length = int(length)
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise bad("A request has Content-Length or Transfer-Encoding, never both.")
        if request.http_1_0:
            raise bad("HTTP/1.0 knows no Transfer-Encoding.")
        if coding.lower() != b"chunked":
            raise bad("The only Transfer-Encoding understood here is chunked.")
        request.chunked = True
    expect = headers.get(b"expect")
    if expect is not None and not request.http_1_0:
        if expect.lower() != b"100-continue":
            raise bad("The only expectation understood here is 100-continue.", 417, "expectation_failed")
        request.expects_continue = True


def _lines(head: bytes) -> list[bytes]:
    """The lines of a head, of which each ended in CRLF and none holds a control character."""
    lines = head.split(b"\r\n")
    if len(lines) > limits.HEADER_COUNT + 1:
        raise bad(f"More than {limits.HEADER_COUNT} header lines.", 431, "too_many_headers")
    # Every line end that was split at took two bytes; any CR or LF beyond those stood alone.
    if len(head.translate(None, CONTROLS)) != len(head) - 2 * (len(lines) - 1):
        raise bad("The head holds a control character, or a line that ends in a bare CR or LF.")
    return lines


def _fields(lines: list[bytes]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    common = COMMON_NAMES
    for line in lines[1:]:
        spelled, colon, value = line.partition(b":")
        name = common.get(spelled) or _field_name(spelled)
        if not colon:
            raise bad("A header line has no colon.")
        if name in fields:
            if name in ONCE:
                raise bad(f"{name.decode()} was sent twice.")
            value = fields[name] + b", " + value.strip(b" \t")
        fields[name] = value.strip(b" \t")
    return fields


def _field_name(spelled: bytes) -> bytes:
    if not TOKEN.fullmatch(spelled):  # a blank before the colon, a folded line, an empty name
        raise bad("A header name is not a token directly followed by a colon.")
    return spelled.lower()


def _origin_form(target: bytes) -> bytes:
    """`http://host/path` → `/path`: the form meant for proxies, which every server must take."""
    if target[:7].lower() != b"http://":
        raise bad("The request target is not a path.")
    _, slash, path = target[7:].partition(b"/")
    return slash + path if slash else b"/"


class ResponseHead:
    """What the head of an engine's response says, and as much of it as the client gets."""

    __slots__ = ("chunked", "event_stream", "http_1_0", "keep_alive", "length", "start", "status")

    def __init__(self, status: int, http_1_0: bool) -> None:
        self.status = status
        self.http_1_0 = http_1_0
        self.start = b""
        """Status line and end-to-end header lines, without Content-Length and Transfer-Encoding."""
        self.keep_alive = not http_1_0
        self.chunked = False
        self.length: int | None = None
        self.event_stream = False


class BadAnswer(ChutesError):
    """An engine sent what is not HTTP; the text says what, for control and the client."""


def parse_response_head(head: bytes) -> ResponseHead:
    """Read a head, given without its final blank line.

    Raises:
        BadAnswer: it is not one.
    """
    try:
        lines = _lines(head)
    except Refusal as refusal:
        raise BadAnswer(refusal.message) from None
    match = STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise BadAnswer("The status line is not HTTP/1.")
    response = ResponseHead(int(match[2]), match[1] == b"0")
    keep: list[bytes] = []
    dropped: set[bytes] = set()
    for line in lines[1:]:
        name = line[: line.find(b":")]
        meaning = RESPONSE_NAMES.get(name)
        if meaning is None:
            meaning = _uncommon(line, name)
        if meaning == PLAIN:
            keep.append(line)
            continue
        value = line[len(name) + 1 :].strip(b" \t")
        if meaning == LENGTH:
            _response_length(response, value)
        elif meaning == TYPE:
            response.event_stream = value[:17].lower() == b"text/event-stream"
            keep.append(line)
        elif meaning == CODING:
            if value.lower() != b"chunked" or response.chunked:
                raise BadAnswer("Its Transfer-Encoding is not chunked.")
            response.chunked = True
        elif meaning == CONNECTION:
            if value == b"keep-alive" and not response.http_1_0:
                continue
            options = {option.strip(b" \t") for option in value.lower().split(b",")}
            response.keep_alive = b"close" not in options and (
                not response.http_1_0 or b"keep-alive" in options
            )
            dropped = options - {b"close", b"keep-alive"}
    if dropped:  # fields that the engine declared to be about this connection only
        keep = [line for line in keep if line.partition(b":")[0].lower() not in dropped]
    if response.chunked and response.length is not None:
        raise BadAnswer("It has Content-Length and Transfer-Encoding.")
    response.start = b"\r\n".join((b"HTTP/1.1" + lines[0][8:], *keep, b""))
    return response


def _uncommon(line: bytes, name: bytes) -> int:
    """What a line means whose name is not spelled as engines do."""
    if line[len(name) : len(name) + 1] != b":" or not TOKEN.fullmatch(name):
        raise BadAnswer("A header line has no name.")
    return RESPONSE_NAMES.get(name.lower(), PLAIN)


def _response_length(response: ResponseHead, value: bytes) -> None:
    if not value.isdigit() or len(value) > LENGTH_DIGITS or response.length is not None:
        raise BadAnswer("Its Content-Length is not one number.")
    response.length = int(value)
