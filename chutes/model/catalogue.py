"""Facts of well-known models, shipped with the package: planning needs no network for them."""

from __future__ import annotations

from chutes.model.facts import ModelFacts


def names() -> list[str]:
    """Every model of the catalogue, as `org/name`."""
    raise NotImplementedError


def find(name: str) -> ModelFacts | None:
    """A model's facts; case does not matter, nor does a missing organisation or the suffix `-TEE`."""
    raise NotImplementedError
