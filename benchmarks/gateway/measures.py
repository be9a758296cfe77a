"""What is measured, and in which order.

For each measure, all contenders one right after the other, so that two of them are compared within seconds
of machine weather; the order turns by one each round, and who is restless is stopped while others are
measured. Every sample is a process of `load` that checks each answer whole.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway import machine
from benchmarks.gateway.contenders import KEYS, MODEL, PATH, Running
from chutes.mortal import mortal

STREAM_CHUNKS = 256
TICK_US = 20_000
"""50 tokens a second and stream."""
HOUR_US = 3_600_000_000
LENIENT = {"litellm"}
"""It takes a stream apart and writes another one."""
SLOW_STREAMS = 100
SLOW_SECONDS = 4.0
SETTLE_SECONDS = 0.05
"""For timers that were due while it was stopped, and for connections that the last load closed."""
SLOW = {"litellm"}
"""Three orders of magnitude below the others: asked for less, or a round would take minutes."""


@dataclass
class Measure:
    """One kind of sample: what `load` is told, besides where and how long."""

    name: str
    arguments: list[str]
    seconds: float
    slow: list[str] | None = None
    """Instead of `arguments`, for slow contenders; None: they are left out."""
    direct: bool = True
    """Whether it means anything without a gateway."""
    awake: bool = False
    """All CPUs are kept from halting meanwhile: to wake one takes a hypervisor longer than a request."""
    one_cpu: bool = False
    """Engine, gateway and load share the gateway's CPU, so that none has to wake another one."""


def measures(quick: bool) -> list[Measure]:
    """All of them; `quick` makes shorter ones."""
    pace = 0.6 if quick else 1.5
    chunks = str(STREAM_CHUNKS)
    tick_chunks = "100" if quick else chunks
    # Every connection streams once: a stream that has begun is always read to its end.
    ticks = ["--tick", str(TICK_US), "--usage", "--warmup", "0"]
    found = [
        Measure("requests_c64", ["--connections", "64"], pace, slow=["--connections", "64"]),
        Measure("requests_c1", ["--connections", "1"], pace / 2, slow=["--connections", "1"]),
        Measure("requests_c1_awake", ["--connections", "1"], pace / 2, awake=True),
        Measure("requests_c1_one_cpu", ["--connections", "1"], pace / 2, one_cpu=True),
        Measure("requests_c256", ["--connections", "256"], pace),
        Measure("requests_16k", ["--connections", "64", "--body-bytes", "16384"], pace),
        Measure(
            "requests_paced",
            ["--connections", "64", "--rate", "2000"],
            pace,
            slow=["--connections", "64", "--rate", "20"],
            direct=False,
        ),
        Measure(
            "streams",
            ["--connections", "64", "--chunks", chunks, "--usage"],
            pace,
            slow=["--connections", "4", "--chunks", "32", "--usage"],
        ),
        Measure(
            "streams_paced",
            ["--connections", "64", "--chunks", tick_chunks, *ticks],
            0.1,
            slow=["--connections", "4", "--chunks", "50", *ticks],
        ),
    ]
    return [m for m in found if not (quick and m.name in ("requests_c256", "requests_16k"))]


@dataclass
class Sample:
    """One run of `load` against one contender."""

    round: int
    measure: str
    contender: str
    command: str
    load: dict[str, Any]
    """What `load` printed."""
    cpu_s: float
    """Of the contender, over the whole run of `load`, its warm-up included."""
    engine_cpu_s: float
    wall_s: float
    foreign: float
    """Share of the gateway's CPU that others used, or that the hypervisor took away."""
    steal: float
    """The hypervisor's part of it."""

    @property
    def busy(self) -> float:
        """Share of its CPU that the contender used."""
        return self.cpu_s / self.load["wall_s"]

    @property
    def clients_busy(self) -> float:
        """Share of one CPU that engine and load used together."""
        return (self.engine_cpu_s + self.load["cpu_s"]) / self.load["wall_s"]

    @property
    def cpu_us_per_request(self) -> float:
        return self.cpu_s * 1e6 / max(1, self.load["requests_all"])

    @property
    def cpu_us_per_chunk(self) -> float:
        return self.cpu_s * 1e6 / max(1, self.load["chunks_all"])

    def as_json(self) -> dict[str, Any]:
        return {name: round(v, 5) if isinstance(v, float) else v for name, v in asdict(self).items()}


class Bench:
    """Takes samples.

    Args:
        load: the program.
    """

    def __init__(self, load: Path, cpus: machine.Cpus, engine: Running) -> None:
        self._load = load
        self._cpus = cpus
        self._engine = engine

    def _command(self, contender: Running, arguments: Sequence[str], cpu: int) -> list[str]:
        where = ["--port", str(contender.port), "--path", PATH, "--model", MODEL, "--keys", ",".join(KEYS)]
        return ["taskset", "-c", str(cpu), str(self._load), *where, *arguments]

    def sample(
        self,
        number: int,
        measure: str,
        contender: Running,
        arguments: Sequence[str],
        seconds: float,
        *,
        awake: bool = False,
        one_cpu: bool = False,
    ) -> Sample:
        """Raises: RuntimeError when `load` could not do its work at all."""
        contender.resume()
        time.sleep(SETTLE_SECONDS)
        try:
            with contextlib.ExitStack() as stack:
                # Besides the contender, who rightly uses the gateway's CPU.
                others: list[int] = []
                if awake:
                    spinners = stack.enter_context(machine.awake(set(self._cpus)))
                    others = [spinners[self._cpus.gateway]]
                if one_cpu:
                    others = self._engine.pids
                    stack.enter_context(machine.gathered(others + contender.pids, self._cpus.gateway))
                return self._sample(number, measure, contender, arguments, seconds, others, one_cpu)
        finally:
            time.sleep(SETTLE_SECONDS)
            contender.pause()

    def _sample(
        self,
        number: int,
        measure: str,
        contender: Running,
        arguments: Sequence[str],
        seconds: float,
        others: list[int],
        one_cpu: bool,
    ) -> Sample:
        timing = ["--seconds", f"{seconds:g}"]
        if "--warmup" not in arguments:
            timing += ["--warmup", f"{min(0.3, seconds / 3):g}"]
        if contender.name in LENIENT:
            timing.append("--lenient")
        arguments = [*arguments, *timing]
        machine_before = machine.usage(self._cpus.gateway)
        cpu, engine_cpu = machine.cpu_seconds(contender.pids), machine.cpu_seconds(self._engine.pids)
        others_cpu = machine.cpu_seconds(others)
        command = self._command(contender, arguments, self._cpus.gateway if one_cpu else self._cpus.load)
        done = subprocess.run(mortal(command), capture_output=True, check=False, timeout=120, text=True)
        cpu = machine.cpu_seconds(contender.pids) - cpu
        engine_cpu = machine.cpu_seconds(self._engine.pids) - engine_cpu
        others_cpu = machine.cpu_seconds(others) - others_cpu
        now = machine.usage(self._cpus.gateway)
        if done.returncode or not done.stdout:
            raise RuntimeError(f"load against {contender.name}: {done.stderr.strip() or done.returncode}")
        load = json.loads(done.stdout)
        if one_cpu:
            others_cpu += load["cpu_s"]
        wall = now.at - machine_before.at
        steal = now.steal - machine_before.steal
        used = now.busy - machine_before.busy + steal
        return Sample(
            round=number,
            measure=measure,
            contender=contender.name,
            command=" ".join(["load", *arguments]),
            load=load,
            cpu_s=cpu,
            engine_cpu_s=engine_cpu,
            wall_s=wall,
            foreign=max(0.0, (used - cpu - others_cpu) / wall),
            steal=steal / wall,
        )

    def idle_streams(self, contender: Running, streams: int) -> dict[str, Any]:
        """Memory that streams cost while their engine is silent, in 10⁶ bytes per thousand."""
        streams = min(streams, SLOW_STREAMS) if contender.name in SLOW else streams
        arguments = ["--connections", str(streams), "--chunks", "2", "--tick", str(HOUR_US), "--hold"]
        contender.resume()
        before = machine.resident_mb(contender.pids)
        process = subprocess.Popen(
            mortal(self._command(contender, arguments, self._cpus.load)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()  # "open": every stream has sent its first event
            time.sleep(0.3)
            during = machine.resident_mb(contender.pids)
            out, _ = process.communicate("", timeout=30)
        finally:
            process.kill()
            process.wait()
            contender.pause()
        told = json.loads(out)
        return {
            "streams": told["opened"],
            "bad": told["bad"],
            "first_bad": told["first_bad"],
            "mb_per_1000": round(max(0.0, during - before) * 1000 / max(1, told["opened"]), 2),
            "rss_before_mb": round(before, 1),
            "rss_during_mb": round(during, 1),
        }


def run_rounds(
    bench: Bench,
    contenders: list[Running],
    chosen: list[Measure],
    rounds: int,
    keep: Callable[[Sample], None],
) -> None:
    """Every measure of every contender, `rounds` times."""
    for number in range(rounds):
        turn = number % len(contenders)
        order = contenders[turn:] + contenders[:turn]
        for measure in chosen:
            for contender in order:
                slow = contender.name in SLOW
                arguments = measure.slow if slow else measure.arguments
                if arguments is None or (contender.name == "direct" and not measure.direct):
                    continue
                seconds = (
                    max(measure.seconds, SLOW_SECONDS) if slow and measure.seconds > 0.1 else measure.seconds
                )
                keep(
                    bench.sample(
                        number,
                        measure.name,
                        contender,
                        arguments,
                        seconds,
                        awake=measure.awake,
                        one_cpu=measure.one_cpu,
                    )
                )
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
