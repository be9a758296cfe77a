"""The figures of one phase, flat, under the names that vLLM has for them. Pure."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.measures import Measures

VLLM_NAMES = {"ttft": "ttft_sent", "tpot": "tpot", "itl": "gap", "e2el": "e2el_sent"}
"""What vLLM calls so → what has its definition here."""
OWN_NAMES = {
    "client_queue_time": "lag",  # vLLM's name too, of what it added to its definitions later
    "e2el_including_client_queue": "e2el",
    "ttft_scheduled": "ttft",
    "itl_per_token": "itl",
    "ntpot": "ntpot",
}


def summary(measures: Measures) -> dict[str, Any]:
    """Flat, for dashboards: under the names of `vllm bench serve` what has its definition, so that times
    there count from when a request was sent. Milliseconds; rates a second."""
    rate = {name: figure.value for name, figure in measures.rates.items()}
    flat: dict[str, Any] = {
        "duration": measures.seconds,
        "completed": measures.completed,
        "failed": measures.failed,
        "total_input_tokens": measures.totals.get("input_tokens", 0),
        "total_output_tokens": measures.totals.get("output_tokens", 0),
        "request_throughput": rate.get("requests", 0.0),
        "request_goodput": rate.get("goodput"),
        "slo_attainment": measures.attainment,
        "input_throughput": rate.get("input_tokens", 0.0),
        "output_throughput": rate.get("output_tokens", 0.0),
        "total_token_throughput": rate.get("total_tokens", 0.0),
        "image_throughput": rate.get("images", 0.0),
        "max_output_tokens_per_s": measures.peak_output_tokens,
        "max_concurrent_requests": measures.peak_in_flight,
        "prefix_cache_hit_share": measures.cached_share,
        "errors": measures.errors,
        "checks": measures.checks,
    }
    for name, own in {**VLLM_NAMES, **OWN_NAMES}.items():
        if latency := measures.latencies.get(own):
            flat[f"mean_{name}_ms"] = latency.mean.value * 1e3
            flat[f"median_{name}_ms"] = latency.percentiles[50].value * 1e3
            flat[f"std_{name}_ms"] = latency.std * 1e3
            for percentile, at in latency.percentiles.items():
                flat[f"p{percentile}_{name}_ms"] = at.value * 1e3
    return flat
