"""What a person is told to try first: what the chute can do, under its own name."""

from __future__ import annotations

import pytest

from chutes.chute.spec import CordSpec, EngineSpec
from chutes.cli.deploy import example
from chutes.control.listing import Listing
from chutes.control.reconcile import World
from chutes.control.views import ChuteView
from tests.unit.test_reconcile import deployment


def view(capabilities: list[str], *paths: str, task: str = "generate") -> ChuteView:
    made = deployment()
    cords = [CordSpec(function="f", path=path, public_api_path=path) for path in paths]
    engine = EngineSpec.model_validate({"name": "vllm", "model": "org/m", "task": task})
    spec = made.spec.model_copy(update={"cords": cords, "engine": engine})
    made = made.model_copy(update={"spec": spec, "capabilities": capabilities})
    return ChuteView.of(made, World(), Listing(slug="me-m"))


@pytest.mark.parametrize(
    ("able", "path", "field"),
    [
        (["chat", "completions", "tools"], "/v1/chat/completions", "messages"),
        (["completions"], "/v1/completions", "prompt"),
        (["embeddings"], "/v1/embeddings", "input"),
        (["images"], "/v1/images/generations", "prompt"),
    ],
)
def test_by_what_it_can_do(able: list[str], path: str, field: str) -> None:
    found = view(able, path)
    where, body = example(found)
    assert where == path
    assert body["model"] == found.name
    assert body[field]


def test_an_authors_own_cord_is_reached_by_the_slug() -> None:
    assert example(view([], "/v1/models", "/classify")) == ("/me-m/classify", {})


@pytest.mark.parametrize(("task", "kind"), [("generate", "text"), ("embed", "embedding"), ("image", "image")])
def test_kinds(task: str, kind: str) -> None:
    assert view([], task=task).kind == kind
