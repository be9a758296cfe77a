"""What a client process waits with: sockets and times, and nothing between them and who they are for.

An event loop made for everything costs a request several times what its system calls do, and that is what a
client can least afford: time in it is time in which no clock is read. Here, all that has come is read first,
each with its own time; what it means is looked at only then.
"""

from __future__ import annotations

import ctypes
import heapq
import os
import select
import struct
import time
from collections.abc import Callable

MOST_EVENTS = 512
"""Read in one turn."""
MOST_DUE = 64
"""Called in one turn: who is behind a schedule must not stop reading answers to catch up with it."""

IN, OUT = select.EPOLLIN, select.EPOLLOUT

CLOCK_MONOTONIC = 1
TFD_NONBLOCK, TFD_TIMER_ABSTIME = 0o4000, 1

clock = time.monotonic


class Loop:
    """Calls back when a descriptor is ready, or an absolute time of `clock` has come.

    Its wake-ups are a timerfd's, tens of microseconds late where a core is free: epoll itself counts in
    milliseconds.
    """

    def __init__(self) -> None:
        self.after: list[Callable[[], None]] = []
        """Called, in this order, when all that has come in this turn is read."""
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0
        self._going = False
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._armed = 0.0
        # By edges: that it went off is all it has to say, and nobody has to read it.
        self._epoll.register(self._timer, IN | select.EPOLLET)

    def watch(self, descriptor: int, call: Callable[[], None], events: int = IN) -> None:
        """`call()` whenever it is ready, in place of what was called before; errors make it ready too."""
        if descriptor in self._watched:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._watched[descriptor] = call

    def forget(self, descriptor: int) -> None:
        """To be called before it is closed; and closed only `after`, or what another has come to own by this
        number would be called for what came to this one."""
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def at(self, due: float, call: Callable[[float], None]) -> None:
        """`call(due)`, once `due` has come."""
        self._number += 1
        heapq.heappush(self._due, (due, self._number, call))

    def run(self) -> None:
        """Until `stop`."""
        self._going = True
        while self._going:
            self.turn()

    def stop(self) -> None:
        """`run` returns after this turn."""
        self._going = False

    def turn(self) -> None:
        """Wait for something, and do what is to be done about it."""
        ready = self._wait()
        # The schedule first: answers are stamped when they are read, but late is late.
        for _ in range(MOST_DUE):
            if not self._due or self._due[0][0] > clock():
                break
            due, _, timed = heapq.heappop(self._due)
            timed(due)
        for descriptor, _ in ready:
            call = self._watched.get(descriptor)
            if call is not None:
                call()
        for do in self.after:  # what they add to it too
            do()
        self.after.clear()

    def close(self) -> None:
        os.close(self._timer)
        self._epoll.close()

    def _wait(self) -> list[tuple[int, int]]:
        if not self._due:
            return self._epoll.poll(None, MOST_EVENTS)
        due = self._due[0][0]
        if due <= clock():
            return self._epoll.poll(0, MOST_EVENTS)
        if due != self._armed:
            # An interval of zeros: once. A time that is over meanwhile fires at once; none fires too early.
            seconds = int(due)
            spec = struct.pack("qqqq", 0, 0, seconds, int((due - seconds) * 1e9) + 1)
            self._libc.timerfd_settime(self._timer, TFD_TIMER_ABSTIME, spec, None)
            self._armed = due
        return self._epoll.poll(None, MOST_EVENTS)
