"""Records of requests for tests of what is done with them."""

from __future__ import annotations

from typing import Any

from chutes.wire import Record

HOUR = 1_800_000_000 // 3600 * 3600
"""The beginning of an hour."""


def record(**changes: Any) -> Record:
    """A stream of 20 tokens that ended at the beginning of an hour and two seconds."""
    values: dict[str, Any] = {
        "request_id": "r1",
        "key_id": "k1",
        "chute_id": "c-1",
        "instance_id": "i1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "org/m",
        "status": 200,
        "error": "",
        "started": HOUR + 1.0,
        "queued": 0.02,
        "first": 0.25,
        "duration": 1.0,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "cached_tokens": 40,
        "chunks": 21,
        "retries": 0,
        "stream": True,
    }
    return Record(**{**values, **changes})
