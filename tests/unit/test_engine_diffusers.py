"""The command line of the drawing server, its variables, and what its log says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chutes.chute.template import build_diffusion_chute
from chutes.engine import registry
from chutes.engine.contract import Endpoint, Start
from chutes.engine.diffusers import SERVER, Diffusers
from chutes.engine.release import find
from chutes.exception import InvalidSpec
from chutes.hardware.plan import Plan


def start(directory: Path, accelerator: str = "cpu", **pipeline_args: object) -> Start:
    chute = build_diffusion_chute("someone", "draws", str(directory), pipeline_args=pipeline_args).chute
    plan = Plan(accelerator=accelerator, engine="diffusers", engine_version="0.42.1")
    endpoint = Endpoint("127.0.0.1", 9001, "secret")
    return Start(chute.to_spec(), plan, Path("/env/python"), directory, ("draws", "id"), endpoint, directory)


def test_the_command_names_every_name_and_no_secret(tmp_path: Path):
    engine = registry.of("diffusers")
    line = engine.command(start(tmp_path, torch_dtype="bfloat16"))
    assert line[:2] == ["/env/python", str(SERVER)]
    assert "--served-model-name draws id --host 127.0.0.1 --port 9001" in " ".join(line)
    assert not any("secret" in word or "bfloat16" in word for word in line)
    variables = engine.variables(start(tmp_path, torch_dtype="bfloat16"))
    assert variables["DIFFUSION_API_KEY"] == "secret"
    settings = json.loads(variables["DIFFUSION_SETTINGS"])
    assert settings["pipeline_args"] == {"torch_dtype": "bfloat16"}
    assert (settings["safety_checker"], settings["batch"]) == ("keep", 4)


def test_only_a_single_file_may_ask_the_hub_for_its_configuration(tmp_path: Path):
    engine = Diffusers()
    assert engine.variables(start(tmp_path))["HF_HUB_OFFLINE"] == "1"
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "HF_HUB_OFFLINE" not in engine.variables(start(file))


def test_threads_sleep_on_a_cpu(tmp_path: Path):
    assert Diffusers().variables(start(tmp_path))["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in Diffusers().variables(start(tmp_path, "cuda"))


def test_milestones():
    engine = Diffusers()
    assert engine.milestone("") == "starting the engine"
    log = "noise\nloading FluxPipeline in bfloat16\n"
    assert engine.milestone(log) == "loading FluxPipeline in bfloat16"
    assert engine.milestone(log + "loaded FluxPipeline, which draws 1024x1024\n").startswith(
        "loaded FluxPipeline"
    )


async def test_it_takes_no_arguments(tmp_path: Path):
    with pytest.raises(InvalidSpec, match="no arguments: --x"):
        await Diffusers().check_arguments(tmp_path, find("diffusers", "cpu"), ["--x"], tmp_path)
