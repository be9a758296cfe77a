"""What is read of JSON, as types. Never compiled: msgspec builds its classes from live annotations.

The decoder skips every other field unbuilt, so a struct costs what it names and not what was sent.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType


class Peek(msgspec.Struct, gc=False):
    """The top-level fields of a request's body that concern the gateway.

    Raw fields are views into the body, not decoded.
    """

    model: str
    stream: Any = None
    """Not judged here: whether `"stream": "yes"` is an error is for the engine to say."""
    stream_options: Raw | UnsetType = UNSET
    thinking: Raw | UnsetType = UNSET
    reasoning_effort: Raw | UnsetType = UNSET
    response_format: Raw | UnsetType = UNSET
    chat_template_kwargs: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET
    """For prefix affinity."""
    prompt: Raw | UnsetType = UNSET


class Usage(NamedTuple):
    """Tokens of one request."""

    prompt: int
    completion: int
    cached: int


Count = Annotated[int, msgspec.Meta(ge=0)] | None


class Details(msgspec.Struct, gc=False):
    cached_tokens: Count = None


class Counts(msgspec.Struct, gc=False):
    """As chat, completions and embeddings say it, and as `/v1/responses` and `/v1/messages` do."""

    prompt_tokens: Count = None
    completion_tokens: Count = None
    prompt_tokens_details: Details | None = None
    input_tokens: Count = None
    output_tokens: Count = None
    input_tokens_details: Details | None = None
    cache_read_input_tokens: Count = None

    def usage(self) -> Usage:
        prompt, completion, details = self.prompt_tokens, self.completion_tokens, self.prompt_tokens_details
        if prompt is None:
            prompt, completion, details = self.input_tokens, self.output_tokens, self.input_tokens_details
        cached = self.cache_read_input_tokens if details is None else details.cached_tokens
        return Usage(prompt or 0, completion or 0, cached or 0)


class Inner(msgspec.Struct, gc=False):
    usage: Counts | None = None


class Told(msgspec.Struct, gc=False):
    """An answer, or an event of one, by what it tells of its usage."""

    usage: Counts | None = None
    response: Inner | None = None
    """The last event of `/v1/responses` has the whole answer in it."""


class Event(msgspec.Struct):
    """An event of a stream of choices."""

    choices: list[Raw]
    usage: Counts | None = None
