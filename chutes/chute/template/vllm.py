"""A vLLM server as a chute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from chutes.chute.base import Chute
from chutes.chute.node_selector import NodeSelector
from chutes.chute.pack import ChutePack
from chutes.chute.spec import EngineSpec
from chutes.chute.template.engine_args import split
from chutes.chute.template.openai_models import (
    BaseRequest,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    ChatMessage,
    CompletionRequest,
    CompletionResponse,
    CompletionStreamResponse,
    DefaultRole,
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    UsageInfo,
    playground_chat,
    playground_completion,
)
from chutes.exception import InvalidSpec
from chutes.image import Image
from chutes.image.standard.vllm import VLLM

__all__ = [
    "BaseRequest",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "ChatCompletionStreamResponse",
    "ChatMessage",
    "CompletionRequest",
    "CompletionResponse",
    "CompletionStreamResponse",
    "DefaultRole",
    "DetokenizeRequest",
    "DetokenizeResponse",
    "TokenizeRequest",
    "TokenizeResponse",
    "UsageInfo",
    "VLLMChute",
    "build_vllm_chute",
]


class VLLMChute(ChutePack):
    """A chute served by vLLM and handles on its cords."""

    chat: Callable[..., Any]
    chat_stream: Callable[..., Any]
    completion: Callable[..., Any]
    completion_stream: Callable[..., Any]
    models: Callable[..., Any]


def build_vllm_chute(
    username: str,
    model_name: str,
    node_selector: NodeSelector | None = None,
    image: str | Image = VLLM,
    tagline: str = "",
    readme: str = "",
    concurrency: int = 32,
    engine_args: str | Mapping[str, Any] | Sequence[str] | None = None,
    revision: str | None = None,
    max_instances: int = 1,
    scaling_threshold: float = 0.75,
    shutdown_after_seconds: int = 300,
    allow_external_egress: bool = False,
    tee: bool = False,
) -> VLLMChute:
    """A chute that serves one model with vLLM behind the OpenAI API.

    Touches neither network nor GPU: the platform looks at the model when the chute is deployed.

    Args:
        username: owner.
        model_name: hub id, and the name callers send as `model`. A path (`/...`, `./...`, `~/...`) is a
            local directory, named after its last part.
        node_selector: hardware; default: one GPU of 16 GB.
        image: image with vLLM in it.
        tagline: one line about the chute.
        readme: Markdown about it.
        concurrency: requests one instance takes at once.
        engine_args: options for vLLM as a command line, a dict or a list; see `engine_args.split`.
        revision: commit of the model's repository. When left out the platform records the one it finds.
        max_instances: as `Chute`.
        scaling_threshold: as `Chute`.
        shutdown_after_seconds: as `Chute`.
        allow_external_egress: as `Chute`.
        tee: accepted; not enforced here.

    Raises:
        InvalidSpec: engine_args cannot be read or sets what the platform owns (a `ValueError`).
    """
    name, model = name_and_model(model_name)
    args = split(engine_args)
    chute = Chute(
        username=username,
        name=name,
        image=image,
        tagline=tagline,
        readme=readme,
        standard_template="vllm",
        revision=revision,
        node_selector=node_selector,
        concurrency=concurrency,
        max_instances=max_instances,
        shutdown_after_seconds=shutdown_after_seconds,
        scaling_threshold=scaling_threshold,
        allow_external_egress=allow_external_egress,
        tee=tee,
    )
    chute.serve_with(EngineSpec(name="vllm", model=model, revision=revision, args=args))

    @chute.cord(
        passthrough=True,
        passthrough_path="/v1/chat/completions",
        public_api_path="/v1/chat/completions",
        stream=True,
        input_schema=ChatCompletionRequest,
        minimal_input_schema=playground_chat(name, stream=True),
    )
    async def chat_stream(data) -> ChatCompletionStreamResponse:
        return data

    @chute.cord(
        passthrough=True,
        passthrough_path="/v1/chat/completions",
        public_api_path="/v1/chat/completions",
        input_schema=ChatCompletionRequest,
        minimal_input_schema=playground_chat(name, stream=False),
    )
    async def chat(data) -> ChatCompletionResponse:
        return data

    @chute.cord(
        passthrough=True,
        passthrough_path="/v1/completions",
        public_api_path="/v1/completions",
        stream=True,
        input_schema=CompletionRequest,
        minimal_input_schema=playground_completion(name, stream=True),
    )
    async def completion_stream(data) -> CompletionStreamResponse:
        return data

    @chute.cord(
        passthrough=True,
        passthrough_path="/v1/completions",
        public_api_path="/v1/completions",
        input_schema=CompletionRequest,
        minimal_input_schema=playground_completion(name, stream=False),
    )
    async def completion(data) -> CompletionResponse:
        return data

    @chute.cord(
        passthrough=True,
        passthrough_path="/tokenize",
        public_api_path="/tokenize",
        input_schema=TokenizeRequest,
    )
    async def do_tokenize(data) -> TokenizeResponse:
        return data

    @chute.cord(
        passthrough=True,
        passthrough_path="/detokenize",
        public_api_path="/detokenize",
        input_schema=DetokenizeRequest,
    )
    async def do_detokenize(data) -> DetokenizeResponse:
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

    return VLLMChute(
        chute=chute,
        chat=chat,
        chat_stream=chat_stream,
        completion=completion,
        completion_stream=completion_stream,
        models=get_models,
    )


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
