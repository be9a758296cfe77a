"""One engine as a process of the platform: started under a minder, asked whether it is ready, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from chutes.engine.contained import NOTE, note_of, remove_noted
from chutes.exception import EngineFailed
from chutes.util.waiting import to_the_end

MINDER = Path(__file__).with_name("minder.py")
MARK = "CHUTES_INSTANCE"
"""Environment variable that names an instance's place; one of the two marks that a sweep looks for."""

# Below Linux's ephemeral range (32768…), so that no outgoing connection can hold the port by chance,
# and above the ports people remember.
PORTS = range(20000, 32000)

LOG_BYTES = 16 << 20
LOG_FILES = 4

# An engine that was told to stop finishes its requests for 20 s; what is still there after this is killed.
STOP_GRACE_SECONDS = 25.0


def free_port(taken: Collection[int] = ()) -> int:
    """A loopback port that could be bound just now and is not in `taken`.

    Raises:
        EngineFailed: a hundred tries found none.
    """
    for _ in range(100):
        port = random.choice(PORTS)
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise EngineFailed(f"No free port was found from {PORTS.start} to {PORTS.stop - 1}.")


def place_of(home: Path, instance_id: str = "") -> Path:
    """The directory in which an instance's processes work; without an id, the one that holds all of them.

    It is also their mark. Whatever an engine forks inherits its working directory and its environment, even
    after it has left the process group and the session. Neither alone is enough: a daemon changes to `/`,
    and vLLM's engine core writes its title over its environment (setproctitle), after which
    /proc/PID/environ reads empty.
    """
    return (home / "run" / "instances" / instance_id).absolute()


def found_in(place: Path) -> list[psutil.Process]:
    """Every process of this user, but ourselves, that bears the mark of `place` or of a place below it."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(
                Path(mark).is_relative_to(place) for mark in _marks(process) if mark
            ):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or somebody else's
    return found


def runs(process: psutil.Process) -> bool:
    """Whether it still does. A zombie does not: whoever should collect it may be nobody's business."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it ended between the two looks
        return False


def private_memory(place: Path) -> int:
    """Bytes of main memory that processes of `place` hold for themselves: not files, which can be dropped."""
    total = 0
    for process in found_in(place):
        with contextlib.suppress(psutil.Error):
            memory = process.memory_info()
            total += max(0, memory.rss - getattr(memory, "shared", 0))
    return total


def _marks(process: psutil.Process) -> Iterator[str]:
    yield process.cwd().removesuffix(" (deleted)")
    yield process.environ().get(MARK, "")


def sweep(place: Path) -> list[int]:
    """Kill every process of `place` and below, those born meanwhile too, and remove their containers; returns
    the pids."""
    killed: list[int] = []
    for _ in range(10):
        found = [process for process in found_in(place) if runs(process)]
        if not found:
            break
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                continue
            killed.append(process.pid)
        psutil.wait_procs(found, timeout=1)
    # Last: who asks for a container must be gone before it is looked for.
    for note in (note_of(place), *place.glob(f"*.{NOTE}")):
        remove_noted(note)
    return killed


@dataclass
class EngineProcess:
    """A running engine tree. Made by `start`; over once `wait` has returned."""

    minder: asyncio.subprocess.Process
    pid: int
    """The engine's first process."""
    log: Path
    place: Path

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], log: Path, place: Path
    ) -> EngineProcess:
        """Start `command` under a minder.

        Args:
            command: the engine's argument vector; no secret belongs in it.
            environment: its whole environment.
            log: where its output goes; rotated at 16 MiB, 4 files.
            place: its working directory, from `place_of`; made here, removed when the engine is gone.

        Raises:
            EngineFailed: it could not be executed.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        minder = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(MINDER),
            "--log", str(log), "--log-bytes", str(LOG_BYTES), "--log-files", str(LOG_FILES),
            "--grace", str(STOP_GRACE_SECONDS), "--", *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**environment, MARK: str(place)},
            cwd=place,
            start_new_session=True,
        )  # fmt: skip
        assert minder.stdout is not None
        try:
            first = await minder.stdout.readline()
        except asyncio.CancelledError:
            minder.kill()
            await asyncio.to_thread(sweep, place)
            raise
        if not first.startswith(b"pid "):
            code = await minder.wait()
            raise EngineFailed(f"{command[0]} could not be started (status {code}): {tail(log, 400).strip()}")
        return cls(minder, int(first.split()[1]), log, place)

    async def wait(self) -> int:
        """Until the whole tree is gone; returns the engine's exit status (128 + signal if killed).

        If the minder itself was killed, what it left is swept here: nobody else would.
        """
        code = await self.minder.wait()
        await asyncio.to_thread(sweep, self.place)
        await asyncio.to_thread(shutil.rmtree, self.place, ignore_errors=True)
        return code if code >= 0 else 128 - code

    async def stop(self, at_once: bool = False) -> None:
        """SIGTERM, a grace, SIGKILL; returns when nothing is left, even if the caller is cancelled meanwhile.

        Args:
            at_once: no grace: for an engine that has nothing to finish and may not even listen yet.
        """
        # "Stopped" must not be said while the tree still runs.
        _, cancelled = await to_the_end(self._stop(at_once))
        if cancelled:
            raise asyncio.CancelledError

    async def _stop(self, at_once: bool) -> None:
        if at_once:
            await asyncio.to_thread(self.kill)
        if self.minder.stdin is not None:
            self.minder.stdin.close()
        try:
            await asyncio.wait_for(self.minder.wait(), STOP_GRACE_SECONDS + 5)
        except TimeoutError:  # a stopped (SIGSTOP) or wedged minder: do its work for it
            self.kill()
        await self.wait()

    def kill(self) -> None:
        """End the tree at once, without asking."""
        if self.minder.returncode is None:
            self.minder.send_signal(signal.SIGKILL)
        sweep(self.place)


def tail(path: Path, size: int) -> str:
    """The last `size` bytes of a log as text; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


async def ask(
    port: int, path: str, key: str, body: Mapping[str, Any] | None = None, timeout: float = 5.0
) -> tuple[int, bytes]:
    """One request to an engine on this machine: GET, or POST of JSON when there is a body.

    Returns:
        (status, body); status 0 when the engine did not answer, with the error's text as the body.
    """

    def request() -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        headers = {"Authorization": f"Bearer {key}"}
        try:
            if body is None:
                connection.request("GET", path, headers=headers)
            else:
                headers["Content-Type"] = "application/json"
                connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error).encode()
        finally:
            connection.close()

    return await asyncio.to_thread(request)
