"""The files that a chute's code needs, as one archive whose name is its digest.

What is in it: the module (with the whole package that it belongs to), the modules and packages beside it
that it imports, directly or through each other, and what its Image adds from this machine. Two snapshots of
the same files are the same bytes, so that a digest says whether anything has changed.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import stat
import sysconfig
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from chutes.exception import InvalidSpec
from chutes.image import Image
from chutes.image.context import gather
from chutes.image.ignored import Rules, is_rubbish, is_secret

if TYPE_CHECKING:
    from chutes.chute.loader import Loaded

# Below the gateway's default for the largest body (32 MiB), through which a deploy from elsewhere goes. Code
# and its small data fit many times over; weights belong to a hub and are fetched by a startup hook.
MAX_BYTES = 30 << 20
MAX_FILES = 5000
_LARGEST_SHOWN = 5


@dataclass(frozen=True)
class Bundle:
    digest: str
    """SHA-256 of `data`, in hex."""
    data: bytes
    """A tar.gz."""
    entry: str
    """The chute's reference inside it."""
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """What was wanted and is a secret."""


def make(loaded: Loaded) -> Bundle:
    """Snapshot the files of a loaded chute.

    Raises:
        InvalidSpec: they are too large (names the largest), or the Image adds a secret by its name.
    """
    found = _Files(loaded.root)
    found.take(loaded.path)
    if "." in loaded.module:  # a member of a package: all of it, data and all
        found.take_tree(loaded.root / loaded.module.partition(".")[0])
    if not _is_installed(loaded.root):
        found.follow_imports()
    if isinstance(loaded.chute.image, Image):
        found.add(loaded.chute.image)
    _check_size(found.of)
    programs = {name for name, path in found.of.items() if path.stat().st_mode & stat.S_IXUSR}
    data = pack({name: path.read_bytes() for name, path in found.of.items()}, programs)
    attribute = loaded.ref.rpartition(":")[2]
    name = loaded.path.relative_to(loaded.root).as_posix()
    plain = all(part.isidentifier() for part in loaded.module.split("."))
    return Bundle(
        digest=digest(data),
        data=data,
        entry=f"{loaded.module if plain else name}:{attribute}",
        files=tuple(sorted(found.of)),
        left_out=tuple(sorted(found.left_out)),
    )


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pack(files: dict[str, bytes], programs: Collection[str] = ()) -> bytes:
    """A tar.gz of files by name; of the same files always the same bytes.

    Args:
        programs: names of those that may be executed.
    """
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)  # owner 0, time 0
            member.size, member.mode = len(files[name]), 0o755 if name in programs else 0o644
            archive.addfile(member, io.BytesIO(files[name]))
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as zipped:
        zipped.write(plain.getvalue())
    return packed.getvalue()


def unpack(data: bytes, destination: Path | None) -> list[str]:
    """Put an archive's files below `destination`; None only looks whether that could be done.

    Whoever made it is not trusted: only plain files with relative names come out of it, and not more than
    `MAX_BYTES` of them, whatever the archive expands to.

    Raises:
        InvalidSpec: it is not such an archive.
    """
    names: list[str] = []
    total = 0
    try:
        # As a stream: what lies past the bound is never expanded.
        with tarfile.open(fileobj=io.BytesIO(data), mode="r|gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if not member.isfile():
                    raise _bad(f"{member.name!r} is not a plain file")
                if name.is_absolute() or ".." in name.parts or "\\" in member.name or not name.parts:
                    raise _bad(f"{member.name!r} would lie outside of its directory")
                total += member.size
                if total > MAX_BYTES or len(names) >= MAX_FILES:
                    raise _bad(f"it holds more than {MAX_BYTES >> 20} MiB or {MAX_FILES} files")
                names.append(str(name))
                content = archive.extractfile(member)
                if destination is not None and content is not None:
                    path = destination.joinpath(*name.parts)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.read())
                    path.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, InvalidSpec):
            raise
        raise _bad(f"it cannot be read: {error}") from None
    return names


def _bad(why: str) -> InvalidSpec:
    return InvalidSpec(f"The snapshot of the chute's files was refused: {why}.", "Deploy the chute again.")


class _Files:
    """What is taken along: path in the archive → path here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.of: dict[str, Path] = {}
        self.left_out: set[str] = set()
        self._chutesignore = _rules(root / ".chutesignore")
        self._repository = next((one for one in (root, *root.parents) if (one / ".git").exists()), root)
        self._gitignores: dict[Path, Rules] = {}

    def take(self, path: Path) -> bool:
        """One file below the root; False if it was there already, or stays here."""
        name = path.relative_to(self.root).as_posix()
        if name in self.of:
            return False
        if is_secret(name):
            self.left_out.add(name)
            return False
        self.of[name] = path
        return True

    def take_tree(self, directory: Path) -> None:
        for path in _walk(directory):
            name = path.relative_to(self.root).as_posix()
            if is_secret(name) or not (is_rubbish(name) or self._is_ignored(path)):
                self.take(path)

    def _is_ignored(self, path: Path) -> bool:
        """Whether a file below the root, or a directory there that it lies in, is to stay here."""
        parts = path.relative_to(self.root).parts
        return self._chutesignore.leave_out("/".join(parts)) or any(
            self._git_ignores(self.root.joinpath(*parts[:n]), n < len(parts))
            for n in range(1, len(parts) + 1)
        )

    def _git_ignores(self, path: Path, directory: bool) -> bool:
        """What the nearest .gitignore says that speaks of `path`, up to the repository's own."""
        for base in path.parents:
            if base not in self._gitignores:
                self._gitignores[base] = _rules(base / ".gitignore")
            said = self._gitignores[base].verdict(path.relative_to(base).as_posix(), directory)
            if said is not None or base == self._repository:
                return bool(said)
        return False

    def add(self, image: Image) -> None:
        """What the image's builder would be sent. What an author names is taken though git ignores it."""
        context = gather(image.added)
        self.left_out |= {name for name in context.left_out if is_secret(name)}
        roots = [added.root for added in image.added]
        for name, path in context.files.items():
            real = path.resolve()  # of a link, what it leads to is taken, as far as that stays below
            base = next((root for root in roots if real.is_relative_to(root)), None)
            if base is not None and real.is_file() and not is_secret(real.relative_to(base).as_posix()):
                self.of.setdefault(name, path)

    def follow_imports(self) -> None:
        """Modules and packages beside the chute's own that its files import, and theirs."""
        seen: set[str] = set()
        while todo := [name for name in self.of if name.endswith(".py") and name not in seen]:
            for name in todo:
                seen.add(name)
                for module in _imports(self.of[name], name):
                    self._follow(module)

    def _follow(self, module: str) -> None:
        top, *rest = module.split(".")
        if top == "chutes":  # the platform's own is in every instance
            return
        package = self.root / top
        if (package / "__init__.py").is_file():
            self.take_tree(package)
            self.take(package / "__init__.py")
            for n in range(1, len(rest) + 1):  # what is imported is needed though git ignores it
                stem = package.joinpath(*rest[:n])
                for found in (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
                    if found.is_file():
                        self.take(found)
        elif (single := self.root / f"{top}.py").is_file():
            self.take(single)
        elif package.is_dir():  # a namespace: of it only what is named
            stem = package.joinpath(*rest)
            if rest and (found := stem.with_name(stem.name + ".py")).is_file():
                self.take(found)
            elif (stem / "__init__.py").is_file():
                self.take_tree(stem)
            elif len(rest) > 1:  # `from package.module import name`, read as a module's name
                self._follow(".".join([top, *rest[:-1]]))


def _rules(file: Path) -> Rules:
    return Rules(file.read_text(errors="replace") if file.is_file() else "")


def _walk(directory: Path) -> Iterator[Path]:
    """Files below a directory. Links are followed as far as they stay in it."""
    top = directory.resolve()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.resolve().is_relative_to(top):
            yield path


def _imports(path: Path, name: str) -> set[str]:
    """Every module that a file, called `name` below the root, names in an import, wherever it stands."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # of a template, say: nothing that can be imported
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = PurePosixPath(name).parts[: -node.level] if node.level else ()
            if start := [*package, *([node.module] if node.module else [])]:
                found |= {".".join([*start, alias.name]) for alias in node.names}
    return found


def _is_installed(root: Path) -> bool:
    """Whether `root` holds installed packages: what is beside the module there is everybody's."""
    return root in {Path(path).resolve() for path in sysconfig.get_paths().values()}


def _check_size(files: dict[str, Path]) -> None:
    sizes = sorted(((path.stat().st_size, name) for name, path in files.items()), reverse=True)
    total = sum(size for size, _ in sizes)
    if total <= MAX_BYTES and len(sizes) <= MAX_FILES:
        return
    largest = ", ".join(f"{name} ({size / (1 << 20):.1f} MiB)" for size, name in sizes[:_LARGEST_SHOWN])
    raise InvalidSpec(
        f"The chute's files are {total / (1 << 20):.1f} MiB in {len(sizes)} files; {MAX_BYTES >> 20} MiB in "
        f"{MAX_FILES} are taken. The largest: {largest}.",
        "Name what is not needed in .chutesignore; fetch weights and data in a startup hook.",
    )
