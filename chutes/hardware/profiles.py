"""`hardware_profiles.yaml`, read and checked."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chutes.exception import InvalidSpec
from chutes.hardware.releases import Releases

SHIPPED = (
    Path(__file__).parents[2] / "hardware_profiles.yaml"
)  # beside the package, in a checkout and in a wheel


GIB = 1 << 30


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
    """A kind of GPU. Units: GiB, GB/s, dense TFLOPS, US dollars an hour."""

    name: str = Field(min_length=1)
    """As nvidia-smi and CUDA print it."""
    kubernetes: str = ""
    """As the node label `nvidia.com/gpu.product` has it."""
    label_gb: int = Field(ge=1, le=1024)
    """Decimal GB on the box: what `min_vram_gb_per_gpu` is compared with."""
    memory_gib: float = Field(gt=0, le=1024)
    """What CUDA lets a program have: the number that everything is planned with."""
    nvml_mib: int | None = Field(default=None, gt=0)
    """What NVML and nvidia-smi count, up to 2 % more; None where nobody has written it down."""
    bandwidth_gbps: float = Field(gt=0)
    bf16_tflops: float = Field(gt=0)
    fp8_tflops: float | None = Field(default=None, gt=0)
    fp4_tflops: float | None = Field(default=None, gt=0)
    capability: str
    """Of CUDA, e.g. `9.0`; anything else (`gfx942`) is a chip that the engines here do not run on."""
    interconnect: str = ""
    link_gbps: float | None = Field(default=None, gt=0)
    """GB/s between one GPU and its peers in the same machine, both directions together."""
    usd_per_hour: float | None = Field(default=None, gt=0)
    price_date: datetime.date | None = None
    """When this price was true, where it is not the file's."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """(major, minor), or None for a chip without CUDA."""
        found = re.fullmatch(r"(\d+)\.(\d+)", self.capability)
        return (int(found[1]), int(found[2])) if found else None


class Prices(_Strict):
    """How old the prices are, because they change faster than the hardware."""

    date: datetime.date
    source: str = ""


class EngineDefaults(_Strict):
    """How one engine is started on one kind of accelerator."""

    version: str
    kv_cache_share: float = Field(default=0.25, gt=0, le=0.9)
    kv_cache_max_gib: float = Field(default=4, gt=0)


class Profiles(_Strict):
    tiers: list[Tier] = Field(min_length=1)
    prices: Prices
    engines: dict[str, dict[str, EngineDefaults]]
    releases: dict[str, Releases] = {}
    """How releases of an engine differ, by engine; those that are shipped where an engine is not in it."""
    gpus: dict[str, GpuType] = Field(min_length=1)

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

    def price_date(self, id_: str) -> datetime.date:
        """When the price of a GPU type was true."""
        return self.gpus[id_].price_date or self.prices.date


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
        # The C parser where there is one: a fifth of the time, and planning is done while someone waits.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return Profiles.model_validate(yaml.load(path.read_text(), loader))
    except OSError as error:
        raise InvalidSpec(f"{path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{path} is not valid YAML: {error}", "Mend it, or remove it.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        line = _line(path, first["loc"])
        found = f" (found {first['input']!r})" if isinstance(first["input"], str | int | float) else ""
        raise InvalidSpec(
            f"{path}, line {line}: {where}: {first['msg']}{found}.",
            "Mend that field; the shipped hardware_profiles.yaml shows what belongs there.",
        ) from None


def _line(path: Path, place: tuple[int | str, ...]) -> int:
    """The line of a field, or of the innermost thing around it that is there; counted from 1."""
    node = yaml.compose(path.read_text(), yaml.SafeLoader)
    line = 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            keyed = {key.value: (key, value) for key, value in node.value}
            if part not in keyed:
                break
            key, node = keyed[part]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
