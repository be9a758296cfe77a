"""What a request gets: an answer from memory, a refusal, or an order to forward it.

Decisions only: no socket is touched here, and the time is passed in. The one thing that changes is the
table, and it changes as a whole.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec

from chutes import wire
from chutes.board import Board
from chutes.gateway import answers, limits
from chutes.gateway.access import Access, check_expiry, may_invoke
from chutes.gateway.answers import Answer, Refusal
from chutes.gateway.heads import RequestHeads
from chutes.gateway.http import RequestHead
from chutes.gateway.routing import MODELS_PATHS, Routes, no_such_path
from chutes.gateway.upstream import Group, Upstreams


def _forwarded(*names: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.lower(), name + b": %b\r\n") for name in names)


FOR_ENGINES = _forwarded(b"Accept", b"User-Agent", b"Traceparent", b"Tracestate")
"""Request headers that an engine gets. Never the client's key or cookies; no Accept-Encoding either, as
an error event could not be added to a compressed stream."""
FOR_CONTROL = _forwarded(b"Content-Type", b"Accept")
JSON_BODY = b"Content-Type: application/json\r\n"
"""What a body is that a model was found in, whatever the client calls it: `curl -d` alone calls it a form."""

STATIC = {b"/": answers.WELCOME, b"/ping": answers.PING, b"/health": answers.HEALTHY}
MODEL_PREFIXES = tuple(path + b"/" for path in MODELS_PATHS)


class Peek(msgspec.Struct):
    """The top-level fields of a body that concern the gateway; the decoder skips all others unbuilt."""

    model: str
    stream: Any = None
    """Not judged here: whether `"stream": "yes"` is an error is for the engine to say."""


PEEK = msgspec.json.Decoder(Peek)


class Standing:
    """What a table says of a request head, for when the same head comes again."""

    __slots__ = ("fields", "inference", "key", "method", "path", "routes")

    def __init__(self, routes: Routes, request: RequestHead, key: wire.Key, inference: bool) -> None:
        self.routes = routes
        """Of the table that said so; holds for no other."""
        self.key = key
        self.inference = inference
        self.fields = (
            JSON_BODY + _fields(request, FOR_ENGINES) if inference else _fields(request, FOR_CONTROL)
        )
        """The client's header lines that go on."""
        self.method = request.method.decode()
        self.path = request.path[: limits.NAME_CHARACTERS].decode()
        """For the record, as `method`."""


class Order:
    """A request as an instance is to get it."""

    __slots__ = ("body", "group", "head", "model", "name", "repeatable", "standing", "stream")

    def __init__(self, standing: Standing, group: Group, name: str, head: bytes, body: bytes) -> None:
        self.standing = standing
        self.group = group
        self.name = name
        """Of the chute, for messages."""
        self.head = head
        """Request line and header lines, without Host, Authorization and X-Request-Id."""
        self.body = body
        self.model = ""
        """As the client spelled it."""
        self.stream = False
        self.repeatable = True
        """Whether an instance that broke off may already have acted, harmlessly."""


class Service:
    """Serves one table after another.

    Args:
        max_body: bytes of the largest request body.
    """

    def __init__(self, max_body: int, board: Board | None = None) -> None:
        self.max_body = max_body
        self.heads = RequestHeads()
        self.upstreams = Upstreams(board or Board(Board.create(rows=1).fd, row=0))
        self._ready = False
        self._access = Access([])
        self._routes = Routes([])
        self._all_models = answers.model_list([])

    def swap(self, table: wire.Table) -> None:
        """Serve from this table from the next request on."""
        self.upstreams.swap(table)
        self._access = Access(table.keys)
        self._routes = Routes(table.routes)
        self._all_models = answers.model_list(table.routes)
        self._ready = True

    def admit(self, request: RequestHead, length: int, now: float) -> Standing | Answer:
        """What the head alone decides, so that no body is read in vain.

        Returns: an answer from memory, or under which key the body is to be served.
        Raises: Refusal.
        """
        if not self._ready:
            raise answers.starting()
        if length > self.max_body:
            raise self.too_large()
        method, path = request.method, request.path
        inference = path in self._routes.inference_paths
        if not inference and method == b"POST" and path.startswith(b"/v1/"):
            inference = not _is_ours(path)
        if inference and method != b"POST":
            raise _wrong_method(b"POST")
        if not inference and _is_ours(path):
            return self._from_memory(request, now)
        key = self._access.identify(request.credential, now)
        if not inference and not key.admin:
            if path.startswith(b"/v1/"):
                raise no_such_path(path, None)
            raise Refusal(
                403,
                "admin_key_needed",
                "This key may call models but not manage the platform.",
                "Use an admin key: `chutes keys create --admin --name NAME`.",
            )
        request.standing = standing = Standing(self._routes, request, key, inference)
        self.heads.remember(request)
        return standing

    def serve(self, request: RequestHead, body: bytes, now: float) -> Answer | Order:
        """Decide on a whole request. Raises Refusal.

        Args:
            now: Unix time.
        """
        standing = request.standing
        if standing is None or standing.routes is not self._routes:
            standing = self.admit(request, len(body), now)
            if isinstance(standing, Answer):
                return standing
        elif standing.key.expires is not None:
            check_expiry(standing.key, now)
        if standing.inference:
            return self._inference(request, body, standing)
        group = self.upstreams.group(None)
        if not group.instances:
            raise Refusal(
                503, "control_not_ready", "The control API is not there.", headers=b"Retry-After: 1\r\n"
            )
        safe = request.method in (b"GET", b"HEAD")
        length = b"Content-Length: %d\r\n" % len(body) if body or not safe else b""
        head = b"%b %b%b HTTP/1.1\r\n%b%b" % (
            request.method,
            request.path,
            request.query,
            standing.fields,
            length,
        )
        order = Order(standing, group, "the control API", head, body)
        order.repeatable = safe
        return order

    def too_large(self) -> Refusal:
        """For a body over `max_body`; its rest will not be read, so the connection ends."""
        return Refusal(
            413,
            "body_too_large",
            f"The request body is over {self.max_body} bytes.",
            "Send less, or raise CHUTES_MAX_BODY_MIB where the platform runs.",
            close=True,
        )

    def _inference(self, request: RequestHead, body: bytes, standing: Standing) -> Order:
        peeked = peek(body)
        key = standing.key
        destination = self._routes.find(peeked.model)
        if destination is None:
            raise self._routes.no_such_model(peeked.model, key)
        route = destination.route
        if not may_invoke(key, route.chute_id):
            raise Refusal(
                403,
                "model_not_allowed",
                f"This key may not call {route.name!r}.",
                "GET /v1/models lists what it may call.",
                param="model",
            )
        inner = destination.inner.get(request.path)
        if inner is None:
            raise no_such_path(request.path, route)
        group = self.upstreams.group(route.chute_id)
        if not group.instances:
            raise answers.not_ready(route, limits.RETRY_AFTER_SECONDS)
        head = b"POST %b%b HTTP/1.1\r\n%bContent-Length: %d\r\n" % (
            inner,
            request.query,
            standing.fields,
            len(body),
        )
        order = Order(standing, group, route.name, head, body)
        order.model = peeked.model
        if peeked.stream is True:
            order.stream = True
        return order

    def _from_memory(self, request: RequestHead, now: float) -> Answer:
        path = request.path
        static = STATIC.get(path)
        if request.method not in (b"GET", b"HEAD"):
            raise _wrong_method(b"GET, HEAD")
        if static is not None:
            return static
        key = self._access.identify(request.credential, now)
        if path.rstrip(b"/") in MODELS_PATHS:
            return (
                self._all_models if key.chute_ids is None else answers.model_list(self._routes.visible(key))
            )
        model = unquote(path.partition(b"models/")[2])
        destination = self._routes.find(model)
        if destination is None or not may_invoke(key, destination.route.chute_id):
            raise self._routes.no_such_model(model, key)
        return answers.model(destination.route)


def peek(body: bytes) -> Peek:
    """Read `model` and `stream` from a body, in one pass that builds nothing else.

    Raises:
        Refusal: 400; says where the JSON goes wrong, or which field does.
    """
    try:
        return PEEK.decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        if "`model`" in text or "$.model" in text:
            what = "'model' must be a string." if "$.model" in text else "The body has no 'model'."
            raise Refusal(
                400, "invalid_model", what, "GET /v1/models lists the models.", param="model"
            ) from None
        raise Refusal(400, "invalid_json", "The body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):  # its own text would quote the body
            text = "a string is not UTF-8"
        elif isinstance(error, RecursionError):
            text = "it is nested too deeply"
        else:
            text = str(error).removeprefix("JSON is malformed: ")
            text = text.replace("Input data was truncated", f"it ends too early (byte {len(body)})")
        raise Refusal(400, "invalid_json", f"The body is not valid JSON: {text}.") from None


def _is_ours(path: bytes) -> bool:
    """Whether this path is answered from memory."""
    return path in STATIC or path in MODELS_PATHS or path.startswith(MODEL_PREFIXES)


def _fields(request: RequestHead, names: tuple[tuple[bytes, bytes], ...]) -> bytes:
    headers = request.headers
    return b"".join(form % headers[name] for name, form in names if name in headers)


def _wrong_method(allowed: bytes) -> Refusal:
    text = allowed.decode()
    return Refusal(
        405,
        "method_not_allowed",
        f"This path is asked with {text}.",
        f"Use {text}.",
        headers=b"Allow: %b\r\n" % allowed,
    )
