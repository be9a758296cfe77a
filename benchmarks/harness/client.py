"""A client process: `python -m benchmarks.harness.client`, told on stdin what to ask, says on stdout
what came.

It keeps to an absolute schedule. Its wake-ups come from a timerfd, as the timers of event loops are a
millisecond coarse, and what it is late nevertheless is recorded: with every request, and by a pulse of its
own that also a closed loop has.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import heapq
import os
import resource
import struct
import sys
from collections.abc import Callable

import msgspec
import uvloop

from benchmarks.harness import messages
from benchmarks.harness.asking import Exchange, Pool, clock
from benchmarks.harness.messages import Answered, Ask, Go, Job, Plan, Ready, Report
from benchmarks.harness.records import Record

PULSE_SECONDS = 0.01
"""A hundred times a second is enough for a 99th percentile within seconds and costs nothing."""
FLUSH_SECONDS = 0.25
"""What is lost when a client is killed."""

CLOCK_MONOTONIC = 1
TFD_NONBLOCK, TFD_TIMER_ABSTIME = 0o4000, 1


class Pacer:
    """Calls back at absolute times of CLOCK_MONOTONIC, tens of microseconds late where a core is free."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0
        self._firing = False
        asyncio.get_running_loop().add_reader(self._timer, self._fire)

    def at(self, due: float, call: Callable[[float], None]) -> None:
        """`call(due)`, once `due` has come."""
        self._number += 1
        heapq.heappush(self._due, (due, self._number, call))
        if self._due[0][1] == self._number and not self._firing:
            self._arm()

    def clear(self) -> None:
        self._due.clear()
        self._arm()

    def _arm(self) -> None:
        # An interval of zeros: once. A time of zeros would disarm it, and one that is over fires at once.
        due = self._due[0][0] if self._due else 0.0
        seconds = int(due)
        spec = struct.pack("qqqq", 0, 0, seconds, int((due - seconds) * 1e9))
        self._libc.timerfd_settime(self._timer, TFD_TIMER_ABSTIME, spec, None)

    def _fire(self) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return
        self._firing = True  # whatever they want next is armed once, at the end
        try:
            while self._due and self._due[0][0] <= clock():
                due, _, call = heapq.heappop(self._due)
                call(due)
        finally:
            self._firing = False
            self._arm()


class Client:
    """Carries one plan out."""

    def __init__(self, plan: Plan, tell: Callable[[bytes], None]) -> None:
        self.plan, self._tell = plan, tell
        self.start = 0.0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pools = [Pool(address, timeout=plan.timeout) for address in plan.addresses]
        self.late: list[float] = []
        self._next_job = 0
        self._begun = 0
        self._active = 0
        """Jobs begun and not over."""
        self._waiting = len(plan.users) if not plan.load.open else len(plan.jobs)
        """Users, or jobs, that are still to begin."""
        self._stopped = False
        self._out = bytearray()
        self._pacer = Pacer()

    def begin(self, start: float) -> None:
        self.start = start
        for pool in self.pools:
            pool.start = start
        if self.plan.load.open:
            self._await_next()
            last = self.plan.jobs[-1].at if self.plan.jobs else 0.0
        else:
            for begins in self.plan.users:
                self._pacer.at(start + begins, self._user)
            last = self.plan.load.seconds
        if last or self.plan.load.open:
            self._pacer.at(start + last + self.plan.drain, lambda _: self.stop())
        self._pacer.at(start, self._pulse)
        self._look()

    def stop(self) -> None:
        """Begin nothing more, and give up what is under way."""
        self._stopped, self._waiting = True, 0
        for pool in self.pools:
            pool.give_up()
        self._look()

    def flush(self) -> None:
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
        if not self.over.done():
            self._pacer.at(due, self._pulse)

    def _await_next(self) -> None:
        """Of an open loop, whose jobs are in the order of their times."""
        if self._next_job < len(self.plan.jobs):
            self._pacer.at(self.start + self.plan.jobs[self._next_job].at, self._open)

    def _open(self, due: float) -> None:
        if self._stopped:
            return
        job = self.plan.jobs[self._next_job]
        self._next_job += 1
        self._waiting -= 1
        self._await_next()
        self._job(job, due, again=False)

    def _user(self, due: float) -> None:
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
                next_due = clock() + self.plan.think

                def go_on(due: float) -> None:
                    if self._stopped:
                        self._active -= 1
                        self._look()
                    else:
                        self._ask(job, turn + 1, due, said, again)

                self._pacer.at(next_due, go_on) if self.plan.think else go_on(next_due)
                return
            self._active -= 1
            if again and not self._stopped:
                self._turn(clock())
            self._look()

        body = None
        if history:
            fields = msgspec.json.decode(ask.body)
            body = msgspec.json.encode({**fields, "messages": _messages(ask, history)})
        pool.ask(ask, record, done, body)

    def _look(self) -> None:
        if not self._active and not self._waiting and not self.over.done():
            self.over.set_result(None)


def _messages(ask: Ask, history: list[dict[str, str]]) -> list[dict[str, str]]:
    """What was said before, and what this turn adds."""
    return [*history, *msgspec.json.decode(ask.body)["messages"]]


class _Told(asyncio.Protocol):
    """Our end of the pipe to the benchmark: closed when all is said, or when nobody listens any more."""

    def __init__(self) -> None:
        self.closed = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


async def carry_out(plan: Plan) -> None:
    loop = asyncio.get_running_loop()
    transport, told = await loop.connect_write_pipe(_Told, sys.stdout.buffer)
    client = Client(plan, transport.write)
    # No key of the plan's is asked for before its time: these connections only stand open.
    await asyncio.gather(*(pool.prepare(plan.connections) for pool in client.pools))
    # Nothing that lives now dies before the end: the collector need not look at it, nor ever stop us.
    gc.collect()
    gc.freeze()
    gc.disable()
    transport.write(messages.framed(Ready()))
    go = await loop.run_in_executor(None, receive)
    if not isinstance(go, Go):
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime
    loop.add_reader(0, lambda: (loop.remove_reader(0), client.stop()))  # its end, and nothing else, comes now
    client.begin(go.start)
    while not client.over.done():
        await asyncio.wait([client.over], timeout=FLUSH_SECONDS)
        client.flush()
    for pool in client.pools:
        pool.close()
    transport.write(messages.framed(client.report(cpu)))
    transport.close()
    await told.closed


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
        uvloop.run(carry_out(plan))


if __name__ == "__main__":
    main()
