"""What every floor of tests shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """Where engines and models are kept between runs: $CHUTES_CACHE, or `.cache` in the repository.

    Environments take minutes and gigabytes to make, so tests that need a real one share it.
    """
    return Path(os.environ.get("CHUTES_CACHE") or Path(__file__).parents[1] / ".cache").absolute()
