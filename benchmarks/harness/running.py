"""A run: targets checked, prompts made, the load carried out phase by phase, what came back put together.

Everything that can be wrong with a run is found before its load; from then on nothing is lost any more. An
interrupt ends the phase under way and keeps it.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from benchmarks.harness import clients, environment, planner, result, schedule, targets, tokens, workloads
from benchmarks.harness.messages import Ask, Job
from benchmarks.harness.records import Record
from benchmarks.harness.sampling import EngineMetrics, Gpus, PlatformMetrics, Processes, Sampler, Source
from benchmarks.harness.schedule import Load
from benchmarks.harness.targets import Target
from benchmarks.harness.workloads import Wish
from chutes import config as settings
from chutes.cli import output
from chutes.exception import ChutesError, NotFound, UsageError

INTERRUPTED = "Ctrl-C"
SPARE = 1.2
"""Of prompts made for a closed loop beyond what the fastest answer seen so far allows."""
SAME_SECONDS = 1.0
"""Two signals within this are one."""
MOST_PROMPTS = 20_000
"""Made for one closed loop: counting their tokens takes a minute or two."""


class Wanted(msgspec.Struct, kw_only=True):
    """Everything that was asked for, but the load, which a sweep changes."""

    model: str = ""
    chute: str = ""
    targets: list[str]
    keys: list[str] = []
    verify: bool = True
    wish: Wish = Wish()
    tokenizer: str = ""
    seed: int = 0
    salt: str = ""
    """Empty: a new one."""
    processes: int = 1
    warmup_requests: int = 0
    """0: as many as there are users, at least two for each target."""
    interleave: str = "requests"
    """requests: targets alternate within a load; rounds: each has a load to itself, in turn."""
    repeats: int = 1
    timeout: float = 600.0
    drain: float = 600.0
    think: float = 0.0
    slo: dict[str, float] = {}


def check(wanted: Wanted, load: Load) -> None:
    """Raises UsageError: something in it cannot be; before anything is started."""
    schedule.check(load)
    if load.trace:
        schedule.read_trace(Path(load.trace))
    workloads.check(wanted.wish)
    if wanted.interleave not in ("requests", "rounds"):
        raise UsageError(f"Targets take turns by requests or rounds, not {wanted.interleave!r}.")
    if min(wanted.processes, wanted.repeats) < 1 or wanted.timeout <= 0 or wanted.drain < 0:
        raise UsageError("Processes and repeats are at least 1, times above 0.")


class Session:
    """Targets that answer, and the loads that are put on them. Made by `session`."""

    def __init__(self, wanted: Wanted, there: list[Target], command: str) -> None:
        self.wanted, self.targets = wanted, there
        self.salt = wanted.salt or secrets.token_hex(4)
        self.stop = asyncio.Event()
        self.alone = 0.0
        """Seconds of the fastest answer of the warm-up."""
        self._begun = environment.before(_versions(there))
        self._tokens = self._tokenizer()
        self._made = 0
        self.result = result.Result(
            when=_utc(time.time()),
            command=command,
            config={},
            seed=wanted.seed,
            salt=self.salt,
            slo=wanted.slo,
            targets=[target.about for target in there],
            prediction=next((planner.prediction(t.about.plan) for t in there if t.about.plan), None),
        )
        instances = max((t.deployed.instances for t in there if t.deployed), default=1)
        if instances > 1 and any(target.name == targets.ENGINE for target in there):
            self.result.notes.append(f"{targets.ENGINE} is one of {instances} instances of this chute")

    async def warm_up(self, load: Load) -> None:
        """Requests of the same kind that are not measured; they find out what would go wrong.

        Raises:
            ChutesError: a request of this kind is refused.
        """
        count = self.wanted.warmup_requests or max(2, min(load.concurrency or 2, 16)) * len(self.targets)
        talks = self._prompts(max(count, len(self.targets)), load)
        longest = max((talk[0] for talk in talks), key=lambda ask: len(ask.body))
        output.note(f"Warming up: {len(self.targets)} requests one by one, then {count} together …")
        for target in self.targets:
            await asyncio.to_thread(targets.probe, target, longest)
        shape = Load(
            kind=schedule.CLOSED, concurrency=max(1, min(count, load.concurrency or 2)), requests=count
        )
        outcome = await self._drive(shape, self._jobs(shape, talks, [], None), shown="warming up")
        took = [r.ended - r.sent for r in outcome.records if not r.error]
        if not took and not outcome.interrupted:
            error, message = _first_error(outcome.records)
            raise ChutesError(f"No request of the warm-up was answered ({error}): {message}")
        self.alone = min(took, default=0.0)

    async def phases(self, load: Load, name: str = "") -> list[result.Phase]:
        """Carry a load out, as often as was asked for; what was measured is also in `result`."""
        done: list[result.Phase] = []
        for block in range(self.wanted.repeats):
            order: list[int | None] = [None]
            if self.wanted.interleave == "rounds" and len(self.targets) > 1:
                order = list(range(len(self.targets)))
                Random(f"{self.wanted.seed}:{block}").shuffle(order)
            for target in order:
                if not self.stop.is_set():
                    done.append(await self._phase(load, name or named(load), block, target))
                    self.result.phases.append(done[-1])
        return done

    def finish(self, config: dict[str, Any]) -> result.Result:
        """The whole, with what only its end knows."""
        self.result.config = config
        self.result.environment = environment.after(self._begun)
        self.result.interrupted = INTERRUPTED if self.stop.is_set() else ""
        return self.result

    async def _phase(self, load: Load, name: str, block: int, target: int | None) -> result.Phase:
        entries = schedule.read_trace(Path(load.trace)) if load.trace else []
        talks = self._prompts(self._count(load), load, [entry.lengths() for entry in entries])
        base = [time.monotonic()]
        with ExitStack() as stack:
            sampler: list[Sampler] = []

            def begin(start: float) -> None:
                base[0] = start
                looking = Sampler(self._sources(), clock=lambda: time.monotonic() - base[0])
                sampler.append(stack.enter_context(looking))

            jobs = self._jobs(load, talks, entries, target, block)
            outcome = await self._drive(load, jobs, begin, name)
        if not load.open and load.seconds and not any(r.jobs_left for r in outcome.reports):
            self.result.notes.append(f"{name}: prompts ran out before its time; give it --requests")
        late = sorted(late for report in outcome.reports for late in report.late)
        return result.Phase(
            name=name,
            load=load.document(),
            target="" if target is None else self.targets[target].name,
            block=block,
            started=_utc(outcome.started_at),
            window=load.window(max((r.scheduled for r in outcome.records), default=0.0)),
            seconds=outcome.seconds,
            interrupted=INTERRUPTED if outcome.interrupted else "",
            records=outcome.records,
            samples=sampler[0].samples if sampler else result.Samples(),
            client=result.Client(
                processes=len(outcome.reports),
                lag_p50=_quantile(late, 0.5),
                lag_p99=_quantile(late, 0.99),
                busy=max((report.busy for report in outcome.reports), default=None),
            ),
        )

    async def _drive(
        self, load: Load, jobs: list[Job], begin: Callable[[float], None] = lambda _: None, shown: str = ""
    ) -> clients.Outcome:
        wanted = self.wanted
        addresses = [target.address for target in self.targets]
        plans = clients.split(
            wanted.processes,
            load,
            jobs,
            addresses,
            timeout=wanted.timeout,
            drain=wanted.drain,
            think=wanted.think,
        )
        progress = output.progress()
        started = time.monotonic()

        def tell(answered: int) -> None:
            if load.seconds:
                at, end = min(time.monotonic() - started, load.seconds), load.seconds
            else:
                at, end = min(answered, len(jobs)), len(jobs)
            progress.show(shown, f"{min(answered, len(jobs))} answers", round(at), round(end))

        try:
            return await clients.drive(plans, self.stop, tell, begin)
        finally:
            progress.close()

    def _jobs(
        self,
        load: Load,
        talks: list[list[Ask]],
        entries: Sequence[schedule.TraceEntry],
        target: int | None,
        block: int = 0,
    ) -> list[Job]:
        seed = f"{self.wanted.seed}:{block}"
        count = len(talks)
        who = [target] * count if target is not None else schedule.interleaved(count, len(self.targets), seed)
        when = schedule.arrivals(load, seed, entries) if load.open else [0.0] * count
        return [Job(talk, to, at) for talk, to, at in zip(talks, who, when, strict=False)]

    def _count(self, load: Load) -> int:
        """Requests, or conversations, to be made ready for a load."""
        if load.kind == "trace":
            return len(schedule.arrivals(load, "", schedule.read_trace(Path(load.trace))))
        if load.open:
            return len(schedule.arrivals(load, f"{self.wanted.seed}:0"))
        if load.requests:
            return load.requests
        # Nobody is served faster than who is alone.
        most = load.concurrency * (load.seconds / max(self.alone, 1e-3) * SPARE + 1)
        return min(MOST_PROMPTS, int(most) + 1)

    def _prompts(
        self, count: int, load: Load, lengths: Sequence[tuple[int | None, int | None]] = ()
    ) -> list[list[Ask]]:
        """New ones at every call: no phase meets the prompts of another one in a cache."""
        self._made += 1
        salt = f"{self.salt}{self._made:x}"
        wanted = self.wanted
        longest = min((t.max_model_len for t in self.targets if t.max_model_len), default=None)
        talks = workloads.build(wanted.wish, count, str(wanted.seed), salt, self._tokens, lengths, longest)
        for target in self.targets:
            targets.check_lengths(target, (ask for talk in talks for ask in talk))
        return talks

    def _tokenizer(self) -> tokens.Tokens | None:
        wanted = self.wanted
        if wanted.tokenizer:
            return tokens.local(Path(wanted.tokenizer))
        if not wanted.wish.exact and wanted.wish.kind != "sharegpt":
            return None
        # An engine answers at once, a gateway may meter it.
        by_nearness = sorted(self.targets, key=lambda target: target.name != targets.ENGINE)
        try:
            return tokens.remote(by_nearness[0].address)
        except NotFound:
            if wanted.wish.exact:
                raise
            return None

    def _sources(self) -> list[Source]:
        """What is looked at during the load."""
        found: list[Source] = [Gpus()]
        own = next((target.deployed for target in self.targets if target.deployed), None)
        if own is None:
            target = self.targets[0]
            return [EngineMetrics("vllm", target.url("/metrics"), target.address.key), *found]
        config = settings.load()
        if config.api_url:  # a platform elsewhere: its engines are seen through it only
            return [PlatformMetrics(own.name, f"{config.api_url}/metrics", config.api_key)]
        metrics = EngineMetrics(own.engine, f"http://127.0.0.1:{own.port}/metrics")
        return [metrics, *([Processes(own.pid)] if own.pid else []), *found]


@contextmanager
def session(wanted: Wanted, load: Load, command: str) -> Iterator[Session]:
    """Targets found and checked; what was made for the run is gone after it.

    Raises:
        ChutesError: a target is not there, or does not take what would be asked.
    """
    check(wanted, load)
    with targets.found(wanted.targets, wanted.model, wanted.chute, wanted.keys, wanted.verify) as there:
        for target in there:
            targets.check(target)
        yield Session(wanted, there, command)


@contextmanager
def interruptible(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C ends the load and keeps what was measured; the second cancels the task."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    first = 0.0

    def interrupt() -> None:
        nonlocal first
        if stop.is_set() and task is not None:
            # `timeout` and some shells signal a process and then its group, which it is in.
            if loop.time() - first > SAME_SECONDS:
                task.cancel()
            return
        first = loop.time()
        stop.set()
        output.note("\nStopping; what was measured is kept. Ctrl-C again ends at once.")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def named(load: Load) -> str:
    """What a load is called in tables; the same load has the same name in every run."""
    if load.kind == schedule.CLOSED:
        return f"{load.concurrency} at once"
    if load.kind == "trace":
        return f"trace {Path(load.trace).stem}" + (f" × {load.speed:g}" if load.speed != 1 else "")
    shape = f" {load.burstiness:g}" if load.kind == "gamma" else ""
    return f"{load.kind}{shape} {load.rate:.4g}/s"


def document(wanted: Wanted, load: Load | None) -> dict[str, Any]:
    """What was asked for, without keys; equal in two results that may be compared."""
    hidden = {"keys", "slo", "seed", "salt"}
    plain = {name: value for name, value in msgspec.to_builtins(wanted).items() if name not in hidden}
    return plain | ({"load": load.document()} if load else {})


def _versions(there: list[Target]) -> dict[str, str]:
    return {t.about.engine: t.about.engine_version for t in there if t.about.engine}


def _first_error(records: list[Record]) -> tuple[str, str]:
    return next(((r.error, r.message) for r in records if r.error), ("none", "nothing was sent"))


def _quantile(ordered: list[float], share: float) -> float:
    return statistics.quantiles(ordered, n=1000)[round(share * 1000) - 1] if len(ordered) > 1 else 0.0


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
