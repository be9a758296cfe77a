"""What a reader must know before believing a result: said with it, not found out later. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.harness.measures import Measures
from benchmarks.harness.result import Environment, Phase, Result
from benchmarks.harness.steady import steady_window

LAG_SECONDS, LAG_SHARE = 1e-3, 0.01
"""A client later than both a millisecond and this share of the median TTFT measures itself."""
BUSY = 0.9  # of a core: above it a client process answers late
BUSY_BEFORE = 0.1  # of the CPUs, before anything was asked; a load average still has what started the engine
STEAL = 0.01
CACHED = 0.05  # of input tokens out of the prefix cache: below it the chat template explains it
FEW = 100  # requests: below it, not one is expected beyond the 99th percentile
CHECKS = {
    "output_length": "answers are not as long as asked",
    "input_length": "prompts were counted differently by the server than by the workload",
    "uncounted": "answers came without a count of tokens; events were counted instead",
    "at_once": "answers came in one piece though they were streamed: something buffers",
    "disordered": "requests have times that run backwards: do not use this result",
}


def of_result(result: Result) -> list[str]:
    """Of the machine and of the run as a whole."""
    found = [*_machine(result.environment), *result.notes]
    if result.interrupted:
        found.insert(0, f"INTERRUPTED ({result.interrupted}): this is what was measured until then")
    if result.thinned:
        found.append("Times between first and last token are left out: no gaps, no ITL")
    return found


def of_load(phases: Sequence[Phase], measures: Measures) -> list[str]:
    """Of one load and all its repeats; of the client, how it was when it was worst."""
    latest = max(phases, key=lambda phase: phase.client.lag_p99)
    busiest = max(phases, key=lambda phase: phase.client.busy or 0.0)
    found = [*_client(latest, measures), *_client(busiest, measures)][:1]
    found += [line for phase in phases for line in _of_phase(phase, measures)]
    return list(dict.fromkeys(found))


def _of_phase(phase: Phase, measures: Measures) -> list[str]:
    found: list[str] = []
    if phase.interrupted:
        found.append(f"ended before its time: {phase.interrupted}")
    if measures.failed:
        kinds = ", ".join(f"{kind} × {count}" for kind, count in measures.errors.items())
        found.append(
            f"{measures.failed} of {measures.sent} requests failed ({kinds}): latencies are of the others"
        )
    found += [f"{count} of {measures.completed} {CHECKS[kind]}" for kind, count in measures.checks.items()]
    if (measures.cached_share or 0) > CACHED:
        found.append(f"{measures.cached_share:.0%} of input tokens came out of the prefix cache")
    if measures.completed < FEW:
        found.append(f"{measures.completed} requests: the 99th percentile is the slowest one, or nearly")
    enough = len(phase.records) >= FEW and phase.load.get("kind") != "closed"
    if enough and steady_window(phase.records) is None:
        found.append("the queue grew as long as requests came: a longer run would have longer latencies")
    return found


def client_limited(phase: Phase, measures: Measures) -> bool:
    """Whether the client was so late that it measured itself."""
    ttft = measures.latencies.get("ttft")
    share = LAG_SHARE * ttft.percentiles[50].value if ttft else 0.0
    return _late(phase, measures) > max(LAG_SECONDS, share)


def _late(phase: Phase, measures: Measures) -> float:
    """Seconds (p99) of its requests, or of its own pulse: in a closed loop nothing is due before it is sent,
    and a client that is slow to see an answer looks like a slow server."""
    lag = measures.latencies.get("lag")
    return max(phase.client.lag_p99, lag.percentiles[99].value if lag else 0.0)


def _client(phase: Phase, measures: Measures) -> Iterator[str]:
    if client_limited(phase, measures):
        late = _late(phase, measures) * 1e3
        yield (
            f"CLIENT-LIMITED: the client was up to {late:.1f} ms late (p99). Give it more processes or a "
            "machine of its own"
        )
    elif (phase.client.busy or 0) > BUSY:
        yield f"a client process used {phase.client.busy:.0%} of its core"


def _machine(environment: Environment) -> Iterator[str]:
    if (environment.busy_before or 0) > BUSY_BEFORE:
        yield f"NOISY: {environment.busy_before:.0%} of the CPUs were in use before it began"
    if (environment.steal or 0) > STEAL:
        yield f"NOISY: the hypervisor gave {environment.steal:.1%} of the CPU to others"
