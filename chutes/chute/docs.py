"""A page that shows a chute's OpenAPI document and sends requests: one file, nothing from elsewhere.

It holds nothing of any chute. A browser opens it without a key; the key is typed into it, and what it then
reads and sends goes by that key.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def page() -> bytes:
    return (Path(__file__).parent / "docs.html").read_bytes()
