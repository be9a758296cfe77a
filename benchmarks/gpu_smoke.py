"""`make gpu-smoke`: whether this machine serves what it could, and how fast beside the planner's estimate.

Looks at the machine, plans well-known models for it, deploys a chute on every engine that is installed
(or can be, when an index answers), asks each something whose answer is known, measures tokens, vectors
or images a second, and writes one JSON report. It uses a home of its own and leaves nothing running. What
could not be done stands in the report with its reason.

    python -m benchmarks.gpu_smoke [--only vllm,sglang] [--cpu] [--offline] [--out FILE]
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from chutes import config as settings
from chutes.engine.environment import is_installed
from chutes.engine.release import find
from chutes.exception import ChutesError
from chutes.hardware import devices, planner, profiles
from chutes.hardware.choice import Request
from chutes.model import catalogue

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "gpu-smoke.json"

SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TALKED_OF = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "meta-llama/Llama-3.3-70B-Instruct", "openai/gpt-oss-120b",
             "zai-org/GLM-4.6", "deepseek-ai/DeepSeek-V3.1")  # fmt: skip
"""One model of every size tier and some between: what a new owner of a machine asks about first."""

INSTALL_SECONDS = 3600.0
REACH_SECONDS = 3.0
CPU_LOAD, GPU_LOAD = (4, 32), (32, 256)
"""Requests at once and tokens of each: enough to fill a batch, little enough to wait for."""


@dataclass
class Outcome:
    """What became of one chute."""

    name: str
    engine: str
    model: str
    ok: bool = False
    reason: str = ""
    """Why not, or why it was not tried."""
    tried: bool = False
    ready_after_seconds: float | None = None
    answer: str = ""
    measured: dict[str, float] = field(default_factory=dict)
    planned: dict[str, float] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)


class Smoke:
    """A platform of its own and what is asked of it."""

    def __init__(self, home: Path, on_gpu: bool) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.on_gpu = on_gpu
        self.environment = {
            **os.environ,
            "CHUTES_HOME": str(home),
            "CHUTES_PORT": str(self.port),
            # Environments and models that are here already are used.
            "CHUTES_CACHE": str(settings.load().cache),
        }
        if not on_gpu:
            self.environment["CUDA_VISIBLE_DEVICES"] = ""
        self.key = ""

    def chutes(self, *args: str, timeout: float = 120.0, **variables: str) -> str:
        """Run `chutes ARGS`; its standard output.

        Raises:
            ChutesError: it failed; the message is its own.
        """
        done = subprocess.run(
            [sys.executable, "-m", "chutes", *args], env={**self.environment, **variables}, cwd=ROOT,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ChutesError((done.stderr.strip() or done.stdout.strip())[-800:])
        return done.stdout

    def ask(self, path: str, body: dict[str, Any]) -> tuple[bytes, str]:
        """POST through the gateway: (body, content type). Raises ChutesError for anything but 200."""
        if not self.key:
            self.key = self.chutes("keys", "create", "--name", "smoke").strip()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
            if response.status != 200:
                raise ChutesError(f"{path} answered {response.status}: {data[:300].decode(errors='replace')}")
            return data, response.getheader("content-type") or ""
        finally:
            connection.close()


Check = Callable[[Smoke, str, Outcome], None]
"""(platform, the chute's name, where to put what was found); raises ChutesError when the answer is wrong."""


def talks(smoke: Smoke, name: str, outcome: Outcome) -> None:
    question = {
        "model": name, "temperature": 0, "max_tokens": 32,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }  # fmt: skip
    answer, _ = smoke.ask("/v1/chat/completions", question)
    outcome.answer = json.loads(answer)["choices"][0]["message"]["content"]
    if "Paris" not in outcome.answer:
        raise ChutesError(f"Asked for the capital of France it said {outcome.answer!r}.")
    _measure_tokens(smoke, name, outcome)


def babbles(smoke: Smoke, name: str, outcome: Outcome) -> None:
    """A model of random weights: its words mean nothing, its speed does."""
    _measure_tokens(smoke, name, outcome)


def _measure_tokens(smoke: Smoke, name: str, outcome: Outcome) -> None:
    at_once, length = GPU_LOAD if smoke.on_gpu else CPU_LOAD

    def one(number: int) -> int:
        body = {
            "model": name,
            "prompt": f"{number}. Once upon a time",
            "max_tokens": length,
            "ignore_eos": True,
        }
        return json.loads(smoke.ask("/v1/completions", body)[0])["usage"]["completion_tokens"]

    one(-1)
    began = time.perf_counter()
    alone = one(0)
    outcome.measured["tokens_per_second_alone"] = alone / (time.perf_counter() - began)
    with ThreadPoolExecutor(at_once) as clients:
        began = time.perf_counter()
        together = sum(clients.map(one, range(1, 2 * at_once + 1)))
    outcome.measured |= {
        "tokens_per_second_together": together / (time.perf_counter() - began),
        "requests_at_once": at_once,
    }


def embeds(smoke: Smoke, name: str, outcome: Outcome) -> None:
    texts = ["Which city is the capital of France?", "Paris is the capital of France.", "A cat sleeps."]
    answer, _ = smoke.ask("/v1/embeddings", {"model": name, "input": texts})
    asked, right, wrong = (each["embedding"] for each in json.loads(answer)["data"])
    near, far = _cosine(asked, right), _cosine(asked, wrong)
    outcome.answer = f"cosine {near:.3f} to the right sentence, {far:.3f} to the wrong one"
    if not near > far:
        raise ChutesError(f"The vectors rank wrongly: {outcome.answer}.")
    many = [f"Sentence number {number} of some." for number in range(64)]
    began = time.perf_counter()
    for _ in range(4):
        smoke.ask("/v1/embeddings", {"model": name, "input": many})
    outcome.measured["vectors_per_second"] = 4 * len(many) / (time.perf_counter() - began)


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def draws(smoke: Smoke, name: str, outcome: Outcome) -> None:
    body = {"model": name, "prompt": "seven", "n": 1, "response_format": "b64_json", "seed": 1}
    answer, _ = smoke.ask("/v1/images/generations", body)
    image = json.loads(answer)["data"][0]["b64_json"]
    outcome.answer = f"an image of {len(image) * 3 // 4:,} bytes"
    began = time.perf_counter()
    smoke.ask("/v1/images/generations", {**body, "n": 4})
    outcome.measured["images_per_second"] = 4 / (time.perf_counter() - began)


@dataclass(frozen=True)
class Case:
    """One chute to deploy."""

    name: str
    engine: str
    ref: str
    variables: dict[str, str]
    check: Check
    gpu_only: bool = False


def cases(scratch: Path) -> list[Case]:
    images = os.environ.get("IMAGE_MODEL")
    return [
        Case("vllm", "vllm", "templates.vllm_chute:chute", {"MODEL": SMALL}, talks),
        Case(
            "vllm, 8 B of random weights", "vllm", "templates.vllm_chute:chute",
            {"MODEL": str(scratch / "random-8b"), "ENGINE_ARGS": "--load-format dummy --max-model-len 8192"},
            babbles, gpu_only=True,
        ),
        Case("sglang", "sglang", "templates.sglang_chute:chute", {"MODEL": SMALL}, talks),
        Case("embedding", "vllm", "templates.embedding_chute:chute", {}, embeds),
        Case("diffusion", "diffusers", "templates.diffusion_chute:chute",
             {"MODEL": images} if images else {}, draws),
    ]  # fmt: skip


def random_model(directory: Path, tokenizer_of: Path) -> None:
    """A directory that an engine loads with random weights: a known model's config, any tokenizer."""
    directory.mkdir(parents=True)
    facts = json.loads((ROOT / "chutes" / "model" / "catalogue.json").read_text())["Qwen/Qwen3-8B"]["config"]
    (directory / "config.json").write_text(json.dumps(facts))
    for path in tokenizer_of.glob("*token*"):
        (directory / path.name).write_bytes(path.read_bytes())


def run(case: Case, smoke: Smoke, scratch: Path, offline: bool) -> Outcome:
    """Deploy one chute, ask it, measure it, delete it."""
    outcome = Outcome(case.name, case.engine, case.variables.get("MODEL", "the template's own"))
    config = settings.load()
    accelerator = "cuda" if smoke.on_gpu else "cpu"
    try:
        release = find(case.engine, accelerator)
    except ChutesError as error:
        outcome.reason = str(error)
        return outcome
    if offline and is_installed(release, config.engines) is None:
        outcome.reason = f"{release.id} is not installed and no package index answers"
        return outcome
    outcome.tried = True
    began = time.perf_counter()
    try:
        if case.gpu_only:
            converted = next(config.models.rglob("tokenizer.json"), None)
            if converted is None:
                raise ChutesError("No tokenizer is in the cache to go with random weights.")
            random_model(scratch / "random-8b", converted.parent)
        deployed = json.loads(
            smoke.chutes("deploy", case.ref, "--yes", "--json", timeout=INSTALL_SECONDS, **case.variables)
        )
        outcome.ready_after_seconds = round(time.perf_counter() - began, 1)
        name = deployed["chute"]["name"]
        _planned(deployed["draft"]["plan"], outcome)
        _memory(smoke, outcome)
        case.check(smoke, name, outcome)
        outcome.ok = True
        smoke.chutes("delete", name, "--yes")
    except (ChutesError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        outcome.reason = str(error) or type(error).__name__
        print(smoke_logs(smoke), file=sys.stderr)
    return outcome


def smoke_logs(smoke: Smoke) -> str:
    """The end of every instance's log: the reason is there, and the home goes with this process."""
    logs = sorted(Path(smoke.environment["CHUTES_HOME"]).glob("logs/instances/*.log"))
    return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs[-1:])


def _planned(plan: dict[str, Any], outcome: Outcome) -> None:
    choice = plan.get("choice") or {}
    outcome.plan = {key: plan.get(key) for key in ("accelerator", "gpus", "engine_version", "engine_args")}
    if speed := choice.get("speed"):
        outcome.planned = {
            "tokens_per_second_alone": speed["tokens_per_second"],
            "tokens_per_second_together": speed["tokens_per_second_batch"],
            "requests_at_once": speed["batch"],
        }
    if bytes_of := choice.get("per_gpu_bytes"):
        outcome.planned["weights_gib"] = bytes_of["weights"] / 2**30
        outcome.planned["memory_gib"] = bytes_of["usable"] / 2**30


def _memory(smoke: Smoke, outcome: Outcome) -> None:
    if not smoke.on_gpu:
        return
    gpus = {gpu.index: gpu for gpu in devices.detect().gpus}
    used = [gpus[index].memory_total - gpus[index].memory_free for index in outcome.plan["gpus"] or []]
    if used:
        outcome.measured["memory_gib"] = max(used) / 2**30


def index_answers() -> bool:
    """Whether packages could be had: the index's port takes a connection."""
    url = urlparse(os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple")
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname or "", port), REACH_SECONDS).close()
    except OSError:
        return False
    return True


def plans() -> list[dict[str, Any]]:
    """What well-known models would do on this machine."""
    machine, shelf, found = devices.detect(), profiles.load(), []
    for name in TALKED_OF:
        facts = catalogue.find(name)
        assert facts is not None, name
        choice = planner.plan_here(name, facts, Request(shorten=True), machine, shelf).choice
        row: dict[str, Any] = {"model": name, "fits": bool(choice and choice.fits)}
        if choice is not None:
            row |= {"on": choice.label, "context": choice.max_model_len, "reason": choice.reason}
            if choice.speed:
                row["tokens_per_second_alone"] = choice.speed.tokens_per_second
        found.append(row)
    return found


def show(outcome: Outcome) -> str:
    """One chute's lines for a person."""
    verdict = "ok" if outcome.ok else "FAILED" if outcome.tried else "not tried"
    lines = [f"{outcome.name} ({outcome.model}): {verdict}"]
    if outcome.reason:
        lines.append(f"  {outcome.reason}")
    if outcome.answer:
        lines.append(f"  ready after {outcome.ready_after_seconds} s; {outcome.answer}")
    for what, value in outcome.measured.items():
        planned = outcome.planned.get(what)
        lines.append(f"  {what:<28} {value:>12,.1f}" + (f"   planner: {planned:,.1f}" if planned else ""))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="engines or names of chutes, with commas")
    parser.add_argument("--cpu", action="store_true", help="the same on the processor")
    parser.add_argument("--offline", action="store_true", help="install nothing")
    parser.add_argument("--out", type=Path, default=None, help=f"default: results/{RESULT.name}")
    options = parser.parse_args()
    machine = devices.detect()
    if not machine.gpus and not options.cpu:
        why = machine.gpu_problem or "no NVIDIA driver answers"
        print(f"No GPU here: {why}. --cpu does the same on the processor.", file=sys.stderr)
        sys.exit(2)
    on_gpu = bool(machine.gpus) and not options.cpu
    offline = options.offline or not index_answers()
    wanted = {word for word in options.only.split(",") if word}
    for gpu in machine.gpus:
        print(f"GPU {gpu.index}: {gpu.name}, {gpu.memory_total / 2**30:.1f} GiB, {gpu.capability}")
    planned = plans() if on_gpu else []
    for row in planned:
        print(
            f"{row['model']}: {'fits' if row['fits'] else 'does not fit'} on {row.get('on', 'this machine')}"
        )
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="gpu-smoke-") as directory:
        scratch = Path(directory)
        smoke = Smoke(scratch / "home", on_gpu)
        try:
            for case in cases(scratch):
                if (wanted and not wanted & {case.name, case.engine}) or (case.gpu_only and not on_gpu):
                    continue
                outcomes.append(run(case, smoke, scratch, offline))
                print(show(outcomes[-1]), flush=True)
        finally:
            smoke.chutes("down")
    document = {
        "schema_version": 1,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": asdict(machine),
        "on": "gpu" if on_gpu else "cpu",
        "offline": offline,
        "plans": planned,
        "chutes": [asdict(outcome) for outcome in outcomes],
    }
    path = options.out or (RESULT if on_gpu else RESULT.with_name("cpu-smoke.json"))
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"Written: {path}")
    sys.exit(any(outcome.tried and not outcome.ok for outcome in outcomes))


if __name__ == "__main__":
    main()
