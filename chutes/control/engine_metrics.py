"""Engines' own metrics under names that do not depend on the engine.

Read in their sources: vLLM 0.32 `v1/metrics/loggers.py`, SGLang 0.5.23
`srt/observability/metrics_collector.py` (which shows them only with `--enable-metrics`). Counters end in
`_total` on the wire, whatever the sources call them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class EngineMetric:
    """One metric under its common name."""

    name: str
    kind: Literal["gauge", "counter"]
    text: str
    of: dict[str, str]
    """What each engine calls it."""
    most: bool = False
    """Of several series of one instance (data parallel ranks) the largest counts, not their sum."""


METRICS = (
    EngineMetric(
        "chutes_engine_running_requests", "gauge", "Requests in the engine's current batch.",
        {"vllm": "vllm:num_requests_running", "sglang": "sglang:num_running_reqs",
         "diffusers": "diffusers:images_running"},
    ),
    EngineMetric(
        "chutes_engine_waiting_requests", "gauge", "Requests that wait inside the engine.",
        {"vllm": "vllm:num_requests_waiting", "sglang": "sglang:num_queue_reqs",
         "diffusers": "diffusers:images_waiting"},
    ),
    EngineMetric(
        "chutes_engine_kv_cache_usage_ratio", "gauge", "Share of the KV cache in use, 0 to 1.",
        {"vllm": "vllm:kv_cache_usage_perc", "sglang": "sglang:token_usage"}, most=True,
    ),
    EngineMetric(
        "chutes_engine_prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.",
        {"vllm": "vllm:prefix_cache_queries_total", "sglang": "sglang:prompt_tokens_total"},
    ),
    EngineMetric(
        "chutes_engine_prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
        {"vllm": "vllm:prefix_cache_hits_total", "sglang": "sglang:cached_tokens_total"},
    ),
    EngineMetric(
        "chutes_engine_prompt_tokens_total", "counter", "Prompt tokens taken in.",
        {"vllm": "vllm:prompt_tokens_total", "sglang": "sglang:prompt_tokens_total"},
    ),
    EngineMetric(
        "chutes_engine_generation_tokens_total", "counter", "Tokens generated.",
        {"vllm": "vllm:generation_tokens_total", "sglang": "sglang:generation_tokens_total"},
    ),
    EngineMetric(
        "chutes_engine_preemptions_total", "counter", "Requests put back for lack of KV cache.",
        {"vllm": "vllm:num_preemptions_total", "sglang": "sglang:num_retracted_requests_total"},
    ),
)  # fmt: skip


def read(engine: str, page: str) -> dict[str, float]:
    """An engine's `/metrics` page → values by common name; only those that the page has.

    Raises:
        ValueError: a line that matters is not in Prometheus' format.
    """
    wanted = {metric.of[engine] for metric in METRICS if engine in metric.of}
    # The whole page is histograms by the hundred; only the lines that matter are parsed.
    lines = [line for line in page.splitlines() if _name(line) in wanted]
    values: dict[str, list[float]] = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            values.setdefault(sample.name, []).append(sample.value)
    found: dict[str, float] = {}
    for metric in METRICS:
        if series := values.get(metric.of.get(engine, "")):
            found[metric.name] = _together(series, metric.most)
    return found


def _name(line: str) -> str:
    return line.partition("{")[0].partition(" ")[0]


def _together(series: Iterable[float], most: bool) -> float:
    return max(series) if most else sum(series)
