"""Images and containers, with a program standing in for docker that really runs what it is asked to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
import urllib.request
import zipfile
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from chutes import config as settings
from chutes.engine import contained, containers, wheel
from chutes.engine.command import inherited
from chutes.engine.process import EngineProcess, place_of, runs, sweep, tail
from chutes.exception import BuildFailed, ContainerError
from chutes.image import Image
from tests.integration import fake_docker
from tests.integration.platform_kit import platform, until

ROOT = Path(__file__).parents[2]

CHUTE = """
from chutes.chute import Chute
from chutes.image import Image

image = (
    Image("someone", "Greeter", "0.1").from_base("base:1").set_user("root")
    .run_command("pip install six").add("data", "/data").set_user("app")
)
chute = Chute("someone", "greeter", image)
named = Chute("someone", "greeter", "a/b:1")


@chute.cord(public_api_path="/hi")
@named.cord(public_api_path="/hi")
async def hi(self) -> dict:
    return {}
"""


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """The stand-in, alone on PATH beside the system's own programs; returns the directory of its state."""
    root = tmp_path / "docker"
    place = fake_docker.install(root)
    system = tmp_path / "system"  # /usr/bin may hold a real podman
    system.mkdir()
    for name in ("sh", "env"):
        (system / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", f"{place}:{system}")
    monkeypatch.setenv("CHUTES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CHUTES_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHUTES_EXECUTION_CONTEXT", raising=False)
    return root


@pytest.fixture
def project(tmp_path, monkeypatch):
    place = tmp_path / "project"
    (place / "data").mkdir(parents=True)
    (place / "data" / "x.txt").write_text("x")
    (place / "data" / ".env").write_text("PASSWORD=1")
    (place / "mine.py").write_text(CHUTE)
    monkeypatch.chdir(place)
    return place


def chutes(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chutes", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def calls(root: Path, verb: str) -> list[dict]:
    every = [json.loads(line) for line in (root / "calls.jsonl").read_text().splitlines()]
    return [call for call in every if call["command"][0] == verb]


class TestBuild:
    def test_the_log_streams_and_the_answer_is_the_image(self, docker, project):
        done = chutes("build", "mine:chute", "--wait", "--yes")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "chutes/someone/greeter:0.1\n"
        assert "RUN pip install six" in done.stderr
        assert "Left out: data/.env" in done.stderr
        image = json.loads((docker / "images" / "chutes%someone%greeter:0.1.json").read_text())
        assert image["context"] == ["data/x.txt"]
        assert image["lines"][:2] == ["FROM base:1", "ENV PIP_NO_CACHE_DIR=1"]
        assert image["Id"] in done.stderr

    def test_what_is_there_is_not_built_again(self, docker, project):
        assert chutes("build", "mine").returncode == 0
        again = chutes("build", "mine", "--json")
        assert "there and unchanged" in again.stderr
        assert json.loads(again.stdout)["engine"] == "docker"
        (project / "data" / "x.txt").write_text("changed")
        assert chutes("build", "mine").returncode == 0
        assert chutes("build", "mine", "--force").returncode == 0
        assert len(calls(docker, "build")) == 3

    def test_a_failed_step_is_a_failed_command(self, docker, project):
        (project / "mine.py").write_text(CHUTE.replace("pip install six", "false"))
        done = chutes("build", "mine")
        assert done.returncode == 1
        assert done.stdout == ""
        assert "did not complete: exit code: 1" in done.stderr

    def test_the_dockerfile_alone(self, docker, project):
        done = chutes("build", "mine", "--dockerfile")
        assert done.returncode == 0
        assert done.stdout.splitlines()[0] == "FROM base:1"
        assert "COPY data /data" in done.stdout
        assert not (docker / "calls.jsonl").exists()

    def test_a_named_image_is_nothing_to_build(self, docker, project):
        done = chutes("build", "mine:named")
        assert done.returncode == 2
        assert "no need to build" in done.stderr

    def test_a_client_without_its_daemon_is_no_engine(self, docker, project):
        (docker / "daemon").write_text("down")
        done = chutes("build", "mine")
        assert done.returncode == 1
        for said in ("docker does not work: Cannot connect", "podman is not installed", "apt-get install"):
            assert said in done.stderr


def test_a_client_whose_daemon_comes_back_is_one_again(docker):
    (docker / "daemon").write_text("down")
    with pytest.raises(ContainerError, match="No container engine works"):
        containers.find()
    (docker / "daemon").unlink()
    assert containers.find().name == "docker"
    with pytest.raises(ContainerError, match="not a container engine"):
        containers.find("rkt")


def test_files_that_a_dockerfile_adds_are_found_again_in_its_text(tmp_path):
    """The platform has the text and a snapshot of the files, not the author's `Image`."""
    for name in ("a b/x", "src/y.py", "src/z.pyc", "odd[1]$.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    image = Image("someone", "x", "1").add("a b", "/a", chmod="755", build_dir=tmp_path)
    image.add("src", "/s", exclude="*.pyc", build_dir=tmp_path).add("odd*", "/o", build_dir=tmp_path)
    image.add("https://example.org/x", "/x").run_command("echo COPY this")
    assert containers.added_by(str(image), tmp_path) == image.added


def test_the_wheel_is_the_running_code(tmp_path):
    path = wheel.write(tmp_path)
    again = wheel.write(tmp_path)
    assert path.read_bytes() == again.read_bytes()
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(path)]
    subprocess.run([*pip, "--disable-pip-version-check", "--no-warn-conflicts"], check=True)
    for name in ("chutes/engine/containers.py", "templates/vllm_chute.py", "hardware_profiles.yaml"):
        assert (target / name).read_bytes() == (ROOT / name).read_bytes()
    with zipfile.ZipFile(path) as archive:
        described = archive.read("chutes-0.1.0.dist-info/METADATA").decode()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [line[15:] for line in described.splitlines() if line.startswith("Requires-Dist: ")] == wanted


@pytest.mark.parametrize(
    ("engine", "gpus", "flags"),
    [
        ("docker", "2,5", ['--gpus="device=2,5"']),
        ("podman", "2,5", ["--device=nvidia.com/gpu=2", "--device=nvidia.com/gpu=5"]),
        ("docker", "", []),
    ],
)
def test_gpus_are_given_and_counted_anew(engine, gpus, flags):
    program = containers.Program(engine, f"/bin/{engine}")
    told = containers.settings(program, "sha256:1", Path("/home"), Path("/cache"), {})
    environ = {"CUDA_VISIBLE_DEVICES": gpus, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "KEY": "secret"}
    command = contained.command(told, environ, Path("/place"), "name", ["-m", "x"])
    assert [word for word in command if "gpu" in word] == flags
    assert contained.passed(environ, {}) == {"KEY": "secret"}
    assert "secret" not in " ".join(command)
    assert command[-2:] == ["-m", "x"]
    assert ("--security-opt=label=disable" in command) == (engine == "podman")


def test_the_last_layer_leaves_the_user_alone():
    assert containers.last_layer("a:1", "app", "c.whl").splitlines()[-1] == "USER app"
    assert "USER app" not in containers.last_layer("a:1", "", "c.whl")


class TestInstance:
    """A server in a container, started and ended as any instance."""

    @pytest.fixture
    def place(self, docker, project):
        return place_of(settings.load().home, "abc")

    more: ClassVar[dict[str, str]] = {}

    async def started(self, place: Path, code: str) -> EngineProcess:
        image = Image("someone", "greeter", "1").from_base("base:1").run_command("pip install six")
        python = await containers.interpreter(
            str(image), image.reference, place, "uid", settings.load(), lambda line: None
        )
        assert python is not None
        assert containers.is_interpreter(python)
        log = place.parent / "log"
        variables = {"SECRET": "s3cret\nlines", "CUDA_VISIBLE_DEVICES": "3", **self.more}
        process = await EngineProcess.start(
            [str(python), "-c", textwrap.dedent(code)], {**inherited(), **variables}, log, place
        )
        for _ in range(300):
            if "ready" in tail(log, 4000):
                return process
            await asyncio.sleep(0.1)
        raise AssertionError(tail(log, 4000))

    WAIT = """
        import os, signal, time
        print(repr(os.environ["SECRET"]), os.environ["HF_HOME"], os.environ.get("EDITOR"), os.getcwd())
        print("pid", os.getpid(), flush=True)
        {}
        print("ready", flush=True)
        time.sleep(600)
    """

    def pid(self, place: Path) -> int:
        return int(tail(place.parent / "log", 4000).split("pid ")[1].split()[0])

    async def gone(self, pid: int) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for _ in range(300):
                if not runs(process):
                    return True
                await asyncio.sleep(0.1)
            return False
        return True

    async def test_it_runs_gets_its_variables_and_ends(self, docker, place, monkeypatch):
        monkeypatch.setenv("EDITOR", "the-host's")
        (beside := place.parents[2] / "job" / "1" / "output").mkdir(parents=True)
        monkeypatch.setattr(self, "more", {"CHUTES_MOUNTS": str(beside.parent)}, raising=False)
        process = await self.started(place, self.WAIT.format(""))
        said = tail(process.log, 4000)
        assert f"'s3cret\\nlines' /cache None {place}" in said
        (ran,) = calls(docker, "run")
        assert "s3cret" not in json.dumps(ran["command"])
        assert [word for word in ran["command"] if word.startswith("--gpus")] == ['--gpus="device=3"']
        assert f"--volume={beside.parent}:{beside.parent}" in ran["command"]
        # The image's own user may write there, and no other user of the machine can get there.
        modes = [path.stat().st_mode & 0o777 for path in (beside, beside.parent, beside.parents[1])]
        assert modes == [0o777, 0o777, 0o700]
        await process.stop()
        assert await self.gone(self.pid(place))
        assert list((docker / "containers").iterdir()) == []
        assert not place.exists()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root's files are given away")
    async def test_what_root_made_is_its_directory_s_owner_s(self, docker, place, tmp_path, monkeypatch):
        (beside := tmp_path / "job" / "work").mkdir(parents=True)
        os.chown(beside, 12345, 12346)
        (outside := tmp_path / "outside").write_text("")
        monkeypatch.setattr(self, "more", {"CHUTES_MOUNTS": str(beside)}, raising=False)
        code = f"""
            import os, pathlib
            work = pathlib.Path({str(beside)!r})
            (work / "deep").mkdir()
            (work / "deep" / "x").write_text("x")
            (work / "link").symlink_to({str(outside)!r})
            (work / "up").symlink_to("..")
            print("CHUTES_MOUNTS" in os.environ, "ready", flush=True)
        """
        process = await self.started(place, code)
        assert await process.wait() == 0
        made = sorted(beside.rglob("*"))
        assert [path.name for path in made] == ["deep", "x", "link", "up"]
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made} == {(12345, 12346)}
        assert {path.stat().st_uid for path in (outside, beside.parent)} == {0}
        assert "False ready" in tail(process.log, 4000)

    async def test_its_own_end_is_told(self, docker, place):
        process = await self.started(place, 'print("ready", flush=True); import sys; sys.exit(7)')
        assert await process.wait() == 7

    @pytest.mark.parametrize("victim", ["minder", "at once", "everything outside"])
    async def test_whoever_dies_first_it_does_not_stay(self, docker, place, victim):
        process = await self.started(place, self.WAIT.format(""))
        pid = self.pid(place)
        if victim == "minder":
            process.minder.kill()
            await process.wait()
        elif victim == "at once":
            await process.stop(at_once=True)
        else:
            self.kill_outside(pid)
        assert await self.gone(pid)

    def kill_outside(self, pid: int) -> None:
        """Everything of ours but the container: minder, interpreter, the engine's client."""
        for one in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if one.pid != pid and "lifeline" not in str(one.cmdline()):
                    one.kill()

    async def test_one_that_hangs_is_removed_by_its_name(self, docker, place):
        process = await self.started(place, self.WAIT.format("signal.signal(15, signal.SIG_IGN)"))
        pid = self.pid(place)
        (container,) = (docker / "containers").iterdir()
        os.kill(int(container.read_text()), signal.SIGSTOP)  # it does not hear that its input is over
        self.kill_outside(pid)
        await asyncio.to_thread(sweep, place_of(settings.load().home))  # a new platform's first act
        assert await self.gone(pid)
        assert list((docker / "containers").iterdir()) == []
        assert [call["command"] for call in calls(docker, "rm")] == [["rm", "--force", container.name]]
        await process.wait()

    async def test_what_it_writes_is_never_run_outside(self, docker, place, tmp_path):
        told = json.dumps(["/bin/sh", "-c", f"echo got out > {tmp_path / 'evidence'}"])
        process = await self.started(
            place, f"open('container.json', 'w').write({told!r})\n{textwrap.dedent(self.WAIT.format(''))}"
        )
        assert (place / "container.json").exists()
        await process.stop(at_once=True)
        assert not (tmp_path / "evidence").exists()
        assert list((docker / "containers").iterdir()) == []
        assert not contained.note_of(place).exists()

    @pytest.mark.parametrize(
        "told",
        [["/bin/rm", "chutes-a-01234567"], ["docker", "--config=/x"], ["docker", "chutes-a-01234567/x"]],
    )
    def test_a_note_removes_containers_of_ours_only(self, docker, tmp_path, told):
        note = tmp_path / "a.container.json"
        note.write_text(json.dumps(told))
        contained.remove_noted(note)
        assert note.exists()
        assert not (docker / "calls.jsonl").exists()

    @pytest.mark.parametrize(
        "reference",
        ["registry.example:5000/team/a:1", f"a/b@sha256:{'0' * 64}", f"chutes/a:1@sha256:{'0' * 64}"],
    )
    async def test_an_image_of_any_registry_is_given_chutes(self, docker, place, reference):
        image = {"Id": "sha256:1", "User": "", "Labels": {}}
        (docker / "images" / f"{reference.replace('/', '%')}.json").write_text(json.dumps(image))
        python = await containers.interpreter("", reference, place, "uid", settings.load(), lambda line: None)
        assert python is not None
        (made,) = (docker / "images").glob("chutes-run%*.json")
        assert json.loads(made.read_text())["lines"][0] == f"FROM {reference}"

    async def test_an_image_that_cannot_be_had_is_said_once_and_for_all(self, docker, place):
        config = settings.load()
        with pytest.raises(BuildFailed, match="pull access denied") as caught:
            await containers.interpreter("", "nobody/knows:1", place, "uid", config, lambda line: None)
        assert "CHUTES_CONTAINERS=none" in caught.value.fix

    async def test_without_an_engine_or_when_none_is_wanted_something_else_must_do(
        self, docker, place, monkeypatch
    ):
        async def made() -> Path | None:
            return await containers.interpreter("FROM a", "a/b:1", place, "u", settings.load(), print)

        monkeypatch.setenv("CHUTES_CONTAINERS", "none")
        assert await made() is None
        monkeypatch.delenv("CHUTES_CONTAINERS")
        (docker / "daemon").write_text("down")
        assert await made() is None
        monkeypatch.setenv("CHUTES_CONTAINERS", "docker")
        with pytest.raises(ContainerError, match="Cannot connect"):
            await made()


OWN = """
import os
from pathlib import Path

from chutes.chute import Chute
from chutes.image import Image

image = Image("tester", "where", "1").from_base("base:1").run_command("make all").add("data", "/data")
chute = Chute("tester", "where", image)


@chute.cord(public_api_path="/where")
async def where(self) -> dict:
    told = {name: os.environ.get(name) for name in ("FROM_THE_HOST", "MY_TOKEN", "ON_BOTH_SIDES")}
    return {"pid": os.getpid(), **told}


@chute.job(timeout=60)
async def write(self, **job) -> dict:
    (Path(job["output_dir"]) / "out.txt").write_text("out")
    return {"shared": os.environ.get("ON_BOTH_SIDES")}
"""


def test_a_deployed_chute_lives_in_a_container_and_dies_with_its_platform(docker, project):
    """The whole way: build, instance, job, and a platform that is killed."""
    (project / "own.py").write_text(OWN)
    with platform(project) as kit:
        kit.environment |= {
            "PATH": os.environ["PATH"],
            "CHUTES_CONTAINERS": "docker",
            "FROM_THE_HOST": "not inside",
            "ON_BOTH_SIDES": "the same",
        }
        kit.run("secrets", "create", "--purpose", "where", "--key", "MY_TOKEN", "--value", "two\nlines")
        kit.run("secrets", "create", "--purpose", "where", "--key", "ON_BOTH_SIDES", "--value", "the same")
        dry = " ".join(kit.run("deploy", "own:chute", "--dry-run").stdout.split())
        assert "runs in a container of docker" in dry
        assert "not run: make all" not in dry
        kit.run("deploy", "own:chute", "--yes")
        request = urllib.request.Request(
            f"{kit.url}/tester-where/where", b"{}", {"Authorization": f"Bearer {kit.key()}"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            told = json.loads(response.read())
        assert (told["FROM_THE_HOST"], told["MY_TOKEN"]) == (None, "two\nlines")
        assert told["ON_BOTH_SIDES"] == "the same"  # a secret is one though the platform's shell has it too
        image = json.loads((docker / "images" / "chutes%tester%where:1.json").read_text())
        assert image["context"] == ["data/x.txt"]
        ran = json.loads(kit.run("jobs", "run", "where", "write", "--wait", "--json").stdout)
        assert ran["result"] == {"shared": "the same"}
        _, job = calls(docker, "run")
        mounted = [word.split(":")[-1] for word in job["command"] if word.startswith("--volume=")]
        (record,) = (kit.home / "jobs").glob("*/run.json")
        assert str(record.parent / "work") in mounted
        assert not any(record.is_relative_to(path) for path in mounted)
        running = kit.running()
        assert running is not None
        os.kill(running["pid"], signal.SIGKILL)
        until(lambda: not psutil.pid_exists(told["pid"]))
        until(lambda: not list((docker / "containers").iterdir()))
