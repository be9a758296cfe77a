"""docs/own-chutes.md: its Python blocks are the files that they say they are and load, its shell blocks are
run as a reader would, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chutes.chute.loader import load
from tests.integration.platform_kit import platform

PAGE = Path(__file__).parents[2] / "docs" / "own-chutes.md"
BLOCK = re.compile(r"^```(\w+)\n(?:# (\w+\.py)\n)?(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(PAGE.read_text())


@pytest.mark.timeout(600)
def test_every_block_loads_or_runs(tmp_path: Path) -> None:
    assert {language for language, _, _ in BLOCKS} == {"python", "bash"}
    files = {name: text for language, name, text in BLOCKS if language == "python"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        if "Chute(" in text:
            load(name, tmp_path).chute.to_spec()
    with platform(tmp_path) as kit:
        shell = [text for language, _, text in BLOCKS if language == "bash"]
        script = "\n".join([f"export PATH={Path(sys.executable).parent}:$PATH", "set -euo pipefail", *shell])
        done = subprocess.run(
            ["bash", "-c", script.replace("127.0.0.1:8000", f"127.0.0.1:{kit.port}") + "\npython image.py"],
            cwd=tmp_path,
            env={**kit.environment, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert '{"be":2,"not":1,"or":1,"to":2}"ho ho"data: {"letter": "a"}' in said
    assert "{'be': 2, 'not': 1, 'or': 1, 'to': 2}\n['a', 'b']\n" in said
    assert re.search(r"ada-words .* ready ", said)
    assert sorted(re.findall(r"^http.*/ada-shared\n(\d)(\d)(\d)", said, re.MULTILINE)[0]) == ["1", "2", "3"]
    assert "News" in said
    assert "FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04" in said
