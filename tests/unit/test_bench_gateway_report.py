"""From samples to verdicts: medians of ratios that are paired within a round."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.gateway import machine, report
from benchmarks.gateway.contenders import KEYS, MODEL
from benchmarks.gateway.measures import Sample
from benchmarks.gateway.worker import Control, table
from chutes import wire
from chutes.mortal import mortal


def sample(contender: str, number: int, measure: str, **load: Any) -> Sample:
    said = {
        "requests_per_s": 1000.0,
        "requests_all": 1000,
        "chunks_per_s": 0.0,
        "chunks_all": 1000,
        "bad": 0,
        "first_bad": "",
        "cpu_s": 0.1,
        "wall_s": 1.0,
        "latency_us": {"p50": 100.0, "p99": 200.0},
    } | load
    return Sample(number, measure, contender, "load", said, 0.02, 0.1, 1.1, 0.0, 0.0)


def result(samples: list[Sample], **memory: Any) -> report.Result:
    machine = {
        "cpu": "one",
        "cpus_used": {"gateway": 0},
        "load_average_before": (0.0,),
        "load_average_after": (0.0,),
    }
    return report.Result(
        "bench", "now", machine, {}, {"litellm": "not here"}, {}, {"chutes": memory}, samples
    )


def verdicts(found: report.Result) -> dict[str, bool | None]:
    return {label: holds for label, holds, _ in report.bounds(found)}


def test_ratios_are_paired_within_a_round() -> None:
    rates = {"nginx": [1000.0, 100.0, 400.0], "chutes": [700.0, 70.0, 100.0]}
    samples = [
        sample(name, number, "requests_c64", requests_per_s=rate)
        for name, of in rates.items()
        for number, rate in enumerate(of)
    ]
    found = result(samples, after_mb=30.0)
    by_round = found.paired("chutes", "nginx", "requests_c64", report.per_second, report.ratio)
    assert by_round == pytest.approx(0.7)  # the medians' ratio would be 0.25
    assert verdicts(found)["≥ 0.65 × nginx in requests/s"] is True
    assert verdicts(found)["≥ 2 × vllm-router in requests/s"] is None


def test_bounds_that_do_not_hold_are_said_loudly() -> None:
    samples = [
        sample("direct", 0, "requests_c1"),
        sample("chutes", 0, "requests_c1", latency_us={"p50": 161.0, "p99": 200.0}),
        sample("chutes", 0, "streams_paced", bad=1, first_bad="a wrong chunk"),
    ]
    found = result(samples, after_mb=36.0, answered=10, metered=9)
    assert verdicts(found)["≤ 60 µs added to p50 at 1 connection"] is False
    assert verdicts(found)["no chunk lost, no answer wrong"] is False
    assert verdicts(found)["≤ 35 MB a worker after all rounds"] is False
    assert verdicts(found)["every answer metered once"] is False
    assert verdicts(found)["≤ 22 µs of CPU a chunk, or 1.4 × nginx"] is True
    text = report.text(found)
    assert "4 OF 7 BOUNDS ARE NOT MET" in text
    assert "a wrong chunk" in text
    assert "litellm skipped: not here" in text


def test_what_one_connection_costs_is_told_in_three_ways() -> None:
    p50 = {
        "requests_c1": {"direct": 20.0, "nginx": 196.0, "chutes": 252.0},
        "requests_c1_awake": {"direct": 25.0, "nginx": 117.0, "chutes": 169.0},
        "requests_c1_one_cpu": {"direct": 10.0, "nginx": 40.0, "chutes": 55.0},
    }
    samples = [
        sample(name, 0, measure, latency_us={"p50": value, "p99": value})
        for measure, of in p50.items()
        for name, value in of.items()
    ]
    found = {label: (holds, said) for label, holds, said in report.bounds(result(samples))}
    assert found["≤ 60 µs added to p50 at 1 connection"] == (
        False,
        "232 µs (nginx adds 176); on CPUs kept awake 144 µs (nginx 92); all on one CPU 45 µs (nginx 30)",
    )


def test_threads_go_to_one_cpu_and_home_again() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")  # with one there is nowhere to go, and the benchmark refuses to run
    program = "import threading; t = threading.Thread(target=input); t.start(); print(flush=True); t.join()"
    command = mortal(["taskset", "-c", str(cpus[-1]), sys.executable, "-c", program])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        threads = machine.threads(process.pid)
        assert len(threads) == 2
        with machine.gathered([process.pid], cpus[0]):
            assert [os.sched_getaffinity(thread) for thread in threads] == [{cpus[0]}] * 2
        assert [os.sched_getaffinity(thread) for thread in threads] == [{cpus[-1]}] * 2
        process.communicate(b"\n")
    with machine.gathered([process.pid], cpus[0]):  # it has ended
        assert machine.threads(process.pid) == []


def test_figures_are_put_between_their_marks(tmp_path: Path) -> None:
    docs = tmp_path / "speed.md"
    docs.write_text("before\n<!-- figures -->\nold \\1\n<!-- /figures -->\nafter\n")
    report.write_docs("new \\1", docs)
    report.write_docs("new \\1", docs)
    assert docs.read_text() == "before\n<!-- figures -->\n```\nnew \\1\n```\n<!-- /figures -->\nafter\n"
    assert report.BLOCK.search(report.DOCS.read_text())


def test_the_stub_of_control_publishes_a_table_and_counts_what_is_metered() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rb") as lines:
        control = Control(ours, table([1, 2]))
        published = msgspec.json.decode(lines.readline(), type=wire.Publish).table
        (route,) = [route for route in published.routes if route.name == MODEL]
        assert [upstream.port for upstream in route.upstreams] == [1, 2]
        assert len(published.routes) == 20
        assert [key.slot for key in published.keys] == list(range(len(KEYS)))

        names = ("request_id", "key_id", "chute_id", "instance_id", "method", "path", "model", "error")
        fields: dict[str, Any] = dict.fromkeys(names, "")
        fields |= {"started": 1.0, "queued": 0.0, "first": 0.1, "duration": 0.2}
        fields |= {"prompt_tokens": 3, "completion_tokens": 5, "cached_tokens": 0, "chunks": 0, "retries": 0}
        record = wire.Record(**fields, status=200, stream=False)
        for _ in range(2):
            theirs.sendall(msgspec.json.encode(wire.Usage([record, record])) + b"\n")
        until = time.monotonic() + 5
        while control.statuses[200] < 4 and time.monotonic() < until:
            time.sleep(0.01)
        assert control.statuses == {200: 4}
        assert control.tokens == 20
        assert control.messages == {"Usage": 2}
