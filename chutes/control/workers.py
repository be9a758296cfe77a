"""Gateway workers as children of the platform: started, fed the route table, replaced when they die.

Each worker owns a slot: a listening socket with SO_REUSEPORT that this process keeps open and the
worker inherits. So a connection that arrives while a slot's worker is being replaced waits in that
socket's queue for the next one instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from chutes.board import Board
from chutes.config import Config
from chutes.control.metering import USAGE_PREFIX
from chutes.exception import ChutesError, PortTaken
from chutes.wire import (
    Drain,
    FromWorker,
    Listening,
    Publish,
    Table,
    ToWorker,
    UpstreamLost,
    Usage,
    Wake,
)

log = logging.getLogger(__name__)

START_SECONDS = 30.0  # they take a third of a second on an idle machine
BACKLOG = 2048  # connections that may wait for a busy or absent worker
DRAIN_SECONDS = 10.0  # what `chutes down` gives requests in flight
# A worker that dies at once would otherwise be started hundreds of times a second.
RESTART_SECONDS = 0.2
QUICK_DEATH_SECONDS = 2.0
QUICK_DEATHS = 5
LINE_BYTES = 16 << 20  # the longest message: a quarter of a second's requests are a few hundred KiB

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(FromWorker)


def listen(host: str, port: int, slots: int, shared: bool = False) -> list[socket.socket]:
    """One listening socket a slot, all on the same port (`port` 0: one that is free).

    Args:
        shared: others of this user may listen there already.

    Raises:
        PortTaken: another program listens there, or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets: list[socket.socket] = []
    try:
        # SO_REUSEPORT would let us share the port with another platform of the same user, silently: a
        # first bind without it finds out.
        with socket.socket(family) as probe:
            if shared:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            port = probe.getsockname()[1]
        for _ in range(slots):
            listener = socket.socket(family)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
        for listener in sockets:
            listener.listen(BACKLOG)
    except OSError as error:
        for listener in sockets:
            listener.close()
        raise PortTaken(
            f"{host}:{port} cannot be listened on: {error.strerror}.",
            f"See who has it with `ss -ltnp 'sport = :{port}'`, or take another: "
            f"CHUTES_PORT={port + 1}, or --port {port + 1}.",
        ) from None
    return sockets


class Ears(Protocol):
    """Who listens to what workers say. Called on the loop; must not block."""

    def upstream_lost(self, lost: UpstreamLost) -> None: ...

    def wake(self, chute_id: str) -> None: ...

    def usage(self, message: bytes | Usage) -> None:
        """Requests that have ended: the message, or its line as it came, to be read later."""
        ...


@dataclass
class _Slot:
    row: int
    """Its worker's row on the board."""
    listener: socket.socket
    process: asyncio.subprocess.Process | None = None
    writer: asyncio.StreamWriter | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    quick_deaths: int = 0


class Workers:
    """The gateway's processes."""

    def __init__(self, config: Config, ears: Ears) -> None:
        self._config = config
        self._ears = ears
        self.board = Board.create(rows=config.workers)
        self._table: Table | None = None
        self._slots: list[_Slot] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self.port = config.port

    async def start(self, table: Table) -> None:
        """Bind, start every worker and wait until all of them serve.

        Raises:
            PortTaken: see `listen`.
        """
        self._table = table
        sockets = listen(self._config.host, self._config.port, self._config.workers)
        self.port = sockets[0].getsockname()[1]
        self._slots = [_Slot(row, listener) for row, listener in enumerate(sockets)]
        self._tasks = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.gather(*(slot.ready.wait() for slot in self._slots))
        except TimeoutError:
            raise ChutesError(
                f"The gateway's workers did not come up within {START_SECONDS:.0f} s.", "See platform.log."
            ) from None

    def publish(self, table: Table) -> None:
        """Give every worker a new table."""
        self._table = table
        for slot in self._slots:
            self._send(slot, Publish(table))

    async def close(self) -> None:
        """Stop listening, let requests in flight finish for a while, end every worker."""
        self._closing = True
        for slot in self._slots:
            self._send(slot, Drain(DRAIN_SECONDS))
            slot.listener.close()
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS + 2)
            for slot in self._slots:
                if slot.process is not None and slot.process.returncode is None:
                    slot.process.kill()
            for task in pending:
                await task

    def pids(self) -> list[int]:
        return list(self.pid_by_row().values())

    def pid_by_row(self) -> dict[int, int]:
        """Workers that run."""
        processes = {slot.row: slot.process for slot in self._slots}
        return {row: p.pid for row, p in processes.items() if p is not None and p.returncode is None}

    def _send(self, slot: _Slot, message: ToWorker) -> None:
        if slot.writer is not None and not slot.writer.is_closing():
            slot.writer.write(_encoder.encode(message) + b"\n")

    async def _keep(self, slot: _Slot) -> None:
        """Start a slot's worker, and start it again whenever it dies."""
        while not self._closing:
            began = time.monotonic()
            try:
                code: int | str = await self._run(slot)
            except Exception as error:  # no descriptors, no memory: the slot must outlive it
                log.exception("a gateway worker could not be run")
                code = type(error).__name__
            if self._closing:
                return
            self.board.clear(slot.row)  # what it had in flight is in flight no more
            slot.quick_deaths = slot.quick_deaths + 1 if time.monotonic() - began < QUICK_DEATH_SECONDS else 0
            log.warning("gateway worker ended with status %s; starting another", code)
            await asyncio.sleep(RESTART_SECONDS if slot.quick_deaths < QUICK_DEATHS else QUICK_DEATH_SECONDS)

    async def _run(self, slot: _Slot) -> int:
        ours, theirs = socket.socketpair()
        try:
            slot.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "chutes.gateway",
                "--channel", str(theirs.fileno()),
                "--listen", str(slot.listener.fileno()),
                "--max-body", str(self._config.max_body_bytes),
                "--board", str(self.board.fd),
                "--row", str(slot.row),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), slot.listener.fileno(), self.board.fd),
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C at a terminal is for the platform alone
            )  # fmt: skip
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, slot.writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES)
        assert self._table is not None
        self._send(slot, Publish(self._table))
        if self._closing:
            self._send(slot, Drain(DRAIN_SECONDS))
        try:
            with contextlib.suppress(ConnectionError):
                # A last line without its end is what a killed worker did not get to say.
                while (line := await reader.readline()).endswith(b"\n"):
                    self._hear(slot, line)
        except BaseException:
            slot.process.kill()  # nobody listens to it any more, and the next one gets its row
            raise
        finally:
            slot.writer.close()
            code = await slot.process.wait()
        return code

    def _hear(self, slot: _Slot, line: bytes) -> None:
        if line.startswith(USAGE_PREFIX):
            self._ears.usage(line)
            return
        try:
            message = _decoder.decode(line)
        except msgspec.MsgspecError:
            log.exception("a gateway worker sent what cannot be understood")
            return
        match message:
            case Listening():
                slot.ready.set()
            case UpstreamLost():
                self._ears.upstream_lost(message)
            case Wake(chute_id):
                self._ears.wake(chute_id)
            case Usage():
                self._ears.usage(message)
