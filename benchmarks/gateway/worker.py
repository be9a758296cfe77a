"""Our own contender: one gateway worker with everything on, and a small control that hears what it says.

The control is a thread here, on the CPU of the load: it reads every message, decodes it, and counts what was
metered, so that the worker pays for its messages and the benchmark can compare the counts.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import msgspec

from benchmarks.gateway.contenders import ENGINE_KEY, KEYS, MODEL, PATH, Running, Setting, spawn
from chutes import wire
from chutes.board import Board

OTHER_CHUTES = 19
"""A table as a busy platform has it; only one chute is asked for."""
MAX_BODY = 32 << 20
PLENTY = 1_000_000_000
"""A limit that is counted for every request and never reached."""


def table(engine_ports: list[int]) -> wire.Table:
    paths = {path: path for path in (PATH, "/v1/completions", "/v1/embeddings", "/tokenize")}

    def route(number: int, name: str, ports: list[int]) -> wire.Route:
        upstreams = [
            wire.Upstream(f"i-{number}-{index}", "127.0.0.1", port, ENGINE_KEY, slot=2 * number + index)
            for index, port in enumerate(ports)
        ]
        return wire.Route(
            chute_id=f"chute-{number}",
            name=name,
            paths=paths,
            upstreams=upstreams,
            phase="ready",
            detail="",
            created=1_760_000_000,
            engine="vllm",
            max_model_len=32768,
            aliases=[f"alias-{number}"],
            slug=f"bench-{number}",
            concurrency=8192,
            capabilities=["chat", "completions", "tools"],
            price=wire.Price(0.1, 0.4, 0.05),
        )

    others = [route(number, f"bench/Other-{number}", [9, 9]) for number in range(1, OTHER_CHUTES + 1)]
    keys = [
        wire.Key(
            key_id=f"key-{slot}",
            digest=wire.key_digest(key),
            requests_per_minute=PLENTY,
            tokens_per_minute=PLENTY,
            concurrency=PLENTY,
            slot=slot,
        )
        for slot, key in enumerate(KEYS)
    ]
    return wire.Table(routes=[*others[:10], route(0, MODEL, engine_ports), *others[10:]], keys=keys)


class Control:
    """The other end of a worker's channel."""

    def __init__(self, channel: socket.socket, published: wire.Table) -> None:
        self._channel = channel
        self.messages: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.tokens = 0
        channel.sendall(msgspec.json.encode(wire.Publish(published)) + b"\n")
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        decoder = msgspec.json.Decoder(wire.FromWorker)
        with self._channel.makefile("rb") as lines:
            for line in lines:
                message: Any = decoder.decode(line)
                self.messages[type(message).__name__] += 1
                if isinstance(message, wire.Usage):
                    self.statuses.update(record.status for record in message.records)
                    self.tokens += sum(record.completion_tokens for record in message.records)

    def told(self) -> str:
        """What was metered, in words."""
        if not self.messages["Usage"]:
            return "it sent no usage: this worker does not meter"
        time.sleep(1.5)  # the last message is at most a second late
        lost = f", {self.messages['UpstreamLost']} upstreams lost" if self.messages["UpstreamLost"] else ""
        return f"it metered {dict(self.statuses)} by status, {self.tokens} completion tokens{lost}"


def chutes(setting: Setting) -> Running:
    """One worker of ours: keys with limits, routing over a table, metering."""
    command = [sys.executable, "-m", "chutes.gateway"]
    known = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    ours, theirs = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    fds = [theirs.fileno(), listener.fileno()]
    command += ["--channel", str(fds[0]), "--listen", str(fds[1]), "--max-body", str(MAX_BODY)]
    if "--board" in known:
        board = Board.create(1)
        fds.append(board.fd)
        command += ["--board", str(board.fd), "--row", "0"]
    process = spawn(setting.cpu, command, setting.place / "log", fds=fds)
    theirs.close()
    control = Control(ours, table(setting.engine_ports))
    running = Running("chutes", listener.getsockname()[1], [process])
    running.notes = control.told
    running.metered = lambda: control.statuses[200]
    listener.close()
    return running
