"""`hardware_profiles.yaml`, read and checked."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chutes.exception import InvalidSpec

SHIPPED = (
    Path(__file__).parents[2] / "hardware_profiles.yaml"
)  # beside the package, in a checkout and in a wheel


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tier(_Strict):
    """A starting point by model size."""

    name: str
    up_to_billion: float | None
    """Largest parameter count, in billions, that belongs here; None: no upper bound."""
    gpu_count: int = Field(ge=1)
    min_vram_gb_per_gpu: int = Field(ge=1)


class GpuType(_Strict):
    """A kind of GPU. Units: GiB that CUDA hands out, GB/s, dense TFLOPS in bf16, US dollars."""

    name: str
    memory_gib: float = Field(gt=0)
    bandwidth_gbps: float = Field(gt=0)
    bf16_tflops: float = Field(gt=0)
    capability: str
    usd_per_hour: float | None = None


class EngineDefaults(_Strict):
    """How one engine is started on one kind of accelerator."""

    version: str
    kv_cache_share: float = Field(default=0.25, gt=0, le=0.9)
    kv_cache_max_gib: float = Field(default=4, gt=0)


class Profiles(_Strict):
    tiers: list[Tier] = Field(min_length=1)
    engines: dict[str, dict[str, EngineDefaults]]
    gpus: dict[str, GpuType]

    def tier(self, parameters: int) -> Tier:
        """The smallest tier that holds a model of so many parameters."""
        for tier in self.tiers:
            if tier.up_to_billion is None or parameters <= tier.up_to_billion * 1e9:
                return tier
        return self.tiers[-1]

    def gpu_id(self, device_name: str) -> str | None:
        """Short id of a device by the name that its driver prints; None for an unknown one."""
        matches = [(len(gpu.name), id_) for id_, gpu in self.gpus.items() if gpu.name in device_name]
        return max(matches)[1] if matches else None

    def check_ids(self, ids: list[str], field: str) -> None:
        """Raise InvalidSpec for a GPU id that is not in the file."""
        for id_ in ids:
            if id_.lower() not in self.gpus:
                near = difflib.get_close_matches(id_.lower(), self.gpus, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise InvalidSpec(
                    f"NodeSelector {field} names an unknown GPU {id_!r}.{hint}",
                    f"Known ids: {', '.join(self.gpus)}. hardware_profiles.yaml defines them.",
                )


def find(home: Path, explicit: Path | None = None) -> Path:
    """The file in force: the configured one, the user's own in `home`, or the shipped one."""
    if explicit is not None:
        return explicit
    own = home / "hardware_profiles.yaml"
    return own if own.exists() else SHIPPED


def load(path: Path = SHIPPED) -> Profiles:
    """Read profiles.

    Raises:
        InvalidSpec: no such file, not YAML, or a field is wrong; the message names file and field.
    """
    try:
        return Profiles.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise InvalidSpec(f"{path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{path} is not valid YAML: {error}", "Mend it, or remove it.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidSpec(f"{path}: {where}: {first['msg']} (found {first['input']!r}).") from None
