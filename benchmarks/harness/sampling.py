"""What engine, GPU and CPU were doing meanwhile: looked at once a second, in a thread of its own.

Names of series end in their unit. `_total` counts since the source began; a report shows its rate.
"""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.result import Samples
from chutes.control import engine_metrics

EVERY = 1.0  # seconds: engines refresh their own gauges no more often under load
TIMEOUT = 2.0  # an engine whose loop is busy answers late; its next answer is not worth waiting for longer
TRIES = 3  # refusals in a row before a source that never answered is given up
PREFIX = "chutes_"
MOST = {metric.name for metric in engine_metrics.METRICS if metric.most}


class NotThere(Exception):
    """A source that cannot answer: why, for the reader of the report."""


class Source(Protocol):
    """Something to look at."""

    name: str

    def read(self) -> dict[str, float]:
        """Its values now, by name of the series.

        Raises:
            NotThere: it has none now.
        """
        ...

    def close(self) -> None: ...


class EngineMetrics:
    """An engine's own `/metrics`, under the common names of `chutes.control.engine_metrics`."""

    name = "engine metrics"

    def __init__(self, engine: str, url: str, key: str = "") -> None:
        self._engine, self._url, self._key = engine, url, key

    def read(self) -> dict[str, float]:
        page = fetch(self._url, self._key)
        try:
            found = engine_metrics.read(self._engine, page)
        except ValueError as error:
            raise NotThere(f"{self._url} is not a page of metrics: {error}") from None
        if not found:
            raise NotThere(f"{self._url} has none of the metrics of {self._engine or 'an unnamed engine'}")
        return {name.removeprefix(PREFIX): value for name, value in found.items()}

    def close(self) -> None:
        pass


class PlatformMetrics:
    """The platform's `/metrics`: what it says of the engines of one chute, all instances together."""

    name = "platform metrics"

    def __init__(self, chute: str, url: str, key: str = "") -> None:
        self._chute, self._url, self._key = chute, url, key

    def read(self) -> dict[str, float]:
        found = of_chute(self._chute, fetch(self._url, self._key))
        if not found:
            raise NotThere(f"{self._url} says nothing of engines of {self._chute}")
        return found

    def close(self) -> None:
        pass


def of_chute(chute: str, page: str) -> dict[str, float]:
    """Series of a chute's engines on the platform's page: sums over instances, the fullest cache."""
    lines = [line for line in page.splitlines() if line.startswith(f"{PREFIX}engine_")]
    found: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if sample.labels.get("chute") == chute and not sample.name.endswith("_up"):
                    name = sample.name.removeprefix(PREFIX)
                    before = found.get(name, 0.0)
                    most = sample.name in MOST
                    found[name] = max(before, sample.value) if most else before + sample.value
    except ValueError as error:
        raise NotThere(f"the platform's page of metrics cannot be read: {error}") from None
    return found


class Processes:
    """CPU and memory of an engine: a process and all below it."""

    name = "processes"

    def __init__(self, pid: int, series: str = "engine") -> None:
        self._pid, self._series = pid, series
        self._last: tuple[float, dict[int, float]] | None = None

    def read(self) -> dict[str, float]:
        try:
            first = psutil.Process(self._pid)
            family = [first, *first.children(recursive=True)]
        except psutil.Error:
            raise NotThere(f"process {self._pid} has ended") from None
        used: dict[int, float] = {}
        memory = 0
        for process in family:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    used[process.pid] = times.user + times.system
                    memory += process.memory_info().rss
            except psutil.Error:
                continue  # it has ended between the two looks
        now, before = time.monotonic(), self._last
        self._last = now, used
        found = {f"{self._series}_memory_bytes": float(memory)}
        if before is not None:
            # By process: one that has ended takes its time with it, and the sum would run backwards.
            more = sum(seconds - before[1].get(pid, 0.0) for pid, seconds in used.items())
            found[f"{self._series}_cpu_cores"] = max(0.0, more) / (now - before[0])
        return found

    def close(self) -> None:
        pass


class Gpus:
    """NVIDIA GPUs by NVML: busy share, memory, power."""

    name = "GPUs"

    def __init__(self, indices: Sequence[int] | None = None) -> None:
        self._wanted = indices
        self._devices: dict[int, Any] | None = None

    def read(self) -> dict[str, float]:
        import pynvml

        try:
            if self._devices is None:
                pynvml.nvmlInit()
                there = range(pynvml.nvmlDeviceGetCount())
                wanted = there if self._wanted is None else [n for n in self._wanted if n in there]
                self._devices = {n: pynvml.nvmlDeviceGetHandleByIndex(n) for n in wanted}
            if not self._devices:
                raise NotThere("no GPU of this machine is used")
            found: dict[str, float] = {}
            for index, device in self._devices.items():
                busy = float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)
                found[f"gpu{index}_busy_ratio"] = busy / 100
                found[f"gpu{index}_memory_bytes"] = float(pynvml.nvmlDeviceGetMemoryInfo(device).used)
                found[f"gpu{index}_power_watts"] = pynvml.nvmlDeviceGetPowerUsage(device) / 1000
            return found
        except pynvml.NVMLError as error:
            absent = error.args[:1] == (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,)
            raise NotThere("no NVIDIA GPU here" if absent else f"NVML answers: {error}") from None

    def close(self) -> None:
        if self._devices is not None:
            import pynvml

            pynvml.nvmlShutdown()


def fetch(url: str, key: str = "") -> str:
    """A page as text.

    Raises:
        NotThere: it did not come; says why, without the key.
    """
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    # Never through a proxy of the environment: it is this machine or one beside it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT) as answer:
            return answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        raise NotThere(f"{url} answers {error.code}") from None
    except (OSError, ValueError) as error:
        raise NotThere(f"{url} does not answer: {getattr(error, 'reason', error)}") from None


class Sampler:
    """Looks while its `with` block runs; `samples` has what it saw, whole at any moment.

    Args:
        clock: seconds on the clock of the records.
    """

    def __init__(
        self, sources: Sequence[Source], clock: Callable[[], float] = time.monotonic, every: float = EVERY
    ) -> None:
        self._clock, self._every = clock, every
        self._left = list(sources)
        self._misses: dict[str, int] = {}
        self._rows: list[tuple[float, dict[str, float]]] = []
        self._absent: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._closing = ExitStack()
        for source in sources:
            self._closing.callback(source.close)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._closing.close()

    @property
    def samples(self) -> Samples:
        rows = list(self._rows)
        names = sorted({name for _, values in rows for name in values})
        return Samples(
            at=[round(at, 3) for at, _ in rows],
            series={name: [values.get(name) for _, values in rows] for name in names},
            absent=dict(self._absent),
        )

    def _run(self) -> None:
        due = time.monotonic()
        while self._left and not self._over.wait(max(0.0, due - time.monotonic())):
            self._look()
            # The next whole second that is still to come: a slow source must not make the others hurry.
            late = max(0.0, time.monotonic() - due)
            due += self._every * (int(late / self._every) + 1)

    def _look(self) -> None:
        at, values = self._clock(), dict[str, float]()
        for source in list(self._left):
            try:
                values |= source.read()
                self._misses[source.name] = -1  # it is there; a miss from now on is a hole, not an absence
            except NotThere as reason:
                misses = self._misses.get(source.name, 0)
                if misses >= 0:
                    self._misses[source.name] = misses + 1
                    self._absent[source.name] = str(reason)
                    if misses + 1 >= TRIES:
                        self._left.remove(source)
            else:
                self._absent.pop(source.name, None)
        if values:
            self._rows.append((at, values))
