"""Which files of a repository or a directory are a model's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from chutes.exception import ModelError

# Never needed by an engine: other frameworks' weights, the maker's own format, pictures.
_USELESS = (
    *("*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.tflite", "*.ot", "*.mlmodel", "*.pb", "*.npz"),
    *("onnx/*", "openvino/*", "coreml/*", "original/*", "metal/*", "*.mlpackage/*"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.mp4", "*.pdf", ".gitattributes", "*.md"),
)


@dataclass(frozen=True)
class RepoFile:
    """One file of a commit: `sha256` for large files, else `sha1` of git's blob."""

    path: str
    size: int
    sha256: str | None
    sha1: str | None


def weight_files(names: Iterable[str]) -> list[str]:
    """Which safetensors files an engine loads: those at the top, and of two complete sets only one."""
    top = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    # consolidated*.safetensors is the same weights again, in the maker's own layout.
    return [name for name in top if name.startswith("model")] or [
        name for name in top if not name.startswith("consolidated")
    ] or top  # fmt: skip


def choose(repo: str, files: list[RepoFile]) -> list[RepoFile]:
    """The files to fetch: one set of weights (safetensors, else .bin, else .gguf) and what is not weights.

    Raises:
        ModelError: there are no weights, or only several GGUF files of which one would have to be chosen.
    """
    useful = [f for f in files if not any(fnmatchcase(f.path.lower(), pattern) for pattern in _USELESS)]
    kinds = (".safetensors", ".bin", ".gguf", ".pth", ".pt")
    rest = [f for f in useful if not f.path.endswith(kinds)]
    wanted = set(weight_files(f.path for f in useful))
    if weights := [f for f in useful if f.path in wanted]:
        return rest + weights
    for kind in (".safetensors", ".bin"):
        if weights := [
            f for f in useful if f.path.endswith(kind) and not f.path.endswith("training_args.bin")
        ]:
            return rest + weights
    ggufs = [f for f in useful if f.path.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise ModelError(
            f"{repo} holds {len(ggufs)} GGUF files and no safetensors.",
            "Use the repository that these were made from, or a local directory with one model.",
        )
    raise ModelError(f"{repo} holds no weights.", "Choose a repository with safetensors files.")
