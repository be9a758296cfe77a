"""The screen of `chutes plan`: what stands on it, how much, and that every terminal can print it."""

from __future__ import annotations

import pytest

from chutes.chute.base import Chute
from chutes.chute.loader import load
from chutes.cli import output, plan, plan_next, plan_screen
from chutes.exception import CannotPlan
from chutes.hardware import planner, profiles
from chutes.hardware.choice import PlanResult, Request
from chutes.hardware.devices import Machine
from chutes.model import catalogue

SHELF = profiles.load()
GIB = 1 << 30


def planned(name: str, **request: object) -> PlanResult:
    facts = catalogue.find(name)
    assert facts is not None
    return planner.plan_catalogue(name, facts, Request(**request), SHELF)  # pyright: ignore


def screen(name: str, why: bool = False, **request: object) -> list[str]:
    return plan_screen.lines(planned(name, **request), SHELF, 100, why=why)


@pytest.mark.parametrize("name", catalogue.names())
def test_one_screen(name: str) -> None:
    drawn = screen(name)
    assert len(drawn) <= 44
    assert max(map(len, drawn)) <= 104
    assert len(screen("Qwen/Qwen3-8B")) <= 40


def test_the_answer_comes_first_and_the_rest_on_demand() -> None:
    drawn = screen("Qwen/Qwen3-8B")
    labels = [line.split()[0] for line in drawn if line[:2] == "  " and line[2:3].strip()]
    order = [labels.index(one) for one in ("choice", "each", "tier", "vllm", "chute", "next", "rejected")]
    assert order == sorted(order)
    assert len(screen("Qwen/Qwen3-8B", why=True)) > len(drawn)
    assert any("--why" in line for line in drawn)


@pytest.mark.parametrize("name", ["stabilityai/stable-diffusion-xl-base-1.0", "BAAI/bge-large-en-v1.5"])
def test_no_cache_where_there_is_none(name: str) -> None:
    text = "\n".join(screen(name))
    assert "no cache" in text
    assert "▓" not in text
    assert "for one request" not in text
    assert ("vllm serve" in text) == ("bge" in name)


def test_throughput_shows_what_its_order_comes_from() -> None:
    text = "\n".join(screen("Qwen/Qwen3-8B", optimize="throughput"))
    assert text.count("M tokens/$") > 3


def test_unmet_bounds_do_not_read_as_does_not_fit() -> None:
    text = "\n".join(screen("Qwen/Qwen3-8B", max_price=0.1))
    assert "nothing meets --max-price 0.1" in text
    assert "does not fit" not in text


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "SmolLM2-135M-Instruct", "deepseek-ai/DeepSeek-V3.1"])
def test_the_chute_can_be_pasted(name: str, tmp_path) -> None:
    found = planned(name)
    assert found.choice is not None
    (tmp_path / "my_chute.py").write_text("\n".join(plan_next.source(found, found.choice, 87)))
    chute = load(f"{tmp_path / 'my_chute.py'}:chute").chute
    assert isinstance(chute, Chute)
    spec = chute.to_spec()
    assert spec.engine is not None
    assert spec.engine.args == found.choice.engine_args
    assert spec.engine.model == catalogue.canonical(name)
    assert spec.node_selector.gpu_count == found.choice.gpu_count
    assert plan_next.command(found, found.choice).startswith(f"vllm serve {catalogue.canonical(name)} ")


def test_a_processor_is_started_with_its_cache_and_has_no_estimate() -> None:
    machine = Machine(cpus=2, memory_total=24 * GIB, memory_available=20 * GIB)
    name = "meta-llama/Llama-3.2-1B-Instruct"
    facts = catalogue.find(name)
    assert facts is not None
    found = planner.plan_here(name, facts, Request(shorten=True), machine, SHELF)
    text = "\n".join(plan_screen.lines(found, SHELF, 100))
    assert "VLLM_CPU_KVCACHE_SPACE=" in text
    assert "not measured" in text
    full = planner.plan_here(name, facts, Request(shorten=True), Machine(2, GIB, GIB), SHELF)
    assert any("too little" in line for line in plan_screen.lines(full, SHELF, 100))


def test_every_terminal_can_print_it() -> None:
    for line in screen("Qwen/Qwen3-8B") + screen("openai/gpt-oss-120b"):
        output.writable(line, "ascii").encode("ascii")
        assert "?" not in output.writable(line, "ascii")
        assert output.writable(line, "utf-8") == line
    assert output.writable("█ ×", "latin-1") == "# x"


@pytest.mark.parametrize(("typed", "tokens"), [("32768", 32_768), ("32k", 32_000), ("32K", 32_768)])
def test_tokens_as_vllm_reads_them(typed: str, tokens: int) -> None:
    assert plan.request_of(plan.Asked(max_model_len=typed), SHELF).max_model_len == tokens


def test_tokens_that_are_no_number() -> None:
    with pytest.raises(CannotPlan, match="not a number of tokens"):
        plan.request_of(plan.Asked(max_model_len="lots"), SHELF)
