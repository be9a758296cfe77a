"""Pictures that were asked for by URL, kept for a while. Pure but for the random ids; time is passed in."""

from __future__ import annotations

import secrets
from collections import OrderedDict

KEPT_SECONDS = 3600.0  # as long as OpenAI's URLs last
KEPT_BYTES = 256 << 20  # some hundred pictures of a million pixels; the oldest go first


class Shelf:
    """Pictures by ids that nobody guesses: whoever has the URL may see the picture."""

    def __init__(self, prefix: str = "", kept_bytes: int = KEPT_BYTES) -> None:
        self.prefix = prefix
        """Of all ids: it says which instance has the picture."""
        self._kept_bytes = kept_bytes
        self._pictures: OrderedDict[str, tuple[float, str, bytes]] = OrderedDict()
        self._bytes = 0

    def put(self, data: bytes, media_type: str, now: float) -> str:
        """The id of a picture."""
        id_ = f"{self.prefix}{secrets.token_urlsafe(24)}"
        self._pictures[id_] = (now + KEPT_SECONDS, media_type, data)
        self._bytes += len(data)
        while len(self._pictures) > 1 and (self._bytes > self._kept_bytes or self._oldest() <= now):
            self._bytes -= len(self._pictures.popitem(last=False)[1][2])
        return id_

    def get(self, id_: str, now: float) -> tuple[str, bytes] | None:
        """(media type, data); None when it was never there or is not any more."""
        found = self._pictures.get(id_)
        return found[1:] if found is not None and found[0] > now else None

    def _oldest(self) -> float:
        return next(iter(self._pictures.values()))[0]
