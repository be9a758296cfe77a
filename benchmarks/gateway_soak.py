"""A steady load through the gateway while everything around it dies: is any answer wrong, does anything leak?

python -m benchmarks.gateway_soak [--minutes 30] [--workers 2] [--clients 24]

Workers are real processes on one port; this script plays control: it publishes tables, clears the rows of
workers that it kills and starts the next ones on the same sockets. Engines are synthetic. Every few seconds
one of them is killed, replaced in order, or a worker is killed, or tables are swapped in a hurry. Each answer
is checked against what its request asked for, to the byte; whatever else a client meets is counted by kind.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gateway_processes import Engine, Worker
from chutes import wire
from chutes.board import COLUMNS, INSTANCE_SLOTS, KEY_CELLS, KEY_IN_FLIGHT, KEYS_AT, Board
from chutes.control.workers import listen

RESULTS = Path(__file__).parent / "results" / "gateway-soak.json"
SECRET = "cpk_soak"
PATH = "/v1/completions"
CHUTES = ("org/A", "org/B")
CONCURRENCY = 8
CHAOS_SECONDS = 3.0
KEY_SLOT = 7


class Wrong(Exception):
    """An answer that is not what was asked for."""


class Soak:
    """The load, the chaos, and what came of both."""

    def __init__(self, workers: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.board = Board.create(rows=workers)
        listeners = listen("127.0.0.1", 0, workers)
        self.port = listeners[0].getsockname()[1]
        self.workers = [Worker(row, listener, self.board) for row, listener in enumerate(listeners)]
        self.engines: list[Engine] = []
        self.numbers = itertools.count(1)
        self.outcomes: Counter[str] = Counter()
        self.chaos_done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.over = False

    def table(self) -> wire.Table:
        paths = {PATH: PATH}
        routes = []
        for slot, name in enumerate(CHUTES):
            ups = [engine.upstream for engine in self.engines if engine.chute == name]
            phase = "ready" if ups else "loading"
            routes.append(
                wire.Route(
                    f"id-{name}",
                    name,
                    paths,
                    ups,
                    phase,
                    "",
                    1,
                    "vllm",
                    concurrency=CONCURRENCY,
                    slot=slot + 1,
                )
            )
        key = wire.Key("k", wire.key_digest(SECRET), concurrency=10_000, slot=KEY_SLOT)
        return wire.Table(routes, [key])

    def publish(self) -> None:
        for worker in self.workers:
            if worker.listening.is_set():
                worker.publish(self.table())

    # Load

    async def client(self) -> None:
        """One client after another, each with a few requests on a connection."""
        while not self.over:
            try:
                async with asyncio.timeout(60):
                    await self._connection()
            except Wrong as error:
                self.wrong.append(str(error))
            except TimeoutError:
                self.outcomes["no answer within 60 s"] += 1
            except (OSError, asyncio.IncompleteReadError):
                self.outcomes["connection broke"] += 1

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        try:
            for _ in range(self.chance.randint(1, 30)):
                if self.over:
                    return
                asked = [self._request() for _ in range(self.chance.choice((1, 1, 1, 1, 2)))]
                writer.write(b"".join(data for data, _ in asked))
                for _, expected in asked:
                    if expected.get("leaves"):
                        await reader.readexactly(20)
                        self.outcomes["left"] += 1
                        return
                    if not await self._answer(reader, expected):
                        return
        finally:
            writer.close()

    def _request(self) -> tuple[bytes, dict[str, Any]]:
        chance, number = self.chance, next(self.numbers)
        expected: dict[str, Any] = {"id": f"r{number}", "number": number}
        model = chance.choice((*CHUTES, ",".join(CHUTES), "nobody," + CHUTES[1]))
        body: dict[str, Any] = {"model": model, "prompt": f"prompt {chance.randrange(20)}", "n": number}
        kind = chance.choices(("echo", "whole", "stream", "unknown"), (4, 4, 8, 1))[0]
        if kind == "echo":
            body |= {"fake": {"do": "echo"}, "text": "é" * chance.choice((3, 3, 300, 30_000))}
        elif kind == "unknown":
            body["model"] = "nobody"
        else:
            size, chunks = chance.randint(8, 200), chance.randint(1, 12)
            fake = {"size": size, "chunks": chunks, "usage": [number, chunks, 0]}
            fake["gap"] = chance.choice((0, 0, 0.01)) if kind == "stream" else 0
            fake["first"] = chance.choice((0, 0, 0.05))
            body["fake"] = fake
            expected["text"] = "".join(f"{index} ".ljust(size, "x") for index in range(chunks))
        if kind == "stream":
            body["stream"] = True
            expected["shown"] = chance.random() < 0.5
            if expected["shown"]:
                body["stream_options"] = {"include_usage": True}
            expected["leaves"] = chance.random() < 0.05
        data = json.dumps(body).encode()
        expected |= {"kind": kind, "body": data}
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n"
        if chance.random() < 0.7:
            head += f"X-Request-Id: {expected['id']}\r\n"
        else:
            del expected["id"]
        if chance.random() < 0.2:
            cut = chance.randrange(1, len(data))
            parts = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (data[:cut], data[cut:]) if p)
            return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + parts + b"0\r\n\r\n", expected
        return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data, expected

    async def _answer(self, reader: asyncio.StreamReader, expected: dict[str, Any]) -> bool:
        """Read and judge one answer; whether the connection lives on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.rstrip().split("\r\n")
        status = int(lines[0].split()[1])
        fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        if "id" in expected and fields.get("x-request-id") != expected["id"]:
            raise Wrong(f"{expected['id']} got the answer to {fields.get('x-request-id')}")
        if "content-length" in fields:
            data = await reader.readexactly(int(fields["content-length"]))
        else:
            data = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                data += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        self._judge(status, data, expected)
        return fields.get("connection") != "close" and b'"error"' not in data[-300:]

    def _judge(self, status: int, data: bytes, expected: dict[str, Any]) -> None:
        kind = expected["kind"]
        if status != 200:
            code = json.loads(data)["error"]["code"]
            if (kind == "unknown") != (code == "model_not_found"):
                raise Wrong(f"{kind}: {status} {code}")
            self.outcomes["right" if kind == "unknown" else f"{status} {code}"] += 1
            return
        if kind == "echo":
            sent, got = json.loads(expected["body"]), json.loads(data)
            if sent | {"model": ""} != got | {"model": ""} or (
                "," not in sent["model"] and data != expected["body"]
            ):
                raise Wrong("an echo differs")
        elif kind == "whole":
            answer = json.loads(data)
            if (
                answer["choices"][0]["text"] != expected["text"]
                or answer["usage"]["prompt_tokens"] != expected["number"]
            ):
                raise Wrong("an answer in one piece differs")
        elif kind == "stream":
            self._judge_stream(data, expected)
            return
        else:
            raise Wrong("an unknown model answered")
        self.outcomes["right"] += 1

    def _judge_stream(self, data: bytes, expected: dict[str, Any]) -> None:
        *lines, end = data.split(b"\n\n")
        if end or not all(line.startswith(b"data: ") for line in lines):
            raise Wrong("a stream is not made of events")
        done = lines[-1] == b"data: [DONE]"
        events = [json.loads(line[6:]) for line in (lines[:-1] if done else lines)]
        error = None if done else events.pop()["error"]["code"]
        usage = [event for event in events if not event["choices"]]
        text = "".join(event["choices"][0]["delta"]["content"] for event in events if event["choices"])
        if not expected["text"].startswith(text) or (done and text != expected["text"]):
            raise Wrong("the text of a stream differs")
        if len(usage) > 1 or any(event["usage"]["prompt_tokens"] != expected["number"] for event in usage):
            raise Wrong("the usage of a stream differs")
        if (usage and not expected["shown"]) or (done and expected["shown"] and not usage):
            raise Wrong("usage shown unasked, or not shown")
        self.outcomes["right" if done else f"stream ended with {error}"] += 1

    # Chaos

    async def deploy(self, chute: str) -> None:
        self.engines.append(await asyncio.to_thread(Engine, chute))
        self.publish()

    async def chaos(self) -> None:
        kinds = (self._kill_engine, self._kill_engine, self._replace_engine, self._hurry, self._kill_worker)
        while not self.over:
            await asyncio.sleep(CHAOS_SECONDS)
            what = self.chance.choice(kinds)
            self.chaos_done[what.__name__.strip("_").replace("_", " ")] += 1
            await what()

    async def _kill_engine(self) -> None:
        """And let control notice a little later."""
        victim = self.chance.choice(self.engines)
        await asyncio.to_thread(victim.end, signal.SIGKILL)
        await asyncio.sleep(self.chance.choice((0.02, 0.3)))
        self.engines.remove(victim)
        self.publish()
        await self.deploy(victim.chute)

    async def _replace_engine(self) -> None:
        """In order: out of the table, and ended once it has finished."""
        victim = self.chance.choice(self.engines)
        await self.deploy(victim.chute)
        self.engines.remove(victim)
        self.publish()
        await asyncio.sleep(2)
        await asyncio.to_thread(victim.end, signal.SIGTERM)

    async def _hurry(self) -> None:
        everybody = self.engines
        for _ in range(20):
            self.engines = [engine for engine in everybody if self.chance.random() < 0.8]
            self.publish()
            await asyncio.sleep(0.02)
        self.engines = everybody
        self.publish()

    async def _kill_worker(self) -> None:
        worker = self.chance.choice(self.workers)
        worker.listening.clear()
        await worker.kill()
        await worker.start(self.table())

    async def watch(self) -> None:
        while not self.over:
            await asyncio.sleep(1)
            for worker in self.workers:
                if worker.listening.is_set():
                    worker.memory.append(psutil.Process(worker.process.pid).memory_info().rss)

    async def run(self, seconds: float, clients: int) -> dict[str, Any]:
        began = time.monotonic()
        await asyncio.gather(*(worker.start(self.table()) for worker in self.workers))
        await asyncio.gather(*(self.deploy(chute) for chute in CHUTES * 2))
        load = [asyncio.create_task(self.client()) for _ in range(clients)]
        others = [asyncio.create_task(task()) for task in (self.chaos, self.watch)]
        await asyncio.sleep(seconds)
        self.over = True
        await asyncio.gather(*others, *load)
        loaded = [worker.sockets() for worker in self.workers]
        await asyncio.sleep(6)  # pooled connections to engines end after 4
        found = self._result(time.monotonic() - began, clients, loaded)
        for worker in self.workers:
            await worker.kill()
        for engine in self.engines:
            engine.end(signal.SIGKILL)
        found["complaints"] = [w.complaints[-2000:] for w in self.workers if w.complaints.strip()]
        return found

    def _result(self, seconds: float, clients: int, loaded: list[int]) -> dict[str, Any]:
        total = self.outcomes.total()
        cells = [sum(map(abs, row[: 2 * INSTANCE_SLOTS])) for row in self.board.cells(0, COLUMNS)]
        key = [row[KEY_IN_FLIGHT] for row in self.board.cells(KEYS_AT + KEY_SLOT * KEY_CELLS, KEY_CELLS)]
        records: Counter[str] = Counter()
        for worker in self.workers:
            records += worker.records
        return {
            "seconds": round(seconds),
            "workers": len(self.workers),
            "clients": clients,
            "requests": total,
            "wrong answers": self.wrong,
            "outcomes": dict(self.outcomes.most_common()),
            "not right, of all": round(
                1 - (self.outcomes["right"] + self.outcomes["left"]) / max(1, total), 6
            ),
            "recorded": dict(records.most_common()),
            "chaos": dict(self.chaos_done),
            "board cells in flight or waiting at the end": sum(cells),
            "requests of the key in flight at the end": sum(map(abs, key)),
            "descriptors of each worker, after load and idle": [
                [before, worker.sockets()] for before, worker in zip(loaded, self.workers, strict=True)
            ],
            "resident MiB of each worker since its start: seconds, at 10 s, at the end, most": [
                [len(m), *(round(v / 2**20, 1) for v in (m[min(10, len(m) - 1)], m[-1], max(m)))]
                for m in (worker.memory for worker in self.workers)
                if m
            ],
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    async def soak() -> dict[str, Any]:
        return await Soak(options.workers, options.seed).run(options.minutes * 60, options.clients)

    found = asyncio.run(soak())
    text = json.dumps(found, indent=2)
    print(text)
    RESULTS.write_text(text + "\n")
    if found["wrong answers"] or found["board cells in flight or waiting at the end"] or found["complaints"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
