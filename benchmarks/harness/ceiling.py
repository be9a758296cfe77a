"""What the load client itself can drive on this machine, against an engine that costs almost nothing.

A measurement is the client's, not the server's, where it comes near these figures. Engine and client share
the machine here, so they are a lower bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.gateway import programs
from benchmarks.harness import clients, environment, schedule
from benchmarks.harness.messages import Address, Ask, Job
from benchmarks.harness.records import Record
from benchmarks.harness.result import replace_file
from benchmarks.harness.schedule import Load
from benchmarks.harness.workloads import CHAT
from chutes import config as settings
from chutes.cli import output
from chutes.exception import ChutesError, NotConfigured

STREAMS, CHUNKS = 64, 512
CONNECTIONS = 64
MOST_A_SECOND = 30_000
"""Requests that are made ready for each second and process: more than one was ever seen to send."""
HALF = 0.5
"""Of the ceiling: the load at which its lag is told. At the ceiling itself there is always lag."""
MODEL = "bench-model"


def add_options(parser: argparse.ArgumentParser) -> None:
    cores = os.cpu_count() or 1
    add = parser.add_argument
    add(
        "-p",
        "--processes",
        type=int,
        default=max(1, cores // 2),
        metavar="N",
        help="default here: %(default)s",
    )
    add("-d", "--duration", type=float, default=4.0, metavar="S", help="of each load (default: %(default)s)")
    add("-o", "--output", type=Path, metavar="FILE", help="write the figures as JSON")


def run(options: argparse.Namespace, command: str) -> int:
    begun = environment.before()
    with engine() as port:
        found = asyncio.run(measure(port, options.processes, options.duration))
    for line in lines(found):
        output.say(line)
    if options.output:
        place = msgspec.to_builtins(environment.after(begun))
        document = {"command": command, "processes": options.processes, "environment": place, **found}
        replace_file(options.output, json.dumps(document, indent=1).encode() + b"\n")
        output.note(f"written to {options.output}")
    return 0


@contextmanager
def engine() -> Iterator[int]:
    """The engine in C of the gateway's benchmark, on a port of its own.

    Raises:
        NotConfigured: there is no compiler for it.
    """
    try:
        program = programs.compiled("engine", settings.load().cache / "bench-gateway")
    except programs.Unavailable as error:
        raise NotConfigured(str(error)) from None
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


async def measure(port: int, processes: int, seconds: float) -> dict[str, Any]:
    """Whole answers and chunks a second, and how late the client is at half of both."""
    whole = await _drive(
        port, processes, Load(kind="closed", concurrency=CONNECTIONS * processes, seconds=seconds)
    )
    rate = len(whole.records) / _lasted(whole.records)
    calm = Load(kind="poisson", rate=rate * HALF, seconds=seconds)
    streams = Load(kind="closed", concurrency=STREAMS * processes, seconds=seconds)
    flood = await _drive(port, processes, streams, f" chunks={CHUNKS} tick=0")
    chunks = sum(1 + len(record.times) for record in flood.records if record.first is not None)
    per_second = chunks / _lasted(flood.records)
    # Each stream ticks a hundred times a second: so many of them are half of what it can take.
    paced = Load(kind="closed", concurrency=max(1, int(per_second * HALF / 100)), ramp=1.0, seconds=seconds)
    return {
        "requests_per_second": rate,
        "requests": _lags(await _drive(port, processes, calm), calm.rate),
        "chunks_per_second": per_second,
        "chunks": _lags(
            await _drive(port, processes, paced, f" chunks={int(100 * seconds)} tick=10000"),
            100 * paced.concurrency,
        ),
        "failed": sum(bool(record.error) for record in [*whole.records, *flood.records]),
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{'':22}{'ceiling':>12}{'at half of it':>16}{'lag p50':>10}{'lag p99':>10}{'core busy':>11}"
    for name, unit in (("requests", "requests/s"), ("chunks", "SSE chunks/s")):
        half = found[name]
        yield (
            f"{unit:22}{found[f'{name}_per_second']:>12,.0f}{half['per_second']:>14,.0f}/s"
            f"{half['lag_p50_ms']:>7.2f} ms{half['lag_p99_ms']:>7.2f} ms{half['busy']:>10.0%}"
        )
    if found["failed"]:
        yield f"{found['failed']} requests FAILED: these figures mean nothing"


def _lags(outcome: clients.Outcome, per_second: float) -> dict[str, float]:
    """Of the pulses, and of requests where they had a time to be sent at."""
    late = sorted(late for report in outcome.reports for late in report.late)
    late = late or [0.0]
    return {
        "per_second": per_second,
        "lag_p50_ms": late[len(late) // 2] * 1e3,
        "lag_p99_ms": late[int(len(late) * 0.99)] * 1e3,
        "request_lag_p99_ms": _p99([record.sent - record.scheduled for record in outcome.records]) * 1e3,
        "busy": max((report.busy for report in outcome.reports), default=0.0),
    }


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0


def _lasted(records: list[Record]) -> float:
    if not records:
        raise ChutesError("The client had no answer from its own engine.", "Is the machine overloaded?")
    return max(record.ended for record in records)


async def _drive(port: int, processes: int, load: Load, how: str = "") -> clients.Outcome:
    """`how`: what the engine is told, besides the number of the request; empty: a whole answer."""
    count = int(MOST_A_SECOND * load.seconds * processes) if not how else 0
    count = count or load.concurrency * max(4, int(load.seconds * 2000 / CHUNKS))
    times = schedule.arrivals(load, "ceiling") if load.open else [0.0] * count
    stream = {"stream": True, "stream_options": {"include_usage": True}} if how else {}

    def job(number: int, at: float) -> Job:
        said = f"[#{number:010d}{how}]"
        body = msgspec.json.encode({"messages": [{"role": "user", "content": said}], **stream})
        return Job([Ask(number, CHAT, body)], at=at)

    jobs = [job(number, at) for number, at in enumerate(times)]
    address = Address("engine", "127.0.0.1", port, False, True, "", "", MODEL)
    plans = clients.split(processes, load, jobs, [address], timeout=30.0, drain=10.0)
    began = time.monotonic()
    outcome = await clients.drive(plans, asyncio.Event())
    outcome.seconds = time.monotonic() - began
    return outcome
