"""Requests and responses of an OpenAI-compatible server, as far as they are documented to callers.

They give schemas to `chutes` and its users; requests are relayed to the engine as they came, so a field
that is not named here works all the same.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class DefaultRole(str, Enum):  # noqa: UP042  # published as a str enum; its text form is part of that
    user = "user"
    assistant = "assistant"
    system = "system"
    tool = "tool"


class ChatMessage(_Open):
    role: str
    content: str | list[dict[str, Any]] | None = None


class UsageInfo(_Open):
    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: dict[str, Any] | None = None


class BaseRequest(_Open):
    """Sampling parameters that chat and plain completion share."""

    model: str | None = None
    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = 0
    n: int | None = 1
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = True
    user: str | None = None


class ChatCompletionRequest(BaseRequest):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(BaseRequest):
    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = False
    logprobs: int | None = None
    suffix: str | None = None


class TokenizeRequest(_Open):
    """Either a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(_Open):
    model: str | None = None
    tokens: list[int]


class _Answer(_Open):
    id: str
    object: str
    created: int
    model: str
    usage: UsageInfo | None = None


class ChatChoice(_Open):
    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class ChatCompletionResponse(_Answer):
    object: str = "chat.completion"
    choices: list[ChatChoice]


class DeltaMessage(_Open):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChatStreamChoice(_Open):
    index: int
    delta: DeltaMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class ChatCompletionStreamResponse(_Answer):
    object: str = "chat.completion.chunk"
    choices: list[ChatStreamChoice]


class CompletionChoice(_Open):
    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class CompletionResponse(_Answer):
    object: str = "text_completion"
    choices: list[CompletionChoice]


class CompletionStreamResponse(_Answer):
    object: str = "text_completion"
    choices: list[CompletionChoice]


class TokenizeResponse(_Open):
    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeResponse(_Open):
    prompt: str


def playground_chat(model: str, stream: bool) -> dict[str, Any]:
    """JSON schema of the short chat form, with the values a playground starts from."""
    messages = {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
            "required": ["role", "content"],
        },
        "default": [{"role": "user", "content": ""}],
    }
    return _playground(model, stream, "messages", messages)


def playground_completion(model: str, stream: bool) -> dict[str, Any]:
    """As `playground_chat`, for a plain completion."""
    return _playground(model, stream, "prompt", {"type": "string", "default": ""})


def _playground(model: str, stream: bool, field: str, shape: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            field: shape,
            "temperature": {"type": "number", "default": 0.7},
            "seed": {"type": "integer", "default": 42},
            "stream": {"type": "boolean", "default": stream},
            "max_tokens": {"type": "integer", "default": 1024},
            "model": {"type": "string", "default": model},
        },
        "required": [field],
    }
