"""What the kernel counts: CPU time and memory of processes, and who else used a CPU meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from chutes.mortal import mortal

JIFFY = 1 / os.sysconf("SC_CLK_TCK")
SPIN_START_SECONDS = 0.2


class Cpus(NamedTuple):
    """Which CPU runs what. Two are needed; with three, engine and load get one each."""

    gateway: int
    engine: int
    load: int

    @classmethod
    def chosen(cls, wish: str | None) -> Cpus:
        """From `--cpus G,E,L`, or the first and the last ones of those we may use."""
        mine = sorted(os.sched_getaffinity(0))
        if wish:
            return cls(*(int(cpu) for cpu in wish.split(",")))
        if len(mine) < 2:
            raise SystemExit("The benchmark needs two CPUs: one for the gateway, one for engine and load.")
        return cls(mine[0], mine[-1], mine[-2] if len(mine) > 2 else mine[-1])


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes so far, threads that have ended included, to the nanosecond.

    /proc/PID/stat counts in hundredths of a second, too coarse for samples of one.
    """
    total = 0
    for pid in pids:
        try:
            total += time.clock_gettime_ns((~pid << 3) | 2)  # a process's clock, as clock_getcpuclockid says
        except OSError:
            continue  # it has ended
    return total / 1e9


def resident_mb(pids: list[int]) -> float:
    """Resident memory, in 10⁶ bytes."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


class Usage(NamedTuple):
    """Of one CPU since boot, in seconds."""

    busy: float
    steal: float
    at: float


SPIN = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""


@contextlib.contextmanager
def awake(cpus: set[int]) -> Iterator[dict[int, int]]:
    """Keep these CPUs from halting, by a process on each that runs only when nothing else wants to.

    Yields: the process of each CPU.
    """
    command = [sys.executable, "-I", "-S", "-c", SPIN]
    spinners = {cpu: subprocess.Popen(mortal(["taskset", "-c", str(cpu), *command])) for cpu in cpus}
    try:
        time.sleep(SPIN_START_SECONDS)
        yield {cpu: spinner.pid for cpu, spinner in spinners.items()}
    finally:
        for spinner in spinners.values():
            spinner.kill()
            spinner.wait()


@contextlib.contextmanager
def gathered(pids: Sequence[int], cpu: int) -> Iterator[None]:
    """Have all threads of these processes on one CPU, and then where they were before."""
    homes: dict[int, set[int]] = {}
    for thread in (thread for pid in pids for thread in threads(pid)):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            homes[thread] = os.sched_getaffinity(thread)
    try:
        for thread in homes:
            _move(thread, {cpu})
        yield
    finally:
        for pid in pids:
            for thread in threads(pid):
                # One that was started meanwhile is at home where its process is.
                home = homes.get(thread) or homes.get(pid)
                if home is not None:
                    _move(thread, home)


def threads(pid: int) -> list[int]:
    """Of a process; none if it has ended."""
    try:
        return [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    except FileNotFoundError:
        return []


def _move(thread: int, cpus: set[int]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.sched_setaffinity(thread, cpus)


def usage(cpu: int) -> Usage:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{cpu} "):
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
            return Usage((user + nice + system + irq + softirq) * JIFFY, steal * JIFFY, time.monotonic())
    raise SystemExit(f"There is no CPU {cpu}.")


def describe() -> dict[str, Any]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "tcp": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
    }
