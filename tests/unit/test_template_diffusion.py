"""The diffusion template: its published signature, schemas and cords, and what it refuses."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pydantic
import pytest

from chutes.chute import NodeSelector
from chutes.chute.loader import load
from chutes.chute.spec import require_revision
from chutes.chute.template import build_diffusion_chute, diffusion
from chutes.exception import InvalidSpec
from chutes.image.standard.diffusion import DIFFUSION

URL = "https://civitai.com/models/9?modelVersionId=77"


def build(model: str = "org/model", **more: Any) -> Any:
    return build_diffusion_chute("someone", "draws", model, NodeSelector(), **more)


def test_the_signature_is_the_published_one():
    found = inspect.signature(build_diffusion_chute).parameters
    published = {n: p for n, p in found.items() if p.kind is not p.KEYWORD_ONLY}
    assert list(published) == [
        "username", "name", "model_name_or_url", "node_selector", "tagline", "readme", "concurrency",
        "version", "revision", "image", "pipeline_args", "max_instances", "scaling_threshold",
        "shutdown_after_seconds", "tee",
    ]  # fmt: skip
    assert {n: p.default for n, p in published.items() if p.default is not p.empty} == {
        "node_selector": None,  # required in the published one
        "tagline": "",
        "readme": "",
        "concurrency": 3,
        "version": None,
        "revision": None,
        "image": DIFFUSION,
        "pipeline_args": None,  # an empty dict there, shared by all chutes
        "max_instances": 1,
        "scaling_threshold": 0.75,
        "shutdown_after_seconds": 300,
        "tee": False,
    }


def test_the_chute_and_its_cords():
    pack = build(revision="a" * 40, pipeline_args={"torch_dtype": "bfloat16"}, safety_checker="off")
    assert isinstance(pack, diffusion.DiffusionChute)
    assert callable(pack.generate)
    spec = pack.chute.to_spec()
    assert (spec.name, spec.standard_template, spec.concurrency) == ("draws", "diffusion", 3)
    assert spec.engine is not None
    assert spec.engine.model_dump() == {
        "name": "diffusers",
        "task": "image",
        "model": "org/model",
        "revision": "a" * 40,
        "args": [],
        "options": {
            "pipeline_args": {"torch_dtype": "bfloat16"}, "safety_checker": "off", "defaults": {}, "batch": 4,
        },
    }  # fmt: skip
    cords = {cord.public_api_path: cord for cord in spec.cords}
    assert set(cords) == {"/generate", "/v1/images/generations"}
    assert cords["/generate"].output_content_type == "image/jpeg"
    assert all(cord.passthrough for cord in cords.values())


def test_the_published_schema():
    bounds = diffusion.GenerationInput
    assert bounds(prompt="x").model_dump() == {
        "prompt": "x", "negative_prompt": "", "height": 1024, "width": 1024, "num_inference_steps": 25,
        "guidance_scale": 7.5, "seed": None,
    }  # fmt: skip
    for field, low, high in (
        ("height", 128, 2048),
        ("width", 128, 2048),
        ("num_inference_steps", 1, 50),
        ("guidance_scale", 1, 20),
        ("seed", 0, 2**32 - 1),
    ):
        for value in (low, high):
            bounds.model_validate({"prompt": "x", field: value})
        for value in (low - 1, high + 1):
            with pytest.raises(pydantic.ValidationError):
                bounds.model_validate({"prompt": "x", field: value})


def test_a_dtype_is_sent_by_its_name():
    class Dtype:  # what torch.float16 prints; torch is not here
        def __str__(self) -> str:
            return "torch.float16"

    spec = build(pipeline_args={"torch_dtype": Dtype()}).chute.to_spec()
    assert spec.engine.options["pipeline_args"] == {"torch_dtype": "float16"}


def test_every_origin_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert build("./pipe").chute.to_spec().engine.model == str(tmp_path / "pipe")
    spec = build(URL, version=77).chute.to_spec()
    assert (spec.engine.model, spec.engine.revision) == (URL, "77")
    require_revision(spec)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"model": "https://example.com/model.safetensors"},
        {"model": "http://civitai.com/models/9"},
        {"version": 3},
        {"safety_checker": "maybe"},
        {"pipeline_args": {"scheduler": object()}},
        {"pipeline_args": {"scale": float("nan")}},
        {"defaults": {"steps": 4}},
        {"defaults": {"num_inference_steps": 51}},
        {"batch_size": 0},
        {"batch_size": True},
    ],
)
def test_what_cannot_be_served_is_refused(wrong: dict[str, Any]):
    with pytest.raises(InvalidSpec):
        build(**wrong)


def test_the_template_loads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODEL", "org/turbo")
    monkeypatch.setenv("STEPS", "4")
    spec = load("templates.diffusion_chute:chute", cwd=Path(__file__).parents[2]).chute.to_spec()
    assert spec.engine is not None
    assert (spec.name, spec.engine.model) == ("org/turbo", "org/turbo")
    assert spec.engine.options["defaults"] == {"num_inference_steps": 4.0}
