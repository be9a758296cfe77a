"""The same engine and workload measured by us and by `vllm bench serve`, in turns: do they say the same?

vLLM's own benchmark is started out of the engine's environment that is here. Both read prompts of the same
exact lengths, different ones each time, as the second to ask would find the first one's in the prefix cache.
Both keep the same number of requests under way. vLLM counts latencies from when a request is sent; so do the
figures of ours that stand beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import tempfile
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import msgspec
import numpy as np
import psutil

from benchmarks.harness import environment, targets, tokens
from benchmarks.harness.measures import measure
from benchmarks.harness.noise import Figure, of_blocks
from benchmarks.harness.options import COUNT
from benchmarks.harness.result import replace_file
from benchmarks.harness.running import Session, Wanted, interruptible, session
from benchmarks.harness.schedule import Load
from benchmarks.harness.summary import summary
from benchmarks.harness.targets import Target
from benchmarks.harness.workloads import COMPLETIONS, Wish
from chutes.cli import output
from chutes.exception import ChutesError, UsageError

PROGRAM = '''
import json
from vllm.benchmarks.datasets import datasets
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

class Row(dict):
    def to_dict(self):
        return dict(self)

class Pandas:
    """What it uses of pandas to read the file of prompts, where the engine's environment has none."""
    columns = ["prompt", "output_tokens"]

    def read_json(self, path_or_buf, lines):
        self.rows = [Row(json.loads(line)) for line in open(path_or_buf)]
        return self

    def iterrows(self):
        return enumerate(self.rows)

datasets.pd = Pandas()
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
'''
"""What `vllm bench serve` does. The console script fails in the CPU build, whose package has another name."""
BENCH_SECONDS = 1800.0

MEASURES = {
    "TTFT, median ms": "median_ttft_ms",
    "TTFT, mean ms": "mean_ttft_ms",
    "TPOT, median ms": "median_tpot_ms",
    "TPOT, mean ms": "mean_tpot_ms",
    "gap (their ITL), median ms": "median_itl_ms",
    "E2E, median ms": "median_e2el_ms",
    "requests/s": "request_throughput",
    "output tokens/s": "output_throughput",
}
"""As printed → the key, which is the same in both results."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", default=os.environ.get("MODEL", ""), help="deployed if it is not (default: $MODEL)")
    add("--chute", default="templates.vllm_chute:chute", metavar="REF", help="default: %(default)s")
    add("-c", "--concurrency", type=COUNT, default=2, metavar="N", help="default: %(default)s")
    add("-n", "--requests", type=COUNT, default=20, metavar="N", help="a round (default: %(default)s)")
    add("--rounds", type=COUNT, default=5, metavar="N", help="default: %(default)s")
    add("--input-tokens", type=COUNT, default=128, metavar="N", help="default: %(default)s")
    add("--output-tokens", type=COUNT, default=64, metavar="N", help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("-o", "--output", type=Path, metavar="FILE", help="write all rounds as JSON")


def run(options: argparse.Namespace, command: str) -> int:
    wish = Wish(input_tokens=options.input_tokens, output_tokens=options.output_tokens)
    wanted = Wanted(
        model=options.model,
        chute=options.chute,
        targets=[targets.ENGINE],
        wish=wish,
        seed=options.seed,
    )
    load = Load(concurrency=options.concurrency, requests=options.requests)
    with session(wanted, load, command) as measuring:
        begun = environment.before()
        rounds = asyncio.run(_rounds(measuring, load, wish, options.rounds))
    if len(rounds) < 2:
        output.note("Fewer than two rounds: nothing to compare.")
        return 130 if measuring.stop.is_set() else 1
    found = compared(rounds)
    for line in lines(found, len(rounds)):
        output.say(line)
    if options.output:
        place = msgspec.to_builtins(environment.after(begun))
        medians = {
            name: {"ours": a, "vllm": b, "ratio": msgspec.to_builtins(r)} for name, (a, b, r) in found.items()
        }
        document = {"command": command, "environment": place, "measures": medians, "rounds": rounds}
        replace_file(options.output, json.dumps(document, indent=1).encode() + b"\n")
        output.note(f"written to {options.output}")
    return 0


async def _rounds(measuring: Session, load: Load, wish: Wish, rounds: int) -> list[dict[str, Any]]:
    """Each of both in every round, in turns: [{"ours": figures, "vllm": figures}, …]."""
    (target,) = measuring.targets
    program, tokenizer = _their_place(target)
    order = ["ours", "vllm"]
    Random(f"{measuring.wanted.seed}:rounds").shuffle(order)
    found: list[dict[str, Any]] = []
    with interruptible(measuring.stop):
        await measuring.warm_up(load)
        for number in range(rounds):
            order.reverse()  # ABBA: what drifts from one round to the next meets both alike
            figures: dict[str, Any] = {"order": list(order)}
            for who in order:
                if measuring.stop.is_set():
                    return found
                output.note(f"round {number + 1} of {rounds}: {who}")
                if who == "ours":
                    (phase,) = await measuring.phases(load)
                    figures[who] = summary(measure(phase.records, exact=True, resamples=2))
                else:
                    prompts = await asyncio.to_thread(_prompts, target, wish, load.requests)
                    try:
                        figures[who] = await asyncio.to_thread(
                            _theirs, target, wish, load, prompts, program, tokenizer
                        )
                    except ChutesError:
                        if not measuring.stop.is_set():  # else it had the same signal
                            raise
            if not measuring.stop.is_set():
                found.append(figures)
    return found


def _prompts(target: Target, wish: Wish, count: int) -> list[str]:
    random = Random(secrets.token_hex(8))
    return tokens.exact([wish.input_tokens] * count, random, tokens.remote(target.address), chat=False)


def _theirs(
    target: Target, wish: Wish, load: Load, prompts: list[str], program: Path, tokenizer: str
) -> dict[str, Any]:
    """One run of `vllm bench serve`; the figures that it writes.

    Raises:
        ChutesError: it failed, or not all of its requests were answered.
    """
    with tempfile.TemporaryDirectory(prefix="against-vllm-") as directory:
        file = Path(directory) / "prompts.jsonl"
        texts = [{"prompt": text, "output_tokens": wish.output_tokens} for text in prompts]
        file.write_bytes(b"\n".join(map(msgspec.json.encode, texts)) + b"\n")
        command = [
            str(program),
            *("-c", PROGRAM),
            *("--backend", "openai", "--base-url", targets.url_of(target.address), "--endpoint", COMPLETIONS),
            *("--model", target.address.model, "--tokenizer", tokenizer),
            *("--dataset-name", "custom", "--dataset-path", str(file), "--disable-shuffle"),
            *("--skip-chat-template", "--custom-output-len", "-1", "--num-prompts", str(len(prompts))),
            *("--max-concurrency", str(load.concurrency), "--ignore-eos", "--temperature", "0"),
            *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"),
            *("--save-result", "--result-dir", directory, "--result-filename", "theirs.json"),
            *("--ready-check-timeout-sec", "0", "--num-warmups", "0", "--disable-tqdm"),
        ]
        done = subprocess.run(
            command,
            env={**os.environ, "OPENAI_API_KEY": target.address.key, "HF_HUB_OFFLINE": "1"},
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=BENCH_SECONDS,
            check=False,
        )
        written = Path(directory) / "theirs.json"
        if done.returncode or not written.exists():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ChutesError(f"`vllm bench serve` failed: {said[-1] if said else done.returncode}")
        theirs = json.loads(written.read_bytes())
    wanted = len(prompts) * wish.output_tokens
    if theirs["completed"] != len(prompts) or theirs["total_output_tokens"] != wanted:
        raise ChutesError(
            f"`vllm bench serve` had {theirs['completed']} answers with {theirs['total_output_tokens']} "
            f"tokens; {len(prompts)} with {wanted} were asked for."
        )
    del theirs["tokenizer_id"]  # a directory of this machine
    return {key: value for key, value in theirs.items() if not isinstance(value, list)}


def _their_place(target: Target) -> tuple[Path, str]:
    """The Python of the engine's environment and the directory of its model, from its command line.

    Raises:
        UsageError: it is not vLLM.
    """
    assert target.deployed is not None
    with contextlib.suppress(psutil.Error):  # it has just ended
        process = psutil.Process(target.deployed.pid or 0)
        for one in [process, *process.children(recursive=True)]:
            words = one.cmdline()
            if target.deployed.engine == "vllm" and "--model" in words:
                return Path(words[0]), words[words.index("--model") + 1]
    raise UsageError(f"{target.address.model} is not served by vLLM on this machine.")


def compared(rounds: list[dict[str, Any]]) -> dict[str, tuple[float, float, Figure]]:
    """By measure: the median over rounds of ours and of theirs, and ours / theirs with the interval of its
    mean over rounds. Pure."""
    found: dict[str, tuple[float, float, Figure]] = {}
    for name, key in MEASURES.items():
        # Ours of the same definition: from when it was sent, which in a closed loop is when its turn came.
        pairs = [(float(one["ours"][key]), float(one["vllm"][key])) for one in rounds]
        ratios = of_blocks(np.array([a / b for a, b in pairs]), 0.95)
        found[name] = (median([a for a, _ in pairs]), median([b for _, b in pairs]), ratios)
    return found


def lines(found: dict[str, tuple[float, float, Figure]], rounds: int) -> list[str]:
    head = (
        f"{f'medians of {rounds} rounds':28}{'ours':>10}{'vllm':>10}{'apart':>9}   of rounds in pairs, 95 %"
    )
    return [
        head,
        *(
            f"{name:28}{ours:>10.2f}{theirs:>10.2f}{ours / theirs - 1:>+9.1%}"
            f"   {ratio.value - 1:+.1%} [{ratio.low - 1:+.1%}, {ratio.high - 1:+.1%}]"
            for name, (ours, theirs, ratio) in found.items()
        ),
    ]
