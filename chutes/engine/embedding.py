"""vLLM asked for vectors instead of text: what its command line says then, and its first question.

Written against vLLM 0.32. What is relied on there:

- With `--runner pooling` a model of any kind pools; `--convert auto` makes a decoder do so.
- What `--pooler-config` leaves open is read from the model's `modules.json` and the config.json of the
  pooling module that it names (config/model.py, transformers_utils/config.py `get_pooling_config`): mean,
  last or first token, and whether vectors are normalised. Where there are none the architecture decides.
- A context beyond `max_seq_length` of sentence-transformers' own file is refused, whatever config.json says
  (config/model.py `_get_and_verify_max_len`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chutes.chute.pooling import get_optimal_pooling_type
from chutes.chute.spec import EngineSpec
from chutes.engine.contract import Endpoint
from chutes.engine.families import value
from chutes.engine.process import ask
from chutes.exception import EngineFailed

MODULES = "modules.json"

CONTEXT = "--max-model-len"

QUESTION = ["The capital of France is Paris.", "Cats sleep for most of the day."]


def defaults(spec: EngineSpec, directory: Path, args: Sequence[str]) -> list[str]:
    """What to append to the author's `args`.

    Args:
        directory: the model's files.
    """
    ours: list[str] = []
    if value(args, "runner") is None:
        ours += ["--runner", "pooling"]
    given = any(arg.split("=", 1)[0].split(".", 1)[0].replace("_", "-") == "--pooler-config" for arg in args)
    pooler = {} if given else _pooler(spec, directory)
    return [*ours, "--pooler-config", json.dumps(pooler)] if pooler else ours


def _pooler(spec: EngineSpec, directory: Path) -> dict[str, Any]:
    pooler: dict[str, Any] = {}
    kind = spec.options.get("pooling_type", "AUTO")
    # A dry run has no files to look at: it leaves open what they may settle.
    if kind == "AUTO" and directory.is_dir() and not (directory / MODULES).is_file():
        kind = get_optimal_pooling_type(spec.model)
    if kind != "AUTO":
        pooler["pooling_type"] = kind
    if longest := spec.options.get("max_embed_len"):
        pooler |= {"enable_chunked_processing": True, "max_embed_len": longest}
    return pooler


def fitting(planned: Sequence[str], directory: Path) -> list[str]:
    """The planner's arguments without a context that is longer than what the model's own files allow.

    They are in none of the facts that it had: sentence-transformers keeps the length in a file of its own.
    """
    words = list(planned)
    asked, allowed = value(words, CONTEXT[2:]), _max_seq_length(directory)
    if asked is not None and allowed is not None and int(asked) > allowed:
        at = words.index(CONTEXT)
        del words[at : at + 2]
    return words


def _max_seq_length(directory: Path) -> int | None:
    for path in sorted(directory.glob("sentence_*_config.json")):
        try:
            length = json.loads(path.read_text()).get("max_seq_length")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(length, int):
            return length
    return None


async def warm(endpoint: Endpoint, name: str, seconds: float) -> None:
    """Two short texts: compiles what is compiled lazily and shows that their vectors are vectors.

    Raises:
        EngineFailed: no answer, an error, or what cannot be the vectors of two different texts.
    """
    question = {"model": name, "input": QUESTION}
    status, body = await ask(endpoint.port, "/v1/embeddings", endpoint.api_key, question, seconds)
    if status == 404:
        raise EngineFailed(
            "The engine runs the model and makes no vectors with it: it was trained for something else.",
            "Take an embedding model, or have it converted: engine_args='--convert embed'.",
        )
    if status != 200:
        text = body.decode(errors="replace")[:300]
        raise EngineFailed(f"The engine started but its first answer was {status or 'none'}: {text}")
    if wrong := _wrong(body):
        raise EngineFailed(
            f"The engine's first vectors are wrong: {wrong}.", "The model's files may be damaged."
        )


def _wrong(body: bytes) -> str:
    """What is wrong with the answer to `QUESTION`; empty when nothing is."""
    try:
        vectors = [entry["embedding"] for entry in json.loads(body)["data"]]
        lengths = {len(vector) for vector in vectors}
        finite = all(math.isfinite(number) for vector in vectors for number in vector)
    except (ValueError, KeyError, TypeError):
        return f"they cannot be read: {body[:300]!r}"
    if len(vectors) != len(QUESTION) or len(lengths) != 1 or 0 in lengths:
        return f"{len(vectors)} of lengths {sorted(lengths)} came of {len(QUESTION)} texts"
    if not finite:
        return "they hold what is no number"
    if vectors[0] == vectors[1]:
        return "two different texts have the same"
    return ""
