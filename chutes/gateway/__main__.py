"""`python -m chutes.gateway`: one gateway worker, started by control and by nobody else."""

from __future__ import annotations

import argparse
import sys

from chutes.exception import PortTaken
from chutes.gateway import worker

EXIT_PORT_TAKEN = 3
"""Control tells a taken port from a crash by this, and does not start the worker again."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chutes.gateway", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--channel", type=int, required=True, metavar="FD", help="inherited socket to control"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--max-body", type=int, required=True, metavar="BYTES", help="largest request body")
    parser.add_argument("--listen", type=int, metavar="FD", help="inherited socket that listens already")
    arguments = parser.parse_args()
    try:
        worker.run(arguments.channel, arguments.host, arguments.port, arguments.max_body, arguments.listen)
    except PortTaken as error:
        sys.stderr.write(f"{error.message} {error.fix}\n")
        return EXIT_PORT_TAKEN
    return 0


if __name__ == "__main__":
    sys.exit(main())
