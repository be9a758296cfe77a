"""One GGUF file as a Hugging Face directory, which is what model servers load."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from chutes.engine import command
from chutes.engine.contract import Progress
from chutes.engine.environment import INSIDE, exclusive
from chutes.exception import ModelError

CONVERT_SECONDS = 3600.0  # 60 s for 135 M parameters on a busy machine; GGUF files are small models here


async def converted(python: Path, files: Path, progress: Progress) -> Path:
    """`files`, or what is made of them if they are one GGUF file. See `convert_gguf`."""
    if files.suffix == ".gguf":
        return await convert_gguf(python, files, files.parent / "converted", progress)
    return files


async def convert_gguf(python: Path, gguf: Path, destination: Path, progress: Progress) -> Path:
    """Make a directory that a model server loads out of one GGUF file, unless `destination` is there already.

    Returns:
        `destination`: config.json, bfloat16 safetensors, tokenizer.

    Raises:
        ModelError: the file cannot be converted, or there is no room.
    """
    if (destination / "config.json").is_file():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + ".partial")
    async with exclusive(
        destination.with_name(destination.name + ".lock"), lambda what, _: progress(what, 0, 0)
    ):
        if (destination / "config.json").is_file():
            return destination
        shutil.rmtree(partial, ignore_errors=True)
        try:
            await command.run(
                [python, INSIDE / "gguf_to_directory.py", gguf, partial],
                variables={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"},
                on_line=lambda line: _report(line, progress),
                timeout=CONVERT_SECONDS,
            )
            partial.replace(destination)  # the whole directory or nothing
        except command.CommandFailed as failure:
            raise ModelError(
                f"{gguf.name} cannot be converted: {(failure.lines or [failure.reason])[-1][:500]}",
                f"Check that {gguf} is whole and of an architecture that transformers reads as GGUF.",
            ) from None
        finally:
            if partial.exists():
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True))
    return destination


def _report(line: str, progress: Progress) -> None:
    if line.startswith("step: "):
        progress(line.removeprefix("step: "), 0, 0)
