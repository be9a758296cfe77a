"""Numbers on the board for things that come and go: one each, kept for life, given out again late."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable

from chutes.board import INSTANCE_SLOTS, KEY_SLOTS

log = logging.getLogger(__name__)


class Slots:
    """Gives numbers to names.

    A freed number goes to the end of the queue, so that it is given out again as late as possible: a
    worker may still be taking requests of the old owner off it.

    Args:
        what: what they are for, in the words of the log.
        first: numbers below this one are not given out.
    """

    def __init__(self, what: str, count: int, first: int = 0) -> None:
        self._what = what
        self._count = count - first
        self._free = deque(range(first, count))
        self._full_for: set[str] = set()
        """Names that have gone without and are known to the log."""
        self.of: dict[str, int] = {}
        """Number by name, of those that have one."""

    @property
    def left(self) -> int:
        return len(self._free)

    def keep(self, names: Iterable[str]) -> None:
        """These and no others: numbers of names that are gone are freed, new names get one if any is left."""
        wanted = dict.fromkeys(names)
        for name in [name for name in self.of if name not in wanted]:
            self._free.append(self.of.pop(name))
        self._full_for &= wanted.keys()
        for name in wanted:
            if name in self.of:
                continue
            if self._free:
                self.of[name] = self._free.popleft()
                self._full_for.discard(name)
            elif name not in self._full_for:
                self._full_for.add(name)
                log.error(
                    "%s %s cannot be used: all %s places on the gateway's board are taken; remove others",
                    self._what, name, self._count,
                )  # fmt: skip


def for_instances() -> Slots:
    """Slot 0 is the control API's: its `Upstream` says so by default."""
    return Slots("instance", INSTANCE_SLOTS, first=1)


def for_keys() -> Slots:
    return Slots("API key", KEY_SLOTS)
