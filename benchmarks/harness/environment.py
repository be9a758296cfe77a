"""Where a measurement is made: what a reader must know to believe it, or to make it again."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import msgspec
import psutil

from benchmarks.harness.result import Environment
from chutes.hardware import devices

ROOT = Path(__file__).parents[2]
LOOKS, LOOK_SECONDS = 6, 0.5
"""How often and how long one looks at what else runs here."""
QUIET = 0.05


class Before(msgspec.Struct, frozen=True):
    """What was known when the run began, and where the CPU's clocks stood."""

    environment: Environment
    ticks: tuple[float, float, float]


def before(versions: dict[str, str] | None = None) -> Before:
    """Look at the machine before the load.

    Args:
        versions: of engines and others, by name, as the targets say them.
    """
    machine = devices.detect()
    own = {"python": platform.python_version(), "chutes": metadata.version("chutes")}
    return Before(
        Environment(
            cpu=_cpu(),
            cpus=os.cpu_count() or 1,
            cores=sorted(os.sched_getaffinity(0)),
            memory_bytes=psutil.virtual_memory().total,
            system=platform.platform(),
            busy_before=_busy(),
            load_before=os.getloadavg(),
            gpus=[gpu.name for gpu in machine.gpus],
            versions=own | (versions or {}),
            commit=_commit(),
        ),
        _ticks(),
    )


def after(begun: Before) -> Environment:
    """The same machine after it: load average, and what of the CPU was used and stolen in between."""
    busy, steal, total = (now - then for now, then in zip(_ticks(), begun.ticks, strict=True))
    return msgspec.structs.replace(
        begun.environment,
        load_after=os.getloadavg(),
        busy=round(busy / total, 4) if total else None,
        steal=round(steal / total, 4) if total else None,
    )


def _busy() -> float:
    """The least share of all CPUs that was in use: an engine that has just answered spins for a second or
    two, and that is not what disturbs a measurement."""
    least = 1.0
    for _ in range(LOOKS):
        least = min(least, psutil.cpu_percent(LOOK_SECONDS) / 100)
        if least < QUIET:
            break
    return least


def _ticks() -> tuple[float, float, float]:
    """(busy, stolen, all) seconds of all CPUs since boot."""
    times = psutil.cpu_times()
    user, system, irq = times.user, times.system, times.irq + times.softirq
    idle = times.idle + times.iowait
    # Guests are counted in `user` already.
    busy = user + times.nice + system + irq
    return busy, times.steal, busy + times.steal + idle


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout that this file is in; None where it is an installation."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
