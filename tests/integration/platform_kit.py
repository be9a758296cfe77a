"""A whole platform for a test: a home of its own, the real `chutes` program, a synthetic engine.

The engine is put where the real one would be: a directory in the cache that counts as an installed
environment and whose `python` runs `synthetic_engine.py`, whatever vLLM command line it is given. So
everything above it is the real thing: CLI, control, fleet, minder, gateway.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from chutes.engine.process import found_in, place_of, runs
from chutes.engine.release import find

ENGINE = Path(__file__).parent / "synthetic_engine.py"
NAME = "tiny-model"

_PYTHON = """#!/bin/sh
case "$1" in
*check_vllm_arguments.py) exec {python} -c '
import json, sys
bad = [arg for arg in sys.argv if arg.startswith("--no-such")]
print(json.dumps({{"ok": not bad, "message": "unrecognized arguments: " + " ".join(bad), "suggestions": []}}))
' "$@" ;;
*) exec {python} {engine} "$@" ;;
esac
"""


def port_for_test() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for a condition to be true; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{condition} was not true within {seconds} s")


def gone(*processes: psutil.Process) -> bool:
    """Whether none of these runs."""
    return not any(map(runs, processes))


def samples(page: str) -> dict[str, float]:
    """What Prometheus reads, by series."""
    lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, _, value in lines}


class PlatformKit:
    """One `CHUTES_HOME` and the commands run against it."""

    def __init__(self, directory: Path, workers: int = 1, cache: Path | None = None) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.port = port_for_test()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CHUTES_")},
            "CHUTES_HOME": str(self.home),
            "CHUTES_PORT": str(self.port),
            "CHUTES_WORKERS": str(workers),
            "CHUTES_CACHE": str(cache or directory / "cache"),
            "CHUTES_USERNAME": "tester",
            # Whatever engine the machine has: a test that wants a container says so.
            "CHUTES_CONTAINERS": "none",
            # Nothing here may depend on what hardware the machine has, or on a hub.
            "CUDA_VISIBLE_DEVICES": "",
            "HF_ENDPOINT": "http://127.0.0.1:9",
        }
        self.place = place_of(self.home)
        if cache is None:
            self._install_synthetic_engine(directory / "cache" / "engines")

    def _install_synthetic_engine(self, engines: Path) -> None:
        release = find("vllm", "cpu")
        python = engines / release.id / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(_PYTHON.format(python=sys.executable, engine=ENGINE))
        python.chmod(0o755)
        marker = {"requirements": hashlib.sha256(release.requirements.read_bytes()).hexdigest()}
        (engines / release.id / "complete.json").write_text(json.dumps(marker))

    def chute(self, engine_args: str = "", name: str = NAME) -> str:
        """Write a model directory and a chute file; returns the reference to deploy."""
        model = self.directory / name
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(
            json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
        )
        module = name.replace("-", "_")
        (self.directory / f"{module}.py").write_text(
            "from chutes.chute.template.vllm import build_vllm_chute\n"
            f"chute = build_vllm_chute('tester', {str(model)!r}, engine_args={engine_args!r})\n"
        )
        return f"{module}:chute"

    def run(
        self, *args: str, code: int | None = 0, timeout: float = 180.0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `chutes ARGS`, with no terminal; asserts the exit code unless it is None."""
        done = subprocess.run(
            [sys.executable, "-m", "chutes", *args],
            cwd=self.directory,
            env={**self.environment, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if code is not None:
            assert done.returncode == code, (
                f"chutes {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def json(self, *args: str) -> Any:
        return json.loads(self.run(*args, "--json").stdout)

    def key(self, name: str = "test") -> str:
        return self.run("keys", "create", "--name", name).stdout.strip()

    def running(self) -> dict[str, Any] | None:
        """The platform's own note of itself, if its process lives."""
        try:
            document = json.loads((self.home / "run" / "platform.json").read_text())
        except (OSError, ValueError):
            return None
        return document if psutil.pid_exists(document["pid"]) else None

    def control(self) -> psutil.Process:
        document = self.running()
        assert document is not None
        return psutil.Process(document["pid"])

    def workers(self) -> list[psutil.Process]:
        return [child for child in self.control().children() if "chutes.gateway" in child.cmdline()]

    def engine_tree(self) -> list[psutil.Process]:
        """Minder, engine and its children."""
        return found_in(self.place)

    def instance(self, name: str = NAME) -> dict[str, Any]:
        return next(chute for chute in self.json("ps") if chute["name"] == name)["instance"]

    def wait_for(self, phase: str, name: str = NAME, seconds: float = 90.0) -> dict[str, Any]:
        """Until the chute is in a phase; its document."""

        def there() -> dict[str, Any] | None:
            return next((c for c in self.json("ps") if c["name"] == name and c["phase"] == phase), None)

        return until(there, seconds)

    def ask(
        self, key: str, path: str = "/v1/chat/completions", body: dict[str, Any] | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """One request at the gateway. Connection errors are raised."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            method = "GET" if body is None else "POST"
            sent = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers}
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def chat(self, key: str, model: str = NAME, **more: Any) -> tuple[int, bytes]:
        return self.ask(key, body={"model": model, "messages": [{"role": "user", "content": "hi"}], **more})

    def metrics(self) -> dict[str, float]:
        """`/metrics` of the gateway, by series."""
        admin = self.run("keys", "create", "--admin", "--name", "scraper").stdout.strip()
        status, page = self.ask(admin, "/metrics")
        self.run("keys", "delete", "scraper")
        assert status == 200, page
        return samples(page.decode())

    def close(self) -> None:
        """Whatever a test did: nothing of it is left."""
        self.run("down", code=None)
        for process in self.engine_tree():
            process.send_signal(signal.SIGKILL)


@contextmanager
def platform(directory: Path, **options: Any) -> Iterator[PlatformKit]:
    kit = PlatformKit(directory, **options)
    try:
        yield kit
    finally:
        kit.close()
