"""`hardware_profiles.yaml`, read and checked."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from chutes.exception import InvalidSpec
from chutes.hardware.releases import ENGINES, Releases, checked_version

try:  # the C parser where there is one: a fifth of the time, and planning is done while someone waits
    from yaml import CSafeLoader as _Fastest
except ImportError:
    from yaml import SafeLoader as _Fastest

SHIPPED = (
    Path(__file__).parents[2] / "hardware_profiles.yaml"
)  # beside the package, in a checkout and in a wheel


GIB = 1 << 30


# What CUDA hands out of what NVML counts, over the GPUs that are shipped: 0.97 to 1.
CUDA_OF_NVML = (0.9, 1.001)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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

    @field_validator("capability")
    @classmethod
    def _of_cuda_or_not(cls, text: str) -> str:
        if text[:1].isdecimal() and not re.fullmatch(r"\d+\.\d", text):
            raise ValueError("a compute capability is two numbers, as in '9.0'")
        return text

    @model_validator(mode="after")
    def _one_memory(self) -> GpuType:
        share = self.memory_gib * 1024 / self.nvml_mib if self.nvml_mib else 1.0
        if not CUDA_OF_NVML[0] <= share <= CUDA_OF_NVML[1]:
            raise ValueError(
                f"memory_gib {self.memory_gib:g} is not of the GPU that has nvml_mib {self.nvml_mib}: CUDA "
                f"has up to a tenth less than those {(self.nvml_mib or 0) / 1024:.2f} GiB"
            )
        return self

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

    @field_validator("version")
    @classmethod
    def _a_version(cls, text: str) -> str:
        return checked_version(text)


class Profiles(_Strict):
    tiers: list[Tier] = Field(min_length=1)
    prices: Prices
    engines: dict[str, dict[str, EngineDefaults]]
    releases: dict[str, Releases] = {}
    """How releases of an engine differ, by engine; those that are shipped where an engine is not in it."""
    gpus: dict[str, GpuType] = Field(min_length=1)

    @field_validator("tiers")
    @classmethod
    def _ascending(cls, tiers: list[Tier]) -> list[Tier]:
        bounds = [math.inf if tier.up_to_billion is None else tier.up_to_billion for tier in tiers]
        if bounds != sorted(set(bounds)):
            raise ValueError("tiers must be ordered by up_to_billion, each bound once")
        if bounds[-1] != math.inf:
            raise ValueError("the last tier must take every larger model: up_to_billion: null")
        return tiers

    @field_validator("engines")
    @classmethod
    def _known_engines(cls, engines: dict[str, dict[str, EngineDefaults]]) -> dict:
        for name, kinds in engines.items():
            if name not in ENGINES:
                raise ValueError(f"{name} is not an engine that is known here: {', '.join(ENGINES)}")
            if "cuda" not in kinds:
                raise ValueError(f"{name} lacks cuda: the release that plans for GPUs count with")
        return engines

    def tier(self, parameters: int) -> Tier:
        """The smallest tier that holds a model of so many parameters."""
        for tier in self.tiers:
            if tier.up_to_billion is None or parameters <= tier.up_to_billion * 1e9:
                return tier
        return self.tiers[-1]

    def gpu_id(self, device_name: str, memory: int | None = None) -> str | None:
        """Short id of a device by the name that its driver prints; None for an unknown one.

        Args:
            memory: bytes that NVML counts. A slice of a GPU (MIG) bears the name of the whole and has neither
                its memory nor its bandwidth: it is not that GPU.
        """
        matches = [(len(gpu.name), id_) for id_, gpu in self.gpus.items() if gpu.name in device_name]
        found = max(matches)[1] if matches else None
        if found and memory is not None and memory < CUDA_OF_NVML[0] * self.gpus[found].memory_bytes:
            return None
        return found

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
        text = path.read_text(encoding="utf-8")
        found = yaml.load(text, _Loader)
    except OSError as error:
        raise InvalidSpec(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InvalidSpec(f"{path}, line {line}: that is not text in UTF-8.", "Save it as UTF-8.") from None
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{path} is not valid YAML: {error}", "Mend it, or remove it.") from None
    if not isinstance(found, dict):
        what = "is empty" if found is None else "does not hold fields"
        raise InvalidSpec(f"{path} {what}.", "Copy the shipped hardware_profiles.yaml, or remove the file.")
    try:
        return Profiles.model_validate(found)
    except ValidationError as error:
        raise _wrong(path, error) from None


class _Loader(_Fastest):  # pyright: ignore[reportGeneralTypeIssues]
    """Refuses what YAML lets pass: a key twice, of which the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice, first in line {seen[key.value]}",
                    problem_mark=key.start_mark,
                )
            seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _wrong(path: Path, error: ValidationError) -> InvalidSpec:
    """A misspelt field is told before the one that is missing for it."""
    found = error.errors()
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    where = ".".join(str(part) for part in first["loc"])
    value = first["input"] if isinstance(first["input"], str | int | float) else None
    quoted = f" (found {value!r})" if value is not None and first["type"] != "missing" else ""
    message = "there is no such field" if first["type"] == "extra_forbidden" else first["msg"]
    return InvalidSpec(
        f"{path}, line {_line(path, first['loc'])}: {where}: {message}{quoted}.",
        "Mend that field; the shipped hardware_profiles.yaml shows what belongs there.",
    )


def _line(path: Path, place: tuple[int | str, ...]) -> int:
    """The line of a field, or of the innermost thing around it that is there; counted from 1."""
    node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
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
