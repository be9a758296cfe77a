"""Loading a chute from a reference: what is found, and what is said when nothing is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chutes.chute.loader import Loaded, load
from chutes.exception import BadReference

CHUTE = """
from chutes.chute import Chute
chute = Chute("someone", "{name}", "image")

@chute.cord(public_api_path="/x")
def x(self): return 1
"""


@pytest.fixture
def write(tmp_path):
    def _write(path: str, text: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return _write


@pytest.mark.parametrize(
    "ref",
    [
        "mine:chute",
        "mine",
        "mine.py",
        "mine.py:chute",
        "./mine.py:chute",
        "pkg/inner.py:chute",
        "pkg.inner:c",
    ],
)
def test_references(ref, write, tmp_path):
    write("mine.py", CHUTE.format(name="found it"))
    write("pkg/inner.py", CHUTE.format(name="found it") + "c = chute")
    loaded = load(ref, cwd=tmp_path)
    assert isinstance(loaded, Loaded)
    assert loaded.chute.name == "found it"
    assert loaded.path.read_text() == loaded.code
    assert loaded.ref == (ref if ":" in ref else f"{ref}:chute")


def test_an_absolute_path(write, tmp_path):
    file = write("deep/mine.py", CHUTE.format(name="abs"))
    assert load(f"{file}:chute", cwd=Path("/")).path == file


def test_neighbours_can_be_imported_and_the_path_is_put_back(write, tmp_path):
    write("helper_of_chute.py", "NAME = 'from the helper'")
    write("mine.py", "from helper_of_chute import NAME\n" + CHUTE.replace('"{name}"', "NAME"))
    write("pkg/__init__.py", "")
    write("pkg/names.py", "NAME = 'relative'")
    write("pkg/mine.py", "from .names import NAME\n" + CHUTE.replace('"{name}"', "NAME"))
    before = list(sys.path)
    assert load("mine:chute", cwd=tmp_path).chute.name == "from the helper"
    assert load("pkg/mine.py:chute", cwd=tmp_path).chute.name == "relative"
    assert load("pkg.mine:chute", cwd=tmp_path).chute.name == "relative"
    assert sys.path == before
    del sys.modules["helper_of_chute"]


def test_a_changed_file_is_read_again(write, tmp_path):
    write("mine.py", CHUTE.format(name="one"))
    assert load("mine:chute", cwd=tmp_path).chute.name == "one"
    write("mine.py", CHUTE.format(name="two"))
    assert load("mine:chute", cwd=tmp_path).chute.name == "two"
    assert not list(tmp_path.glob("__pycache__"))


def test_the_directorys_own_templates_beat_the_installed_ones(write, tmp_path):
    import templates

    write("templates/__init__.py", "")
    write("templates/vllm_chute.py", CHUTE.format(name="mine"))
    assert load("templates.vllm_chute:chute", cwd=tmp_path).chute.name == "mine"
    assert sys.modules["templates"] is templates
    (tmp_path / "empty").mkdir()
    installed = load("templates.vllm_chute:chute", cwd=tmp_path / "empty")
    assert installed.path == Path(templates.__file__ or "").parent / "vllm_chute.py"


def test_a_file_named_like_another_module_leaves_that_one_alone(write, tmp_path):
    import json

    write("json.py", "from chutes.chute import Chute\nchute = Chute('someone', 'named json', 'i')")
    assert load("json.py:chute", cwd=tmp_path).chute.name == "named json"
    assert sys.modules["json"] is json


def test_a_pack_counts_as_its_chute(write, tmp_path):
    write(
        "mine.py",
        CHUTE.format(name="packed") + "from chutes.chute import ChutePack\np = ChutePack(chute=chute)",
    )
    assert load("mine:p", cwd=tmp_path).chute.name == "packed"


def failure(ref: str, cwd: Path) -> BadReference:
    with pytest.raises(BadReference) as caught:
        load(ref, cwd=cwd)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("ref", ["", ":chute", "mine:", "mine:a b", "mine:a.b", "my-mod:chute"])
def test_not_a_reference(ref, tmp_path):
    failure(ref, tmp_path)


def test_a_missing_file_proposes_its_neighbours(write, tmp_path):
    write("my_chute.py", "")
    assert failure("my_chut.py:chute", tmp_path).fix == "Did you mean my_chute.py?"
    assert failure("my_chutes:chute", tmp_path).fix == "Did you mean my_chute.py?"
    error = failure("zzz:chute", tmp_path)
    assert str(tmp_path / "zzz.py") in str(error)
    assert error.fix == f"Python files in {tmp_path}: my_chute.py."
    assert "There is no directory" in failure("no/where.py:chute", tmp_path).fix
    assert "directory" in str(failure("./", tmp_path))


def test_a_missing_attribute_proposes_the_chutes(write, tmp_path):
    write("mine.py", CHUTE.format(name="abc") + "other = chute")
    error = failure("mine:chutte", tmp_path)
    assert "no attribute 'chutte'" in str(error)
    assert error.fix == "Did you mean chute? Chutes in mine.py: chute, other."


def test_a_target_that_is_not_a_chute(write, tmp_path):
    write("mine.py", "import os\nfrom chutes.chute import Chute as chute\ntext = 'a'\ndef build(): ...\n")
    assert "the class Chute" in str(failure("mine:chute", tmp_path))
    assert "a str" in str(failure("mine:text", tmp_path))
    assert "the function build" in str(failure("mine:build", tmp_path))
    assert "the module os" in str(failure("mine:os", tmp_path))
    assert failure("mine:text", tmp_path).fix == "mine.py has no chute in it."


def test_a_syntax_error_is_shown_with_its_line(write, tmp_path):
    file = write("mine.py", "x = 1\nchute = = 2\n")
    assert str(failure("mine:chute", tmp_path)).startswith(f"{file}:2: SyntaxError: ")
    assert "chute = = 2" in str(failure("mine:chute", tmp_path))


def test_an_exception_is_shown_with_the_line_in_the_authors_file(write, tmp_path):
    file = write("failing_chute.py", "import json\n\ndef parse():\n    return json.loads('{')\n\nparse()\n")
    error = failure("failing_chute:chute", tmp_path)
    assert str(error).startswith(f"{file}:4: ")
    assert "JSONDecodeError" in str(error)
    assert isinstance(error.__cause__, ValueError)
    assert "failing_chute" not in sys.modules


def test_our_own_errors_keep_their_fix(write, tmp_path):
    file = write("mine.py", "from chutes.chute import NodeSelector\nNodeSelector(num_gpus=2)\n")
    error = failure("mine:chute", tmp_path)
    assert str(error).startswith(f"{file}:2: ")
    assert "gpu_count=2" in error.fix


def test_a_file_that_exits_is_a_failure_too(write, tmp_path):
    write("mine.py", "raise SystemExit('no key set')")
    assert "no key set" in str(failure("mine:chute", tmp_path))


def test_a_missing_package_is_named_with_how_to_install_it(write, tmp_path):
    file = write("mine.py", "import os\nimport surely_not_installed.sub\n")
    error = failure("mine:chute", tmp_path)
    assert str(error).startswith(f"{file}:2: ")
    assert "'surely_not_installed'" in str(error)
    assert "pip install surely_not_installed" in error.fix
    assert "inside the" in error.fix
    write("mine.py", "from chutes.chute.template.nonesuch import build\n")
    assert "this version of chutes has no module" in str(failure("mine:chute", tmp_path))


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "mine.py").write_bytes(b"x = '\xff\xfe'")
    assert "cannot be read" in str(failure("mine:chute", tmp_path))


def test_inside_an_instance_imports_in_hooks_still_find_the_neighbours(write, tmp_path, monkeypatch):
    monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "REMOTE")
    monkeypatch.setattr(sys, "path", list(sys.path))
    write("mine.py", CHUTE.format(name="abc"))
    load("mine:chute", cwd=tmp_path)
    assert str(tmp_path) in sys.path
