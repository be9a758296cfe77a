"""When requests are sent. Pure: every time is known before the first request, so that a slow server or a slow
client cannot thin out the load that it is measured with ("coordinated omission").

Times are seconds after the start of a phase. In a closed loop only the arrival of the users is known; each
asks again when it has its answer, and what is measured is how many requests that makes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from chutes.exception import UsageError

OPEN = ("poisson", "gamma", "constant", "trace")
CLOSED = "closed"

MAX_REQUESTS = 1_000_000
"""Of one phase. The workload is made before the load begins and is kept in memory until it ends."""


class Load(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """How requests come in one phase. Goes into the result as `Phase.load`."""

    kind: str = CLOSED
    """poisson, gamma, constant, trace (open loops) or closed."""
    rate: float = 0.0
    """Requests per second on average, of an open loop."""
    burstiness: float = 1.0
    """Shape of the gamma distribution of gaps, by its name in `vllm bench serve`: 1 is Poisson."""
    concurrency: int = 0
    """Users of a closed loop."""
    ramp: float = 0.0
    """Seconds over which the users of a closed loop arrive."""
    requests: int = 0
    """At most so many; 0: as many as come in `seconds`."""
    seconds: float = 0.0
    """No request is begun after this; 0: until `requests` are sent."""
    warmup: float = 0.0
    cooldown: float = 0.0
    """Seconds at the beginning and before the end whose requests are sent and kept, but not measured."""
    trace: str = ""
    """The file of a recorded trace."""
    speed: float = 1.0
    """Of a trace: 2 is twice as fast."""

    @property
    def open(self) -> bool:
        return self.kind != CLOSED

    def document(self) -> dict[str, Any]:
        return msgspec.to_builtins(self) | {"kind": self.kind}

    def window(self, lasted: float) -> tuple[float, float] | None:
        """What is measured of a phase whose last request was scheduled after `lasted` seconds."""
        if not self.warmup and not self.cooldown:
            return None
        return self.warmup, max(self.warmup, (self.seconds or lasted) - self.cooldown)


class TraceEntry(msgspec.Struct):
    """One line of a trace; `timestamp` (ms), `input_length` and `output_length` are Mooncake's names."""

    seconds: float | None = None
    timestamp: float | None = None
    input_tokens: int | None = None
    input_length: int | None = None
    output_tokens: int | None = None
    output_length: int | None = None

    def lengths(self) -> tuple[int | None, int | None]:
        """Input and output tokens, where the trace says them."""
        return self.input_tokens or self.input_length, self.output_tokens or self.output_length


def check(load: Load) -> None:
    """Raises UsageError: it cannot be carried out; says which option to change."""
    if load.kind not in (*OPEN, CLOSED):
        raise UsageError(f"There is no load {load.kind!r}.", f"One of {', '.join((*OPEN, CLOSED))}.")
    if load.kind in ("poisson", "gamma", "constant") and load.rate <= 0:
        raise UsageError("An open loop needs a rate above 0.", "--rate 2 sends two requests a second.")
    if load.kind == "gamma" and load.burstiness <= 0:
        raise UsageError(
            "Burstiness must be above 0.", "1 is Poisson, 0.5 comes in bursts, 4 is nearly even."
        )
    if load.kind == "trace" and (not load.trace or load.speed <= 0):
        raise UsageError("A trace needs a file and a speed above 0.", "--trace FILE.jsonl --trace-speed 1")
    if load.kind == CLOSED and load.concurrency < 1:
        raise UsageError("A closed loop needs at least one user.", "--concurrency 8")
    if load.kind != "trace" and not load.requests and not load.seconds:
        raise UsageError("A load needs an end.", "--requests 200 or --duration 60")
    if load.requests > MAX_REQUESTS or load.rate * load.seconds > MAX_REQUESTS:
        raise UsageError(f"More than {MAX_REQUESTS:,} requests in one phase.", "Measure for a shorter time.")
    if load.seconds and load.warmup + load.cooldown >= load.seconds:
        raise UsageError(
            f"Warm-up and cool-down ({load.warmup:g} s + {load.cooldown:g} s) leave nothing of "
            f"{load.seconds:g} s.",
            "Make --duration longer than both together.",
        )


def arrivals(load: Load, seed: str, trace: Iterable[TraceEntry] = ()) -> list[float]:
    """When each request of an open loop is due, in order.

    The first is due at once, the others after gaps of mean 1/rate: exponential (poisson), gamma of shape
    `burstiness`, or all alike (constant). Gaps are not stretched to end at a given time, as that would make
    them depend on each other.
    """
    if load.kind == "trace":
        times = sorted(_seconds(entry) for entry in trace)
        first = times[0] if times else 0.0
        times = [(time - first) / load.speed for time in times]
        times = times[: load.requests or None]
        return [time for time in times if not load.seconds or time < load.seconds]
    random, mean = Random(f"{seed}:arrivals"), 1 / load.rate

    def gap() -> float:
        if load.kind == "constant":
            return mean
        if load.kind == "poisson":
            return random.expovariate(load.rate)
        return random.gammavariate(load.burstiness, mean / load.burstiness)

    times, now = [], 0.0
    limit = load.requests or MAX_REQUESTS
    while len(times) < limit and (not load.seconds or now < load.seconds):
        times.append(now)
        # Multiplied, not added up: a thousand additions of 1/3 drift.
        now = len(times) * mean if load.kind == "constant" else now + gap()
    return times


def users(load: Load) -> list[float]:
    """When each user of a closed loop begins: all at once, or evenly over the ramp."""
    return [load.ramp * number / load.concurrency for number in range(load.concurrency)]


def interleaved(count: int, targets: int, seed: str) -> list[int]:
    """Which target each of `count` requests goes to: in every block of as many as there are targets each
    gets one, in random order, so that whatever drifts meets all of them alike."""
    random, order = Random(f"{seed}:targets"), []
    while len(order) < count:
        block = list(range(targets))
        random.shuffle(block)
        order += block
    return order[:count]


def read_trace(path: Path) -> list[TraceEntry]:
    """A recorded trace: JSON lines with `seconds` (or `timestamp`, milliseconds), and lengths if it has them.

    Raises:
        UsageError: it is not there, or a line has no time; names the line.
    """
    entries: list[TraceEntry] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"The trace {path} cannot be read: {error.strerror}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = msgspec.json.decode(line, type=TraceEntry)
        except msgspec.DecodeError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        if entry.seconds is None and entry.timestamp is None:
            raise UsageError(
                f"{path}, line {number} has no time.", 'Each needs "seconds" or "timestamp" (ms).'
            )
        entries.append(entry)
        if len(entries) > MAX_REQUESTS:
            raise UsageError(f"{path} has more than {MAX_REQUESTS:,} requests.", "Cut it into parts.")
    if not entries:
        raise UsageError(f"The trace {path} is empty.")
    return sorted(entries, key=_seconds)


def _seconds(entry: TraceEntry) -> float:
    return entry.seconds if entry.seconds is not None else (entry.timestamp or 0.0) / 1000
