"""What `service.py` decides of a request, as data: of its head, of the chute it means, of the whole."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from chutes import wire
from chutes.gateway import limits
from chutes.gateway.http import RequestHead
from chutes.gateway.routing import Destination
from chutes.gateway.surface import CHAT_PATHS, COMPLETION_PATHS
from chutes.gateway.upstream import Group

if TYPE_CHECKING:
    from chutes.gateway.exchange import Exchange
    from chutes.gateway.upstream import Instance


def _forwarded(*names: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.lower(), name + b": %b\r\n") for name in names)


FOR_ENGINES = _forwarded(b"Accept", b"User-Agent", b"Traceparent", b"Tracestate")
"""Request headers that an engine gets. Never the client's key or cookies; no Accept-Encoding either, as
an error event could not be added to a compressed stream."""
FOR_CONTROL = _forwarded(b"Content-Type", b"Accept")
JSON_BODY = b"Content-Type: application/json\r\n"
"""What a body is that a model was found in, whatever the client calls it: `curl -d` alone calls it a form."""

KEPT = b"/images/"
"""Below this path of a chute that draws are the pictures that were asked for by URL."""
_HOST = re.compile(rb"[A-Za-z0-9.\-_\[\]:]{1,255}")

THINKING = {b"true": True, b"1": True, b"false": False, b"0": False}


class Standing:
    """What a table says of a request head, for when the same head comes again."""

    __slots__ = (
        "aims",
        "base",
        "comments",
        "destination",
        "edition",
        "fields",
        "inference",
        "inner",
        "keeps",
        "key",
        "method",
        "path",
        "thinking",
    )

    def __init__(self, edition: object, request: RequestHead, key: wire.Key, inference: bool) -> None:
        self.edition = edition
        """Of the table that said so; holds for no other. Not the table: a remembered head would keep it."""
        self.key = key
        self.inference = inference
        self.fields = (
            JSON_BODY + _fields(request, FOR_ENGINES) if inference else _fields(request, FOR_CONTROL)
        )
        """The client's header lines that go on."""
        self.method = request.method.decode()
        self.path = request.path[: limits.NAME_CHARACTERS].decode()
        """For the record, as `method`."""
        self.thinking = THINKING.get(request.headers.get(b"x-enable-thinking", b"").lower())
        """What the header said of it; None: nothing."""
        self.aims: dict[str, Aim] = {}
        """By model name, as it was asked for; names of chutes only, so there are not many."""
        self.comments = (
            request.headers.get(b"x-wait-comments", b"") in (b"1", b"true") and not request.http_1_0
        )
        """The client wants to see life while its stream waits for a chute."""
        self.destination: Destination | None = None
        """The chute, if host or path names it; else the body does."""
        self.inner = b""
        """With a destination: its public path."""
        self.keeps = False
        """It asks for what an instance has made and keeps (`KEPT`)."""
        self.base = _base(request)
        """How the client reaches us: scheme and host; empty where it does not say."""

    def kept_at(self, route: wire.Route) -> bytes:
        """The header line that tells an instance under which URL its client finds what it keeps."""
        if not self.base or not keeps_pictures(route):
            return b""
        by_host = self.destination is not None and self.inner.startswith(self.path.encode())
        slug = b"" if by_host else b"/" + route.slug.encode()
        return b"X-Chutes-Images: %b%b%b\r\n" % (self.base, slug, KEPT)


class Aim:
    """What a table says of a request head and a chute."""

    __slots__ = (
        *(
            "capabilities",
            "chat",
            "completions",
            "draws",
            "group",
            "head",
            "name",
            "own",
            "thinking",
            "twins",
        ),
    )

    def __init__(
        self,
        standing: Standing,
        group: Group[Exchange],
        route: wire.Route,
        inner: bytes,
        query: bytes,
        thinking: bool | None,
    ) -> None:
        self.group = group
        self.name = route.name
        self.capabilities = route.capabilities
        self.head = b"POST %b%b HTTP/1.1\r\n%b%b" % (inner, query, standing.fields, standing.kept_at(route))
        self.own = bool(route.methods)
        """It is code of an author's own, which may forbid what it does not know."""
        self.chat = inner in CHAT_PATHS and not self.own
        self.completions = inner in COMPLETION_PATHS and not self.own
        self.draws = not self.completions and "images" in route.capabilities
        self.thinking = thinking
        self.twins = self.chat and "reasoning" in route.capabilities


class Order:
    """A request as an instance is to get it."""

    # Defaults stand here: most orders leave them.
    model = ""
    """As the client spelled it."""
    stream = False
    only: Instance | None = None
    """The instance that has what is asked for; None: any."""
    draws = False
    """Its stream is of pictures: chunks are no tokens."""
    shows_usage = True
    """The client wants to see the usage that a stream tells at its end."""
    twins = False
    """Thoughts in the answer are to be given under both of their names."""
    prefix: int | None = None
    """`balance.prefix_key`, if there are instances to choose from."""
    otherwise: Order | None = None
    """The same for the next chute of a list."""
    repeatable = True
    """Whether an instance that broke off may already have acted, harmlessly."""

    def __init__(
        self, standing: Standing, group: Group[Exchange], name: str, head: bytes, body: bytes
    ) -> None:
        self.standing = standing
        self.group = group
        self.name = name
        """Of the chute, for messages."""
        self.head = head
        """Request line and header lines, without Host, Authorization and X-Request-Id."""
        self.body = body

    def placed(self, now: float, avoid: tuple[Instance, ...]) -> tuple[Order, Instance] | None:
        """A free instance that is none of these, and the order for it: the next chute's, if need be."""
        order: Order | None = self
        while order is not None:
            instance = order.group.choose(now, order.prefix, avoid)
            if instance is not None:
                return order, instance
            order = order.otherwise
        return None


def _fields(request: RequestHead, names: tuple[tuple[bytes, bytes], ...]) -> bytes:
    headers = request.headers
    return b"".join(form % headers[name] for name, form in names if name in headers)


def keeps_pictures(route: wire.Route) -> bool:
    """Whether instances of this chute have pictures below `KEPT`: of an author's own code nobody knows."""
    return "images" in route.capabilities and not route.methods


def _base(request: RequestHead) -> bytes:
    """As the client spelled it, or the proxy before us, which is the one to know about TLS."""
    headers = request.headers
    host = headers.get(b"x-forwarded-host") or headers.get(b"host", b"")
    scheme = b"https" if headers.get(b"x-forwarded-proto", b"").lower() == b"https" else b"http"
    return b"%b://%b" % (scheme, host) if _HOST.fullmatch(host) else b""
