"""What a request asks for, checked field by field. Pure: parsed JSON in, pictures to draw out.

The bounds are those of the published schema of diffusion chutes; sizes must also be multiples of what the
pipeline's autoencoder makes of one latent.
"""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

SIDE = (128, 2048)
STEPS = (1, 50)
GUIDANCE = (1.0, 20.0)
TRUE_CFG = (0.0, 10.0)
SEEDS = 2**32
PROMPT_CHARACTERS = 32_000  # OpenAI's bound; a text encoder reads some hundred words of them
MOST_PICTURES = 10  # of one request; OpenAI's bound
MOST_PARTIAL = 3  # likewise

PUBLISHED_SIDE = 1024
"""What /generate draws when no size is asked for, whatever the model was trained on: so it is published."""
PUBLISHED_STEPS = 25
PUBLISHED_GUIDANCE = 7.5

FORMATS = ("png", "jpeg", "webp")

IGNORED = frozenset({"model", "cord", "method"})
"""What the published platform takes out of a request before it looks at it."""
WITHOUT_EFFECT = frozenset({"quality", "style", "user", "moderation", "stream_options"})
"""OpenAI's, of which no pipeline knows anything; SDKs and tools send them."""


class Invalid(Exception):
    """A field has a value that cannot be drawn."""

    def __init__(self, field: str | None, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.field = field
        self.message = message
        self.code = code


@dataclass(frozen=True)
class Skill:
    """What a loaded pipeline can do."""

    name: str
    """Of its class, e.g. `StableDiffusionXLPipeline`."""
    factor: int
    """Width and height must be multiples of it."""
    width: int
    height: int
    """What it was trained to draw."""
    negative: bool = True
    """It takes a negative prompt."""
    true_cfg: bool = False
    """It takes `true_cfg_scale`, as pipelines with distilled guidance do."""
    defaults: Mapping[str, float] | None = None
    """What the chute's author wants where a request says nothing: `num_inference_steps`, `guidance_scale`."""


@dataclass(frozen=True)
class Picture:
    """One picture to draw."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    seed: int
    steps: int | None
    """None: as many as the pipeline itself thinks right."""
    guidance: float | None
    true_cfg: float | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """Pictures of one kind can be drawn by one call of a pipeline."""
        # Some pipelines treat no negative prompt otherwise than an empty one.
        return (
            self.width, self.height, self.steps, self.guidance, self.true_cfg, bool(self.negative_prompt),
        )  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One request."""

    pictures: tuple[Picture, ...]
    format: str = "jpeg"
    compression: int = 85
    """Quality of JPEG and WebP, 0 to 100."""
    by_url: bool = False
    stream: bool = False
    partial_images: int = 0
    progress: bool = False
    """Tell each step in the stream: ours, not OpenAI's."""


def published(body: Any, skill: Skill) -> Asked:
    """What a body of `POST /generate` asks for.

    Raises:
        Invalid: naming the field.
    """
    fields = _object(body)
    known = {
        "prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "seed",
        "img_guidance_scale", "image_b64", "true_cfg_scale",
    }  # fmt: skip
    _check_known(fields, known | IGNORED)
    number(fields, "img_guidance_scale", GUIDANCE)  # published for all chutes, of use to those that edit
    if fields.get("image_b64"):
        raise Invalid("image_b64", f"'image_b64': {skill.name} draws from text alone.")
    defaults = skill.defaults or {}
    picture = Picture(
        prompt=_prompt(fields),
        negative_prompt=_negative(fields, skill),
        width=_side(fields, "width", PUBLISHED_SIDE, skill),
        height=_side(fields, "height", PUBLISHED_SIDE, skill),
        seed=_seed(fields),
        steps=_steps(fields, int(defaults.get("num_inference_steps", PUBLISHED_STEPS))),
        guidance=number(
            fields, "guidance_scale", GUIDANCE, defaults.get("guidance_scale", PUBLISHED_GUIDANCE)
        ),
        true_cfg=_true_cfg(fields, skill),
    )
    return Asked((picture,))


def openai(body: Any, skill: Skill) -> Asked:
    """What a body of `POST /v1/images/generations` asks for.

    Beside OpenAI's fields it may have `seed`, `negative_prompt`, `num_inference_steps`, `guidance_scale`,
    `true_cfg_scale` and `progress`. Picture number k of a request has the seed `seed` + k.

    Raises:
        Invalid: naming the field.
    """
    fields = _object(body)
    ours = {"seed", "negative_prompt", "num_inference_steps", "guidance_scale", "true_cfg_scale", "progress"}
    theirs = {
        "prompt", "n", "size", "response_format", "output_format", "output_compression", "background",
        "stream", "partial_images",
    }  # fmt: skip
    _check_known(fields, ours | theirs | IGNORED | WITHOUT_EFFECT)
    _choice(fields, "background", ("auto", "opaque"))
    count = whole(fields, "n", (1, MOST_PICTURES)) or 1
    width, height = _size(fields, skill)
    seed = _seed(fields)
    stream, progress = _flag(fields, "stream"), _flag(fields, "progress")
    partial = whole(fields, "partial_images", (0, MOST_PARTIAL)) or 0
    by_url = _choice(fields, "response_format", ("b64_json", "url")) == "url"
    for field, asked in (("partial_images", partial), ("progress", progress)):
        if asked and not stream:
            raise Invalid(field, f"'{field}' needs \"stream\": true.")
    if stream and by_url:
        raise Invalid("response_format", "'response_format' of a stream is b64_json.")
    defaults = skill.defaults or {}
    steps = defaults.get("num_inference_steps")
    # All fields but the seed are the same for all.
    first = Picture(
        prompt=_prompt(fields),
        negative_prompt=_negative(fields, skill),
        width=width,
        height=height,
        seed=seed,
        steps=_steps(fields, None if steps is None else int(steps)),
        guidance=number(fields, "guidance_scale", GUIDANCE, defaults.get("guidance_scale")),
        true_cfg=_true_cfg(fields, skill),
    )
    compression = whole(fields, "output_compression", (0, 100))
    return Asked(
        pictures=tuple(Picture(**{**vars(first), "seed": (seed + k) % SEEDS}) for k in range(count)),
        format=_choice(fields, "output_format", FORMATS) or "png",
        compression=85 if compression is None else compression,
        by_url=by_url,
        stream=stream,
        partial_images=partial,
        progress=progress,
    )


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise Invalid(None, "The body must be a JSON object.", "invalid_json")
    return body


def _check_known(fields: Mapping[str, Any], known: Collection[str]) -> None:
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field[:100], known, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise Invalid(
                field, f"'{field[:100]}' is not a field of this request.{hint}", "unknown_parameter"
            )


def number(
    fields: Mapping[str, Any], field: str, bounds: tuple[float, float], default: float | None = None
) -> float | None:
    """A number within bounds; null and absent mean the default.

    Raises:
        Invalid: naming the field and its bounds.
    """
    value = fields.get(field)
    if value is None:
        return default
    low, high = bounds
    if isinstance(value, bool) or not isinstance(value, (int, float)):  # a bool is an int to Python
        raise Invalid(field, f"'{field}' must be a number from {low:g} to {high:g}.")
    if not low <= value <= high:  # nor is NaN, which is JSON to Python
        raise Invalid(field, f"'{field}' is {str(value)[:20]} and must be from {low:g} to {high:g}.")
    return float(value)


def whole(fields: Mapping[str, Any], field: str, bounds: tuple[int, int]) -> int | None:
    """A whole number within bounds; None where there is none.

    Raises:
        Invalid: naming the field and its bounds.
    """
    value = fields.get(field)
    if value is None:
        return None
    low, high = bounds
    if isinstance(value, bool) or not isinstance(value, int):
        raise Invalid(field, f"'{field}' must be a whole number from {low} to {high}.")
    if not low <= value <= high:
        raise Invalid(field, f"'{field}' is {str(value)[:20]} and must be from {low} to {high}.")
    return value


def _flag(fields: Mapping[str, Any], field: str) -> bool:
    value = fields.get(field)
    if value is not None and not isinstance(value, bool):
        raise Invalid(field, f"'{field}' must be true or false.")
    return bool(value)


def _choice(fields: Mapping[str, Any], field: str, choices: tuple[str, ...]) -> str | None:
    value = fields.get(field)
    if value is not None and value not in choices:
        raise Invalid(field, f"'{field}' must be one of {', '.join(choices)}.")
    return value


def _prompt(fields: Mapping[str, Any]) -> str:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise Invalid("prompt", "'prompt' must be a text that says what to draw.")
    return _short(prompt, "prompt")


def _negative(fields: Mapping[str, Any], skill: Skill) -> str:
    text = fields.get("negative_prompt") or ""
    if not isinstance(text, str):
        raise Invalid("negative_prompt", "'negative_prompt' must be a text.")
    if text and not skill.negative:
        raise Invalid("negative_prompt", f"'negative_prompt': {skill.name} takes none.")
    return _short(text, "negative_prompt")


def _short(text: str, field: str) -> str:
    if len(text) > PROMPT_CHARACTERS:
        raise Invalid(field, f"'{field}' has {len(text)} characters; at most {PROMPT_CHARACTERS} are read.")
    return text


def _side(fields: Mapping[str, Any], field: str, default: int, skill: Skill) -> int:
    value = whole(fields, field, SIDE)
    return _fitting(default if value is None else value, field, skill)


def _fitting(value: int, field: str, skill: Skill) -> int:
    if value % skill.factor:
        below = value // skill.factor * skill.factor
        near = [side for side in (below, below + skill.factor) if SIDE[0] <= side <= SIDE[1]]
        raise Invalid(
            field,
            f"'{field}': {value} is not a multiple of {skill.factor}, as {skill.name} needs it; "
            f"take {' or '.join(map(str, near))}.",
        )
    return value


def _size(fields: Mapping[str, Any], skill: Skill) -> tuple[int, int]:
    """Width and height out of `1024x768`; `auto` is what the pipeline was trained to draw."""
    value = fields.get("size")
    if value in (None, "auto"):
        return skill.width, skill.height
    parts = value.split("x") if isinstance(value, str) and len(value) < 20 else []
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise Invalid("size", "'size' must be auto, or width x height such as 1024x1024.")
    sides = int(parts[0]), int(parts[1])
    for side in sides:
        if not SIDE[0] <= side <= SIDE[1]:
            raise Invalid("size", f"'size': {side} must be from {SIDE[0]} to {SIDE[1]}.")
        _fitting(side, "size", skill)
    return sides


def _steps(fields: Mapping[str, Any], default: int | None) -> int | None:
    steps = whole(fields, "num_inference_steps", STEPS)
    return default if steps is None else steps


def _seed(fields: Mapping[str, Any]) -> int:
    seed = whole(fields, "seed", (0, SEEDS - 1))
    return secrets.randbelow(SEEDS) if seed is None else seed


def _true_cfg(fields: Mapping[str, Any], skill: Skill) -> float | None:
    scale = number(fields, "true_cfg_scale", TRUE_CFG)
    return scale if skill.true_cfg else None  # published for all chutes, of use to some
