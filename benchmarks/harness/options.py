"""What is typed, as what is wanted: the options of `python -m benchmarks` and `chutes bench`."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.harness import deploying, schedule, targets, workloads
from benchmarks.harness.running import Wanted
from benchmarks.harness.schedule import Load
from benchmarks.harness.workloads import Wish
from chutes.exception import UsageError

RESULTS = Path("bench-results")
"""Beside where it was called, as an installed package must not write into itself."""
CONCURRENCY, SECONDS = 4, 60.0
"""Where no load is asked for: enough users to see batching, short enough to wait for."""
SECRET = ("--key",)


Number = TypeVar("Number", int, float)


def _number(
    kind: Callable[[str], Number], what: str, allowed: Callable[[Number], bool]
) -> Callable[[str], Number]:
    """A type of argparse, whose complaint says `what` the option takes."""

    def read(text: str) -> Number:
        try:
            number = kind(text)
            if not (math.isfinite(number) and allowed(number)):
                raise ValueError
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is not {what}") from None
        return number

    return read


COUNT = _number(int, "a whole number from 1 on", lambda n: n >= 1)
WHOLE = _number(int, "a whole number from 0 on", lambda n: n >= 0)
POSITIVE = _number(float, "a number above 0", lambda x: x > 0)
NUMBER = _number(float, "a number from 0 on", lambda x: x >= 0)


def add_targets(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked")
    add = group.add_argument
    add("-m", "--model", default=os.environ.get("MODEL", ""), help="deployed if it is not (default: $MODEL)")
    add("--chute", default=deploying.REF, metavar="REF", help="what to deploy it with (default: %(default)s)")
    add(
        "-t",
        "--target",
        action="append",
        metavar="TARGET",
        help=f"{targets.GATEWAY} (default), {targets.ENGINE} (directly), URL or NAME=URL; several are "
        "compared in one run, the first is what the others are set beside",
    )
    add("--key", action="append", default=[], help="for URLs, in their order (default: $OPENAI_API_KEY)")
    add("--insecure", action="store_true", help="take any TLS certificate")
    add(
        "--interleave",
        choices=["requests", "rounds"],
        default="requests",
        help="several targets take turns by request, or each has the load to itself in turn",
    )


def add_workload(parser: argparse.ArgumentParser) -> None:
    kinds = "; ".join(f"{name}: {text}" for name, text in workloads.KINDS.items())
    group = parser.add_argument_group("workload")
    add = group.add_argument
    add("-w", "--workload", choices=workloads.KINDS, default="random", metavar="KIND", help=kinds)
    add("--chat", action="store_true", help="/v1/chat/completions where there is a choice")
    add("--input-tokens", type=COUNT, default=256, metavar="N", help="of a prompt (default: %(default)s)")
    add("--output-tokens", type=COUNT, default=128, metavar="N", help="of an answer (default: %(default)s)")
    add("--spread", type=NUMBER, default=0.0, metavar="X", help="0.2: lengths are even over ±20 %%")
    add("--prefix-tokens", type=WHOLE, default=0, metavar="N", help="in front of every prompt, shared")
    add("--prefixes", type=COUNT, default=1, metavar="N", help="different ones of those")
    add(
        "--turns",
        type=COUNT,
        default=None,
        metavar="N",
        help="of a conversation (default: 4 for turns, else 1)",
    )
    add("--file", default="", help="of the workloads jsonl and sharegpt")
    add(
        "--no-force",
        action="store_true",
        help="let the model end its answers; for servers without ignore_eos",
    )
    add("--no-stream", action="store_true", help="whole answers: no TTFT, no TPOT")
    add("--temperature", type=NUMBER, default=0.0, metavar="T", help="default: %(default)s")
    add("--size", default="1024x1024", help="of images (default: %(default)s)")
    add("--steps", type=COUNT, default=0, metavar="N", help="of images (default: the model's own)")
    add("--tokenizer", default="", metavar="PATH", help="a tokenizer.json; default: the server is asked")
    add("--seed", type=int, default=0, help="of prompts, arrivals and turns (default: %(default)s)")
    add("--salt", default="", help="the same prompts as in a run that printed it; default: new ones")


def add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load", "Open loop with --rate or --trace, else a closed loop.")
    add = group.add_argument
    add("-r", "--rate", type=POSITIVE, default=0.0, metavar="R", help="requests per second, to all targets")
    add(
        "--arrival",
        choices=["poisson", "gamma", "constant"],
        help="of an open loop (default: poisson, or gamma with --burstiness)",
    )
    add("--burstiness", type=POSITIVE, default=None, metavar="K", help="1 is Poisson, less comes in bursts")
    add("--trace", default="", metavar="FILE", help='JSON lines with "seconds" or "timestamp" (ms)')
    add("--trace-speed", type=POSITIVE, default=1.0, metavar="X", help="2: twice as fast")
    add(
        "-c", "--concurrency", type=COUNT, default=0, metavar="N",
        help=f"users of a closed loop (default: {CONCURRENCY})",
    )  # fmt: skip
    add("--ramp", type=NUMBER, default=0.0, metavar="S", help="seconds over which they arrive")
    add("-n", "--requests", type=COUNT, default=0, metavar="N", help="or conversations: at most so many")


def add_times(parser: argparse.ArgumentParser, seconds: float | None = None) -> None:
    group = parser.add_argument_group("times, in seconds")
    add = group.add_argument
    add(
        "-d", "--duration", type=POSITIVE, default=seconds, metavar="S",
        help=f"nothing is begun after it (default: {seconds or SECONDS:g}, or until --requests are sent)",
    )  # fmt: skip
    add("--warmup", type=NUMBER, default=0.0, metavar="S", help="at the beginning of a load, not measured")
    add("--cooldown", type=NUMBER, default=0.0, metavar="S", help="before its end, not measured")
    add("--think", type=NUMBER, default=0.0, metavar="S", help="before the next turn of a conversation")
    add("--timeout", type=POSITIVE, default=600.0, metavar="S", help="of a request (default: %(default)s)")
    add(
        "--drain", type=NUMBER, default=300.0, metavar="S",
        help="wait so long for answers after the load, then give up (default: %(default)s)",
    )  # fmt: skip


def add_rest(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measuring")
    add = group.add_argument
    add(
        "--slo", nargs="+", default=[], metavar="NAME:MS",
        help="what a good request meets, as ttft:500 tpot:50 e2el:20000",
    )  # fmt: skip
    add("--repeats", type=COUNT, default=1, metavar="N", help="of every load; their spread is the noise")
    add("--warmup-requests", type=WHOLE, default=0, metavar="N", help="before the first load; not kept")
    cores = os.cpu_count() or 1
    add(
        "-p", "--processes", type=COUNT, default=max(1, min(4, cores // 4)), metavar="N",
        help="client processes (default here: %(default)s)",
    )  # fmt: skip
    add("-o", "--output", type=Path, metavar="FILE", help=f"the result (default: {RESULTS}/TIME-MODEL.json)")
    add("--no-pictures", action="store_true", help="write no PNG and no HTML beside it")


def wanted(options: argparse.Namespace) -> Wanted:
    """Raises UsageError: an objective that cannot be read."""
    turns = options.turns or (4 if options.workload == "turns" else 1)
    return Wanted(
        model=options.model,
        chute=options.chute,
        targets=options.target or [targets.GATEWAY],
        keys=options.key,
        verify=not options.insecure,
        wish=Wish(
            kind=options.workload,
            chat=options.chat,
            input_tokens=options.input_tokens,
            output_tokens=options.output_tokens,
            spread=options.spread,
            prefix_tokens=options.prefix_tokens,
            prefixes=options.prefixes,
            turns=turns,
            file=options.file,
            force=not options.no_force and options.workload not in ("text", "sharegpt"),
            stream=not options.no_stream,
            temperature=options.temperature,
            size=options.size,
            steps=options.steps,
        ),
        tokenizer=options.tokenizer,
        seed=options.seed,
        salt=options.salt,
        processes=options.processes,
        warmup_requests=options.warmup_requests,
        interleave=options.interleave,
        repeats=options.repeats,
        timeout=options.timeout,
        drain=options.drain,
        think=options.think,
        slo=objectives(options.slo),
    )


def load(options: argparse.Namespace) -> Load:
    """Raises UsageError: options that exclude each other."""
    if bool(options.rate) + bool(options.concurrency) + bool(options.trace) > 1:
        raise UsageError("A load has a rate, a trace, or a number of users.", "Leave out all but one.")
    if options.trace:
        kind = "trace"
    elif options.rate:
        kind = options.arrival or ("poisson" if options.burstiness is None else "gamma")
    else:
        kind = schedule.CLOSED
    times = {"warmup": options.warmup, "cooldown": options.cooldown, "requests": options.requests}
    seconds = options.duration or (0.0 if options.requests or kind == "trace" else SECONDS)
    if kind == "trace":
        return Load(kind=kind, trace=options.trace, speed=options.trace_speed, seconds=seconds, **times)
    if kind == schedule.CLOSED:
        users = options.concurrency or CONCURRENCY
        return Load(kind=kind, concurrency=users, ramp=options.ramp, seconds=seconds, **times)
    return Load(kind=kind, rate=options.rate, burstiness=options.burstiness or 1.0, seconds=seconds, **times)


def objectives(texts: Sequence[str]) -> dict[str, float]:
    """`ttft:500` → {"ttft": 500.0}. Raises UsageError."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, limit = text.partition(":")
        try:
            found[name] = float(limit)
        except ValueError:
            raise UsageError(f"{text!r} is no objective.", "--slo ttft:500 tpot:50  (milliseconds)") from None
    return found


def command(program: str, arguments: Sequence[str]) -> str:
    """The command as it can be typed again, keys struck out."""
    shown: list[str] = []
    for word in arguments:
        option, equals, _ = word.partition("=")
        if shown and shown[-1] in SECRET:
            shown.append("KEY")
        else:
            shown.append(f"{option}=KEY" if option in SECRET and equals else word)
    return shlex.join([*program.split(), *shown])


def add_sweep(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "loads", "Open loops of rising rate. Which ones follows from their answers."
    )
    add = group.add_argument
    add("--rates", type=POSITIVE, nargs="+", metavar="R", help="exactly these, in requests per second")
    add("--start", type=POSITIVE, default=0.0, metavar="R", help="default: half of what one user gets")
    add("--most", type=COUNT, default=12, metavar="N", help="loads at most (default: %(default)s)")
    add("--arrival", choices=["poisson", "gamma", "constant"], help="default: poisson")
    add("--burstiness", type=POSITIVE, default=None, metavar="K", help="1 is Poisson, less comes in bursts")
    add_times(parser, 30.0)
