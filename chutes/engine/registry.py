"""Every engine that an instance can run on, by the name that a plan has for it."""

from __future__ import annotations

from chutes.engine.contract import Engine
from chutes.engine.diffusers import Diffusers
from chutes.engine.python import Python
from chutes.engine.sglang import Sglang
from chutes.engine.vllm import Vllm

ENGINES: dict[str, Engine] = {
    "diffusers": Diffusers(),
    "python": Python(),
    "sglang": Sglang(),
    "vllm": Vllm(),
}


def of(name: str) -> Engine:
    """The engine called `name`, as `Plan.engine` has it.

    Raises:
        KeyError: a plan was made for an engine that is not here: a fault of ours.
    """
    return ENGINES[name]
