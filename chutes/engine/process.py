"""One engine as a process of the platform: started under a minder, asked whether it is ready, stopped."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from chutes.exception import EngineFailed

MINDER = Path(__file__).with_name("minder.py")
MARK = "CHUTES_INSTANCE"
"""Environment variable that everything an engine forks inherits; what a sweep looks for."""

# Below Linux's ephemeral range (32768…), so that no outgoing connection can hold the port by chance,
# and above the ports people remember.
PORTS = range(20000, 32000)

LOG_BYTES = 16 << 20
LOG_FILES = 4

# vLLM drains and leaves within a few seconds of SIGTERM; what is still there after this is killed.
STOP_GRACE_SECONDS = 10.0


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


def mark_of(home: Path, instance_id: str = "") -> str:
    """The mark of one instance; without an id, what the marks of all instances of this home start with."""
    return f"{home}:{instance_id}"


def marked(mark: str) -> list[psutil.Process]:
    """Every process of this user whose mark starts with `mark`."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK, "").startswith(mark):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or somebody else's
    return found


def sweep(mark: str) -> list[int]:
    """Kill every process whose mark starts with `mark`, children born meanwhile too; returns their pids."""
    killed: list[int] = []
    for _ in range(10):
        found = [process for process in marked(mark) if process.status() != psutil.STATUS_ZOMBIE]
        if not found:
            break
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                continue
            killed.append(process.pid)
        psutil.wait_procs(found, timeout=1)
    return killed


@dataclass
class EngineProcess:
    """A running engine tree. Made by `start`; over once `wait` has returned."""

    minder: asyncio.subprocess.Process
    pid: int
    """The engine's first process."""
    log: Path
    mark: str

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], log: Path, mark: str
    ) -> EngineProcess:
        """Start `command` under a minder.

        Args:
            command: the engine's argument vector; no secret belongs in it.
            environment: its whole environment.
            log: where its output goes; rotated at 16 MiB, 4 files.
            mark: from `mark_of`.

        Raises:
            EngineFailed: it could not be executed.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        minder = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(MINDER),
            "--log", str(log), "--log-bytes", str(LOG_BYTES), "--log-files", str(LOG_FILES),
            "--grace", str(STOP_GRACE_SECONDS), "--", *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**environment, MARK: mark},
            start_new_session=True,
        )  # fmt: skip
        assert minder.stdout is not None
        try:
            first = await minder.stdout.readline()
        except asyncio.CancelledError:
            minder.kill()
            await asyncio.to_thread(sweep, mark)
            raise
        if not first.startswith(b"pid "):
            code = await minder.wait()
            raise EngineFailed(f"{command[0]} could not be started (status {code}): {tail(log, 400).strip()}")
        return cls(minder, int(first.split()[1]), log, mark)

    async def wait(self) -> int:
        """Until the whole tree is gone; returns the engine's exit status (128 + signal if killed).

        If the minder itself was killed, what it left is swept here: nobody else would.
        """
        code = await self.minder.wait()
        await asyncio.to_thread(sweep, self.mark)
        return code if code >= 0 else 128 - code

    async def stop(self) -> None:
        """SIGTERM, a grace of 10 s, SIGKILL; returns when nothing is left. May be called more than once."""
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
        sweep(self.mark)


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
