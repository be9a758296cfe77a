"""README.md's blocks, run as a reader would: in order, in one shell, Python blocks as scripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import MODEL, ROOT
from tests.integration.platform_kit import PlatformKit

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    found = BLOCK.findall((ROOT / "README.md").read_text())
    return [(language, text) for language, text in found if "# not run by the tests" not in text]


@pytest.mark.timeout(2400)
def test_every_block_runs(tmp_path: Path, cache_dir: Path) -> None:
    kit = PlatformKit(tmp_path, cache=cache_dir)
    script = ["set -euo pipefail", f"export PATH={Path(sys.executable).parent}:$PATH"]
    for number, (language, written) in enumerate(blocks()):
        text = written.replace("127.0.0.1:8000", f"127.0.0.1:{kit.port}")
        if language == "python":
            path = tmp_path / f"block_{number}.py"
            path.write_text(text)
            script.append(f"python {path}")
        else:
            script.append(text)
    try:
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=tmp_path,
            env={
                **kit.environment,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            },
            capture_output=True,
            text=True,
            timeout=2300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("The capital of France is Paris.") == 3, done.stdout
        assert "A hash table finds an entry by its key." in done.stdout
        assert "--max-model-len 2048" in done.stdout
        assert MODEL in done.stdout
        assert kit.engine_tree() == []
    finally:
        kit.close()
