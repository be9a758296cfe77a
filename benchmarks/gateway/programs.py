"""Programs that the benchmark makes for itself, kept in a cache: two in C, and gateways from PyPI."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("CHUTES_CACHE") or HERE.parents[1] / ".cache").absolute() / "bench-gateway"
FLAGS = ["-O2", "-Wall", "-Wextra"]


class Unavailable(Exception):
    """A program cannot be had here; the message names what would help."""


def compiled(name: str, cache: Path = CACHE) -> Path:
    """The program made of `name`.c, compiled anew when its source has changed.

    Raises: Unavailable.
    """
    source = HERE / f"{name}.c"
    version = hashlib.sha256(source.read_bytes() + (HERE / "common.h").read_bytes()).hexdigest()[:12]
    program = cache / f"{name}-{version}"
    if program.exists():
        return program
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable("The benchmark needs a C compiler. Install one (`apt install gcc libc6-dev`).")
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(f".{os.getpid()}")
    command = [compiler, *FLAGS, "-o", str(unfinished), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"`{' '.join(command)}` failed (it needs glibc 2.35 or newer):\n{done.stderr}")
    unfinished.rename(program)
    return program


def installed(package: str, command: str) -> Path:
    """`command` of a PyPI package, in a virtual environment of its own that is made once.

    Raises: Unavailable.
    """
    place = CACHE / package.partition("[")[0]
    whole = place / "installed"
    if not whole.exists():
        print(f"Installing {package} into {place} …", file=sys.stderr, flush=True)
        for step in (
            [sys.executable, "-m", "venv", "--clear", str(place)],
            [str(place / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", package],
        ):
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr or done.stdout).strip().splitlines()
                raise Unavailable(f"`{' '.join(step)}` failed: {reason[-1] if reason else done.returncode}")
        whole.touch()
    return place / "bin" / command


def found(command: str) -> Path:
    """A program of the system. Raises: Unavailable."""
    path = shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        raise Unavailable(f"`{command}` is not installed (`apt install {command}`).")
    return Path(path)


def version(command: list[str | Path]) -> str:
    """The first line of what a program says of its version."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return ((done.stdout or done.stderr).strip().splitlines() or ["unknown"])[0]


def package_version(place: Path, package: str) -> str:
    """Of an installed package, seen from its own environment."""
    code = f"from importlib.metadata import version; print('{package}', version('{package}'))"
    return version([place / "bin/python", "-c", code])
