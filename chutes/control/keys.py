"""API keys: made, shown once, kept as digests.

The text of a key is the published one: `cpk_{key id}.{user id}.{secret}`, 102 characters, of which the
last 32 are the secret.
"""

from __future__ import annotations

import re
import secrets
import string
import uuid

from pydantic import BaseModel, Field

from chutes.exception import InvalidSpec
from chutes.wire import Key, key_digest

PATTERN = re.compile(r"cpk_[a-f0-9]{32}\.[a-f0-9]{32}\.[a-zA-Z0-9]{32}")
BEGINNING = re.compile(r"cpk_[a-zA-Z0-9.]+")
"""A key or the beginning of one, in a text that must not show it."""
_ALPHABET = string.ascii_letters + string.digits
_NAME = re.compile(r"\S(.{0,22}\S)?")


MAX_LIMIT = 2**40  # a column of the board holds 63 bits; a limit beyond this is none


class Limits(BaseModel):
    """What a key may use; None: as much as it likes."""

    expires_at: float | None = None
    """Unix seconds."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=MAX_LIMIT)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=MAX_LIMIT)
    concurrency: int | None = Field(default=None, ge=1, le=MAX_LIMIT)

    @property
    def counted(self) -> bool:
        """Whether workers must count what it uses."""
        return (self.requests_per_minute or self.tokens_per_minute or self.concurrency) is not None


class ApiKey(Limits):
    """A key as it is stored and listed: everything but its secret."""

    api_key_id: str
    name: str
    admin: bool = False
    chute_ids: list[str] | None = None
    """The only chutes it may call; None: all of them."""
    created_at: float
    digest: str = Field(repr=False, exclude=True)

    def for_gateway(self, slot: int | None = None) -> Key:
        """
        Args:
            slot: where its use is counted, if it has limits.
        """
        return Key(
            self.api_key_id,
            self.digest,
            self.admin,
            self.chute_ids,
            expires=self.expires_at,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            concurrency=self.concurrency,
            slot=slot,
        )


def user_id(username: str) -> str:
    """A stable id of a user of this platform, 32 hex digits."""
    return uuid.uuid5(uuid.NAMESPACE_OID, username).hex


def create(
    username: str,
    name: str,
    now: float,
    admin: bool = False,
    chute_ids: list[str] | None = None,
    limits: Limits | None = None,
) -> tuple[ApiKey, str]:
    """Make a key.

    Returns:
        (what to store, the key's text). The text exists nowhere else.

    Raises:
        InvalidSpec: the name is not 1 to 24 characters, or it would have expired already.
    """
    if not _NAME.fullmatch(name):
        raise InvalidSpec(f"A key's name has 1 to 24 characters and no space at its ends, not {name!r}.")
    limits = limits or Limits()
    if limits.expires_at is not None and limits.expires_at <= now:
        raise InvalidSpec("The key would have expired already.", "Give a time to come: 30d, or 2099-12-31.")
    key_id = uuid.uuid4().hex
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    text = f"cpk_{key_id}.{user_id(username)}.{secret}"
    stored = ApiKey(
        api_key_id=key_id,
        name=name,
        admin=admin,
        chute_ids=chute_ids,
        created_at=now,
        digest=key_digest(text),
        **limits.model_dump(include=set(Limits.model_fields)),
    )
    return stored, text
