"""A text model behind the OpenAI API as a chute, whichever engine serves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from chutes.chute.base import Chute
from chutes.chute.pack import ChutePack
from chutes.chute.spec import EngineSpec
from chutes.chute.template.engine_args import split
from chutes.chute.template.openai_models import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    CompletionRequest,
    CompletionResponse,
    CompletionStreamResponse,
    playground_chat,
    playground_completion,
)
from chutes.exception import InvalidSpec

_Playground = Callable[[str, bool], dict[str, Any]]
"""Makes the short form of a request, by the model's name and whether it streams."""


class TextChute(ChutePack):
    """A chute that answers as OpenAI does, and handles on its cords."""

    chat: Callable[..., Any]
    chat_stream: Callable[..., Any]
    completion: Callable[..., Any]
    completion_stream: Callable[..., Any]
    models: Callable[..., Any]


def text_chute(
    engine: Literal["vllm", "sglang"],
    model_name: str,
    engine_args: str | Mapping[str, Any] | Sequence[str] | None,
    revision: str | None,
    **declared: Any,
) -> tuple[Chute, dict[str, Any]]:
    """A chute served by `engine`, with a cord for each of the paths that both engines have.

    Args:
        model_name: as `build_vllm_chute` has it, like `engine_args` and `revision`.
        declared: what `Chute` takes besides.

    Returns:
        The chute, and the fields of its `TextChute`.

    Raises:
        InvalidSpec: engine_args cannot be read or sets what the platform owns (a `ValueError`).
    """
    name, model = name_and_model(model_name)
    args = split(engine_args, engine)
    # Published for both: SGLang chutes are of this template too.
    chute = Chute(name=name, standard_template="vllm", revision=revision, **declared)
    chute.serve_with(EngineSpec(name=engine, model=model, revision=revision, args=args))

    def cord(path: str, request: type, playground: _Playground, *, stream: bool) -> Callable[..., Any]:
        """Relays a POST to the engine's own `path`."""
        return chute.cord(
            passthrough=True,
            sglang_passthrough=engine == "sglang",
            passthrough_path=path,
            public_api_path=path,
            stream=stream,
            input_schema=request,
            minimal_input_schema=playground(name, stream),
        )

    @cord("/v1/chat/completions", ChatCompletionRequest, playground_chat, stream=True)
    async def chat_stream(data) -> ChatCompletionStreamResponse:
        return data

    @cord("/v1/chat/completions", ChatCompletionRequest, playground_chat, stream=False)
    async def chat(data) -> ChatCompletionResponse:
        return data

    @cord("/v1/completions", CompletionRequest, playground_completion, stream=True)
    async def completion_stream(data) -> CompletionStreamResponse:
        return data

    @cord("/v1/completions", CompletionRequest, playground_completion, stream=False)
    async def completion(data) -> CompletionResponse:
        return data

    @chute.cord(
        passthrough=True,
        passthrough_path="/v1/models",
        public_api_path="/v1/models",
        public_api_method="GET",
        method="GET",
    )
    async def get_models(data):
        return data

    return chute, {
        "chute": chute,
        "chat": chat,
        "chat_stream": chat_stream,
        "completion": completion,
        "completion_stream": completion_stream,
        "models": get_models,
    }


def name_and_model(model_name: str) -> tuple[str, str]:
    if not isinstance(model_name, str) or not model_name.strip():
        raise InvalidSpec(f"model_name={model_name!r} is empty.", "Give a hub id such as 'Qwen/Qwen3-8B'.")
    if model_name.startswith(("/", "./", "../", "~", "file://")):
        text = unquote(urlparse(model_name).path) if model_name.startswith("file://") else model_name
        path = Path(text).expanduser().resolve()
        # A chute's name has three letters at least, and the directory's name is not the author's choice.
        return path.name if len(path.name) >= 3 else f"local/{path.name}", str(path)
    if "/" not in model_name and Path(model_name).is_dir():
        raise InvalidSpec(
            f"model_name={model_name!r} is no hub id, and a directory here is called so.",
            f"Write './{model_name}' for the directory.",
        )
    return model_name, model_name
