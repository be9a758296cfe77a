"""Snapshots of chutes' files, as long as a deployment or a job needs them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection

from chutes.chute import bundle
from chutes.chute.spec import ChuteSpec
from chutes.config import Config
from chutes.engine.python import bundle_path
from chutes.exception import InvalidSpec, NotFound

# A snapshot is sent before the deploy that names it, which may ask a person first.
UNUSED_SECONDS = 3600.0


def save(config: Config, data: bytes, expected: str) -> str:
    """Keep a snapshot; its digest.

    Raises:
        InvalidSpec: it is not what it says it is, or nothing that could be unpacked.
    """
    found = bundle.digest(data)
    if found != expected:
        raise InvalidSpec(f"The snapshot arrived as {found[:12]}, not as {expected[:12]}.", "Send it again.")
    path = bundle_path(config, found)
    if not path.exists():
        bundle.unpack(data, None)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.partial")
        draft.write_bytes(data)
        draft.replace(path)
    path.touch()  # it is wanted again: its hour begins anew
    return found


def require(config: Config, spec: ChuteSpec) -> None:
    """Raises InvalidSpec or NotFound unless the files of a chute are here."""
    if not spec.bundle:
        raise InvalidSpec(
            f"Chute {spec.name!r} is its author's own code, and its files did not come with it.",
            "`chutes deploy` sends them.",
        )
    if len(spec.bundle) != 64 or not spec.bundle.isalnum() or not bundle_path(config, spec.bundle).is_file():
        raise NotFound(
            f"There is no snapshot {spec.bundle[:12]!r} of the files of chute {spec.name!r}.",
            "`chutes deploy` sends it; by hand: POST /bundles.",
        )


def drop_unused(config: Config, used: Collection[str]) -> None:
    limit = time.time() - UNUSED_SECONDS
    for path in config.bundles.glob("*"):
        with contextlib.suppress(OSError):
            if path.name.partition(".")[0] not in used and path.stat().st_mtime < limit:
                path.unlink()
