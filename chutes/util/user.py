"""The rule for usernames."""

from __future__ import annotations

from chutes.config import USERNAME_PATTERN
from chutes.exception import InvalidSpec


def validate_the_username(value: str) -> str:
    """Return `value` unchanged when it is a username: 3 to 15 letters, digits or underscores.

    Raises:
        InvalidSpec: it is not one (a `ValueError`).
    """
    if not isinstance(value, str) or not USERNAME_PATTERN.fullmatch(value):
        raise InvalidSpec(
            f"Username {value!r} must be 3 to 15 letters, digits or underscores.",
            "Choose another username, for instance your login name without dots and dashes.",
        )
    return value
