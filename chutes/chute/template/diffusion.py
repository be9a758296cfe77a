"""A diffusers pipeline that draws from text, as a chute."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from pydantic import BaseModel, ConfigDict, Field

from chutes.chute.base import Chute
from chutes.chute.node_selector import NodeSelector
from chutes.chute.pack import ChutePack
from chutes.chute.spec import EngineSpec
from chutes.exception import InvalidSpec
from chutes.image import Image
from chutes.image.standard.diffusion import DIFFUSION

__all__ = [
    "DiffusionChute",
    "GenerationInput",
    "ImageRequest",
    "MinifiedGenerationInput",
    "build_diffusion_chute",
    "single_file_pipeline",
]

_MOST_SEED = 2**32 - 1


class GenerationInput(BaseModel):
    """A request to `/generate`: one picture, answered with the bytes of a JPEG."""

    prompt: str
    negative_prompt: str = ""
    height: int = Field(default=1024, ge=128, le=2048)
    width: int = Field(default=1024, ge=128, le=2048)
    num_inference_steps: int = Field(default=25, ge=1, le=50)
    guidance_scale: float = Field(default=7.5, ge=1.0, le=20.0)
    seed: int | None = Field(default=None, ge=0, le=_MOST_SEED)


class MinifiedGenerationInput(BaseModel):
    """What a playground asks for."""

    prompt: str = "a beautiful mountain landscape"


class ImageRequest(BaseModel):
    """A request to `/v1/images/generations`, as OpenAI documents it, and what pipelines know beside that."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    prompt: str
    model: str | None = None
    n: int = Field(default=1, ge=1, le=10)
    size: str = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3)
    progress: bool = False
    seed: int | None = Field(default=None, ge=0, le=_MOST_SEED)
    negative_prompt: str = ""
    num_inference_steps: int | None = Field(default=None, ge=1, le=50)
    guidance_scale: float | None = Field(default=None, ge=1.0, le=20.0)


class DiffusionChute(ChutePack):
    """A chute served by diffusers and a handle on its published cord."""

    generate: Callable[..., Any]


def build_diffusion_chute(
    username: str,
    name: str,
    model_name_or_url: str,
    node_selector: NodeSelector | None = None,
    tagline: str = "",
    readme: str = "",
    concurrency: int = 3,
    version: str | int | None = None,
    revision: str | None = None,
    image: str | Image = DIFFUSION,
    pipeline_args: Mapping[str, Any] | None = None,
    max_instances: int = 1,
    scaling_threshold: float = 0.75,
    shutdown_after_seconds: int = 300,
    tee: bool = False,
    *,
    safety_checker: Literal["keep", "off"] = "keep",
    defaults: Mapping[str, float] | None = None,
    batch_size: int = 4,
) -> DiffusionChute:
    """A chute that draws: `POST /generate` as published, and OpenAI's `POST /v1/images/generations`.

    Touches neither network nor GPU: the platform looks at the model when the chute is deployed, and loads
    it with the pipeline class that the repository itself names (Stable Diffusion, SDXL, SD3, Flux …).

    Args:
        username: owner.
        name: the chute's name, and what callers send as `model`.
        model_name_or_url: hub id; a directory or a .safetensors file here (`/...`, `./...`, `~/...`); or a
            model's page on civitai.com.
        node_selector: hardware; default: one GPU of 16 GB.
        tagline: one line about the chute.
        readme: Markdown about it.
        concurrency: requests one instance takes at once; those of one size are drawn together.
        version: of a model on civitai.com; when left out the platform records the newest.
        revision: commit of the model's repository. When left out the platform records the one it finds.
        image: image with diffusers in it.
        pipeline_args: for the pipeline's `from_pretrained`, e.g. `{"torch_dtype": "bfloat16"}`.
        max_instances: as `Chute`.
        scaling_threshold: as `Chute`.
        shutdown_after_seconds: as `Chute`.
        tee: accepted; not enforced here.
        safety_checker: `keep` uses the pipeline's own checker, if it has one, and refuses what that flags;
            `off` loads none.
        defaults: `num_inference_steps` and `guidance_scale` where a request says nothing: distilled models
            want few steps.
        batch_size: pictures of up to a million pixels that are drawn at once.

    Raises:
        InvalidSpec: an argument that cannot be served (a `ValueError`).
    """
    model = _model(model_name_or_url)
    is_url = model.startswith("https://")
    if version is not None and not is_url:
        raise InvalidSpec(
            f"version={version!r} is of a model on civitai.com, and {model} is not there.",
            "Say which commit of a repository with revision=.",
        )
    if safety_checker not in ("keep", "off"):
        raise InvalidSpec(f"safety_checker={safety_checker!r} must be 'keep' or 'off'.")
    options = {
        "pipeline_args": _plain(pipeline_args or {}),
        "safety_checker": safety_checker,
        "defaults": _defaults(defaults or {}),
        "batch": _batch(batch_size),
    }
    chute = Chute(
        username=username,
        name=name,
        image=image,
        tagline=tagline,
        readme=readme,
        standard_template="diffusion",
        revision=revision,
        node_selector=node_selector,
        concurrency=concurrency,
        max_instances=max_instances,
        shutdown_after_seconds=shutdown_after_seconds,
        scaling_threshold=scaling_threshold,
        tee=tee,
    )
    pinned = str(version) if version is not None else revision
    chute.serve_with(
        EngineSpec(name="diffusers", task="image", model=model, revision=pinned, options=options)
    )

    @chute.cord(
        passthrough=True,
        passthrough_path="/generate",
        public_api_path="/generate",
        input_schema=GenerationInput,
        minimal_input_schema=MinifiedGenerationInput,
        output_content_type="image/jpeg",
    )
    async def generate(data) -> Any:
        return data

    @chute.cord(
        path="/v1/images/generations",
        passthrough=True,
        passthrough_path="/v1/images/generations",
        public_api_path="/v1/images/generations",
        input_schema=ImageRequest,
    )
    async def generations(data) -> dict[str, Any]:
        return data

    return DiffusionChute(chute=chute, generate=generate)


def single_file_pipeline(path: str, **pipeline_args: Any) -> Any:
    """Load a checkpoint in one file, for chutes whose own code draws: in an image that has diffusers.

    As the published helper: Stable Diffusion XL, and if it is none, Stable Diffusion.
    """
    diffusers = importlib.import_module("diffusers")  # never where the platform itself runs
    try:
        return diffusers.StableDiffusionXLPipeline.from_single_file(path, **pipeline_args)
    except Exception:
        return diffusers.StableDiffusionPipeline.from_single_file(path, **pipeline_args)


def _model(text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InvalidSpec(
            f"model_name_or_url={text!r} is empty.",
            "Give a hub id ('stabilityai/stable-diffusion-xl-base-1.0'), a path, or a page of civitai.com.",
        )
    if text.startswith(("http://", "https://")):
        if (urlparse(text).hostname or "").removeprefix("www.") != "civitai.com" or text.startswith("http:"):
            raise InvalidSpec(
                f"model_name_or_url={text!r} is not a page of https://civitai.com.",
                "Other models are named by their hub id, or fetched first and named by their path.",
            )
        return text
    if text.startswith(("/", "./", "../", "~", "file://")):
        path = unquote(urlparse(text).path) if text.startswith("file://") else text
        return str(Path(path).expanduser().resolve())
    return text


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as they can be sent: a torch dtype is sent by its name."""
    named = {
        key: str(value).removeprefix("torch.") if str(value).startswith("torch.") else value
        for key, value in arguments.items()
    }
    try:
        json.dumps(named, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidSpec(
            f"pipeline_args cannot be sent to another machine: {error}.",
            'Use texts, numbers, lists and dicts, e.g. {"torch_dtype": "bfloat16"}.',
        ) from None
    return named


def _defaults(given: Mapping[str, float]) -> dict[str, float]:
    bounds = {"num_inference_steps": (1, 50), "guidance_scale": (1.0, 20.0)}
    for key, value in given.items():
        if key not in bounds:
            raise InvalidSpec(f"defaults has {key!r}; it may have {' and '.join(bounds)}.")
        low, high = bounds[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise InvalidSpec(f"defaults[{key!r}]={value!r} must be from {low} to {high}.")
    return dict(given)


def _batch(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 64:
        raise InvalidSpec(f"batch_size={size!r} must be from 1 to 64.")
    return size
