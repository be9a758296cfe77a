"""An engine's environment whose python is a shell script."""

from __future__ import annotations

from pathlib import Path

from chutes.engine.environment import Environment
from chutes.engine.release import EngineRelease


def fake(tmp_path: Path, script: str, engine: str = "vllm") -> Environment:
    """An environment whose python is a shell script; every run of it appends a line to `runs`."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\n{script}\n")
    python.chmod(0o755)
    (tmp_path / "requirements.txt").write_text(f"{engine}==0\n")
    release = EngineRelease(engine, "0.1", "cpu", f"{engine}-cpu-0.1", tmp_path / "requirements.txt", 0)
    return Environment(release, tmp_path, python)


def runs(tmp_path: Path) -> int:
    file = tmp_path / "runs"
    return len(file.read_text().splitlines()) if file.exists() else 0
