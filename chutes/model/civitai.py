"""civitai.com as an origin of checkpoints: one .safetensors file per version, with its SHA-256.

API: https://developer.civitai.com/site/reference/model-versions. `CIVITAI_ENDPOINT` stands in for the site (a
mirror, a test); `CIVITAI_API_TOKEN` is sent where models ask for an account.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urljoin, urlparse

from chutes.exception import ModelError
from chutes.model.packaged import Cancelled

Progress = Callable[[str, int, int], None]

SITE = "https://civitai.com"
TIMEOUT_SECONDS = 20.0  # for the first bytes of an answer, and between two parts of a file
CHUNK = 4 << 20
MOST_BYTES = 100 * 10**9  # the largest checkpoints in one file have some 50 GB
MOST_REDIRECTS = 5  # a download is redirected once, to where files are kept
LOCK_SECONDS = 0.5


@dataclass(frozen=True)
class Checkpoint:
    """One version's file."""

    version: int
    name: str
    """As the site names it; never a path."""
    size: int
    """Bytes, rounded: the site tells KiB."""
    sha256: str
    """Lower case; empty where the site tells none."""
    url: str
    half: bool
    """Weights of two bytes each."""

    @property
    def file(self) -> str:
        """Where it is kept, relative to the directory of models."""
        return f"civitai/{self.version}/{self.name}"


def is_page(text: str) -> bool:
    return text.startswith(("https://", "http://"))


def find(url: str, version: str | None) -> Checkpoint:
    """The checkpoint that a page of the site means.

    Args:
        url: of a model (the newest version counts, or the one in `modelVersionId`), of a version, or of its
            download.
        version: number of the version; goes before what the URL says.

    Raises:
        ModelError: another site, no such model, no checkpoint in safetensors among its files, no answer.
    """
    number = int(version) if version and version.isdecimal() else None
    if version and number is None:
        raise ModelError(
            f"version {version!r} is no number.", "It is in the page's URL: ?modelVersionId=123."
        )
    number = number or _version_in(url)
    if number is None:
        model = re.match(r"/models/(\d+)", urlparse(url).path)
        if model is None:
            raise ModelError(f"{url} is no model's page.", f"Such a page is {SITE}/models/NUMBER.")
        versions = _get(f"/api/v1/models/{model[1]}").get("modelVersions") or []
        if not versions:
            raise ModelError(f"{url} has no version that could be fetched.", "Choose another model.")
        number = int(versions[0]["id"])
    return _checkpoint(_get(f"/api/v1/model-versions/{number}"), number)


def _version_in(url: str) -> int | None:
    parts = urlparse(url)
    if (parts.hostname or "").removeprefix("www.") != "civitai.com" or parts.scheme != "https":
        raise ModelError(f"{url} is not a page of {SITE}.", "Fetch the file and name its path.")
    found = re.match(r"/(?:api/download/models|api/v1/model-versions|model-versions)/(\d+)", parts.path)
    text = found[1] if found else (parse_qs(parts.query).get("modelVersionId") or [""])[0]
    return int(text) if text.isdecimal() else None


def _checkpoint(answer: dict[str, Any], number: int) -> Checkpoint:
    files = [
        file
        for file in answer.get("files") or []
        if file.get("type") in ("Model", "Pruned Model")
        and str(file.get("name", "")).endswith(".safetensors")
    ]
    if not files:
        raise ModelError(
            f"Version {number} on {SITE} has no checkpoint in safetensors.",
            "Other formats may run code when they are read: choose a version that has one.",
        )
    file = max(files, key=lambda one: bool(one.get("primary")))
    name = re.sub(r"[^\w.-]", "_", str(file["name"])).lstrip(".") or "model.safetensors"
    size = int(float(file.get("sizeKB") or 0) * 1024)
    if size > MOST_BYTES:
        raise ModelError(f"{name} has {size / 1e9:.0f} GB; at most {MOST_BYTES / 1e9:.0f} GB are fetched.")
    return Checkpoint(
        version=number,
        name=name,
        size=size,
        sha256=str((file.get("hashes") or {}).get("SHA256") or "").lower(),
        url=str(file.get("downloadUrl") or f"{SITE}/api/download/models/{number}"),
        half=str((file.get("metadata") or {}).get("fp") or "fp16") != "fp32",
    )


def fetch(
    checkpoint: Checkpoint,
    models_dir: Path,
    progress: Progress,
    cancelled: Callable[[], bool] = lambda: False,
) -> Path:
    """The file, downloaded (resuming what is half here) and compared with its checksum.

    Raises:
        ModelError: no answer, no access, another file than was announced, no room.
        Cancelled: `cancelled` said so; what came so far is kept for the next time.
    """
    target = models_dir / checkpoint.file
    if target.is_file():
        return target
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as file, _exclusive(file, cancelled):
            if target.is_file():  # another process has just fetched it
                return target
            _download(checkpoint, file, progress, cancelled)
        _verify(checkpoint, partial, progress, cancelled)
        partial.replace(target)
    except OSError as error:
        raise ModelError(
            f"{checkpoint.name} cannot be kept at {target.parent}: {error}.",
            "Free some disk, or set CHUTES_CACHE to a directory on a larger one that you may write.",
        ) from None
    return target


def _download(
    checkpoint: Checkpoint, file: IO[bytes], progress: Progress, cancelled: Callable[[], bool]
) -> None:
    what = f"downloading {checkpoint.name}"
    # Rounded to KiB by the site: a little more than announced is not yet another file.
    most = (checkpoint.size or MOST_BYTES) + 1024
    done = file.tell()
    plain = {"Accept-Encoding": "identity"}
    with _opened(checkpoint.url, {**plain, "Range": f"bytes={done}-"} if done else plain) as response:
        if response.status_code == 416:  # all of it is here already
            return
        if response.status_code == 200 and done:  # the server does not resume
            file.truncate(0)
            done = 0
        for part in response.iter_raw():  # as it comes: what is gathered first would be lost with the line
            if cancelled():
                raise Cancelled
            done += len(part)
            if done > most:
                file.truncate(0)
                raise ModelError(
                    f"{checkpoint.name} is longer than the {most} bytes that were announced.",
                    "Do not use it, and report it to the site.",
                )
            file.write(part)
            progress(what, min(done, checkpoint.size or done), checkpoint.size)


def _verify(checkpoint: Checkpoint, path: Path, progress: Progress, cancelled: Callable[[], bool]) -> None:
    if not checkpoint.sha256:
        return
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as data:
        while chunk := data.read(CHUNK):
            if cancelled():
                raise Cancelled
            digest.update(chunk)
            done += len(chunk)
            progress(f"verifying {checkpoint.name}", done, checkpoint.size)
    if digest.hexdigest() != checkpoint.sha256:
        path.unlink()
        raise ModelError(
            f"{checkpoint.name} arrived damaged (its hash is not the site's); it was removed.",
            "Deploy again: it is fetched anew.",
        )


def _endpoint() -> str:
    return (os.environ.get("CIVITAI_ENDPOINT") or SITE).rstrip("/")


def _get(path: str) -> dict[str, Any]:
    with _opened(_endpoint() + path, {}) as response:
        response.read()
        try:
            answer = response.json()
        except ValueError:
            answer = None
    if not isinstance(answer, dict):
        raise ModelError(f"{_endpoint()}{path} answered with what is no JSON object.", "Try again later.")
    return answer


@contextmanager
def _opened(url: str, headers: dict[str, str]):
    """An answer to read from. The token goes to the site alone, not to where it redirects."""
    import httpx2  # it costs the command line a tenth of a second

    endpoint = urlparse(_endpoint())
    url = url.replace(SITE, _endpoint(), 1) if url.startswith(SITE) else url
    token = os.environ.get("CIVITAI_API_TOKEN")
    try:
        with httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client:
            for _ in range(MOST_REDIRECTS):
                parts = urlparse(url)
                ours = (parts.scheme, parts.netloc) == (endpoint.scheme, endpoint.netloc)
                if not ours and parts.scheme != "https":
                    raise ModelError(
                        f"{_endpoint()} sends us to {parts.scheme}://{parts.netloc}: not over TLS."
                    )
                sent = {**headers, **({"Authorization": f"Bearer {token}"} if token and ours else {})}
                with client.stream("GET", url, headers=sent) as response:
                    if response.status_code in (301, 302, 303, 307, 308):
                        url = urljoin(url, response.headers["location"])
                        continue
                    _check(response.status_code, url)
                    yield response
                    return
    except httpx2.HTTPError as error:
        raise ModelError(
            f"{_endpoint()} cannot be reached ({type(error).__name__}: {str(error)[:200]}).",
            "Check the network; what came so far is kept. Or fetch the file otherwise and name its path.",
        ) from None
    raise ModelError(f"{_endpoint()} redirects more than {MOST_REDIRECTS} times.", "Try again later.")


def _check(status: int, url: str) -> None:
    if status in (401, 403):
        raise ModelError(
            f"{SITE} gives no access to {urlparse(url).path} (status {status}).",
            "Set CIVITAI_API_TOKEN to a token of an account that may download it.",
        )
    if status == 404:
        raise ModelError(f"{SITE} has no {urlparse(url).path}.", "Check the page's URL.")
    if status not in (200, 206, 416):
        raise ModelError(f"{SITE} answered {urlparse(url).path} with status {status}.", "Try again later.")


@contextmanager
def _exclusive(file: IO[bytes], cancelled: Callable[[], bool]):
    """Hold a file that two instances may both be fetching."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if cancelled():
                raise Cancelled from None
            time.sleep(LOCK_SECONDS)
    yield
