"""The client processes of one phase: started, given their parts of the load, listened to, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks.harness import messages, schedule
from benchmarks.harness.messages import Address, Answered, Go, Job, Plan, Ready, Report
from benchmarks.harness.records import Record
from benchmarks.harness.schedule import Load
from chutes.exception import ChutesError

ROOT = Path(__file__).parents[2]
HEAD_START = 0.1
"""Seconds from the word to start to the start: enough for it to reach every client on a busy machine."""
PREPARE_SECONDS = 120.0
"""A client that has not read its plan by then has died or hangs."""
END_SECONDS = 20.0
"""For clients to hand over what they have when they are told to stop."""
LEAVE_SECONDS = 5.0
"""For a client to end by itself."""


class Outcome(msgspec.Struct):
    """What a phase left."""

    records: list[Record] = []
    reports: list[Report] = []
    started_at: float = 0.0
    """Unix seconds at which the records' clock is 0."""
    start: float = 0.0
    """The same on CLOCK_MONOTONIC."""
    seconds: float = 0.0
    interrupted: bool = False


def split(
    count: int,
    load: Load,
    jobs: Sequence[Job],
    addresses: list[Address],
    *,
    timeout: float,
    drain: float,
    think: float = 0.0,
) -> list[Plan]:
    """The load in as many parts as there are clients: jobs in turn, users in turn. Pure."""
    users = [] if load.open else schedule.users(load)
    count = max(1, min(count, len(jobs), len(users) or len(jobs)))
    # A connection for each user. Of an open loop nobody knows; what it needs at once it opens in time.
    ready = len(users) if users else min(64, len(jobs))
    return [
        Plan(
            client=number,
            addresses=addresses,
            jobs=list(jobs[number::count]),
            load=load,
            users=users[number::count],
            timeout=timeout,
            drain=drain,
            think=think,
            connections=min(256, -(-ready // count)),
        )
        for number in range(count)
    ]


async def drive(
    plans: list[Plan],
    stop: asyncio.Event,
    tell: Callable[[int], None] = lambda _: None,
    started: Callable[[float], None] = lambda _: None,
) -> Outcome:
    """Carry the plans out at the same time, each in a process of its own.

    Args:
        stop: when set, nothing more is begun and what was measured is returned.
        tell: called with the number of answers so far, now and then.
        started: called once with the CLOCK_MONOTONIC at which the records' clock is 0.

    Raises:
        ChutesError: a client died.
    """
    outcome = Outcome()
    processes = [await _start() for _ in plans]
    frames: list[bytes] = []
    try:
        await asyncio.gather(
            *(_prepare(process, plan) for process, plan in zip(processes, plans, strict=True))
        )
        outcome.start = time.monotonic() + HEAD_START
        outcome.started_at = time.time() + HEAD_START
        started(outcome.start)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(messages.framed(Go(outcome.start)))
        listening = asyncio.gather(*(_listen(process, frames, tell) for process in processes))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([listening, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        outcome.interrupted = stop.is_set()
        if not listening.done():
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
        async with asyncio.timeout(END_SECONDS if outcome.interrupted else None):
            await listening
        outcome.seconds = time.monotonic() - outcome.start
    except TimeoutError:
        raise ChutesError(
            "A client of the benchmark does not answer.", "Is the machine overloaded?"
        ) from None
    finally:
        await asyncio.gather(*map(_end, processes))
    for frame in frames:
        message = messages.from_client.decode(frame)
        if isinstance(message, Answered):
            outcome.records.append(message.record)
        elif isinstance(message, Report):
            outcome.reports.append(message)
    outcome.records.sort(key=lambda record: (record.scheduled, record.number))
    return outcome


async def _start() -> asyncio.subprocess.Process:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.harness.client",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # a Ctrl-C is for us; we tell the clients to stop
    )


async def _prepare(process: asyncio.subprocess.Process, plan: Plan) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(PREPARE_SECONDS):
        try:
            process.stdin.write(messages.framed(plan))
            await process.stdin.drain()
            message = messages.from_client.decode(await _frame(process.stdout))
        except (ConnectionError, asyncio.IncompleteReadError):
            raise _died(process) from None
    assert isinstance(message, Ready)


async def _listen(
    process: asyncio.subprocess.Process, frames: list[bytes], tell: Callable[[int], None]
) -> None:
    """Keep what a client says, undecoded, until it has made its report."""
    assert process.stdout is not None
    buffer, last = bytearray(), b""
    while data := await process.stdout.read(1 << 20):
        buffer += data
        for last in messages.frames(buffer):
            frames.append(last)
        tell(len(frames))
    if not last or not isinstance(messages.from_client.decode(last), Report):
        raise _died(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """See it out: the end of its input is its word to go; most have gone already."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(LEAVE_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(messages.FRAME_HEAD)
    return await reader.readexactly(messages.length_of(head))


def _died(process: asyncio.subprocess.Process) -> ChutesError:
    return ChutesError(
        f"A client of the benchmark (pid {process.pid}) died.", "What it said stands above this line."
    )
