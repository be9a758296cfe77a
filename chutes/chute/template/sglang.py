"""An SGLang server as a chute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chutes.chute.node_selector import NodeSelector
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
    UsageInfo,
)
from chutes.chute.template.text import TextChute, text_chute
from chutes.image import Image
from chutes.image.standard.sglang import SGLANG

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
    "SGLangChute",
    "UsageInfo",
    "build_sglang_chute",
]


class SGLangChute(TextChute):
    """A chute served by SGLang and handles on its cords."""


def build_sglang_chute(
    username: str,
    model_name: str,
    node_selector: NodeSelector | None = None,
    image: str | Image = SGLANG,
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
) -> SGLangChute:
    """A chute that serves one model with SGLang behind the OpenAI API.

    Touches neither network nor GPU: the platform looks at the model when the chute is deployed.

    Args:
        username: owner.
        model_name: hub id, and the name callers send as `model`. A path (`/...`, `./...`, `~/...`) is a
            local directory, named after its last part.
        node_selector: hardware; default: one GPU of 16 GB.
        image: image with SGLang in it.
        tagline: one line about the chute.
        readme: Markdown about it.
        concurrency: requests one instance takes at once.
        engine_args: options for SGLang as a command line, a dict or a list; see `engine_args.split`.
        revision: commit of the model's repository. When left out the platform records the one it finds.
        max_instances: as `Chute`.
        scaling_threshold: as `Chute`.
        shutdown_after_seconds: as `Chute`.
        allow_external_egress: as `Chute`.
        tee: accepted; not enforced here.

    Raises:
        InvalidSpec: engine_args cannot be read or sets what the platform owns (a `ValueError`).
    """
    _, cords = text_chute(
        "sglang",
        model_name,
        engine_args,
        revision,
        username=username,
        image=image,
        tagline=tagline,
        readme=readme,
        node_selector=node_selector,
        concurrency=concurrency,
        max_instances=max_instances,
        shutdown_after_seconds=shutdown_after_seconds,
        scaling_threshold=scaling_threshold,
        allow_external_egress=allow_external_egress,
        tee=tee,
    )
    return SGLangChute(**cords)
