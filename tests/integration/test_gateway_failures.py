"""Every way in which an engine fails, met with one instance and with two: the client's exact bytes, how often
each instance was asked, what was recorded, and what control was told."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest.mock import ANY

import pytest

from chutes import wire
from chutes.gateway import balance
from tests.integration.conftest import (
    CONFINED,
    KEYS,
    MODEL,
    USER,
    GatewayWorker,
    SyntheticEngine,
    eventually,
    exchange,
    route,
)
from tests.integration.platform_kit import port_for_test

HTTP = "HTTP/1.1 200 OK\r\n"
JSON = HTTP + "Content-Type: application/json\r\n"
SSE = HTTP + "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TEXT = '{"choices":[{"text":"x"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
END = "X-Request-Id: t-1\r\nConnection: close\r\n\r\n"
BROKE = "An instance of org/Model-X broke off before its answer was whole."


def chunk(text: str) -> str:
    return f"{len(text):x}\r\n{text}\r\n"


def sized(body: str, length: int | None = None) -> str:
    return f"{JSON}Content-Length: {len(body) if length is None else length}\r\n\r\n{body}"


EVENT = chunk('data: {"choices":[{"text":"x"}]}\n\n')
USAGE = chunk('data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n')
DONE = chunk("data: [DONE]\n\n") + "0\r\n\r\n"


def shown(head_and_body: str, status: str = "200 OK") -> str:
    """An answer of an engine as the client gets it."""
    head, _, body = head_and_body.partition("\r\n\r\n")
    lines = [line for line in head.split("\r\n") if not line.startswith(("Content-Length", "Transfer-"))]
    framing = [line for line in head.split("\r\n") if line.startswith(("Content-Length", "Transfer-"))]
    return "\r\n".join([*lines, *framing, END]) + body


def refusal(status: str, code: str, message: str, extra: str = "") -> str:
    kind = "service_unavailable" if status.startswith("503") else "server_error"
    error = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    body = json.dumps(error, separators=(",", ":"))
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{extra}{END}{body}"


def error_event() -> str:
    error = {"error": {"message": BROKE, "type": "server_error", "param": None, "code": "upstream_broke_off"}}
    return chunk(f"data: {json.dumps(error, separators=(',', ':'))}\n\n") + "0\r\n\r\n"


GOOD = {False: shown(sized(TEXT)), True: shown(SSE + EVENT + DONE)}
BROKEN = refusal("502 Bad Gateway", "upstream_broke_off", BROKE)
FIVE = "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n%s"


def raw(*parts: str, keep: bool = False) -> dict[str, Any]:
    return {"do": "raw", "parts": parts, "keep": keep}


def five(status: str, body: str = '{"no":"  "') -> str:
    return FIVE % (status, body)


@dataclass
class Case:
    """What happens with one instance; with two, another one answers if `retried`."""

    name: str
    fake: dict[str, Any]
    client: str
    status: int = 200
    error: str = ""
    tries: int = 1
    retried: bool = False
    lost: tuple[int, ...] = ()
    """With how many instances control is told of it."""
    stream: tuple[bool, ...] = (False, True)
    tokens: tuple[int, int] | None = None
    chunks: int | None = None


def fails(name: str, fake: dict[str, Any]) -> Case:
    """Nothing of an answer: tried twice, then somewhere else or never."""
    return Case(name, fake, BROKEN, 502, "upstream_broke_off", 2, True, (1, 2), tokens=(0, 0), chunks=0)


def breaks(name: str, fake: dict[str, Any], client: str) -> Case:
    """The client has got a part, so nobody else is asked."""
    return Case(name, fake, client, 200, "upstream_broke_off", lost=(1, 2))


def passes(name: str, fake: dict[str, Any], client: str, status: int = 200, **more: Any) -> Case:
    return Case(name, fake, client, status, **more)


TWO_LENGTHS = HTTP + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
CUT = JSON + "Transfer-Encoding: chunked\r\n\r\n5\r\nab"
CASES = [
    passes("good", raw(sized(TEXT), keep=True), GOOD[False], tokens=(3, 4), chunks=0, stream=(False,)),
    passes(
        "good stream",
        raw(SSE, EVENT, USAGE + DONE, keep=True),
        GOOD[True],
        tokens=(3, 4),
        stream=(True,),
        chunks=2,
    ),
    passes("slow", raw(sized(TEXT), keep=True) | {"first": 0.3}, GOOD[False], tokens=(3, 4)),
    passes(
        "in pieces",
        raw(HTTP[:9], HTTP[9:] + "Content-Le", "ngth: 2\r\n\r\n{", "}"),
        shown(HTTP + "Content-Length: 2\r\n\r\n{}"),
        chunks=0,
    ),
    passes("continue first", raw("HTTP/1.1 100 Continue\r\n\r\n", sized(TEXT), keep=True), GOOD[False]),
    passes(
        "no content",
        raw("HTTP/1.1 204 No Content\r\n\r\n", keep=True),
        "HTTP/1.1 204 No Content\r\n" + END,
        204,
    ),
    passes("old", raw("HTTP/1.0 200 OK\r\n\r\nabc", "def"), HTTP + END + "abcdef"),
    passes("long body", raw(sized(TEXT + "surplus", len(TEXT)), keep=True), GOOD[False]),
    passes("400", raw(five("400 Bad")), shown(five("400 Bad")), 400),
    passes("429", raw(five("429 Slow")), shown(five("429 Slow")), 429),
    passes("501", raw(five("501 What")), shown(five("501 What")), 501),
    passes("500", raw(five("500 No"), keep=True), shown(five("500 No")), 500, retried=True),
    passes(
        "503 in pieces",
        raw(five("503 No", ""), '{"no":"  "', keep=True),
        shown(five("503 No")),
        503,
        retried=True,
    ),
    Case(
        "500 cut",
        raw(five("500 No", "{")),
        shown(five("500 No", "{")),
        500,
        "upstream_broke_off",
        retried=True,
        lost=(1,),
    ),
    fails("nothing", raw()),
    fails("half a head", raw("HTTP/1.1 200 OK\r\nContent-Ty")),
    fails("garbage", raw("this is not HTTP\r\n\r\n")),
    fails("another protocol", raw("HTTP/1.1 101 Switching\r\n\r\n")),
    fails("a head without end", raw(HTTP + "A: " + "a" * 40_000)),
    fails("two lengths", raw(TWO_LENGTHS, keep=True)),
    fails(
        "both framings", raw(HTTP + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", keep=True)
    ),
    fails("a folded line", raw(HTTP + "A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}", keep=True)),
    fails("no chunk at once", raw(SSE + "zz\r\n", keep=True)),
    fails("a wrong chunk at once", raw(SSE + EVENT + "3\r\nabcde\r\n", keep=True)),
    breaks("no chunk later", raw(SSE, "zz\r\n", keep=True), shown(SSE) + error_event()),
    breaks("dies in a stream", raw(SSE + EVENT), shown(SSE + EVENT) + error_event()),
    breaks("half a chunk", raw(SSE + EVENT, EVENT[:20]), shown(SSE + EVENT) + error_event()),
    breaks("short body", raw(sized("x" * 10, 20)), shown(sized("x" * 10, 20))),
    breaks("cut chunks", raw(CUT), shown(CUT)),
]


class Bench:
    """Two engines and a worker, which a test arranges anew in no time."""

    def __init__(self) -> None:
        self.bad, self.good = SyntheticEngine(), SyntheticEngine()
        self.worker = GatewayWorker()
        self.round = 0
        self.publish([])
        self.worker.listening()

    def publish(self, routes: list[wire.Route]) -> None:
        """A table, and until it is in place."""
        self.round += 1
        mark = route(name="mark", chute_id=f"mark-{self.round}")
        self.worker.publish(wire.Table([*routes, mark], KEYS))
        if self.round > 1:
            key = {"X-API-Key": USER}
            there = f"/v1/models/mark-{self.round}"
            assert eventually(lambda: exchange(self.worker.port, "GET", there, headers=key)[0] == 200)

    def names(self) -> tuple[str, str]:
        """Of instances that the worker has not met, so thinks nothing of."""
        return f"bad-{self.round}", f"good-{self.round}"

    def ask(self, stream: bool, model: str = MODEL, prompt: str = "", **fields: Any) -> str:
        """Everything that comes for a request until the worker closes."""
        body = json.dumps({"model": model, "prompt": prompt, **fields} | ({"stream": True} if stream else {}))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {USER}\r\nX-Request-Id: t-1\r\n"
        text = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        with socket.create_connection(("127.0.0.1", self.worker.port), timeout=30) as client:
            client.sendall(text.encode())
            return everything(client)

    def tries(self) -> tuple[int, int]:
        return self.bad.seen()["requests"], self.good.seen()["requests"]

    def lost(self) -> list[str]:
        """Instances that control has heard of since; read after the record, which is sent later."""
        found = []
        while True:
            try:
                event = self.worker.event(0.05)
            except TimeoutError:
                return found
            assert isinstance(event, wire.UpstreamLost)
            found.append(event.instance_id)

    def record(self) -> tuple[wire.Record, list[str]]:
        """The one request that ended, and the instances that control was told of meanwhile."""
        lost: list[str] = []
        assert eventually(lambda: lost.extend(self.lost()) or self.worker.records)
        (record,) = self.worker.records
        self.worker.records = []
        return record, lost

    def close(self) -> None:
        self.bad.stop()
        self.good.stop()
        assert "Traceback" not in self.worker.stop()


def everything(client: socket.socket) -> str:
    data = b""
    try:
        while part := client.recv(65536):
            data += part
    except ConnectionResetError:
        pass  # an answer that broke off: what came before counts
    return data.decode()


def prompt_for(instance: str, other: str) -> str:
    """A prompt that prefers the one to the other."""
    seeds = [balance.seed(instance), balance.seed(other)]
    prompts = (f"p{number}" for number in range(1000))
    return next(
        p for p in prompts if balance.choose([0, 0], seeds, balance.prefix_key(f'"{p}"'.encode())) == 0
    )


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.mark.parametrize("instances", [1, 2])
@pytest.mark.parametrize(
    ("case", "stream"),
    [pytest.param(c, s, id=f"{c.name}-{'stream' if s else 'whole'}") for c in CASES for s in c.stream],
)
def test_an_engine_that_fails(bench: Bench, case: Case, stream: bool, instances: int) -> None:
    bad, good = bench.names()
    bench.publish([route(bench.bad.upstream(bad), *([bench.good.upstream(good)] if instances == 2 else []))])
    bench.bad.reset(**case.fake)
    good_answer = (SSE, EVENT, USAGE + DONE) if stream else (sized(TEXT),)
    bench.good.reset(**raw(*good_answer, keep=True))
    answer = bench.ask(stream, prompt=prompt_for(bad, good))
    record, lost = bench.record()
    if instances == 2 and case.retried:
        assert answer == GOOD[stream]
        assert bench.tries() == (1, 1)
        assert (record.status, record.error, record.retries) == (200, "", 1)
        assert record.instance_id == good
        assert (record.prompt_tokens, record.completion_tokens) == (3, 4)
    else:
        assert answer == case.client
        assert bench.tries() == (case.tries, 0)
        assert (record.status, record.error, record.retries) == (case.status, case.error, case.tries - 1)
        assert record.instance_id == bad
        if case.tokens is not None:
            assert (record.prompt_tokens, record.completion_tokens) == case.tokens
        if case.chunks is not None:
            assert record.chunks == case.chunks
    assert set(lost) == ({bad} if instances in case.lost else set())
    assert record.stream is stream
    assert (record.request_id, record.chute_id, record.model) == ("t-1", "chute-x", MODEL)
    assert 0 <= record.first <= record.duration < 10
    assert all(engine.seen()["in_flight"] == 0 for engine in (bench.bad, bench.good))


def test_nobody_there(bench: Bench) -> None:
    bad, good = bench.names()
    nobody = wire.Upstream(bad, "127.0.0.1", 1, "k", 5)
    bench.good.reset(**raw(sized(TEXT), keep=True))
    bench.publish([route(nobody, bench.good.upstream(good))])
    assert bench.ask(False, prompt=prompt_for(bad, good)) == GOOD[False]
    record, lost = bench.record()
    assert (record.retries, record.instance_id, lost) == (1, good, [bad])


def waiting(bench: Bench) -> Future[str]:
    """The answer to a request that has met nobody and waits."""
    made = ThreadPoolExecutor(1).submit(bench.ask, False)
    assert isinstance(bench.worker.event(), wire.UpstreamLost)
    assert not made.done()
    return made


def test_what_is_asked_of_an_instance_that_has_just_died_waits_for_the_next_one(bench: Bench) -> None:
    bad, good = bench.names()
    nobody = wire.Upstream(bad, "127.0.0.1", 1, "k", 5)
    bench.good.reset(**raw(sized(TEXT), keep=True))
    bench.publish([route(nobody)])
    answer = waiting(bench)
    bench.publish([route(phase="waiting")])
    assert not answer.done()
    bench.publish([route(bench.good.upstream(good))])
    assert answer.result(30) == GOOD[False]
    record, _ = bench.record()
    assert (record.status, record.instance_id, bench.tries()[1]) == (200, good, 1)
    assert record.queued > 0


def test_one_that_was_away_for_a_moment_is_asked_again(bench: Bench) -> None:
    port = port_for_test()
    bench.publish([route(wire.Upstream(bench.names()[0], "127.0.0.1", port, "k", 5))])
    answers = [waiting(bench)]
    answers.append(ThreadPoolExecutor(1).submit(bench.ask, False))  # behind the first, which has met nobody
    engine = SyntheticEngine("--fake", json.dumps(raw(sized(TEXT), keep=True)), api_key="k", port=port)
    try:
        assert [answer.result(30) for answer in answers] == [GOOD[False]] * 2
        assert engine.seen()["requests"] == 2
    finally:
        engine.stop()
    assert eventually(lambda: bench.lost() is not None and len(bench.worker.records) == 2)
    bench.worker.records = []


def test_one_that_does_not_come_back_is_not_waited_for(bench: Bench) -> None:
    bench.publish([route(wire.Upstream(bench.names()[0], "127.0.0.1", 1, "k", 5))])
    answer = waiting(bench)
    bench.publish([route(phase="failed", detail="It is out of memory.")])
    assert '"code":"chute_not_ready"' in answer.result(30)
    assert bench.record()[0].error == "chute_not_ready"


def test_nobody_waits_for_ever_for_one_that_is_not_there() -> None:
    nobody = wire.Upstream("nobody", "127.0.0.1", 1, "k", 5)
    worker = GatewayWorker(MISSED_SECONDS=0.5)
    try:
        worker.publish(wire.Table([route(nobody)], KEYS))
        worker.listening()
        body = json.dumps({"model": MODEL}).encode()
        status, headers, text = exchange(
            worker.port, "POST", "/v1/completions", body, {"X-API-Key": USER, "X-Request-Id": "t-1"}
        )
        assert (status, headers["retry-after"]) == (503, "1")
        assert "An instance of org/Model-X cannot be reached." in text.decode()
        assert worker.event() == wire.UpstreamLost("chute-x", "nobody", ANY)
    finally:
        assert "Traceback" not in worker.stop()


@pytest.mark.parametrize("fake", [raw(five("500 No"), keep=True), raw("this is not HTTP\r\n\r\n")])
def test_a_request_that_kills_does_not_go_through_all_instances(bench: Bench, fake: dict[str, Any]) -> None:
    bench.bad.reset(**fake)
    names = [f"bad-{bench.round}-{index}" for index in range(5)]
    bench.publish([route(*(bench.bad.upstream(name) for name in names))])
    assert "x-request-id: t-1" in bench.ask(False, prompt="a").lower()
    assert bench.tries()[0] == 2
    assert bench.record()[0].retries == 1


@pytest.mark.parametrize("fake", [raw(), raw(five("503 No"), keep=True), None])
@pytest.mark.parametrize("suffix", ["", ":latency", ":throughput"])
def test_a_list_goes_on_to_its_next_chute(bench: Bench, fake: dict[str, Any] | None, suffix: str) -> None:
    """Unknown names are skipped; the first chute answers 503, breaks off, or is not there at all."""
    bad, good = bench.names()
    bench.bad.reset(**(fake or {}))
    bench.good.reset(**raw(sized(TEXT), keep=True))
    first = wire.Upstream(bad, "127.0.0.1", 1, "k", 5) if fake is None else bench.bad.upstream(bad)
    bench.publish(
        [
            route(first, name="org/A", chute_id=f"a-{bench.round}"),
            route(bench.good.upstream(good), name="org/B", chute_id=f"b-{bench.round}"),
            route(name="org/C", chute_id=f"c-{bench.round}", phase="failed"),
        ]
    )
    chute = f"b-{bench.round - 1}"
    assert bench.ask(False, model=f"unknown,org/C,org/A,org/B{suffix}") == GOOD[False]
    record, _ = bench.record()
    assert (record.chute_id, record.instance_id, record.retries) == (chute, good, 1)
    assert record.model == f"unknown,org/C,org/A,org/B{suffix}"
    assert json.loads(bench.good.seen()["body"])["model"] == "org/B", "each chute gets its own name"
    assert bench.tries() == (0 if fake is None else 1, 1)


def test_a_list_passes_over_what_a_key_may_not_call(bench: Bench) -> None:
    bad, good = bench.names()
    bench.bad.reset(**raw(sized(TEXT), keep=True))
    bench.good.reset(**raw(sized(TEXT), keep=True))
    theirs = route(bench.bad.upstream(bad), name="org/A", chute_id=f"a-{bench.round}")
    ours = route(bench.good.upstream(good), name="org/B", chute_id="chute-other")
    bench.publish([theirs, ours])
    head = {"X-API-Key": CONFINED}
    body = b'{"model": "org/A,org/B"}'
    assert exchange(bench.worker.port, "POST", "/v1/completions", body, head)[0] == 200
    assert bench.record()[0].instance_id == good
    status, _, answer = exchange(bench.worker.port, "POST", "/v1/completions", b'{"model":"org/A,x"}', head)
    assert (status, json.loads(answer)["error"]["code"]) == (403, "model_not_allowed")


def test_a_list_without_instances_waits_for_one_that_can_be_woken(bench: Bench) -> None:
    bench.publish(
        [
            route(name="org/A", chute_id="a", phase="failed"),
            route(name="org/B", chute_id="b", phase="stopped", asleep=True),
        ]
    )
    with socket.create_connection(("127.0.0.1", bench.worker.port), timeout=30) as client:
        body = b'{"model":"org/A,org/B"}'
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (USER.encode(), len(body), body)
        )
        assert bench.worker.event() == wire.Wake("b")
        bench.good.reset(**raw(sized(TEXT), keep=True))
        bench.publish([route(bench.good.upstream(), name="org/B", chute_id="b")])
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert bench.record()[0].queued > 0


def test_a_stale_connection_is_nobodys_fault(bench: Bench) -> None:
    """The engine closes an idle connection as the request comes: asked again, control not told."""
    bad, _ = bench.names()
    bench.publish([route(bench.bad.upstream(bad))])
    bench.bad.reset(**raw(sized(TEXT), keep=True))
    assert bench.ask(False) == GOOD[False]
    bench.record()
    bench.bad.reset(**raw() | {"once": f"stale-{bench.round}"})
    assert bench.ask(False).startswith("HTTP/1.1 200")
    record, lost = bench.record()
    assert (bench.tries()[0], record.retries, lost) == (2, 0, [])


def test_a_broken_answer_frees_its_keys_place_once(bench: Bench) -> None:
    """Freed twice, the key could have one more at once with every answer that breaks off."""
    key = wire.Key("limited", wire.key_digest("cpk_limited"), concurrency=1, slot=3)
    bad = bench.names()[0]
    bench.bad.reset(**raw(sized("x", 20)))
    bench.worker.publish(wire.Table([route(bench.bad.upstream(bad))], [*KEYS, key]))
    headers = {"X-API-Key": "cpk_limited"}
    body = json.dumps({"model": MODEL}).encode()
    for _ in range(3):
        with pytest.raises(http.client.IncompleteRead):
            exchange(bench.worker.port, "POST", "/v1/completions", body, headers)
        assert bench.record()[0].error == "upstream_broke_off"
    hold = json.dumps({"model": MODEL, "fake": {"do": "hang"}}).encode()
    bench.bad.reset(do="answer")
    with socket.create_connection(("127.0.0.1", bench.worker.port), timeout=30) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: cpk_limited\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(hold), hold)
        )
        assert eventually(lambda: bench.bad.seen()["in_flight"] == 1)
        assert exchange(bench.worker.port, "POST", "/v1/completions", body, headers)[0] == 429
    assert eventually(lambda: exchange(bench.worker.port, "POST", "/v1/completions", body, headers)[0] == 200)
    assert eventually(lambda: len(bench.lost()) == 0 and len(bench.worker.records) >= 3)
    bench.worker.records = []
