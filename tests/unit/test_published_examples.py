"""Chute files as people have them for the published SDK, and those that `chutes init` writes.

Each loads without what only its instances need, and `chutes deploy --dry-run` says what would become of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chutes.chute.loader import load
from chutes.cli import deploy, init
from chutes.exception import AlreadyExists, UsageError

PUBLISHED = Path(__file__).parents[1] / "fixtures" / "published"
FILES = sorted(path.stem for path in PUBLISHED.glob("*.py"))
STARTERS = ["vllm", "sglang", "embedding", "diffusion", "custom"]

# What neither the command line nor the platform has, and an author's hook imports.
HEAVY = {
    "torch",
    "torchvision",
    "PIL",
    "kokoro",
    "soundfile",
    "faster_whisper",
    "vllm",
    "sglang",
    "diffusers",
}

ENGINES = {"vllm": "vllm", "sglang": "sglang", "embedding": "vllm", "diffusion": "diffusers"}


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.delenv("CHUTES_EXECUTION_CONTEXT", raising=False)
    monkeypatch.setenv("CHUTES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CHUTES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHUTES_USERNAME", "tester")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(PUBLISHED)


def engine_of(name: str) -> str:
    """By the template that a file's name begins with; without one it is the author's own code."""
    return next((ENGINES[template] for template in ENGINES if name.startswith(template)), "python")


def dry_run(ref: str, capsys: pytest.CaptureFixture[str]) -> dict:
    deploy.deploy(ref, yes=True, wait=True, as_json=True, dry_run=True, strict=False)
    return json.loads(capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore::chutes.chute.NotEnforcedWarning")
@pytest.mark.parametrize("name", [*FILES, "several_files.app"])
def test_a_published_chute_loads_without_what_its_instances_need(name):
    before = set(sys.modules)
    chute = load(f"{name}:chute").chute
    assert chute.username == "someone"
    assert not {module.split(".")[0] for module in set(sys.modules) - before} & HEAVY


@pytest.mark.filterwarnings("ignore::chutes.chute.NotEnforcedWarning")
@pytest.mark.parametrize("name", [*FILES, "several_files.app"])
def test_a_published_chute_is_planned(name, capsys):
    told = dry_run(f"{name}:chute", capsys)
    assert told["draft"]["plan"]["engine"] == engine_of(name)
    assert told["draft"]["spec"]["username"] == "someone"


@pytest.mark.parametrize("template", STARTERS)
def test_what_init_writes_is_planned(template, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    init.init(template, "my_chute", force=False)
    written = capsys.readouterr()
    assert written.out == f"{tmp_path / 'my_chute.py'}\n"
    assert "chutes deploy my_chute:chute" in written.err
    told = dry_run("my_chute:chute", capsys)
    assert told["draft"]["plan"]["engine"] == engine_of(template)
    assert told["draft"]["spec"]["username"] == "tester"


@pytest.mark.parametrize("template", STARTERS)
def test_what_init_writes_holds_no_placeholder(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init.init(template, "it.py", force=False)
    text = (tmp_path / "it.py").read_text()
    assert 'username="tester"' in text
    assert "USERNAME" not in text


def test_init_writes_over_nothing_unless_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_chute.py"
    path.write_text("mine")
    with pytest.raises(AlreadyExists, match="is there already"):
        init.init("vllm", "my_chute", force=False)
    assert path.read_text() == "mine"
    init.init("custom", "my_chute", force=True)
    assert "@chute.cord" in path.read_text()


@pytest.mark.parametrize(
    ("template", "name"), [("tgi", "x"), ("vllm", "a-b"), ("vllm", "../x"), ("vllm", "")]
)
def test_init_refuses_what_could_not_be_loaded(template, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        init.init(template, name, force=False)
    assert list(tmp_path.iterdir()) == []


def test_the_program_has_the_command(tmp_path):
    command = [sys.executable, "-m", "chutes", "init", "custom", "--name", "words"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'words.py'}\n")
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 1
    assert "--force" in again.stderr
