"""When requests are sent: what each kind of load promises, checked on the times themselves."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks.harness import schedule
from benchmarks.harness.schedule import Load
from chutes.exception import UsageError


@given(
    kind=some.sampled_from(["poisson", "gamma", "constant"]),
    rate=some.floats(0.1, 500),
    burstiness=some.floats(0.1, 10),
    requests=some.integers(1, 300),
    seed=some.text(max_size=5),
)
def test_times_rise_from_zero_and_are_the_same_for_the_same_seed(
    kind: str, rate: float, burstiness: float, requests: int, seed: str
) -> None:
    load = Load(kind=kind, rate=rate, burstiness=burstiness, requests=requests)
    times = schedule.arrivals(load, seed)
    assert len(times) == requests
    assert times[0] == 0
    assert times == sorted(times)
    assert times == schedule.arrivals(load, seed)


@pytest.mark.parametrize(
    ("kind", "burstiness", "variation"),
    [
        ("poisson", 1.0, 1.0),
        ("gamma", 1.0, 1.0),
        ("gamma", 4.0, 0.5),
        ("gamma", 0.25, 2.0),
        ("constant", 1.0, 0.0),
    ],
)
def test_gaps_have_the_mean_and_the_variation_that_was_asked_for(
    kind: str, burstiness: float, variation: float
) -> None:
    """The coefficient of variation of gamma gaps is 1/√shape."""
    load = Load(kind=kind, rate=20, burstiness=burstiness, requests=40_000)
    times = schedule.arrivals(load, "seed")
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.pstdev(gaps) * 20 == pytest.approx(variation, rel=0.08, abs=1e-6)


def test_a_duration_ends_an_open_loop() -> None:
    times = schedule.arrivals(Load(kind="constant", rate=10, seconds=2), "s")
    assert times == pytest.approx([number / 10 for number in range(20)])
    assert len(schedule.arrivals(Load(kind="constant", rate=10, seconds=2, requests=5), "s")) == 5


def test_a_trace_keeps_its_distances(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"seconds": 12.5, "input_tokens": 7}\n\n'
        '{"timestamp": 10000, "input_length": 6, "output_length": 2}\n'
    )
    entries = schedule.read_trace(path)
    assert [entry.lengths() for entry in entries] == [(6, 2), (7, None)]
    assert schedule.arrivals(Load(kind="trace", trace=str(path)), "s", entries) == [0, 2.5]
    assert schedule.arrivals(Load(kind="trace", trace=str(path), speed=5), "s", entries) == [0, 0.5]


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "empty"), ('{"seconds": 1}\n{"tokens": 3}', "line 2 has no time"), ("x", "line 1")],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        schedule.read_trace(path)


def test_users_come_over_the_ramp() -> None:
    assert schedule.users(Load(concurrency=4, ramp=2)) == [0, 0.5, 1.0, 1.5]
    assert schedule.users(Load(concurrency=3)) == [0, 0, 0]


@given(blocks=some.integers(1, 50), targets=some.integers(1, 4), seed=some.text(max_size=5))
def test_targets_take_turns_in_blocks(blocks: int, targets: int, seed: str) -> None:
    order = schedule.interleaved(blocks * targets, targets, seed)
    for start in range(0, len(order), targets):
        assert sorted(order[start : start + targets]) == list(range(targets))


def test_the_order_within_a_block_is_random() -> None:
    order = schedule.interleaved(2000, 2, "seed")
    firsts = Counter(order[::2])
    assert 400 < firsts[0] < 600


def test_the_window_leaves_out_warm_up_and_cool_down() -> None:
    assert Load(seconds=60, warmup=5, cooldown=10).window(55) == (5, 50)
    assert Load(requests=100, warmup=5).window(40) == (5, 40)
    assert Load(seconds=60).window(60) is None


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (Load(kind="sine", seconds=1), "no load"),
        (Load(kind="poisson", seconds=1), "rate"),
        (Load(kind="closed", seconds=1), "user"),
        (Load(kind="closed", concurrency=1), "an end"),
        (Load(kind="gamma", rate=1, burstiness=0, seconds=1), "Burstiness"),
        (Load(kind="closed", concurrency=1, seconds=5, warmup=3, cooldown=2), "leave nothing"),
        (Load(kind="poisson", rate=1e6, seconds=60), "requests in one phase"),
        (Load(kind="trace"), "file"),
    ],
)
def test_a_load_that_cannot_be_is_refused(load: Load, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        schedule.check(load)
