"""Labels, wrapped text and columns for a person, with colours where there is a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence

WIDEST = 104  # columns; beyond, lines are hard to follow back
LABEL = 11

FIXED = "\u00a0"  # a blank at which no line is broken; printed as a plain one

BOLD, DIM, RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN = "1", "2", "31", "32", "33", "34", "35", "36"

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def paint(text: str, code: str) -> str:
    """Colour on a terminal whose owner did not ask for none (https://no-color.org)."""
    if not text or not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def entry(label: str, text: str, width: int, hang: int = 0) -> list[str]:
    """A label and its text, wrapped under itself."""
    room = min(width, WIDEST) - LABEL - 2
    folded = _wrap_painted(text, room, hang)
    labels = [label] + [""] * (len(folded) - 1)
    return [f"  {one:<{LABEL}}{line.replace(FIXED, ' ')}" for one, line in zip(labels, folded, strict=True)]


def wrapped(text: str, width: int, indent: str) -> list[str]:
    return [indent + line for line in textwrap.wrap(text, min(width, WIDEST) - len(indent))]


def columns_of(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows in columns; those in `right` end at the same place, as figures should."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "    "
        + "  ".join(
            f"{cell:>{width}}" if i in right else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def columns() -> int:
    return shutil.get_terminal_size((100, 40)).columns


def _wrap_painted(text: str, room: int, hang: int) -> list[str]:
    """Wrap at blanks by what is seen: escape codes have no width."""
    found: list[str] = [""]
    for word in text.split(" "):
        width = len(_ESCAPE.sub("", found[-1])) + 1 + len(_ESCAPE.sub("", word))
        if found[-1].strip() and width > room:
            found.append(" " * hang + word)
        else:
            found[-1] = f"{found[-1]} {word}" if found[-1] else word
    return found
