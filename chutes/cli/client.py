"""The platform as the command line sees it: found, started when absent, asked over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from chutes import exception
from chutes.cli import output
from chutes.config import Config
from chutes.control.running import Running, find_running, make_home
from chutes.engine.process import tail
from chutes.exception import AuthenticationRequired, ChutesError, PlatformUnreachable

# Cold imports on a slow disk take seconds; a platform that has not answered after this never will.
START_SECONDS = 60.0
# A deploy asks the hub for headers and may have the engine's parser loaded: tens of seconds on a slow CPU.
REQUEST_SECONDS = 300.0


def named(kind: str, name: str, *rest: str) -> str:
    """The path of one thing by its name: whatever the name holds, it stays one segment."""
    return "/".join(["", kind, quote(name, safe=""), *map(quote, rest)])


class Platform:
    """A platform that answers. Every method raises the platform's own errors as they were raised there."""

    def __init__(self, control_url: str, token: str, url: str) -> None:
        self.url = url
        """Where clients reach the gateway."""
        self._http = httpx2.Client(
            base_url=control_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx2.Timeout(REQUEST_SECONDS, connect=5.0),
            trust_env=False,  # a proxy for the world has no business between us and our own platform
        )

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """One request; the JSON of its answer.

        Raises:
            PlatformUnreachable: nobody answers there any more.
            ChutesError: what the platform says.
        """
        try:
            response = self._http.request(method, path, json=body, params=query)
        except httpx2.HTTPError as error:
            raise PlatformUnreachable(
                f"The platform at {self._http.base_url} does not answer: {error}.",
                "`chutes serve` starts one.",
            ) from None
        if response.status_code >= 400:
            raise _error(response)
        return response.json()

    def upload(self, path: str, data: bytes, **query: Any) -> None:
        """POST bytes as they are. Raises as `call`."""
        try:
            response = self._http.post(path, content=data, params=query)
        except httpx2.HTTPError as error:
            raise PlatformUnreachable(f"The platform does not answer: {error}.") from None
        if response.status_code >= 400:
            raise _error(response)

    def download(self, path: str, target: Path) -> None:
        """A file, whole or not at all. Raises as `call`."""
        draft = target.with_name(target.name + ".partial")
        try:
            with self._http.stream("GET", path) as response, draft.open("wb") as file:
                if response.status_code >= 400:
                    response.read()
                    raise _error(response)
                for part in response.iter_bytes():
                    file.write(part)
            draft.replace(target)
        except httpx2.HTTPError as error:
            raise PlatformUnreachable(f"The download broke off: {error}.", "Try again.") from None
        finally:
            draft.unlink(missing_ok=True)

    def lines(self, path: str, **query: Any) -> Iterator[str]:
        """A streamed answer, as it comes."""
        try:
            with self._http.stream(
                "GET", path, params=query, timeout=httpx2.Timeout(None, connect=5.0)
            ) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _error(response)
                yield from response.iter_text()
        except httpx2.HTTPError:
            raise PlatformUnreachable("The platform has gone down.", "`chutes deploy` starts one.") from None


def _error(response: httpx2.Response) -> ChutesError:
    """The platform's own exception again, so that it means the same exit code here as there."""
    try:
        error = response.json()["error"]
        message, fix, name = error["message"], error.get("fix", ""), str(error.get("type", ""))
    except (ValueError, KeyError, TypeError):
        message, fix, name = f"The platform answered {response.status_code}: {response.text[:300]}", "", ""
    kind = getattr(exception, name, None)
    if not (isinstance(kind, type) and issubclass(kind, ChutesError)):
        kind = AuthenticationRequired if response.status_code in (401, 403) else ChutesError
    return kind(message, fix)


def connect(config: Config) -> Platform:
    """The platform that runs: the configured one, or this home's own.

    Raises:
        PlatformUnreachable: none runs; nothing is started.
    """
    if config.api_url:
        return _remote(config)
    running = find_running(config)
    if running is None:
        raise PlatformUnreachable(
            f"No platform of {config.home} is running.", "`chutes deploy` or `chutes serve` starts one."
        )
    return _local(running)


def connect_or_start(config: Config) -> Platform:
    """As `connect`, but starts a platform in the background when none runs, and says so."""
    if config.api_url:
        return _remote(config)
    running = find_running(config)
    return _local(running if running is not None else start(config))


def start(config: Config) -> Running:
    """Start a platform that outlives this command.

    Raises:
        ChutesError: it ended before it answered; the message is its own.
    """
    output.note(f"Starting the platform in the background (home {config.home}; `chutes down` stops it).")
    make_home(config)
    log = config.logs / "serve.out"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "chutes", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **config.environment()},
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        running = find_running(config)
        if running is not None:
            return running
        if process.poll() is not None:
            said = tail(log, 4000).strip()
            message, _, fix = said.removeprefix("error: ").partition("\n  fix: ")
            raise ChutesError(message or f"The platform ended with status {process.returncode}.", fix)
        time.sleep(0.05)
    process.terminate()
    raise ChutesError(f"The platform did not come up within {START_SECONDS:.0f} s.", f"See {config.logs}.")


def _local(running: Running) -> Platform:
    return Platform(running.control_url, running.token, running.url)


def _remote(config: Config) -> Platform:
    if not config.api_key:
        raise AuthenticationRequired(
            f"{config.api_url} wants an admin key.",
            "Set CHUTES_API_KEY. On that machine, `chutes keys create --admin --name NAME` makes one.",
        )
    return Platform(config.api_url, config.api_key, config.api_url)
