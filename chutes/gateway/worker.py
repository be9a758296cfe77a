"""The process around the data plane: its channel to control, its listening socket, its orderly end.

A worker inherits its socket and accepts from it only once it has a table: before that it knows no keys
and would turn clients away. Until then they wait in the socket's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import cast

import msgspec
import uvloop

from chutes import wire
from chutes.board import Board
from chutes.gateway import limits
from chutes.gateway.clients import Clients
from chutes.gateway.service import Service

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Channel(asyncio.Protocol):
    """The socket pair shared with control: one JSON document per line, each way."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._decoder = msgspec.json.Decoder(wire.ToWorker)
        self._encoder = msgspec.json.Encoder()
        self.closed = asyncio.Event()
        self._lines: list[bytes] = []
        """Pieces of a line that has not ended: a table of many chutes takes several reads."""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derives from nothing of asyncio

    def data_received(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._lines.append(line)
            text = b"".join(self._lines)
            self._lines = []
            if text:
                self._worker.obey(self._decoder.decode(text))
        if rest:
            self._lines.append(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.closed.set()
        self._worker.drain(limits.DRAIN_SECONDS)  # control has gone; nobody will stop us otherwise

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()  # once what was sent has gone out

    def send(self, message: wire.FromWorker) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._encoder.encode(message) + b"\n")


class Worker:
    """One gateway process.

    Args:
        listener: a bound socket; whether it listens already makes no difference.
        max_body: bytes of the largest request body.
        board: where requests in flight are counted, with a row for this worker.
    """

    def __init__(self, listener: socket.socket, max_body: int, board: Board) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._service = Service(max_body, board)
        self._channel = Channel(self)
        self._clients = Clients(self._service, self._channel.send)
        self._clients.emptied = self._stop
        self._server: asyncio.Server | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._deadline: float | None = None
        """Loop time at which draining gives up; None while serving."""

    async def run(self, channel: socket.socket) -> None:
        """Serve until control says otherwise or goes away."""
        self._loop.add_signal_handler(signal.SIGTERM, self.drain, limits.DRAIN_SECONDS)
        # Ctrl-C reaches the whole process group; control decides what it means, and tells us.
        self._loop.add_signal_handler(signal.SIGINT, lambda: None)
        await self._loop.create_connection(lambda: self._channel, sock=channel)
        rounds: tuple[tuple[float, Callable[[], None]], ...] = (
            (1, self._clients.sweep),
            (limits.FLUSH_SECONDS, self._clients.meter.flush),
            (limits.LINE_SECONDS, self._serve_lines),
        )
        tasks = [self._loop.create_task(self._every(seconds, what)) for seconds, what in rounds]
        await self._ended.wait()
        for task in tasks:
            task.cancel()
        self._clients.abort()
        await asyncio.sleep(0)  # requests that this cut off are recorded as their connections end
        self._clients.meter.flush()
        self._channel.close()
        with contextlib.suppress(TimeoutError):  # control may be slow to read, or gone
            await asyncio.wait_for(self._channel.closed.wait(), limits.CHANNEL_SECONDS)
        self._service.upstreams.close()
        await asyncio.sleep(0)  # closed transports are released in the next turn of the loop

    def obey(self, message: wire.ToWorker) -> None:
        match message:
            case wire.Publish(table):
                self._service.swap(table)
                if self._starting is None and self._deadline is None:
                    self._starting = self._loop.create_task(self._listen())
            case wire.Drain(seconds):
                self.drain(seconds)

    def drain(self, seconds: float) -> None:
        """Stop listening, finish what is in flight, end. A second call may shorten the wait."""
        deadline = self._loop.time() + seconds
        if self._deadline is not None and self._deadline <= deadline:
            return
        first = self._deadline is None
        self._deadline = deadline
        self._loop.call_at(deadline, self._stop)
        if first:
            if self._server is not None:
                self._server.close()
            self._listener.close()
            self._clients.drain()

    async def _listen(self) -> None:
        if self._deadline is not None:  # told to end in the same breath: the listener is closed
            return
        self._server = await self._loop.create_server(
            self._clients.accept, sock=self._listener, backlog=limits.BACKLOG
        )
        # What exists now stays until the end: the collector need not look at it again and again, and
        # pages shared with other processes stay shared.
        gc.collect()
        gc.freeze()
        # Requests leave no cycles behind; looking for some every 700 objects took some percent of the time.
        gc.set_threshold(20_000, 20, 50)
        self._channel.send(wire.Listening(os.getpid()))

    async def _every(self, seconds: float, what: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                what()
            except Exception as error:  # a defect: without its sweep a worker would enforce nothing any more
                self._loop.call_exception_handler({"message": "a sweep failed", "exception": error})

    def _serve_lines(self) -> None:
        """Other workers free places without telling us."""
        self._service.upstreams.serve(self._loop.time())

    def _stop(self) -> None:
        self._ended.set()


def run(channel_fd: int, listen_fd: int, max_body: int, board: Board) -> None:
    """Be a worker until told to stop.

    Args:
        channel_fd: one end of a socket pair whose other end control holds.
        listen_fd: a socket that listens already. Control keeps it open too, so that what waits in its
            queue when this worker dies is served by the next one.
    """
    _end_with_parent()
    _raise_file_limit()
    listener = socket.socket(fileno=listen_fd)
    listener.setblocking(False)
    channel = socket.socket(fileno=channel_fd)
    channel.setblocking(False)

    async def main() -> None:
        await Worker(listener, max_body, board).run(channel)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when control dies, should another process still hold the channel."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _raise_file_limit() -> None:
    """Two descriptors a request need more than the 1,024 that a shell gives."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
