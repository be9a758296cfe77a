"""The running chutes as a wheel, so that a container has the very code that talks to it.

A release could be fetched by its version; a checkout could not, and a version says nothing of local changes.
"""

from __future__ import annotations

import base64
import hashlib
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import chutes
from chutes.exception import ContainerError

PACKAGES = ("chutes", "templates")
FILES = ("hardware_profiles.yaml",)

_WHEN = (1980, 1, 1, 0, 0, 0)  # the first that ZIP knows: equal code gives an equal wheel


def write(directory: Path) -> Path:
    """Write the wheel of the running installation into `directory`; returns its path.

    Raises:
        ContainerError: it has no metadata, so that nobody knows what it needs.
    """
    described = _metadata()
    version = chutes.__version__
    info = f"chutes-{version}.dist-info"
    contents = {name: path.read_bytes() for name, path in _sources().items()}
    contents[f"{info}/METADATA"] = described.encode()
    contents[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: chutes\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    contents[f"{info}/entry_points.txt"] = b"[console_scripts]\nchutes = chutes.cli.main:main\n"
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()

    path = directory / f"chutes-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, _WHEN)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)
    return path


def _metadata() -> str:
    project = Path(chutes.__file__).parents[1] / "pyproject.toml"
    if project.is_file():  # a checkout: what was installed once may know nothing of a new requirement
        told = tomllib.loads(project.read_text())["project"]
        lines = [f"Requires-Dist: {requirement}" for requirement in told["dependencies"]]
        head = ["Metadata-Version: 2.1", "Name: chutes", f"Version: {chutes.__version__}"]
        return "\n".join([*head, f"Requires-Python: {told['requires-python']}", *lines, ""])
    try:
        described = metadata.distribution("chutes").read_text("METADATA")
    except metadata.PackageNotFoundError:
        described = None
    if not described:
        raise ContainerError(
            "chutes is not installed here, only imported: its requirements are not known.",
            "Install it: `pip install chutes`, or `pip install -e .` in its checkout.",
        )
    return described


_MADE = {"__pycache__", "__compiled__"}
"""Directories of what one Python made on one machine."""


def _sources() -> dict[str, Path]:
    """Name in the wheel → file."""
    root = Path(chutes.__file__).parents[1]
    found = [root / name for name in FILES]
    for package in PACKAGES:
        found += sorted(path for path in (root / package).rglob("*") if not _MADE & set(path.parts))
    return {path.relative_to(root).as_posix(): path for path in found if path.is_file()}


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
