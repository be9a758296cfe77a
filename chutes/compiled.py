"""The gateway's core as machine code, where somebody has made it: `python -m chutes.compiled`.

The same typed source, translated by mypyc: a request then takes half of Python's time. Nothing depends on
it. A build lies beside the source, in a directory named by a digest of that source: what has been edited
since is run by the interpreter again, never hidden behind what was made of it before.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from chutes.exception import ChutesError

SWITCH = "CHUTES_COMPILED"
"""Set to 0 to run what is there by the interpreter all the same."""

ADVICE = "`python -m chutes.compiled` makes it serve about twice as many requests"
PACKAGE = "chutes.gateway"
ROOT = Path(__file__).parent
CORE = ROOT / "gateway"
PLACE = CORE / "__compiled__"
NAMES = (
    *("access", "account", "answers", "balance", "bodies", "breaker", "chunked", "client", "clients"),
    *("events", "exchange", "heads", "http", "limits", "meter", "orders", "outbox", "quota", "relay"),
    *("routing", "scores", "service", "surface", "surroundings", "upstream", "waiting"),
)
"""What a request goes through."""
NEEDED = ("gateway/shapes", "board", "config", "exception", "wire", "chute/agreed", "chute/docs")
"""What these take types and constants from: mypyc builds both in."""

SETUP = """
from mypyc.build import mypycify
from setuptools import setup

options = ["--follow-imports=silent", "--ignore-missing-imports", "--no-warn-unused-ignores"]
modules = mypycify([*options, *{files!r}], opt_level="3", debug_level="0")
setup(name="chutes-gateway", packages=[], ext_modules=modules)
"""

_NO_COMPILER = re.compile(r"command '[^']*' failed: No such file|unable to execute '[^']*': No such file")


class Lacking(ChutesError):
    """There is no mypyc or no C compiler here, so nothing is said of the source."""

    exit_code = 3


def digest() -> str:
    """Of everything that a build is made of and for: source, Python, machine."""
    found = hashlib.sha256(str(sysconfig.get_config_var("EXT_SUFFIX")).encode())
    for name in (*(f"gateway/{name}" for name in NAMES), *NEEDED):
        found.update((ROOT / f"{name}.py").read_bytes())
    return found.hexdigest()[:16]


class _Finder(MetaPathFinder):
    """Finds the modules of one build."""

    def __init__(self, place: Path) -> None:
        self._files = {file.name.partition(".")[0]: file for file in place.iterdir()}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        file = self._files.get(name) if package == PACKAGE or fullname.endswith("__mypyc") else None
        if file is None:
            return None
        return spec_from_file_location(fullname, file, loader=ExtensionFileLoader(fullname, str(file)))


def there() -> Path | None:
    """The build of this very source that a worker would use now."""
    place = PLACE / digest()
    return place if os.environ.get(SWITCH) != "0" and place.is_dir() else None


def use() -> None:
    """Import the core from its build from now on, if there is one; called before any of it is imported."""
    place = there()
    if place is not None:
        sys.meta_path.insert(0, _Finder(place))


def build() -> Path:
    """Make a build of the present source; takes a minute. Returns: where it is.

    Raises: ChutesError; Lacking where there is nothing to make it with.
    """
    place = PLACE / digest()
    if place.is_dir():
        return place
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        # All of it, as types are followed; without what was compiled before.
        shutil.copytree(ROOT, work / "chutes", ignore=shutil.ignore_patterns("__compiled__", "__pycache__"))
        files = [f"chutes/gateway/{name}.py" for name in NAMES]
        (work / "setup.py").write_text(SETUP.format(files=files))
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        # Hidden: calls between functions of the one library that comes of it need no table, or are inlined.
        environment = {**os.environ, "CFLAGS": "-fvisibility=hidden -g0"}
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise _why(done.stdout + done.stderr)
        made = work / "made"
        made.mkdir()
        for file in [*work.glob("*__mypyc.*"), *(work / "chutes/gateway").glob("*.so")]:
            shutil.move(file, made)
        try:
            PLACE.mkdir(exist_ok=True)
            for old in PLACE.iterdir():
                if not old.name.startswith("."):  # somebody else's, who is at it too
                    shutil.rmtree(old)
            unfinished = PLACE / f".{os.getpid()}"
            shutil.move(made, unfinished)
            unfinished.rename(place)
        except OSError as error:
            raise ChutesError(
                f"The build cannot be put beside the source: {error}.",
                "Run this as the user who installed chutes.",
            ) from None
    return place


def _why(output: str) -> ChutesError:
    """What went wrong with a build, and what to do about it."""
    if "No module named 'mypyc'" in output or "No module named 'setuptools'" in output:
        return Lacking("mypyc is not installed.", "Run `pip install 'chutes[compiled]'`.")
    if "Python.h: No such file" in output or _NO_COMPILER.search(output):
        return Lacking(
            "There is no C compiler, or no Python.h.", "Install them (`apt install gcc python3-dev`)."
        )
    return ChutesError(
        f"The build failed:\n{output[-4000:]}", "The gateway runs without it, at half the speed."
    )


if __name__ == "__main__":
    try:
        print(f"The gateway's core is compiled: {build()}")  # noqa: T201
    except ChutesError as error:
        print(f"{error.message} {error.fix}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
