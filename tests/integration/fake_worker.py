"""A gateway worker that serves nothing: it says what a test wants control to hear.

Started in a worker's place with its arguments. On its first table it listens; it marks its row of the
board; on a drain, and once at the start, it sends usage, the last of it just before it ends. `FAKE_WORKER`
in the environment is JSON: `records` per message, `garbage` to send a line that is no message, `greet` to
record, as an instance's name, what it found in its row.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time

import msgspec

from chutes import wire
from chutes.board import Board


def record(number: int, instance: str = "i1") -> wire.Record:
    return wire.Record(
        f"r{number}", "k1", "c1", instance, "POST", "/v1/chat/completions", "m", 200, "", time.time(), 0.0,
        0.1, 0.2, 10, 5, 0, 6, 0, True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", dest="module")
    for name in ("--channel", "--listen", "--max-body", "--board", "--row"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    wanted = json.loads(os.environ.get("FAKE_WORKER", "{}"))
    channel = socket.socket(fileno=options.channel)
    mine = Board(options.board, options.row).mine
    seen = mine[7]
    mine[7] = 1
    lines = channel.makefile("rb")

    def send(message: wire.FromWorker) -> None:
        channel.sendall(msgspec.json.encode(message) + b"\n")

    lines.readline()
    if wanted.get("garbage"):
        channel.sendall(b'{"type": "unheard of"}\n{{{\n')
    send(wire.Listening(os.getpid()))
    send(wire.Wake("a chute that does not sleep"))
    if wanted.get("greet"):
        send(wire.Usage([record(0, f"row-{options.row}-saw-{seen}")]))
    send(wire.Usage([record(n) for n in range(wanted.get("records", 0))]))
    for line in lines:
        if isinstance(msgspec.json.decode(line, type=wire.ToWorker), wire.Drain):
            time.sleep(0.2)
            send(wire.Usage([record(n) for n in range(wanted.get("records", 0))]))
            return


if __name__ == "__main__":
    main()
