"""How each gateway is started: on one CPU, in front of the same two instances, on a port of its own.

All ask for a key where they can without a database, and hand a key of their own to the engine, but for
vllm-router and LiteLLM, which are run as their documentation does. None writes an access log.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.gateway import machine, programs
from chutes import compiled
from chutes.mortal import mortal

MODEL = "bench/Model-8B-Instruct"
PATH = "/v1/chat/completions"
KEYS = [f"cpk_bench{number}.{'0123456789abcdef' * 2}" for number in range(8)]
ENGINE_KEY = "sk-engine"
START_SECONDS = 120
"""LiteLLM's proxy takes 20 s to import on a busy machine."""


class Setting(NamedTuple):
    """What a contender is started into."""

    cpu: int
    engine_ports: list[int]
    place: Path
    """A directory of its own, for configuration and logs."""


class Running:
    """A contender, or the engine, that runs.

    Args:
        processes: what was started; whatever these start in turn is theirs.
        settle: seconds to wait for it to answer a chat request; 0: it need not.
    """

    def __init__(
        self,
        name: str,
        port: int,
        processes: Sequence[subprocess.Popen[bytes]],
        *,
        settle: float = START_SECONDS,
    ) -> None:
        self.name = name
        self.port = port
        self._processes = processes
        self.notes: Callable[[], str] = str
        """What is to be said of it at the end."""
        self.metered: Callable[[], int] | None = None
        """Requests answered with 200 that it has reported, if it reports."""
        self.restless = False
        """It uses CPU even when nobody asks it anything."""
        self.pids: list[int] = []
        """Of all its processes."""
        if settle:
            self._wait(settle)
        self.pids = [pid for process in processes for pid in machine.family(process.pid)]
        self.rss_before = machine.resident_mb(self.pids)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not answers(self.port):
            if any(process.poll() is not None for process in self._processes):
                self.stop()
                raise programs.Unavailable(f"{self.name} ended while it started.")
            if time.monotonic() > until:
                self.stop()
                raise programs.Unavailable(f"{self.name} answered no request within {seconds:.0f} s.")
            time.sleep(0.2)

    def pause(self) -> None:
        """Have it use no CPU while another is measured, if it is restless."""
        if self.restless:
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End it and all that it has started."""
        self.resume()
        below: list[psutil.Process] = []
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                below += psutil.Process(process.pid).children(recursive=True)
            process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def answers(port: int) -> bool:
    """Whether a chat request gets a 200 there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    body = f'{{"messages":[{{"role":"user","content":"[#0000000000] hello"}}],"model":"{MODEL}"}}'
    fields = {"Authorization": f"Bearer {KEYS[0]}", "Content-Type": "application/json"}
    try:
        connection.request("POST", PATH, body, fields)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn(
    cpu: int,
    command: Sequence[str | Path],
    log: Path,
    *,
    fds: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """`command` on one CPU; the kernel kills it when we die."""
    with log.open("ab") as output:
        return subprocess.Popen(
            mortal(["taskset", "-c", str(cpu), *command]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=fds,
            env={**os.environ, **(variables or {})},
        )


def engine(cpu: int, place: Path, program: Path) -> tuple[Running, list[int]]:
    """The synthetic engine, as two instances: one process, two ports."""
    sockets = [socket.create_server(("127.0.0.1", 0), backlog=4096) for _ in range(2)]
    command: list[str | Path] = [program, "--model", MODEL]
    for listener in sockets:
        command += ["--listen", str(listener.fileno())]
    process = spawn(cpu, command, place / "engine.log", fds=[listener.fileno() for listener in sockets])
    ports = [listener.getsockname()[1] for listener in sockets]
    running = Running("engine", ports[0], [process])
    for listener in sockets:
        listener.close()
    return running, ports


def direct(setting: Setting) -> Running:
    """No gateway: what the engine and the load generator could do, and take, by themselves."""
    return Running("direct", setting.engine_ports[0], [])


def nginx(setting: Setting) -> Running:
    """A plain reverse proxy. One process without a master above it: the loop of events is the same, and a
    master that is killed would leave its worker behind."""
    program = programs.found("nginx")
    port = free_port()
    keys = "".join(f'"Bearer {key}" 1; ' for key in KEYS)
    servers = " ".join(f"server 127.0.0.1:{port};" for port in setting.engine_ports)
    temporary = " ".join(
        f"{kind}_temp_path {setting.place}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (setting.place / "nginx.conf").write_text(f"""
daemon off; master_process off; worker_processes 1;
pid {setting.place}/nginx.pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off; {temporary} map_hash_bucket_size 256;
    map $http_authorization $known {{ default 0; {keys} }}
    upstream engines {{ {servers} keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        keepalive_requests 1000000000; client_max_body_size 32m; client_body_buffer_size 128k;
        location / {{
            if ($known = 0) {{ return 401; }}
            proxy_pass http://engines;
            proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header Authorization "Bearer {ENGINE_KEY}";
            proxy_buffering off; proxy_read_timeout 3600s;
        }}
    }}
}}
""")
    command = [program, "-p", setting.place, "-c", setting.place / "nginx.conf"]
    return Running("nginx", port, [spawn(setting.cpu, command, setting.place / "log")])


def haproxy(setting: Setting) -> Running:
    """A plain reverse proxy with one thread."""
    program = programs.found("haproxy")
    port = free_port()
    keys = " ".join(f'"Bearer {key}"' for key in KEYS)
    servers = "\n".join(f"    server e{port} 127.0.0.1:{port}" for port in setting.engine_ports)
    (setting.place / "haproxy.cfg").write_text(f"""
global
    nbthread 1
    maxconn 8192
defaults
    mode http
    timeout connect 5s
    timeout client 3600s
    timeout server 3600s
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    acl known hdr(authorization) -m str {keys}
    http-request return status 401 unless known
    http-request set-header Authorization "Bearer {ENGINE_KEY}"
    default_backend engines
backend engines
    balance leastconn
    http-reuse always
{servers}
""")
    command = [program, "-db", "-f", setting.place / "haproxy.cfg"]
    return Running("haproxy", port, [spawn(setting.cpu, command, setting.place / "log")])


def vllm_router(setting: Setting) -> Running:
    """vLLM's router, in Rust. It asks for no key."""
    program = programs.installed("vllm-router", "vllm-router")
    port, metrics = free_port(), free_port()
    command = [program, "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    command += ["--policy", "round_robin", "--log-level", "warning", "--max-concurrent-requests", "16384"]
    command += ["--worker-urls", *(f"http://127.0.0.1:{port}" for port in setting.engine_ports)]
    return Running("vllm-router", port, [spawn(setting.cpu, command, setting.place / "log")])


def litellm(setting: Setting) -> Running:
    """LiteLLM's proxy, one worker, without a database and so without keys."""
    program = programs.installed("litellm[proxy]", "litellm")
    port = free_port()
    models = "".join(
        f"  - model_name: {MODEL}\n    litellm_params:\n      model: openai/{MODEL}\n"
        f"      api_base: http://127.0.0.1:{engine_port}/v1\n      api_key: {ENGINE_KEY}\n"
        for engine_port in setting.engine_ports
    )
    config = setting.place / "config.yaml"
    config.write_text(f"model_list:\n{models}litellm_settings:\n  telemetry: false\n")
    command = [program, "--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    # The local map: otherwise it downloads prices when it starts.
    variables = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_PROXY": "127.0.0.1"}
    variables["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # anybody may ask
    process = spawn(setting.cpu, command, setting.place / "log", variables=variables)
    running = Running("litellm", port, [process])
    running.restless = True  # a tenth of a CPU
    return running


def versions(names: Sequence[str]) -> dict[str, str]:
    """Of the contenders that ran."""
    ask: dict[str, Callable[[], str]] = {
        "nginx": lambda: programs.version([programs.found("nginx"), "-v"]),
        "haproxy": lambda: programs.version([programs.found("haproxy"), "-v"]),
        "vllm-router": lambda: programs.package_version(programs.CACHE / "vllm-router", "vllm-router"),
        "litellm": lambda: programs.package_version(programs.CACHE / "litellm", "litellm"),
        "chutes": _our_version,
    }
    return {name: ask[name]() for name in names if name in ask}


def _our_version() -> str:
    commit = programs.version(["git", "-C", programs.HERE, "describe", "--always", "--dirty"])
    return f"{commit}, its core {'compiled' if compiled.there() else 'interpreted'}"


def on_signals_end() -> None:
    """Have SIGTERM run our `finally`s too, as Ctrl-C does."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
