"""Making an environment: real pip, a wheel written here, no index; a real venv, made once and copied."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from chutes.engine import environment
from chutes.engine.release import EngineRelease
from chutes.exception import EngineEnvironmentError, NotFound

NAME = "tinyengine"


def wheel(folder: Path, version: str = "1.0", body: str = "ready = True\n") -> None:
    info = f"{NAME}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{NAME}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{NAME}/__init__.py", body)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineRelease:
    index = tmp_path / "index"
    index.mkdir()
    wheel(index)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    requirements = tmp_path / "tiny.txt"
    requirements.write_text(f"# a set of one\n{NAME}==1.0\n")
    return EngineRelease("tiny", "1.0", "cpu", "tiny-cpu-1.0", requirements, 10**6, (NAME,))


@pytest.fixture(scope="session")
def bare_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but pip: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", path], check=True)
    shutil.rmtree(path / "__pycache__", ignore_errors=True)
    return path


@pytest.fixture(autouse=True)
def quick_venv(bare_venv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m venv PATH` copies one; everything after it is real."""
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\n[ "$1 $2" = "-m venv" ] && exec cp -a "{bare_venv}" "$3"\nexec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def quiet(what: str, share: float | None) -> None: ...


def rubbish(root: Path, release: EngineRelease) -> Path:
    """A directory as a killed installation leaves it."""
    path = root / release.id
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").write_text("half")
    return path


async def test_made_once_over_a_half_made_one_by_two_at_once(tmp_path: Path, release: EngineRelease):
    root = tmp_path / "engines"
    rubbish(root, release)
    assert environment.is_installed(release, root) is None
    seen: list[tuple[str, float | None]] = []

    def progress(what: str, share: float | None) -> None:
        seen.append((what, share))

    first, second = await asyncio.gather(
        environment.ensure(release, root, progress), environment.ensure(release, root, progress)
    )
    assert first == second == environment.is_installed(release, root)
    said = [what for what, _ in seen]
    assert said.count("creating the virtual environment") == 1
    assert "waiting for another process that is installing it" in said
    assert f"fetching {NAME}" in said
    subprocess.run([first.python, "-c", f"import {NAME}"], check=True)
    marker = json.loads((first.path / environment.MARKER).read_text())
    assert marker["release"] == release.id
    assert not (first.path / "tmp").exists()

    seen.clear()
    assert await environment.ensure(release, root, progress) == first
    assert not seen  # nothing is made when it is there

    # Another pinned set under the same id is another environment.
    release.requirements.write_text(f"# changed\n{NAME}==1.0\n")
    assert environment.is_installed(release, root) is None

    assert environment.remove(root, release.id) > 1000
    assert not first.path.exists()
    with pytest.raises(NotFound):
        environment.remove(root, release.id)


async def test_too_little_disk_is_said_before_anything_is_made(tmp_path: Path, release: EngineRelease):
    root = tmp_path / "engines"
    with pytest.raises(EngineEnvironmentError, match=r"needs 0\.0 GB.*0\.0 GB are available") as caught:
        await environment.ensure(release, root, quiet, free_bytes=lambda path: 10**6 - 1)
    assert str(root) in caught.value.message
    assert "CHUTES_CACHE" in caught.value.fix
    assert "chutes engines remove" in caught.value.fix
    assert not (root / release.id).exists()


async def test_pip_fails(tmp_path: Path, release: EngineRelease):
    release.requirements.write_text(f"{NAME}==2.0\n")
    with pytest.raises(
        EngineEnvironmentError, match=r"No matching distribution found for tinyengine==2\.0"
    ) as caught:
        await environment.ensure(release, tmp_path / "engines", quiet)
    assert caught.value.fix
    assert not (tmp_path / "engines" / release.id).exists()


async def test_a_pin_with_an_index_of_its_own_is_looked_for_there_last(
    tmp_path: Path, release: EngineRelease
):
    # Found without it: the index, where nothing listens, is never asked.
    release.requirements.write_text(f"{NAME}==1.0  # index: http://127.0.0.1:9/simple\n")
    assert await environment.ensure(release, tmp_path / "engines", quiet)


async def test_a_set_that_does_not_import_is_not_taken(tmp_path: Path, release: EngineRelease):
    wheel(tmp_path / "index", body="raise RuntimeError('operator does not exist')\n")
    with pytest.raises(EngineEnvironmentError, match="RuntimeError: operator does not exist"):
        await environment.ensure(release, tmp_path / "engines", quiet)
    assert environment.is_installed(release, tmp_path / "engines") is None
    assert not (tmp_path / "engines" / release.id).exists()


async def test_cancelling_ends_pip_and_leaves_nothing(tmp_path: Path, release: EngineRelease):
    wheel(tmp_path / "index", body="import time\ntime.sleep(600)\n")
    started = asyncio.Event()

    def progress(what: str, share: float | None) -> None:
        if what.startswith("checking"):
            started.set()

    task = asyncio.create_task(environment.ensure(release, tmp_path / "engines", progress))
    await started.wait()
    await asyncio.sleep(0.2)
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 60  # it does not wait for pip to end by itself
    assert not (tmp_path / "engines" / release.id).exists()
    # The lock is free again and nothing still writes there.
    wheel(tmp_path / "index")
    assert await environment.ensure(release, tmp_path / "engines", quiet)


async def test_a_root_that_cannot_be_written(tmp_path: Path, release: EngineRelease):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineEnvironmentError, match="cannot be kept at") as caught:
        await environment.ensure(release, tmp_path / "file" / "engines", quiet)
    assert "CHUTES_CACHE" in caught.value.fix


@pytest.mark.parametrize("id", ["..", "../x", "a/b", ".hidden", ""])
def test_remove_takes_a_name_and_no_path(tmp_path: Path, id: str):
    (tmp_path / "x").mkdir()
    (tmp_path / "engines" / "a" / "b").mkdir(parents=True)
    with pytest.raises(NotFound):
        environment.remove(tmp_path / "engines", id)


async def test_remove_refuses_while_it_is_being_made(tmp_path: Path, release: EngineRelease):
    rubbish(tmp_path, release)
    async with environment.exclusive(tmp_path / f"{release.id}.lock", quiet):
        with pytest.raises(EngineEnvironmentError, match="being installed"):
            environment.remove(tmp_path, release.id)
