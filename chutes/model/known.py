"""What is known of a model by its name: from the catalogue, a directory, or the hub, in that order.

The catalogue comes first because it answers at once and without a network; a revision goes past it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from chutes.exception import ModelError
from chutes.model import catalogue, variants
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
    from chutes.model import source

    path = _path(name)
    if path is not None:
        found = source.resolve(path, revision)
        return _known(name, source.read_facts(found, models_dir), None, found.note)
    bare = name.removeprefix(_PLATFORM)
    base = source.base_name(bare)
    said = f"{source.tee_note(base)}; " if base != bare else ""
    listed = catalogue.find(base) or catalogue.find(name)
    if listed is not None and revision is None:
        return _known(
            catalogue.canonical(base) or bare,
            listed,
            None,
            f"{said}the catalogue shipped with chutes (the hub was not asked)",
        )
    from chutes.model import hub

    try:
        found = source.resolve(base, revision)
        return _known(bare, source.read_facts(found, models_dir), found.revision, said + found.note)
    except hub.HubUnreachable as error:
        without = "the hub cannot be reached"
        if listed is not None:
            told = f"{said}the catalogue shipped with chutes, because {without}: "
            return _known(bare, listed, None, f"{told}revision {revision} was not looked at")
        if derived := variants.find(base):
            facts, model = derived
            told = f"{said}{model} in the catalogue, its weights packed by arithmetic, because {without}"
            return _known(bare, facts, None, told)
        raise ModelError(error.message, suggest(bare)) from None
    except source.NotAName as error:
        raise ModelError(error.message, suggest(bare) if near(bare) else error.fix) from None


def _known(name: str, facts: ModelFacts, revision: str | None, origin: str) -> Known:
    return Known(name, facts, revision, "; ".join([origin, *facts.notes]))


def _path(name: str) -> str | None:
    """The path that `name` is: written as one, or something here that is called so."""
    if name.startswith(("/", "./", "../", "~", "file://")) or name in (".", ".."):
        return name
    here = Path(name)
    # A name of the hub with such a directory beside it means the directory: it is nearer.
    return f"./{name}" if here.is_dir() or here.is_file() else None


def near(name: str, most: int = 3) -> list[str]:
    """Models of the catalogue whose names are like `name`: all its words, in any order, else its letters."""
    wanted = _plain(name.split("/")[-1])
    words = re.findall(r"[a-z]+|[\d.]+", name.split("/")[-1].lower())
    known = {one: _plain(one.split("/")[-1]) for one in catalogue.names()}
    full = [one for one in known if words and all(word in one.lower() for word in words)]
    alike = difflib.get_close_matches(wanted, list(known.values()), n=most, cutoff=0.6)
    by_plain = {plain: one for one, plain in known.items()}
    return list(dict.fromkeys([*(by_plain[one] for one in alike), *full]))[:most]


def suggest(name: str) -> str:
    """What can be typed instead, when there is no hub, or no such name."""
    found = near(name)
    close = f"The catalogue has {', '.join(found)}. " if found else ""
    return (
        f"{close}`chutes plan --compare` lists the models that are planned offline; a directory with a "
        "config.json is planned offline too."
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
