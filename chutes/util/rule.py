"""An error for rules that the published SDK states with `assert`."""

from __future__ import annotations

from chutes.exception import InvalidSpec


class RuleBrokenError(InvalidSpec, AssertionError):
    """A directive of an image or an option of a job breaks its rule.

    It is an `AssertionError` too, because that is what chute files that guard against it catch.
    """
