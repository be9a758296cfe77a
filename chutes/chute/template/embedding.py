"""An embedding server as a chute: vLLM, which pools instead of writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from chutes.chute.base import Chute
from chutes.chute.node_selector import NodeSelector
from chutes.chute.pack import ChutePack
from chutes.chute.pooling import get_optimal_pooling_type
from chutes.chute.spec import EngineSpec
from chutes.chute.template.engine_args import split
from chutes.chute.template.text import name_and_model
from chutes.exception import InvalidSpec
from chutes.image import Image
from chutes.image.standard.vllm import VLLM

__all__ = [
    "EmbeddingChutePack",
    "EmbeddingData",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "EmbeddingUsage",
    "MinifiedEmbeddingRequest",
    "build_embedding_chute",
    "get_optimal_pooling_type",
]

POOLING_TYPES = ("CLS", "LAST", "MEAN")

# The published default: a text of 3 million tokens is cut into pieces whose vectors are averaged.
MAX_EMBED_LEN = 3_072_000


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class EmbeddingRequest(_Open):
    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]
    """One text or several; tokens instead of words too."""
    encoding_format: str = Field("float", pattern="^(float|base64)$")
    dimensions: int | None = Field(None, ge=1)
    """Fewer numbers a vector, of models made for that (matryoshka)."""
    user: str | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """Cut each text to so many tokens; -1: to as many as the model reads."""


class MinifiedEmbeddingRequest(BaseModel):
    """What a form asks of a person."""

    model_config = ConfigDict(protected_namespaces=())

    input: str = ""
    model: str | None = None


class EmbeddingData(_Open):
    object: str = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32."""


class EmbeddingUsage(_Open):
    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingResponse(_Open):
    object: str = "list"
    data: list[EmbeddingData]
    model: str
    usage: EmbeddingUsage


class EmbeddingChutePack(ChutePack):
    """A chute that makes vectors of texts and a handle on its cord."""

    embed: Callable[..., Any]


def build_embedding_chute(
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
    pooling_type: str = "auto",
    max_embed_len: int = MAX_EMBED_LEN,
    enable_chunked_processing: bool = True,
    allow_external_egress: bool = False,
    tee: bool = False,
) -> EmbeddingChutePack:
    """A chute that serves one embedding model with vLLM behind `POST /v1/embeddings`.

    Touches neither network nor GPU: the platform looks at the model when the chute is deployed.

    Args:
        username: owner.
        model_name: hub id, and the name callers send as `model`; or a path to a local directory.
        node_selector: hardware; default: one GPU of 16 GB.
        image: image with vLLM in it.
        tagline: one line about the chute.
        readme: Markdown about it.
        concurrency: requests one instance takes at once; each may hold many texts.
        engine_args: options for vLLM; see `engine_args.split`. `--pooler-config` among them replaces what
            the next three arguments say.
        revision: commit of the model's repository. When left out the platform records the one it finds.
        max_instances: as `Chute`.
        scaling_threshold: as `Chute`.
        shutdown_after_seconds: as `Chute`.
        pooling_type: `CLS`, `LAST` or `MEAN`; `auto`: what the model's own files say, and where they say
            nothing `get_optimal_pooling_type` of its name.
        max_embed_len: longest text in tokens, cut into pieces that the model can read.
        enable_chunked_processing: whether longer texts than the model reads are cut so, and their vectors
            averaged, instead of refused.
        allow_external_egress: as `Chute`.
        tee: accepted; not enforced here.

    Raises:
        InvalidSpec: pooling_type is none of these, max_embed_len is not above 0, or engine_args cannot be
            read or set what the platform owns (a `ValueError`).
    """
    name, model = name_and_model(model_name)
    pooling = pooling_type.upper()
    if pooling not in ("AUTO", *POOLING_TYPES):
        raise InvalidSpec(
            f"pooling_type={pooling_type!r} is not known.",
            f"Use 'auto', {', '.join(map(repr, POOLING_TYPES))}.",
        )
    if max_embed_len < 1:
        raise InvalidSpec(f"max_embed_len={max_embed_len} is no number of tokens.", "Give 1 or more.")
    chute = Chute(
        username=username,
        name=name,
        image=image,
        tagline=tagline,
        readme=readme,
        standard_template="embedding",
        revision=revision,
        node_selector=node_selector,
        concurrency=concurrency,
        max_instances=max_instances,
        shutdown_after_seconds=shutdown_after_seconds,
        scaling_threshold=scaling_threshold,
        allow_external_egress=allow_external_egress,
        tee=tee,
    )
    options: dict[str, Any] = {"pooling_type": pooling}
    if enable_chunked_processing:
        options["max_embed_len"] = max_embed_len
    chute.serve_with(
        EngineSpec(
            name="vllm",
            task="embed",
            model=model,
            revision=revision,
            args=split(engine_args),
            options=options,
        )
    )

    @chute.cord(
        passthrough=True,
        passthrough_path="/v1/embeddings",
        public_api_path="/v1/embeddings",
        input_schema=EmbeddingRequest,
        minimal_input_schema=MinifiedEmbeddingRequest,
    )
    async def embed(data) -> EmbeddingResponse:
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

    return EmbeddingChutePack(chute=chute, embed=embed)
