"""The environment that an Image's pip steps become, made by the real pip from wheels of our own."""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from chutes import config
from chutes.chute import Chute, NodeSelector, bundle
from chutes.control import bundles
from chutes.engine.python import Python, requirements
from chutes.exception import EngineEnvironmentError
from chutes.hardware.plan import Plan
from chutes.image import Image

PLAN = Plan(accelerator="cpu", engine="python", engine_version="3")


def wheel(directory: Path, name: str, version: str) -> Path:
    path = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", f"__version__ = {version!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def spec(image: Image, **files: str):
    data = bundle.pack({name.replace("_", "."): text.encode() for name, text in files.items()})
    chute = Chute("tester", "own", image, node_selector=NodeSelector())
    chute.cord()(_nothing)
    return chute.to_spec().model_copy(update={"bundle": bundle.digest(data), "entry": "m:chute"}), data


def _nothing(self): ...


@pytest.fixture
def settings(tmp_path) -> config.Config:
    return replace(
        config.load({"CHUTES_HOME": str(tmp_path / "home"), "CHUTES_CONTAINERS": "none"}),
        cache=tmp_path / "cache",
    )


async def test_the_overlays_packages_win_and_the_platforms_lie_behind(tmp_path, settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # One that nobody has, and another version of one that the platform runs on.
    ours, theirs = wheel(tmp_path, "mine_alone", "1.5"), wheel(tmp_path, "typer", "99.0")
    (tmp_path / "needs.txt").write_text(f"mine_alone @ {ours.as_uri()}\ntyper @ {theirs.as_uri()}\n")
    image = Image("me", "i", "1").add("needs.txt", "/app/needs.txt")
    image.run_command("pip install --no-deps --no-cache-dir -r /app/needs.txt")
    chute, data = spec(image, needs_txt=(tmp_path / "needs.txt").read_text())
    bundles.save(settings, data, chute.bundle)
    said: list[str] = []
    python = await Python().prepare(chute, PLAN, settings, lambda what, *_: said.append(what))
    program = (
        "import mine_alone, typer, fastapi, chutes.chute.instance as i\n"
        "print(mine_alone.__version__, typer.__version__, i.__file__)"
    )
    done = subprocess.run(
        [python, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["1.5", "99.0"]
    assert done.stdout.split()[2] == str(Path(config.__file__).parent / "chute" / "instance.py")
    assert any("pip install, step 1 of 1" in text for text in said)
    import typer

    assert typer.__file__.startswith(str(Path(pytest.__file__).parents[1]))  # ours was left alone
    before = python.stat().st_mtime_ns
    assert await Python().prepare(chute, PLAN, settings, lambda *_: None) == python
    assert python.stat().st_mtime_ns == before
    other, data = spec(image, needs_txt=f"mine_alone @ {ours.as_uri()}\n")
    bundles.save(settings, data, other.bundle)
    assert await Python().prepare(other, PLAN, settings, lambda *_: None) != python  # other files, other set


async def test_another_nested_requirement_is_another_environment(tmp_path, settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = wheel(tmp_path, "mine_alone", "1.5"), wheel(tmp_path, "mine_alone", "2.0")
    (tmp_path / "needs").mkdir()
    (tmp_path / "needs" / "all.txt").write_text("")
    image = Image("me", "i", "1").add("needs/all.txt", "/app/all.txt")
    image.run_command("pip install --no-deps --no-index -r /app/all.txt")
    made = []
    for one in (first, second):
        files = {
            "needs/all.txt": "-r more/base.txt\n",
            "needs/more/base.txt": "-c ../limits.txt\n--requirement=deep.txt # both\n",
            "needs/more/deep.txt": f"mine_alone @ {one.as_uri()}\n",
            "needs/limits.txt": "",
        }
        data = bundle.pack({name: text.encode() for name, text in files.items()})
        chute, _ = spec(image)
        chute = chute.model_copy(update={"bundle": bundle.digest(data)})
        bundles.save(settings, data, chute.bundle)
        made.append(await Python().prepare(chute, PLAN, settings, lambda *_: None))
    assert made[0] != made[1]
    said = "import mine_alone; print(mine_alone.__version__)"
    versions = [subprocess.run([python, "-I", "-c", said], capture_output=True, text=True) for python in made]
    assert [done.stdout.strip() for done in versions] == ["1.5", "2.0"]


def test_requirements_are_read_below_the_snapshot_only_and_once(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "out.txt").write_text("theirs")
    text = f"-r a.txt\n-r ../out.txt\n-c {tmp_path}/out.txt\n-r missing.txt\n-rb.txt\nsix\n"
    for name, said in {"a.txt": text, "b.txt": "-r a.txt"}.items():
        (tmp_path / "files" / name).write_text(said)
    assert requirements({"a.txt"}, tmp_path / "files") == {"a.txt": text, "b.txt": "-r a.txt"}


async def test_what_pip_refuses_is_said_and_leaves_nothing(settings):
    image = Image("me", "i", "1").run_command("pip install --no-index no-such-package-anywhere")
    chute, data = spec(image)
    bundles.save(settings, data, chute.bundle)
    with pytest.raises(EngineEnvironmentError, match="no-such-package-anywhere"):
        await Python().prepare(chute, PLAN, settings, lambda *_: None)
    assert [path for path in settings.engines.iterdir() if path.is_dir()] == []
