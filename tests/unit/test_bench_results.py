"""Results of a benchmark: kept whole, compared without seeing what is not there, shown with their doubts."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.compare import compare, config_differences
from benchmarks.harness.curve import CurvePoint, highest_within, knee
from benchmarks.harness.measures import Slo, measure
from benchmarks.harness.paired import paired
from benchmarks.harness.planner import cost, memory_used, prediction, truths
from benchmarks.harness.records import Record
from benchmarks.harness.report import html, plots, table
from benchmarks.harness.report.view import view
from benchmarks.harness.result import (
    Client,
    Phase,
    Prediction,
    Result,
    Samples,
    Target,
    pack,
    read,
    unpack,
    write,
)
from benchmarks.harness.runs import by_point, thin
from benchmarks.harness.sampling import EngineMetrics, NotThere, Processes, Sampler, of_chute
from benchmarks.harness.trust import client_limited, of_load
from chutes.exception import UsageError
from tests.unit.bench_records import answer, refused, result


def run(
    seed: int, *, slower: float = 1.0, count: int = 200, target: str = "engine", added: float = 0.0
) -> list[Record]:
    """Poisson arrivals, one a second, with a first token after some 100 ms and tokens some 10 ms apart."""
    chance = random.Random(seed)
    found: list[Record] = []
    at = 0.0
    for number in range(count):
        at += chance.expovariate(1.0)
        ttft = slower * 0.1 * chance.lognormvariate(0, 0.3) + added
        gap = slower * 0.01 * chance.uniform(0.9, 1.1)
        found.append(answer(number, at, ttft, gap, 11, target=target))
    return found


def load(records: list[Record], **more: Any) -> Phase:
    return Phase(**{"name": "rate 1", "load": {"kind": "poisson", "rate": 1.0}, "records": records, **more})


# The file ---------------------------------------------------------------------------------------------


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = result(
        load(
            [answer(0, 0.5), refused(1, 1.25)], window=(0.5, 2.0), client=Client(processes=3, lag_p99=0.001)
        ),
        prediction=Prediction(tokens_per_second=120.0, usd_per_hour=2.5),
        slo={"ttft": 200.0},
    )
    whole.phases[0].samples = Samples(at=[0.0, 1.0], series={"engine_running_requests": [None, 3.0]})
    write(whole, tmp_path / "deep/down/r.json")
    back = read(tmp_path / "deep/down/r.json")
    assert msgspec.structs.replace(back, phases=[]) == msgspec.structs.replace(whole, phases=[])
    assert measure(back.phases[0].records) == measure(unpack(pack(whole.phases[0].records)))
    assert json.loads((tmp_path / "deep/down/r.json").read_text())["kind"] == "chutes-bench"


@given(st.lists(st.floats(0, 10_000), max_size=20), st.floats(0, 1000))
def test_times_of_tokens_keep_their_microsecond(gaps: list[float], first: float) -> None:
    times = (first + np.cumsum(gaps)).tolist()
    record = Record(number=0, target="e", scheduled=0.0, sent=0.0, first=first, times=times)
    (back,) = unpack(pack([record]))
    assert len(back.times) == len(times)
    assert all(abs(a - b) <= 0.5001e-6 for a, b in zip(times, back.times, strict=True))
    assert msgspec.structs.replace(back, times=[]) == msgspec.structs.replace(record, times=[])


def test_no_token_is_lost_at_the_end_of_a_run() -> None:
    """The last one is the end of the window, and microseconds round up as often as down."""
    for place in range(20):
        last = 1.0 + place * 0.37e-6
        records = [answer(tokens=11, gap=(last - 0.1) / 10, last=last, ended=last)]
        records[0].times[-1] = last
        before = measure(records, resamples=2).rates["output_tokens"].value
        for kept in (records, thin(result(load(records))).phases[0].records):
            (run,) = by_point(result(load(unpack(pack(kept))))).values()
            assert run[0].rate("output_tokens") == pytest.approx(before)


def test_nothing_half_written(tmp_path: Path) -> None:
    """What cannot be encoded, or has no place, leaves what stood there, and nothing beside it."""
    path = tmp_path / "r.json"
    write(result(load([answer()])), path)
    before = path.read_bytes()
    broken = result(load([answer()]), config={"what": object()})
    with pytest.raises(TypeError):
        write(broken, path)
    assert path.read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        write(result(), tmp_path / "folder")
    with pytest.raises(UsageError, match="cannot be written"):
        write(result(), path / "below-a-file.json")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "r.json"]


def test_what_is_no_result_is_said(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(UsageError, match="There is no file"):
        read(path)
    write(result(load([answer()])), path)
    good = path.read_bytes()
    for content, said in (
        (good[: len(good) // 2], "only a part of it"),
        (b'{"mean_ttft_ms": 3}', "not a result of this benchmark"),
        (b"[]", "not a result of this benchmark"),
        (good.replace(b'"schema_version": 1', b'"schema_version": 99'), "schema version 99"),
        (re.sub(rb'"data": "....', b'"data": "AAAA', good), "damaged"),
        (good.replace(b'"seed": 0', b'"seed": "x"'), "damaged"),
        (b"\xff\xfe", "not JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=said):
            read(path)


# Comparing ---------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_a_result_is_not_different_from_itself(seed: int, count: int) -> None:
    one = result(load(run(seed, count=count)))
    assert {d.verdict for d in compare(one, one).differences} <= {"within noise"}


def test_a_difference_is_seen_and_called_by_its_name() -> None:
    found = {
        d.measure: d for d in compare(result(load(run(1))), result(load(run(2, slower=1.3)))).differences
    }
    for name in ("ttft_p50", "tpot_p50", "e2el_p50"):
        assert found[name].verdict == "worse"
        assert found[name].change.low < 0.3 < found[name].change.high
    back = {d.measure: d for d in compare(result(load(run(2, slower=1.3))), result(load(run(1)))).differences}
    assert back["tpot_p50"].verdict == "better"


def test_equal_servers_are_seldom_called_different() -> None:
    """At 99 % for each measure: of five comparisons with ten measures half a verdict is expected."""
    verdicts = [
        d.verdict
        for seed in range(5)
        for d in compare(result(load(run(2 * seed))), result(load(run(2 * seed + 1)))).differences
    ]
    assert sum(verdict != "within noise" for verdict in verdicts) <= 4


def test_repeats_are_compared_by_what_is_between_them() -> None:
    def repeated(first: int, slower: float) -> Result:
        return result(*[load(run(first + n, slower=slower, count=60), block=n) for n in range(4)])

    found = {d.measure: d for d in compare(repeated(0, 1.0), repeated(100, 1.5)).differences}
    assert found["tpot_p50"].method == "repeats"
    assert found["tpot_p50"].verdict == "worse"
    assert not any("repeats" in line for line in compare(repeated(0, 1.0), repeated(100, 1.5)).warnings)


def test_other_questions_are_not_compared() -> None:
    one = result(load(run(1, count=20)))
    other = result(
        load(run(2, count=20)), config={"load": {"rate": 2.0}, "workload": {"kind": "random"}, "processes": 3}
    )
    assert config_differences(one, other) == ["load.rate: 1.0 → 2.0", "workload.output_tokens: 11 → not set"]
    with pytest.raises(UsageError, match=r"load\.rate: 1\.0 → 2\.0"):
        compare(one, other)
    assert compare(one, other, anyway=True).warnings[0].startswith("DIFFERENT QUESTIONS")
    with pytest.raises(UsageError, match="No load is in both"):
        compare(one, result(load(run(1, count=20), name="rate 2")))


def test_what_else_changed_is_said() -> None:
    one = result(load(run(1, count=20)))
    other = result(
        load(run(1, count=20)), targets=[Target(name="engine", url="", model="m", engine_version="2")]
    )
    other.environment.versions = {"vllm": "2"}
    said = " ".join(compare(one, other).warnings)
    assert "version of vllm: None → 2" in said
    assert "engine_version" in said
    assert "fewer than 3 repeats" in said


def test_new_failures_are_worse() -> None:
    ill = [r if n % 3 else refused(n, r.scheduled) for n, r in enumerate(run(1))]
    found = {d.measure: d for d in compare(result(load(run(1))), result(load(ill))).differences}
    assert found["failed"].verdict == "worse"


def test_a_baseline_is_small_and_still_compares(tmp_path: Path) -> None:
    full = result(load(run(1)))
    write(full, tmp_path / "full.json")
    write(thin(full), tmp_path / "thin.json")
    assert (tmp_path / "thin.json").stat().st_size < (tmp_path / "full.json").stat().st_size
    found = compare(read(tmp_path / "thin.json"), result(load(run(2, slower=1.3))))
    names = {d.measure: d for d in found.differences}
    assert "gap_p99" not in names
    assert names["tpot_p50"].verdict == "worse"
    assert {d.measure for d in found.worse(0.05)} >= {"ttft_p50", "tpot_p50"}
    assert found.worse(bound=5.0) == []


# Pairs -------------------------------------------------------------------------------------------------


def test_what_a_gateway_adds_in_turns() -> None:
    """Six rounds; both ask at the same times of the same server, and one is 2 ms later."""
    phases = [
        load(run(block, count=40, target=name, added=added), block=block)
        for block in range(6)
        for name, added in (("engine", 0.0), ("gateway", 0.002))
    ]
    found = {one.measure: one for one in paired(result(*phases), "engine", "gateway")}
    assert found["ttft_p50"].added.value == pytest.approx(0.002)
    assert found["ttft_p50"].verdict == "worse"
    assert found["ttft_p50"].rounds == 6
    assert found["tpot_p50"].verdict == "within noise"


def test_what_a_gateway_adds_request_by_request() -> None:
    direct = run(1, count=300)
    mixed = [
        msgspec.structs.replace(r, target="gateway", first=(r.first or 0) + 0.02) if n % 2 else r
        for n, r in enumerate(direct)
    ]
    found = {one.measure: one for one in paired(result(load(mixed)), "engine", "gateway")}
    assert found["ttft_p50"].rounds == 20
    assert found["ttft_p50"].added.low < 0.02 < found["ttft_p50"].added.high
    assert found["ttft_p50"].verdict == "worse"
    assert "requests" not in found


def test_one_round_is_none() -> None:
    phases = [load(run(1, count=4, target=name)) for name in ("engine", "gateway")]
    with pytest.raises(UsageError, match="1 rounds asked both"):
        paired(result(*phases), "engine", "gateway")
    both = [Target(name=name, url="", model="m") for name in ("engine", "gateway")]
    assert "is not known: 1 rounds asked both" in view(result(*phases, targets=both)).remarks[0]


# Curves, plans, prices, doubts ---------------------------------------------------------------------------


def point(rate: float, latency: float, delivered: int) -> CurvePoint:
    """Requests of one token each over ten seconds."""
    asked = [answer(n, n * 10 / delivered, ttft=latency, tokens=1) for n in range(delivered)]
    return CurvePoint(
        name=f"rate {rate:g}", load=rate, measures=measure(asked, slo=Slo(ttft=500), resamples=5)
    )


def test_where_a_curve_bends() -> None:
    points = [point(1, 0.1, 10), point(2, 0.11, 20), point(4, 0.3, 40), point(8, 4.0, 50)]
    bend, limit = knee(points), highest_within(points)
    assert bend is not None
    assert bend.load == 2  # tokens/s over seconds: 100, 180, 130, 10
    assert limit is not None
    assert limit.load == 4  # the last one whose first tokens come within half a second
    assert knee(points[:2]) is None
    assert knee([point(1, 0.1, 10), point(2, 0.1, 20), point(4, 0.1, 40)]) is None
    assert highest_within([point(8, 4.0, 50)]) is None


def test_rates_and_numbers_at_once_are_not_one_curve() -> None:
    found = sweep()
    alone = load(
        [answer(n, float(n)) for n in range(5)], name="1 at once", load={"kind": "closed", "concurrency": 1}
    )
    found.phases.insert(0, alone)
    assert [point.name for point in view(found).curve("engine")] == ["rate 1", "rate 2", "rate 4"]


def test_prices() -> None:
    found = cost(Prediction(usd_per_hour=3.6), measure([answer(tokens=1, ended=1.0)], resamples=5))
    assert found is not None  # one output token and twenty of input in a second, 0.001 dollars a second
    assert found.output_tokens_per_usd == pytest.approx(1000)
    assert found.usd_per_million_tokens == pytest.approx(1000 / 21)
    assert cost(Prediction(), measure([answer()], resamples=5)) is None


def test_a_plan_beside_what_came_true() -> None:
    plan = {"accelerator": "cpu", "engine": "vllm", "engine_version": "0.32.0"}
    assert prediction(plan) == Prediction(hardware="cpu")
    said = Prediction(
        hardware="1 × h100", tokens_per_second=200.0, batch=8, tokens_per_second_batch=900.0, memory_bytes=100
    )
    seen = Samples(at=[0, 1], series={"gpu0_memory_bytes": [50.0, None], "gpu1_memory_bytes": [80.0, 70.0]})
    found = {truth.what: truth for truth in truths(said, [measure([answer()], resamples=5)], [seen])}
    assert found["one request alone"].measured == pytest.approx(100.0)
    assert found["one request alone"].ratio == pytest.approx(0.5)
    assert found["memory"].ratio == pytest.approx(0.8)
    assert memory_used([])[0] is None


def test_one_load_says_one_thing_of_a_plan() -> None:
    said = Prediction(hardware="1 × h100", tokens_per_second=200.0, tokens_per_second_batch=900.0)

    def told(*loads: list[Record]) -> list[str]:
        measured = [measure(records, resamples=5) for records in loads]
        return [truth.what for truth in truths(said, measured, []) if truth.unit == "tokens/s"]

    alone, together = [answer(0)], [answer(0), answer(1)]
    assert told(alone) == ["one request alone"]
    assert told(together) == ["all together"]
    assert told(alone, together) == ["one request alone", "all together"]


def test_a_late_client_is_not_believed() -> None:
    late = load([answer(n, float(n), sent=n + 0.02) for n in range(100)])
    assert client_limited(late, measure(late.records, resamples=5))
    assert any(
        line.startswith("CLIENT-LIMITED") for line in of_load([late], measure(late.records, resamples=5))
    )
    assert not client_limited(load(run(1)), measure(run(1), resamples=5))


# Samples -----------------------------------------------------------------------------------------------


def test_the_platforms_page() -> None:
    page = """# TYPE chutes_engine_running_requests gauge
chutes_engine_up{chute="a",instance="1"} 1.0
chutes_engine_running_requests{chute="a",instance="1"} 3.0
chutes_engine_running_requests{chute="a",instance="2"} 4.0
chutes_engine_running_requests{chute="b",instance="3"} 9.0
chutes_engine_kv_cache_usage_ratio{chute="a",instance="1"} 0.25
chutes_engine_kv_cache_usage_ratio{chute="a",instance="2"} 0.5
"""
    assert of_chute("a", page) == {"engine_running_requests": 7.0, "engine_kv_cache_usage_ratio": 0.5}


def test_who_is_not_there_is_given_up_and_named() -> None:
    class Now:
        name = "now"
        looks = 0

        def read(self) -> dict[str, float]:
            self.looks += 1
            if self.looks == 2:
                raise NotThere("a hole")
            return {"value": float(self.looks)}

        def close(self) -> None:
            self.closed = True

    here = Now()
    with Sampler(
        [here, EngineMetrics("vllm", "http://127.0.0.1:9/metrics", "secret")], every=0.02
    ) as sampler:
        while here.looks < 6:
            pass
    samples = sampler.samples
    assert samples.series["value"][:2] == [1.0, 3.0]
    assert len(samples.at) == len(samples.series["value"])
    assert "does not answer" in samples.absent["engine metrics"]
    assert "secret" not in str(samples.absent)
    assert here.closed


def test_a_process_that_works_is_seen() -> None:
    import os

    source = Processes(os.getpid())
    assert source.read()["engine_memory_bytes"] > 1e6
    sum(range(2_000_000))
    assert source.read()["engine_cpu_cores"] > 0
    with pytest.raises(NotThere):
        Processes(2**22 + 1).read()


# What one looks at --------------------------------------------------------------------------------------


def sweep() -> Result:
    phases = [
        load([answer(n, n / rate, ttft=0.05 * rate, tokens=6) for n in range(30)], name=f"rate {rate}",
             load={"kind": "poisson", "rate": float(rate)})
        for rate in (1, 2, 4)
    ]  # fmt: skip
    phases[0].samples = Samples(at=[0.0, 1.0, 2.0], series={"engine_running_requests": [1.0, None, 2.0]})
    return result(*phases, slo={"ttft": 150.0}, config={"a": "<script>"})


def test_tables_say_what_was_measured() -> None:
    one = table.text(view(result(load([*run(1, count=20), refused(21, 21.0)]))))
    assert "20 of 21 requests, 1 FAILED" in one
    assert "http_503 × 1" in one
    assert re.search(r"TTFT +\d+\.\d+ \[", one)
    many = table.text(view(sweep()))
    assert re.search(r"rate 2 .*← highest within SLO", many)
    assert max(map(len, table.text(view(sweep())).splitlines())) < 160
    both = table.comparison(compare(result(load(run(1))), result(load(run(2, slower=1.3)))))
    assert re.search(r"TPOT p50, ms .* worse", both)


def test_pictures_are_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots.picture(view(sweep()), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert plots.svg(view(result(load([answer()]))), plots.curve, plots.LIGHT) == ""


def test_a_report_needs_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    html.write(view(sweep()), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<picture>") == 3
    assert page.count('alt="') == 3
    assert page.count("<table") == page.count("</table>")
    assert 'scope="row"' in page
    assert "prefers-color-scheme: dark" in page


def test_nothing_measured_is_shown_as_nothing(tmp_path: Path) -> None:
    empty = result(load([]))
    assert "engine: m" in table.text(view(empty))
    only_errors = view(result(load([refused(n, float(n)) for n in range(3)])))
    assert "3 FAILED" in table.text(only_errors)
    pytest.importorskip("matplotlib")
    plots.picture(only_errors, tmp_path / "p.png")
    assert "Nothing was measured" in html.page(view(empty))
