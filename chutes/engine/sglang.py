"""SGLang: the command line that starts it, and what its environment is asked.

Written against SGLang 0.5.23. What the platform relies on there:

- `sglang.launch_server` is the server's module; `inside/serve_sglang.py` runs it, see there why.
- Only /health, /ready and /metrics do not ask for the key. /health answers 503 until its own warm-up request
  is through.
- It serves one name and answers to any: `model` in an answer is what the request said.
- It notices by itself that a client has gone, and stops: a stream at once, an answer in one piece with the
  next token, one that waits in its queue at the next look (`SGLANG_REQUEST_STATE_WAIT_TIMEOUT`). So no
  request needs an id by which `/abort_request` could name it.
- After SIGTERM it looks every 5 s whether all requests are through, and goes when they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from chutes.engine import arguments
from chutes.engine.contract import Progress, Released, Start
from chutes.engine.environment import INSIDE
from chutes.engine.gguf import converted
from chutes.engine.release import EngineRelease
from chutes.engine.vllm import warm

RESERVED = {
    "model-path": "the chute's model name says which model",
    "model": "the chute's model name says which model",
    "served-model-name": "the chute's name is the served model name",
    "api-key": "the platform makes a key for every instance",
    "admin-api-key": "the platform's own key opens what it needs",
    "host": "the gateway is the only way in",
    "port": "the platform chooses a free port",
    "config": "a file could set what the platform decides",
    "ssl-keyfile": "TLS ends at the gateway",
    "ssl-certfile": "TLS ends at the gateway",
    "fastapi-root-path": "the gateway forwards to the engine's own paths",
    "enable-http2": "the gateway speaks HTTP/1.1 to the engine",
    "grpc-mode": "the gateway speaks HTTP to the engine",
    "smg-grpc-mode": "the gateway speaks HTTP to the engine",
}
JUDGE = arguments.Judge("check_sglang_arguments.py", RESERVED)

# How long a request may wait in SGLang's queue before it looks again whether its client is still there.
LOOK_SECONDS = 1


def command(
    python: Path,
    model_dir: Path,
    served_name: str,
    args: Sequence[str],
    port: int,
    host: str = "127.0.0.1",
) -> list[str]:
    """The server's command line. It holds no secret: `ps` shows it to every user of the machine.

    Args:
        python: the environment's interpreter.
        args: the author's arguments and the `defaults` for them.
    """
    ours = ["--model-path", str(model_dir), "--served-model-name", served_name]
    ours += ["--host", host, "--port", str(port)]
    return [str(python), str(INSIDE / "serve_sglang.py"), *ours, *args]


def variables(accelerator: str, api_key: str) -> dict[str, str]:
    """Environment variables for the server, to be added to a clean environment."""
    values = {
        "SGLANG_API_KEY": api_key,  # read by inside/serve_sglang.py
        # Files are here already: an engine that reaches for the hub would hide that one is missing.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        # Else each health check makes a token, takes a second, and fails while a long prompt is read. A
        # scheduler that hangs is ended by SGLang's own watchdog.
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",
        "SGLANG_REQUEST_STATE_WAIT_TIMEOUT": str(LOOK_SECONDS),
        "PYTHONUNBUFFERED": "1",
    }
    if accelerator == "cpu":
        values |= {
            "SGLANG_USE_CPU_ENGINE": "1",
            # A thread that spins while it waits for the others takes their core, where they have to share it:
            # 30 tokens of a small model took 27 to 41 s on two busy cores so, and 2.4 to 3.3 s without.
            "OMP_WAIT_POLICY": "PASSIVE",
            # Needs a C++ compiler and minutes, and gives a CPU nothing that it would notice.
            "TORCHDYNAMO_DISABLE": "1",
        }
    return values


def given(args: Sequence[str]) -> set[str]:
    """The flags in `args`, bare; the tensor parallel size, which has two names, by both of them."""
    flags = arguments.given(args)
    if any("tensor-parallel-size".startswith(flag) for flag in flags):
        flags.add("tp-size")
    return flags


def defaults(accelerator: str, args: Sequence[str], tensor_parallel_size: int = 1) -> list[str]:
    """What to append to the author's `args`: each default whose flag the author did not give in any form."""
    wanted: dict[str, list[str]] = {
        "enable-metrics": ["--enable-metrics"],
        "enable-cache-report": ["--enable-cache-report"],
        # Should an author have requests logged: who and how long, never what.
        "log-requests-level": ["--log-requests-level", "0"],
        # Asked every few seconds; in the log they would bury what a person looks for.
        "uvicorn-access-log-exclude-prefixes": [
            "--uvicorn-access-log-exclude-prefixes",
            "/health",
            "/metrics",
        ],
    }
    if accelerator == "cpu":
        wanted["device"] = ["--device", "cpu"]
        # Its other one for CPUs needs the compiled kernels, which PyPI has for CUDA only.
        wanted["attention-backend"] = ["--attention-backend", "torch_native"]
        # As the planner counts; bfloat16 gave wrong text on CPUs with AMX in the other engine.
        wanted["dtype"] = ["--dtype", "float32"]
        # Its metrics are as old as its last line about a batch: 40 steps by default, half a minute here.
        wanted["decode-log-interval"] = ["--decode-log-interval", "5"]
    else:
        wanted["tp-size"] = ["--tp-size", str(tensor_parallel_size)]
        if tensor_parallel_size > 1:  # hangs on some PCIe machines; the published platform's choice too
            wanted["disable-custom-all-reduce"] = ["--disable-custom-all-reduce"]
    return arguments.left_open(wanted, given(args))


# What SGLang's log says on the way, in its order, and what that means to a person who waits.
_MILESTONES = (
    (re.compile("Load weight begin"), "loading the weights"),
    (re.compile(r"max_total_num_tokens=(\d+)"), "room for {0:,} tokens in the KV cache"),
    (re.compile("Capture .*graph.* begin"), "capturing CUDA graphs"),
    (re.compile("Application startup complete"), "warming up"),
    (re.compile("fired up and ready"), "about to answer"),
)


def milestone(log: str) -> str:
    """How far a starting server is, from its log: one short remark."""
    reached = "starting the engine"
    for pattern, remark in _MILESTONES:
        if found := pattern.search(log):
            reached = remark.format(*map(int, found.groups()))
    return reached


class Sglang(Released):
    """See `contract.Engine`."""

    async def check_arguments(
        self, python: Path, release: EngineRelease, args: list[str], cache_dir: Path
    ) -> None:
        inside = variables(release.accelerator, api_key="")
        await JUDGE.check(python, release, args, given(args), cache_dir, inside)

    async def adapt(self, python: Path, files: Path, progress: Progress) -> Path:
        return await converted(python, files, progress)

    def command(self, start: Start) -> list[str]:
        assert start.directory is not None
        plan, args = start.plan, start.args
        return command(
            start.python,
            start.directory,
            start.served_names[0],
            args + defaults(plan.accelerator, args, plan.tensor_parallel_size),
            start.endpoint.port,
            start.endpoint.host,
        )

    def variables(self, start: Start) -> dict[str, str]:
        return variables(start.plan.accelerator, start.endpoint.api_key)

    def milestone(self, log: str) -> str:
        return milestone(log)

    async def warm(self, start: Start) -> None:
        await warm(start.endpoint, start.served_names[0])
