"""What a client process waits with: sockets and times, and nothing between them and who they are for.

An event loop made for everything decodes what it has read before it reads the next, whose time is then late
by that. Here, all that has come is read first, each read with its own time; only then is any of it looked at.
"""

from __future__ import annotations

import ctypes
import heapq
import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Generic, TypeVar

MOST_EVENTS = 512
"""Read in one turn."""
MOST_DUE = 64
"""Called in one turn: who is behind a schedule must not stop reading answers to catch up with it."""

IN, OUT = select.EPOLLIN, select.EPOLLOUT

CLOCK_MONOTONIC = 1
TFD_NONBLOCK, TFD_TIMER_ABSTIME = 0o4000, 1

clock = time.monotonic

Item = TypeVar("Item")


class Loop:
    """Calls back when a descriptor is ready, or an absolute time of `clock` has come.

    Its wake-ups are a timerfd's, tens of microseconds late where a core is free: epoll itself counts in
    milliseconds.
    """

    def __init__(self) -> None:
        self.after: list[Callable[[], None]] = []
        """Called, in this order, when all that has come in this turn is read."""
        self.began = 0.0
        """When this turn knew what had come."""
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
        self.began = clock()
        # The schedule first: answers are stamped when they are read, but late is late. What comes to be due
        # while we are at it has its turn when the descriptors have been asked again.
        for _ in range(MOST_DUE):
            if not self._due or self._due[0][0] > self.began:
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
            spec = struct.pack("qqqq", 0, 0, *divmod(int(due * 1e9) + 1, 10**9))
            if self._libc.timerfd_settime(self._timer, TFD_TIMER_ABSTIME, spec, None):
                raise OSError(ctypes.get_errno(), "timerfd_settime failed")
            self._armed = due
        return self._epoll.poll(None, MOST_EVENTS)


class Limit(Generic[Item]):
    """What may take so many seconds and no longer. As all have the same, the first is the first that is late,
    and one time is waited for: one for each would be a tenth of what a request costs."""

    def __init__(self, loop: Loop, seconds: float, late: Callable[[Item], None]) -> None:
        self._loop, self._seconds, self._late = loop, seconds, late
        self._until: dict[Item, float] = {}
        self._waiting = False

    def add(self, item: Item, now: float) -> None:
        """Its time begins `now`. `late(item)` is called, and it is in here no more, when it is over."""
        self._until[item] = now + self._seconds
        if not self._waiting:
            self._waiting = True
            self._loop.at(now + self._seconds, self._is_over)

    def discard(self, item: Item) -> None:
        """It has ended in time."""
        self._until.pop(item, None)

    def __contains__(self, item: object) -> bool:
        return item in self._until

    def __iter__(self) -> Iterator[Item]:
        return iter(self._until)

    def __len__(self) -> int:
        return len(self._until)

    def _is_over(self, due: float) -> None:
        # Times come before reads. What came before this turn was in time, so that is looked at first: at the
        # end of what there is to look at, the end is looked for again.
        del due
        self._loop.after.append(lambda: self._loop.after.append(self._end))

    def _end(self) -> None:
        began = self._loop.began
        for item in list(takewhile(lambda item: self._until[item] <= began, self._until)):
            if self._until.pop(item, None) is not None:
                self._late(item)
        first = next(iter(self._until.values()), None)
        self._waiting = first is not None
        if first is not None:
            self._loop.at(first, self._is_over)
