"""From samples to a table: medians over rounds, ratios paired within a round, and the bounds."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gateway.measures import Sample

RESULTS = Path(__file__).parents[1] / "results/gateway.json"
DOCS = Path(__file__).parents[2] / "docs/gateway-speed.md"
BLOCK = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)
LABEL, CELL = 38, 13
SATURATED = 0.9
"""Below this share of its CPU, not the gateway was the limit but something else."""
FOREIGN = 0.05
"""Of the gateway's CPU used by others: figures of such a sample are worth little."""

Figure = Callable[[Sample], float]


@dataclass
class Result:
    """All that one run of the benchmark found."""

    command: str
    when: str
    machine: dict[str, Any]
    versions: dict[str, str]
    skipped: dict[str, str]
    notes: dict[str, str]
    memory: dict[str, dict[str, Any]]
    samples: list[Sample]

    def names(self) -> list[str]:
        return list(dict.fromkeys(sample.contender for sample in sorted(self.samples, key=lambda s: s.round)))

    def values(self, name: str, measure: str, figure: Figure) -> dict[int, float]:
        """By round."""
        return {s.round: figure(s) for s in self.samples if s.contender == name and s.measure == measure}

    def median(self, name: str, measure: str, figure: Figure) -> float | None:
        values = self.values(name, measure, figure).values()
        return statistics.median(values) if values else None

    def paired(
        self, name: str, other: str, measure: str, figure: Figure, how: Callable[[float, float], float]
    ) -> float | None:
        """Median over rounds of `how(name's, other's)`."""
        mine, others = self.values(name, measure, figure), self.values(other, measure, figure)
        pairs = [how(mine[number], others[number]) for number in mine.keys() & others.keys()]
        return statistics.median(pairs) if pairs else None


def per_second(sample: Sample) -> float:
    return sample.load["requests_per_s"]


def chunks_per_second(sample: Sample) -> float:
    return sample.load["chunks_per_s"]


def latency(percentile: str) -> Figure:
    return lambda sample: sample.load["latency_us"][percentile]


def cpu_request(sample: Sample) -> float:
    return sample.cpu_us_per_request


def cpu_chunk(sample: Sample) -> float:
    return sample.cpu_us_per_chunk


def per_cpu_second(sample: Sample) -> float:
    return 1e6 / max(0.001, sample.cpu_us_per_request)


def at_least(least: float, value: float) -> bool:
    return value >= least


def ratio(mine: float, other: float) -> float:
    return mine / other if other else 0.0


def added(mine: float, other: float) -> float:
    return mine - other


def rows(result: Result) -> list[tuple[str, Callable[[str], str]]]:
    """Label, and what to print for a contender."""

    def figure(measure: str, of: Figure, form: str, scale: float = 1) -> Callable[[str], str]:
        def cell(name: str) -> str:
            value = result.median(name, measure, of)
            return "" if value is None else format(value * scale, form)

        return cell

    def against(other: str, measure: str, of: Figure, how: Any, form: str) -> Callable[[str], str]:
        def cell(name: str) -> str:
            value = result.paired(name, other, measure, of, how)
            return "" if value is None or name == other else format(value, form)

        return cell

    def cpu(measure: str, of: Figure, form: str = ".1f") -> Callable[[str], str]:
        shown = figure(measure, of, form)
        return lambda name: "" if name == "direct" else shown(name)

    def times_nginx(measure: str, of: Figure) -> Callable[[str], str]:
        shown = against("nginx", measure, of, ratio, ".2f")
        return lambda name: "" if name == "direct" else shown(name)

    def memory(key: str) -> Callable[[str], str]:
        return lambda name: str(result.memory.get(name, {}).get(key, ""))

    def extreme(which: Callable[[Iterable[float]], float]) -> Callable[[str], str]:
        def cell(name: str) -> str:
            values = result.values(name, "requests_c64", per_second).values()
            return f"{which(values):,.0f}" if values else ""

        return cell

    return [
        ("requests/s, 64 connections", figure("requests_c64", per_second, ",.0f")),
        ("  lowest round", extreme(min)),
        ("  highest round", extreme(max)),
        ("  × nginx (paired)", against("nginx", "requests_c64", per_second, ratio, ".2f")),
        ("  p50, ms", figure("requests_c64", latency("p50"), ".2f", 1e-3)),
        ("  p99, ms", figure("requests_c64", latency("p99"), ".2f", 1e-3)),
        ("  CPU µs a request", cpu("requests_c64", cpu_request)),
        ("  the same × nginx (paired)", times_nginx("requests_c64", cpu_request)),
        ("  its CPU busy", cpu("requests_c64", lambda s: s.busy, ".0%")),
        ("  CPU of engine and load busy", figure("requests_c64", lambda s: s.clients_busy, ".0%")),
        ("requests/s, 256 connections", figure("requests_c256", per_second, ",.0f")),
        ("requests/s, 64, prompts of 16 KB", figure("requests_16k", per_second, ",.0f")),
        ("1 connection: p50, µs", figure("requests_c1", latency("p50"), ".0f")),
        ("  added to direct, µs (paired)", against("direct", "requests_c1", latency("p50"), added, ".0f")),
        ("  p99, µs", figure("requests_c1", latency("p99"), ".0f")),
        ("  CPUs kept awake: p50, µs", figure("requests_c1_awake", latency("p50"), ".0f")),
        ("  then added to direct, µs", against("direct", "requests_c1_awake", latency("p50"), added, ".0f")),
        ("  all on one CPU: p50, µs", figure("requests_c1_one_cpu", latency("p50"), ".0f")),
        (
            "  on one CPU added to direct, µs",  # a label of its own: they are keys of the summary
            against("direct", "requests_c1_one_cpu", latency("p50"), added, ".0f"),
        ),
        ("CPU µs a request at 2,000/s", cpu("requests_paced", cpu_request)),
        ("SSE chunks/s, 64 streams", figure("streams", chunks_per_second, ",.0f")),
        ("  CPU µs a chunk", cpu("streams", cpu_chunk)),
        ("CPU µs a chunk at 3,200/s", cpu("streams_paced", cpu_chunk)),
        ("  of a chunk × nginx (paired)", times_nginx("streams_paced", cpu_chunk)),
        ("resident MB when started", memory("before_mb")),
        ("  after all rounds", memory("after_mb")),
        ("  more for 1,000 idle streams", memory("mb_per_1000")),
        ("bad answers", lambda name: str(bad(result, name))),
    ]


def bad(result: Result, name: str) -> int:
    of_samples = sum(s.load["bad"] for s in result.samples if s.contender == name)
    return of_samples + result.memory.get(name, {}).get("bad", 0)


def bounds(result: Result) -> list[tuple[str, bool | None, str]]:
    """What is required of chutes: the bound, whether it holds (None: cannot be said), what was found."""
    found: list[tuple[str, bool | None, str]] = []

    def bound(
        text: str, value: float | None, holds: Callable[[float], bool], form: str, more: str = ""
    ) -> None:
        said = "not measured" if value is None else format(value, form) + more
        found.append((text, None if value is None else holds(value), said))

    for other, least, aim in (("vllm-router", 2.0, ""), ("nginx", 0.65, ", aim: 0.80")):
        times = result.paired("chutes", other, "requests_c64", per_second, ratio)
        # What it would be if nobody else had used the CPU: a process that waits for it is not at fault.
        undisturbed = result.paired("chutes", other, "requests_c64", per_cpu_second, ratio) or 0.0
        said = f" × (a second of its own CPU: {undisturbed:.2f} ×{aim})"
        bound(f"≥ {least:g} × {other} in requests/s", times, partial(at_least, least), ".2f", said)
    more = result.paired("chutes", "direct", "requests_c1", latency("p50"), added)
    nginx_more = result.paired("nginx", "direct", "requests_c1", latency("p50"), added)
    said = " µs" if nginx_more is None else f" µs (nginx adds {nginx_more:.0f})"
    for measure, where in (
        ("requests_c1_awake", "on CPUs kept awake"),
        ("requests_c1_one_cpu", "all on one CPU"),
    ):
        ours = result.paired("chutes", "direct", measure, latency("p50"), added)
        nginx = result.paired("nginx", "direct", measure, latency("p50"), added)
        if ours is not None and nginx is not None:
            said += f"; {where} {ours:.0f} µs (nginx {nginx:.0f})"
    bound("≤ 60 µs added to p50 at 1 connection", more, lambda v: v <= 60, ".0f", said)
    chunk = result.median("chutes", "streams_paced", cpu_chunk)
    times = result.paired("chutes", "nginx", "streams_paced", cpu_chunk, ratio)
    said = f" µs, {times:.2f} × nginx" if times is not None else " µs"
    bound(
        "≤ 22 µs of CPU a chunk, or 1.4 × nginx",
        chunk,
        lambda v: v <= 22 or (times is not None and times <= 1.4),
        ".1f",
        said,
    )
    memory = result.memory.get("chutes", {})
    bound("≤ 35 MB a worker after all rounds", memory.get("after_mb"), lambda v: v <= 35, ".1f", " MB")
    ran = any(s.contender == "chutes" for s in result.samples)
    bound(
        "no chunk lost, no answer wrong",
        bad(result, "chutes") if ran else None,
        lambda v: v == 0,
        "d",
        " bad",
    )
    if memory.get("metered"):
        found.append(
            (
                "every answer metered once",
                memory["metered"] == memory["answered"],
                f"{memory['metered']:,} of {memory['answered']:,}",
            )
        )
    return found


def remarks(result: Result) -> list[str]:
    """What a reader must know before believing the table."""
    said: list[str] = []
    machine = result.machine
    said.append(f"{machine['cpu']}, CPUs (gateway, engine, load): {tuple(machine['cpus_used'].values())}")
    steal = statistics.mean(s.steal for s in result.samples)
    before, after = machine["load_average_before"][0], machine["load_average_after"][0]
    said.append(f"Load average {before:.1f} before, {after:.1f} after; stolen by the hypervisor: {steal:.1%}")
    said.append("Versions: " + ", ".join(f"{name} {text}" for name, text in result.versions.items()))
    said += [f"{name} skipped: {reason}" for name, reason in result.skipped.items()]
    said += [f"{name}: {note}" for name, note in result.notes.items()]
    ceiling = result.median("direct", "requests_c64", per_second)
    if ceiling is not None:
        said.append(
            f"Engine and load alone reach {ceiling:,.0f} requests/s: no figure near it is a gateway's."
        )
    for name in result.names():
        busy = result.median(name, "requests_c64", lambda s: s.busy)
        if name != "direct" and busy is not None and busy < SATURATED:
            said.append(
                f"{name} used {busy:.0%} of its CPU at 64 connections: something else was the limit, "
                "its requests/s are at least these."
            )
    disturbed = [s for s in result.samples if s.foreign > FOREIGN]
    if disturbed:
        worst = max(s.foreign for s in disturbed)
        said.append(
            f"NOISY: in {len(disturbed)} of {len(result.samples)} samples others used more than "
            f"{FOREIGN:.0%} of the gateway's CPU (worst {worst:.0%}). Trust ratios and CPU times only."
        )
    firsts = {s.contender: s.load["first_bad"] for s in result.samples if s.load["first_bad"]}
    said += [f"first bad answer of {name}: {text}" for name, text in firsts.items()]
    return said


def text(result: Result) -> str:
    """The whole report."""
    names = result.names()
    lines = [f"{'':{LABEL}}" + "".join(f"{name:>{CELL}}" for name in names)]
    for label, cell in rows(result):
        cells = [cell(name) for name in names]
        if any(cells):
            lines.append(f"{label:{LABEL}}" + "".join(f"{c or '-':>{CELL}}" for c in cells))
    checks = bounds(result)
    lines += ["", "Required of chutes:"]
    for label, holds, found in checks:
        verdict = {True: "PASS", False: "FAIL", None: "?   "}[holds]
        lines.append(f"  {verdict}  {label:{LABEL}}  {found}")
    failed = sum(holds is False for _, holds, _ in checks)
    if failed:
        lines.append(f"  {failed} OF {len(checks)} BOUNDS ARE NOT MET")
    lines += ["", *remarks(result)]
    return "\n".join(lines)


def as_json(result: Result) -> str:
    """Everything, raw samples included."""
    summary = {
        label.strip(): {name: cell(name) for name in result.names() if cell(name)}
        for label, cell in rows(result)
    }
    document = {
        "command": result.command,
        "when": result.when,
        "machine": result.machine,
        "versions": result.versions,
        "skipped": result.skipped,
        "notes": result.notes,
        "bounds": [
            {"bound": label, "holds": holds, "found": found} for label, holds, found in bounds(result)
        ],
        "summary": summary,
        "memory": result.memory,
        "remarks": remarks(result),
    }
    head = json.dumps(document, indent=1, ensure_ascii=False).removesuffix("\n}")
    # A line for each sample: hundreds of them are looked at by programs, and kept by git.
    samples = ",\n  ".join(json.dumps(sample.as_json(), ensure_ascii=False) for sample in result.samples)
    return f'{head},\n "samples": [\n  {samples}\n ]\n}}\n'


def write_docs(table: str, docs: Path = DOCS) -> None:
    """Put the report where the documentation keeps it."""
    page = docs.read_text()
    block = f"```\n{table}\n```\n"
    docs.write_text(BLOCK.sub(lambda found: found[1] + block + found[2], page))
