"""The metering thread, the access log, the sums for Prometheus, engines' metrics, spans."""

from __future__ import annotations

import builtins
import gzip
import http.server
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chutes.control import engine_metrics, metering, tracing
from chutes.control.access_log import AccessLog, line
from chutes.control.counts import MAX_CODES, Counts
from chutes.control.metering import USAGE_PREFIX, Meter
from chutes.control.usage import UsageStore
from chutes.control.usage_query import query
from chutes.exception import NotConfigured
from chutes.wire import GAP_BUCKETS, FromWorker, Price, Usage
from tests.unit.records import HOUR, record

KEY = f"cpk_{'a' * 32}.{'b' * 32}.{'Secret' * 5}xx"


def rows(path: Path) -> list[tuple]:
    with sqlite3.connect(path) as db:
        return db.execute("SELECT request_id, model, cost FROM requests ORDER BY id").fetchall()


def test_a_usage_message_is_known_by_how_it_begins() -> None:
    assert msgspec.json.encode(Usage([record()])).startswith(USAGE_PREFIX)
    assert isinstance(msgspec.json.decode(msgspec.json.encode(Usage([])), type=FromWorker), Usage)


def test_all_that_was_taken_is_written_at_the_end(tmp_path: Path) -> None:
    exported: list[Any] = []
    meter = Meter(UsageStore(tmp_path / "u.db"), AccessLog(tmp_path / "logs" / "a.jsonl"), exported.extend)
    meter.know({"c-1": "Org/M"}, {"k1": "laptop"}, {"c-1": Price(prompt=1.0)})
    records = [record(request_id=str(number)) for number in range(1200)]
    meter.take(msgspec.json.encode(Usage(records[:1100], [1] * (len(GAP_BUCKETS) + 1))) + b"\n")
    meter.take(Usage(records[1100:]))
    meter.take(USAGE_PREFIX + b', "records": nonsense}\n')
    meter.woke("c-1")
    meter.close()
    assert [row[0] for row in rows(tmp_path / "u.db")] == [str(number) for number in range(1200)]
    assert rows(tmp_path / "u.db")[0][2] == pytest.approx(60e-6)
    assert query(tmp_path / "u.db", HOUR + 9.0, chute="Org/M", key="laptop").sum.requests == 1200
    assert meter.counts.chutes["c-1"].requests == {(200, True): 1200}
    assert meter.counts.chutes["c-1"].wakes == 1
    assert meter.counts.gaps == [1] * (len(GAP_BUCKETS) + 1)
    assert len((tmp_path / "logs" / "a.jsonl").read_text().splitlines()) == 1200
    assert len(exported) == 1200


def test_a_key_in_a_models_place_is_not_written_down(tmp_path: Path) -> None:
    meter = Meter(UsageStore(tmp_path / "u.db"), AccessLog(tmp_path / "a.jsonl"))
    meter.take(Usage([record(model=KEY), record(path=f"/v1/{KEY[:90]}/x")]))
    meter.close()
    assert rows(tmp_path / "u.db")[0][1] == "cpk_…"
    assert "Secret" not in (tmp_path / "a.jsonl").read_text()
    assert b"Secret" not in (tmp_path / "u.db").read_bytes()


def test_what_cannot_be_written_now_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = UsageStore(tmp_path / "u.db")
    refused = threading.Event()
    add = store.add

    def full(*_: object) -> None:
        refused.set()
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store, "add", full)
    meter = Meter(store)
    meter.take(Usage([record()]))
    assert refused.wait(30)
    monkeypatch.setattr(store, "add", add)
    meter.take(Usage([record(request_id="r2")]))
    meter.close()
    assert [row[0] for row in rows(tmp_path / "u.db")] == ["r1", "r2"]
    assert "disk is full" in caplog.text


def test_one_that_cannot_be_kept_does_not_take_others_with_it(tmp_path: Path) -> None:
    meter = Meter(UsageStore(tmp_path / "u.db"))
    meter.take(Usage([record(request_id="r0"), record(prompt_tokens=2**70), record(request_id="r2")]))
    meter.close()
    assert [row[0] for row in rows(tmp_path / "u.db")] == ["r0", "r2"]
    assert meter.lost == 1


def test_what_comes_too_fast_is_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metering, "MAX_WAITING_BYTES", 1000)
    meter = Meter(UsageStore(tmp_path / "u.db"))
    meter.take(Usage([record()] * 10))
    meter.close()
    assert meter.lost == 10
    assert "10 requests so far will be missing" in caplog.text


def test_a_killed_process_loses_nothing_older_than_a_second(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from chutes.control.metering import Meter\n"
        "from chutes.control.usage import UsageStore\n"
        "from chutes.wire import Usage\n"
        "from tests.unit.records import record\n"
        "meter = Meter(UsageStore(pathlib.Path(sys.argv[1])))\n"
        "meter.take(Usage([record()] * 500))\n"
        "time.sleep(0.75)\n"
        "print('now', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "u.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    assert len(rows(tmp_path / "u.db")) == 500


def test_an_access_line_has_these_fields_and_no_others() -> None:
    said = line(record(started=1_800_000_000.25, error="client_gone"), {"c-1": "Org/M"})
    assert list(said) == [
        "time", "request_id", "method", "path", "model", "chute", "instance", "key_id", "status", "error",
        "stream", "queued", "first", "duration", "prompt_tokens", "completion_tokens", "cached_tokens",
        "chunks", "retries",
    ]  # fmt: skip
    assert said["time"] == "2027-01-15T08:00:01.250Z"
    assert (said["chute"], said["key_id"], said["error"]) == ("Org/M", "k1", "client_gone")


def test_the_access_log_is_rotated_by_size(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.jsonl"
    log = AccessLog(path, file_bytes=1000, files=3)
    for number in range(20):
        log.write([record(request_id=f"{number:04d}")], {})
    log.close()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["access.jsonl", "access.jsonl.1", "access.jsonl.2"]
    assert all(file.stat().st_size <= 1000 for file in files)
    ids = [json.loads(text)["request_id"] for file in reversed(files) for text in file.open()]
    assert ids == sorted(ids)
    assert ids[-1] == "0019"
    again = AccessLog(path, file_bytes=1000, files=3)
    again.write([record(request_id="next")], {})
    assert "next" in path.read_text()
    again.close()


def test_sums_of_requests() -> None:
    counts = Counts()
    counts.take(
        [
            record(),
            record(stream=False, retries=2),
            record(status=401, error="invalid_key", chute_id="", instance_id=""),
            record(status=502, error="upstream_broke_off", instance_id="i2"),
        ],
        [],
    )
    chute = counts.chutes["c-1"]
    assert chute.requests == {(200, True): 1, (200, False): 1, (502, True): 1}
    assert chute.errors == {"upstream_broke_off": 1}
    assert chute.instances == {"i1": 2, "i2": 1}
    assert (chute.prompt_tokens, chute.completion_tokens, chute.retries) == (300, 60, 2)
    assert chute.ttft.cumulative()[-1] == ("+Inf", 1.0), "only of streams that began well"
    assert chute.seconds.cumulative()[-1] == ("+Inf", 3.0)
    assert dict(chute.ttft.cumulative())["0.35"] == 1.0
    assert dict(chute.ttft.cumulative())["0.2"] == 0.0
    counts.forget({"c-1"}, {"i2"})
    assert chute.instances == {"i2": 1}
    counts.forget(set(), set())
    assert list(counts.chutes) == [""]


def test_codes_have_an_end() -> None:
    counts = Counts()
    counts.take([record(error=f"code_{number}") for number in range(500)], [])
    assert len(counts.chutes["c-1"].errors) == MAX_CODES + 1
    assert counts.chutes["c-1"].errors["other"] == 500 - MAX_CODES


VLLM_PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 400.0
vllm:generation_tokens_total{engine="0",model_name="m"} 1.5e+06
vllm:num_preemptions_total{engine="0",model_name="m"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
"""
SGLANG_PAGE = """\
sglang:num_running_reqs{model_name="m",tp_rank="0"} 4.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 1.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.5
sglang:prompt_tokens_total{model_name="m"} 90.0
sglang:cached_tokens_total{cache_source="device",model_name="m"} 30.0
sglang:cached_tokens_total{cache_source="host",model_name="m"} 10.0
sglang:generation_tokens_total{model_name="m"} 12.0
"""


def test_engines_metrics_under_common_names() -> None:
    vllm = engine_metrics.read("vllm", VLLM_PAGE)
    assert vllm == {
        "chutes_engine_running_requests": 5.0,
        "chutes_engine_waiting_requests": 7.0,
        "chutes_engine_kv_cache_usage_ratio": 0.75,
        "chutes_engine_prefix_cache_queries_total": 1000.0,
        "chutes_engine_prefix_cache_hits_total": 400.0,
        "chutes_engine_generation_tokens_total": 1.5e6,
        "chutes_engine_preemptions_total": 0.0,
    }
    sglang = engine_metrics.read("sglang", SGLANG_PAGE)
    assert sglang["chutes_engine_prefix_cache_hits_total"] == 40.0
    assert sglang["chutes_engine_prefix_cache_queries_total"] == 90.0
    assert sglang["chutes_engine_kv_cache_usage_ratio"] == 0.5
    assert engine_metrics.read("other", VLLM_PAGE) == {}
    assert engine_metrics.read("vllm", "<html>") == {}


class Collector(http.server.ThreadingHTTPServer):
    """An OTLP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), CollectorHandler)


class CollectorHandler(http.server.BaseHTTPRequestHandler):
    server: Collector  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.server.requests.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_request_becomes_a_span(collector: Collector) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    made = tracing.start(f"http://127.0.0.1:{collector.server_address[1]}")
    assert made is not None
    made.export([record(), record(status=503, error="chute_not_ready", path="/x", first=0)])
    made.close()
    ((path, body),) = collector.requests
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    first, second = resource.scope_spans[0].spans
    said = {a.key: a.value.string_value or a.value.int_value for a in first.attributes}
    assert first.name == "chat org/m"
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.usage.input_tokens"] == 100
    assert said["http.response.status_code"] == 200
    assert first.end_time_unix_nano - first.start_time_unix_nano == 10**9
    assert [event.name for event in first.events] == ["first byte"]
    assert (second.name, second.status.code) == ("POST /x", 2)


def test_tracing_is_off_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(tracing.STANDARD, raising=False)
    assert tracing.start("") is None
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NotConfigured) as caught:
        tracing.start("http://127.0.0.1:1")
    assert "chutes[otel]" in caught.value.fix
    monkeypatch.setenv(tracing.STANDARD, "http://127.0.0.1:1")
    with caplog.at_level(logging.WARNING):
        assert tracing.start("") is None
    assert "chutes[otel]" in caplog.text


def test_requests_that_were_not_let_in_are_counted_for_nobody() -> None:
    counts = Counts()
    counts.refused([(401, "invalid_api_key", 3), (404, "model_not_found", 1)])
    counts.refused([(401, "invalid_api_key", 2)])
    nobody = counts.chutes[""]
    assert dict(nobody.requests) == {(401, False): 5, (404, False): 1}
    assert dict(nobody.errors) == {"invalid_api_key": 5, "model_not_found": 1}
