"""What a request gets: an answer from memory, a refusal, or an order to forward it.

Decisions only: no socket is touched here, and the time is passed in. The one thing that changes is the
table, and it changes as a whole.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec

from chutes import wire
from chutes.gateway import answers, limits
from chutes.gateway.access import Access, may_invoke
from chutes.gateway.answers import Answer, Refusal
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


class Order:
    """A request as an instance is to get it."""

    __slots__ = ("body", "fields", "group", "line", "name", "repeatable")

    def __init__(
        self, group: Group, name: str, line: bytes, fields: list[bytes], body: bytes, repeatable: bool
    ) -> None:
        self.group = group
        self.name = name
        """Of the chute, for messages."""
        self.line = line
        """Method, path and query; the rest of the request line is the same for all."""
        self.fields = fields
        """Header lines, each ending in CRLF, without Host, Authorization and X-Request-Id."""
        self.body = body
        self.repeatable = repeatable
        """Whether an instance that broke off may already have acted, harmlessly."""


class Service:
    """Serves one table after another.

    Args:
        max_body: bytes of the largest request body.
    """

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        self.upstreams = Upstreams()
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

    def admit(self, request: RequestHead, now: float) -> wire.Key | Answer:
        """What the head alone decides, so that no body is read in vain.

        Returns: an answer from memory, or the key under which the body is to be served.
        Raises: Refusal.
        """
        return self._admit(request, self._is_inference(request.method, request.path), now)

    def _admit(self, request: RequestHead, inference: bool, now: float) -> wire.Key | Answer:
        if not self._ready:
            raise answers.starting()
        if request.length > self.max_body:
            raise self.too_large()
        method, path = request.method, request.path
        if inference:
            if method != b"POST":
                raise _wrong_method(b"POST")
            return self._access.identify(request.headers, now)
        if _is_ours(path):
            return self._from_memory(request, now)
        key = self._access.identify(request.headers, now)
        if not key.admin:
            if path.startswith(b"/v1/"):
                raise no_such_path(path, None)
            raise Refusal(
                403,
                "admin_key_needed",
                "This key may call models but not manage the platform.",
                "Use an admin key: `chutes keys create --admin --name NAME`.",
            )
        return key

    def serve(self, request: RequestHead, body: bytes, now: float) -> Answer | Order:
        """Decide on a whole request. Raises Refusal."""
        inference = self._is_inference(request.method, request.path)
        admitted = self._admit(request, inference, now)
        if isinstance(admitted, Answer):
            return admitted
        if inference:
            return self._inference(request, body, admitted)
        group = self.upstreams.group(None)
        if not group.instances:
            raise Refusal(
                503, "control_not_ready", "The control API is not there.", headers=b"Retry-After: 1\r\n"
            )
        line = b"%b %b%b" % (request.method, request.path, request.query)
        safe = request.method in (b"GET", b"HEAD")
        fields = _fields(request, FOR_CONTROL, body, length=bool(body) or not safe)
        return Order(group, "the control API", line, fields, body, repeatable=safe)

    def too_large(self) -> Refusal:
        """For a body over `max_body`; its rest will not be read, so the connection ends."""
        return Refusal(
            413,
            "body_too_large",
            f"The request body is over {self.max_body} bytes.",
            "Send less, or raise CHUTES_MAX_BODY_MIB where the platform runs.",
            close=True,
        )

    def _is_inference(self, method: bytes, path: bytes) -> bool:
        if path in self._routes.inference_paths:
            return True
        return method == b"POST" and path.startswith(b"/v1/") and not _is_ours(path)

    def _inference(self, request: RequestHead, body: bytes, key: wire.Key) -> Order:
        model = peek(body).model
        destination = self._routes.find(model)
        if destination is None:
            raise self._routes.no_such_model(model, key)
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
        line = b"POST %b%b" % (inner, request.query)
        return Order(
            group, route.name, line, [JSON_BODY, *_fields(request, FOR_ENGINES, body)], body, repeatable=True
        )

    def _from_memory(self, request: RequestHead, now: float) -> Answer:
        path = request.path
        static = STATIC.get(path)
        if request.method not in (b"GET", b"HEAD"):
            raise _wrong_method(b"GET, HEAD")
        if static is not None:
            return static
        key = self._access.identify(request.headers, now)
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


def _fields(
    request: RequestHead, names: tuple[tuple[bytes, bytes], ...], body: bytes, *, length: bool = True
) -> list[bytes]:
    headers = request.headers
    fields = [form % headers[name] for name, form in names if name in headers]
    if length:
        fields.append(b"Content-Length: %d\r\n" % len(body))
    return fields


def _wrong_method(allowed: bytes) -> Refusal:
    text = allowed.decode()
    return Refusal(
        405,
        "method_not_allowed",
        f"This path is asked with {text}.",
        f"Use {text}.",
        headers=b"Allow: %b\r\n" % allowed,
    )
