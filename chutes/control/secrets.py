"""What an owner keeps for chutes: environment variables whose values are never shown again. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from chutes.exception import InvalidSpec

MAX_VALUE = 64 << 10  # the kernel takes 128 KiB for one variable

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# With these a secret would decide which code runs, or what the platform itself has to say.
_NOT_TAKEN = re.compile(
    r"(CHUTES_|LD_|PYTHON|CUDA_|VLLM_|GCONV_|BASH_ENV).*|PATH|HOME|USER|SHELL|ENV|IFS|TMPDIR|NO_PROXY"
)


@dataclass(frozen=True)
class Secret:
    secret_id: str
    purpose: str
    """A chute's id, or its name in lower case, deployed or not; empty: for all chutes."""
    key: str
    """Of the environment variable."""
    value: str = field(repr=False)
    created_at: float
    """Unix seconds."""

    def is_for(self, chute_id: str, name: str) -> bool:
        return self.purpose in ("", chute_id, name.lower())


def check(key: str, value: str) -> None:
    """Raises InvalidSpec, never with the value."""
    if not _NAME.fullmatch(key):
        raise InvalidSpec(
            f"Secret {key!r} is not the name of an environment variable.", "For instance HF_TOKEN."
        )
    if _NOT_TAKEN.fullmatch(key):
        raise InvalidSpec(f"{key} cannot be a secret: the platform or the system sets it.", "Rename it.")
    if not value or "\0" in value or len(value.encode()) > MAX_VALUE:
        raise InvalidSpec(f"The value of {key} must be text of 1 to {MAX_VALUE} bytes without zero bytes.")


def variables(secrets: Iterable[Secret], chute_id: str, name: str) -> dict[str, str]:
    """What one chute is given; its own beats what is for all."""
    wanted = sorted((s for s in secrets if s.is_for(chute_id, name)), key=lambda secret: bool(secret.purpose))
    return {secret.key: secret.value for secret in wanted}
