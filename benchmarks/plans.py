"""docs/plans.md: every model of the catalogue planned, with the memory of each GPU term by term.

python -m benchmarks.plans [--check]

Offline and without a GPU. `--check` writes nothing and fails when the document is not what would be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chutes.hardware import planner, profiles
from chutes.hardware.choice import Choice, PlanResult, Request, TierView
from chutes.hardware.compare import compare
from chutes.hardware.memory import RESERVE
from chutes.hardware.planner import USUAL_CONTEXT
from chutes.model import catalogue

DOCUMENT = Path(__file__).parents[1] / "docs" / "plans.md"
GIB = 1 << 30

# What the published platform offers with the input length that it offers it at (docs.litellm.ai, provider
# Chutes, January 2026).
OFFERED = {
    "MiniMaxAI/MiniMax-M2.1": 202_752,
    "moonshotai/Kimi-K2-Thinking": 262_144,
    "zai-org/GLM-4.6": 202_752,
    "zai-org/GLM-4.7": 202_752,
    "XiaomiMiMo/MiMo-V2-Flash": 262_144,
    "deepseek-ai/DeepSeek-V3.1": 163_840,
    "deepseek-ai/DeepSeek-V3.2": 163_840,
    "Qwen/Qwen3-32B": 40_960,
    "Qwen/Qwen3-14B": 40_960,
    "moonshotai/Kimi-K2-Instruct-0905": 262_144,
    "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8": 262_144,
    "Qwen/Qwen2.5-Coder-32B-Instruct": 32_768,
}

HEAD = (
    "model", "tokens", "hardware", "layout", "$/h", "total", "usable", "weights", "cache", "(safe)",
    "activations", "other", "graphs", "requests", "the tier",
)  # fmt: skip


def row(name: str, length: int, found: PlanResult) -> tuple[str, ...]:
    best, tier = found.choice, found.tier
    assert best is not None
    memory = best.per_gpu_bytes
    sizes = (
        memory.total, memory.usable, memory.weights, memory.kv_cache_expected, memory.kv_cache_safe,
        memory.peak_activation, memory.non_torch, memory.cuda_graph,
    )  # fmt: skip
    return (
        name,
        f"{length:,}" if length else "",  # a model that makes images has no context
        best.label if best.fits else f"none; {best.label} is the nearest",
        layout(best),
        f"{best.price_per_hour:.2f}" if best.price_per_hour is not None else "",
        *(f"{size / GIB:.2f}" for size in sizes),
        f"{best.max_concurrency_safe:.1f}" if best.kv_cache_needed_bytes_per_gpu else "",
        verdict(tier) if tier is not None else "",
    )


def verdict(tier: TierView) -> str:
    if tier.agrees:
        return f"{tier.name}: does"
    return f"{tier.name}: {'too little' if 'too little' in tier.verdict else 'more than needed'}"


def layout(best: Choice) -> str:
    if not best.max_model_len:
        return ""
    words = f"TP{best.tensor_parallel_size}"
    if best.pipeline_parallel_size > 1:
        words += f" PP{best.pipeline_parallel_size}"
    if best.expert_parallel:
        words += " EP"
    return f"{words}, batch {best.max_num_seqs}"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    lines = [HEAD, tuple("---" if i < 4 else "---:" for i in range(len(HEAD))), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def document() -> str:
    shelf = profiles.load()
    offered = []
    for name, length in OFFERED.items():
        facts = catalogue.find(name)
        assert facts is not None, name
        asked = Request(max_model_len=min(length, facts.max_model_len or length))
        offered.append(row(name, asked.max_model_len or 0, planner.plan_catalogue(name, facts, asked, shelf)))
    usual, not_planned = [], []
    for one in compare(Request(), shelf):
        if one.plan is None or one.plan.choice is None:
            not_planned.append(f"- {one.model}: {one.problem}")
        else:
            usual.append(row(one.model, one.plan.choice.max_model_len, one.plan))
    version = shelf.engines["vllm"]["cuda"].version
    lines = [
        "# Plans",
        "",
        "Written by `python -m benchmarks.plans`, offline; `chutes plan MODEL` shows any of them with its",
        "reasons. The cheapest hardware of `hardware_profiles.yaml` (prices of",
        f"{shelf.prices.date}) on which vLLM {version} holds one request of so many tokens, with",
        f"a reserve of {RESERVE / GIB:.2f} GiB on each GPU. Sizes are GiB of one GPU, the fullest:",
        "weights + cache + activations + other + graphs = usable. *Requests*: how many of that length the",
        "safe cache holds at once. *The tier*: what the size alone would have said",
        "(" + "; ".join(f"{t.name} {t.gpu_count} × {t.min_vram_gb_per_gpu} GB" for t in shelf.tiers) + ").",
        "",
        "## Models that the published platform offers, at the length that it offers",
        "",
        *table(offered),
        "",
        f"## The whole catalogue, at {USUAL_CONTEXT:,} tokens or the model's own limit",
        "",
        *table(usual),
        *(["", "Not planned:", "", *not_planned] if not_planned else []),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    if parser.parse_args().check:
        if not DOCUMENT.is_file() or DOCUMENT.read_text() != document():
            sys.exit("docs/plans.md is out of date: python -m benchmarks.plans")
        return
    DOCUMENT.write_text(document())
    print(f"{DOCUMENT} written")


if __name__ == "__main__":
    main()
