"""Hardware that a plan may take: what the catalogue sells, or what is free on this machine."""

from __future__ import annotations

import datetime
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from chutes.hardware.choice import Refusal, Rejected
from chutes.hardware.devices import Gpu, Machine
from chutes.hardware.profiles import GpuType, Profiles

COUNTS = (1, 2, 4, 8)  # GPUs per machine as they are sold; `--gpu-count` takes any other

# Of what NVML counts, this share is what CUDA hands out, where the profiles do not know the device: the
# widest gap among those they know is 2.2 %.
CUDA_SHARE_OF_NVML = 0.975

GIB = 1 << 30


@dataclass(frozen=True)
class Offer:
    """`count` GPUs of one kind in one machine. Memory in bytes of one GPU, as CUDA counts."""

    gpu: str
    name: str
    count: int
    memory: int
    capability: tuple[int, int]
    free: int | None = None
    """What nobody else uses on the fullest of them; None where nothing runs there."""
    type: GpuType | None = None
    price: float | None = None
    """US dollars an hour of one GPU; None where there is no price, or it is one's own."""
    price_date: datetime.date | None = None
    indices: tuple[int, ...] = ()

    def reject(self, reason: str, kind: Refusal = "memory") -> Rejected:
        return Rejected(
            gpu=self.gpu, gpu_count=self.count, reason=reason, kind=kind, price_per_hour=self.hourly
        )

    @property
    def hourly(self) -> float | None:
        return None if self.price is None else round(self.price * self.count, 4)


def of_catalogue(
    profiles: Profiles,
    gpu: str | Collection[str] | None = None,
    count: int | Sequence[int] | None = None,
) -> tuple[list[Offer], list[Rejected]]:
    """Every GPU type at every count it is sold in, or only `gpu`, or only `count`."""
    offers: list[Offer] = []
    rejected: list[Rejected] = []
    only = (gpu,) if isinstance(gpu, str) else gpu
    counts = COUNTS if count is None else (count,) if isinstance(count, int) else tuple(count)
    for id_, kind in profiles.gpus.items():
        if only and id_ not in only:
            continue
        capability = kind.compute_capability
        if capability is None:
            rejected.append(
                Rejected(
                    gpu=id_,
                    gpu_count=counts[0],
                    reason=f"{kind.name} ({kind.capability}) has no CUDA, and the engines here need it",
                    kind="capability",
                )
            )
            continue
        offers += [
            Offer(
                id_,
                kind.name,
                number,
                kind.memory_bytes,
                capability,
                type=kind,
                price=kind.usd_per_hour,
                price_date=profiles.price_date(id_) if kind.usd_per_hour else None,
            )
            for number in counts
        ]
    return offers, rejected


def of_machine(machine: Machine, profiles: Profiles, counts: Sequence[int] = COUNTS) -> list[Offer]:
    """The GPUs of this machine: those of one kind together, the emptiest first, so many at a time."""
    offers: list[Offer] = []
    by_name = sorted(machine.gpus, key=lambda gpu: gpu.name)
    for name, group in groupby(by_name, key=lambda gpu: gpu.name):
        # The emptiest first, so that a second chute does not land on the first one's GPU.
        same = sorted(group, key=lambda gpu: (-gpu.memory_free, gpu.index))
        id_ = profiles.gpu_id(name, min(gpu.memory_total for gpu in same))
        kind = profiles.gpus[id_] if id_ else None
        for number in sorted(
            {*(n for n in counts if n <= len(same)), *(() if len(counts) == 1 else (len(same),))}
        ):
            taken = same[:number]
            memory = min(cuda_bytes(gpu, kind) for gpu in taken)
            # What is used counts alike for CUDA and NVML; the gap between their totals is used by nobody.
            used = max(gpu.memory_total - gpu.memory_free for gpu in taken)
            offers.append(
                Offer(
                    id_ or name,
                    name,
                    number,
                    memory,
                    taken[0].capability,
                    free=max(0, memory - max(0, used - (taken[0].memory_total - memory))),
                    type=kind,
                    indices=tuple(sorted(gpu.index for gpu in taken)),
                )
            )
    return offers


def cuda_bytes(gpu: Gpu, kind: GpuType | None) -> int:
    """What CUDA will report as the device's total; the profile's figure, unless NVML counts less (MIG)."""
    if kind is not None and kind.memory_bytes <= gpu.memory_total:
        return kind.memory_bytes
    return int(gpu.memory_total * CUDA_SHARE_OF_NVML)


def utilization(offer: Offer, wanted: float) -> float:
    """The share of each GPU that the engine may be told to take: it refuses to start above what is free."""
    if offer.free is None:
        return wanted
    return min(wanted, math.floor(offer.free / offer.memory * 100) / 100)
