"""Facts of well-known models, shipped with the package: planning needs no network for them.

catalogue.json holds, for each model, the fields of its config.json that decide its memory, and what its
checkpoint holds: parameters and bytes, stored and loaded. `checked`: the bytes agree with a published size
of the files. `exact`: no field had to be assumed. Models without a config are pipelines of several parts.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from chutes.model.facts import ModelFacts

_FILE = Path(__file__).with_name("catalogue.json")

SOURCE = "catalogue"

# The published platform serves some models in confidential machines under this suffix; source.base_name.
_PLATFORM_SUFFIX = "-tee"


def names() -> list[str]:
    """Every model of the catalogue, as `org/name`."""
    return list(_entries())


def canonical(name: str) -> str | None:
    """The catalogue's own spelling of `name`; case does not matter, nor does a missing organisation."""
    wanted = name.strip().lower().removesuffix(_PLATFORM_SUFFIX)
    for known in _entries():
        if wanted in (known.lower(), known.lower().split("/")[1]):
            return known
    return None


def find(name: str) -> ModelFacts | None:
    """A model's facts; case does not matter, nor does a missing organisation or the suffix `-TEE`."""
    known = canonical(name)
    if known is None:
        return None
    entry = _entries()[known]
    config = entry.get("config")
    if config is None:
        facts = ModelFacts(dtype=entry["dtype"], attention="none")
    else:
        facts = ModelFacts.from_config(config)
    size = entry["loaded_bytes"]
    return facts.model_copy(
        update={
            "parameters": entry["parameters"],
            "weights_bytes": entry["weights_bytes"],
            "loaded_parameters": entry["loaded_parameters"],
            "loaded_bytes": size,
            "active_parameters": facts.active_parameters or entry["loaded_parameters"],
            "replicated_bytes": facts.replicated_bytes or 0,
            "expert_bytes": facts.expert_bytes or 0,
            "embedding_bytes": facts.embedding_bytes or 0,
            "unsized": "",
            "vision": facts.vision or entry.get("vision", False),
            "bytes_source": SOURCE if entry["exact"] else f"{SOURCE}, partly assumed",
        }
    )


@cache
def _entries() -> dict[str, dict[str, Any]]:
    return json.loads(_FILE.read_text())
