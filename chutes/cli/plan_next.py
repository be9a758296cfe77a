"""What to type once the plan is known: the engine's command, a chute to paste, the command after it."""

from __future__ import annotations

import shlex
from pathlib import Path

from chutes.cli.layout import BOLD, LABEL, WIDEST, entry, paint
from chutes.engine import vllm
from chutes.engine.environment import INSIDE
from chutes.hardware.choice import Choice, PlanResult
from chutes.hardware.engine_args import for_vectors
from chutes.model import catalogue
from chutes.model.source import base_name

_FILE = "my_chute.py"


def lines(found: PlanResult, best: Choice, width: int) -> list[str]:
    return [*entry(found.engine, command(found, best), width), *_chute(found, best, width)]


def command(found: PlanResult, best: Choice) -> str:
    """The engine's own command line, for whoever runs it by hand."""
    model = shlex.quote(model_of(found))
    start = f"vllm serve {model}"
    if found.engine == "sglang":
        # On a CPU it does not import by itself: the script sees to that.
        server = "-m sglang.launch_server" if best.gpu_count else str(INSIDE / "serve_sglang.py")
        start = f"python {server} --model-path {model}"
    elif not best.gpu_count:  # the CPU build has no `vllm` that works
        start = f"python -m {vllm.MODULE} --model {model}"
    variables = [f"{name}={value}" for name, value in best.environment.items()]
    revision = ["--revision", found.revision] if found.revision and len(found.revision) == 40 else []
    pooling = ["--runner", "pooling"] if _embeds(found) else []
    return " ".join([*variables, start, *revision, *pooling, *_words(found, best)])


def _embeds(found: PlanResult) -> bool:
    """Whether it is served for its vectors. Of decoders that are trained for it nothing here knows."""
    return found.engine == "vllm" and found.attention == "encoder"


def _words(found: PlanResult, best: Choice) -> list[str]:
    if not _embeds(found):
        return best.engine_args
    return for_vectors(best.engine_args, found.context_of_model, encoder=True)


def model_of(found: PlanResult) -> str:
    """The model as a chute file must name it: with its organisation, a directory as a path."""
    name = base_name(found.model)
    if known := catalogue.canonical(name):
        return known
    here = not name.startswith(("/", "./", "../", "~", "file://")) and Path(name).is_dir()
    return f"./{name}" if here else name


def source(found: PlanResult, best: Choice, width: int) -> list[str]:
    """A chute file of this plan."""
    selector = ", ".join(f"{key}={value!r}" for key, value in best.node_selector.items())
    revision = found.revision if found.revision and len(found.revision) == 40 else None
    builder = "build_embedding_chute" if _embeds(found) else f"build_{found.engine}_chute"
    return [
        "from chutes.chute import NodeSelector",
        f"from chutes.chute.template import {builder}",
        f"chute = {builder}(",
        f"    username='you', model_name={model_of(found)!r},",
        *([f"    revision={revision!r},"] if revision else []),
        f"    node_selector=NodeSelector({selector}),",
        *_arguments(_words(found, best), width),
        ")",
    ]


def _chute(found: PlanResult, best: Choice, width: int) -> list[str]:
    indent = " " * (2 + LABEL)
    text = source(found, best, min(width, WIDEST) - len(indent))
    then = f"save it as {_FILE}, then: {paint(f'chutes deploy --dry-run {_FILE}:chute', BOLD)}"
    return [
        f"  {'chute':<{LABEL}}{text[0]}",
        *(indent + line for line in text[1:]),
        *entry("next", then, width),
    ]


def _arguments(words: list[str], width: int) -> list[str]:
    """engine_args in as many literals as it takes not to be too wide."""
    pairs: list[str] = []
    for word in words:
        if pairs and not word.startswith("-"):
            pairs[-1] += f" {shlex.quote(word)}"
        else:
            pairs.append(word)
    rows = [pairs[0]]
    for pair in pairs[1:]:
        used = len("    engine_args='' ,") if len(rows) == 1 else len("    '' ,")
        if len(rows[-1]) + 1 + len(pair) + used <= width:
            rows[-1] += f" {pair}"
        else:
            rows.append(pair)
    quoted = [repr(f"{row} ") for row in rows[:-1]] + [f"{rows[-1]!r},"]
    return [f"    engine_args={quoted[0]}", *(f"    {one}" for one in quoted[1:])]
