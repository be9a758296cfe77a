"""plan: which hardware a model needs, before anything is downloaded or rented."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from chutes import config as settings
from chutes.cli import output
from chutes.exception import CannotPlan, UsageError
from chutes.hardware import profiles as shelves

# Ten times the longest context of any model: above it a number is a slip, not a wish.
MOST_TOKENS = 100_000_000
MOST_REQUESTS = 100_000
MOST_GPUS = 128  # as NodeSelector


@dataclass(frozen=True)
class Asked:
    """The options of the command, as they were typed."""

    max_model_len: str | None = None
    concurrency: int | None = None
    gpu: tuple[str, ...] = ()
    gpu_count: int | None = None
    kv_cache_dtype: str = "auto"
    engine: str = "vllm"
    engine_version: str = ""
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    optimize: str = "price"
    max_price: float | None = None
    max_tpot: float | None = None


def plan(
    model: str | None,
    revision: str | None,
    asked: Asked,
    *,
    here: bool,
    compare: bool,
    as_json: bool,
    why: bool = False,
    check: bool = False,
) -> None:
    config = settings.load()
    try:
        shelf = shelves.load(shelves.find(config.home, config.profiles))
        request = request_of(asked, shelf)
        if compare:
            _compare(model, request, shelf, as_json)
            return
        if not model:
            raise CannotPlan(
                "No model was named.", "`chutes plan Qwen/Qwen3-32B`, or --compare for the catalogue."
            )
        from chutes.hardware import planner
        from chutes.model.known import know

        known = know(model, revision, config.models)
        if here:
            from chutes.hardware import devices

            # A context that nobody asked for is cut to what this machine holds: there is no other.
            request = request.model_copy(update={"shorten": True})
            found = planner.plan_here(known.name, known.facts, request, devices.detect(), shelf)
        else:
            found = planner.plan_catalogue(known.name, known.facts, request, shelf)
    except UsageError as error:  # what cannot be planned is one exit code, whatever the reason
        raise CannotPlan(error.message, error.fix) from None
    found = found.model_copy(update={"revision": known.revision, "facts_from": known.origin})
    if as_json:
        output.document(found.model_dump(mode="json"))
    else:
        from chutes.cli import plan_screen

        plan_screen.show(found, shelf, why=why)
    if check and (found.choice is None or not found.choice.fits):
        raise SystemExit(output.DOES_NOT_FIT)


def request_of(asked: Asked, shelf: shelves.Profiles) -> Any:
    """The options as the planner's question.

    Raises:
        CannotPlan: a number that cannot be meant, or a name that nobody knows.
    """
    from chutes.hardware.choice import Request

    length = _tokens(asked.max_model_len)
    _within("--max-model-len", length, 1, MOST_TOKENS)
    _within("--concurrency", asked.concurrency, 1, MOST_REQUESTS)
    _within("--max-num-seqs", asked.max_num_seqs, 1, MOST_REQUESTS)
    _within("--max-num-batched-tokens", asked.max_num_batched_tokens, 1, MOST_TOKENS)
    for flag in ("gpu_count", "tensor_parallel_size", "pipeline_parallel_size"):
        _within(f"--{flag.replace('_', '-')}", getattr(asked, flag), 1, MOST_GPUS)
    share = asked.gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        raise CannotPlan(f"--gpu-memory-utilization {share:g} is not a share.", "Give 0.9 or the like.")
    for flag, value in (("--max-price", asked.max_price), ("--max-tpot", asked.max_tpot)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise CannotPlan(f"{flag} {value:g} is not above 0.", "Give dollars an hour, or milliseconds.")
    _among("--kv-cache-dtype", asked.kv_cache_dtype, ["auto", "fp8"])
    _among("--optimize", asked.optimize, ["price", "latency", "throughput"])
    _among("--engine", asked.engine, list(shelf.engines))
    return Request(
        engine=asked.engine,
        engine_version=asked.engine_version,
        max_model_len=length,
        concurrency=asked.concurrency or 1,
        max_num_seqs=asked.max_num_seqs,
        max_num_batched_tokens=asked.max_num_batched_tokens,
        kv_cache_dtype="fp8" if asked.kv_cache_dtype == "fp8" else "auto",
        gpu_memory_utilization=asked.gpu_memory_utilization,
        tensor_parallel=asked.tensor_parallel_size,
        pipeline_parallel=asked.pipeline_parallel_size,
        gpu=asked.gpu[0] if len(asked.gpu) == 1 else asked.gpu or None,
        gpu_count=asked.gpu_count,
        optimize=asked.optimize,  # pyright: ignore[reportArgumentType]  (checked above)
        max_price=asked.max_price,
        max_tpot_ms=asked.max_tpot,
    )


def _tokens(text: str | None) -> int | None:
    """A number of tokens as vLLM reads it: 32k is 32,000 and 32K 32,768.

    Raises:
        CannotPlan: it is no number.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(-?\d+)([kKmM]?)", text.strip().replace(",", "").replace("_", ""))
    if found is None:
        raise CannotPlan(f"--max-model-len {text!r} is not a number of tokens.", "Write 32768, or 32K.")
    return int(found[1]) * {"": 1, "k": 10**3, "m": 10**6, "K": 1 << 10, "M": 1 << 20}[found[2]]


def _compare(model: str | None, request: Any, shelf: shelves.Profiles, as_json: bool) -> None:
    from chutes.hardware.compare import compare

    rows = list(compare(request, shelf, model))
    if as_json:
        output.document([row.model_dump(mode="json") for row in rows])
        return
    from chutes.cli import plan_screen

    plan_screen.show_compared(rows, shelf, request.max_model_len)


def _within(flag: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise CannotPlan(f"{flag} {value} cannot be meant.", f"Give a number from {low} to {high:,}.")


def _among(flag: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise CannotPlan(f"{flag} {value!r} is not known.", f"Take one of {', '.join(known)}.")
