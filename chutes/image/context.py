"""The build context: the files that an image's Dockerfile copies, and no others.

A builder is sent a directory made for it. So what is built does not depend on what else lies beside the chute
file, a password file is not sent because it happened to be there, and equal files give an equal digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chutes.image.ignored import is_rubbish, is_secret
from chutes.util.rule import RuleBrokenError

IGNORE_FILE = ".dockerignore"

# Builders other than Docker's take a file's time for a part of it. ZIP files know no earlier one.
_WHEN = 315532800


@dataclass(frozen=True)
class Added:
    """One `Image.add` of local files."""

    root: Path
    """Directory that the names start from."""
    sources: tuple[str, ...]
    """Files and directories, relative, with forward slashes; `.` is `root` itself."""
    exclude: tuple[str, ...] = ()
    """Patterns of what is not copied, relative to each source."""


@dataclass(frozen=True)
class Context:
    """What a builder is to be sent."""

    files: dict[str, Path]
    """Name in the context → the file; sorted by name."""
    left_out: list[str]
    """Names below added directories that are never sent, or that .dockerignore names."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.lstat().st_size for path in self.files.values())

    def digest(self, dockerfile: str) -> str:
        """SHA-256 of a Dockerfile and of every name, kind and content here: equal for an equal image."""
        whole = hashlib.sha256(dockerfile.encode())
        for name, path in self.files.items():
            status = path.lstat()
            link = stat.S_ISLNK(status.st_mode)
            kind = "link" if link else "program" if status.st_mode & 0o100 else "file"
            whole.update(f"\0{name}\0{kind}\0".encode())
            if link:
                whole.update(str(path.readlink()).encode())
            else:
                with path.open("rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()

    def write(self, directory: Path) -> None:
        """Copy all of it into an empty `directory`."""
        for name, path in self.files.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target, follow_symlinks=False)
            if not target.is_symlink():
                target.chmod(0o755 if os.access(path, os.X_OK) else 0o644)  # the umask is nobody's business
        for folder, _, names in os.walk(directory, topdown=False):
            for name in (*names, ""):
                os.utime(Path(folder) / name, (_WHEN, _WHEN), follow_symlinks=False)


def gather(added: Sequence[Added]) -> Context:
    """List the files that `added` name.

    Raises:
        RuleBrokenError: two build directories have different files of one name, or one that is added by
            name lies outside of its directory or looks like a secret.
    """
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for one in added:
        ignored = _Ignored(one.root)
        for source in one.sources:
            for name, path in _below(one, source, ignored, left_out):
                if files.setdefault(name, path) != path:
                    raise RuleBrokenError(
                        f"{path} and {files[name]} would both be {name} in the build context.",
                        "Rename one, or call add() with one build_dir for both.",
                    )
    return Context(dict(sorted(files.items())), sorted(set(left_out) - files.keys()))


def added_by(dockerfile: str, root: Path) -> list[Added]:
    """What a Dockerfile of ours adds from `root`: what `Image.added` was when it was written."""
    found: list[Added] = []
    for line in dockerfile.split("\n"):
        verb, _, rest = line.partition(" ")
        if verb not in ("COPY", "ADD"):
            continue
        options = re.match(r"(--\S+ )*", rest)
        assert options is not None  # it matches nothing, too
        text = rest[options.end() :]
        words = json.loads(text) if text.startswith("[") else text.split(" ")
        sources = [
            unescaped(word) for word in words[:-1] if "://" not in word and not word.startswith("git@")
        ]
        excluded = re.findall(r"--exclude=(\S+)", options[0])
        if sources:
            found.append(Added(root.resolve(), tuple(sources), tuple(excluded)))
    return found


def escaped(name: str) -> str:
    """A file's own name, where builders take patterns and variables."""
    return re.sub(r"[\[*?]", r"[\g<0>]", name).replace("$", "\\$")


def unescaped(word: str) -> str:
    """The name that `escaped` was given."""
    return re.sub(r"\[([\[*?])\]", r"\1", word.replace("\\$", "$"))


def _below(one: Added, source: str, ignored: _Ignored, left_out: list[str]) -> Iterator[tuple[str, Path]]:
    place = PurePosixPath(posixpath.normpath(source))
    if place.is_absolute() or place.parts[:1] == ("..",):  # of a Dockerfile that Image.add did not write
        raise RuleBrokenError(
            f"{source!r} lies outside of the build directory.", "Copy files from below it only."
        )
    if is_secret(source):
        raise RuleBrokenError(
            f"{source!r} looks like a secret: it goes neither into an image nor into a snapshot.",
            "Give it to the chute with `chutes secrets create`; rename it if it is none.",
        )
    start = one.root / source
    if start.is_symlink() or not start.is_dir():
        yield source, start
        return
    for folder, directories, names in os.walk(start):
        here = Path(folder)
        kept: list[str] = []
        for name in sorted({*directories, *names}):
            path = here / name
            relative = path.relative_to(one.root).as_posix()
            inner = path.relative_to(start).as_posix()
            if any(_matches(pattern, inner) for pattern in one.exclude):
                continue
            never = is_secret(name) or is_rubbish(name)
            directory = name in directories and not path.is_symlink()
            # An ignored directory is looked into all the same where something below it may be taken back.
            if never or (ignored(relative) and not (directory and ignored.takes_back)):
                left_out.append(relative)
            elif directory:
                kept.append(name)
            elif path.is_symlink() or path.is_file():  # neither a socket nor a pipe
                yield relative, path
        directories[:] = kept


class _Ignored:
    """The rules of a directory's .dockerignore: the last that matches decides, `!` takes back."""

    def __init__(self, root: Path) -> None:
        try:
            lines = (root / IGNORE_FILE).read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            lines = []
        rules = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        self._rules = [(not rule.startswith("!"), rule.lstrip("!").strip("/")) for rule in rules]
        self.takes_back = any(not leaves for leaves, _ in self._rules)

    def __call__(self, name: str) -> bool:
        ignored = False
        for leaves, pattern in self._rules:
            if _matches(pattern, name):
                ignored = leaves
        return ignored


def _matches(pattern: str, name: str) -> bool:
    """Docker's patterns: `*` and `?` within one name, `**` across any; a match covers what is below it."""
    parts = []
    for piece in re.split(r"(\*\*/?|\*|\?|\[[^\]]+\])", pattern.removeprefix("./")):
        if piece.startswith("**"):
            parts.append("(?:.*/)?" if piece.endswith("/") else ".*")
        elif piece in ("*", "?"):
            parts.append("[^/]" + ("*" if piece == "*" else ""))
        elif piece.startswith("["):
            parts.append(piece.replace("[^", "[^/"))
        else:
            parts.append(re.escape(piece))
    whole = re.compile("".join(parts))
    path = PurePosixPath(name)
    return any(whole.fullmatch(str(one)) for one in (path, *path.parents))
