"""The whole catalogue planned: seed tiers beside the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from chutes.exception import ModelError
from chutes.hardware.choice import PlanResult, Request
from chutes.hardware.planner import USUAL_CONTEXT, plan_catalogue
from chutes.hardware.profiles import Profiles
from chutes.model import catalogue
from chutes.model import known as known_names


class Compared(BaseModel):
    """One model of the catalogue: its plan, or why there is none."""

    model_config = ConfigDict(frozen=True)

    model: str
    plan: PlanResult | None = None
    problem: str = ""


def compare(request: Request, profiles: Profiles, only: str | None = None) -> Iterator[Compared]:
    """Plan every model of the catalogue; where no context is asked for, at 32,768 tokens or its own limit.

    Raises:
        ModelError: `only` is not in the catalogue.
    """
    known = catalogue.canonical(only) if only is not None else None
    if only is not None and known is None:
        raise ModelError(
            f"{only!r} is not in the catalogue, whose models --compare compares.", known_names.suggest(only)
        )
    for name in catalogue.names() if known is None else [known]:
        facts = catalogue.find(name)
        if facts is None:
            continue
        asked = request
        if request.max_model_len is None and facts.attention != "none":
            length = min(USUAL_CONTEXT, facts.max_model_len or USUAL_CONTEXT)
            asked = request.model_copy(update={"max_model_len": length})
        try:
            yield Compared(model=name, plan=plan_catalogue(name, facts, asked, profiles))
        except ModelError as error:
            yield Compared(model=name, problem=error.message)
