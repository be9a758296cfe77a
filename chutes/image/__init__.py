"""An image written in Python: each call adds a line to a Dockerfile.

`str(image)` is that Dockerfile. An image given to a chute as a string is a reference to one that
exists already and is used as it is.
"""

from __future__ import annotations

import json
import re
import shlex
import uuid
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from chutes.exception import InvalidSpec
from chutes.util.context import is_remote
from chutes.util.rule import RuleBrokenError

DEFAULT_BASE = "parachutes/python:3.12"

_NAME = re.compile(r"[a-z0-9][a-z0-9\-_.]*", re.IGNORECASE)
_REFERENCE = re.compile(
    r"[a-z0-9][\w.\-]*(:\d+)?(/[a-z0-9][\w.\-]*)*(:\w[\w.\-]{0,127})?(@sha256:[0-9a-f]{64})?", re.IGNORECASE
)
# A package, perhaps with a version, release or architecture: foo, g++, libgl1.0, foo=1:2.3-4~x, foo:amd64
_PACKAGE = re.compile(r"[a-zA-Z0-9_*][a-zA-Z0-9_:*+.\-]*([=/][a-zA-Z0-9_:*+.~\-]+)?")
_VARIABLE = re.compile(r"[a-z_][a-z0-9_]*", re.IGNORECASE)
_VERSION = re.compile(r"3\.\d+\.\d+")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")
_MODE = re.compile(r"[0-7]{3,4}")
_OWNER = re.compile(r"[\w\-]+(:[\w\-]+)?")
_URL = re.compile(r"https?://|git://|ssh://|git@")

_PYTHON_NEEDS = (
    "build-essential ca-certificates curl libbz2-dev libffi-dev libgdbm-dev liblzma-dev libncurses-dev "
    "libreadline-dev libsqlite3-dev libssl-dev tk-dev uuid-dev xz-utils zlib1g-dev"
)


class Image:
    """A container image that a chute runs in.

    Every method adds one or more Dockerfile lines and returns the image, so calls chain.

    Args:
        username: owner of the image.
        name: letters, digits, `-`, `_` and `.`; no slash.
        tag: as `name`.
        readme: shown to people; not part of the Dockerfile.

    Raises:
        InvalidSpec: name or tag breaks the rule (a `ValueError`).
    """

    def __init__(self, username: str, name: str, tag: str, readme: str = "") -> None:
        for field, value in (("name", name), ("tag", tag)):
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                raise InvalidSpec(
                    f"Image {field} {value!r} must be letters, digits, '-', '_' or '.', "
                    "and begin with a letter or digit.",
                    "The username is its own argument; a slash does not belong here.",
                )
        self.username, self.name, self.tag, self.readme = username, name, tag, readme
        self._base = DEFAULT_BASE
        self._lines: list[str] = []
        self._workdir = "/"
        self._context: list[str] = []
        self._local: list[tuple[Path, str]] = []

    @property
    def uid(self) -> str:
        """Stable id: UUID5 of `username/name:tag`, lower case."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, self.reference.lower()))

    @property
    def reference(self) -> str:
        """`username/name:tag`."""
        return f"{self.username}/{self.name}:{self.tag}"

    @property
    def context_files(self) -> list[str]:
        """Local files and directories that the Dockerfile adds, relative to their build directory."""
        return list(self._context)

    @property
    def local_files(self) -> list[tuple[Path, str]]:
        """The same with their build directories: (directory, path below it)."""
        return list(self._local)

    def __str__(self) -> str:
        return "\n".join([f"FROM {self._base}", *self._lines])

    def __repr__(self) -> str:
        return f"Image({self.reference!r})"

    def from_base(self, image: str) -> Image:
        """Start from `image` instead of the default Python one."""
        if not isinstance(image, str) or not _REFERENCE.fullmatch(image):
            raise RuleBrokenError(
                f"Base image {image!r} is not an image reference.",
                "Write it as [registry/]name[:tag], for instance 'nvidia/cuda:12.8.1-devel-ubuntu24.04'.",
            )
        self._base = image
        return self

    def with_maintainer(self, maintainer: str) -> Image:
        return self._add(f"MAINTAINER {maintainer}")

    def set_user(self, user: str) -> Image:
        """Run the lines that follow, and the container, as `user`."""
        return self._add(f"USER {user}")

    def set_workdir(self, directory: str) -> Image:
        self._workdir = directory
        return self._add(f"WORKDIR {directory}")

    def with_python(self, version: str = "3.10.15") -> Image:
        """Build CPython `version` from source into /opt/python and make it the default.

        Needs a Debian or Ubuntu base and root. Takes some minutes in a build.
        """
        if not _VERSION.fullmatch(version):
            raise RuleBrokenError(
                f"Python version {version!r} must be written in full.", "For instance '3.11.9'."
            )
        short = version.rpartition(".")[0]
        source = f"https://www.python.org/ftp/python/{version}/Python-{version}.tgz"
        links = " && ".join(
            f"ln -sf /opt/python/bin/{tool}{short} /usr/local/bin/{alias}"
            for tool, alias in (("python", "python"), ("python", "python3"), ("pip", "pip"), ("pip", "pip3"))
        )
        self.apt_install(_PYTHON_NEEDS.split())
        self._add("WORKDIR /usr/src")
        self._add(
            f"RUN curl -fsSL {source} | tar -xz && cd Python-{version} "
            "&& ./configure --prefix=/opt/python --enable-shared --enable-optimizations "
            "--with-ensurepip=install "
            f'&& make -j"$(nproc)" && make install && cd .. && rm -rf Python-{version}'
        )
        self._add("RUN echo /opt/python/lib > /etc/ld.so.conf.d/opt-python.conf && ldconfig")
        self._add(f"RUN {links}")
        self._add("ENV PATH=/opt/python/bin:$PATH")
        return self._add(f"WORKDIR {self._workdir}")

    def apt_install(self, packages: str | Sequence[str]) -> Image:
        """Install Debian packages; `name=version` pins one."""
        names = " ".join(_packages(packages))
        # One layer for both: an index cached from an earlier layer names files that are gone.
        return self._add(f"RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get -y install {names}")

    def apt_remove(self, packages: str | Sequence[str]) -> Image:
        return self._add(f"RUN apt-get -y remove {' '.join(_packages(packages))}")

    def with_env(self, key: str, value: str) -> Image:
        """Set an environment variable. `$OTHER` in the value is expanded, as Docker does."""
        if not _VARIABLE.fullmatch(key):
            raise RuleBrokenError(
                f"Environment variable {key!r} is not a name.",
                "Use letters, digits and underscores, not beginning with a digit.",
            )
        return self._add(f"ENV {key}={_quoted(str(value))}")

    def run_command(self, command: str) -> Image:
        """Run a shell command while the image is built."""
        return self._add(f"RUN {command}")

    def with_entrypoint(self, *args: str | list[str]) -> Image:
        """The program to run: one command line, one list, or several words."""
        if len(args) == 1 and isinstance(args[0], str):
            words = shlex.split(args[0])
        else:
            words = [str(w) for arg in args for w in (arg if isinstance(arg, (list, tuple)) else [arg])]
        if not words:
            raise RuleBrokenError(
                "An entrypoint needs a program.", 'For instance with_entrypoint("python", "app.py").'
            )
        return self._add(f"ENTRYPOINT {json.dumps(words)}")

    def add(
        self,
        source: str,
        dest: str,
        keep_git_dir: bool = False,
        checksum: str | None = None,
        chown: str | None = None,
        chmod: str | None = None,
        exclude: str | list[str] | None = None,
        build_dir: str | None = None,
    ) -> Image:
        """Copy files into the image.

        Args:
            source: a glob below `build_dir`, or a URL or git repository.
            dest: path in the image.
            keep_git_dir: keep `.git`; git repositories only.
            checksum: `sha256:` and 64 hex digits; URLs only.
            chown: `user` or `user:group`.
            chmod: octal digits, e.g. `755`.
            exclude: patterns to leave out.
            build_dir: where `source` is looked for; the current directory by default.

        Raises:
            RuleBrokenError: an option breaks its rule, or no file matches (an `AssertionError`).
        """
        if is_remote():  # inside an instance the files are in the image already, not beside the chute file
            return self
        url = bool(_URL.match(source))
        options: list[str] = []
        if (keep_git_dir or checksum) and not url:
            raise RuleBrokenError(
                f"add({source!r}): checksum and keep_git_dir are for URLs.", "Leave them out."
            )
        if keep_git_dir:
            options.append("--keep-git-dir=true")
        if checksum:
            options.append(
                f"--checksum={_checked(_CHECKSUM, checksum, 'checksum', 'sha256: and 64 hex digits')}"
            )
        if chown:
            options.append(f"--chown={_checked(_OWNER, chown, 'chown', 'user or user:group')}")
        if chmod:
            options.append(
                f"--chmod={_checked(_MODE, str(chmod), 'chmod', 'three octal digits such as 755')}"
            )
        options += [f"--exclude={p}" for p in ([exclude] if isinstance(exclude, str) else exclude or [])]
        sources = [source] if url else _matches(source, Path(build_dir or Path.cwd()))
        if not url:
            self._context += sources
            self._local += [(Path(build_dir or Path.cwd()).resolve(), one) for one in sources]
        if len(sources) > 1 and not dest.endswith("/"):
            dest += "/"  # Docker refuses several sources otherwise
        words = [*sources, dest]
        files = json.dumps(words) if any(" " in w for w in words) else " ".join(words)
        return self._add(" ".join(["ADD", *options, files]))

    def _add(self, line: str) -> Image:
        self._lines.append(line)
        return self


def _packages(packages: str | Sequence[str]) -> list[str]:
    names = packages.split() if isinstance(packages, str) else list(packages)
    for name in names:
        if not isinstance(name, str) or not _PACKAGE.fullmatch(name):
            raise RuleBrokenError(
                f"{name!r} is not a Debian package name.",
                "Give a name, or name=version; run anything else with run_command().",
            )
    if not names:
        raise RuleBrokenError("No package was named.", 'For instance apt_install(["git", "ffmpeg"]).')
    return names


def _checked(pattern: re.Pattern[str], value: str, option: str, rule: str) -> str:
    if not pattern.fullmatch(value):
        raise RuleBrokenError(f"{option}={value!r} must be {rule}.")
    return value


def _matches(source: str, root: Path) -> list[str]:
    root = root.resolve()
    found: list[str] = []
    pattern = Path(source)
    if pattern.is_absolute():
        if not pattern.is_relative_to(root):
            raise RuleBrokenError(
                f"{source} lies outside the build directory {root}.",
                "Docker only sees files below it: move the file, or pass build_dir.",
            )
        pattern = pattern.relative_to(root)
    if str(pattern) == ".":
        return ["."]
    for path in sorted(root.glob(str(pattern))):
        below = path.resolve()
        if below != root and below.is_relative_to(root):  # `../x` and links that lead out do not travel
            found.append(str(PurePosixPath(below.relative_to(root))))
    if not found:
        raise RuleBrokenError(
            f"No file below {root} matches {source!r}.",
            "Check the path, or pass build_dir= if the files are elsewhere.",
        )
    return found


def _quoted(value: str) -> str:
    """`value` as ENV takes it: quoted only where it must be, and not twice."""
    if "\n" in value:
        raise RuleBrokenError(
            "An environment variable in a Dockerfile cannot hold a line break.",
            "Set it in a startup hook instead.",
        )
    plain = re.fullmatch(r"[^\s\"'\\]+", value)
    already = re.fullmatch(r"\"([^\"\\]|\\.)*\"|'[^']*'|([^\s\"'\\]|\\.)+", value)
    if plain or already:
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
