"""Snapshots of a chute's files: what goes along, what never does, what may come out again."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from chutes.chute import bundle
from chutes.chute.loader import load
from chutes.exception import InvalidSpec
from chutes.image import Image
from chutes.image.context import added_by, gather
from chutes.image.ignored import Rules, is_secret

CHUTE = "from chutes.chute import Chute\nchute = Chute('tester', 'own', {image})\n{more}"


def project(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_imports_are_followed_and_neighbours_stay(tmp_path):
    project(
        tmp_path,
        {
            "mine.py": CHUTE.format(
                image="'i'", more="import json, ownhelper\nfrom ownpkg.deep import thing\n"
            ),
            "ownhelper.py": "import ownother\n",
            "ownother.py": "x = 1\n",
            "unrelated.py": "x = 1\n",
            "ownpkg/__init__.py": "",
            "ownpkg/deep.py": "from . import third\nthing = 1\n",
            "ownpkg/third.py": "",
            "ownpkg/words.txt": "data",
            "ownpkg/.env": "TOKEN=1",
            "ownpkg/__pycache__/deep.cpython-311.pyc": "x",
            "ownpkg/ignored.log": "x",
            ".gitignore": "*.log\n",
        },
    )
    made = bundle.make(load("mine:chute", tmp_path))
    assert made.files == (
        "mine.py", "ownhelper.py", "ownother.py", "ownpkg/__init__.py", "ownpkg/deep.py", "ownpkg/third.py",
        "ownpkg/words.txt",
    )  # fmt: skip
    assert made.left_out == ("ownpkg/.env",)
    assert made.entry == "mine:chute"


def test_a_member_of_a_package_brings_the_package(tmp_path):
    project(
        tmp_path,
        {
            "app/__init__.py": "",
            "app/chutes_here/__init__.py": "",
            "app/chutes_here/main.py": CHUTE.format(image="'i'", more="from ..data import names\n"),
            "app/data.py": "names = []\n",
            "app/prompts/one.txt": "p",
        },
    )
    made = bundle.make(load("app/chutes_here/main.py", tmp_path))
    assert made.entry == "app.chutes_here.main:chute"
    assert "app/prompts/one.txt" in made.files
    unpacked = tmp_path / "elsewhere"
    bundle.unpack(made.data, unpacked)
    assert load(made.entry, unpacked).chute.name == "own"


def test_what_git_ignores_stays_unless_it_is_imported(tmp_path):
    project(
        tmp_path,
        {
            ".git/HEAD": "",
            ".gitignore": "*.bin\n*.csv\n/below/app/dumps/\n_version.py\n/below/app/old.txt\n",
            "below/.gitignore": "!kept.csv\n/app/scratch.txt\n",
            "below/app/__init__.py": "from ._version import version\n",
            "below/app/_version.py": "version = '1'\n",
            "below/app/mine.py": CHUTE.format(image="'i'", more=""),
            "below/app/weights.bin": "x",
            "below/app/lost.csv": "x",
            "below/app/kept.csv": "x",
            "below/app/old.txt": "x",
            "below/app/scratch.txt": "x",
            "below/app/dumps/kept.csv": "x",  # as git: a directory that is out stays out
            "below/app/deep/.gitignore": "/local.txt\n",
            "below/app/deep/local.txt": "x",
            "below/app/deep/more/local.txt": "x",
        },
    )
    made = bundle.make(load("app.mine:chute", tmp_path / "below"))
    assert made.files == (
        "app/__init__.py", "app/_version.py", "app/deep/.gitignore", "app/deep/more/local.txt",
        "app/kept.csv", "app/mine.py",
    )  # fmt: skip


def test_a_project_in_a_directory_that_git_ignores_is_taken(tmp_path):
    files = {"app/__init__.py": "", "app/mine.py": CHUTE.format(image="'i'", more=""), "app/words.txt": "w"}
    project(tmp_path / "scratch", files)
    project(tmp_path, {".git/HEAD": "", ".gitignore": "scratch/\n"})
    made = bundle.make(load("app.mine:chute", tmp_path / "scratch"))
    assert made.files == ("app/__init__.py", "app/mine.py", "app/words.txt")


def test_files_that_the_image_adds_go_along_but_no_secrets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = "Image('tester', 'i', '1').add('data', '/app/data')"
    project(
        tmp_path,
        {
            "my-chute.py": "from chutes.image import Image\n" + CHUTE.format(image=image, more=""),
            "data/words.txt": "hello",
            "data/server.pem": "key",
            "data/big.bin": "x",
            ".dockerignore": "**/*.bin",
            ".gitignore": "data/\n",
        },
    )
    (tmp_path / "data/link").symlink_to("server.pem")
    made = bundle.make(load("my-chute.py:chute"))
    assert made.files == ("data/words.txt", "my-chute.py")
    assert made.left_out == ("data/server.pem",)
    assert made.entry == "my-chute.py:chute"


def test_a_secret_that_the_image_adds_by_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = "Image('tester', 'i', '1').add('id_rsa', '/root/.ssh/id_rsa')"
    text = "from chutes.image import Image\n" + CHUTE.format(image=image, more="")
    project(tmp_path, {"mine.py": text, "id_rsa": "key"})
    with pytest.raises(InvalidSpec, match="'id_rsa' looks like a secret"):
        bundle.make(load("mine:chute", tmp_path))


def test_the_same_files_are_the_same_bytes(tmp_path):
    for place in ("a", "b"):
        project(tmp_path / place, {"mine.py": CHUTE.format(image="'i'", more="")})
    first, second = (bundle.make(load("mine:chute", tmp_path / place)) for place in ("a", "b"))
    assert first.data == second.data
    (tmp_path / "b" / "mine.py").write_text(CHUTE.format(image="'i'", more="x = 1\n"))
    assert bundle.make(load("mine:chute", tmp_path / "b")).digest != first.digest


def test_a_program_stays_one_and_the_builder_is_sent_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = "Image('tester', 'i', '1').add('tools', '/tools')"
    text = "from chutes.image import Image\n" + CHUTE.format(image=image, more="")
    project(tmp_path, {"mine.py": text, "tools/run.sh": "#!/bin/sh\n", "tools/words.txt": "w"})
    plain = bundle.make(load("mine:chute", tmp_path)).digest
    (tmp_path / "tools/run.sh").chmod(0o755)
    loaded = load("mine:chute", tmp_path)
    made = bundle.make(loaded)
    assert made.digest != plain
    unpacked = tmp_path / "elsewhere"
    bundle.unpack(made.data, unpacked)
    assert os.access(unpacked / "tools/run.sh", os.X_OK)
    assert not (unpacked / "tools/words.txt").stat().st_mode & 0o111
    image = loaded.chute.image
    assert isinstance(image, Image)
    text, added = str(image), image.added
    assert gather(added).digest(text) == gather(added_by(text, unpacked)).digest(text)


def test_too_large_names_the_largest(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_BYTES", 1000)
    project(
        tmp_path,
        {
            "ownpkg/__init__.py": "",
            "ownpkg/mine.py": CHUTE.format(image="'i'", more=""),
            "ownpkg/weights.bin": "x" * 2000,
        },
    )
    with pytest.raises(InvalidSpec, match=r"The largest: ownpkg/weights\.bin") as error:
        bundle.make(load("ownpkg.mine:chute", tmp_path))
    assert ".chutesignore" in error.value.fix


def archive(**member: object) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("x")
        for name, value in member.items():
            setattr(info, name, value)
        tar.addfile(info, io.BytesIO(b"a" * info.size))
    return packed.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        archive(name="/etc/cron.d/x"),
        archive(name="../x"),
        archive(name="a/../../x"),
        archive(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        archive(type=tarfile.LNKTYPE, linkname="../x"),
        archive(type=tarfile.FIFOTYPE),
        archive(type=tarfile.CHRTYPE),
        b"not an archive",
        b"",
        bundle.pack({"a": b"x" * 5000})[:-20],
    ],
)
def test_nothing_but_plain_files_below_comes_out(tmp_path, data):
    place = tmp_path / "place"
    with pytest.raises(InvalidSpec):
        bundle.unpack(data, place)
    assert sorted(path.name for path in tmp_path.rglob("*")) in ([], ["place"], ["a", "place"])


def test_what_expands_past_the_bound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_BYTES", 100_000)
    bomb = bundle.pack({"zeros": bytes(10_000_000)})
    assert len(bomb) < 100_000
    with pytest.raises(InvalidSpec, match="holds more than"):
        bundle.unpack(bomb, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "secret"),
    [
        (".env", True),
        ("app/.env.production", True),
        (".env.example", False),
        ("certs/Server.PEM", True),
        (".aws/config", True),
        ("credentials.json", True),
        ("credentials.py", False),
        ("environment.py", False),
        ("keys.py", False),
    ],
)
def test_secrets(path, secret):
    assert is_secret(path) is secret


@pytest.mark.parametrize(
    ("rules", "path", "out"),
    [
        ("*.log", "a/b.log", True),
        ("/build", "build/x.o", True),
        ("/build", "src/build/x.o", False),
        ("cache/", "src/cache/x", True),
        ("cache/", "src/cache", False),
        ("docs/*.md", "docs/a.md", True),
        ("docs/*.md", "docs/deep/a.md", False),
        ("**/tmp", "a/b/tmp/x", True),
        ("a/**", "a/b/c", True),
        ("a/**/z", "a/b/c/z", True),
        ("*.txt\n!keep.txt", "keep.txt", False),
        ("data/\n!data/keep.txt", "data/keep.txt", True),  # as git: a directory that is out stays out
        ("# note\n\nx[0-9].py", "x1.py", True),
        ("x[!0-9].py", "x1.py", False),
        (r"\#odd", "#odd", True),
    ],
)
def test_gitignore(rules, path, out):
    assert Rules(rules).leave_out(path) is out
