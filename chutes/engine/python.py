"""An author's own code as an engine: the environment that its Image describes, and the process in it.

Without a container engine the steps of an Image that install Python packages become a virtual environment:
an overlay whose packages come first and behind which lie the platform's own, so that chutes, FastAPI and
uvicorn are there in the version that talks to this platform. What only a container can do (Debian packages,
another base, other commands, another Python) is not done, and said.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import posixpath
import re
import shlex
import shutil
import site
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import chutes
from chutes.chute import bundle
from chutes.chute.agreed import KEY
from chutes.chute.spec import ChuteSpec
from chutes.config import Config
from chutes.engine import command as helper
from chutes.engine import containers
from chutes.engine.contract import Progress, Start
from chutes.engine.environment import MARKER, exclusive
from chutes.exception import EngineEnvironmentError, InvalidSpec
from chutes.hardware.plan import Plan
from chutes.image import DEFAULT_BASE, NO_PIP_CACHE

INSTANCE = "chutes.chute.instance"

# Of an image, only ever these two of its variables would keep a process from starting here.
_NOT_TAKEN = frozenset({"PATH", "HOME", "PYTHONHOME", "PYTHONPATH", "LD_PRELOAD", "LD_LIBRARY_PATH"})
_PIP = re.compile(r"(.*/)?pip[\d.]*")
_PYTHON = re.compile(r"(.*/)?python[\d.]*")
# A line of a requirements file that names another one.
_NESTED = re.compile(r"^[ \t]*(?:-r|-c|--requirement|--constraint)[ \t=]*([^\s#]+)", re.MULTILINE)
# They speak of the system's Python, a cache or uv itself: of an environment of one's own they mean nothing.
_FLAGS = frozenset(
    {"--system", "--break-system-packages", "--user", "--no-cache-dir", "--no-cache", "-q", "--quiet", "-y"}
)
_TOOLS = frozenset({"pip", "setuptools", "wheel", "uv"})
_SHOWN = 60  # characters of a command in a note: enough to know it again


@dataclass
class Way:
    """How an author's code will be run here."""

    pip: list[list[str]] = field(default_factory=list)
    """Arguments for `pip install`, one list for each step, in order. A file is a name in the snapshot."""
    files: set[str] = field(default_factory=set)
    """Files of the snapshot that they name."""
    variables: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What of the Image is not honoured."""


def ways(dockerfile: str) -> Way:
    """What of an Image can be had without a container engine. Pure.

    Args:
        dockerfile: its text; empty for a chute whose image is only named.
    """
    way = Way()
    apt: list[str] = []
    added: dict[str, str] = {}
    workdir = PurePosixPath("/")
    for word, rest in _instructions(dockerfile):
        if word == "FROM" and rest != DEFAULT_BASE:
            way.notes.append(f"the base image {rest} is not used")
        elif word == "WORKDIR":
            workdir = workdir / rest
        elif word == "ENV" and rest != NO_PIP_CACHE:
            _take_variables(rest, way)
        elif word in ("ADD", "COPY"):
            _take_files(rest, workdir, added, way)
        elif word == "RUN":
            for words in _commands(rest):
                _take_command(words, workdir, added, apt, way)
        elif word in ("USER", "ENTRYPOINT"):
            way.notes.append(f"{word} {rest} is not used")
    if apt:
        way.notes.append(f"Debian packages are not installed: {' '.join(dict.fromkeys(apt))}")
    if way.notes:
        way.notes.insert(
            0, "no container is used: pip steps become a virtual environment, the rest is not done"
        )
    return way


def _instructions(dockerfile: str) -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", dockerfile)
    found: list[tuple[str, str]] = []
    for line in map(str.strip, joined.splitlines()):
        word, _, rest = line.partition(" ")
        if line and not line.startswith("#"):
            found.append((word.upper(), rest.strip()))
    return found


def _commands(text: str) -> list[list[str]]:
    """The simple commands of a shell line; one that the shell would have to work out comes as one word."""
    text = re.sub(r"^(--\w+=\S+\s+)+", "", text)  # --mount of a cache
    if text.startswith("["):
        try:
            words = [str(word) for word in json.loads(text)]
        except ValueError:
            return [[text]]
        if words[:2] != ["/bin/sh", "-ec"]:
            return [words]
        script = words[2].replace("\\\n", " ")  # as `Image.run_command` writes a script of several lines
        return [found for line in script.split("\n") if line.strip() for found in _commands(line.strip())]
    if re.search(r"[$`<>|*?(){}]", re.sub(r"'[^']*'|\"[^\"$`]*\"", "", text)):
        return [[text]]
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&;|")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return [[text]]
    commands: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set("&;|"):
            commands.append([])
        elif commands[-1] or not re.fullmatch(r"\w+=.*", word):  # a variable for this command alone
            commands[-1].append(word)
    return [words for words in commands if words]


def _take_command(
    words: list[str], workdir: PurePosixPath, added: dict[str, str], apt: list[str], way: Way
) -> None:
    packages = _installed(words)
    if packages is not None:
        arguments = [word for word in packages if word not in _FLAGS]
        arguments = ["--pre" if word.startswith("--prerelease") else word for word in arguments]
        named = [word for word in arguments if not word.startswith("-")]
        if named and set(named) <= _TOOLS:
            return
        resolved = _with_files(arguments, workdir, added, way)
        if resolved is None:
            way.notes.append(f"not run, as it needs what is only in the image: {_short(words)}")
        elif resolved:
            way.pip.append(resolved)
    elif words[0] in ("apt-get", "apt"):
        rest = [word for word in words[1:] if not word.startswith("-")]
        if rest[:1] == ["install"]:
            apt += rest[1:]
    elif len(words) == 1 and (found := re.findall(r"apt(?:-get)? (?:-\S+ )*install ([^&|;]+)", words[0])):
        apt += [word for names in found for word in names.split() if not word.startswith("-")]
    elif words[0] not in ("rm", "true"):  # clearing what was not made
        way.notes.append(f"not run: {_short(words)}")


def _installed(words: list[str]) -> list[str] | None:
    """What a command gives to `pip install`; None for any other command."""
    if _PYTHON.fullmatch(words[0]) and words[1:2] == ["-m"]:
        words = words[2:]
    if words[:1] and PurePosixPath(words[0]).name == "uv":
        words = words[1:]
    found = len(words) > 1 and _PIP.fullmatch(words[0]) and words[1] == "install"
    return words[2:] if found else None


def _with_files(
    arguments: list[str], workdir: PurePosixPath, added: dict[str, str], way: Way
) -> list[str] | None:
    """Requirement files as they are called in the snapshot; None if one of them is not in it."""
    result: list[str] = []
    file_next = False
    for word in arguments:
        name = word
        for flag in ("--requirement=", "--constraint=", "-r", "-c"):
            if not file_next and word.startswith(flag) and len(word) > len(flag):
                result.append("-r" if flag in ("-r", "--requirement=") else "-c")
                name, file_next = word.removeprefix(flag), True
                break
        if file_next:
            here = _in_snapshot(workdir / name, added)
            if here is None:
                return None
            way.files.add(here)
            result.append(here)
            file_next = False
        elif word.startswith((".", "/")):
            return None
        else:
            result.append(word)
            file_next = word in ("-r", "--requirement", "-c", "--constraint")
    return result


def _in_snapshot(path: PurePosixPath, added: dict[str, str]) -> str | None:
    """What a file of the image is called in the snapshot."""
    for place, source in added.items():
        if path.is_relative_to(place):
            return (PurePosixPath(source) / path.relative_to(place)).as_posix()
    return None


def _take_variables(text: str, way: Way) -> None:
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith(("PIP_", "UV_", "DEBIAN_")):  # for those who build the image
            continue
        if equals and "$" not in value and name not in _NOT_TAKEN and not name.startswith("CHUTES_"):
            way.variables[name] = value
        else:
            way.notes.append(f"ENV {name} is not set")


def _take_files(text: str, workdir: PurePosixPath, added: dict[str, str], way: Way) -> None:
    text = re.sub(r"^(--[\w-]+(=\S+)?\s+)+", "", text)
    words = json.loads(text) if text.startswith("[") else text.split()
    *sources, destination = words
    for source in sources:
        if "://" in source or source.startswith("git@"):
            way.notes.append(f"{source} is not downloaded")
            continue
        place = workdir / destination
        if destination.endswith("/") and source != ".":
            place = place / PurePosixPath(source).name
        added[str(place)] = source
        way.notes.append(f"{source} lies in the working directory, not at {place}")


def _short(words: list[str]) -> str:
    text = " ".join(words)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def bundle_path(config: Config, digest: str) -> Path:
    """Where the snapshot of that digest is kept."""
    return config.bundles / f"{digest}.tar.gz"


def unpack_bundle(spec: ChuteSpec, config: Config, place: Path) -> None:
    """The chute's files, in a directory that is made for them.

    Raises:
        InvalidSpec: its snapshot is not here.
    """
    try:
        data = bundle_path(config, spec.bundle).read_bytes()
    except OSError:
        raise InvalidSpec(
            f"The files of chute {spec.name!r} (snapshot {spec.bundle[:12] or 'none'}) are not here.",
            "`chutes deploy` sends them.",
        ) from None
    place.mkdir(parents=True, exist_ok=True)
    bundle.unpack(data, place)


class Python:
    """See `contract.Engine`."""

    async def judge(self, spec: ChuteSpec, plan: Plan, config: Config) -> None:
        del plan, config
        if spec.bundle and not spec.entry:
            raise InvalidSpec(f"Chute {spec.name!r} has a snapshot but no entry into it.", "Set entry.")

    async def prepare(self, spec: ChuteSpec, plan: Plan, config: Config, progress: Progress) -> Path:
        del plan
        way = ways(spec.dockerfile)
        with tempfile.TemporaryDirectory() as scratch:
            files = Path(scratch)
            if spec.bundle and (way.files or spec.dockerfile):
                await asyncio.to_thread(unpack_bundle, spec, config, files)
            contained = await containers.interpreter(
                spec.dockerfile,
                spec.image,
                files,
                spec.uid,
                config,
                lambda line: progress(line.strip()[:100], 0, 0),
            )
            if contained is not None:
                return contained
            return await _ensure(way, files, config.engines, progress)

    async def adapt(self, python: Path, files: Path, progress: Progress) -> Path:
        del python, progress
        return files

    def command(self, start: Start) -> list[str]:
        words = [str(start.python), "-m", INSTANCE, "--ref", start.spec.entry]
        words += ["--port", str(start.endpoint.port), "--startup-seconds", str(start.startup_seconds)]
        # For the log of an instance without a container. A dry run has no interpreter, and says them itself.
        honoured = containers.is_interpreter(start.python) or not start.python.is_absolute()
        notes = [] if honoured else ways(start.spec.dockerfile).notes
        return [*words, *(word for note in notes for word in ("--note", note))]

    def variables(self, start: Start) -> dict[str, str]:
        return {**environment(start.spec), KEY: start.endpoint.api_key}

    def milestone(self, log: str) -> str:
        del log
        return "running the startup hooks"

    async def warm(self, start: Start) -> None:
        """Nothing is known of an author's functions that could be asked; /health has said that hooks ran."""


def environment(spec: ChuteSpec) -> dict[str, str]:
    """Variables for a chute's own code, instance or job, without any secret."""
    return {
        **ways(spec.dockerfile).variables,
        "CHUTES_EXECUTION_CONTEXT": "REMOTE",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # the place is removed with the instance
    }


def _base() -> list[str]:
    """What lies behind every overlay: where this chutes is, and the packages that it runs on."""
    own = str(Path(chutes.__file__).parents[1])
    return list(dict.fromkeys([own, *site.getsitepackages()]))


async def _ensure(way: Way, files: Path, root: Path, progress: Progress) -> Path:
    """The interpreter of the overlay for `way`, made now if there is none.

    Raises:
        EngineEnvironmentError: pip failed; with what it said.
    """
    made_of = json.dumps([way.pip, requirements(way.files, files), sys.version, sys.prefix, _base()])
    path = root / f"python-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    python = path / "bin" / "python"
    if (path / MARKER).is_file() and python.exists():
        return python
    progress("making its environment", 0, 0)
    root.mkdir(parents=True, exist_ok=True)
    async with exclusive(root / f"{path.name}.lock", lambda what, _: progress(what, 0, 0)):
        if (path / MARKER).is_file() and python.exists():
            return python
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
        try:
            await _make(way, files, path, python, progress)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, path, ignore_errors=True))
            raise
        (path / MARKER).write_text(json.dumps({"pip": way.pip}, indent=2) + "\n")
    return python


def requirements(names: Iterable[str], files: Path) -> dict[str, str]:
    """The text of requirement files by name, sorted, with those below `files` that they name in turn."""
    found: dict[str, str] = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        path = files / name
        if name in found or PurePosixPath(name).parts[:1] in (("..",), ("/",)) or not path.is_file():
            continue  # pip says what it misses
        found[name] = path.read_text(errors="replace")
        beside = PurePosixPath(name).parent
        todo += [posixpath.normpath(beside / other) for other in _NESTED.findall(found[name])]
    return dict(sorted(found.items()))


async def _make(way: Way, files: Path, path: Path, python: Path, progress: Progress) -> None:
    try:
        # A platform that uv made has no pip of its own: then the overlay gets one.
        ours = importlib.util.find_spec("pip") is not None
        await helper.run([sys.executable, "-m", "venv", *["--without-pip"] * ours, path])
        # Behind the overlay's own, which a .pth file's lines always are.
        (packages,) = path.glob("lib/python*/site-packages")
        own, *rest = _base()
        lines = [own, *(f"import site; site.addsitedir({directory!r})" for directory in rest)]
        (packages / "zz-chutes-base.pth").write_text("\n".join(lines) + "\n")
        for number, arguments in enumerate(way.pip, 1):
            progress(f"pip install, step {number} of {len(way.pip)}", number - 1, len(way.pip))
            resolved = [str(files / word) if word in way.files else word for word in arguments]
            pip = [sys.executable, "-m", "pip", "--python", python] if ours else [python, "-m", "pip"]
            quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
            await helper.run(
                [*pip, "install", *quiet, *resolved],
                on_line=lambda line: progress(line.strip()[:100], 0, 0),
            )
    except helper.CommandFailed as failure:
        last = "\n".join("  " + line[:300] for line in failure.lines[-8:])
        raise EngineEnvironmentError(
            f"The chute's environment could not be made ({failure.reason}).\n{last}",
            "Mend the Image's pip steps, or check the network.",
        ) from None
