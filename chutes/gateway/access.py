"""Whose key a request carries. Pure: a digest, keys and a time in; a `wire.Key` or a refusal out.

A worker holds digests only, so neither a core dump nor a log of a table gives a key away, and looking a
digest up in a dict tells a guesser nothing about the key by its timing.
"""

from __future__ import annotations

from chutes import wire
from chutes.gateway.answers import Refusal

MAKE_ONE = "Make a key with `chutes keys create --name NAME` and send it as `Authorization: Bearer KEY`."
CHALLENGE = b"WWW-Authenticate: Bearer\r\n"


class Access:
    """The keys of one table, by digest."""

    def __init__(self, keys: list[wire.Key]) -> None:
        self._by_digest = {key.digest: key for key in keys}

    def identify(self, credential: str | None, now: float) -> wire.Key:
        """The key whose digest this is.

        Raises:
            Refusal: 401, with a code for each of missing, unknown and expired.
        """
        if credential is None:
            raise Refusal(401, "missing_api_key", "No API key was sent.", MAKE_ONE, headers=CHALLENGE)
        key = self._by_digest.get(credential)
        if key is None:
            raise Refusal(
                401, "invalid_api_key", "This API key is not known here.", MAKE_ONE, headers=CHALLENGE
            )
        check_expiry(key, now)
        return key


def check_expiry(key: wire.Key, now: float) -> None:
    """Raises: Refusal."""
    if key.expires is not None and key.expires <= now:
        raise Refusal(401, "expired_api_key", "This API key has expired.", MAKE_ONE, headers=CHALLENGE)


def may_invoke(key: wire.Key, chute_id: str) -> bool:
    return key.chute_ids is None or chute_id in key.chute_ids
