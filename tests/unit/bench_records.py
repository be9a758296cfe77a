"""Requests of a benchmark whose figures can be worked out by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.records import Record
from benchmarks.harness.result import Phase, Result, Target


def answer(
    number: int = 0, at: float = 0.0, ttft: float = 0.1, gap: float = 0.01, tokens: int = 11, **more: Any
) -> Record:
    """A stream, sent a millisecond late: its first token after `ttft`, then one every `gap`."""
    times = [at + ttft + gap * n for n in range(1, tokens)]
    last = times[-1] if times else at + ttft
    values: dict[str, Any] = {
        "number": number,
        "target": "engine",
        "scheduled": at,
        "sent": at + 0.001,
        "first": at + ttft,
        "times": times,
        "last": last,
        "ended": last + 0.002,
        "status": 200,
        "input_tokens": 20,
        "output_tokens": tokens,
    }
    return Record(**{**values, **more})


def refused(number: int = 0, at: float = 0.0, error: str = "http_503") -> Record:
    return Record(
        number=number, target="engine", scheduled=at, sent=at, ended=at + 0.01, status=503, error=error
    )


def result(*phases: Phase, **more: Any) -> Result:
    values: dict[str, Any] = {
        "when": "2026-11-22T08:00:00Z",
        "command": "python -m benchmarks run --rate 1",
        "config": {"load": {"rate": 1.0}, "workload": {"kind": "random", "output_tokens": 11}},
        "seed": 0,
        "targets": [Target(name="engine", url="http://127.0.0.1:1", model="m")],
        "phases": list(phases),
    }
    return Result(**{**values, **more})
