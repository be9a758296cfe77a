"""What must hold of a chute before it is deployed."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from chutes.exception import InvalidSpec
from chutes.util.user import validate_the_username

if TYPE_CHECKING:
    from chutes.chute.base import Chute

# The published server's rule, without regard to case (hub ids have capitals): optional folders, a name.
_NAME = re.compile(r"([a-z0-9_.-]+/)*[a-z0-9][a-z0-9_./-]*", re.IGNORECASE)
_NAME_LENGTH = (3, 127)
_TAGLINE_CHARACTERS = 1024
_README_CHARACTERS = 16_384
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_WHOLE_NUMBERS = {
    # Published limit 256; lifted because vLLM runs 1024 sequences at once by default on large GPUs.
    "concurrency": (1, 1024, "the requests one instance takes at once"),
    "max_instances": (1, 100, "the most instances to scale to"),
    "shutdown_after_seconds": (60, 604_800, "seconds without a request, one minute to one week"),
}


def check_deployable(chute: Chute) -> None:
    """Check every field of a chute.

    Raises:
        InvalidSpec: the first field that cannot be served.
    """
    validate_the_username(chute.username)
    _check_name(chute.name)
    for field, (low, high, meaning) in _WHOLE_NUMBERS.items():
        value = getattr(chute, field)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _invalid(chute, field, value, f"a whole number from {low} to {high}: {meaning}")
    threshold: Any = chute.scaling_threshold
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not number or not math.isfinite(threshold) or not 0 < threshold <= 1:
        raise _invalid(
            chute, "scaling_threshold", threshold, "above 0 and at most 1: the share of concurrency in use"
        )
    for field, limit in (("tagline", _TAGLINE_CHARACTERS), ("readme", _README_CHARACTERS)):
        if len(getattr(chute, field) or "") > limit:
            raise InvalidSpec(
                f"Chute {chute.name!r}: {field} is longer than {limit} characters.", f"Shorten {field}=."
            )
    for cord in chute.cords:
        if cord.public_api_method not in _METHODS:
            raise InvalidSpec(
                f"Cord {cord.name!r}: public_api_method={cord.public_api_method!r} is not an HTTP method.",
                f"Use one of {', '.join(_METHODS)}.",
            )
    _check_public_paths(chute)
    if not chute.cords and not chute.jobs:
        raise InvalidSpec(
            f"Chute {chute.name!r} has nothing that can be called.",
            "Decorate a function with @chute.cord(public_api_path=...) or @chute.job().",
        )


def _check_public_paths(chute: Chute) -> None:
    """Two cords may share a public path if the body's `stream` tells them apart."""
    taken: dict[tuple[str, str, bool], str] = {}
    for cord in chute.cords:
        if cord.public_api_path is None:
            continue
        where = (cord.public_api_method, cord.public_api_path, cord.stream)
        if (other := taken.setdefault(where, cord.name)) != cord.name:
            raise InvalidSpec(
                f"Cords {other!r} and {cord.name!r} both answer {where[0]} {where[1]}.",
                "Only a streaming and a plain cord can share a public path: give one another.",
            )


def _check_name(name: Any) -> None:
    low, high = _NAME_LENGTH
    if not isinstance(name, str) or not low <= len(name) <= high or not _NAME.fullmatch(name):
        raise InvalidSpec(
            f"Chute name={name!r} must be {low} to {high} letters, digits, '_', '.', '-' or '/', "
            "and begin with a letter or digit.",
            "For instance the model's hub id, 'Qwen/Qwen3-8B'.",
        )


def _invalid(chute: Chute, field: str, value: Any, takes: str) -> InvalidSpec:
    return InvalidSpec(
        f"Chute {chute.name!r}: {field}={value!r} must be {takes}.", f"Change {field}= in the file."
    )
