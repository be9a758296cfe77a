"""Jobs: functions of a chute that run once, for minutes to hours, and leave files behind."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from chutes.chute.spec import JobSpec
from chutes.exception import InvalidSpec
from chutes.util.rule import RuleBrokenError

if TYPE_CHECKING:
    from chutes.chute.base import Chute

SSH_PORT = 2202
_MIN_PORT = 8002  # 8000 and 8001 are the instance's own server and log server
_TIMEOUT_S = (30, 86_400)
_PORT_NAME = re.compile(r"[a-z]+[0-9]*")
_PROTOCOLS = ("tcp", "udp", "http")


class Port(BaseModel):
    """A port that a job listens on.

    Args:
        name: lower-case letters, then digits.
        port: 2202 (ssh) or 8002 to 65535.
        proto: `tcp`, `udp`, or `http` for one behind a TLS proxy.

    Raises:
        InvalidSpec: the number is out of range (a `ValueError`). Name and protocol, which the published
            SDK lets through, are checked when the chute is deployed.
    """

    name: str
    port: int
    proto: str

    def __init__(self, name: str, port: int, proto: str) -> None:
        if port != SSH_PORT and not _MIN_PORT <= int(port) <= 65535:
            raise InvalidSpec(
                f"Port {name!r} cannot be {port}.", f"Use {SSH_PORT} for ssh, or {_MIN_PORT} to 65535."
            )
        super().__init__(name=name, port=port, proto=proto)

    def check(self) -> None:
        if not _PORT_NAME.fullmatch(self.name):
            raise InvalidSpec(
                f"Port name {self.name!r} is not lower-case letters, then digits.", "E.g. 'web1'."
            )
        if self.proto not in _PROTOCOLS:
            raise InvalidSpec(f"Port {self.name!r}: proto={self.proto!r}.", f"Use {', '.join(_PROTOCOLS)}.")


class Job:
    """The options of one job; calling it with a function (as `@chute.job(...)` does) completes it.

    Args:
        app: the chute.
        ports: ports the job listens on, as `Port` or dict.
        timeout: seconds, 30 to 86400, after which it is stopped; None for no limit.
        upload: keep the files it leaves in `output_dir`.
        ssh: also open port 2202.

    Raises:
        RuleBrokenError: the timeout is out of range (an `AssertionError`).
        InvalidSpec: a port number is taken twice or out of range.
    """

    def __init__(
        self,
        app: Chute,
        ports: list[Port] | None = None,  # None and [] mean the same; the published default is []
        timeout: int | None = None,
        upload: bool = True,
        ssh: bool = False,
    ) -> None:
        low, high = _TIMEOUT_S
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int) or not low <= timeout <= high
        ):
            raise RuleBrokenError(
                f"Job timeout={timeout!r} must be a whole number of seconds from {low} to {high}.",
                "Leave it out for no limit.",
            )
        found = [port if isinstance(port, Port) else Port(**port) for port in ports or []]
        if ssh:
            found.append(Port("ssh", SSH_PORT, "tcp"))
        numbers = [port.port for port in found]
        for number in numbers:
            if numbers.count(number) > 1:
                raise InvalidSpec(f"Two ports of one job are {number}.", "Give each its own number.")
        self._app = app
        self._func: Callable[..., Any] | None = None
        self.ports, self.timeout, self.upload, self.ssh = found, timeout, upload, ssh
        self.cancel_event = asyncio.Event()
        """Set it to ask a running job to stop; a job may also look at it."""

    @property
    def func(self) -> Callable[..., Any]:
        if self._func is None:
            raise TypeError("This Job has no function yet; use it as a decorator: @chute.job(...)")
        return self._func

    @property
    def name(self) -> str:
        return self.func.__name__

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
        self._func = func
        self._app._register(self)
        func.job = self  # type: ignore[attr-defined]
        return func

    def to_spec(self) -> JobSpec:
        for port in self.ports:
            port.check()
        return JobSpec(
            name=self.name,
            ports=[port.model_dump() for port in self.ports],
            timeout=self.timeout,
            upload=self.upload,
        )

    async def run(self, output_dir: Path | None = None, **job_data: Any) -> dict[str, Any]:
        """Run the job in this process.

        Its function receives `job_data` and `output_dir`, a directory that is also `TMPDIR`.

        Returns:
            `{"status": "complete", "result": ...}`, `{"status": "cancelled"}`, or
            `{"status": "timeout" or "error", "detail": message and traceback}`; each with `output_dir`.
        """
        directory = str(output_dir or tempfile.mkdtemp(prefix="job-"))
        job_data = {**job_data, "output_dir": directory}
        before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"], tempfile.tempdir = directory, None  # None: read TMPDIR again
        try:
            outcome = await self._outcome(job_data)
        finally:
            tempfile.tempdir = None
            if before is None:
                os.environ.pop("TMPDIR", None)
            else:
                os.environ["TMPDIR"] = before
        return {**outcome, "output_dir": directory}

    async def _outcome(self, job_data: dict[str, Any]) -> dict[str, Any]:
        async def work() -> Any:
            result = self.func(self._app, **job_data)
            return await result if inspect.isawaitable(result) else result

        task = asyncio.ensure_future(work())
        asked = asyncio.ensure_future(self.cancel_event.wait())
        try:
            await asyncio.wait({task, asked}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return {"status": "complete", "result": task.result()}
            if asked.done():
                return {"status": "cancelled"}
            return {"status": "timeout", "detail": f"the job took more than {self.timeout} seconds"}
        except asyncio.CancelledError:
            if not task.done():
                raise  # we are being cancelled, not the job
            return {"status": "cancelled"}
        except Exception as error:
            return {"status": "error", "detail": f"{error}\n{traceback.format_exc()}"}
        finally:
            asked.cancel()
            task.cancel()
            await asyncio.gather(task, asked, return_exceptions=True)
