"""The devices of this machine, as its own drivers report them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. Memory in bytes as NVML counts it, which is up to 2 % more than CUDA hands out."""

    index: int
    name: str
    memory_total: int
    memory_free: int
    capability: tuple[int, int]
    uuid: str


@dataclass(frozen=True)
class Machine:
    """What a planner may spend. Memory in bytes; `cpus` are those this process may run on."""

    cpus: int
    memory_total: int
    memory_available: int
    gpus: tuple[Gpu, ...] = ()
    gpu_driver: str = ""
    gpu_problem: str = ""
    """Why no GPU can be used, when the reason is more than that there is none."""


def detect() -> Machine:
    """Look at this machine now. Takes a few milliseconds without a GPU, some tens with one."""
    memory = psutil.virtual_memory()
    limit, left = _cgroup_memory() or (memory.total, memory.available)
    gpus, driver, problem = _nvidia()
    return Machine(
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_total=min(memory.total, limit),
        memory_available=min(memory.available, left),
        gpus=gpus,
        gpu_driver=driver,
        gpu_problem=problem,
    )


def has_gpu(min_gb: float = 0) -> bool:
    """Whether an NVIDIA GPU of at least so many decimal GB can be used here, for templates to choose by."""
    return any(gpu.memory_total >= min_gb * 1e9 for gpu in _nvidia()[0])


def _cgroup_memory() -> tuple[int, int] | None:
    """(limit, left of it) of our container in bytes; None without one.

    A pod with 8 GiB on a 1 TiB host has 8 GiB. File cache that can be dropped counts as left.
    """
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdecimal():
        return None
    return int(limit), max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def _nvidia() -> tuple[tuple[Gpu, ...], str, str]:
    """(GPUs, driver version, why there are none). `CUDA_VISIBLE_DEVICES` hides what it hides from CUDA."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        # No library is a machine without NVIDIA: nothing to complain about. Anything else is.
        absent = error.args[:1] == (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,)
        return (), "", "" if absent else f"the NVIDIA driver answers: {error}"
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        gpus: list[Gpu] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            gpus.append(
                Gpu(
                    index=index,
                    name=pynvml.nvmlDeviceGetName(handle),
                    memory_total=int(memory.total),
                    memory_free=int(memory.free),
                    capability=pynvml.nvmlDeviceGetCudaComputeCapability(handle),
                    uuid=pynvml.nvmlDeviceGetUUID(handle),
                )
            )
    except pynvml.NVMLError as error:
        return (), "", f"the NVIDIA driver answers: {error}"
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [item.strip() for item in visible.split(",")]
        gpus = [gpu for gpu in gpus if str(gpu.index) in wanted or gpu.uuid in wanted]
        if not gpus:
            return (), driver, f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
    return tuple(gpus), driver, ""
