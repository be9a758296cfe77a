"""Where a model's files come from: the hub, a directory here, or a Python package.

`resolve` decides it once, when a chute is deployed, and pins what it found; `read_facts` and `fetch` then
work on the pinned source, so that a restart months later serves the same weights.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from pydantic import BaseModel, ConfigDict

from chutes.exception import ModelError
from chutes.model import completeness, hub, packaged
from chutes.model.facts import QUANTIZATION_FILE, ModelFacts
from chutes.model.files import weight_files
from chutes.model.safetensors import safetensors_header

Progress = Callable[[str, int, int], None]
"""(what is being done, done, total) in bytes; total 0 means unknown"""

_TEE = re.compile(r"-TEE$", re.IGNORECASE)  # "trusted execution environment"

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


class NotAName(ModelError):
    """What was given can be neither an id of the hub nor a path."""


class ModelSource(BaseModel):
    """Pinned origin of one model's files."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["hub", "directory", "package", "file", "civitai"]
    name: str
    """As the author wrote it."""
    revision: str | None
    """Commit for the hub, `package==version` for a package, version for civitai, None for what is here."""
    location: str
    """Repository id, absolute path, `package==version:member`, or what `civitai.Checkpoint` holds."""
    note: str
    """One line for a person."""
    layout: Literal["model", "pipeline"] = "model"
    """One model, or several that draw together: `pipelines` knows those."""
    variant: str = ""
    """Of a pipeline: which of several sets of weights, e.g. `fp16`; empty: the plain one."""


def base_name(name: str) -> str:
    """The model that a name of the published platform means: `-TEE` there says how it is served."""
    return _TEE.sub("", name) if not _is_path(name) else name


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", "file://")) or name in (".", "..")


def resolve(name: str, revision: str | None = None) -> ModelSource:
    """Find out what `name` means.

    A path (absolute, or beginning with `./`, `../`, `~` or `file://`) is a directory here. A name in the
    packaged table, without a revision, is a package. Everything else is a hub id, whose revision (default:
    the main branch) is resolved to a commit; where the hub cannot be asked a full commit is taken as it is.

    Raises:
        ModelError: no such directory or repository, no access, hub unreachable, or a name that is neither.
    """
    if _is_path(name):
        return _directory(name, revision)
    if (base := base_name(name)) != name:
        found = resolve(base, revision)
        return found.model_copy(update={"name": name, "note": f"{tee_note(base)}; {found.note}"})
    if revision is None and (model := packaged.MODELS.get(name)):
        package, version = model.requirement.split("==")
        return ModelSource(
            kind="package",
            name=name,
            revision=model.requirement,
            location=f"{model.requirement}:{model.member}",
            note=f"PyPI package {package} {version} ({model.about})",
        )
    if not _HUB_NAME.match(name) or ".." in name or "--" in name:
        hint = f" {Path(name).absolute()} is a directory." if Path(name).is_dir() else ""
        raise NotAName(
            f"{name!r} is not a model's name.{hint}",
            f"Write `organisation/model` for the hub, or a path such as ./{name} for a directory.",
        )
    commit = hub.resolve(name, revision)
    return ModelSource(
        kind="hub",
        name=name,
        revision=commit,
        location=name,
        note=f"Hugging Face Hub, {name} at commit {commit[:12]}",
    )


def read_facts(source: ModelSource, models_dir: Path) -> ModelFacts:
    """The facts of the model, without downloading weights.

    Raises:
        ModelError: config.json is missing or wrong, a weights file is damaged, or the hub cannot be asked.
    """
    if source.kind == "package":
        return _packaged(source).facts
    if source.kind == "hub":
        return hub.read_facts(source.location, source.revision or "", models_dir)
    directory = Path(source.location)
    return directory_facts(directory)


def directory_facts(directory: Path) -> ModelFacts:
    """The facts of the model in a local directory: config.json and every safetensors header.

    Without any weights file the facts are what config.json means.

    Raises:
        ModelError: config.json is missing or wrong, or weights files are damaged or missing.
    """
    facts = ModelFacts.from_config(
        _parsed(directory / "config.json"), _parsed(directory / QUANTIZATION_FILE, optional=True)
    )
    names = weight_files(path.name for path in directory.glob("*.safetensors"))
    index = _parsed(directory / completeness.INDEX, optional=True)
    completeness.check_files(names, index, str(directory))
    found = facts.with_headers(safetensors_header(directory / name) for name in names)
    completeness.check_size(facts, found, str(directory))
    return found


def _parsed(path: Path, *, optional: bool = False) -> Any:
    if optional and not path.is_file():
        return None
    try:
        return completeness.read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", _DIRECTORY_FIX) from None


def fetch(
    source: ModelSource,
    models_dir: Path,
    progress: Progress,
    cancelled: Callable[[], bool] = lambda: False,
) -> Path:
    """Bring the model's files here; blocking, for minutes or hours the first time.

    Returns:
        A directory that an engine can load, or a .gguf file that the engine's environment must convert.

    Raises:
        ModelError: with what to do about it.
        packaged.Cancelled: `cancelled` said so; what came so far is kept for the next time.
    """
    if source.layout == "pipeline":
        from chutes.model import pipelines  # it builds on this module

        return pipelines.fetch(source, models_dir, progress, cancelled)
    if source.kind == "package":
        return packaged.fetch(_packaged(source), models_dir, progress, cancelled)
    if source.kind == "hub":
        return hub.fetch(source.location, source.revision or "", models_dir, progress, cancelled)
    directory = Path(source.location)
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} holds no config.json any more.", _DIRECTORY_FIX)
    return directory


_DIRECTORY_FIX = (
    "The directory must hold a model as `save_pretrained` writes it: config.json, weights, tokenizer."
)


def tee_note(base: str) -> str:
    return f"{base} (-TEE says how a model is served, not which)"


def _directory(name: str, revision: str | None) -> ModelSource:
    text = unquote(urlparse(name).path) if name.startswith("file://") else name
    path = Path(text).expanduser().absolute()
    if revision is not None:
        raise ModelError(
            f"A directory has no revisions, and {revision!r} was asked of {path}.", "Take the revision out."
        )
    if path.is_file():
        gguf = path.suffix == ".gguf"
        fix = _GGUF_FIX if gguf else f"Give the directory that holds it: {path.parent}"
        raise ModelError(f"{path} is a file, and a model is a directory.", fix)
    if not path.is_dir():
        raise ModelError(f"There is no directory {path}.", "Check the path that was given as the model.")
    if not (path / "config.json").is_file():
        raise ModelError(*_what_else(path))
    return ModelSource(
        kind="directory", name=name, revision=None, location=str(path), note=f"local directory {path}"
    )


_GGUF_FIX = "Take the model that it was made from, in safetensors, as a hub id or a directory."


def _what_else(path: Path) -> tuple[str, str]:
    """(What a directory without config.json holds instead, what to do)."""
    adapter = path / "adapter_config.json"
    if adapter.is_file():
        base = ""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            base = str(json.loads(adapter.read_text()).get("base_model_name_or_path") or "")
        return (
            f"{path} holds an adapter (LoRA), which is loaded beside a model, and no model.",
            f"Plan the model that it was made for{f': {base}' if base else ''}.",
        )
    if any(path.glob("*.gguf")):
        return f"{path} holds GGUF files and no config.json.", _GGUF_FIX
    return f"{path} holds no config.json.", _DIRECTORY_FIX


def _packaged(source: ModelSource) -> packaged.PackagedModel:
    for model in packaged.MODELS.values():
        if source.location == f"{model.requirement}:{model.member}":
            return model
    raise ModelError(
        f"{source.location} is not among the packaged models of this version of chutes.",
        "Deploy the chute again.",
    )
