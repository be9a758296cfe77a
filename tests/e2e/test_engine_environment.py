"""The real vLLM environment: its parser's verdicts, the conversion, and the facts that were recorded.

The environment and the model are made on the first run (minutes, 3.5 GB) and kept in the cache directory.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from chutes.engine import environment, vllm
from chutes.engine.environment import Environment
from chutes.engine.gguf import convert_gguf
from chutes.engine.release import find
from chutes.exception import InvalidSpec
from chutes.model import source

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

pytestmark = pytest.mark.timeout(1800)  # the first run installs


def quiet(*report: object) -> None: ...


@pytest.fixture
async def engine(cache_dir: Path) -> Environment:
    return await environment.ensure(find("vllm", "cpu"), cache_dir / "engines", quiet)


async def test_an_unknown_argument_is_refused_with_the_right_one(engine: Environment, tmp_path: Path):
    kept: list[int] = []
    for _ in range(2):
        with pytest.raises(InvalidSpec, match="unrecognized arguments: --max-model-length") as caught:
            await vllm.check_arguments(engine.python, engine.release, ["--max-model-length", "5"], tmp_path)
        assert "--max-model-len " in caught.value.fix
        kept += [verdict.stat().st_mtime_ns for verdict in tmp_path.iterdir()]
    assert len(kept) == 2
    assert kept[0] == kept[1]  # the second verdict was on disk


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--max-model-len", "many"], "argument --max-model-len: invalid"),
        (["--enable-auto-tool-choice"], "requires --tool-call-parser"),
        (["max-model-len"], "unrecognized arguments: max-model-len"),
    ],
)
async def test_what_the_server_would_refuse_is_refused_in_its_words(
    engine: Environment, tmp_path: Path, args: list[str], words: str
):
    with pytest.raises(InvalidSpec, match=words):
        await vllm.check_arguments(engine.python, engine.release, args, tmp_path)


@pytest.mark.parametrize(
    "args",
    [
        [*vllm.defaults("cpu", []), "--max_model_len", "2k"],
        [*vllm.defaults("cuda", [], 2), "-dp", "2", "--compilation-config", '{"mode": 0}'],
    ],
)
async def test_our_own_defaults_are_accepted(engine: Environment, tmp_path: Path, args: list[str]):
    await vllm.check_arguments(engine.python, engine.release, args, tmp_path)


async def test_the_default_model_becomes_a_directory_whose_facts_are_those_recorded(
    engine: Environment, cache_dir: Path
):
    models = cache_dir / "models"
    found = source.resolve(MODEL)
    gguf = source.fetch(found, models, quiet)
    converted = await convert_gguf(engine.python, gguf, gguf.parent / "converted", quiet)
    before = {path.name: path.stat().st_mtime_ns for path in converted.iterdir()}
    assert "chat_template.jinja" in before
    assert await convert_gguf(engine.python, gguf, gguf.parent / "converted", quiet) == converted
    assert {path.name: path.stat().st_mtime_ns for path in converted.iterdir()} == before

    facts = source.directory_facts(converted)
    assert facts == source.read_facts(found, models)
    assert facts.parameters == 134_515_008
