"""The house: a room imports only from floors below it, and the platform never imports an engine."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "chutes"

# Top to bottom. Rooms of one floor do not import each other, but for the pairs named below.
FLOORS = [
    {"cli"},
    {"control", "gateway"},
    {"fleet"},
    {"engine"},
    {"hardware"},
    {"model", "chute"},
    {"image"},
    {"util"},
    {"config", "wire", "mortal", "board", "compiled"},
    {"exception"},
]
FORBIDDEN = {"torch", "vllm", "sglang", "diffusers", "transformers"}
HOT = {"fastapi", "pydantic", "httpx2", "httpx", "typer", "rich"}


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def files() -> list[Path]:
    return [path for path in ROOT.rglob("*.py") if "inside" not in path.parts]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = parts[0]
    if room in ("__init__", "__main__"):
        return
    for module in imports(path):
        if module.startswith("chutes."):
            other = module.split(".")[1]
            allowed = other == room or floor(other) > floor(room)
            assert allowed, f"{path.relative_to(ROOT)} ({room}) imports {module}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_platform_never_imports_an_engine(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & FORBIDDEN


def test_the_gateway_imports_nothing_heavy() -> None:
    for path in (ROOT / "gateway").glob("*.py"):
        assert not {module.split(".")[0] for module in imports(path)} & HOT, path.name
