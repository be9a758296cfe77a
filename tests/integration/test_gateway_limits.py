"""Limits of chutes and keys, queues, wakes and revocation, with one worker and with two."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from chutes import wire
from chutes.board import COLUMNS, INSTANCE_SLOTS, QUEUED_AT, Board
from chutes.gateway import limits
from tests.integration.conftest import KEYS, MODEL, USER, GatewayWorker, SyntheticEngine, eventually, route

Answers = list[tuple[int, dict[str, str], bytes]]


class Bench:
    """Two engines and workers that share a board."""

    def __init__(self, workers: int) -> None:
        self.engines = [SyntheticEngine() for _ in range(2)]
        self.board = Board.create(rows=workers)
        self.workers = [GatewayWorker(board=self.board, row=row) for row in range(workers)]
        self.slot = 0
        for worker in self.workers:
            worker.publish(wire.Table([], KEYS))
            worker.listening()

    def route(self, engines: int = 1, **more: Any) -> wire.Route:
        for engine in self.engines:
            engine.reset(do="answer")
        self.slot += 1
        upstreams = [engine.upstream() for engine in self.engines[:engines]]
        return route(*upstreams, chute_id=f"chute-{self.slot}", slot=self.slot, **more)

    def key(self, **bounds: Any) -> tuple[str, wire.Key]:
        self.slot += 1
        secret = f"cpk_{self.slot}"
        return secret, wire.Key(secret, wire.key_digest(secret), slot=self.slot, **bounds)

    async def publish(self, *routes: wire.Route, keys: list[wire.Key] | None = None) -> None:
        """To all workers, and until it is in place."""
        mark = f"mark-{time.monotonic()}"
        table = wire.Table(
            [*routes, route(name="mark", chute_id=mark)], KEYS if keys is None else keys + KEYS
        )
        for number, worker in enumerate(self.workers):
            worker.publish(table)
            while (await self.ask(number, path=f"/v1/models/{mark}"))[0] != 200:
                await asyncio.sleep(0.01)

    async def ask(
        self, worker: int = 0, key: str = USER, path: str = "", **fields: Any
    ) -> tuple[int, dict[str, str], bytes]:
        async with self.connected(worker) as (reader, writer):
            return await talk(reader, writer, key, path, **fields)

    @contextlib.asynccontextmanager
    async def connected(
        self, worker: int = 0
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.workers[worker].port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def ask_many(self, count: int, **fields: Any) -> Answers:
        """As many at once, over all workers in turn."""
        asks = [self.ask(number % len(self.workers), **fields) for number in range(count)]
        return await asyncio.gather(*asks)

    def records(self) -> list[wire.Record]:
        """Of requests that have ended since."""
        found = []
        for worker in self.workers:
            with contextlib.suppress(TimeoutError):
                while True:
                    worker.event(2 * limits.FLUSH_SECONDS)
            found += worker.records
            worker.records = []
        return found

    def left(self) -> int:
        """What is still counted as waiting or in flight, of any chute."""
        return sum(abs(cell) for row in self.board.cells(0, COLUMNS) for cell in row[: 2 * INSTANCE_SLOTS])

    def waiting(self, slot: int) -> int:
        return self.board.total(QUEUED_AT + slot)

    def close(self) -> None:
        complaints = [worker.stop() for worker in self.workers]
        for engine in self.engines:
            engine.stop()
        assert not any("Traceback" in text for text in complaints), complaints


async def talk(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str = USER, path: str = "", **fields: Any
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection that may stay open."""
    body = b"" if path else json.dumps({"model": MODEL, **fields}).encode()
    first = f"GET {path}" if path else "POST /v1/completions"
    head = f"{first} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return await answer_of(reader)


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """The next answer, which has a Content-Length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    answer = await reader.readexactly(int(headers["content-length"]))
    return int(status.split()[1]), headers, answer


def code(answer: bytes) -> str:
    return json.loads(answer)["error"]["code"]


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_is_left(bench: Bench) -> Iterator[None]:
    yield
    assert eventually(lambda: bench.left() == 0), "places that nobody has are still counted"


async def test_an_instance_never_gets_more_than_its_concurrency(bench: Bench) -> None:
    """Workers do not lock: with two of them one more may slip in, never a second."""
    await bench.publish(bench.route(2, concurrency=4))
    answers = await bench.ask_many(80, fake={"first": 0.03})
    assert [status for status, _, _ in answers] == [200] * 80
    seen = [engine.seen() for engine in bench.engines]
    assert sum(each["requests"] for each in seen) == 80
    assert max(each["most"] for each in seen) <= 4 + (len(bench.workers) - 1)
    assert min(each["most"] for each in seen) >= 3, "nor less"


async def test_who_leaves_the_line_leaves_nothing(bench: Bench) -> None:
    await bench.publish(bench.route(concurrency=1))
    slot = bench.slot
    bench.records()
    holding = asyncio.create_task(bench.ask(fake={"first": 0.8}))
    while bench.engines[0].seen()["in_flight"] != 1:
        await asyncio.sleep(0.01)
    leaving = [asyncio.create_task(bench.ask(n % len(bench.workers), fake={"do": "hang"})) for n in range(10)]
    while bench.waiting(slot) != 10:
        await asyncio.sleep(0.01)
    for task in leaving:
        task.cancel()
    while bench.waiting(slot) != 0:
        await asyncio.sleep(0.01)
    assert (await holding)[0] == 200
    assert (await bench.ask())[0] == 200, "the place is free"
    assert bench.engines[0].seen()["requests"] == 2, "nobody's work was done"
    left = [record for record in bench.records() if record.error]
    assert [(record.status, record.error) for record in left] == [(499, "client_gone")] * 10
    assert all(record.queued > 0 for record in left)


async def test_a_full_line(bench: Bench) -> None:
    await bench.publish(bench.route(concurrency=1))
    slot = bench.slot
    holding = asyncio.create_task(bench.ask(fake={"do": "hang"}))
    while bench.engines[0].seen()["in_flight"] != 1:
        await asyncio.sleep(0.01)
    most = limits.QUEUE_LENGTH * (1 - limits.QUEUE_OTHERS_SHARE)  # of one key
    waiting = []
    while bench.waiting(slot) < most:
        count = int(most) - bench.waiting(slot)
        waiting += [asyncio.create_task(bench.ask(n % len(bench.workers))) for n in range(min(count, 150))]
        until = time.monotonic() + 0.3
        while bench.waiting(slot) < min(most, len(waiting)) and time.monotonic() < until:
            await asyncio.sleep(0.01)
    status, headers, answer = await bench.ask()
    assert (status, code(answer)) == (429, "queue_full")
    assert int(headers["retry-after"]) > 0
    other, key = bench.key()
    for task in [*waiting, holding]:
        task.cancel()
    assert (other, key.slot) == (key.key_id, bench.slot)
    while bench.waiting(slot):
        await asyncio.sleep(0.01)


async def test_a_chute_that_becomes_ready_or_fails_meanwhile(bench: Bench) -> None:
    for phase, expected in (("ready", 200), ("failed", 503), ("gone", 404)):
        there = bench.route(concurrency=8)
        slot = bench.slot
        starting = wire.Route(**{**_fields(there), "upstreams": [], "phase": "loading"})
        await bench.publish(starting)
        waiting = asyncio.create_task(bench.ask_many(20))
        while bench.waiting(slot) != 20:
            await asyncio.sleep(0.01)
        failed = wire.Route(**{**_fields(starting), "phase": "failed", "detail": "Out of memory."})
        await bench.publish(*({"ready": [there], "failed": [failed], "gone": []}[phase]))
        answers = await waiting
        assert {status for status, _, _ in answers} == {expected}
        if phase == "failed":
            assert code(answers[0][2]) == "chute_not_ready"
            assert answers[0][1]["x-should-retry"] == "false"


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


async def test_one_wake_a_second_and_chute(bench: Bench) -> None:
    there = bench.route()
    slot = bench.slot
    asleep = wire.Route(**{**_fields(there), "upstreams": [], "phase": "stopped", "asleep": True})
    await bench.publish(asleep)
    waiting: list[asyncio.Task[Any]] = []
    began = time.monotonic()
    while time.monotonic() - began < 2.2:
        waiting.append(asyncio.create_task(bench.ask(0)))
        await asyncio.sleep(0.02)
    assert bench.waiting(slot) == len(waiting)
    wakes = 0
    with contextlib.suppress(TimeoutError):
        while bench.workers[0].event(0.3) == wire.Wake(there.chute_id):
            wakes += 1
    assert 2 <= wakes <= 4
    await bench.publish(there)
    assert {status for status, _, _ in await asyncio.gather(*waiting)} == {200}


async def test_requests_per_minute(bench: Bench) -> None:
    secret, key = bench.key(requests_per_minute=20)
    await bench.publish(bench.route(), keys=[key])
    answers = [await bench.ask(n % len(bench.workers), secret) for n in range(24)]
    good = [headers for status, headers, _ in answers if status == 200]
    assert 20 <= len(good) <= 21, "21 if the minute turned"
    assert [int(headers["x-ratelimit-remaining-requests"]) for headers in good][:19] == list(range(19, 0, -1))
    status, headers, answer = answers[-1]
    assert (status, code(answer)) == (429, "rate_limit_exceeded")
    assert 1 <= int(headers["retry-after"]) <= 120
    assert headers["x-ratelimit-limit-requests"] == "20"
    assert headers["x-ratelimit-remaining-requests"] == "0"


async def test_tokens_per_minute(bench: Bench) -> None:
    secret, key = bench.key(tokens_per_minute=100)
    await bench.publish(bench.route(), keys=[key])
    used = {"usage": [40, 20, 0]}
    answers = [await bench.ask(n % len(bench.workers), secret, fake=used) for n in range(4)]
    assert [status for status, _, _ in answers] == [200, 200, 429, 429], "60 are below, 120 are not"
    _, headers, answer = answers[-1]
    assert headers["x-ratelimit-limit-tokens"] == "100"
    assert code(answer) == "rate_limit_exceeded"


async def test_requests_of_a_key_at_once(bench: Bench) -> None:
    secret, key = bench.key(concurrency=3)
    await bench.publish(bench.route(2), keys=[key])
    for _ in range(2):
        holding = [
            asyncio.create_task(bench.ask(n % len(bench.workers), secret, fake={"first": 0.5}))
            for n in range(3)
        ]
        while sum(engine.seen()["in_flight"] for engine in bench.engines) < 3:
            await asyncio.sleep(0.01)
        refused = [await bench.ask(worker, secret) for worker in range(len(bench.workers))]
        assert {status for status, _, _ in refused} == {429}
        assert refused[0][1]["retry-after"] == "1"
        assert {status for status, _, _ in await asyncio.gather(*holding)} == {200}
    leaving = asyncio.create_task(bench.ask(0, secret, fake={"do": "hang"}))
    await asyncio.sleep(0.1)
    leaving.cancel()
    await asyncio.sleep(0.1)
    answers = await asyncio.gather(*(bench.ask(0, secret, fake={"first": 0.1}) for _ in range(3)))
    assert {status for status, _, _ in answers} == {200}, "who left has freed its place"


async def test_a_revoked_key_is_refused_on_connections_that_it_opened(bench: Bench) -> None:
    secret, key = bench.key()
    there = bench.route()
    await bench.publish(there, keys=[key])
    for number in range(len(bench.workers)):
        async with bench.connected(number) as (reader, writer):
            assert [(await talk(reader, writer, secret))[0] for _ in range(3)] == [200] * 3
            await bench.publish(there)
            status, _, answer = await talk(reader, writer, secret)
            assert (status, code(answer)) == (401, "invalid_api_key")
            await bench.publish(there, keys=[key])
            assert (await talk(reader, writer, secret))[0] == 200


async def test_a_key_expires_on_a_connection_that_it_opened(bench: Bench) -> None:
    secret, key = bench.key(expires=time.time() + 1.5)
    await bench.publish(bench.route(), keys=[key])
    async with bench.connected() as (reader, writer):
        assert (await talk(reader, writer, secret))[0] == 200
        await asyncio.sleep(1.6)
        status, _, answer = await talk(reader, writer, secret)
        assert (status, code(answer)) == (401, "expired_api_key")


async def test_an_instance_that_is_not_there_costs_nothing(bench: Bench) -> None:
    """It has room, the other one is full: who was sent to it waits for a place on the other."""
    there = bench.route(concurrency=2)
    await bench.publish(there)
    holding = [asyncio.create_task(bench.ask(fake={"first": 0.6})) for _ in range(2)]
    while bench.engines[0].seen()["in_flight"] != 2:
        await asyncio.sleep(0.01)
    nobody = wire.Upstream("nobody", "127.0.0.1", 1, "k", 1)
    await bench.publish(wire.Route(**{**_fields(there), "upstreams": [*there.upstreams, nobody]}))
    answers = await bench.ask_many(4)
    assert [status for status, _, _ in answers] == [200] * 4
    assert {status for status, _, _ in await asyncio.gather(*holding)} == {200}


async def test_a_swap_is_whole_before_anybody_hears_of_it(bench: Bench) -> None:
    """Who is refused by a new table has its next request judged by that table too, not by half of it."""
    secret, key = bench.key()
    starting = route(name="org/A", chute_id="a", phase="loading", slot=bench.slot)
    last = route(name="org/Z", chute_id="z", phase="loading", slot=bench.slot + 1)
    bench.slot += 1
    await bench.publish(starting, last, keys=[key])
    async with bench.connected() as (reader, writer):
        for model in ("org/A", "org/Z"):
            body = json.dumps({"model": model})
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {secret}\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        while bench.waiting(starting.slot) != 1:
            await asyncio.sleep(0.01)
        await bench.publish(wire.Route(**{**_fields(starting), "phase": "failed"}), last)
        for status, wanted in ((503, "chute_not_ready"), (401, "invalid_api_key")):
            got = await answer_of(reader)
            assert (got[0], code(got[2])) == (status, wanted)


async def test_who_waits_too_long_is_told(start_worker: Callable[..., GatewayWorker], bench: Bench) -> None:
    there = bench.route(concurrency=1)
    starting = route(name="org/Starting", chute_id="s", phase="loading", slot=999)
    worker = start_worker(wire.Table([there, starting], KEYS), QUEUE_SECONDS=1, WAKE_SECONDS=2)
    bench.workers.append(worker)
    try:
        holding = asyncio.create_task(bench.ask(-1, fake={"do": "hang"}))
        while bench.engines[0].seen()["in_flight"] != 1:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        busy, starts = await asyncio.gather(bench.ask(-1), bench.ask(-1, model="org/Starting"))
        assert (busy[0], code(busy[2])) == (429, "queue_timeout")
        assert (starts[0], code(starts[2])) == (503, "queue_timeout")
        assert min(int(answer[1]["retry-after"]) for answer in (busy, starts)) > 0
        assert 2 <= time.monotonic() - began < 20
        holding.cancel()
        while bench.engines[0].seen()["in_flight"] != 0:
            await asyncio.sleep(0.01)
        assert (await bench.ask(-1))[0] == 200
    finally:
        bench.workers.remove(worker)
