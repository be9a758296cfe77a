"""What the load clients themselves can drive on this machine, against an engine that costs almost nothing.

A measurement is the client's, not the server's, where it comes near these figures. There are two: the
harness's, which measures models, and the one in C, which measures the gateway alone (benchmarks/gateway).
Engine and client share the machine here, so what is found are lower bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.gateway import contenders, machine, programs
from benchmarks.gateway.worker import chutes
from benchmarks.harness import clients, environment, schedule
from benchmarks.harness.messages import Address, Ask, Job
from benchmarks.harness.options import COUNT, POSITIVE
from benchmarks.harness.records import Record
from benchmarks.harness.result import replace_file
from benchmarks.harness.schedule import Load
from benchmarks.harness.workloads import CHAT
from chutes import compiled
from chutes import config as settings
from chutes.cli import output
from chutes.exception import ChutesError, NotConfigured

STREAMS, CHUNKS = 64, 512
CONNECTIONS = 64
MOST_A_SECOND = 30_000
"""Requests that are made ready for each second and process: more than one was ever seen to send."""
MOST_LAG_MS = 5.0
"""99 % of what a client does must be in time by this much, or its figures are its own."""
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05)
"""Of what it drives as fast as it goes: the loads that are tried until one is held in time. Of chunks that is
a small one: as fast as it goes, a read has many of them, and in time each comes by itself."""
TICK_US, DRIFT_US = 10_000, 37
"""A hundred chunks a second and stream. `STREAMS` streams tick together, as those of an engine's step do, and
the engines a little apart."""
MODEL = contenders.MODEL


def add_options(parser: argparse.ArgumentParser) -> None:
    cores = os.cpu_count() or 1
    add = parser.add_argument
    add(
        "-p",
        "--processes",
        type=COUNT,
        default=max(1, cores // 2),
        metavar="N",
        help="default here: %(default)s",
    )
    add(
        "-d",
        "--duration",
        type=POSITIVE,
        default=4.0,
        metavar="S",
        help="of each load (default: %(default)s)",
    )
    add("-o", "--output", type=Path, metavar="FILE", help="write the figures as JSON")


def run(options: argparse.Namespace, command: str) -> int:
    begun = environment.before()
    with engine() as port:
        found = asyncio.run(measure(port, options.processes, options.duration))
    try:
        found |= asyncio.run(of_the_gateway(options.duration))
    except programs.Unavailable as error:
        output.note(f"No gateway worker to compare with: {error}")
    for line in lines(found):
        output.say(line)
    if options.output:
        place = msgspec.to_builtins(environment.after(begun))
        document = {"command": command, "processes": options.processes, "environment": place, "found": found}
        replace_file(options.output, json.dumps(document, indent=1).encode() + b"\n")
        output.note(f"written to {options.output}")
    return 0


@contextmanager
def engine() -> Iterator[int]:
    """The engine in C of the gateway's benchmark, on a port of its own. Raises NotConfigured: no compiler."""
    program = _program("engine")
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    process = subprocess.Popen(
        [program, "--listen", str(listener.fileno()), "--model", MODEL],
        pass_fds=[listener.fileno()],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise ChutesError(f"{program} did not start.")
        yield listener.getsockname()[1]
    finally:
        process.kill()
        process.wait()
        listener.close()


async def measure(port: int, processes: int, seconds: float) -> dict[str, dict[str, float]]:
    """By client and unit: how much as fast as it goes, and the most of it that is in time."""
    c = _InC(_program("load"), port, seconds)
    harness = _Harness(port, processes, seconds)
    return {
        "harness, requests": await _found(harness.requests, harness.requests_in_time),
        "harness, SSE chunks": await _found(harness.chunks, harness.chunks_in_time),
        "load.c, requests": await _found(c.requests, c.requests_in_time),
        "load.c, SSE chunks": {"per_second": await c.chunks()},
    }


async def of_the_gateway(seconds: float) -> dict[str, dict[str, float]]:
    """What one gateway worker on a CPU of its own can do, for comparison. None is left when this returns."""
    if len(os.sched_getaffinity(0)) < 2:
        raise programs.Unavailable("it needs a CPU of its own")
    cpus = machine.Cpus.chosen(None)
    load = _program("load")
    with tempfile.TemporaryDirectory(prefix="bench-ceiling-") as place:
        engine, ports = contenders.engine(cpus.engine, Path(place), _program("engine"))
        try:
            worker = chutes(contenders.Setting(cpus.gateway, ports, Path(place)))
            try:
                c = _InC(load, worker.port, seconds, ["taskset", "-c", str(cpus.load)])
                name = "a compiled gateway worker" if compiled.there() else "a gateway worker"
                return {
                    f"{name}, requests": {"per_second": await c.requests()},
                    f"{name}, SSE chunks": {"per_second": await c.chunks()},
                }
            finally:
                worker.stop()
        finally:
            engine.stop()


def _program(name: str) -> Path:
    """Raises NotConfigured: there is no compiler for it."""
    try:
        return programs.compiled(name, settings.load().cache / "bench-gateway")
    except programs.Unavailable as error:
        raise NotConfigured(str(error)) from None


async def _found(
    most: Callable[[], Awaitable[float]], at: Callable[[float], Awaitable[dict[str, float]]]
) -> dict[str, float]:
    """The ceiling, and the highest share of it at which the client was in time."""
    per_second = await most()
    lags: dict[str, float] = {}
    for share in SHARES:
        lags = await at(per_second * share)
        if lags["lag_p99_ms"] <= MOST_LAG_MS:
            break
    return {"per_second": per_second, **lags}


def lines(found: dict[str, dict[str, float]]) -> Iterator[str]:
    yield f"{'a second':38}{'ceiling':>12}{'in time':>12}{'lag p50':>12}{'lag p99':>12}{'core busy':>12}"
    for name, one in found.items():
        row = f"{name:38}{one['per_second']:>12,.0f}"
        if "lag_p99_ms" in one:
            row += f"{one['in_time']:>12,.0f}{one['lag_p50_ms']:>9.2f} ms{one['lag_p99_ms']:>9.2f} ms"
            row += f"{one['busy']:>12.0%}"
            if one["lag_p99_ms"] > MOST_LAG_MS:
                row += f"   never within {MOST_LAG_MS:g} ms"
        yield row


class _InC:
    """`load` of the gateway's benchmark, a single process."""

    def __init__(self, program: Path, port: int, seconds: float, before: Sequence[str] = ()) -> None:
        keys = ",".join(contenders.KEYS)
        self._command = [*before, str(program), "--port", str(port), "--model", MODEL, "--keys", keys]
        self._command += ["--path", contenders.PATH, "--seconds", str(seconds)]

    async def requests(self) -> float:
        return (await self._told("--connections", str(CONNECTIONS)))["requests_per_s"]

    async def requests_in_time(self, rate: float) -> dict[str, float]:
        told = await self._told("--connections", str(4 * CONNECTIONS), "--rate", str(int(rate)))
        lag = told["lag_us"]
        return {
            "in_time": told["requests_per_s"],
            "lag_p50_ms": lag["p50"] / 1e3,
            "lag_p99_ms": lag["p99"] / 1e3,
            "busy": told["busy"],
        }

    async def chunks(self) -> float:
        return (await self._told("--connections", str(STREAMS), "--chunks", str(CHUNKS)))["chunks_per_s"]

    async def _told(self, *arguments: str) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *self._command, *arguments, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        told = json.loads(out) if process.returncode == 0 else {"bad": 1, "first_bad": "it failed"}
        if told["bad"]:
            raise ChutesError(f"load.c had wrong answers from its own engine: {told['first_bad']}.")
        return told


class _Harness:
    """The client of `run` and `sweep`."""

    def __init__(self, port: int, processes: int, seconds: float) -> None:
        self._port, self._processes, self._seconds = port, processes, seconds

    async def requests(self) -> float:
        count = CONNECTIONS * self._processes
        whole = await self._drive(Load(kind="closed", concurrency=count, seconds=self._seconds))
        return len(whole.records) / _lasted(whole.records)

    async def requests_in_time(self, rate: float) -> dict[str, float]:
        outcome = await self._drive(Load(kind="poisson", rate=rate, seconds=self._seconds))
        late = sorted(record.sent - record.scheduled for record in outcome.records)
        return _lags(outcome, late, len(late) / _lasted(outcome.records))

    async def chunks(self) -> float:
        load = Load(kind="closed", concurrency=STREAMS * self._processes, seconds=self._seconds)
        return _chunks_per_second(await self._drive(load, lambda _: f" chunks={CHUNKS} tick=0"))

    async def chunks_in_time(self, rate: float) -> dict[str, float]:
        """Each stream once, all of them open before the first is over."""
        streams = max(1, int(rate * TICK_US / 1e6))
        chunks = int(self._seconds * 1e6 / TICK_US)

        def how(number: int) -> str:
            return f" chunks={chunks} tick={TICK_US + DRIFT_US * (number // STREAMS)}"

        load = Load(kind="closed", concurrency=streams, ramp=min(1.0, self._seconds / 4), requests=streams)
        outcome = await self._drive(load, how)
        # No request is due at a time of its own here: the pulse of its loop says how late the client is.
        late = sorted(late for report in outcome.reports for late in report.late)
        return _lags(outcome, late, _chunks_per_second(outcome))

    async def _drive(self, load: Load, how: Callable[[int], str] | None = None) -> clients.Outcome:
        """`how`: what the engine is told, besides the number of the request; None: a whole answer.

        Raises:
            ChutesError: not all was answered.
        """
        if load.open:
            times = schedule.arrivals(load, "ceiling")
        elif how is None:
            times = [0.0] * int(MOST_A_SECOND * load.seconds * self._processes)
        else:
            times = [0.0] * (load.requests or load.concurrency * max(4, int(load.seconds * 2000 / CHUNKS)))
        stream = {"stream": True, "stream_options": {"include_usage": True}} if how else {}

        def job(number: int, at: float) -> Job:
            said = f"[#{number:010d}{how(number) if how else ''}]"
            body = msgspec.json.encode({"messages": [{"role": "user", "content": said}], **stream})
            return Job([Ask(number, CHAT, body)], at=at)

        jobs = [job(number, at) for number, at in enumerate(times)]
        address = Address("engine", "127.0.0.1", self._port, False, True, "", "", MODEL)
        plans = clients.split(self._processes, load, jobs, [address], timeout=60.0, drain=30.0)
        outcome = await clients.drive(plans, asyncio.Event())
        wrong = next((record for record in outcome.records if record.error), None)
        if wrong is not None:
            raise ChutesError(f"The client had a wrong answer from its own engine: {wrong.message}.")
        return outcome


def _lags(outcome: clients.Outcome, late: list[float], per_second: float) -> dict[str, float]:
    return {
        "in_time": per_second,
        "lag_p50_ms": _at(late, 0.5) * 1e3,
        "lag_p99_ms": _at(late, 0.99) * 1e3,
        "busy": max((report.busy for report in outcome.reports), default=0.0),
    }


def _at(ordered: list[float], share: float) -> float:
    return ordered[int(len(ordered) * share)] if ordered else 0.0


def _chunks_per_second(outcome: clients.Outcome) -> float:
    chunks = sum(1 + len(record.times) for record in outcome.records if record.first is not None)
    return chunks / _lasted(outcome.records)


def _lasted(records: list[Record]) -> float:
    if not records:
        raise ChutesError("The client had no answer from its own engine.", "Is the machine overloaded?")
    return max(record.ended for record in records)
