"""`python -m benchmarks` as it is typed: what is wrong is said before the load, what was measured is kept."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.harness import result as results
from benchmarks.harness.running import SAME_SECONDS
from tests.integration.conftest import MODEL, SyntheticEngine

ROOT = Path(__file__).parents[2]
START = [sys.executable, "-m", "benchmarks"]
SHORT = ["--workload", "text", "--output-tokens", "8", "--no-pictures"]
KEY = "sk-engine"


@pytest.fixture
def engine(start_engine: Callable[..., SyntheticEngine]) -> SyntheticEngine:
    """Answers five tokens, ten milliseconds apart."""
    fake = {"finish": "stop", "gap": 0.01}
    return start_engine("--served-model-name", MODEL, "--fake", json.dumps(fake), api_key=KEY)


def environment(home: Path) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("CHUTES_", "OPENAI_"))}
    return {**plain, "CHUTES_HOME": str(home / "home"), "PYTHONPATH": str(ROOT), "MODEL": ""}


def typed(place: Path, *arguments: str, start: list[str] = START) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*start, *arguments],
        cwd=place,
        env=environment(place),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@contextmanager
def started(place: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*START, *arguments],
        cwd=place,
        env=environment(place),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.05)


def at(engine: SyntheticEngine) -> list[str]:
    return ["--target", f"http://127.0.0.1:{engine.port}", "--model", MODEL, "--key", engine.api_key]


def test_a_run_leaves_a_table_a_file_and_pictures(engine: SyntheticEngine, tmp_path: Path) -> None:
    file = tmp_path / "here" / "r.json"
    done = typed(
        tmp_path, "run", *at(engine), "--workload", "text", "--rate", "20", "-n", "30",
        "--slo", "ttft:60000", "-o", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout
    assert "client's lag" in done.stdout
    assert {path.suffix for path in file.parent.iterdir()} == {".json", ".png", ".html"}
    found = results.read(file)
    (phase,) = found.phases
    assert len(phase.records) == 30
    assert [record.scheduled for record in phase.records] == sorted(r.scheduled for r in phase.records)
    assert not any(record.error for record in phase.records)
    assert phase.summary["completed"] == 30
    assert phase.summary["slo_attainment"] == 1.0
    assert phase.load == {**phase.load, "kind": "poisson", "rate": 20.0, "requests": 30}
    assert found.command.startswith("python -m benchmarks run ")
    assert KEY not in file.read_text()
    assert "--key KEY" in found.command
    assert phase.client.processes == 1
    assert found.environment.cpus >= 1

    same = typed(tmp_path, "compare", str(file), str(file))
    assert same.returncode == 0, same.stderr
    assert "0 better, 0 worse" in same.stdout
    held = typed(tmp_path, "check", str(file), str(file))
    assert held.returncode == 0, held.stdout + held.stderr
    kept = typed(tmp_path, "baseline", str(file), "-o", str(tmp_path / "b.json"))
    assert kept.returncode == 0, kept.stderr
    assert typed(tmp_path, "report", str(tmp_path / "b.json"), "--no-pictures").returncode == 0


def test_several_targets_take_turns(engine: SyntheticEngine, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    url = f"http://127.0.0.1:{engine.port}"
    both = ["--target", f"a={url}", "--target", f"b={url}/v1", "--model", MODEL, "--key", KEY]
    done = typed(tmp_path, "run", *both, *SHORT, "-c", "2", "-n", "80", "-o", str(file))
    assert done.returncode == 0, done.stderr
    (phase,) = results.read(file).phases
    asked = [record.target for record in sorted(phase.records, key=lambda record: record.number)]
    assert all({asked[place], asked[place + 1]} == {"a", "b"} for place in range(0, 80, 2))
    assert len(set(asked[::2])) == 2, "in random order"
    assert "What b adds to a" in done.stdout

    done = typed(
        tmp_path, "run", *both, *SHORT, "-c", "2", "-n", "10", "--interleave", "rounds", "--repeats", "3",
        "-o", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    phases = results.read(file).phases
    assert sorted((phase.block, phase.target) for phase in phases) == [
        (block, name) for block in range(3) for name in "ab"
    ]
    assert all({r.target for r in phase.records} == {phase.target} for phase in phases)


def test_a_sweep_goes_on_until_it_knows(engine: SyntheticEngine, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    done = typed(
        tmp_path, "sweep", *at(engine), *SHORT, "--rates", "20", "10", "30", "-d", "1.5", "-o", str(file)
    )
    assert done.returncode == 0, done.stderr
    assert [phase.load["rate"] for phase in results.read(file).phases] == [10, 20, 30]
    done = typed(
        tmp_path, "sweep", *at(engine), *SHORT, "--start", "5", "--most", "2", "-d", "1.5", "-o", str(file)
    )
    assert done.returncode == 0, done.stderr
    assert [phase.load["rate"] for phase in results.read(file).phases] == [5, 10]


def test_ctrl_c_keeps_what_was_measured(engine: SyntheticEngine, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    with started(
        tmp_path, "run", *at(engine), *SHORT, "--rate", "20", "-d", "100", "-o", str(file)
    ) as process:
        wait_until(lambda: engine.seen()["requests"] >= 30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "INTERRUPTED" in out
    found = results.read(file)
    assert found.interrupted
    (phase,) = found.phases
    assert len([record for record in phase.records if not record.error]) >= 10
    assert {record.error for record in phase.records} <= {"", "unfinished"}


def test_a_second_ctrl_c_keeps_the_loads_that_were_over(engine: SyntheticEngine, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    load = ["--rate", "20", "-d", "3", "--repeats", "2", "-o", str(file)]
    with started(tmp_path, "run", *at(engine), *SHORT, *load) as process:
        wait_until(lambda: engine.seen()["requests"] >= 90)
        for client in psutil.Process(process.pid).children():
            client.suspend()  # it cannot hear that it should end
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = ""
        while "Ctrl-C again" not in said:
            said += process.stderr.readline()
        time.sleep(2 * SAME_SECONDS)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "INTERRUPTED" in out
    (phase,) = results.read(file).phases
    assert phase.block == 0
    assert not phase.interrupted


@pytest.mark.parametrize(
    ("change", "code", "says", "fix"),
    [
        ({"--target": "http://127.0.0.1:{nobody}"}, 1, "Nobody answers", "Start it"),
        ({"--key": "sk-wrong"}, 1, "does not take this key", "--key KEY"),
        ({"--model": "org/Other"}, 1, "has no model 'org/Other'", f"It has: {MODEL}"),
        ({"--output-tokens": "5000"}, 2, "do not fit the context", "--output-tokens"),
        ({"--workload": "random"}, 2, "are one token", "--workload text"),
        ({"--file": "nothing.jsonl", "--workload": "jsonl"}, 2, "nothing.jsonl cannot be read", ""),
        ({"--warmup": "9", "-d": "5"}, 2, "leave nothing", "--duration"),
        ({"--rate": "0"}, 2, "--rate: 0 is not a number above 0", ""),
        ({"--rate": "nan"}, 2, "nan is not a number above 0", ""),
        ({"--requests": "-3"}, 2, "--requests: -3 is not a whole number from 1 on", ""),
        ({"--rat": "5"}, 2, "unrecognized arguments: --rat", ""),
        ({"--rate": "5", "--target": "127.0.0.1:{nobody}"}, 2, "is not a target", "http://HOST:PORT"),
        ({"--slo": "speed:1"}, 2, "not an objective", "ttft"),
        ({"--output": "/proc/none/r.json"}, 2, "cannot be", "--output"),
        ({"--output": "/proc/r.json"}, 2, "cannot be written to", "--output"),
    ],
)
def test_what_is_wrong_is_said_before_the_load(
    engine: SyntheticEngine, tmp_path: Path, change: dict[str, str], code: int, says: str, fix: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = unused.getsockname()[1]
    options: dict[str, Any] = dict(zip(*[iter(at(engine))] * 2, strict=True))
    options |= {"--workload": "text", "--output-tokens": "8", "--rate": "5", "-d": "1"} | change
    words = [word.format(nobody=nobody) for pair in options.items() for word in pair]
    done = typed(tmp_path, "run", *words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert fix in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.json")), "nothing was measured, so nothing is written"


def test_a_trace_is_read_before_anything_is_asked(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"seconds": 0}\n{"input_tokens": 5}\n')
    done = typed(tmp_path, "run", "--target", "http://127.0.0.1:9", "--model", MODEL, "--trace", str(trace))
    assert done.returncode == 2
    assert "t.jsonl, line 2 has no time" in done.stderr


def test_the_only_model_of_a_target_need_not_be_named(engine: SyntheticEngine, tmp_path: Path) -> None:
    only = ["--target", f"http://127.0.0.1:{engine.port}", "--key", engine.api_key]
    file = tmp_path / "r.json"
    done = typed(tmp_path, "run", *only, *SHORT, "-c", "1", "-n", "3", "-o", str(file), "--no-pictures")
    assert done.returncode == 0, done.stderr
    assert results.read(file).targets[0].model == MODEL
    wrong = typed(tmp_path, "run", *only[:2], "--key", "sk-wrong", *SHORT, "-c", "1", "-n", "3")
    assert (wrong.returncode, "does not take this key" in wrong.stderr) == (1, True), wrong.stderr


def test_chutes_bench_is_the_same(tmp_path: Path) -> None:
    cli = [sys.executable, "-m", "chutes", "bench"]
    help_text = typed(tmp_path, "run", "--help", start=cli).stdout
    assert help_text.startswith("usage: chutes bench run")
    assert "--input-tokens" in help_text
    done = typed(tmp_path, "report", "none.json", start=cli)
    assert done.returncode == 2
    assert "error: There is no file none.json" in done.stderr
