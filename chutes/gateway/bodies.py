"""A request's body that did not come in one piece with its head. Pure."""

from __future__ import annotations

from chutes.gateway import limits
from chutes.gateway.chunked import BadChunk, ChunkScanner
from chutes.gateway.http import bad


class IncomingBody:
    """Grows with every read until it is whole.

    Args:
        length: bytes that it will have; None: it is chunked, and says so itself.
    """

    __slots__ = ("_length", "_overhead", "_scanner", "_so_far", "whole")

    def __init__(self, length: int | None) -> None:
        self.whole = False
        self._so_far = bytearray()
        """One piece of memory, however small the pieces that it comes in."""
        self._length = length or 0
        self._scanner = ChunkScanner() if length is None else None
        self._overhead = 0
        """Bytes of a chunked one that are not of its chunks' content."""

    def __len__(self) -> int:
        return len(self._so_far)

    def content(self) -> bytes:
        return bytes(self._so_far)

    def take(self, data: bytes) -> bytes:
        """Add what is its own of these bytes; return the rest. Raises Refusal."""
        scanner = self._scanner
        return self._counted(data) if scanner is None else self._chunks(scanner, data)

    def _counted(self, data: bytes) -> bytes:
        missing = self._length - len(self._so_far)
        part, rest = (data, b"") if len(data) <= missing else (data[:missing], data[missing:])
        self._so_far += part
        self.whole = len(self._so_far) == self._length
        return rest

    def _chunks(self, scanner: ChunkScanner, data: bytes) -> bytes:
        pieces: list[bytes] = []
        try:
            taken = scanner.feed(data, pieces)
        except BadChunk as error:
            raise bad(f"The chunked body is broken: {error}") from None
        payload = b"".join(pieces)
        self._so_far += payload
        self._overhead += taken - len(payload)
        if self._overhead > len(self._so_far) // 2 + limits.CHUNK_OVERHEAD_BYTES:
            raise bad("The chunks of the body are too small.")
        self.whole = scanner.ended
        return data[taken:]
