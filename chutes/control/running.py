"""How a running platform is found by its owner: a file with its address and token.

Apart from `serve.py`, so that a command which only asks the platform something imports no web server.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil
from pydantic import BaseModel

from chutes.config import Config
from chutes.engine.process import runs
from chutes.exception import ChutesError


class Running(BaseModel):
    """What a running platform leaves in `run/platform.json` for its owner to find it by (mode 0600)."""

    pid: int
    started: float
    """When the process began, to tell it from another that got the same pid later."""
    url: str
    control_url: str
    token: str
    version: str


def make_home(config: Config) -> None:
    """Make the directories that everything else is put into; the home is for its owner alone.

    Raises:
        ChutesError: it cannot be made, or not be written to.
    """
    try:
        config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        for directory in (config.logs, config.run):
            directory.mkdir(exist_ok=True)
        config.run.chmod(0o700)
    except OSError as error:
        raise ChutesError(
            f"{config.home} cannot be written to: {error.strerror}.",
            "Set CHUTES_HOME to a directory of yours.",
        ) from None


def find_running(config: Config) -> Running | None:
    """The platform of this home, if its process is alive."""
    try:
        running = Running.model_validate_json(document(config).read_text())
        process = psutil.Process(running.pid)
        return running if runs(process) and abs(process.create_time() - running.started) < 2 else None
    except (OSError, ValueError, psutil.Error):
        return None


def document(config: Config) -> Path:
    """Where the file is."""
    return config.run / "platform.json"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_suffix(".partial")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
        file.write(text)
    draft.replace(path)
