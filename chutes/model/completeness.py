"""Whether all weights files of a model are there: one of seventeen would be planned as a tiny model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chutes.exception import ModelError
from chutes.model.facts import ModelFacts

INDEX = "model.safetensors.index.json"

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5,})-of-(?P<count>\d{5,})\.safetensors")

_MOST_SHARDS = 10_000  # more than any model has; a wrong number would be counted up to otherwise

# Of what config.json means. Half as many bytes may be a format that it forgot to mention.
_TOO_LITTLE = 0.4

_FETCH = "Fetch the model again; downloads resume. With config.json alone it is planned by arithmetic."


def read_json(path: Path) -> Any:
    """A parsed JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or nested deeper than a parser follows.
    """
    try:
        return json.loads(path.read_text())
    except RecursionError:
        raise ValueError("it is nested deeper than any configuration") from None


def check_files(names: Iterable[str], index: Any, where: str) -> None:
    """Refuse a set of weights files that lacks some.

    Args:
        names: the safetensors files that are there; none at all is no error.
        index: the parsed INDEX, or None.

    Raises:
        ModelError: naming the first that is missing.
    """
    have = set(names)
    if not have:
        return
    missing = sorted((_numbered(have) | _indexed(index, where)) - have)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{where} holds {len(have)} weights file{'s' if len(have) > 1 else ''}; {missing[0]}{more} "
            f"{'are' if more else 'is'} missing.",
            _FETCH,
        )


def check_size(by_config: ModelFacts, by_headers: ModelFacts, where: str) -> None:
    """Refuse weights files that hold far less than config.json means.

    Raises:
        ModelError: naming both sizes.
    """
    meant, found = by_config.loaded_bytes, by_headers.weights_bytes
    if meant and found and found < _TOO_LITTLE * meant:
        raise ModelError(
            f"The weights files of {where} hold {_gigabytes(found)}, and config.json means a model of "
            f"{_gigabytes(meant)}: files are missing, or config.json is another model's.",
            _FETCH,
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size:,} bytes"


def _numbered(have: Iterable[str]) -> set[str]:
    """What the numbers in the files' names say there must be."""
    wanted: set[str] = set()
    for match in filter(None, (_SHARD.fullmatch(name) for name in have)):
        stem, count, width = match["stem"], match["count"], len(match["number"])
        if int(count) <= _MOST_SHARDS:
            wanted |= {
                f"{stem}-{number:0{width}}-of-{count}.safetensors" for number in range(1, int(count) + 1)
            }
    return wanted


def _indexed(index: Any, where: str) -> set[str]:
    if index is None:
        return set()
    files = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(files, Mapping) or not all(isinstance(file, str) for file in files.values()):
        raise ModelError(f"{INDEX} of {where} has no weight_map from tensors to files.", _FETCH)
    return set(files.values())
