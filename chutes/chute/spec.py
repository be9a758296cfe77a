"""A chute as data: what a chute file declares, ready to be sent, stored and compared.

A chute file is loaded where the author types `chutes deploy`; from there on only this travels, so
the platform never runs an author's code in its own process.
"""

from __future__ import annotations

import re
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from chutes.chute.node_selector import NodeSelector
from chutes.exception import InvalidSpec

_COMMIT = re.compile(r"[0-9a-fA-F]{40}")


class EngineSpec(BaseModel):
    """The model server behind a template chute, as far as its author fixed it."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["vllm", "sglang", "diffusers"]
    task: Literal["generate", "embed", "image"] = "generate"
    """What it is asked to do; decides which of its paths there are and what it is asked first."""
    model: str
    """Hub id, local directory, or the name of weights that a package ships."""
    revision: str | None = None
    args: list[str] = Field(default_factory=list)
    """Command-line arguments for the engine, as the author gave them, already split."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What an author sets that is not, or not yet, an argument: of an engine of our own, or of a template
    whose last word depends on the model's files. JSON."""


class CordSpec(BaseModel):
    """One callable of a chute. Field names are those of the published deploy request."""

    function: str
    path: str
    method: str = "POST"
    public_api_path: str | None = None
    public_api_method: str = "POST"
    passthrough: bool = False
    passthrough_path: str | None = None
    stream: bool = False
    input_schema: dict[str, Any] | None = None
    minimal_input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    output_content_type: str | None = None


RESULT_BYTES = 1 << 20
"""Of what a job returns, as JSON: it is kept in memory and in the run's record. Files may be larger."""


class JobSpec(BaseModel):
    name: str
    ports: list[dict[str, Any]] = Field(default_factory=list)
    timeout: int | None = None
    upload: bool = True


class ChuteSpec(BaseModel):
    """Everything that one chute file says of one chute."""

    uid: str
    username: str
    name: str
    tagline: str = ""
    readme: str = ""
    standard_template: str | None = None
    revision: str | None = None
    image: str = ""
    dockerfile: str = ""
    """What its `Image` says to build, for a chute that runs its author's own code; empty where the image is
    only named."""
    node_selector: NodeSelector = Field(default_factory=NodeSelector)
    concurrency: int = 1
    max_instances: int = 1
    shutdown_after_seconds: int = 300
    scaling_threshold: float = 0.75
    allow_external_egress: bool = False
    engine: EngineSpec | None = None
    """None for a chute that is only its author's own cords and jobs."""
    cords: list[CordSpec] = Field(default_factory=list)
    jobs: list[JobSpec] = Field(default_factory=list)
    hooks: list[str] = Field(default_factory=list)
    """Names of startup and shutdown hooks."""
    ref: str = ""
    """The reference it was loaded from, e.g. `templates.vllm_chute:chute`."""
    code: str = ""
    """Source text of the chute file."""
    bundle: str = ""
    """SHA-256 of the snapshot of the files that the chute's code needs; empty: it needs none."""
    entry: str = ""
    """The reference of the chute inside that snapshot."""

    @field_serializer("node_selector")
    def _only_what_was_set(self, selector: NodeSelector) -> dict[str, Any]:
        # What the author left open stays open on its way to the platform, which then plans it.
        return selector.model_dump(mode="json", exclude_unset=True)


def uid_of(username: str, name: str) -> str:
    """A chute's id, by the published formula."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{username}::chute::{name}"))


def require_uid(spec: ChuteSpec) -> None:
    """Insist that the id is the name's own: directories are made of it, and another is somebody else's.

    Raises:
        InvalidSpec: it is another.
    """
    uid = uid_of(spec.username, spec.name)
    if spec.uid != uid:
        raise InvalidSpec(
            f"Chute {spec.name!r} of {spec.username!r} says that its uid is {spec.uid!r}.", f"It is {uid}."
        )


def require_revision(spec: ChuteSpec) -> None:
    """Insist that the model is pinned to one commit, as the published platform does.

    Raises:
        InvalidSpec: there is no revision, or it is a branch or tag, which can move (a `ValueError`).
    """
    if spec.engine is None or spec.engine.model.startswith(("/", "https://")):  # no commits there
        return
    revision = spec.engine.revision or spec.revision
    model = spec.engine.model
    if revision and _COMMIT.fullmatch(revision):
        return
    missing = "has no revision" if not revision else f"has revision {revision!r}, which is not a commit"
    raise InvalidSpec(
        f"Chute {spec.name!r} {missing}: you must specify revision= to properly lock model {model} "
        "to a given huggingface revision.",
        f'Add revision="<40 hex digits>"; `git ls-remote https://huggingface.co/{model} HEAD` prints the '
        "current one.",
    )
