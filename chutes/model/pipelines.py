"""Pipelines that draw: several models in one repository (diffusers' format), or one checkpoint in one file.

`resolve` decides once where such a model comes from, `read_facts` says how large its parts are without
fetching them, `choose` which files of a repository are needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

from pydantic import BaseModel, ConfigDict

from chutes.exception import ModelError
from chutes.model import civitai, completeness, hub
from chutes.model.files import RepoFile
from chutes.model.safetensors import data_end, safetensors_header
from chutes.model.source import ModelSource

Progress = Callable[[str, int, int], None]

INDEX = "model_index.json"

_CONFIGS = (
    ".json",
    ".txt",
    ".model",
    ".jinja",
)  # configurations and tokenizers; weights are chosen one by one
_WEIGHTS = (".safetensors", ".bin")

_DIRECTORY_FIX = (
    "The directory must hold a pipeline as diffusers' `save_pretrained` writes it: model_index.json and a "
    "directory for each part."
)


class PartFacts(BaseModel):
    """One model of a pipeline."""

    model_config = ConfigDict(frozen=True)

    parameters: int
    file_bytes: int


class PipelineFacts(BaseModel):
    """What a pipeline is made of."""

    model_config = ConfigDict(frozen=True)

    pipeline: str
    """Its class; empty where only its file says so."""
    parts: dict[str, PartFacts]
    """By directory: `unet`, `text_encoder`, `vae`, …; `checkpoint` for all of them in one file."""

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())


def resolve(name: str, revision: str | None, variant: str = "") -> ModelSource:
    """Find out what `name` means: a hub id, a directory, a .safetensors file, or a page of civitai.com.

    Args:
        variant: which of several sets of weights is wanted, e.g. `fp16`.

    Raises:
        ModelError: there is no such thing, or it cannot be reached.
    """
    if civitai.is_page(name):
        found = civitai.find(name, revision)
        return ModelSource(
            kind="civitai",
            name=name,
            revision=str(found.version),
            location=json.dumps(vars(found)),
            note=f"civitai.com, {found.name} of version {found.version} ({found.size / 1e9:.1f} GB)",
            layout="pipeline",
        )
    if name.startswith(("/", "./", "../", "~", "file://")):
        return _local(name, revision)
    commit = hub.resolve(name, revision)
    return ModelSource(
        kind="hub",
        name=name,
        revision=commit,
        location=name,
        note=f"Hugging Face Hub, {name} at commit {commit[:12]}",
        layout="pipeline",
        variant=variant,
    )


def _local(name: str, revision: str | None) -> ModelSource:
    path = Path(unquote(urlparse(name).path) if name.startswith("file://") else name).expanduser().absolute()
    if revision is not None:
        raise ModelError(f"{path} has no revisions, and {revision!r} was asked.", "Take the revision out.")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(
                f"{path} is not a .safetensors file.",
                "Other formats may run code when they are read: convert it, or take a directory.",
            )
        safetensors_header(path)  # a damaged one is said now
    elif not path.is_dir():
        raise ModelError(f"There is neither a directory nor a file {path}.", "Check the path of the model.")
    elif not (path / INDEX).is_file():
        raise ModelError(f"{path} holds no {INDEX}.", _DIRECTORY_FIX)
    return ModelSource(
        kind="file" if path.is_file() else "directory",
        name=name,
        revision=None,
        location=str(path),
        note=f"local {'file' if path.is_file() else 'directory'} {path}",
        layout="pipeline",
    )


def read_facts(source: ModelSource, models_dir: Path) -> PipelineFacts:
    """The size of each part, without fetching weights.

    Raises:
        ModelError: a file is damaged or missing, or the hub cannot be asked.
    """
    if source.kind == "civitai":
        found = civitai.Checkpoint(**json.loads(source.location))
        each = 2 if found.half else 4
        part = PartFacts(parameters=found.size // each, file_bytes=found.size)
        return PipelineFacts(pipeline="", parts={"checkpoint": part})
    if source.kind == "file":
        header = safetensors_header(Path(source.location))
        return PipelineFacts(pipeline="", parts=_parts([("checkpoint", header)]))
    if source.kind == "hub":
        commit = source.revision or ""
        listing = hub.listing(source.location, commit)
        index = _index(hub.parsed(source.location, INDEX, commit, models_dir), source.location)
        names = [file.path for file in choose(source.location, listing, index, source.variant)]
        weights = [name for name in names if name.endswith(".safetensors")]
        headers = hub.headers(source.location, commit, weights)
        return PipelineFacts(
            pipeline=str(index.get("_class_name", "")),
            parts=_parts((PurePosixPath(name).parts[0], header) for name, header in headers.items()),
        )
    folder = Path(source.location)
    index = _index(_read(folder / INDEX), str(folder))
    names = [str(path.relative_to(folder)) for path in folder.glob("*/*.safetensors")]
    files = [RepoFile(name, 0, None, None) for name in names]
    chosen = choose(str(folder), files, index, source.variant)
    return PipelineFacts(
        pipeline=str(index.get("_class_name", "")),
        parts=_parts((Path(one.path).parts[0], safetensors_header(folder / one.path)) for one in chosen),
    )


def fetch(
    source: ModelSource, models_dir: Path, progress: Progress, cancelled: Callable[[], bool] = lambda: False
) -> Path:
    """Bring the pipeline's files here: a directory with a model_index.json, or one file.

    Raises:
        ModelError: with what to do about it.
        packaged.Cancelled: `cancelled` said so; what came so far is kept for the next time.
    """
    if source.kind == "civitai":
        found = civitai.Checkpoint(**json.loads(source.location))
        return civitai.fetch(found, models_dir, progress, cancelled)
    if source.kind == "hub":
        repo, commit = source.location, source.revision or ""

        def needed(_repo: str, files: list[RepoFile]) -> list[RepoFile]:
            return choose(
                repo, files, _index(hub.parsed(repo, INDEX, commit, models_dir), repo), source.variant
            )

        # Of one commit there may be two choices: what was verified of one says nothing of the other.
        return hub.fetch(repo, commit, models_dir, progress, cancelled, needed, f"pipeline{source.variant}")
    path = Path(source.location)
    if not (path if path.is_file() else path / INDEX).is_file():
        raise ModelError(f"{path} is no pipeline any more.", _DIRECTORY_FIX)
    return path


def choose(repo: str, files: list[RepoFile], index: Mapping[str, Any], variant: str = "") -> list[RepoFile]:
    """The files that a pipeline needs: of each part its configuration and one set of weights.

    Repositories hold the same weights as .bin and .safetensors, in full and half precision, for other
    frameworks, and once more in one file at the top: of SDXL 7 of 72 GB are needed.

    Args:
        index: the parsed model_index.json: it names the parts.
        variant: the set that is wanted, where a part has it; else the plain one, else the only one.

    Raises:
        ModelError: a part has no weights although others have.
    """
    parts = {name for name, value in index.items() if isinstance(value, list) and value and value[0]}
    chosen: list[RepoFile] = [file for file in files if file.path == INDEX]
    weighted: set[str] = set()
    for part in sorted(parts):
        own = [file for file in files if PurePosixPath(file.path).parts[:-1] == (part,)]
        weights = _one_set([file for file in own if file.path.endswith(_WEIGHTS)], variant)
        kept = _variant(weights[0].path) if weights else ""
        for file in own:
            name = PurePosixPath(file.path).name
            if ".index." in name:  # the list of shards belongs to its own set of weights
                if (
                    weights
                    and f"{PurePosixPath(weights[0].path).suffix}.index" in name
                    and _of_variant(name, kept)
                ):
                    chosen.append(file)
            elif name.endswith(_CONFIGS):
                chosen.append(file)
        chosen += weights
        if weights:
            weighted.add(part)
    if not weighted:
        raise ModelError(f"{repo} holds no weights of its parts ({', '.join(sorted(parts)) or 'none'}).",
                         "Choose a repository in diffusers' format with safetensors files.")  # fmt: skip
    return chosen


def _one_set(files: list[RepoFile], variant: str) -> list[RepoFile]:
    """Of one part's weights: one format, one precision, all shards."""
    for suffix in _WEIGHTS:
        sets: dict[str, list[RepoFile]] = {}
        for file in files:
            if file.path.endswith(suffix) and not _other_framework(file.path):
                sets.setdefault(_variant(file.path), []).append(file)
        for wanted in dict.fromkeys((variant, "", *sorted(sets))):
            if wanted in sets:
                return sets[wanted]
    return []


def _other_framework(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.startswith(("flax_", "openvino_", "tf_")) or "non_ema" in name


def _variant(path: str) -> str:
    """`fp16` of `model.fp16-00001-of-00002.safetensors`; empty for plain weights."""
    middle = PurePosixPath(path).name.split(".")[1:-1]
    return middle[0].split("-")[0] if middle else ""


def _of_variant(name: str, variant: str) -> bool:
    """Whether a list of shards, such as `model.safetensors.index.fp16.json`, is of this set."""
    return name.rpartition(".index.")[2].removesuffix("json").strip(".") == variant


def _parts(headers: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, PartFacts]:
    found: dict[str, PartFacts] = {}
    for part, header in headers:
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        before = found.get(part, PartFacts(parameters=0, file_bytes=0))
        found[part] = PartFacts(
            parameters=before.parameters + sum(prod(tensor["shape"]) for tensor in tensors),
            file_bytes=before.file_bytes + data_end(header),
        )
    return found


def _index(parsed: Any, where: str) -> dict[str, Any]:
    if not isinstance(parsed, dict) or "_class_name" not in parsed:
        raise ModelError(f"{INDEX} of {where} does not say which pipeline it is of.", _DIRECTORY_FIX)
    return parsed


def _read(path: Path) -> Any:
    try:
        return completeness.read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", _DIRECTORY_FIX) from None
