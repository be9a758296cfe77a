"""Instances as processes of this machine: one task each, straight through the phases."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chutes.config import Config
from chutes.engine import registry
from chutes.engine.command import inherited
from chutes.engine.contained import meant
from chutes.engine.contract import Endpoint, Engine, Start
from chutes.engine.diagnosis import Reason, diagnose
from chutes.engine.lifecycle import Phase
from chutes.engine.process import EngineProcess, ask, free_port, place_of, sweep, tail
from chutes.engine.python import unpack_bundle
from chutes.exception import ChutesError, EngineFailed
from chutes.fleet.base import Launch, Report
from chutes.model import source as model

# The largest checkpoints take most of an hour to load from a network disk. The published SDK waits for
# ever; a start that will never end should be told apart from a slow one at some point.
LOAD_SECONDS = 3600.0
POLL_SECONDS = 0.25
FETCHES_AT_ONCE = 4  # more would only share one network connection's speed
LOG_TAIL_BYTES = 64 << 10

# A healthy engine answers /health within milliseconds, a busy one within a second or two. Five misses in a
# row are what the published platform calls dead; with these figures that takes a minute and a half.
WATCH_SECONDS = 10.0
WATCH_MISSES = 5
WATCH_TIMEOUT = 8.0


class LocalFleet:
    """Runs instances on this machine. Not thread-safe: belongs to one event loop."""

    def __init__(self, config: Config, report: Callable[[Report], None]) -> None:
        self.config = config
        self.report = report
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ports: dict[str, int] = {}
        self._stopping: set[str] = set()
        # Threads of their own: a fetch takes an hour, and health checks wait for a thread too.
        self._fetchers = ThreadPoolExecutor(FETCHES_AT_ONCE, "fetch")

    def start(self, launch: Launch) -> None:
        task = asyncio.create_task(self._run(launch), name=f"instance {launch.instance_id}")
        self._tasks[launch.instance_id] = task
        task.add_done_callback(lambda _: self._forget(launch.instance_id))

    def stop(self, instance_id: str) -> None:
        task = self._tasks.get(instance_id)
        if task is None:
            self.report(Report(instance_id, Phase.STOPPED))
        elif instance_id not in self._stopping:
            # Once only: a second cancel would break off the stopping itself.
            self._stopping.add(instance_id)
            task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for instance_id in list(self._tasks):
            self.stop(instance_id)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(sweep, place_of(self.config.home))

    def log_path(self, instance_id: str) -> Path:
        return self.config.logs / "instances" / f"{instance_id}.log"

    def _forget(self, instance_id: str) -> None:
        self._tasks.pop(instance_id, None)
        self._ports.pop(instance_id, None)
        self._stopping.discard(instance_id)

    async def _run(self, launch: Launch) -> None:
        """One instance from start to end; every way out is a report."""
        try:
            reason = await self._live(launch)
        except asyncio.CancelledError:
            self.report(Report(launch.instance_id, Phase.STOPPED))
            return
        except _Ended as ended:
            reason = ended.reason
        except ChutesError as error:
            reason = Reason(error.message, error.fix, fatal=error.exit_code == 2 or error.status < 500)
        except Exception as error:  # a fault of ours must not leave an instance "starting" for ever
            reason = Reason(
                f"{type(error).__name__}: {error}", "This is a fault in chutes: please report it."
            )
        self.report(Report(launch.instance_id, Phase.FAILED, reason=reason))

    async def _live(self, launch: Launch) -> Reason:
        """Through all phases; returns why the instance ended by itself."""
        engine = registry.of(launch.plan.engine)
        python = await self._prepare(launch, engine)
        directory = await self._fetch(launch, engine, python)
        start, process = await self._load(launch, engine, python, directory)
        served = False
        try:
            context = await self._until_ready(launch, engine, start, process)
            self._tell(launch, Phase.READY, endpoint=start.endpoint, pid=process.pid, max_model_len=context)
            served = True
            return await self._watch(launch, process, start.endpoint)
        except asyncio.CancelledError:
            self._tell(launch, Phase.DRAINING, "finishing what it has")
            raise
        finally:
            await process.stop(at_once=not served)

    def _tell(
        self,
        launch: Launch,
        phase: Phase,
        detail: str = "",
        done: int = 0,
        total: int = 0,
        *,
        endpoint: Endpoint | None = None,
        pid: int | None = None,
        max_model_len: int | None = None,
    ) -> None:
        self.report(
            Report(
                launch.instance_id, phase, detail, done, total,
                endpoint=endpoint, pid=pid, max_model_len=max_model_len,
            )
        )  # fmt: skip

    def _progress(self, launch: Launch, phase: Phase) -> Callable[[str, int, int], None]:
        """A callback for any thread and any rate; makes at most ten reports a second of it."""
        loop = asyncio.get_running_loop()
        last = [0.0, ""]

        def progress(detail: str, done: int, total: int) -> None:
            now = time.monotonic()
            if detail == last[1] and now - float(last[0]) < 0.1 and done != total:
                return
            last[:] = [now, detail]
            loop.call_soon_threadsafe(self._tell, launch, phase, detail, done, total)

        return progress

    async def _prepare(self, launch: Launch, engine: Engine) -> Path:
        self._tell(launch, Phase.PREPARING)
        progress = self._progress(launch, Phase.PREPARING)
        return await engine.prepare(launch.spec, launch.plan, self.config, progress)

    async def _fetch(self, launch: Launch, engine: Engine, python: Path) -> Path | None:
        if launch.source is None:
            return None
        self._tell(launch, Phase.FETCHING, launch.source.note)
        progress = self._progress(launch, Phase.FETCHING)
        stop = threading.Event()  # a thread cannot be cancelled, only asked
        try:
            path = await asyncio.get_running_loop().run_in_executor(
                self._fetchers, model.fetch, launch.source, self.config.models, progress, stop.is_set
            )
        finally:
            stop.set()
        return await engine.adapt(python, path, progress)

    async def _load(
        self, launch: Launch, engine: Engine, python: Path, directory: Path | None
    ) -> tuple[Start, EngineProcess]:
        plan = launch.plan
        endpoint = Endpoint("127.0.0.1", free_port(self._ports.values()), secrets.token_hex(16))
        self._ports[launch.instance_id] = endpoint.port
        place = place_of(self.config.home, launch.instance_id)
        start = Start(
            launch.spec, plan, python, directory, launch.served_names, endpoint, place,
            self.config.startup_seconds,
        )  # fmt: skip
        if launch.spec.bundle:
            await asyncio.to_thread(unpack_bundle, launch.spec, self.config, place)
        variables = engine.variables(start)
        if plan.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, plan.gpus))
            variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # NVML's order; CUDA's own is fastest first
        process = await EngineProcess.start(
            engine.command(start),
            {**inherited(), **meant({**launch.secrets, **variables})},
            self.log_path(launch.instance_id),
            place,
        )
        self._tell(launch, Phase.LOADING, "starting the engine", pid=process.pid)
        return start, process

    async def _until_ready(
        self, launch: Launch, engine: Engine, start: Start, process: EngineProcess
    ) -> int | None:
        """Poll until the engine answers and its first answer is sane; returns its context length.

        Raises:
            EngineFailed: it ended, answered nonsense, or took more than an hour.
        """
        endpoint = start.endpoint
        ended = asyncio.ensure_future(process.wait())
        deadline = time.monotonic() + LOAD_SECONDS
        try:
            while True:
                status, body = await ask(endpoint.port, "/health", endpoint.api_key)
                if status == 200:
                    break
                done, _ = await asyncio.wait({ended}, timeout=POLL_SECONDS)
                if done:
                    raise _ended(launch, process, ended.result())
                self._tell(
                    launch,
                    Phase.LOADING,
                    engine.milestone(tail(process.log, LOG_TAIL_BYTES)),
                    pid=process.pid,
                )
                if time.monotonic() > deadline:
                    raise EngineFailed(
                        f"The engine did not answer within {LOAD_SECONDS:.0f} s.",
                        f"See `chutes logs {launch.spec.name}`.",
                    )
            self._tell(launch, Phase.WARMING, "asking it one thing", pid=process.pid)
            warm = asyncio.ensure_future(engine.warm(start))
            try:
                await asyncio.wait({ended, warm}, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    raise _ended(launch, process, ended.result())
                await warm
            finally:
                warm.cancel()
            status, body = await ask(endpoint.port, "/v1/models", endpoint.api_key)
            return _context_length(body) if status == 200 else None
        finally:
            ended.cancel()

    async def _watch(self, launch: Launch, process: EngineProcess, endpoint: Endpoint) -> Reason:
        """Until the engine ends or stops answering; returns why."""
        ended = asyncio.ensure_future(process.wait())
        misses = 0
        try:
            while misses < WATCH_MISSES:
                done, _ = await asyncio.wait({ended}, timeout=WATCH_SECONDS)
                if done:
                    return _why(launch, process, ended.result())
                status, _ = await ask(endpoint.port, "/health", endpoint.api_key, timeout=WATCH_TIMEOUT)
                misses = 0 if status == 200 else misses + 1
            self._tell(launch, Phase.DRAINING, "does not answer any more")  # out of the route table now
            return Reason(
                f"The engine did not answer {WATCH_MISSES} health checks in a row.", "See `chutes logs`."
            )
        finally:
            ended.cancel()


class _Ended(EngineFailed):
    """An engine's end during its start, with the reason found in its log."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.summary, reason.fix)
        self.reason = reason


def _ended(launch: Launch, process: EngineProcess, code: int) -> _Ended:
    return _Ended(_why(launch, process, code))


def _why(launch: Launch, process: EngineProcess, code: int) -> Reason:
    return diagnose(tail(process.log, LOG_TAIL_BYTES), code, own_code=launch.spec.engine is None)


def _context_length(body: bytes) -> int | None:
    try:
        return json.loads(body)["data"][0].get("max_model_len")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
