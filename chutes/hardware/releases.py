"""How releases of an engine differ: the part `releases` of hardware_profiles.yaml, as data."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from chutes.exception import InvalidSpec


def parse(version: str) -> tuple[int, int, int]:
    """(major, minor, patch) of `0.11.1rc2`.

    Raises:
        InvalidSpec: that is no version.
    """
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version.strip())
    if not found:
        raise InvalidSpec(
            f"{version!r} is not a version of an engine.", "Write it as its release is called: 0.32.0"
        )
    return int(found[1]), int(found[2]), int(found[3] or 0)


ENGINES = ("vllm", "sglang")
"""Engines whose memory rule and arguments are known here."""

SparseMla = Literal["packed", "plain", "always"]
"""How kernels for sparse MLA keep an 8-bit cache: in blobs of 656 bytes a token (`packed`), as 8-bit numbers
(`plain`), or in those blobs even when no 8-bit cache was asked for (`always`)."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def checked_version(text: str) -> str:
    """The same, for a field of the profiles: pydantic tells where a ValueError came from."""
    try:
        parse(text)
    except InvalidSpec as error:
        raise ValueError(error.message) from None
    return text


class BatchClass(_Strict):
    """What GPUs of some size are given when no batch is asked for."""

    from_gib: float = Field(ge=0)
    """The smallest memory of this class, as CUDA counts."""
    not_named: list[str] = []
    """Parts of product names, in small letters, of GPUs that are not of this class."""
    max_num_batched_tokens: int = Field(ge=1)
    max_num_seqs: int = Field(ge=1)


class SecondRunner(_Strict):
    """vLLM's second model runner (v1/worker/gpu): which models it has unasked, and what is different then."""

    models: Literal["none", "listed", "dense", "all"] = "none"
    """`dense`: every model without experts or linear layers, and those listed."""
    architectures: list[str] = []
    listed_only_plain: bool = False
    """Whether those listed are run by it only without experts and quantisation."""
    sampler_bytes: float = Field(default=0, ge=0)
    cuda_graphs_estimated: bool = False
    """Whether it can tell before the KV cache is sized what its graphs will take; where not, nothing is
    subtracted for them."""


class Rules(_Strict):
    """What changed with one release. A field that is not set is as it was in the release before."""

    since: str
    """The first release that does so."""
    default_utilization: float | None = Field(default=None, gt=0, le=1)
    cuda_graphs_subtracted: bool | None = None
    cuda_graph_gib: float | None = Field(default=None, ge=0)
    cuda_graph_most_gib: float | None = Field(default=None, ge=0)
    token_count: Literal["blocks", "concurrency"] | None = None
    in_flight_batches: int | None = Field(default=None, ge=1, le=8)
    null_block: bool | None = None
    hybrid_prefix_caching: bool | None = None
    prefill_checkpoints: bool | None = None
    hybrid_with_chunks: bool | None = None
    one_item_tokens: dict[str, int] | None = None
    sparse_mla: dict[int, SparseMla] | None = None
    fp8_cache_unasked: list[str] | None = None
    sampler_bytes: float | None = Field(default=None, ge=0)
    batches: list[BatchClass] | None = Field(default=None, min_length=1)
    second_runner: SecondRunner | None = None

    @field_validator("since")
    @classmethod
    def _version(cls, text: str) -> str:
        return checked_version(text)


class Releases(_Strict):
    """All that is known of one engine's releases."""

    read_up_to: str
    """The newest release whose source was read: what an empty version means."""

    rules: list[Rules] = Field(min_length=1)

    @field_validator("read_up_to")
    @classmethod
    def _version(cls, text: str) -> str:
        return checked_version(text)

    @model_validator(mode="after")
    def _ordered_and_complete(self) -> Releases:
        versions = [parse(one.since) for one in self.rules]
        if versions != sorted(set(versions)):
            raise ValueError("rules must be ordered by `since`, each release once")
        missing = sorted(set(Rules.model_fields) - self.rules[0].model_fields_set)
        if missing:
            raise ValueError(f"the first of the rules must set every field; it lacks {', '.join(missing)}")
        last = (self.rules[0].batches or [])[-1]
        if last.from_gib or last.not_named:
            raise ValueError("the last of `batches` must take every GPU: from_gib: 0 and no not_named")
        return self

    def of(self, version: str) -> dict[str, Any]:
        """Every field as `version` has it; a release older than the first is taken for the first."""
        found: dict[str, Any] = {}
        for one in self.rules:
            if one is self.rules[0] or parse(one.since) <= parse(version):
                found |= {name: getattr(one, name) for name in one.model_fields_set}
        return found
