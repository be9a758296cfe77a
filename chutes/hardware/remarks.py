"""What a person should know about a choice beside its figures, one sentence each. Pure."""

from __future__ import annotations

from chutes.hardware import gpu_names
from chutes.hardware.choice import Choice, Request
from chutes.hardware.profiles import Profiles
from chutes.hardware.versions import NEWEST, behaviour, parse
from chutes.model.facts import ModelFacts

OLDEST = {"vllm": (0, 9), "sglang": (0, 4)}
"""The oldest releases that any of the rules was held against."""


def on(facts: ModelFacts, request: Request, profiles: Profiles, best: Choice, version: str) -> list[str]:
    if facts.attention == "none":
        return [
            "this model makes images, which the engines for text do not serve: only its weights were "
            "counted, and what making an image takes comes on top"
        ]
    said: list[str] = []
    if facts.attention == "encoder":
        said.append("an encoder reads a text in one pass: it keeps no cache, and writes no tokens")
    if request.max_model_len is None and best.max_model_len == facts.max_model_len:
        said += _own_context(request, best)
    said += _batch(request, best, version)
    if note := _release(request.engine, version, profiles):
        said.append(note)
    if sibling := gpu_names.sibling(best.gpu, profiles):
        said.append(sibling)
    if note := behaviour(request.engine, version).note:
        said.append(note)
    return said


def _own_context(request: Request, best: Choice) -> list[str]:
    if request.concurrency == 1:
        return []
    return [
        f"room was made for {request.concurrency:,} × the model's full {best.max_model_len:,} tokens; "
        "--max-model-len sets what your requests really need"
    ]


def _batch(request: Request, best: Choice, version: str) -> list[str]:
    said: list[str] = []
    given = request.max_num_seqs
    if given is not None and given < request.concurrency:
        said.append(
            f"the cache holds {request.concurrency:,} requests and --max-num-seqs lets {given:,} run at "
            "once: the others wait"
        )
    if best.gpu_count and given is None and best.fits:
        default = behaviour(request.engine, version).default_batch(best.per_gpu_bytes.total, best.gpu_name)[1]
        if best.max_num_seqs < default:
            said.append(
                f"the engine's own {default:,} requests at once would leave too little memory for the cache: "
                f"lowered to {best.max_num_seqs:,}"
            )
    return said


def _release(engine: str, version: str, profiles: Profiles) -> str:
    """Whether a release lies outside of those whose rules are known."""
    known = max((NEWEST[engine], profiles.engines[engine]["cuda"].version), key=parse)
    if parse(version) > parse(known):
        return f"{engine} {version} is not known here: planned with the rules of {known}, the newest that are"
    if parse(version) < OLDEST[engine]:
        oldest = ".".join(map(str, OLDEST[engine]))
        return f"{engine} {version} is older than any release known here: planned with the rules of {oldest}"
    return ""
