"""python -m benchmarks: how fast a served model is. docs/benchmarks.md says what is measured and how.

    python -m benchmarks run --model Qwen/Qwen3-8B --concurrency 8
    python -m benchmarks run --target engine --target gateway --rate 4 --duration 120
    python -m benchmarks sweep --slo ttft:500 tpot:50
    python -m benchmarks compare before.json after.json

`chutes bench` and `make bench` are the same.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
from pathlib import Path

from chutes.cli import output
from chutes.exception import ChutesError, NotConfigured


def parser(program: str) -> argparse.ArgumentParser:
    from benchmarks.harness import against_vllm, ceiling, commands, options

    top = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    below = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, work: object, text: str) -> argparse.ArgumentParser:
        # A typing error must not become another option that begins alike.
        one = below.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(work=work)
        return one

    run = command("run", commands.run, "put one load on a model and measure it")
    for add in (
        options.add_targets,
        options.add_workload,
        options.add_load,
        options.add_times,
        options.add_rest,
    ):
        add(run)
    sweep = command("sweep", commands.sweep, "find the knee, and the highest rate that meets objectives")
    for add in (options.add_targets, options.add_workload, options.add_rest):
        add(sweep)
    options.add_sweep(sweep)
    compare = command("compare", commands.compare_results, "whether two results differ by more than noise")
    compare.add_argument("a", type=Path, help="a result: before")
    compare.add_argument("b", type=Path, help="a result: after")
    check = command("check", commands.check, "exit with 3 when a result is worse than a baseline")
    check.add_argument("baseline", type=Path, help="a result that is to be held")
    check.add_argument("result", type=Path, help="a new one")
    check.add_argument(
        "--bound", type=options.NUMBER, default=5.0, metavar="PERCENT",
        help="a change for the worse that passes, beyond noise (default: %(default)s)",
    )  # fmt: skip
    for one in (compare, check):
        one.add_argument("--anyway", action="store_true", help="although different things were asked")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write it as a page, too")
    baseline = command("baseline", commands.baseline, "a result without samples and times of tokens, to keep")
    baseline.add_argument("result", type=Path)
    baseline.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    show = command("report", commands.show, "table and pictures of a result that was written before")
    show.add_argument("result", type=Path)
    show.add_argument("--no-pictures", action="store_true", help="the table only")
    ceiling.add_options(command("ceiling", ceiling.run, "what the load client itself can drive here"))
    against_vllm.add_options(
        command("against-vllm", against_vllm.run, "the same engine measured by us and by `vllm bench serve`")
    )
    return top


def main(arguments: list[str] | None = None, program: str = "python -m benchmarks") -> int:
    """Run a command; its exit code: 0 done, 1 failed, 2 wrong usage, 3 regressed, 130 interrupted.

    Raises:
        ChutesError: for whoever calls it from a program with an output of its own.
    """
    from_us = sys.argv[1:] if arguments is None else arguments
    if importlib.util.find_spec("numpy") is None or importlib.util.find_spec("matplotlib") is None:
        raise NotConfigured("The benchmark needs numpy and matplotlib.", "pip install 'chutes[bench]'")
    from benchmarks.harness.options import command

    options = parser(program).parse_args(from_us)
    try:
        return options.work(options, command(program, from_us))
    except (KeyboardInterrupt, asyncio.CancelledError):
        output.note("Interrupted.")
        return 130


if __name__ == "__main__":
    output.tame_streams()
    try:
        sys.exit(main())
    except ChutesError as error:
        output.failure(error)
        sys.exit(error.exit_code)
