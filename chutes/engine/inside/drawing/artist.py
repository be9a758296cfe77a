"""A diffusers pipeline that draws. The only file of the server that imports torch.

Written against diffusers 0.42. What is relied on there: `callback_on_step_end` is called after each step of
every pipeline with the latents, a list of generators draws each picture of a batch from its own noise, and
`vae_scale_factor` is how many pixels one latent becomes.
"""

from __future__ import annotations

import copy
import inspect
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from .asked import SIDE, Picture, Skill
from .studio import Drawn, Failed, OutOfMemory

NATIVE_SIDE = 1024  # of a pipeline that does not say what it was trained to draw

# A tensor that only checkpoints of one kind have → the pipeline that they are loaded with.
SINGLE_FILES = (
    ("conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias", "StableDiffusionXLPipeline"),
    ("joint_blocks.0.context_block.adaLN_modulation.1.bias", "StableDiffusion3Pipeline"),
    ("double_blocks.0.img_attn.norm.key_norm.scale", "FluxPipeline"),
    ("output_blocks.11.0.skip_connection.weight", "StableDiffusionPipeline"),
)


def single_file_class(names: Sequence[str]) -> str:
    """The pipeline's class for a checkpoint in one file, by the names of its tensors.

    Raises:
        Failed: it is of no kind that is known here.
    """
    bare = {name.removeprefix("model.diffusion_model.") for name in names}
    for mark, pipeline in SINGLE_FILES:
        if mark in bare:
            return pipeline
    raise Failed(
        "This file is no checkpoint of Stable Diffusion 1, 2, XL, 3 or Flux that draws from text "
        "(a LoRA, a refiner or a part alone is none)."
    )


def load(model: Path, settings: dict[str, Any]) -> Any:
    """The pipeline, on the device that there is.

    Args:
        model: a directory with a model_index.json, or one .safetensors file.
        settings: see `server.main`.

    Raises:
        Failed: it is no pipeline that draws from text.
    """
    arguments = dict(settings.get("pipeline_args") or {})
    if model.is_file():
        with model.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            kind = single_file_class(list(json.loads(file.read(length))))
    else:
        kind = str(json.loads((model / "model_index.json").read_text()).get("_class_name"))
    asked = arguments.pop("torch_dtype", arguments.pop("dtype", None))
    dtype = getattr(torch, str(asked).removeprefix("torch.")) if asked else _dtype(kind)
    print(f"loading {kind} in {str(dtype).removeprefix('torch.')}", flush=True)
    if model.is_file():
        # Its configuration is not in it: `config` names a directory or a repository that has one.
        pipeline = getattr(diffusers, kind).from_single_file(str(model), dtype=dtype, **arguments)
    else:
        _settle_safety(model, settings.get("safety_checker", "keep"), arguments)
        if "variant" not in arguments and (variant := only_variant(model)):
            arguments["variant"] = variant
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            model, dtype=dtype, local_files_only=True, **arguments
        )
    wanted = inspect.signature(pipeline.__call__).parameters
    needs = [
        name for name, one in wanted.items() if name == "image" and one.default is inspect.Parameter.empty
    ]
    if "prompt" not in wanted or needs:
        raise Failed(f"{type(pipeline).__name__} does not draw from text alone.")
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(getattr(pipeline, "vae", None), "enable_slicing"):
        pipeline.vae.enable_slicing()  # decoding is the peak of memory, and gains nothing from a batch
    if torch.cuda.is_available() and settings.get("offload") == "model":
        pipeline.enable_model_cpu_offload()
    else:
        pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    return pipeline


def _dtype(kind: str) -> torch.dtype:
    if not torch.cuda.is_available():
        return torch.float32  # half precision on CPUs is slow, and wrong on some
    # What each family was published for: later ones overflow float16.
    older = kind.startswith(("StableDiffusionPipeline", "StableDiffusionXL"))
    return torch.float16 if older or not torch.cuda.is_bf16_supported() else torch.bfloat16


def _settle_safety(model: Path, policy: str, arguments: dict[str, Any]) -> None:
    index = json.loads((model / "model_index.json").read_text())
    has_one = bool((index.get("safety_checker") or [None])[0])
    if policy == "off":
        if "safety_checker" in index:
            arguments |= {"safety_checker": None, "requires_safety_checker": False}
        print("safety checker: off, as the chute asks for it", flush=True)
    else:
        print(
            f"safety checker: {'on' if has_one else 'this pipeline has none, nothing is checked'}", flush=True
        )


def only_variant(model: Path) -> str:
    """The variant (`fp16`) whose weights are the only ones in the denoiser's directory; empty: plain ones."""
    for part in ("unet", "transformer"):
        names = [path.name for path in (model / part).glob("*.safetensors")]
        variants = {name.split(".")[1].split("-")[0] for name in names if name.count(".") > 1}
        if names and len(variants) == 1 and all(name.count(".") > 1 for name in names):
            return variants.pop()
    return ""


class PipelineArtist:
    """See `studio.Artist`."""

    def __init__(self, pipeline: Any, settings: dict[str, Any]) -> None:
        self.pipeline = pipeline
        self._takes = inspect.signature(pipeline.__call__).parameters
        self._previews = hasattr(pipeline, "vae")
        # A copy: a tokenizer sets its padding, then encodes, and one thread's call took away the padding of
        # another's in 4 of 20,000, which then fails or draws something else.
        self._counter = copy.deepcopy(getattr(pipeline, "tokenizer", None))
        # Pipelines that pack four latents into one need twice the multiple.
        packed = 2 if hasattr(pipeline, "_unpack_latents") else 1
        factor = max(8, int(getattr(pipeline, "vae_scale_factor", 8)) * packed)
        width, height = _native(pipeline, factor)
        self.skill = Skill(
            name=type(pipeline).__name__,
            factor=factor,
            width=width,
            height=height,
            negative="negative_prompt" in self._takes,
            true_cfg="true_cfg_scale" in self._takes,
            defaults=settings.get("defaults") or {},
        )

    def tokens(self, text: str) -> int:
        """How many tokens the first text encoder reads of a prompt. For another thread than `draw`'s."""
        return len(self._counter(text, truncation=True).input_ids) if self._counter is not None else 0

    def draw(
        self,
        pictures: Sequence[Picture],
        on_step: Callable[[int, int, Callable[[int], Image.Image | None]], None],
    ) -> list[Drawn]:
        first = pictures[0]
        arguments: dict[str, Any] = {
            "prompt": [picture.prompt for picture in pictures],
            "width": first.width,
            "height": first.height,
            # On the CPU whatever draws: a seed gives the same noise on every device, alone and in a batch.
            "generator": [torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures],
        }
        if first.negative_prompt:
            arguments["negative_prompt"] = [picture.negative_prompt for picture in pictures]
        for name, value in (
            ("num_inference_steps", first.steps),
            ("guidance_scale", first.guidance),
            ("true_cfg_scale", first.true_cfg),
        ):
            if value is not None and name in self._takes:
                arguments[name] = value

        def after_step(pipeline: Any, index: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
            latents = values["latents"]
            total = int(getattr(pipeline, "_num_timesteps", 0) or len(pipeline.scheduler.timesteps))
            if index + 1 >= total and not torch.isfinite(latents).all():
                raise Failed(
                    f"The picture came to nothing: {self.skill.name} overflows in {pipeline.dtype}. "
                    'Set pipeline_args={"torch_dtype": "bfloat16"} (or "float32") in the chute.'
                )
            on_step(index + 1, total, lambda number: self._preview(latents[number : number + 1], first))
            return {}

        if "callback_on_step_end" in self._takes:
            arguments["callback_on_step_end"] = after_step
        try:
            result = self.pipeline(**arguments)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfMemory from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise OutOfMemory from error
            raise
        flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(pictures)
        return [Drawn(image, bool(unsafe)) for image, unsafe in zip(result.images, flagged, strict=True)]

    def _preview(self, latents: torch.Tensor, picture: Picture) -> Image.Image | None:
        """What latents show by now; None where this pipeline's cannot be shown."""
        if not self._previews:
            return None
        pipeline, vae = self.pipeline, self.pipeline.vae
        # The autoencoder of SDXL overflows float16, so that pipelines decode in float32.
        upcast = vae.dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
        try:
            if latents.ndim == 3:
                latents = pipeline._unpack_latents(
                    latents, picture.height, picture.width, pipeline.vae_scale_factor
                )
            if upcast:
                vae.to(torch.float32)
            shift = getattr(vae.config, "shift_factor", None) or 0.0
            decoded = vae.decode(
                (latents / vae.config.scaling_factor + shift).to(vae.dtype), return_dict=False
            )
            return pipeline.image_processor.postprocess(decoded[0], output_type="pil")[0]
        except (AttributeError, TypeError, RuntimeError) as error:
            self._previews = False
            print(f"no previews: {self.skill.name} keeps its latents otherwise ({error})", flush=True)
            return None
        finally:
            if upcast:
                vae.to(torch.float16)


def _native(pipeline: Any, factor: int) -> tuple[int, int]:
    """Width and height that a pipeline was trained to draw, within the bounds."""
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    size = getattr(getattr(denoiser, "config", None), "sample_size", None)
    size = size or getattr(pipeline, "default_sample_size", None)
    sides = list(size) if isinstance(size, (list, tuple)) else [size, size]
    scale = int(getattr(pipeline, "vae_scale_factor", 8))
    height, width = (int(side) * scale if side else NATIVE_SIDE for side in sides[-2:])
    return tuple(max(SIDE[0], min(SIDE[1], side // factor * factor)) for side in (width, height))
