"""Figures of a benchmark: of records whose answers are worked out by hand, and laws that any obey."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.measures import Slo, check, measure, measure_all
from benchmarks.harness.noise import (
    Pool,
    draws,
    figure,
    mann_whitney,
    of_blocks,
    quantiles,
    resampled_quantiles,
    student,
    welch,
)
from benchmarks.harness.records import Record
from benchmarks.harness.steady import in_flight, steady_window
from benchmarks.harness.summary import summary
from chutes.exception import UsageError
from tests.unit.bench_records import answer, refused


def test_one_request() -> None:
    found = measure([answer(ttft=0.1, gap=0.01, tokens=11)])
    medians = {name: of.percentiles[50].value for name, of in found.latencies.items()}
    assert medians["ttft"] == pytest.approx(0.100)
    assert medians["ttft_sent"] == pytest.approx(0.099)
    assert medians["tpot"] == pytest.approx(0.010)  # 100 ms between 11 tokens
    assert medians["e2el"] == pytest.approx(0.200)  # the last token, not the end of the answer
    assert medians["e2el_sent"] == pytest.approx(0.199)
    assert medians["ntpot"] == pytest.approx(0.200 / 11)
    assert medians["lag"] == pytest.approx(0.001)
    assert found.latencies["gap"].count == 10
    assert found.seconds == pytest.approx(0.202)
    assert found.rates["output_tokens"].value == pytest.approx(11 / 0.202)
    assert found.totals == {"requests": 1, "input_tokens": 20, "output_tokens": 11, "total_tokens": 31}


def test_a_stall_before_sending_counts_from_the_schedule() -> None:
    """Coordinated omission: what was sent a second late was a second late for who asked."""
    found = measure([answer(at=0.0, sent=1.0, first=1.1, times=[], last=1.1, ended=1.1, output_tokens=1)])
    assert found.latencies["ttft"].percentiles[50].value == pytest.approx(1.1)
    assert found.latencies["ttft_sent"].percentiles[50].value == pytest.approx(0.1)
    assert found.latencies["lag"].max == pytest.approx(1.0)


def test_events_of_several_tokens_weigh_as_many() -> None:
    """9 tokens: one in the first event, then two each in 4 events 20 ms apart: 10 ms a token, 20 ms a gap."""
    bunched = answer(times=[0.12, 0.14, 0.16, 0.18], last=0.18, output_tokens=9)
    single = answer(number=1, ttft=0.1, gap=0.03, tokens=3)  # two gaps of 30 ms
    found = measure([bunched, single])
    assert found.latencies["gap"].mean.value == pytest.approx((4 * 0.02 + 2 * 0.03) / 6)
    assert found.latencies["itl"].mean.value == pytest.approx((8 * 0.01 + 2 * 0.03) / 10)
    assert found.latencies["itl"].percentiles[50].value == pytest.approx(0.01)


def test_percentiles_are_those_of_numpy() -> None:
    ttfts = [0.05, 0.4, 0.1, 0.2, 0.9, 0.3, 0.15]
    found = measure([answer(number=n, at=float(n), ttft=ttft) for n, ttft in enumerate(ttfts)])
    for percentile, at in found.latencies["ttft"].percentiles.items():
        assert at.value == pytest.approx(np.percentile(ttfts, percentile))
    assert found.latencies["ttft"].std == pytest.approx(np.std(ttfts))


def test_failures_leave_latencies_and_stay_in_attainment() -> None:
    records = [
        answer(0, 0.0, ttft=0.1),
        answer(1, 1.0, ttft=0.5),
        refused(2, 2.0),
        refused(3, 3.0, "timeout"),
    ]
    found = measure(records, slo=Slo(ttft=200))
    assert (found.sent, found.completed, found.failed) == (4, 2, 2)
    assert found.errors == {"http_503": 1, "timeout": 1}
    assert found.latencies["ttft"].count == 2
    assert found.attainment == 0.25
    assert found.totals["goodput"] == 1


def test_a_window_counts_latencies_by_schedule_and_tokens_by_arrival() -> None:
    before = answer(0, at=0.0, ttft=1.05, gap=0.1, tokens=2)  # tokens at 1.05 and 1.15: in the window
    inside = answer(1, at=1.5, ttft=0.3, gap=0.4, tokens=2)  # 1.8 in, 2.2 not
    after = answer(2, at=2.5)
    found = measure([before, inside, after], window=(1.0, 2.0))
    assert found.sent == 1
    assert found.latencies["ttft"].max == pytest.approx(0.3)
    assert found.totals["output_tokens"] == 3
    assert found.rates["output_tokens"].value == pytest.approx(3.0)
    assert found.totals["requests"] == 1  # the one that ended in it


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (answer(tokens=96, wanted_output_tokens=100), None),  # 4 %
        (answer(tokens=94, wanted_output_tokens=100), "output_length"),
        (answer(output_tokens=1940, wanted_output_tokens=2000), "output_length"),  # 3 %, but 60 tokens
        (answer(input_tokens=130, wanted_input_tokens=100), "input_length"),
        (answer(output_tokens=None), "uncounted"),
        (answer(tokens=1, output_tokens=40), "at_once"),
        (answer(first=0.3), "disordered"),
    ],
)
def test_answers_are_checked_against_what_was_asked(record: Record, kind: str | None) -> None:
    assert check([record]) == ({kind: 1} if kind else {})


def test_forced_lengths_are_checked_to_the_token() -> None:
    record = answer(tokens=99, wanted_output_tokens=100)
    assert check([record]) == {}
    assert check([record], exact=True) == {"output_length": 1}


def test_an_answer_in_one_piece_has_no_tpot() -> None:
    found = measure([answer(tokens=1, output_tokens=40)])
    assert "tpot" not in found.latencies
    assert found.rates["output_tokens"].value == pytest.approx(40 / 0.102)


def test_images_and_embeddings_have_no_first_token() -> None:
    image = Record(number=0, target="e", scheduled=0.0, sent=0.0, ended=2.0, status=200, images=2)
    found = measure([image])
    assert set(found.latencies) == {"e2el", "e2el_sent", "lag"}
    assert found.rates["images"].value == pytest.approx(1.0)


def test_objectives() -> None:
    assert Slo.of({}) is None
    slo = Slo.of({"ttft": 150, "tpot": 15, "e2el": 250})
    assert slo is not None
    assert slo.met_by(answer(ttft=0.1, gap=0.01))
    assert not slo.met_by(answer(ttft=0.16, gap=0.005))
    assert not slo.met_by(answer(ttft=0.1, gap=0.016, tokens=3))
    assert not slo.met_by(answer(ttft=0.1, gap=0.01, tokens=20))
    assert slo.met_by(answer(tokens=1))  # without a second token there is no gap to miss
    with pytest.raises(UsageError, match="latency"):
        Slo.of({"latency": 5})
    with pytest.raises(UsageError):
        Slo.of({"ttft": 0})


def test_repeats_have_the_interval_that_is_between_them() -> None:
    runs = [([answer(n, float(n), tokens=tokens) for n in range(10)], (0.0, 10.0)) for tokens in (9, 10, 11)]
    found = measure_all(runs)
    rate = found.rates["output_tokens"]
    assert rate.value == pytest.approx(10.0)
    # Three runs of 9, 10 and 11 tokens/s: a spread of 1, Student's 4.303 for two degrees of freedom.
    assert rate.high - rate.value == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)


def test_names_of_vllm() -> None:
    flat = summary(measure([answer(n, float(n)) for n in range(4)], slo=Slo(ttft=50)))
    assert flat["mean_ttft_ms"] == pytest.approx(99.0)  # vLLM's clock starts when it is sent
    assert flat["mean_ttft_scheduled_ms"] == pytest.approx(100.0)
    assert flat["p99_tpot_ms"] == pytest.approx(10.0)
    assert flat["request_goodput"] == 0.0
    assert flat["completed"] == 4
    assert flat["total_output_tokens"] == 44


def test_under_way() -> None:
    times, levels = in_flight([answer(0, 0.0, tokens=1), answer(1, 0.05, tokens=1)])
    assert times == pytest.approx([0.0, 0.05, 0.102, 0.152])
    assert levels.tolist() == [1, 2, 1, 0]


def test_steady_state() -> None:
    level = [answer(n, n * 0.1, ttft=0.2, gap=0.05) for n in range(200)]
    window = steady_window(level)
    assert window is not None
    assert window[0] < 4.0
    assert window[1] == pytest.approx(19.9)
    growing = [answer(n, n * 0.1, ttft=0.2 + n * 0.1) for n in range(200)]
    assert steady_window(growing) is None
    assert steady_window(level[:10]) is None


# Laws ----------------------------------------------------------------------------------------------

numbers = st.floats(0, 100, allow_nan=False)


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    found: list[Record] = []
    for number in range(draw(st.integers(1, 12))):
        at = draw(numbers)
        if draw(st.integers(0, 4)) == 0:
            found.append(refused(number, at, draw(st.sampled_from(["timeout", "http_503"]))))
        else:
            found.append(
                answer(
                    number,
                    at,
                    draw(numbers),
                    draw(numbers),
                    draw(st.integers(1, 5)),
                    output_tokens=draw(st.one_of(st.none(), st.integers(0, 9))),
                )
            )
    return found


@settings(max_examples=40, deadline=None)
@given(records(), st.randoms(use_true_random=False))
def test_laws_of_measures(asked: list[Record], chance: random.Random) -> None:
    slo = Slo(ttft=20_000, e2el=50_000)
    found = measure(asked, slo=slo, resamples=20)
    for of in found.latencies.values():
        values = [of.percentiles[p].value for p in (50, 90, 95, 99)]
        assert values == sorted(values)
        assert of.min <= values[0]
        assert values[-1] <= of.max
        for at in (*of.percentiles.values(), of.mean):
            assert at.low <= at.value <= at.high
    for rate in found.rates.values():
        assert rate.low <= rate.value <= rate.high
    if "requests" in found.rates:
        assert found.rates["goodput"].value <= found.rates["requests"].value
    assert found.completed + found.failed == found.sent == len(asked)
    assert sum(found.errors.values()) == found.failed
    shuffled = list(asked)
    chance.shuffle(shuffled)
    assert measure(shuffled, slo=slo, resamples=20) == found


@given(st.lists(numbers, min_size=1, max_size=30), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_quantiles_without_weights_are_numpys(values: list[float], shares: list[float]) -> None:
    ordered = np.sort(np.array(values))
    found = quantiles(ordered, np.ones(len(values)), np.array(shares))
    assert found == pytest.approx(np.quantile(ordered, shares), rel=1e-9, abs=1e-9)


@given(
    st.lists(st.tuples(numbers, st.integers(0, 4)), min_size=1, max_size=20).filter(
        lambda p: any(w for _, w in p)
    )
)
def test_a_weight_is_how_often_a_value_is_there(pairs: list[tuple[float, int]]) -> None:
    pairs.sort()
    values, weights = np.array([v for v, _ in pairs]), np.array([float(w) for _, w in pairs])
    shares = np.array([0.0, 0.3, 0.5, 0.99, 1.0])
    written = np.repeat(values, weights.astype(int))
    assert quantiles(values, weights, shares) == pytest.approx(
        np.quantile(written, shares), rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize("requests", [1, 2, 3, 10, 1000])
def test_every_resample_is_as_large_as_the_run(requests: int) -> None:
    drawn = draws(requests, 50, seed=1)
    assert drawn.min() >= 0
    sizes = drawn.sum(axis=1)
    assert (sizes == sizes[0]).all()
    assert requests <= sizes[0] <= requests + math.ceil(requests ** (1 / 3))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Medians of 200 samples of an exponential distribution, whose true median is ln 2."""
    rng = np.random.default_rng(5)
    held, half = 0, np.array([0.5])
    for seed in range(200):
        pool = Pool.of(rng.exponential(size=100), np.arange(100))
        value = float(quantiles(pool.values, pool.weights, half)[0])
        at = figure(value, resampled_quantiles(pool, draws(100, 200, seed), half), 0.95)
        held += at.low <= math.log(2) <= at.high
    assert held >= 176  # 88 %: 95 % is promised, and the bootstrap of a median gives a little less


def test_tables_of_student() -> None:
    for freedom, wanted in ((1, 12.706), (2, 4.303), (9, 2.262), (100, 1.984)):
        assert student(0.95, freedom) == pytest.approx(wanted, rel=1e-3)


def test_one_block_knows_nothing_of_noise() -> None:
    assert of_blocks(np.array([3.0]), 0.95).high == math.inf
    assert welch(np.array([1.0]), np.array([2.0, 3.0]), 0.95).low == -math.inf


def test_mann_whitney_of_a_textbook() -> None:
    """Eight and eight without overlap: U = 0, z = (32 − 0.5) / √(8·8·17/12) = 3.308."""
    a, b = np.arange(8.0), np.arange(8.0) + 100
    assert mann_whitney(a, b) == pytest.approx(math.erfc(31.5 / math.sqrt(8 * 8 * 17 / 12) / math.sqrt(2)))
    assert mann_whitney(a, a) == 1.0
    assert mann_whitney(np.ones(5), np.ones(9)) == 1.0
