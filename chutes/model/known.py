"""What is known of a model by its name: from the catalogue, a directory, or the hub, in that order.

The catalogue comes first because it answers at once and without a network; a revision goes past it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from chutes.exception import ModelError
from chutes.model import catalogue
from chutes.model.facts import ModelFacts

_PLATFORM = "chutes/"  # the provider prefix that LiteLLM puts before a model's name


@dataclass(frozen=True)
class Known:
    name: str
    facts: ModelFacts
    revision: str | None
    origin: str
    """Where the facts come from, as a clause for a person."""


def know(name: str, revision: str | None, models_dir: Path) -> Known:
    """The facts of the model that `name` means, without downloading weights.

    Raises:
        ModelError: there is no such model, its files are damaged, or the hub cannot be asked or refuses, and
            the catalogue does not know it either.
    """
    bare = name.removeprefix(_PLATFORM)
    listed = None if _is_path(name) else catalogue.find(bare) or catalogue.find(name)
    if listed is not None and revision is None:
        return _known(bare, listed, None, "the catalogue shipped with chutes (the hub was not asked)")
    from chutes.model import hub, source

    path = name if _is_path(name) else f"./{name}" if (Path(name) / "config.json").is_file() else None
    if path is not None:
        found = source.resolve(path, revision)
        return _known(name, source.read_facts(found, models_dir), None, found.note)
    try:
        found = source.resolve(bare, revision)
        return _known(bare, source.read_facts(found, models_dir), found.revision, found.note)
    except hub.HubUnreachable as error:
        if listed is None:
            raise ModelError(error.message, _suggest(bare)) from None
        return _known(
            bare, listed, None, f"the catalogue shipped with chutes, because the hub cannot be reached: "
            f"revision {revision} was not looked at",
        )  # fmt: skip


def _known(name: str, facts: ModelFacts, revision: str | None, origin: str) -> Known:
    return Known(name, facts, revision, "; ".join([origin, *facts.notes]))


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", "file://")) or name in (".", "..")


def _suggest(name: str) -> str:
    """What can be typed instead, when there is no hub."""
    names = {known.split("/")[-1].lower(): known for known in catalogue.names()}
    near = difflib.get_close_matches(name.split("/")[-1].lower(), names, n=3, cutoff=0.6)
    close = f"The catalogue has {', '.join(names[one] for one in near)}. " if near else ""
    return (
        f"{close}`chutes plan --compare` lists the models that are planned offline; a directory with a "
        "config.json is planned offline too."
    )
