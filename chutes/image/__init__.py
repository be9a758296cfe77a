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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from chutes.exception import InvalidSpec
from chutes.image import dockerfile
from chutes.image.context import Added, escaped
from chutes.image.ignored import is_rubbish, is_secret
from chutes.util.context import is_remote
from chutes.util.rule import RuleBrokenError

DEFAULT_BASE = "parachutes/python:3.12"
NO_PIP_CACHE = "PIP_NO_CACHE_DIR=1"
"""Ours, not the author's: torch alone would leave gigabytes in a layer."""

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
_PATTERN = re.compile(r"[^\s=]+")
_URL = re.compile(r"https?://|git://|ssh://|git@")

_USER = re.compile(r"[\w.\-${}]+(:[\w.\-${}]+)?")
_PIP = re.compile(r"\bpip3?\b")
_ZSTD = (".tar.zst", ".tzst")

_PYTHON_NEEDS = (
    "build-essential ca-certificates curl libbz2-dev libffi-dev libgdbm-dev liblzma-dev libncurses-dev "
    "libreadline-dev libsqlite3-dev libssl-dev tk-dev uuid-dev xz-utils zlib1g-dev"
)

Kind = Literal["label", "user", "workdir", "python", "apt", "env", "run", "add", "entrypoint"]


@dataclass(frozen=True)
class Step:
    """One call on an image: what was asked, and the Dockerfile line that it became."""

    kind: Kind
    asked: str
    """The author's own words: a command, `KEY=value`, package names, a version, paths."""
    line: str


class Image:
    """A container image that a chute runs in.

    Every method adds a Dockerfile line and returns the image, so calls chain.

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
        self._steps: list[Step] = []
        self._added: list[Added] = []

    @property
    def uid(self) -> str:
        """Stable id: UUID5 of `username/name:tag`, lower case."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, self.reference.lower()))

    @property
    def reference(self) -> str:
        """`username/name:tag`."""
        return f"{self.username}/{self.name}:{self.tag}"

    @property
    def base(self) -> str:
        """The image that it starts from."""
        return self._base

    @property
    def steps(self) -> list[Step]:
        """What was asked of it, in order."""
        return list(self._steps)

    @property
    def added(self) -> list[Added]:
        """Local files and directories that its Dockerfile copies."""
        return list(self._added)

    @property
    def context_files(self) -> list[str]:
        """The same by name, relative to their build directory."""
        return [source for added in self._added for source in added.sources]

    def __str__(self) -> str:
        lines = [f"FROM {self._base}", *(step.line for step in self._steps)]
        if any(step.kind == "run" and _PIP.search(step.asked) for step in self._steps):
            lines.insert(1, f"ENV {NO_PIP_CACHE}")
        if any("--exclude=" in step.line for step in self._steps if step.kind == "add"):
            lines.insert(0, "# syntax=docker/dockerfile:1")  # Docker's own parser may be too old for it
        return "\n".join(lines)

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
        """Say who looks after it, as a label: Docker's own MAINTAINER is deprecated."""
        return self._add("label", maintainer, f"LABEL maintainer={dockerfile.value(maintainer)}")

    def set_user(self, user: str) -> Image:
        """Run the lines that follow, and the container, as `user`."""
        return self._add("user", user, f"USER {_checked(_USER, str(user), 'user', 'name or name:group')}")

    def set_workdir(self, directory: str) -> Image:
        """Directory of what follows and of the container; a relative one starts from the one before."""
        dockerfile.one_line(directory, "A directory", "Write it on one line.")
        return self._add("workdir", directory, f"WORKDIR {directory}")

    def with_python(self, version: str = "3.10.15") -> Image:
        """Build CPython `version` from source into /opt/python and make it the default.

        Needs a Debian or Ubuntu base and root. Takes some minutes in a build.
        """
        if not _VERSION.fullmatch(version):
            raise RuleBrokenError(
                f"Python version {version!r} must be written in full.", "For instance '3.11.9'."
            )
        short = version.rpartition(".")[0]
        archive, source = "/tmp/python.tgz", f"/tmp/Python-{version}"
        tools = (("python", "python"), ("python", "python3"), ("pip", "pip"), ("pip", "pip3"))
        # One layer, so that sources and objects stay in none; `env -C` and `make -C`, so that the working
        # directory is nobody's to restore.
        commands = [
            f"curl -fsSL -o {archive} https://www.python.org/ftp/python/{version}/Python-{version}.tgz",
            f"tar -xzf {archive} -C /tmp",
            f"env -C {source} ./configure --prefix=/opt/python --enable-shared --enable-optimizations "
            "--with-ensurepip=install",
            f'make -C {source} -j"$(nproc)"',
            f"make -C {source} install",
            f"rm -rf {archive} {source}",
            "echo /opt/python/lib > /etc/ld.so.conf.d/opt-python.conf",
            "ldconfig",
            *(f"ln -sf /opt/python/bin/{tool}{short} /usr/local/bin/{alias}" for tool, alias in tools),
        ]
        self.apt_install(_PYTHON_NEEDS.split())
        self._add("python", version, "RUN " + " \\\n    && ".join(commands))
        return self._add("env", "PATH=/opt/python/bin:$PATH", "ENV PATH=/opt/python/bin:$PATH")

    def apt_install(self, packages: str | Sequence[str]) -> Image:
        """Install Debian packages; `name=version` pins one.

        Packages that they only recommend are left out (a smaller image): name those that are needed, such as
        ca-certificates beside git.
        """
        names = " ".join(_packages(packages))
        # One layer for all three: an index cached from an earlier layer names files that are gone.
        return self._add(
            "apt",
            names,
            "RUN apt-get update \\\n"
            f"    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {names} \\\n"
            "    && rm -rf /var/lib/apt/lists/*",
        )

    def apt_remove(self, packages: str | Sequence[str]) -> Image:
        """Remove Debian packages."""
        names = " ".join(_packages(packages))
        return self._add("apt", f"-{names}", f"RUN apt-get remove -y {names}")

    def with_env(self, key: str, value: str) -> Image:
        """Set an environment variable. `$OTHER` in the value is expanded, as Docker does; `\\$` is a `$`."""
        if not _VARIABLE.fullmatch(key):
            raise RuleBrokenError(
                f"Environment variable {key!r} is not a name.",
                "Use letters, digits and underscores, not beginning with a digit.",
            )
        return self._add("env", f"{key}={value}", f"ENV {key}={dockerfile.value(str(value))}")

    def run_command(self, command: str) -> Image:
        """Run a shell command while the image is built; several lines are a script that ends at a failure."""
        return self._add("run", command, dockerfile.run(command))

    def with_entrypoint(self, *args: str | list[str]) -> Image:
        """The program to run: one command line, one list, or several words. The last call counts."""
        if len(args) == 1 and isinstance(args[0], str):
            words = shlex.split(args[0])
        else:
            words = [str(w) for arg in args for w in (arg if isinstance(arg, (list, tuple)) else [arg])]
        if not words:
            raise RuleBrokenError(
                "An entrypoint needs a program.", 'For instance with_entrypoint("python", "app.py").'
            )
        self._steps = [step for step in self._steps if step.kind != "entrypoint"]
        return self._add("entrypoint", shlex.join(words), f"ENTRYPOINT {json.dumps(words)}")

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
            source: a glob below `build_dir`, or a URL or git repository. A glob passes secrets over.
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
        excluded = [exclude] if isinstance(exclude, str) else list(exclude or [])
        for pattern in excluded:
            _checked(_PATTERN, pattern, "exclude", "a pattern without spaces such as '*.pyc'")
        options += [f"--exclude={pattern}" for pattern in excluded]
        dockerfile.one_line(dest, "A destination", "Write it on one line.")
        root = Path(build_dir or Path.cwd())
        sources = [source] if url else _matches(source, root)
        if not url:
            self._added.append(Added(root.resolve(), tuple(sources), tuple(excluded)))
        if len(sources) > 1 and not dest.endswith("/"):
            dest += "/"  # builders refuse several sources otherwise
        # ADD unpacks archives and fetches URLs; for anything else COPY is the same and promises less.
        verb = "ADD" if url or any(_is_archive(root / one) for one in sources) else "COPY"
        names = sources if url else [escaped(one) for one in sources]
        line = " ".join([verb, *options, dockerfile.words(*names, dest)])
        return self._add("add", f"{source} {dest}", line)

    def _add(self, kind: Kind, asked: str, line: str) -> Image:
        self._steps.append(Step(kind, asked, line))
        return self


def _is_archive(path: Path) -> bool:
    import tarfile  # not for everyone who imports chutes

    return path.is_file() and (path.name.endswith(_ZSTD) or tarfile.is_tarfile(path))


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
    return [f"'{name}'" if "*" in name else name for name in names]  # a `*` is apt's to expand


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
        if below == root or not below.is_relative_to(root):  # `../x` and links that lead out do not travel
            continue
        name = str(PurePosixPath(below.relative_to(root)))
        by_chance = path != root / pattern  # `*` finds .env and .git, too
        if not (by_chance and (is_secret(name) or is_rubbish(name))):
            found.append(name)
    if not found:
        raise RuleBrokenError(
            f"No file below {root} matches {source!r}.",
            "Check the path, or pass build_dir= if the files are elsewhere.",
        )
    return found
