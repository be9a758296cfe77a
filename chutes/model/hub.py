"""The Hugging Face Hub as an origin of models: commits, facts from a few kilobytes, verified downloads.

Layout under `models_dir`:

    hub/                    huggingface_hub's cache: blobs by hash, snapshots by commit
    verified/NAME-COMMIT    the files of a snapshot whose hashes were compared once
    facts/NAME-COMMIT       facts of a commit; a commit never changes, nor do they

`huggingface_hub` is imported inside the functions: it costs the command line half a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from chutes.exception import ModelError
from chutes.model import completeness, packaged
from chutes.model.facts import QUANTIZATION_FILE, ModelFacts
from chutes.model.files import RepoFile, choose, weight_files
from chutes.model.packaged import Cancelled
from chutes.model.safetensors import check_header

Progress = Callable[[str, int, int], None]

TIMEOUT_SECONDS = 10.0  # for an answer about a repository; a hub that needs longer is down

HEADER_THREADS = 16  # one small range request per weights file; big models have some two hundred files

FILE_THREADS = 4  # weights files are gigabytes each: more at once only share the same line

CHUNK = 4 << 20

_COMMIT = re.compile(r"^[0-9a-f]{40}$")


def resolve(repo: str, revision: str | None) -> str:
    """The commit that `revision` (default: the main branch) of `repo` is now.

    A full commit is taken as it is when the hub cannot be reached: its files may be here already.

    Raises:
        ModelError: no such repository or revision, no access, or the hub cannot be reached.
    """
    try:
        return _info(repo, revision).sha
    except HubUnreachable:
        if revision and _COMMIT.match(revision):
            return revision
        raise


def read_facts(repo: str, commit: str, models_dir: Path) -> ModelFacts:
    """Facts of the model at `commit`, from config.json and the headers of its safetensors files.

    Raises:
        ModelError: as `resolve`, or the repository holds no readable config.json.
    """
    # The number grows with ModelFacts: what an older release kept would lack fields and look complete.
    kept = models_dir / "facts" / f"{_flat(repo)}-{commit}.3.json"
    with suppress(OSError, ValueError):
        return ModelFacts.model_validate_json(kept.read_text())
    with _explained(repo, commit):
        files = [sibling.rfilename for sibling in _info(repo, commit).siblings or []]
        if "config.json" not in files:
            raise ModelError(
                f"{repo} holds no config.json, so it is not a model that an engine can load.",
                "Choose a repository in transformers format.",
            )
        config = parsed(repo, "config.json", commit, models_dir)
        quantized, index = (
            parsed(repo, name, commit, models_dir) if name in files else None
            for name in (QUANTIZATION_FILE, completeness.INDEX)
        )
        plain = ModelFacts.from_config(config, quantized)
        weights = weight_files(files)
        completeness.check_files(weights, index, repo)
        facts = plain.with_headers(headers(repo, commit, weights).values())
        completeness.check_size(plain, facts, repo)
    with suppress(OSError):  # not kept: asked again next time
        _write(kept, facts.model_dump_json())
    return facts


def fetch(
    repo: str,
    commit: str,
    models_dir: Path,
    progress: Progress,
    cancelled: Callable[[], bool] = lambda: False,
    needed: Callable[[str, list[RepoFile]], list[RepoFile]] = choose,
    choice: str = "",
) -> Path:
    """The files of `commit` that an engine needs, downloaded (resuming what is half here) and verified.

    Args:
        needed: which of the repository's files these are.
        choice: a name for `needed`, for the record of what has been verified.

    Returns:
        The snapshot's directory, or a .gguf file when the repository holds nothing else.

    Raises:
        ModelError: as `resolve`; too little disk; a file arrived damaged (it is removed).
        Cancelled: `cancelled` said so.
    """
    kept = models_dir / "verified" / f"{_flat(repo)}-{commit}{f'.{choice}' if choice else ''}.json"
    if found := _verified(kept, models_dir):
        return found
    with _explained(repo, commit):
        files = needed(repo, listing(repo, commit))
        _check_disk(repo, files, models_dir)
        folder = _download(repo, commit, files, models_dir, progress, cancelled)
        _verify(repo, folder, files, progress, cancelled)
    ggufs = [file.path for file in files if file.path.endswith(".gguf")]
    result = folder / ggufs[0] if ggufs else folder
    sizes = {file.path: file.size for file in files}
    places = {"folder": str(folder.relative_to(models_dir)), "result": str(result.relative_to(models_dir))}
    with suppress(OSError):  # not kept: the hashes are compared again next time
        _write(kept, json.dumps({**places, "files": sizes}))
    return result


def listing(repo: str, commit: str) -> list[RepoFile]:
    """Every file of `commit`.

    Raises:
        ModelError: as `resolve`.
    """
    return [
        RepoFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None, s.blob_id)
        for s in _info(repo, commit, files=True).siblings or []
    ]


def headers(repo: str, commit: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """The headers of safetensors files of `commit`, by name.

    Raises:
        ModelError: as `resolve`, or a file is no safetensors file.
    """
    with _explained(repo, commit), ThreadPoolExecutor(HEADER_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _header(repo, commit, name), names), strict=True))


def parsed(repo: str, name: str, commit: str, models_dir: Path) -> Any:
    """A JSON file of `commit`.

    Raises:
        ModelError: as `resolve`, there is no such file, or it is not JSON.
    """
    from huggingface_hub import hf_hub_download

    with _explained(repo, commit):
        path = Path(hf_hub_download(repo, name, **_place(commit, models_dir)))
    try:
        return completeness.read_json(path)
    except ValueError as error:
        raise ModelError(
            f"{name} of {repo} is not JSON: {error}.", "Report it to the model's owner."
        ) from None


# ------------------------------------------------------------------------------------------------ the hub


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint(), token=_token())


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _token() -> str | None:
    return os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or None


def _info(repo: str, revision: str | None, files: bool = False) -> Any:
    with _explained(repo, revision):
        return _api().model_info(repo, revision=revision, timeout=TIMEOUT_SECONDS, files_metadata=files)


def _place(commit: str, models_dir: Path) -> dict[str, Any]:
    return {
        "revision": commit,
        "cache_dir": models_dir / "hub",
        "endpoint": _endpoint(),
        "token": _token(),
        "etag_timeout": TIMEOUT_SECONDS,
    }


def _header(repo: str, commit: str, name: str) -> dict[str, Any]:
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        parsed = _api().parse_safetensors_file_metadata(repo, name, revision=commit)
    except (SafetensorsParsingError, RecursionError, KeyError, TypeError):
        raise ModelError(
            f"The header of {name} of {repo} does not describe tensors.", "Report it to the model's owner."
        ) from None
    header = {
        tensor: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
        for tensor, info in parsed.tensors.items()
    }
    check_header(header, f"{name} of {repo}")
    return header


def _download(
    repo: str,
    commit: str,
    files: list[RepoFile],
    models_dir: Path,
    progress: Progress,
    cancelled: Callable[[], bool],
) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm

    total, lock = sum(file.size for file in files), threading.Lock()
    done = dict.fromkeys((file.path for file in files), 0)

    def tell(path: str, value: int) -> None:
        if cancelled():
            raise Cancelled
        with lock:
            done[path] = value
            progress(f"downloading {repo}", min(sum(done.values()), total), total)

    def one(file: RepoFile) -> Path:
        class Bar(tqdm):  # the library reports bytes to a progress bar and to nothing else
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                tell(file.path, int(kwargs.get("initial") or 0))
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n: float | None = 1) -> None:
                tell(file.path, done[file.path] + int(n or 0))

        tell(file.path, 0)
        path = Path(hf_hub_download(repo, file.path, tqdm_class=Bar, **_place(commit, models_dir)))
        tell(file.path, file.size)  # a file that was here already moves no bar
        return path

    with ThreadPoolExecutor(FILE_THREADS) as pool:
        paths = [pool.submit(one, file) for file in files]
        try:
            results = [future.result() for future in paths]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results[0].parents[len(Path(files[0].path).parts) - 1]


def _verify(
    repo: str, folder: Path, files: list[RepoFile], progress: Progress, cancelled: Callable[[], bool]
) -> None:
    """Compare every file with its hash; the hub's library compares sizes alone."""
    total, done = sum(file.size for file in files), 0
    for file in files:
        path = folder / file.path
        digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)
        with path.open("rb") as data:
            while chunk := data.read(CHUNK):
                if cancelled():
                    raise Cancelled
                digest.update(chunk)
                done += len(chunk)
                progress(f"verifying {repo}", min(done, total), total)
        expected = file.sha256 or file.sha1
        if path.stat().st_size != file.size or (expected and digest.hexdigest() != expected):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise ModelError(
                f"{file.path} of {repo} arrived damaged (its hash is not the hub's); it was removed.",
                "Deploy again: only this file is fetched anew.",
            )


def _verified(kept: Path, models_dir: Path) -> Path | None:
    """What an earlier fetch returned, when all its files are still there in full."""
    with suppress(OSError, ValueError, KeyError):
        record = json.loads(kept.read_text())
        folder = models_dir / record["folder"]
        if all((folder / path).stat().st_size == size for path, size in record["files"].items()):
            return models_dir / record["result"]
    return None


def _check_disk(repo: str, files: list[RepoFile], models_dir: Path) -> None:
    models_dir.mkdir(parents=True, exist_ok=True)
    cache = models_dir / "hub" / f"models--{_flat(repo)}" / "blobs"
    blobs = {path.name for path in cache.iterdir()} if cache.is_dir() else set()
    # Blobs are named by their hash: one of another revision is no file of this one.
    needed = sum(file.size for file in files if (file.sha256 or file.sha1) not in blobs)
    free = shutil.disk_usage(models_dir).free
    if needed > free:
        raise ModelError(
            f"{repo} needs {needed / 1e9:.1f} GB of disk; {free / 1e9:.1f} GB are available at {models_dir}.",
            "Set CHUTES_CACHE to a directory on a larger disk.",
        )


def _flat(repo: str) -> str:
    return repo.replace("/", "--")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{os.getpid()}")
    written.write_text(text)
    written.replace(path)


# ------------------------------------------------------------------------------------------------ its errors


class HubUnreachable(ModelError):
    """Nothing, or nothing sensible, answers at the hub's address."""

    status = 503


class _explained:  # noqa: N801 (used like a function)
    """Turns whatever huggingface_hub raises into a ModelError that names the fix."""

    def __init__(self, repo: str, revision: str | None) -> None:
        self.repo, self.revision = repo, revision

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, (ModelError, Cancelled)):
            raise _explain(error, self.repo, self.revision) from None


def _explain(error: Exception, repo: str, revision: str | None) -> ModelError:
    from huggingface_hub import errors

    # The library wraps "no answer" into "not in the cache"; the cause says which it was.
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
    real = cause if isinstance(cause, Exception) else error
    status = getattr(getattr(real, "response", None), "status_code", None)
    token = "The token in HF_TOKEN" if _token() else "No token was sent (HF_TOKEN is not set), which"
    page = f"{_endpoint() or 'https://huggingface.co'}/{repo}"
    if isinstance(real, errors.GatedRepoError) or status == 403:
        return ModelError(
            f"{repo} is gated. {token} gives no access to it.",
            f"Accept its terms at {page} and set HF_TOKEN to a token of that account.",
        )
    if isinstance(real, errors.RevisionNotFoundError):
        return ModelError(f"{repo} has no revision {revision!r}.", f"See {page}/commits/main.")
    if isinstance(real, errors.RepositoryNotFoundError) or status == 401:
        secret = "" if status == 404 else f", or is private. {token} gives no access to it"
        return ModelError(
            f"The hub has no model {repo}{secret}.",
            "Check the spelling"
            + ("" if status == 404 else "; for a private model set HF_TOKEN to a token that may read it")
            + f". Models that need no hub: {', '.join(packaged.MODELS)}.",
        )
    if isinstance(real, errors.EntryNotFoundError) and status == 404:
        return ModelError(f"A file of {repo} at {revision} is missing on the hub.", f"See {page}/tree/main.")
    if isinstance(real, OSError) and real.errno is not None and status is None:
        return ModelError(
            f"Files of {repo} cannot be written: {real}.", "Set CHUTES_CACHE to a directory with room."
        )
    what = f"it answered with status {status}" if status else f"{type(real).__name__}: {str(real)[:200]}"
    return HubUnreachable(
        f"The model hub at {_endpoint() or 'https://huggingface.co'} cannot be reached for {repo} ({what}).",
        "Check the network (HF_ENDPOINT and HF_HUB_OFFLINE count), or name a local directory as model, or "
        f"one that needs no hub: {', '.join(packaged.MODELS)}.",
    )
