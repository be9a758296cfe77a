"""Counters that gateway workers and control share without a message: a table of integers in shared memory.

Each worker has a row that it alone writes, so nothing is locked; whoever wants a total adds up a column. A
total may therefore be a few microseconds old: two workers that look at the same moment can both take the
last free place. Control makes the board, hands it to workers as an inherited descriptor, and clears a row
before it gives it to the next worker, as a killed one cannot take its requests off.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Final

INSTANCE_SLOTS: Final = 1024
KEY_SLOTS: Final = 4096

# Of a key, all about its present minute (see `gateway/quota.py`).
MINUTE: Final = 0
REQUESTS: Final = 1
TOKENS: Final = 2
REQUESTS_BEFORE: Final = 3
TOKENS_BEFORE: Final = 4
KEY_IN_FLIGHT: Final = 5
KEY_CELLS: Final = 6

# Columns of a row: requests in flight and waiting by instance slot, then the cells of each key.
QUEUED_AT: Final = INSTANCE_SLOTS
KEYS_AT: Final = 2 * INSTANCE_SLOTS
COLUMNS: Final = KEYS_AT + KEY_SLOTS * KEY_CELLS
CELL_BYTES: Final = 8


class Board:
    """The shared table, as one process sees it.

    Args:
        fd: descriptor of the memory; stays open, as workers inherit it.
        row: the one that this process writes; None for control, which only reads and clears.
    """

    def __init__(self, fd: int, row: int | None = None) -> None:
        self.fd = fd
        self.rows = os.fstat(fd).st_size // (COLUMNS * CELL_BYTES)
        self._cells = memoryview(mmap.mmap(fd, 0)).cast("q")
        """All rows one after another; memory that nobody has touched costs nothing."""
        self._mine = self._cells[row * COLUMNS : (row + 1) * COLUMNS] if row is not None else None
        self.alone = row is not None and self.rows == 1

    @classmethod
    def create(cls, rows: int) -> Board:
        """A new board of zeros, for as many workers as `rows`."""
        fd = os.memfd_create("chutes-board")
        os.ftruncate(fd, rows * COLUMNS * CELL_BYTES)
        return cls(fd)

    @property
    def mine(self) -> memoryview:
        """The row of this process, by column."""
        assert self._mine is not None, "control has no row"
        return self._mine

    def total(self, column: int) -> int:
        """A column over all rows."""
        if self.alone:
            return self._cells[column]
        return sum(self._cells[column::COLUMNS])

    def totals(self, columns: Sequence[int]) -> list[int]:
        """The same for several columns."""
        cells = self._cells
        if self.alone:
            return [cells[column] for column in columns]
        return [sum(cells[column::COLUMNS]) for column in columns]

    def cells(self, first: int, count: int) -> list[list[int]]:
        """`count` columns from `first`, row by row."""
        return [
            self._cells[row * COLUMNS + first : row * COLUMNS + first + count].tolist()
            for row in range(self.rows)
        ]

    def clear(self, row: int) -> None:
        """Forget what a worker that has died left in its row."""
        self._cells[row * COLUMNS : (row + 1) * COLUMNS] = memoryview(bytes(COLUMNS * CELL_BYTES)).cast("q")
