"""Counters in shared memory: one writer a row, totals for everybody."""

from __future__ import annotations

import os
import subprocess
import sys

from chutes.board import COLUMNS, KEY_CELLS, KEYS_AT, Board


def test_a_total_is_the_sum_over_workers_and_a_cleared_row_counts_no_more() -> None:
    control = Board.create(rows=3)
    first, second = Board(control.fd, row=0), Board(control.fd, row=1)
    first.mine[5] += 2
    second.mine[5] += 3
    second.mine[6] = 9
    assert [control.total(5), first.total(5), second.total(6)] == [5, 5, 9]
    control.clear(1)
    assert [control.total(5), first.total(6)] == [2, 0]


def test_one_worker_alone_reads_its_own_row() -> None:
    worker = Board(Board.create(rows=1).fd, row=0)
    worker.mine[7] = 4
    assert worker.alone
    assert worker.total(7) == 4


def test_cells_of_one_key_come_row_by_row() -> None:
    control = Board.create(rows=2)
    worker = Board(control.fd, row=1)
    worker.mine[KEYS_AT + KEY_CELLS : KEYS_AT + KEY_CELLS + 2] = memoryview(
        (7).to_bytes(8, "little") + (8).to_bytes(8, "little")
    ).cast("q")
    assert control.cells(KEYS_AT + KEY_CELLS, 2) == [[0, 0], [7, 8]]


def test_another_process_sees_and_writes_the_same_memory() -> None:
    control = Board.create(rows=2)
    code = f"from chutes.board import Board; Board({control.fd}, row=1).mine[{COLUMNS - 1}] = 11"
    os.set_inheritable(control.fd, True)
    subprocess.run([sys.executable, "-c", code], check=True, pass_fds=[control.fd])
    assert control.total(COLUMNS - 1) == 11
