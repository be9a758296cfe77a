"""`python -m chutes.gateway`: one gateway worker, started by control and by nobody else."""

from __future__ import annotations

import argparse

from chutes.gateway import worker


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chutes.gateway", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--channel", type=int, required=True, metavar="FD", help="inherited socket to control"
    )
    parser.add_argument("--listen", type=int, required=True, metavar="FD", help="inherited listening socket")
    parser.add_argument("--max-body", type=int, required=True, metavar="BYTES", help="largest request body")
    arguments = parser.parse_args()
    worker.run(arguments.channel, arguments.listen, arguments.max_body)


if __name__ == "__main__":
    main()
