"""A platform with real vLLM behind it, shared by every test of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.platform_kit import PlatformKit, platform

ROOT = Path(__file__).parents[2]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# A model of a family without documented parsers, and a template that lets a prompt tell what it was given.
ENGINE_ARGS = (
    f"--chat-template {ROOT}/tests/fixtures/litellm/chat_template.jinja --tool-call-parser hermes "
    # Examples that name no length would sometimes go on to the end of the context: minutes on a busy CPU.
    """--override-generation-config '{"max_new_tokens": 1024}'"""
)
# The first run makes an environment of gigabytes and converts a model.
DEPLOY_SECONDS = 1800


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[PlatformKit]:
    """`chutes deploy templates.vllm_chute:chute`, as a user types it, on the CPU."""
    with platform(tmp_path_factory.mktemp("e2e"), cache=cache_dir) as kit:
        kit.run("deploy", "templates.vllm_chute:chute", timeout=DEPLOY_SECONDS, ENGINE_ARGS=ENGINE_ARGS)
        yield kit


@pytest.fixture(scope="session")
def key(kit: PlatformKit) -> str:
    return kit.key("e2e")
