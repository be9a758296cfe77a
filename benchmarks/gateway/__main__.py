"""The gateway beside other gateways: one run, one engine, one load generator, one CPU each.

python -m benchmarks.gateway [--quick] [--only chutes,nginx] [--rounds N] [--profile] [--write-docs]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gateway import contenders, machine, programs, report
from benchmarks.gateway.contenders import Running, Setting
from benchmarks.gateway.measures import Bench, Sample, measures, run_rounds
from benchmarks.gateway.worker import chutes
from chutes.mortal import mortal

STARTERS = {
    "direct": contenders.direct,
    "nginx": contenders.nginx,
    "chutes": chutes,
    "haproxy": contenders.haproxy,
    "vllm-router": contenders.vllm_router,
    "litellm": contenders.litellm,
}
QUICK = ["direct", "nginx", "chutes", "vllm-router"]
PROFILE_SECONDS = 8


def main() -> None:
    options = parse()
    cpus = machine.Cpus.chosen(options.cpus)
    contenders.on_signals_end()
    try:
        engine_program, load_program = programs.compiled("engine"), programs.compiled("load")
    except programs.Unavailable as error:
        raise SystemExit(str(error)) from None
    os.sched_setaffinity(0, {cpus.load})  # neither we nor what we forget to pin may use the gateway's CPU

    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as directory, contextlib.ExitStack() as stack:
        place = Path(directory)
        engine, ports = contenders.engine(cpus.engine, place, engine_program)
        stack.callback(engine.stop)
        running, skipped = start(options.only, cpus, ports, place, stack)
        bench = Bench(load_program, cpus, engine)
        print("Measuring: " + ", ".join(r.name for r in running), file=sys.stderr, flush=True)
        time.sleep(1.5)  # what was metered until now is not ours
        metered = {r.name: r.metered() for r in running if r.metered}
        samples: list[Sample] = []
        load_before = os.getloadavg()
        for contender in running:
            contender.pause()
        run_rounds(bench, running, measures(options.quick), options.rounds, samples.append)
        for contender in running:
            contender.resume()
        notes = {r.name: said for r in running if (said := r.notes())}
        memory: dict[str, Any] = {}
        for contender in running:
            if not contender.pids:
                continue
            after = machine.resident_mb(contender.pids)
            said = {"before_mb": round(contender.rss_before, 1), "after_mb": round(after, 1)}
            if contender.metered:
                asked = sum(s.load["requests_all"] for s in samples if s.contender == contender.name)
                said |= {"answered": asked, "metered": contender.metered() - metered[contender.name]}
            memory[contender.name] = said | bench.idle_streams(contender, options.streams)
        if options.profile:
            profile(bench, running)
        result = report.Result(
            command="python -m benchmarks.gateway " + " ".join(sys.argv[1:]),
            when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            machine={
                **machine.describe(),
                "cpus_used": cpus._asdict(),
                "load_average_before": load_before,
                "load_average_after": os.getloadavg(),
            },
            versions=contenders.versions([r.name for r in running]),
            skipped=skipped,
            notes=notes,
            memory=memory,
            samples=samples,
        )
    table = report.text(result)
    print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(report.as_json(result))
    print(f"written to {options.output}")
    if options.write_docs:
        report.write_docs(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks.gateway"
    )
    parser.add_argument("--quick", action="store_true", help="a minute: two short rounds, no LiteLLM")
    parser.add_argument("--only", help="these contenders, of: " + ", ".join(STARTERS))
    parser.add_argument("--rounds", type=int, help="default: 5, quick: 2")
    parser.add_argument("--streams", type=int, default=1000, help="idle streams (default: 1000)")
    parser.add_argument("--cpus", help="G,E,L: CPU of gateway, engine and load")
    parser.add_argument(
        "--profile", action="store_true", help="a profile of chutes at 64 connections (py-spy)"
    )
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/gateway-speed.md")
    parser.add_argument("--output", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    names = options.only.split(",") if options.only else QUICK if options.quick else list(STARTERS)
    if unknown := set(names) - set(STARTERS):
        parser.error(f"unknown contenders: {', '.join(sorted(unknown))}")
    options.only = [name for name in STARTERS if name in names]
    return options


def start(
    names: list[str], cpus: machine.Cpus, ports: list[int], place: Path, stack: contextlib.ExitStack
) -> tuple[list[Running], dict[str, str]]:
    """Those that can be had, and why the others cannot."""
    running: list[Running] = []
    skipped: dict[str, str] = {}
    for name in names:
        own = place / name
        own.mkdir()
        try:
            contender = STARTERS[name](Setting(cpus.gateway, ports, own))
        except programs.Unavailable as error:
            log = own / "log"
            said = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
            skipped[name] = " ".join([str(error), *said])
            print(f"Skipping {name}: {skipped[name]}", file=sys.stderr, flush=True)
            continue
        stack.callback(contender.stop)
        running.append(contender)
    return running, skipped


def profile(bench: Bench, running: list[Running]) -> None:
    """Where our worker spends its time at 64 connections, as a file that speedscope.app reads."""
    spy = shutil.which("py-spy")
    ours = next((r for r in running if r.name == "chutes"), None)
    if spy is None or ours is None:
        print("No profile: it needs py-spy (`pip install py-spy`) and chutes among the contenders.")
        return
    target = programs.CACHE / "profile.json"
    command = [spy, "record", "--pid", str(ours.pids[0]), "--duration", str(PROFILE_SECONDS), "--rate", "500"]
    command += ["--native", "--format", "speedscope", "--output", str(target)]
    process = subprocess.Popen(mortal(command), stdout=subprocess.DEVNULL)
    bench.sample(0, "profile", ours, ["--connections", "64"], PROFILE_SECONDS + 1)
    process.wait(60)
    print(f"profile in {target}")


if __name__ == "__main__":
    main()
