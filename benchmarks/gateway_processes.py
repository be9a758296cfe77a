"""A synthetic engine and a gateway worker, as processes to be killed: used by `gateway_soak`."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import psutil

from chutes import wire
from chutes.board import INSTANCE_SLOTS, Board

ENGINE = Path(__file__).parents[1] / "tests" / "integration" / "synthetic_engine.py"


class Engine:
    """A synthetic engine that serves one chute."""

    numbers = itertools.count(1)

    def __init__(self, chute: str) -> None:
        self.chute = chute
        self.number = next(self.numbers)
        command = [sys.executable, str(ENGINE), "--port", "0", "--api-key", "k", "--served-model-name", chute]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline().split()[-1])
        self.upstream = wire.Upstream(
            f"instance-{self.number}", "127.0.0.1", port, "k", self.number % INSTANCE_SLOTS
        )

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Worker:
    """One slot of the gateway: a listening socket, a row of the board, and the process that has them now."""

    def __init__(self, row: int, listener: socket.socket, board: Board) -> None:
        self.row, self.listener, self.board = row, listener, board
        self.records: Counter[str] = Counter()
        self.memory: list[int] = []
        """Resident bytes of this process, once a second."""
        self.complaints = ""
        self.listening = asyncio.Event()

    async def start(self, table: wire.Table) -> None:
        self.board.clear(self.row)
        self.memory = []
        self.listening.clear()
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), self.listener.fileno(), self.board.fd)
        command = ["-m", "chutes.gateway", "--channel", str(fds[0]), "--listen", str(fds[1])]
        command += ["--max-body", str(1 << 20), "--board", str(fds[2]), "--row", str(self.row)]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *command, pass_fds=fds, stderr=asyncio.subprocess.PIPE
        )
        theirs.close()
        reader, self.writer = await asyncio.open_connection(sock=ours, limit=1 << 24)
        self.tasks = [asyncio.create_task(self._read(reader)), asyncio.create_task(self._complain())]
        self.publish(table)
        await self.listening.wait()

    def publish(self, table: wire.Table) -> None:
        self.writer.write(msgspec.json.encode(wire.Publish(table)) + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            event = msgspec.json.decode(line, type=wire.FromWorker)
            if isinstance(event, wire.Listening):
                self.listening.set()
            elif isinstance(event, wire.Usage):
                self.records.update(f"{r.status} {r.error}".rstrip() for r in event.records)

    async def _complain(self) -> None:
        assert self.process.stderr is not None
        self.complaints += (await self.process.stderr.read()).decode()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()
        self.writer.close()
        await asyncio.gather(*self.tasks)

    def sockets(self) -> int:
        return psutil.Process(self.process.pid).num_fds()
