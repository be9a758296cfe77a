"""The size of KV cache that vLLM prints beside the size that is computed here, for every attention kind.

python -m benchmarks.kv_cache_size [NAME ...] [--output FILE]

Real vLLM starts on this machine's CPU with dummy weights of tiny models (kv_cache_models.py); the first run
makes its environment of gigabytes in $CHUTES_CACHE, or .cache. Without names all models are run and the table
goes to docs/kv-cache.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kv_cache_models import CASES, Case
from chutes.engine import environment
from chutes.engine.environment import Environment
from chutes.engine.release import find
from chutes.hardware.memory import cpu_kv_tokens
from chutes.hardware.versions import behaviour
from chutes.model.facts import ModelFacts

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).parent / "inside" / "kv_cache_size.py"

SECONDS_PER_MODEL = 120  # five to ten on two busy cores, after half a minute of imports

BLOCK = 128  # of the CPU engine


@dataclass(frozen=True)
class Compared:
    case: Case
    attention: str
    engine: int | None
    """As logged; None when it never came so far."""
    ours: int
    error: str
    """How the start went on to fail, where this CPU cannot compute what was planned."""


def run(cases: Sequence[Case], engine: Environment) -> list[Compared]:
    """Start the engine once for every case, one after another."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for case in cases:
            model = Path(folder) / case.name
            model.mkdir()
            (model / "config.json").write_text(json.dumps(case.config))
            jobs.append({"name": case.name, "model": str(model), "arguments": case.settings()})
        done = subprocess.run(
            [str(engine.python), str(SCRIPT)],
            check=False,
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            timeout=60 + SECONDS_PER_MODEL * len(jobs),
            env={
                "PATH": os.environ["PATH"],
                "HOME": folder,
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_LOGGING_COLOR": "0",
            },
        )
    if done.returncode:
        raise RuntimeError(f"{SCRIPT.name} failed:\n{done.stderr[-2000:]}")
    answers = {answer["name"]: answer for answer in map(json.loads, done.stdout.splitlines())}
    return [
        compare(case, answers[case.name], engine.release.version) for case in cases if case.name in answers
    ]


def compare(case: Case, answer: dict, version: str) -> Compared:
    facts = ModelFacts.from_config(case.config)
    settings = case.settings()
    # Where MLA is served without AMX the engine's own block is 16: it says which one it took.
    block = answer.get("block_size") or BLOCK
    ours = cpu_kv_tokens(
        facts,
        settings["kv_cache_memory_bytes"],
        block if facts.attention == "mla" else BLOCK,
        settings["max_model_len"],
        settings["max_num_batched_tokens"],
        settings["dtype"],
        behaviour("vllm", version),
        kv_cache_dtype=settings.get("kv_cache_dtype", "auto"),
        state_bytes=4 if answer.get("state_dtype") == "float32" else 0,
    )
    last = (answer.get("error") or "").strip().splitlines()
    return Compared(case, facts.attention, answer["tokens"], ours, last[-1] if last else "")


def table(found: Sequence[Compared]) -> str:
    lines = [
        "| model | attention | length | batch | dtype, KV | vLLM prints | computed | difference |",
        "|---|---|---:|---:|---|---:|---:|---:|",
    ]
    for one in found:
        settings = one.case.settings()
        kinds = f"{settings['dtype']}, {settings.get('kv_cache_dtype', 'auto')}"
        printed = f"{one.engine:,}" if one.engine is not None else "did not start"
        difference = f"{one.ours - one.engine:+,}".replace("+0", "0") if one.engine is not None else ""
        lines.append(
            f"| {one.case.about} | {one.attention} | {settings['max_model_len']:,} "
            f"| {settings['max_num_batched_tokens']:,} | {kinds} | {printed} | {one.ours:,} | {difference} |"
        )
    return "\n".join(lines)


def page(found: Sequence[Compared], version: str) -> str:
    exact = sum(one.engine == one.ours for one in found)
    failed = [one for one in found if one.error]
    text = f"""# KV cache: what vLLM prints, and what is computed

Written by `python -m benchmarks.kv_cache_size`; `tests/e2e/test_kv_cache_size.py` checks it.

vLLM {version} is started on a CPU with `--load-format dummy` for a tiny model of each attention kind, with
256 MiB for the KV cache, and logs `CPU KV cache size: N tokens`. Beside it stands what
`chutes.hardware.memory.cpu_kv_tokens` computes from config.json alone. {exact} of {len(found)} agree to the
token. `batch` is max_num_batched_tokens: it decides what windows and chunks hold.

{table(found)}

The number is the engine's: concurrency × length, rounded down. Of a model with windows, chunks or linear
layers it is not a capacity that a few long requests or many short ones could share at will.
"""
    for error in dict.fromkeys(one.error for one in failed):
        names = ", ".join(f"`{one.case.name}`" for one in failed if one.error == error)
        text += f"\nOf {names} the size was planned and logged; the start then ended with `{error}`\n"
    return text


def cache_dir() -> Path:
    return Path(os.environ.get("CHUTES_CACHE") or ROOT / ".cache").absolute()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "kv-cache.md")
    options = parser.parse_args()
    cases = [case for case in CASES if not options.names or case.name in options.names]
    release = find("vllm", "cpu")
    engine = asyncio.run(
        environment.ensure(release, cache_dir() / "engines", lambda what, _: print(what, file=sys.stderr))
    )
    found = run(cases, engine)
    print(table(found))
    for one in found:
        if one.error:
            print(f"{one.case.name}: after that, {one.error}")
    if not options.names:
        options.output.write_text(page(found, release.version))
        print(f"written to {options.output}")


if __name__ == "__main__":
    main()
