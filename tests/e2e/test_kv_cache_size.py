"""The size of KV cache that real vLLM prints, for each attention kind, against the arithmetic."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks import kv_cache_size
from benchmarks.kv_cache_models import CASES
from benchmarks.kv_cache_size import BLOCK, Compared
from chutes.engine import environment
from chutes.engine.release import find
from tests.story import Story

pytestmark = pytest.mark.timeout(3600)  # the first run installs; then some ten seconds a model


@pytest.fixture(scope="module")
def compared(cache_dir: Path) -> dict[str, Compared]:
    # Not an async fixture: those live for one test, and twenty starts of the engine are made once.
    engine = asyncio.run(environment.ensure(find("vllm", "cpu"), cache_dir / "engines", lambda *report: None))
    return {one.case.name: one for one in kv_cache_size.run(CASES, engine)}


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_the_engines_number_is_ours(name: str, compared: dict[str, Compared], story: Story):
    one = compared[name]
    # Not a skip: if no engine started at all, every case would be skipped and nothing would have been shown.
    assert one.engine is not None, f"vLLM printed no size for {name}: {one.error}"
    story.tell(name, f"vLLM {one.engine:,} tokens", f"computed {one.ours:,}", one.attention)
    # The printed number is a product that is rounded once; a block is what a page is laid out in.
    assert abs(one.ours - one.engine) <= BLOCK
