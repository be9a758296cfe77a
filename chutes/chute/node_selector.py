"""The hardware that one instance of a chute wants."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from chutes.exception import InvalidSpec

# Keys that people write for the real ones; the published SDK ignores them and runs with defaults.
_MEANT = {
    "num_gpus": "gpu_count",
    "gpus": "gpu_count",
    "n_gpus": "gpu_count",
    "min_vram_gpu_per_gpu": "min_vram_gb_per_gpu",
    "min_vram": "min_vram_gb_per_gpu",
    "min_vram_gb": "min_vram_gb_per_gpu",
    "vram_gb": "min_vram_gb_per_gpu",
    "gpu_type": "include",
    "gpu_types": "include",
    "gpu": "include",
    "max_price": "max_hourly_price_per_gpu",
    "exclude_gpus": "exclude",
}


class NodeSelector(BaseModel):
    """Constraints on the node of an instance; all of them must hold.

    The published limits (8 GPUs, 16 to 140 GB, below 10 $/h) describe one marketplace's fleet. They are
    lifted to what can exist: the bounds that remain only catch slips of the keyboard.

    Raises:
        InvalidSpec: an unknown key, or a value out of range (a `ValueError`).
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    gpu_count: int = Field(default=1, ge=1, le=128)
    """GPUs per instance. 128: the largest single NVLink domain sold (NVL72) and room above it."""
    min_vram_gb_per_gpu: int = Field(default=16, ge=1, le=1024)
    """GB of memory each GPU must have. 1024: above that someone typed megabytes (a B300 has 288)."""
    max_hourly_price_per_gpu: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """US dollars; only means something where the platform knows prices."""
    include: list[str] | None = None
    """Only these GPU types, e.g. `["h100", "a100"]`."""
    exclude: list[str] | None = None
    """Never these GPU types."""

    def __init__(self, **data: Any) -> None:
        for key in data:
            if key not in type(self).model_fields:
                raise _unknown_key(key, data[key])
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _out_of_range(error) from None

    @field_validator("include", "exclude")
    @classmethod
    def _lower(cls, value: list[str] | None) -> list[str] | None:
        # The GPU table's ids are lower case; people write "H100".
        return None if value is None else [item.strip().lower() for item in value]


def _unknown_key(key: str, value: Any) -> InvalidSpec:
    known = list(NodeSelector.model_fields)
    meant = _MEANT.get(key.lower())
    if meant is None:
        meant = next(iter(difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)), None)
    if meant is None:
        fix = f"The keys are: {', '.join(known)}."
    else:
        shown = [value] if meant in ("include", "exclude") and isinstance(value, str) else value
        fix = f"Did you mean {meant}={shown!r}? The keys are: {', '.join(known)}."
    return InvalidSpec(f"NodeSelector has no key {key!r}.", fix)


def _out_of_range(error: ValidationError) -> InvalidSpec:
    first = error.errors()[0]
    field = str(first["loc"][0])
    rule = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return InvalidSpec(
        f"NodeSelector({field}={first['input']!r}): the value {rule}.",
        f"{field} takes {_TAKES[field]}.",
    )


_TAKES = {
    "gpu_count": "a whole number from 1 to 128, the GPUs of one instance",
    "min_vram_gb_per_gpu": "a whole number of GB from 1 to 1024, the memory of each GPU",
    "max_hourly_price_per_gpu": "US dollars above 0, or None for no limit",
    "include": 'a list of GPU types such as ["h100", "a100"]',
    "exclude": 'a list of GPU types such as ["h100", "a100"]',
}
