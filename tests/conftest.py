"""What every floor of tests shares."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from tests.story import Story

# A deadline on each example is a stopwatch: on a busy machine it fails what is right.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """Where engines and models are kept between runs: $CHUTES_CACHE, or `.cache` in the repository.

    Environments take minutes and gigabytes to make, so tests that need a real one share it.
    """
    return Path(os.environ.get("CHUTES_CACHE") or Path(__file__).parents[1] / ".cache").absolute()


_STORY = Story()


@pytest.fixture(scope="session")
def story() -> Story:
    """Where a test tells what it found; printed after the run."""
    return _STORY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _STORY.rows:
        terminalreporter.section("what was seen")
        for row in _STORY.rows:
            terminalreporter.write_line(" | ".join(row))
