"""What control asks of a fleet, and what a fleet reports back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from chutes.chute.spec import ChuteSpec
from chutes.engine.contract import Endpoint
from chutes.engine.diagnosis import Reason
from chutes.engine.lifecycle import Phase
from chutes.hardware.plan import Plan
from chutes.model.source import ModelSource


@dataclass(frozen=True)
class Launch:
    """Everything a fleet needs to start one instance."""

    instance_id: str
    spec: ChuteSpec
    source: ModelSource | None
    """None for a chute without a model."""
    plan: Plan
    served_names: tuple[str, ...]
    """Model names that the engine must answer to; the first is the one it shows."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What its owner keeps for it: environment variables, never to be shown or logged."""


@dataclass(frozen=True)
class Report:
    """What has become of an instance."""

    instance_id: str
    phase: Phase
    detail: str = ""
    """What it is doing, for a person: `downloading model.safetensors`."""
    done: int = 0
    total: int = 0
    """Progress of this phase, in bytes or steps; total 0 when it cannot be told."""
    endpoint: Endpoint | None = None
    """With READY."""
    reason: Reason | None = None
    """With FAILED."""
    pid: int | None = None
    max_model_len: int | None = None
    """With READY, as the engine itself says."""


class Fleet(Protocol):
    """Starts and stops instances, and returns at once: what becomes of them comes as reports."""

    report: Callable[[Report], None]

    def start(self, launch: Launch) -> None:
        """Begin to start an instance; it reports PREPARING first and READY or FAILED in the end."""
        ...

    def stop(self, instance_id: str) -> None:
        """Begin to stop it, in whatever phase it is; it reports STOPPED when nothing of it is left."""
        ...

    async def close(self) -> None:
        """Stop everything and return when nothing is left."""
        ...

    def log_path(self, instance_id: str) -> Path:
        """Where what an instance writes can be read, once there is any."""
        ...
