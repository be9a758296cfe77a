"""A build of the gateway's core is used for the very source that it was made of, and for no other."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chutes
from chutes import compiled
from chutes.gateway import client

THERE = "from chutes import compiled; print(compiled.there() is not None)"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package, without builds of its own."""
    source = Path(chutes.__file__).parent
    shutil.copytree(source, tmp_path / "chutes", ignore=shutil.ignore_patterns("__compiled__", "__pycache__"))
    return tmp_path


def run(checkout: Path, code: str, **variables: str) -> str:
    left = {name: value for name, value in os.environ.items() if name != "CHUTES_COMPILED"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=checkout,  # goes before PYTHONPATH
        env={**left, "PYTHONPATH": str(checkout), **variables},
    )
    return done.stdout.strip()


def pretend(checkout: Path) -> None:
    """Leave an empty build of the present source."""
    run(checkout, "from chutes import compiled; (compiled.PLACE / compiled.digest()).mkdir(parents=True)")


def test_tests_of_the_compiled_core_run_it() -> None:
    # All other targets run the source on purpose; that one sets the variable, so there it cannot be skipped.
    if os.environ.get("CHUTES_COMPILED") != "1":
        pytest.skip("asked of `make test-compiled` only")
    assert client.__file__.endswith(".so")


def test_without_mypyc_the_build_names_the_fix(checkout: Path) -> None:
    # Goes before the one that is installed, and says what Python says where none is.
    (checkout / "mypyc.py").write_text("""raise ModuleNotFoundError("No module named 'mypyc'")\n""")
    done = subprocess.run(
        [sys.executable, "-m", "chutes.compiled"],
        capture_output=True,
        text=True,
        check=False,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    assert done.returncode == compiled.Lacking.exit_code
    assert "pip install 'chutes[compiled]'" in done.stderr


def test_without_a_build_the_source_runs(checkout: Path) -> None:
    assert run(checkout, THERE) == "False"
    assert run(checkout, "from chutes.gateway import client; print(client.__file__)").endswith("client.py")


@pytest.mark.parametrize("edited", ["gateway/relay.py", "gateway/shapes.py", "board.py"])
def test_an_edit_puts_a_build_out_of_use(checkout: Path, edited: str) -> None:
    pretend(checkout)
    assert run(checkout, THERE) == "True"
    with (checkout / "chutes" / edited).open("a") as file:
        file.write("# edited\n")
    assert run(checkout, THERE) == "False"


def test_a_build_can_be_switched_off(checkout: Path) -> None:
    pretend(checkout)
    assert run(checkout, THERE, CHUTES_COMPILED="0") == "False"


def test_every_file_of_the_core_is_compiled_or_has_a_reason(checkout: Path) -> None:
    # worker: the process around the core; shapes: msgspec needs live annotations.
    left = {"__init__", "__main__", "worker", "shapes"}
    found = {file.stem for file in (checkout / "chutes/gateway").glob("*.py")}
    named = run(checkout, "from chutes import compiled; print(*compiled.NAMES)").split()
    assert set(named) == found - left


def test_a_build_is_named_after_all_that_the_core_takes_from_elsewhere() -> None:
    source = Path(chutes.__file__).parent
    taken: set[str] = set()
    for name in compiled.NAMES:
        for node in ast.walk(ast.parse((source / f"gateway/{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("chutes"):
                taken |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {module.removeprefix("chutes.").replace(".", "/") for module in taken}
    files = {file for file in files if (source / f"{file}.py").is_file()}
    core = {f"gateway/{name}" for name in compiled.NAMES}
    assert files - core == set(compiled.NEEDED)
