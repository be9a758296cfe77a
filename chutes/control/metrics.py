"""`GET /metrics`: the platform as Prometheus reads it.

Everything is looked up when somebody asks: sums of ended requests (`counts.py`), what is in flight (the
board), what processes use (psutil), and what ready engines say of themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from chutes.board import QUEUED_AT
from chutes.control import engine_metrics
from chutes.control.counts import Histogram
from chutes.control.platform import Platform
from chutes.control.reconcile import Instance
from chutes.engine.lifecycle import Phase
from chutes.engine.process import ask
from chutes.wire import GAP_BUCKETS

# An engine whose loop is busy answers late; a scraper gives up after ten seconds by default.
ENGINE_SECONDS = 2.0
ENGINES_AT_ONCE = 8
# Two scrapers and a person who reloads the page must not multiply what engines are asked.
FRESH_SECONDS = 1.0


@dataclass(frozen=True)
class EngineReading:
    """What an engine said of itself; `values` is empty when it did not answer."""

    chute: str
    instance: str
    engine: str
    values: dict[str, float]
    up: bool


class Metrics:
    """The page, of one platform."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._readings: list[EngineReading] = []
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def page(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, in the format that a scraper asks for."""
        await self._read_engines()
        encode, content_type = choose_encoder(accept)
        return await asyncio.to_thread(self._encode, encode), content_type

    def _encode(self, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(list(self._collect())))
        return encode(registry)

    async def _read_engines(self) -> None:
        async with self._reading:
            if time.monotonic() - self._read_at < FRESH_SECONDS:
                return
            turn = asyncio.Semaphore(ENGINES_AT_ONCE)
            ready = [i for i in self._platform.world.instances.values() if i.phase == Phase.READY]
            self._readings = await asyncio.gather(*(self._read_engine(i, turn) for i in ready))
            self._read_at = time.monotonic()

    async def _read_engine(self, instance: Instance, turn: asyncio.Semaphore) -> EngineReading:
        deployment = self._platform.world.deployments.get(instance.chute_id)
        engine = deployment.plan.engine if deployment else ""
        values: dict[str, float] = {}
        status = 0
        if instance.endpoint is not None:
            async with turn:
                endpoint = instance.endpoint
                status, page = await ask(endpoint.port, "/metrics", endpoint.api_key, timeout=ENGINE_SECONDS)
            if status == 200:
                with contextlib.suppress(ValueError):  # a page that is none says nothing
                    values = await asyncio.to_thread(
                        engine_metrics.read, engine, page.decode(errors="replace")
                    )
        return EngineReading(self._name(instance.chute_id), instance.id, engine, values, status == 200)

    def _name(self, chute_id: str) -> str:
        deployment = self._platform.world.deployments.get(chute_id)
        return deployment.spec.name if deployment else ""

    # In a thread: nothing here may be changed by the loop meanwhile, only replaced --------------------

    def _collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._now()
        yield from self._processes()
        yield from self._engines()

    def _requests(self) -> Iterator[Metric]:
        counter, histogram = CounterMetricFamily, HistogramMetricFamily
        requests = counter("chutes_requests", "Requests that ended.", labels=["chute", "status", "stream"])
        errors = counter(
            "chutes_request_errors", "Requests refused, failed or cut off.", labels=["chute", "code"]
        )
        tokens = counter("chutes_tokens", "Tokens, as engines count them.", labels=["chute", "kind"])
        upstream = counter(
            "chutes_upstream_requests", "Requests by the instance that had them.",
            labels=["chute", "instance"],
        )  # fmt: skip
        retries = counter("chutes_retries", "Times another instance was tried.", labels=["chute"])
        wakes = counter("chutes_wakes", "Times a sleeping chute was asked for.", labels=["chute"])
        ttft = histogram("chutes_ttft_seconds", "Until a stream's first byte.", labels=["chute"])
        seconds = histogram("chutes_request_seconds", "Whole requests.", labels=["chute"])
        queue = histogram("chutes_queue_seconds", "Waited for a free instance.", labels=["chute"])
        gaps = histogram("chutes_inter_chunk_seconds", "Between two chunks of a stream.")
        lost = counter("chutes_usage_lost", "Requests missing from usage: the disk was too slow or full.")

        world, meter = self._platform.world, self._platform.meter
        with meter.lock:
            meter.counts.forget(world.deployments, world.instances)
            for id_, chute in meter.counts.chutes.items():
                name = self._name(id_)
                for (status, stream), count in chute.requests.items():
                    requests.add_metric([name, str(status), "true" if stream else "false"], count)
                for code, count in chute.errors.items():
                    errors.add_metric([name, code], count)
                if not id_:
                    continue  # refused before a chute was known
                tokens.add_metric([name, "prompt"], chute.prompt_tokens)
                tokens.add_metric([name, "completion"], chute.completion_tokens)
                tokens.add_metric([name, "cached"], chute.cached_tokens)
                for instance, count in chute.instances.items():
                    upstream.add_metric([name, instance], count)
                retries.add_metric([name], chute.retries)
                wakes.add_metric([name], chute.wakes)
                for family, of in ((ttft, chute.ttft), (seconds, chute.seconds), (queue, chute.queue)):
                    family.add_metric([name], of.cumulative(), of.sum)
            between = Histogram(GAP_BUCKETS)
            between.counts = list(meter.counts.gaps)
            # Workers count gaps by bucket only: there is no sum to tell.
            gaps.add_metric([], between.cumulative(), None)
            lost.add_metric([], meter.lost)
        yield from (requests, errors, tokens, upstream, retries, wakes, ttft, seconds, queue, gaps, lost)

    def _now(self) -> Iterator[Metric]:
        labels = ["chute", "instance"]
        in_flight = GaugeMetricFamily("chutes_in_flight", "Requests that an instance has now.", labels=labels)
        queued = GaugeMetricFamily("chutes_queued", "Requests that wait in the gateway now.", labels=labels)
        states = GaugeMetricFamily("chutes_instances", "Instances by phase.", labels=["chute", "phase"])
        board = self._platform.workers.board
        phases: dict[tuple[str, str], int] = {}
        for instance in self._platform.world.instances.values():
            name = self._name(instance.chute_id)
            slot = self._platform.slot_of(instance.id)
            if not instance.phase.over:
                phases[name, str(instance.phase)] = phases.get((name, str(instance.phase)), 0) + 1
            if slot is not None and instance.phase in (Phase.READY, Phase.DRAINING):
                in_flight.add_metric([name, instance.id], board.total(slot))
                queued.add_metric([name, instance.id], board.total(QUEUED_AT + slot))
        for labelled, count in phases.items():
            states.add_metric(labelled, count)
        yield from (in_flight, queued, states)

    def _processes(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "chutes_process_resident_bytes", "Memory of the platform's own processes.", labels=["process"]
        )
        cpu = CounterMetricFamily(
            "chutes_process_cpu_seconds", "Their time on processors.", labels=["process"]
        )
        pids = {f"worker-{row}": pid for row, pid in self._platform.workers.pid_by_row().items()}
        for name, pid in {"control": os.getpid(), **pids}.items():
            with contextlib.suppress(psutil.Error):  # it may just have ended
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    memory.add_metric([name], process.memory_info().rss)
                    cpu.add_metric([name], times.user + times.system)
        yield from (memory, cpu)

    def _engines(self) -> Iterator[Metric]:
        labels = ["chute", "instance", "engine"]
        up = GaugeMetricFamily("chutes_engine_up", "1: a ready engine told its metrics.", labels=labels)
        for reading in self._readings:
            up.add_metric([reading.chute, reading.instance, reading.engine], float(reading.up))
        yield up
        for metric in engine_metrics.METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name.removesuffix("_total"), metric.text, labels=labels)
            for reading in self._readings:
                if metric.name in reading.values:
                    family.add_metric(
                        [reading.chute, reading.instance, reading.engine], reading.values[metric.name]
                    )
            yield family


class _Collected(Collector):
    """Families that are there already, as prometheus_client's encoders take them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
