"""The access log: one JSON line for every request that has ended, in files that are rotated by size.

What a line holds is listed here, field by field: ids, names, times and counts. A prompt, a header or a
key's text cannot get in, because nobody hands them over.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec

from chutes.wire import Record

FILE_BYTES = 32 << 20
FILES = 5

_encoder = msgspec.json.Encoder()


class AccessLog:
    """The files `path`, `path.1` … the oldest; made when there is something to say."""

    def __init__(self, path: Path, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._files = files
        self._file: IO[bytes] | None = None

    def write(self, records: Sequence[Record], names: Mapping[str, str]) -> None:
        """Add a line for each.

        Args:
            names: what chutes are called, by id.

        Raises:
            OSError: the disk is full, say.
        """
        text = b"".join(_encoder.encode(line(record, names)) + b"\n" for record in records)
        if self._file is not None and self._file.tell() + len(text) > self._file_bytes:
            self._rotate()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._file = open(descriptor, "ab", buffering=0)  # noqa: PTH123, SIM115
        self._file.write(text)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rotate(self) -> None:
        self.close()
        for number in range(self._files - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            if newer.exists():
                newer.replace(older)


@functools.lru_cache(16)  # thousands of requests end in one second
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def line(record: Record, names: Mapping[str, str]) -> dict[str, object]:
    """One request as it is logged."""
    second, rest = divmod(record.started + record.duration, 1)
    return {
        "time": f"{_second(int(second))}.{int(rest * 1000):03d}Z",
        "request_id": record.request_id,
        "method": record.method,
        "path": record.path,
        "model": record.model,
        "chute": names.get(record.chute_id, record.chute_id),
        "instance": record.instance_id,
        "key_id": record.key_id,
        "status": record.status,
        "error": record.error,
        "stream": record.stream,
        "queued": round(record.queued, 6),
        "first": round(record.first, 6),
        "duration": round(record.duration, 6),
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "cached_tokens": record.cached_tokens,
        "chunks": record.chunks,
        "retries": record.retries,
    }
