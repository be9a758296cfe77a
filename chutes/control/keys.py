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
_ALPHABET = string.ascii_letters + string.digits
_NAME = re.compile(r"\S(.{0,22}\S)?")


class ApiKey(BaseModel):
    """A key as it is stored and listed: everything but its secret."""

    api_key_id: str
    name: str
    admin: bool = False
    chute_ids: list[str] | None = None
    """The only chutes it may call; None: all of them."""
    created_at: float
    digest: str = Field(repr=False, exclude=True)

    def for_gateway(self) -> Key:
        return Key(self.api_key_id, self.digest, self.admin, self.chute_ids)


def user_id(username: str) -> str:
    """A stable id of a user of this platform, 32 hex digits."""
    return uuid.uuid5(uuid.NAMESPACE_OID, username).hex


def create(
    username: str, name: str, now: float, admin: bool = False, chute_ids: list[str] | None = None
) -> tuple[ApiKey, str]:
    """Make a key.

    Returns:
        (what to store, the key's text). The text exists nowhere else.

    Raises:
        InvalidSpec: the name is not 1 to 24 characters.
    """
    if not _NAME.fullmatch(name):
        raise InvalidSpec(f"A key's name has 1 to 24 characters and no space at its ends, not {name!r}.")
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
    )
    return stored, text
