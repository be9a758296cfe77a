"""What a person should know about a choice beside its figures, one sentence each. Pure."""

from __future__ import annotations

from chutes.hardware import gpu_names
from chutes.hardware.choice import Choice, Request
from chutes.hardware.profiles import Profiles
from chutes.hardware.versions import behaviour
from chutes.model.facts import ModelFacts

PUBLISHED_MOST_GPUS = 8  # gpu_count of the published NodeSelector


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
    said += _batch(request, best, version, profiles)
    if best.gpu_count > PUBLISHED_MOST_GPUS:
        said.append(f"the published platform rents up to {PUBLISHED_MOST_GPUS} GPUs to an instance")
    if sibling := gpu_names.sibling(best.gpu, profiles):
        said.append(sibling)
    if note := behaviour(request.engine, version, profiles).note:
        said.append(note)
    return said


def _own_context(request: Request, best: Choice) -> list[str]:
    if request.concurrency == 1:
        return []
    return [
        f"room was made for {request.concurrency:,} × the model's full {best.max_model_len:,} tokens; "
        "--max-model-len sets what your requests really need"
    ]


def _batch(request: Request, best: Choice, version: str, profiles: Profiles) -> list[str]:
    # SGLang settles it from its pools, and has no number of its own.
    if not best.gpu_count or request.max_num_seqs is not None or not best.fits or request.engine != "vllm":
        return []
    known = behaviour(request.engine, version, profiles)
    default = known.default_batch(best.per_gpu_bytes.total, best.gpu_name)[1]
    if best.max_num_seqs >= min(default, best.max_num_batched_tokens):
        return []
    return [
        f"the engine's own {default:,} requests at once would leave too little memory for the cache: "
        f"lowered to {best.max_num_seqs:,}"
    ]
