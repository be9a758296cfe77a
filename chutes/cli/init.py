"""init: a chute file to begin with."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from chutes import config as settings
from chutes.cli import output
from chutes.exception import AlreadyExists, UsageError

STARTERS = Path(__file__).parent / "starters"
NOBODY = '"USERNAME"'

_AFTERWARDS = {
    "vllm": "Then ask it: the end of `chutes deploy` shows a curl command.",
    "sglang": "Then ask it: the end of `chutes deploy` shows a curl command.",
    "embedding": "Then POST /v1/embeddings at the address that `chutes deploy` prints.",
    "diffusion": "Then POST /v1/images/generations at the address that `chutes deploy` prints.",
    "custom": "Then open /{slug}/docs at the address that `chutes deploy` prints (`chutes ps` has the slug).",
}


def _is_taken(stem: str, path: Path) -> bool:
    """Whether a module of this name comes from elsewhere than the file that is to be written."""
    for finder in sys.meta_path:
        spec = finder.find_spec(stem, None)
        # Without an origin it is just a directory, which a module goes before.
        if spec is not None and spec.origin is not None:
            return Path(spec.origin) != path
    return False


def _instead(stem: str) -> str:
    name = "my_" + re.sub(r"\W+", "_", stem, flags=re.ASCII).strip("_")
    return name if name != "my_" and not _is_taken(name, Path(f"{name}.py")) else "my_chute"


def init(template: str, name: str, force: bool) -> None:
    if template not in _AFTERWARDS:
        raise UsageError(f"There is no template {template!r}.", f"Use one of {', '.join(_AFTERWARDS)}.")
    stem = name.removesuffix(".py")
    path = Path.cwd() / f"{stem}.py"
    if not stem.isidentifier() or keyword.iskeyword(stem):
        raise UsageError(
            f"{name!r} cannot be the name of a Python module.",
            f"Use letters, digits and underscores, for instance --name {_instead(stem)}.",
        )
    if _is_taken(stem, path):
        raise UsageError(
            f"There is a Python module {stem!r} already: a file of this name would be imported in its place.",
            f"Choose another, for instance --name {_instead(stem)}.",
        )
    if path.exists() and not force:
        raise AlreadyExists(
            f"{path} is there already.", "Choose another --name, or --force to write over it."
        )
    username = settings.load().username
    path.write_text((STARTERS / f"{template}.py").read_text().replace(NOBODY, f'"{username}"'))
    output.say(str(path))
    output.note("Change what you like in it. Next:")
    output.note(f"  chutes deploy {stem}:chute --dry-run   # shows the plan, starts nothing")
    output.note(f"  chutes deploy {stem}:chute")
    output.note(_AFTERWARDS[template])
