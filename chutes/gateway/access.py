"""Whose key a request carries. Pure: headers, keys and a time in; a `wire.Key` or a refusal out.

A worker holds digests only, so neither a core dump nor a log of a table gives a key away, and looking a
digest up in a dict tells a guesser nothing about the key by its timing.
"""

from __future__ import annotations

from collections.abc import Mapping

from chutes import wire
from chutes.gateway.answers import Refusal

MAKE_ONE = "Make a key with `chutes keys create --name NAME` and send it as `Authorization: Bearer KEY`."
CHALLENGE = b"WWW-Authenticate: Bearer\r\n"


class Access:
    """The keys of one table, by digest."""

    def __init__(self, keys: list[wire.Key]) -> None:
        self._by_digest = {key.digest: key for key in keys}

    def identify(self, headers: Mapping[bytes, bytes], now: float) -> wire.Key:
        """The key that these headers carry.

        `Authorization` may say `Bearer KEY`, `Basic KEY` or just `KEY` (the published platform takes the
        last word, whatever comes before it); without it, `X-API-Key` counts.

        Raises:
            Refusal: 401, with a code for each of missing, unknown and expired.
        """
        text = headers.get(b"authorization") or headers.get(b"x-api-key")
        if not text:
            raise Refusal(401, "missing_api_key", "No API key was sent.", MAKE_ONE, headers=CHALLENGE)
        key = self._by_digest.get(wire.key_digest(text[text.rfind(b" ") + 1 :]))
        if key is None:
            raise Refusal(
                401, "invalid_api_key", "This API key is not known here.", MAKE_ONE, headers=CHALLENGE
            )
        if key.expires is not None and key.expires <= now:
            raise Refusal(401, "expired_api_key", "This API key has expired.", MAKE_ONE, headers=CHALLENGE)
        return key


def may_invoke(key: wire.Key, chute_id: str) -> bool:
    return key.chute_ids is None or chute_id in key.chute_ids
