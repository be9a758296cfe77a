"""The command line of SGLang, its defaults and reserved flags; a shell script plays the environment."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from chutes.chute.node_selector import NodeSelector
from chutes.engine import sglang
from chutes.engine.environment import INSIDE
from chutes.exception import InvalidSpec
from chutes.hardware import plan as planning
from chutes.hardware import profiles
from chutes.hardware.devices import Machine
from chutes.hardware.sglang import cpu_tokens
from chutes.model import catalogue
from tests.unit.fake_environment import fake, runs

GIB = 1 << 30
SMOL = "SmolLM2-135M-Instruct"


def pairs(words: list[str]) -> str:
    return " ".join(words)


def test_the_command_has_one_name_and_no_secret():
    line = sglang.command(Path("/env/bin/python"), Path("/models/m"), "org/m", ["--dtype", "half"], 9001)
    assert line[:2] == ["/env/bin/python", str(INSIDE / "serve_sglang.py")]
    assert pairs(line[2:]) == (
        "--model-path /models/m --served-model-name org/m --host 127.0.0.1 --port 9001 --dtype half"
    )
    assert sglang.variables("cuda", "secret")["SGLANG_API_KEY"] == "secret"


def test_a_cpu_is_told_to_be_one():
    assert sglang.variables("cpu", "k")["SGLANG_USE_CPU_ENGINE"] == "1"
    assert sglang.variables("cpu", "k")["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "SGLANG_USE_CPU_ENGINE" not in sglang.variables("cuda", "k")


def test_defaults_on_a_cpu_and_on_gpus():
    cpu = pairs(sglang.defaults("cpu", []))
    assert "--device cpu --attention-backend torch_native --dtype float32" in cpu
    assert "--tp-size" not in cpu
    gpu = pairs(sglang.defaults("cuda", [], 2))
    assert "--tp-size 2 --disable-custom-all-reduce" in gpu
    assert "dtype" not in gpu
    assert "--disable-custom-all-reduce" not in sglang.defaults("cuda", [], 1)
    for words in (cpu, gpu):
        assert "--enable-cache-report" in words
        assert "--enable-metrics" in words
        assert "--log-requests-level 0" in words


@pytest.mark.parametrize(
    "args", [["--tp", "4"], ["--tp-size=4"], ["--tensor-parallel-size", "4"], ["--tensor-parallel", "4"]]
)
def test_tensor_parallel_size_in_every_spelling(args: list[str]):
    assert "--tp-size" not in sglang.defaults("cuda", args, 2)


@pytest.mark.parametrize("args", [["--dtype", "bfloat16"], ["--dtype=bfloat16"], ["--dty", "bfloat16"]])
def test_what_the_author_gave_in_any_form_is_not_appended(args: list[str]):
    assert "--dtype" not in sglang.defaults("cpu", args)


def test_milestones():
    assert sglang.milestone("") == "starting the engine"
    log = "Load weight begin. avail mem=20.84 GB\n"
    assert sglang.milestone(log) == "loading the weights"
    log += "max_total_num_tokens=23301, chunked_prefill_size=2048\n"
    assert sglang.milestone(log) == "room for 23,301 tokens in the KV cache"
    log += "Capture cuda graph begin. This can take up to several minutes.\n"
    assert sglang.milestone(log) == "capturing CUDA graphs"
    log += "INFO:     Application startup complete.\n"
    assert sglang.milestone(log) == "warming up"


@pytest.mark.parametrize(
    "args",
    [
        ["--api-key", "x"],
        ["--api", "x"],
        ["--served-model-name=x"],
        ["--port", "1"],
        ["--model-path", "x"],
        ["--config", "x.yaml"],
        ["--admin-api-key", "x"],
    ],
)
async def test_reserved_flags_are_refused_before_anything_runs(tmp_path: Path, args: list[str]):
    environment = fake(tmp_path, "exit 1", "sglang")
    with pytest.raises(InvalidSpec, match="may not hold"):
        await sglang.Sglang().check_arguments(
            environment.python, environment.release, args, tmp_path / "cache"
        )
    assert runs(tmp_path) == 0


async def test_its_parser_is_asked_once_with_what_the_server_gets(tmp_path: Path):
    reply = '{"ok": false, "message": "unrecognized arguments: --x", "suggestions": [["--x", "--y"]]}'
    body = f"""[ "$SGLANG_USE_CPU_ENGINE" = 1 ] && echo "$1" | grep -q check_sglang && echo '{reply}'"""
    environment = fake(tmp_path, body, "sglang")
    for _ in range(2):
        with pytest.raises(InvalidSpec, match=r"sglang-cpu-0\.1 refuses engine_args: unrecognized") as caught:
            await sglang.Sglang().check_arguments(
                environment.python, environment.release, ["--x"], tmp_path / "cache"
            )
        assert caught.value.fix == "Did you mean --y instead of --x?"
    assert runs(tmp_path) == 1


# ------------------------------------------------------------------------------------ scripts that run inside


def inside(code: str) -> str:
    """What a program prints that runs where the scripts are."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=INSIDE, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_played_packages_can_be_imported_decorated_with_and_inherited_from():
    code = """
import sglang_on_cpu, triton, triton.language as tl
from sgl_kernel.flash_attn import flash_attn_varlen_func
from triton.runtime.jit import JITFunction

@triton.autotune(configs=[triton.Config({"n": 1}, num_warps=4)], key=["n"])
@triton.jit
def kernel(x: tl.constexpr): return x + 1

class Kind(JITFunction): pass
print(kernel(1), isinstance(kernel, JITFunction), isinstance(Kind(), JITFunction))
try: flash_attn_varlen_func(1, 2)
except NotImplementedError as error: print(error)  # what SGLang itself catches of a kernel that is played
"""
    numbers, refused = inside(code).splitlines()
    assert numbers == "2 False True"
    assert refused.startswith("sgl_kernel.flash_attn.flash_attn_varlen_func needs a GPU")


def test_the_key_does_not_reach_the_log():
    code = """
import logging, sys, serve_sglang
serve_sglang.keep_secret("s3cret")
logging.basicConfig(stream=sys.stdout, format="%(message)s", force=True)
logging.getLogger("x").warning("args=%s", {"api_key": "s3cret"})
logging.getLogger("x").warning("%d requests", 3)
"""
    assert inside(code).splitlines() == ["args={'api_key': '***'}", "3 requests"]
    assert logging.getLogRecordFactory() is logging.LogRecord


# ------------------------------------------------------------------------------------------------ on a CPU


def on_a_cpu(*args: str, known: bool = True) -> planning.Plan:
    machine = Machine(cpus=2, memory_total=24 * GIB, memory_available=20 * GIB, gpus=())
    facts = catalogue.find(SMOL) if known else None
    return planning.plan("sglang", NodeSelector(), facts, machine, profiles.load(), args=args, concurrency=32)


def test_a_plan_for_a_cpu_speaks_its_language():
    found = on_a_cpu()
    assert found.fits
    assert found.kv_cache_bytes == 2 * GIB
    # 30 layers of 3 heads of 64, keys and values, 4 bytes each.
    tokens = 2 * GIB // (30 * 2 * 3 * 64 * 4)
    words = pairs(found.engine_args)
    assert words == f"--max-running-requests 32 --chunked-prefill-size 2048 --max-total-tokens {tokens}"
    facts = catalogue.find(SMOL)
    assert facts is not None
    assert cpu_tokens(facts, 2 * GIB) == tokens


def test_what_the_author_set_for_a_cpu_stays():
    found = on_a_cpu("--max-total-tokens", "4096", "--context-length", "2048")
    assert "--max-total-tokens" not in found.engine_args
    assert "--context-length" not in found.engine_args
    assert found.choice is not None
    assert found.choice.max_model_len == 2048


def test_without_facts_it_may_not_take_all_memory():
    flag, share = on_a_cpu(known=False).engine_args
    assert flag == "--mem-fraction-static"
    assert 0 < float(share) < 0.3
