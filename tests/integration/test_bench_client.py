"""The load client against engines whose answers are known to the millisecond."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psutil
import pytest

from benchmarks.harness import ceiling, clients, schedule
from benchmarks.harness.measures import measure
from benchmarks.harness.messages import Address, Ask, Job
from benchmarks.harness.records import Record
from benchmarks.harness.schedule import Load
from benchmarks.harness.workloads import CHAT
from tests.integration.conftest import SyntheticEngine

FIRST, GAP, TOKENS = 0.05, 0.01, 32
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc"))), reason="needs a C compiler for the precise engine"
)


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The engine in C: its port. It ends with the test."""
    monkeypatch.setenv("CHUTES_CACHE", str(tmp_path_factory.getbasetemp() / "programs"))
    with ceiling.engine() as port:
        yield port


def address(port: int, name: str = "engine", key: str = "") -> Address:
    return Address(name, "127.0.0.1", port, False, True, "", key, ceiling.MODEL)


def ask(number: int, said: str = "hi", **more: Any) -> Ask:
    fields = {"messages": [{"role": "user", "content": said}], "stream": True}
    return Ask(
        number, CHAT, msgspec.json.encode({**fields, "stream_options": {"include_usage": True}, **more})
    )


def timed(count: int) -> list[Job]:
    how = f"chunks={TOKENS + 1} tick=0 first={FIRST * 1e6:.0f} gap={GAP * 1e6:.0f}"
    return [Job([ask(number, f"[#{number:010d} {how}]")]) for number in range(count)]


def drive(
    load: Load,
    jobs: list[Job],
    addresses: list[Address],
    processes: int = 1,
    timeout: float = 30.0,
    during: Callable[[], None] = lambda: None,
    drain: float = 30.0,
    think: float = 0.0,
) -> clients.Outcome:
    if load.open:
        jobs = [Job(j.asks, j.target, at) for j, at in zip(jobs, schedule.arrivals(load, "s"), strict=False)]

    async def run() -> clients.Outcome:
        plans = clients.split(processes, load, jobs, addresses, timeout=timeout, drain=drain, think=think)
        begun = lambda _: threading.Thread(target=during, daemon=True).start()  # noqa: E731
        return await clients.drive(plans, asyncio.Event(), started=begun)

    return asyncio.run(run())


@needs_compiler
def test_known_times_are_measured(precise: int) -> None:
    """Machines are noisy, so what noise cannot touch is held closely: the gap between tokens, whose errors do
    not add up, and the quickest fifth of first tokens."""
    outcome = drive(Load(kind="constant", rate=20, requests=80), timed(80), [address(precise)])
    found = measure(outcome.records, exact=True, resamples=10)
    assert (found.completed, found.failed, found.checks) == (80, 0, {})
    assert all(record.output_tokens == TOKENS == 1 + len(record.times) for record in outcome.records)
    tpots = [
        (record.last - record.first) / (TOKENS - 1)
        for record in outcome.records
        if record.last and record.first
    ]
    assert statistics.median(tpots) == pytest.approx(GAP, rel=0.02)
    firsts = sorted(record.first - record.sent for record in outcome.records if record.first)
    assert firsts[0] >= FIRST - 1e-4, "nothing is measured before it happened"
    assert firsts[len(firsts) // 5] == pytest.approx(FIRST, abs=1e-3)


@needs_compiler
def test_a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one(precise: int) -> None:
    """An engine that is stopped for a second delays a quarter of the requests of four seconds. Users who wait
    for it do not send them: that is coordinated omission, and why an open loop is asked first."""
    (process,) = engines_below()

    def stall() -> None:
        time.sleep(1.5)
        os.kill(process, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(process, signal.SIGCONT)

    jobs = [Job([ask(number, f"[#{number:010d} chunks=3 tick=0]")]) for number in range(400)]
    outcome = drive(Load(kind="constant", rate=100, requests=400), jobs, [address(precise)], during=stall)
    found = measure(outcome.records, resamples=10).latencies["ttft"]
    assert found.count == 400
    assert found.percentiles[99].value > 0.9
    late = sum((r.first or 0.0) - r.scheduled > 0.1 for r in outcome.records)
    assert late >= 80, "every request that was due in the stall waited for it"

    jobs = [
        Job([ask(number, f"[#{number:010d} chunks=3 tick=0 first=5000 gap=5000]")]) for number in range(400)
    ]
    closed = Load(concurrency=1, requests=400, seconds=4.0)
    slow = [
        r for r in drive(closed, jobs, [address(precise)], during=stall).records if r.ended - r.sent > 0.9
    ]
    assert len(slow) == 1


@needs_compiler
def test_several_processes_ask_everything_once(precise: int) -> None:
    jobs = [Job([ask(number, f"[#{number:010d} chunks=3 tick=0]")]) for number in range(300)]
    for load in (Load(concurrency=8, requests=300), Load(kind="poisson", rate=600, requests=300)):
        outcome = drive(load, jobs, [address(precise)], processes=3)
        assert sorted(record.number for record in outcome.records) == list(range(300))
        assert {record.client for record in outcome.records} == {0, 1, 2}
        assert not any(record.error for record in outcome.records)
        assert [report.jobs_left for report in outcome.reports] == [0, 0, 0]
        assert all(report.late for report in outcome.reports), "each tells how late it was"


@needs_compiler
def test_a_closed_loop_keeps_its_users_busy_and_no_more(precise: int) -> None:
    load = Load(concurrency=5, ramp=0.4, requests=40)
    outcome = drive(load, timed(40), [address(precise)])
    assert measure(outcome.records, resamples=10).peak_in_flight == 5
    begun = sorted(record.scheduled for record in outcome.records)[:5]
    assert begun == pytest.approx([0, 0.08, 0.16, 0.24, 0.32], abs=1e-6)


def test_every_failure_has_its_kind(start_engine: Callable[..., SyntheticEngine]) -> None:
    engine = start_engine("--served-model-name", ceiling.MODEL)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as unused:
        nobody = unused.getsockname()[1]
    fakes: dict[str, dict[str, Any]] = {
        "": {"finish": "stop"},
        "truncated": {},
        "broken": {"do": "die_mid_stream"},
        "http_429": {"do": "status", "status": 429},
        "protocol": {"do": "garbage"},
        "timeout": {"do": "hang"},
    }
    jobs = [Job([ask(number, fake=fake)]) for number, fake in enumerate(fakes.values())]
    jobs.append(Job([ask(len(jobs))], target=1))
    addresses = [address(engine.port, key=engine.api_key), address(nobody, "nobody")]
    records = by_number(drive(Load(concurrency=7, requests=7), jobs, addresses, timeout=3.0).records)
    assert [records[number].error for number in range(7)] == [*fakes, "refused"]
    assert records[3].message == "as you wished"
    assert records[3].status == 429
    assert records[2].first is not None, "what came before it broke is kept"


def test_a_connection_that_was_closed_while_idle_is_no_failure(
    start_engine: Callable[..., SyntheticEngine],
) -> None:
    """The engine answers and then hangs up without having said so; whoever asks next must not pay for it."""
    engine = start_engine("--served-model-name", ceiling.MODEL)
    good = b'{"choices":[{"text":"a","finish_reason":"stop"}]}'
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(good)}\r\n\r\n"
    fake = {"do": "raw", "parts": [head + good.decode()]}
    jobs = [Job([ask(number, fake=fake, stream=False)]) for number in range(10)]
    records = drive(
        Load(concurrency=1, requests=10), jobs, [address(engine.port, key=engine.api_key)]
    ).records
    assert [record.error for record in records] == [""] * 10


def test_a_conversation_carries_what_was_answered(start_engine: Callable[..., SyntheticEngine]) -> None:
    engine = start_engine("--served-model-name", ceiling.MODEL)
    asks = [ask(turn, f"turn {turn}", fake={"finish": "stop", "chunks": 2, "size": 3}) for turn in range(3)]
    talk = [msgspec.structs.replace(one, conversation=0, turn=turn) for turn, one in enumerate(asks)]
    records = drive(
        Load(concurrency=1, requests=1), [Job(talk)], [address(engine.port, key=engine.api_key)]
    ).records
    assert [(record.conversation, record.turn, record.error) for record in records] == [
        (0, 0, ""), (0, 1, ""), (0, 2, ""),
    ]  # fmt: skip
    said = msgspec.json.decode(engine.seen()["body"])["messages"]
    answer = {"role": "assistant", "content": "0 x1 x"}
    assert said == [
        {"role": "user", "content": "turn 0"}, answer,
        {"role": "user", "content": "turn 1"}, answer,
        {"role": "user", "content": "turn 2"},
    ]  # fmt: skip


def test_the_end_does_not_wait_for_who_thinks_or_has_not_come(
    start_engine: Callable[..., SyntheticEngine],
) -> None:
    engine = start_engine("--served-model-name", ceiling.MODEL)
    there = [address(engine.port, key=engine.api_key)]
    asks = [ask(turn, fake={"finish": "stop"}) for turn in range(2)]
    talk = [msgspec.structs.replace(one, conversation=0, turn=turn) for turn, one in enumerate(asks)]
    began = time.monotonic()
    thinking = drive(Load(concurrency=1, requests=1, seconds=0.3), [Job(talk)], there, drain=0.5, think=60.0)
    assert [(record.turn, record.error) for record in thinking.records] == [(0, "")]
    jobs = [Job([ask(number, fake={"finish": "stop"})]) for number in range(4)]
    coming = drive(Load(concurrency=2, ramp=120.0, seconds=0.3), jobs, there, drain=0.5)
    assert {record.error for record in coming.records} == {""}
    assert time.monotonic() - began < 30


def by_number(records: list[Record]) -> dict[int, Record]:
    return {record.number: record for record in records}


def engines_below() -> list[int]:
    """Precise engines that this process has started."""
    children = psutil.Process().children()
    return [child.pid for child in children if child.name().startswith("engine-")]
