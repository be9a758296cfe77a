"""Findings that a test prints at the end of the run: what was seen, beyond passed or failed."""

from __future__ import annotations


class Story:
    """Rows of one table, kept until the run ends."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def tell(self, *row: str) -> None:
        self.rows.append(row)
