"""What chutes itself costs before any model: import and start-up times, memory of an idle platform.

python -m benchmarks.footprint [--runs N]

Times are wall seconds of whole processes, one warm-up and N counted runs; compare the medians. Memory is the
unique set size (USS): what would be free again if the process ended, unlike RSS, which counts shared
libraries in each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from chutes.engine.process import MINDER

RESULTS = Path(__file__).parent / "results"
CHUTES = [sys.executable, "-m", "chutes"]
SETTLE_SECONDS = 3.0

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import chutes.chute": [sys.executable, "-c", "import chutes.chute"],
    "from chutes.chute import Chute": [sys.executable, "-c", "from chutes.chute import Chute"],
    "import fastapi": [sys.executable, "-c", "import fastapi"],
    "chutes --help": [*CHUTES, "--help"],
    "chutes deploy --help": [*CHUTES, "deploy", "--help"],
}


def seconds(command: list[str], runs: int) -> list[float]:
    """Wall seconds of each counted run; the first, cold one is thrown away."""
    taken: list[float] = []
    for number in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if number:
            taken.append(round(time.perf_counter() - began, 4))
    return taken


def idle_platform() -> dict[str, Any]:
    """Memory of a platform with nothing deployed and one gateway worker, in MiB."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "CHUTES_HOME": home, "CHUTES_PORT": "18473", "CHUTES_WORKERS": "1"}
        began = time.perf_counter()
        control = subprocess.Popen([*CHUTES, "serve"], env=environment, stderr=subprocess.PIPE, text=True)
        try:
            assert control.stderr is not None
            assert "Serving" in (said := control.stderr.readline()), said
            started = time.perf_counter() - began
            time.sleep(SETTLE_SECONDS)
            process = psutil.Process(control.pid)
            (worker,) = process.children()
            return {
                "start_seconds": round(started, 3),
                "control_uss_mib": mib(process),
                "control_rss_mib": mib(process, "rss"),
                "worker_uss_mib": mib(worker),
                "worker_rss_mib": mib(worker, "rss"),
            }
        finally:
            control.terminate()
            control.wait(30)


def minder() -> dict[str, float]:
    """Memory of the process that stands above one engine, in MiB."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-I", "-S", str(MINDER), "--log", f"{place}/log", "--log-bytes", "1000"]
        command += ["--log-files", "2", "--grace", "1", "--", "sleep", "60"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        time.sleep(0.2)
        used = psutil.Process(process.pid)
        found = {"minder_uss_mib": mib(used), "minder_rss_mib": mib(used, "rss")}
        process.stdin.close()
        process.wait(10)
        return found


def mib(process: psutil.Process, kind: str = "uss") -> float:
    return round(getattr(process.memory_full_info(), kind) / (1 << 20), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--output", type=Path, default=RESULTS / "footprint.json")
    options = parser.parse_args()

    times = {name: seconds(command, options.runs) for name, command in COMMANDS.items()}
    result = {
        "command": "python -m benchmarks.footprint",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "seconds": {name: {"median": statistics.median(runs), "runs": runs} for name, runs in times.items()},
        "idle_platform": {**idle_platform(), **minder()},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    for name, runs in times.items():
        print(
            f"{name:<31} median {statistics.median(runs):.3f} s  (min {min(runs):.3f}, max {max(runs):.3f})"
        )
    for name, value in result["idle_platform"].items():
        print(f"idle platform: {name:<17} {value}")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
