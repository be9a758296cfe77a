"""A client process: `python -m benchmarks.harness.client`, told on stdin what to ask, says on stdout
what came.

It keeps to an absolute schedule. What it is late nevertheless is recorded: with every request, and by a pulse
of its own that also a closed loop has.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Callable

import msgspec

from benchmarks.harness import messages
from benchmarks.harness.asking import Exchange, Pool
from benchmarks.harness.loop import OUT, Loop, clock
from benchmarks.harness.messages import Answered, Ask, Go, Job, Plan, Ready, Report
from benchmarks.harness.records import Record

PULSE_SECONDS = 0.01
"""A hundred times a second is enough for a 99th percentile within seconds and costs nothing."""
FLUSH_SECONDS = 0.25
"""What is lost when a client is killed."""
STDIN, STDOUT = 0, 1


class Client:
    """Carries one plan out."""

    def __init__(self, plan: Plan, loop: Loop, tell: Callable[[bytes], None]) -> None:
        self.plan, self._loop, self._tell = plan, loop, tell
        self.start = 0.0
        self.over = False
        self.pools = [Pool(loop, address, plan.timeout) for address in plan.addresses]
        self.late: list[float] = []
        self._next_job = 0
        self._begun = 0
        self._active = 0
        """Jobs begun and not over."""
        self._waiting = len(plan.users) if not plan.load.open else len(plan.jobs)
        """Users, or jobs, that are still to begin."""
        self._stopped = False
        self._out = bytearray()

    def begin(self, start: float) -> None:
        self.start = start
        for pool in self.pools:
            pool.start = start
        if self.plan.load.open:
            self._await_next()
            last = self.plan.jobs[-1].at if self.plan.jobs else 0.0
        else:
            for begins in self.plan.users:
                self._loop.at(start + begins, self._user)
            last = self.plan.load.seconds
        if last or self.plan.load.open:
            self._loop.at(start + last + self.plan.drain, lambda _: self.stop())
        self._loop.at(start, self._pulse)
        self._loop.at(start, self._keep_flushing)
        self._look()

    def stop(self) -> None:
        """Begin nothing more, and give up what is under way."""
        self._stopped, self._waiting = True, 0
        for pool in self.pools:
            pool.give_up()
        self._active = 0  # whoever is left thinks about what to say next
        self._look()

    def flush(self) -> None:
        """Say what has come since the last time."""
        if self._out:
            self._tell(bytes(self._out))
            self._out.clear()

    def report(self, cpu: float) -> Report:
        used = resource.getrusage(resource.RUSAGE_SELF)
        lasted = max(clock() - self.start, 1e-9)
        busy = (used.ru_utime + used.ru_stime - cpu) / lasted
        return Report(self.late, busy, lasted, len(self.plan.jobs) - self._begun)

    def _pulse(self, due: float) -> None:
        now = clock()
        # Each time that was missed is late by its own share: a stall must not count as one late pulse.
        while due <= now:
            self.late.append(now - due)
            due += PULSE_SECONDS
        self._loop.at(due, self._pulse)

    def _keep_flushing(self, due: float) -> None:
        self.flush()
        self._loop.at(due + FLUSH_SECONDS, self._keep_flushing)

    def _await_next(self) -> None:
        """Of an open loop, whose jobs are in the order of their times."""
        if self._next_job < len(self.plan.jobs):
            self._loop.at(self.start + self.plan.jobs[self._next_job].at, self._open)

    def _open(self, due: float) -> None:
        if self._stopped:
            return
        job = self.plan.jobs[self._next_job]
        self._next_job += 1
        self._waiting -= 1
        self._await_next()
        self._job(job, due, again=False)

    def _user(self, due: float) -> None:
        if not self._stopped:
            self._waiting -= 1
            self._turn(due)

    def _turn(self, due: float) -> None:
        """A user of a closed loop takes the next job, if there is one and time for it."""
        load, jobs = self.plan.load, self.plan.jobs
        if self._next_job < len(jobs) and not (load.seconds and due - self.start >= load.seconds):
            self._next_job += 1
            self._job(jobs[self._next_job - 1], due, again=True)
        else:
            self._look()

    def _job(self, job: Job, due: float, again: bool) -> None:
        if self._stopped:
            return
        self._begun += 1
        self._active += 1
        self._ask(job, 0, due, [], again)

    def _ask(self, job: Job, turn: int, due: float, history: list[dict[str, str]], again: bool) -> None:
        ask = job.asks[turn]
        pool = self.pools[job.target]
        record = Record(
            number=ask.number,
            target=pool.address.name,
            scheduled=due - self.start,
            sent=0.0,
            wanted_input_tokens=ask.wanted_input_tokens,
            wanted_output_tokens=ask.wanted_output_tokens,
            conversation=ask.conversation,
            turn=ask.turn,
            client=self.plan.client,
        )

        def done(exchange: Exchange) -> None:
            self._out += messages.framed(Answered(record))
            if turn + 1 < len(job.asks) and not record.error and not self._stopped:
                said = [*_messages(ask, history), {"role": "assistant", "content": exchange.text}]
                next_due = self.start + record.ended + self.plan.think

                def go_on(due: float) -> None:
                    if not self._stopped:
                        self._ask(job, turn + 1, due, said, again)

                self._loop.at(next_due, go_on) if self.plan.think else go_on(next_due)
                return
            self._active -= 1
            if again and not self._stopped:
                # From when the answer came: what we take until we have looked at it is our own lag.
                self._turn(self.start + record.ended)
            self._look()

        body = None
        if history:
            fields = msgspec.json.decode(ask.body)
            body = msgspec.json.encode({**fields, "messages": _messages(ask, history)})
        pool.ask(ask, record, done, body)

    def _look(self) -> None:
        if not self._active and not self._waiting:
            self.over = True
            self._loop.stop()


def _messages(ask: Ask, history: list[dict[str, str]]) -> list[dict[str, str]]:
    """What was said before, and what this turn adds."""
    return [*history, *msgspec.json.decode(ask.body)["messages"]]


class _Pipe:
    """Our end of the pipe to the benchmark. A slow reader, or none, must not hold up what is measured."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._unsent = bytearray()
        os.set_blocking(STDOUT, False)

    def write(self, data: bytes) -> None:
        self._unsent += data
        self._write()

    def close(self) -> None:
        """Once all is said."""
        os.set_blocking(STDOUT, True)
        self._loop.forget(STDOUT)
        while self._unsent:
            self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(STDOUT, self._unsent)]
        except BlockingIOError:
            self._loop.watch(STDOUT, self._write, OUT)
            return
        except OSError:  # nobody listens any more, and soon the end of stdin says so
            self._unsent.clear()
        self._loop.forget(STDOUT)


def carry_out(plan: Plan) -> None:
    loop = Loop()
    pipe = _Pipe(loop)
    client = Client(plan, loop, pipe.write)
    # No key of the plan's is asked for before its time: these connections only stand open.
    for pool in client.pools:
        pool.prepare(plan.connections)
    while any(pool.opening for pool in client.pools):
        loop.turn()
    # Nothing that lives now dies before the end: the collector need not look at it, nor ever stop us.
    gc.collect()
    gc.freeze()
    gc.disable()
    pipe.write(messages.framed(Ready()))
    go = receive()
    if not isinstance(go, Go):
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime

    def told_to_stop() -> None:
        loop.forget(STDIN)
        client.stop()

    loop.watch(STDIN, told_to_stop)  # its end, and nothing else, comes now
    client.begin(go.start)
    if not client.over:
        loop.run()
    report = client.report(cpu)
    client.flush()
    pipe.write(messages.framed(report))
    pipe.close()
    loop.close()


def receive() -> messages.ToClient | None:
    """The next message from stdin; None when it has ended."""
    head = sys.stdin.buffer.read(messages.FRAME_HEAD)
    if len(head) < messages.FRAME_HEAD:
        return None
    return messages.to_client.decode(sys.stdin.buffer.read(messages.length_of(head)))


def raise_file_limit() -> None:
    """Sockets by the thousand need more than the 1,024 descriptors that a shell gives."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    raise_file_limit()
    plan = receive()
    if isinstance(plan, Plan):
        carry_out(plan)


if __name__ == "__main__":
    main()
