"""`python -m chutes.gateway`: one gateway worker, started by control and by nobody else."""

from __future__ import annotations

import argparse

from chutes.board import Board
from chutes.gateway import worker


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chutes.gateway", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--channel", type=int, required=True, metavar="FD", help="inherited socket to control"
    )
    parser.add_argument("--listen", type=int, required=True, metavar="FD", help="inherited listening socket")
    parser.add_argument("--max-body", type=int, required=True, metavar="BYTES", help="largest request body")
    parser.add_argument("--board", type=int, metavar="FD", help="inherited memory of shared counters")
    parser.add_argument("--row", type=int, default=0, help="this worker's row in it")
    arguments = parser.parse_args()
    board = Board.create(rows=1).fd if arguments.board is None else arguments.board
    worker.run(arguments.channel, arguments.listen, arguments.max_body, Board(board, arguments.row))


if __name__ == "__main__":
    main()
