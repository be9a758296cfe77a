"""Images: the Dockerfile that each call adds to."""

from __future__ import annotations

import inspect
import uuid

import pytest

from chutes.image import Image


def image() -> Image:
    return Image("someone", "speech", "0.3")


def lines(made: Image) -> list[str]:
    return str(made).splitlines()


def test_identity():
    made = Image("Someone", "Speech.v1", "0.3", readme="r")
    assert made.uid == str(uuid.uuid5(uuid.NAMESPACE_OID, "someone/speech.v1:0.3"))
    assert (made.reference, made.readme) == ("Someone/Speech.v1:0.3", "r")
    assert [p.default for p in inspect.signature(Image).parameters.values()][3] == ""


@pytest.mark.parametrize(("name", "tag"), [("a/b", "1"), ("", "1"), ("-a", "1"), ("a", "1:2"), ("a", "")])
def test_names_and_tags_are_checked(name, tag):
    with pytest.raises(ValueError, match="must be letters"):
        Image("someone", name, tag)


def test_the_default_base_and_another_one_come_first():
    assert lines(image()) == ["FROM parachutes/python:3.12"]
    made = image().run_command("true").from_base("nvidia/cuda:12.8.1-devel-ubuntu24.04")
    assert lines(made) == ["FROM nvidia/cuda:12.8.1-devel-ubuntu24.04", "RUN true"]
    image().from_base("localhost:5000/a/b:c@sha256:" + "0" * 64)
    with pytest.raises(AssertionError, match="not an image reference"):
        image().from_base("not an image")


def test_every_method_chains():
    made = (
        image()
        .with_maintainer("someone")
        .set_user("root")
        .set_workdir("/app")
        .apt_install("git")
        .apt_remove(["git"])
        .with_env("A", "b")
        .run_command("pip install x")
        .with_entrypoint("python", "-m", "x")
    )
    assert lines(made)[1:] == [
        "MAINTAINER someone",
        "USER root",
        "WORKDIR /app",
        "RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get -y install git",
        "RUN apt-get -y remove git",
        "ENV A=b",
        "RUN pip install x",
        'ENTRYPOINT ["python", "-m", "x"]',
    ]


@pytest.mark.parametrize(
    "package", ["g++", "libgl1.0", "foo=1.2", "foo=1:2.3-4~x", "foo:amd64", "python3*", "a/stable"]
)
def test_packages_that_apt_knows(package):
    assert lines(image().apt_install([package]))[1].endswith(f" {package}")


@pytest.mark.parametrize("package", ["a;b", "-y", "$(x)", "a&&b", ""])
def test_packages_that_apt_does_not_know(package):
    with pytest.raises(AssertionError):
        image().apt_install([package])


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("/opt/bin:$PATH", "/opt/bin:$PATH"),
        ("af bf", '"af bf"'),
        ("", '""'),
        ('{"a": 1}', '"{\\"a\\": 1}"'),
        ('"quoted by hand"', '"quoted by hand"'),
        ("escaped\\ by\\ hand", "escaped\\ by\\ hand"),
        ("it's", '"it\'s"'),
    ],
)
def test_environment_values_are_quoted_where_they_must_be(value, written):
    assert lines(image().with_env("KEY", value))[1] == f"ENV KEY={written}"


def test_environment_variables_are_checked():
    for key in ("1A", "A-B", "A=B"):
        with pytest.raises(ValueError, match="not a name"):
            image().with_env(key, "x")
    with pytest.raises(ValueError, match="line break"):
        image().with_env("A", "a\nb")


@pytest.mark.parametrize(
    ("args", "written"),
    [
        (("python app.py",), '["python", "app.py"]'),
        ((["python", "app.py"],), '["python", "app.py"]'),
        (("python", "app.py"), '["python", "app.py"]'),
        (("serve",), '["serve"]'),
    ],
)
def test_entrypoints(args, written):
    assert lines(image().with_entrypoint(*args))[1] == f"ENTRYPOINT {written}"


def test_python_is_built_and_the_working_directory_restored():
    made = str(image().set_workdir("/app").with_python("3.11.9"))
    assert "https://www.python.org/ftp/python/3.11.9/Python-3.11.9.tgz" in made
    assert "--prefix=/opt/python" in made
    assert "ldconfig" in made
    assert made.endswith("WORKDIR /app")
    assert inspect.signature(Image.with_python).parameters["version"].default == "3.10.15"
    with pytest.raises(ValueError, match="in full"):
        image().with_python("3.11")


class TestAdd:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path, monkeypatch):
        monkeypatch.delenv("CHUTES_EXECUTION_CONTEXT", raising=False)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "src").mkdir()
        for name in ("src/a.py", "src/b.py", "with space.txt"):
            (tmp_path / name).write_text("x")

    def test_a_directory_and_a_file(self):
        made = image().add("src", "/app/src").add("./src/a.py", "/app/a.py")
        assert lines(made)[1:] == ["ADD src /app/src", "ADD src/a.py /app/a.py"]
        assert made.context_files == ["src", "src/a.py"]

    def test_several_files_go_into_a_directory(self):
        assert lines(image().add("src/*.py", "/app"))[1] == "ADD src/a.py src/b.py /app/"

    def test_names_with_spaces(self):
        assert lines(image().add("with space.txt", "/a"))[1] == 'ADD ["with space.txt", "/a"]'

    def test_options(self):
        made = image().add("src", "/app", chown="1000:1000", chmod="755", exclude=["*.pyc", "t"])
        assert lines(made)[1] == "ADD --chown=1000:1000 --chmod=755 --exclude=*.pyc --exclude=t src /app"

    def test_urls_take_a_checksum_and_keep_their_git_directory(self):
        digest = "sha256:" + "0a" * 32
        assert lines(image().add("https://x.org/f", "/f", checksum=digest))[1] == (
            f"ADD --checksum={digest} https://x.org/f /f"
        )
        made = image().add("https://x.org/r.git", "/r", keep_git_dir=True)
        assert lines(made)[1] == "ADD --keep-git-dir=true https://x.org/r.git /r"

    @pytest.mark.parametrize(
        "options",
        [
            {"source": "missing*"},
            {"source": "../*"},
            {"source": "/etc/passwd"},
            {"source": "src", "checksum": "sha256:" + "0" * 64},
            {"source": "src", "keep_git_dir": True},
            {"source": "https://x.org/f", "checksum": "md5:1"},
            {"source": "src", "chmod": "rwx"},
            {"source": "src", "chmod": "789"},
            {"source": "src", "chown": "a b"},
        ],
    )
    def test_what_docker_would_refuse_is_refused_here(self, options):
        with pytest.raises(AssertionError):
            image().add(dest="/x", **options)

    def test_inside_an_instance_nothing_is_looked_for(self, monkeypatch):
        monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "REMOTE")
        assert lines(image().add("missing*", "/x")) == ["FROM parachutes/python:3.12"]
