"""An engine's own virtual environment: made once from a pinned set, shared by every instance of it.

Layout under `root` (`Config.engines`):

    <release id>/                the virtual environment
    <release id>/complete.json   written last: without it the directory is rubbish
    <release id>.lock            held while one process makes or removes the environment

A virtual environment cannot be made elsewhere and moved (its scripts hold its path), so it is made where
it will live, and the marker file, moved into place as the last act, is what makes it exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chutes.engine import command
from chutes.engine.release import EngineRelease, releases
from chutes.exception import EngineEnvironmentError, NotFound

Progress = Callable[[str, float | None], None]
"""(what is being done, share done from 0 to 1 or None when unknown)"""

MARKER = "complete.json"
INSIDE = Path(__file__).parent / "inside"

LOCK_POLL_SECONDS = 0.5  # another process needs minutes to make an environment; this is how late we notice

IMPORT_SECONDS = 600.0  # 60 s on two busy cores with cold files; a network disk may be ten times slower

_INDEX = re.compile(r"#\s*index:\s*(\S+)")


@dataclass(frozen=True)
class Environment:
    """An environment that was made to its end and whose imports were tried."""

    release: EngineRelease
    path: Path
    python: Path


def disk_free(path: Path) -> int:
    """Bytes that this user may still write on the file system of `path`."""
    return shutil.disk_usage(path).free


def is_installed(release: EngineRelease, root: Path) -> Environment | None:
    """The environment of `release`, when it is whole and made from the same pinned set; else None."""
    environment = _at(release, root)
    try:
        marker = json.loads((environment.path / MARKER).read_text())
    except (OSError, ValueError):
        return None
    # The interpreter is a link to the Python it was made with: an upgrade of that one breaks it.
    whole = marker.get("requirements") == _digest(release) and environment.python.exists()
    return environment if whole else None


def installed(root: Path) -> list[Environment]:
    """Every whole environment under `root`."""
    return [found for release in releases() if (found := is_installed(release, root))]


async def ensure(
    release: EngineRelease, root: Path, progress: Progress, *, free_bytes: Callable[[Path], int] = disk_free
) -> Environment:
    """The environment of `release`, made now if there is none; minutes the first time.

    Safe to call from several tasks and processes at once: one makes it, the others wait. When it fails or
    is cancelled nothing is left behind.

    Raises:
        EngineEnvironmentError: too little disk, pip failed, or the installed set does not import.
    """
    if found := is_installed(release, root):
        return found
    with _explained(root):
        root.mkdir(parents=True, exist_ok=True)
        async with exclusive(root / f"{release.id}.lock", progress):
            if found := is_installed(release, root):
                return found
            environment = _at(release, root)
            await asyncio.to_thread(shutil.rmtree, environment.path, ignore_errors=True)
            _check_disk(release, root, free_bytes(root))
            try:
                await _make(environment, progress)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, environment.path, ignore_errors=True))
                raise
            return environment


def remove(root: Path, id: str) -> int:
    """Delete the environment called `id`, whole or not.

    Returns:
        Bytes freed.

    Raises:
        NotFound: there is no such environment.
        EngineEnvironmentError: another process is making it now.
    """
    path = root / id
    # Anything but the plain name of a directory in `root` would delete something else; "" is `root` itself.
    if not id or Path(id).name != id or id.startswith(".") or not path.is_dir():
        here = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        raise NotFound(
            f"No engine {id} is installed.",
            f"Installed: {', '.join(here)}." if here else "None is installed.",
        )
    with _explained(root), (root / f"{id}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineEnvironmentError(
                f"Engine {id} is being installed by another process.", "Wait for it, or stop that process."
            ) from None
        freed = _disk_used(path)
        (path / MARKER).unlink(
            missing_ok=True
        )  # first: an interrupted removal leaves nothing that looks whole
        shutil.rmtree(path)
    return freed


async def _make(environment: Environment, progress: Progress) -> None:
    release, path, python = environment.release, environment.path, environment.python
    # pip unpacks gigabytes of wheels into TMPDIR, and /tmp is often a small disk in memory.
    scratch = path / "tmp"

    progress("creating the virtual environment", None)
    await _step(
        release, [sys.executable, "-m", "venv", path], "Install Python's venv module (Debian: python3-venv)."
    )
    scratch.mkdir()
    await _install(release, python, scratch, progress)
    shutil.rmtree(scratch)

    progress("checking that it imports", None)
    await _step(
        release,
        [python, INSIDE / "check_imports.py", *release.imports],
        "The installed set does not work on this machine: please report it with the lines above.",
        timeout=IMPORT_SECONDS,
    )
    marker = {
        "release": release.id,
        "requirements": _digest(release),
        "python": ".".join(map(str, sys.version_info[:3])),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    written = path / (MARKER + ".new")
    written.write_text(json.dumps(marker, indent=2) + "\n")
    written.replace(path / MARKER)


async def _install(release: EngineRelease, python: Path, scratch: Path, progress: Progress) -> None:
    """Install the pinned set: first the pins that plain PyPI does not hold, then all the others."""
    lines = release.requirements.read_text().splitlines()
    pins = [line for line in lines if line.split("#")[0].strip()]
    counter = _Counter(len(pins), progress)
    fix = "Check the network (`pip download six` should work) and try again: finished downloads are kept."
    pip = [python, "-m", "pip", "install", "--no-deps", "--no-input", "--disable-pip-version-check"]
    variables = {"TMPDIR": str(scratch), "PIP_PROGRESS_BAR": "off"}

    for pin in pins:
        if not (index := _INDEX.search(pin)):
            continue
        wanted = pin.split("#")[0].strip()
        try:
            await command.run([*pip, wanted], variables=variables, on_line=counter)
        except command.CommandFailed as failure:
            if not any("No matching distribution" in line for line in failure.lines):
                raise _failed(release, "pip install", failure, fix) from None
            # Never beside the other pins: pip would ask this index for each of them, and where it cannot be
            # reached that is five retries with growing pauses for every package.
            only = [*pip, "--index-url", index[1], wanted]
            await _step(release, only, fix, variables=variables, on_line=counter)

    every = [*pip, "-r", release.requirements]
    await _step(release, every, fix, variables=variables, on_line=counter)


class _Counter:
    """Turns pip's lines into a share of the work: downloads are the first half, installing is the rest."""

    DOWNLOADS = 0.5  # measured with an index near by: 66 s of collecting, 78 s of installing

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.done, self.progress = max(total, 1), 0, progress

    def __call__(self, line: str) -> None:
        line = line.strip()
        if line.startswith(("Collecting ", "Processing ")):  # the second is for a wheel on this machine
            self.done = min(self.done + 1, self.total)
            name = re.split(r"[=<>-]", line.split()[1].rsplit("/", 1)[-1], maxsplit=1)[0]
            self.progress(f"fetching {name}", self.done / self.total * self.DOWNLOADS)
        elif line.startswith("Downloading ") and " MB)" in line:
            what = line.removeprefix("Downloading ").rsplit("/", 1)[-1]
            self.progress(f"downloading {what}", self.done / self.total * self.DOWNLOADS)
        elif line.startswith("Installing collected packages") and self.done >= self.total:
            self.progress(f"installing {self.total} packages (a minute or two)", self.DOWNLOADS)


async def _step(
    release: EngineRelease,
    args: list[str | Path],
    fix: str,
    *,
    variables: dict[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
    timeout: float | None = None,
) -> None:
    try:
        await command.run(args, variables=variables, on_line=on_line, timeout=timeout)
    except command.CommandFailed as failure:
        what = " ".join(Path(part).name if i < 2 else str(part) for i, part in enumerate(args[:4]))
        raise _failed(release, what, failure, fix) from None


def _failed(
    release: EngineRelease, what: str, failure: command.CommandFailed, fix: str
) -> EngineEnvironmentError:
    said = [line for line in failure.lines if not line.startswith("WARNING:")]  # never why pip stopped
    last = "\n".join("  " + line[:300] for line in said[-8:])
    return EngineEnvironmentError(
        f"Engine {release.id} could not be installed: `{what}` failed ({failure.reason}).\n{last}", fix
    )


def _check_disk(release: EngineRelease, root: Path, available: int) -> None:
    if available < release.disk_bytes:
        raise EngineEnvironmentError(
            f"Engine {release.id} needs {release.disk_bytes / 1e9:.1f} GB of disk while it is installed; "
            f"{available / 1e9:.1f} GB are available at {root}.",
            "Set CHUTES_CACHE to a directory on a larger disk, or free some with `chutes engines remove`.",
        )


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[None]:
    """An OSError below is about files under `root`: say so instead of showing a traceback."""
    try:
        yield
    except OSError as error:
        raise EngineEnvironmentError(
            f"Engines cannot be kept at {root}: {error}.", "Set CHUTES_CACHE to a directory you may write."
        ) from None


@contextlib.asynccontextmanager
async def exclusive(path: Path, progress: Progress) -> AsyncIterator[None]:
    """Hold `path` exclusively; the system lets go of it when this process dies, however it dies."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # polled, not waited for: a thread in flock() cannot be cancelled
                progress("waiting for another process that is installing it", None)
                await asyncio.sleep(LOCK_POLL_SECONDS)
        yield


def _at(release: EngineRelease, root: Path) -> Environment:
    path = root / release.id
    return Environment(release, path, path / "bin" / "python")


def _digest(release: EngineRelease) -> str:
    return hashlib.sha256(release.requirements.read_bytes()).hexdigest()


def _disk_used(path: Path) -> int:
    """Bytes of the files below `path`; links count as themselves."""
    return sum(os.lstat(Path(folder) / name).st_size for folder, _, names in os.walk(path) for name in names)
