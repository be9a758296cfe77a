"""What the gateway says in its own words: OpenAI error objects, the model list, small answers.

Pure: values in, bytes out. Clients such as the OpenAI SDK and LiteLLM show a user `error.message` and
nothing else, so that sentence carries the fix as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from chutes import wire
from chutes.chute import docs
from chutes.exception import ChutesError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "service_unavailable",
    504: "service_unavailable",
}
"""`error.type` by status; every other refusal is the request's fault."""

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class Refusal(ChutesError):
    """A request that the gateway answers with an error of its own.

    Args:
        status: HTTP status.
        code: `error.code`, for programs.
        message: what is wrong, for people.
        fix: what to do about it; joined to the message.
        param: the field of the request that is at fault.
        headers: further header lines, each ending in CRLF.
        close: whether the connection cannot be read on from here.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        fix: str = "",
        *,
        param: str | None = None,
        headers: bytes = b"",
        close: bool = False,
    ) -> None:
        super().__init__(message, fix)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers
        self.close = close

    def body(self) -> bytes:
        """The OpenAI error object."""
        error = {
            "message": f"{self.message} {self.fix}".rstrip(),
            "type": TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def answer(self) -> Answer:
        return Answer(self.status, self.body(), self.headers)


class Answer(NamedTuple):
    """A whole answer that needs no engine."""

    status: int
    body: bytes
    headers: bytes = b""
    """Header lines beyond the usual ones, each ending in CRLF."""
    kind: bytes = b"application/json"


def serialise(answer: Answer, request_id: bytes, *, close: bool = False, head_only: bool = False) -> bytes:
    """Head and body as they go to the client. `head_only`: the answer to HEAD, with GET's length."""
    return b"".join(
        (
            STATUS_LINES[answer.status],
            b"Content-Type: %b\r\nContent-Length: %d\r\n" % (answer.kind, len(answer.body)),
            answer.headers,
            b"X-Request-Id: %b\r\n" % request_id if request_id else b"",
            b"Connection: close\r\n\r\n" if close else b"\r\n",
            b"" if head_only else answer.body,
        )
    )


FEATURES = {
    "json_mode": "json_schema",
    "structured_outputs": "json_schema",
    "tools": "tools",
    "reasoning": "reasoning",
}
"""The published platform's names of features → ours of capabilities, in its order."""


def model_object(route: wire.Route) -> dict[str, Any]:
    """One entry of `/v1/models`: OpenAI's fields, then the published platform's, then ours: `capabilities`
    (see `wire.Route`), `state` and `aliases`.

    Prices are US dollars per million tokens, as there.
    """
    able = route.capabilities
    price = {
        "prompt": route.price.prompt,
        "completion": route.price.completion,
        "input_cache_read": route.price.cached,
    }
    return {
        "id": route.name,
        "object": "model",
        "created": route.created,
        "owned_by": route.engine,
        "root": route.name,
        "chute_id": route.chute_id,
        "max_model_len": route.max_model_len,
        "context_length": route.max_model_len,
        # Engines let an answer use what the prompt leaves.
        "max_output_length": route.max_model_len if "embeddings" not in able else None,
        "input_modalities": ["text", "image"] if "vision" in able else ["text"],
        "output_modalities": [_output(able)],
        "supported_features": [feature for feature, needed in FEATURES.items() if needed in able],
        "confidential_compute": False,
        "price": {
            "input": {"usd": route.price.prompt},
            "output": {"usd": route.price.completion},
            "input_cache_read": {"usd": route.price.cached},
        },
        "pricing": price,
        "capabilities": able,
        # While a new version starts, its phase is not what a caller meets: the old one still answers.
        "state": "ready" if route.upstreams else "asleep" if route.asleep else route.phase,
        "aliases": route.aliases,
    }


def _output(capabilities: list[str]) -> str:
    if "embeddings" in capabilities:
        return "embedding"
    return "image" if "images" in capabilities else "text"


def model_list(routes: Iterable[wire.Route]) -> Answer:
    return Answer(200, msgspec.json.encode({"object": "list", "data": [model_object(r) for r in routes]}))


def model(route: wire.Route) -> Answer:
    return Answer(200, msgspec.json.encode(model_object(route)))


DOCS = Answer(
    200,
    docs.page(),
    # It types a key in: nothing from elsewhere may be in it, nor it in a frame of somebody's.
    b"Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    b"connect-src 'self'; img-src blob:; media-src blob:; frame-ancestors 'none'\r\n",
    kind=b"text/html; charset=utf-8",
)
"""The page at `/{slug}/docs`. It holds nothing of the chute, and so wants no key; what it asks for does."""
PING = Answer(200, b'{"message":"pong"}')
HEALTHY = Answer(200, b'{"status":"ok"}')
WELCOME = Answer(
    200,
    msgspec.json.encode(
        {
            "what": "a Chutes gateway: OpenAI-compatible inference on this machine",
            "models": "/v1/models",
            "chat": "POST /v1/chat/completions",
            "key": "chutes keys create --name NAME",
        }
    ),
)


def starting() -> Refusal:
    return Refusal(
        503, "gateway_starting", "The gateway has no route table yet.", headers=b"Retry-After: 1\r\n"
    )


def not_ready(route: wire.Route) -> Refusal:
    """For a chute that has failed or was stopped. It will not answer sooner for being asked again."""
    headers = b"x-should-retry: false\r\n"
    detail = route.detail or f"Chute {route.name!r} has no ready instance ({route.phase})."
    return Refusal(503, "chute_not_ready", detail, headers=headers)


def not_allowed(route: wire.Route) -> Refusal:
    """For a key that may not call a chute."""
    return Refusal(
        403,
        "model_not_allowed",
        f"This key may not call {route.name!r}.",
        "GET /v1/models lists what it may call.",
        param="model",
    )


def wrong_method(allowed: bytes) -> Refusal:
    """For a path that is asked otherwise: `allowed` as in an Allow header."""
    text = allowed.decode()
    return Refusal(
        405,
        "method_not_allowed",
        f"This path is asked with {text}.",
        f"Use {text}.",
        headers=b"Allow: %b\r\n" % allowed,
    )
